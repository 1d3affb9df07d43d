"""The figures of summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from diva_ray.core.levels import class_levels
from diva_ray.core.links import Link
from diva_ray.core.multilabel import Slips
from diva_ray.core.verdict import Verdict
from diva_ray.engine.kernels.scan import CONSTANT
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.calibrate import label_entropy
from diva_ray.tasks.fit.derived import Derived, precision_of
from diva_ray.tasks.fit.trusted import TRUST
from diva_ray.tasks.setup.alike import alike_of
from diva_ray.tasks.setup.forms import errors_in_words
from diva_ray.tasks.setup.remarks import missing_of
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.planted import planted_figures

RULES = {
    "error": "share of left-out predictions that are wrong; of several labels the ranking error, 1 - label ranking "
    "average precision: 0 where the outputs of a sample's own classes lie above those of all others (of a sample with "
    "none of the classes, or all, the share of outputs on the wrong side of 1/2); of numbers R2, greater when better, "
    "which is `r2` too",
    "is_detrimental": "z > threshold: more weight on this sample raises the validation loss, beyond chance",
    "n_detrimental_right": "of classes: detrimental samples that are predicted right when left out, label_score > 0.5: "
    "they raise the loss, not the count of errors",
    "is_label_issue": "label_score < label_threshold: the cut with the best expected F1 against wrong labels; "
    "precision and recall are estimated from calibrated left-out probabilities, without knowing the truth",
    "class_dependence": "about which share of the suspected labels keeps to one wrong class per true class: 0 for "
    "errors drawn at random. The same errors in the validation labels mislead every score; trusted rows do not",
    "information": "nats that a left-out prediction tells of its label, of label_entropy; 0: features say nothing. No "
    "label is flagged where chance or poor features explain as well what the model misses",
    "missing_labels": "of several labels: estimated share of the classes that belong to a sample but are not given; "
    "added_labels: of those that do not but are given. Null where no wrong labels show",
    "labeller_doubt": "> 0: what the model misses is hardly shared by neighbouring rows; this share of it is taken for "
    "errors of the labellers. Wrong if the outcome depends on chance, or the features do not show the class",
}
TRUSTED = {
    "method": f"trusted: trusted rows weigh {TRUST:g} times as much in the fit, and their labels are taken for right; "
    "rows are judged, and written, under weights lowered to suit them; loss and error are those before any weight was "
    "lowered, because the same trusted rows cannot judge weights that follow them",
}


def common_figures(session: Session, setup: Setup, ridge: float) -> dict[str, Any]:
    """Return the figures that every task's summary begins with."""
    counts, bands = session.scan.counts, setup.scale.bands
    widths = [w for k, w in enumerate(session.scan.widths) if bands is None or k in bands]
    loss = session.loss if isinstance(session.loss, str) else getattr(session.loss, "__name__", "callable")
    return {
        "n_samples": int(counts["rows"]),
        "n_features": sum(min(width, session.config.projection or width) for width in widths),
        "n_outputs": setup.outputs,
        "n_validation": int(counts["validating"]),
        "task": session.task,
        "loss_function": loss,
        "validation": session.validation,
        "ridge": ridge,
        "mean_weight": counts["weight"] / counts["rows"],
        "missing": missing_of(session.columns, session.scan),
        "n_alike": alike_of(session.scan),
        "shared": session.shared,
    }


def summarise(
    session: Session, derived: Derived, rule: Verdict, calibration: Link | Slips | None, written: Tally
) -> dict[str, Any]:
    """Return the figures of summary.json."""
    counts, setup = session.scan.counts, derived.setup
    bands = dict(zip(session.columns.features, derived.penalty_derivatives.tolist(), strict=True))
    summary = {
        **common_figures(session, setup, derived.ridge),
        "ridge_derivative": float(derived.band_derivatives.sum()),
        "band_penalty_derivative": bands,
        "mean_weight": float(written["weights"][2]) / counts["rows"],  # as they are written
        "weight_factor": written["max_common"],  # of every weight, so that their mean is kept where some are lowered
        "loss": derived.tally["loss"] / counts["validation"],
        **error_figures(session, derived.tally["wrong"]),
        **verdict_figures(rule, written),
        "method": getattr(session.config, "method", "plain"),
        "class_dependence": rule.class_dependence,
        "labeller_doubt": rule.doubt,
        "rules": {**RULES, **(TRUSTED if getattr(session.config, "method", "plain") == "trusted" else {})},
        "standard_errors": errors_of(derived),
        "standard_error_check": derived.agreement,
        "form": derived.form,
        "condition": float(f"{derived.condition:.6g}"),  # LAPACK estimates it; its last digits vary from run to run
        "max_leverage": derived.tally["max_leverage"],
        "precision": precision_of(derived),
        "ridge_grid": [
            {"ridge": r, "squared_error": e / counts["validation"] if np.isfinite(e) else None}
            for r, e in derived.grid.tried
        ],
    }
    if derived.accuracy is not None:
        summary["derivative_check"] = derived.accuracy
    if isinstance(calibration, Slips):
        found = (calibration.missing, calibration.added) if calibration.shows else (None, None)
        summary["missing_labels"], summary["added_labels"] = found
        summary["label_entropy"], summary["information"] = calibration.entropy, calibration.information
    if isinstance(calibration, Link):
        scale = None if not np.isfinite(calibration.scale) else calibration.scale
        levels = class_levels(derived.tally["levels"]).tolist()
        summary["calibration"] = {"scale": scale, "sharpness": calibration.sharpness, "levels": levels}
        if calibration.mix is not None:
            weights, bias = calibration.mix
            summary["calibration"]["mix"] = {"weights": weights.tolist(), "bias": bias.tolist()}
        summary["calibration"] |= {"by_nearness": calibration.near, "shift": rule.shift, "slope": rule.slope}
        summary["n_only_of_class"] = int(written["n_only_of_class"])
        summary["label_entropy"] = label_entropy(derived.tally["levels"])
        summary["information"] = summary["label_entropy"] + calibration.likelihood
    return summary | planted_figures(written, session.config.data.truth)


def errors_of(derived: Derived) -> str:
    """Return how standard errors were found."""
    setup = derived.setup
    if derived.standard_errors == "exact":
        return "exact"
    return errors_in_words(setup.vectors, setup.outputs, setup.buckets)


def verdict_figures(rule: Verdict, written: Tally) -> dict[str, Any]:
    """Return the cuts of both verdicts, what they are expected to find, and how many rows they take.

    Precision and recall are None where no label is flagged: nothing is estimated of nothing. So are those of
    detrimental rows where no cut was sought, but a share of all rows passes it.
    """
    flagged = int(written["n_label_issues"])
    sought = flagged and rule.z.precision > 0
    return {
        "threshold": rule.z.value,
        "n_detrimental": int(written["n_detrimental"]),
        **({key: int(written[key])} if (key := "n_detrimental_right") in written else {}),
        "detrimental_precision": rule.z.precision if sought else None,
        "detrimental_recall": rule.z.recall if sought else None,
        "label_threshold": rule.label.value,
        "n_label_issues": flagged,
        "label_issue_precision": rule.label.precision if flagged else None,
        "label_issue_recall": rule.label.recall if flagged else None,
        "noise_estimate": rule.noise_rate,
        **({"label_loss": rule.loss} if rule.loss else {}),
    }


def error_figures(session: Session, wrong: float) -> dict[str, float]:
    """Return `error`, and `r2` where it is that of numbers."""
    error = error_of(session, wrong)
    return {"error": error} if session.task in ("classification", "multilabel") else {"error": error, "r2": error}


def error_of(session: Session, wrong: float) -> float:
    """Return the left-out error rate (classes), ranking error (several labels), or R2 (numbers) of counted errors."""
    total = session.scan.counts["validation"]
    if session.task in ("classification", "multilabel"):
        return wrong / total
    mean, squares = session.scan.target[1:].chunk(2)
    variance = float(squares.sum())
    varies = variance > CONSTANT * (variance + total * float(mean @ mean))
    return 1.0 - wrong / variance if varies else 0.0
