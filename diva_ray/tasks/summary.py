"""What a scoring run says of itself: summary, manifest, and the page's contents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from diva_ray.core.levels import class_levels
from diva_ray.core.multilabel import Slips
from diva_ray.core.verdict import Link, Verdict
from diva_ray.engine.reduce import Tally
from diva_ray.engine.scan import CONSTANT
from diva_ray.engine.setup import Setup
from diva_ray.report.words import counted
from diva_ray.tasks.alike import alike_in_words, alike_of, shared_in_words
from diva_ray.tasks.derived import Derived, errors_in_words, precision_of
from diva_ray.tasks.judge import TELLS_ALL, TELLS_NOTHING, label_entropy
from diva_ray.tasks.planted import planted, planted_in_words
from diva_ray.tasks.remarks import missing_of
from diva_ray.tasks.session import Session
from diva_ray.tasks.trusted import TRUST

CLASS_DEPENDENT = 1 / 3  # class dependence beyond which a reader is warned
DOUBTFUL = 0.6  # estimated precision below which a reader is warned
MANY_MISSED = 0.05  # error from which a run that calls no label wrong says what that means
RULES = {
    "error": "share of left-out predictions that are wrong; of numbers R2, greater when better, which is `r2` too",
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
        "n_validation": int(counts["heard"]),
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
            {"ridge": r, "squared_error": e / counts["validation"] if np.isfinite(e) else None} for r, e in derived.grid
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
        summary["calibration"]["by_nearness"] = calibration.near
        summary["label_entropy"] = label_entropy(derived.tally["levels"])
        summary["information"] = summary["label_entropy"] + calibration.likelihood
    if "planted" in written:
        found = planted(written["planted"], written["ranked"].joined()[0])
        summary["planted"] = {**found, "by": session.config.data.truth}  # None: the built-in table's own
    return summary


def errors_of(derived: Derived) -> str:
    """Return how standard errors were found."""
    setup = derived.setup
    if derived.standard_errors == "exact":
        return "exact"
    return errors_in_words(setup.vectors, setup.outputs, setup.buckets)


def verdict_figures(rule: Verdict, written: Tally) -> dict[str, Any]:
    """Return the cuts of both verdicts, what they are expected to find, and how many rows they take.

    Precision and recall are None where no label is flagged: nothing is estimated of nothing.
    """
    flagged = int(written["n_label_issues"])
    return {
        "threshold": rule.z.value,
        "n_detrimental": int(written["n_detrimental"]),
        **({key: int(written[key])} if (key := "n_detrimental_right") in written else {}),
        "detrimental_precision": rule.z.precision if flagged else None,
        "detrimental_recall": rule.z.recall if flagged else None,
        "label_threshold": rule.label.value,
        "n_label_issues": flagged,
        "label_issue_precision": rule.label.precision if flagged else None,
        "label_issue_recall": rule.label.recall if flagged else None,
        "noise_estimate": rule.noise_rate,
    }


def told(summary: dict[str, Any]) -> list[str]:
    """Return a scoring run in a few lines, for a terminal."""
    s = summary
    kind = {"classification": "error", "multilabel": "error"}.get(s["task"], "R2")
    expected = f" ({estimates(s)})" if s["n_label_issues"] else ""
    lines = [
        f"{s['n_samples']:,} samples, {s['validation']} {kind} {s['error']:.4f}{heard(s)}, ridge {s['ridge']:.4g}",
        f"{counted(s['n_label_issues'], 'label looks', 'labels look')} wrong{expected}; "
        f"{counted(s['n_detrimental'], 'sample hurts', 'samples hurt')} (z > {s['threshold']:.2f}"
        f"{'' if s['noise_estimate'] else ', which 5 % pass at most'})",
    ]
    if s.get("update"):
        u = s["update"]
        lines.append(
            f"of the fit, the sums of {u['rows_unchanged']:,} rows were taken from {u['run']}, those of "
            f"{u['rows_relabelled']:,} but for their labels; {u['rows_computed']:,} were computed"
        )
    lines += [f"warning: {warning}" for warning in warnings_of(s)]
    lines += [f"note: {note}" for note in verdict_notes(s)]
    if "curated" in s:
        lines.append(curated_in_words(s["curated"]))
    return lines + planted_in_words(s)


def verdict_notes(summary: dict[str, Any]) -> list[str]:
    """Return what kind of wrong labels show among several, what it means where none is called wrong, and that deleting
    what hurts may not help."""
    found = []
    if hurt_by_loss_alone(summary):
        found.append(
            f"{summary['n_detrimental_right']:,} of {summary['n_detrimental']:,} that hurt are predicted right without "
            "themselves: they raise the loss, not the count of errors; deleting them is unlikely to help."
        )
    if summary.get("missing_labels") is not None:
        return [
            *found,
            f"About {summary['missing_labels']:.2%} of the classes that belong to a sample are missing from its "
            f"labels, and {summary['added_labels']:.2%} of those that do not belong are given.",
        ]
    return found + unflagged(summary) * (not summary.get("n_label_issues", 1))


def unflagged(summary: dict[str, Any]) -> list[str]:
    """Return what it means that no label is called wrong, where predictions tell something and miss something."""
    likeliest = "those with the least label_score are likeliest."
    if summary["task"] in ("classification", "multilabel"):
        said = f"though {summary['error']:.1%} are not predicted: hard samples explain it too. Wrong labels that look "
        told = summary["error"] >= MANY_MISSED and not tells_nothing(summary)
        return [f"No label is called wrong, {said}like them cannot be told from them; {likeliest}"] * told
    return [
        "No label is called wrong, though long tails or uneven errors may hide wrong ones, which nothing tells from "
        f"right ones that are hard to predict; {likeliest}"
    ] * (summary.get("r2", 0.0) >= TELLS_NOTHING)


def hurt_by_loss_alone(summary: dict[str, Any]) -> bool:
    """Return whether most samples that hurt are predicted right without themselves."""
    hurt = summary.get("n_detrimental", 0)
    return hurt > 1 and 2 * summary.get("n_detrimental_right", 0) > hurt


def tells_nothing(summary: dict[str, Any]) -> bool:
    """Return whether left-out predictions tell next to nothing of the classes."""
    return summary.get("information", math.inf) < TELLS_NOTHING * summary.get("label_entropy", 0.0)


def tells_all(summary: dict[str, Any]) -> bool:
    """Return whether left-out predictions are the labels, as where one of the features holds them."""
    if summary.get("r2") is not None:
        return summary["r2"] > TELLS_ALL
    entropy = summary.get("label_entropy") or math.inf
    return summary["error"] == 0 and (summary.get("information") or 0.0) > TELLS_ALL * entropy


def curated_in_words(curated: dict[str, Any]) -> str:
    """Return what a curated copy is."""
    done = {"drop": "dropped", "relabel": "relabelled", "weight": "of a changed weight"}[curated["kind"]]
    return f"curated copy: {curated['rows']:,} rows, {curated['changed']:,} {done}"


def heard(summary: dict[str, Any]) -> str:
    """Return of which rows the error is, where they are not all."""
    n = summary["n_validation"]
    return "" if n == summary["n_samples"] else f" of the {n:,} that validate"


def apart(validation: str) -> str:
    """Return the word before `error`, by whether rows of the table are left out or another table validates."""
    return "left-out" if validation == "leave-one-out" else "validation"


def estimates(summary: dict[str, Any]) -> str:
    """Return which precision and recall to expect of the rows that are flagged, in words."""
    precision, recall = summary["label_issue_precision"], summary["label_issue_recall"]
    return "none is flagged" if precision is None else f"estimated precision {precision:.2f}, recall {recall:.2f}"


def error_figures(session: Session, wrong: float) -> dict[str, float]:
    """Return `error`, and `r2` where it is that of numbers."""
    error = error_of(session, wrong)
    return {"error": error} if session.task in ("classification", "multilabel") else {"error": error, "r2": error}


def error_of(session: Session, wrong: float) -> float:
    """Return the left-out error rate (classes), share of wrong labels (several), or R2 (numbers) of counted errors."""
    total = session.scan.counts["validation"]
    if session.task in ("classification", "multilabel"):
        return wrong / total
    mean, squares = session.scan.target[1:].chunk(2)
    variance = float(squares.sum())
    varies = variance > CONSTANT * (variance + total * float(mean @ mean))
    return 1.0 - wrong / variance if varies else 0.0


def sources_of(setup: Setup, sums: Tensor, written: Tally) -> list[dict[str, Any]]:
    """Return every source with the derivative of adding the same weight to all its rows, its standard error, and how
    many of them are flagged; `sums` as `Setup.errors_of` takes them."""
    names = setup.source_names()
    if not names:
        return []
    d, error = (x.tolist() for x in setup.errors_of(sums))
    n, hurt, wrong = (written[key].tolist() for key in ("source_n", "source_detrimental", "source_issues"))
    return [
        {
            "source": name, "n": int(n[k]), "derivative": d[k], "standard_error": error[k],
            "z": d[k] / error[k] if error[k] > 0 else 0.0, "n_detrimental": int(hurt[k]),
            "n_label_issues": int(wrong[k]),
        }
        for k, name in enumerate(names)
    ]  # fmt: skip


def dependence_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where the labels that look wrong are not wrong at random."""
    heard = summary["validation"] == "leave-one-out" and summary["method"] != "trusted"
    if not heard or summary["class_dependence"] <= CLASS_DEPENDENT:
        return []
    kept = "go mostly one way" if summary["n_outputs"] == 2 else "keep to few pairs of classes"
    return [
        f"The suspected labels {kept}. Such errors are in the validation labels too and mislead every left-out score: "
        "trust a few rows of each class (data.validation_weight, method=trusted)."
    ]


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """Return what may have misled the verdicts."""
    left_out = summary["validation"] == "leave-one-out"
    alike = alike_in_words(summary["n_alike"], summary["n_samples"]) if left_out else ""
    found = [*([alike] if alike else []), *shared_in_words(summary["shared"], summary["n_samples"])]
    found += dependence_in_words(summary) if summary["n_label_issues"] else []
    precision = summary["label_issue_precision"]
    if summary["n_label_issues"] and precision is not None and precision < DOUBTFUL:
        found.append(
            f"Of the labels that look wrong, about {round((1 - precision) * summary['n_label_issues']):,} are right by "
            "the estimate: where classes overlap, right labels look like wrong ones. Look at some before they are "
            "dropped."
        )
    if tells_nothing(summary):
        found.append(
            f"Left-out predictions tell next to nothing of the labels ({max(summary['information'], 0.0):.3f} of "
            f"{summary['label_entropy']:.3f} nats): other features are needed before any label can be called wrong."
        )
    if "r2" in summary and summary["r2"] < TELLS_NOTHING:
        found.append(
            f"Left-out predictions tell next to nothing of the numbers (R2 {summary['r2']:.3f}): look for numbers that "
            "stand for something else, such as -999, or for other features."
        )
    if tells_all(summary):
        found.append(
            "Left-out predictions leave no doubt of a single label. Real features seldom do: look for one that holds "
            "the label, or was made of it."
        )
    if summary["labeller_doubt"] > 0:
        found.append(
            "Labels were flagged on the assumption that every sample has one class that can be told from its features; "
            "where classes truly overlap they are not wrong: then run it with `labeller_doubt=off`."
        )
    return found
