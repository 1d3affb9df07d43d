"""What a reweighting run says of itself: summary, a few lines, and the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diva_ray.config import ReweightConfig
from diva_ray.core.reweight import TrialSums
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Columns, Gallery, Sheet, Table, Tile
from diva_ray.tasks.alike import shared_in_words
from diva_ray.tasks.page import run_facts, shown, weight_histogram, weights_by_class
from diva_ray.tasks.session import Session
from diva_ray.tasks.summary import common_figures, dependence_in_words
from diva_ray.tasks.walk import RIDGES, Arm


@dataclass(frozen=True)
class Weighed:
    """What a walk found.

    Attributes:
        arms: weights that were tried; `sums` compares them on rows set apart; `taken` is the one that was chosen.
        left: left-out sums of the state from which the last step was taken.
        ridge, ridge_before: the ridge to fit with under the new weights, and the one chosen for the old.
        folds: folds that were asked.
        class_dependence: of the labels that looked wrong before the last step.
    """

    arms: list[Arm]
    sums: TrialSums
    taken: int
    left: Partial
    setup: Setup
    ridge: float
    ridge_before: float
    folds: int
    class_dependence: float


def figures(session: Session, config: ReweightConfig, weighed: Weighed, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    sums, taken, weight = weighed.sums, weighed.taken, weighed.sums.weight
    stepped = bool(weighed.arms[taken].steps)
    base = int(sums.loss[: len(RIDGES)].argmin())  # what is to be beaten
    gain, error = sums.gain[base], sums.gain_error[base]
    share = (sums.error / weight).tolist()
    zero, lowered, total, squares = written["weights"].tolist()
    trials = [
        {
            "weights": arm.name, "gain": float(gain[k]), "gain_standard_error": float(error[k]), "error": share[k],
            "loss": float(sums.loss[k] / weight), "taken": k == taken,
        }
        for k, arm in enumerate(weighed.arms)
    ]  # fmt: skip
    return {
        **common_figures(session, weighed.setup, weighed.ridge),
        "ridge_uniform": weighed.ridge_before,
        "method": config.method,
        "level": config.level,
        "class_dependence": weighed.class_dependence,
        "accepted": stepped,
        "chosen": weighed.arms[taken].name,
        "error_uniform": share[base if stepped else 0],
        "error_reweighted": share[taken],
        "loss_uniform": trials[base if stepped else 0]["loss"],
        "loss_reweighted": trials[taken]["loss"],
        "gain": float(sums.gain[base if stepped else 0, taken]),
        "gain_standard_error": float(sums.gain_error[base if stepped else 0, taken]),
        "folds": f"{weighed.folds} of {config.folds}",
        "n_judged": sums.rows,
        "n_lowered": int(lowered),
        "n_zero": int(zero),
        "effective_samples": total**2 / squares if squares > 0 else 0.0,
        "rule": "accepted when the loss on rows set apart is lower than that of the weights as they are, under any of "
        "the ridges tried, by more than one standard error of the difference, row against row; the loss is -log "
        "likelihood of the given label under the model's own calibration, allowing for wrong labels (classes), else "
        "the task's. Where no step is accepted, weights stay as they are, and so does the ridge, unless another (of "
        "three, with ridge=auto) gains more than three standard errors. The rows set apart took no part in any "
        "derivative, but the best of all that was tried is chosen on them: error_reweighted and gain are a little too "
        "good",
        "trials": trials,
    }


def told(summary: dict[str, Any]) -> list[str]:
    """Return a reweighting run in a few lines, for a terminal."""
    s = summary
    kind = "error" if s["task"] in ("classification", "multilabel") else "squared error"
    first, as_given = f"{s['n_samples']:,} samples, ridge {s['ridge']:.4g}", f"{kind} {s['error_uniform']:.4f} as given"
    warnings = [f"warning: {warning}" for warning in dependence_in_words(s)]
    if not s["accepted"]:
        return [
            f"{first}; no weight changed: no step gained more than one standard error",
            f"on folds that took no part: {as_given}" + lower_ridge(s, f"{s['error_reweighted']:.4f}"),
            *warnings,
        ]
    return [
        f"{first}; accepted",
        f"on folds that took no part: {as_given}, {s['error_reweighted']:.4f} reweighted; "
        f"loss gain {s['gain']:.4f} +- {s['gain_standard_error']:.4f}",
        f"chosen: {s['chosen']}; {s['n_lowered']:,} weights lowered, {s['n_zero']:,} to zero",
        *warnings,
    ]


def lower_ridge(summary: dict[str, Any], error: str) -> str:
    """Return what another ridge gained where only that was taken."""
    if summary["ridge"] == summary["ridge_uniform"]:
        return ""
    return f", {error} under a ridge of {summary['ridge']:.4g} instead of {summary['ridge_uniform']:.4g}"


def sheet_of(session: Session, weighed: Weighed, summary: dict[str, Any], written: Tally) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    headline = [
        f"Accepted: {s['chosen']}." if s["accepted"] else "No weight was changed: no step gained beyond chance.",
        f"On rows that took no part, {error} {shape(s['error_uniform'])} as given"
        + (
            f" and {shape(s['error_reweighted'])} reweighted."
            if s["accepted"]
            else f"{lower_ridge(s, shape(s['error_reweighted']))}."
        ),
    ]
    tiles = [Tile(f"{error} as given", shape(s["error_uniform"]), f"{s['n_judged']:,} rows, {s['folds']} folds")]
    if s["accepted"]:
        tiles += [
            Tile(
                f"{error} reweighted", shape(s["error_reweighted"]), f"on the same rows; ridge {s['ridge']:.3g}", "good"
            ),
            Tile("weights lowered", words.count(s["n_lowered"]), f"{s['n_zero']:,} to zero", "hurts"),
            Tile("effective samples", words.count(s["effective_samples"]), f"of {s['n_samples']:,}"),
        ]
    files = ["samples/: weight, derivative, z and verdicts of every row", "summary.json: every figure of this page"]
    return Sheet(
        "Which weights the samples should have", headline, tiles, _parts(session, weighed, s, written),
        run_facts(session, s), session.runner.seconds, notes=notes_of(session, s), downloads=files,
        footer="Weights are judged on folds that took no part in the derivative they follow (DIVA, ICLR 2022, eq. 14).",
    )  # fmt: skip


def error_words(summary: dict[str, Any]) -> tuple[str, Callable]:
    """Return what the errors of a task are called, and how they are written."""
    if summary["task"] in ("classification", "multilabel"):
        return "error", words.percent
    return "squared error", words.number


def _parts(session: Session, weighed: Weighed, s: dict[str, Any], written: Tally) -> list[Any]:
    error, shape = error_words(s)
    bars = [
        {
            "label": trial["weights"], "value": trial["gain"], "error": trial["gain_standard_error"],
            "detail": f"{error} {shape(trial['error'])}", "strong": trial["taken"],
        }
        for trial in _best_by_steps(s["trials"])
    ]  # fmt: skip
    lowered = [row for row in written["examples"].worst if row["weight"] < 0.999 * s["mean_weight"]]
    edges, counts = weight_histogram(written["weight_counts"].numpy(), s["mean_weight"])
    mean = written["weights"][2].item() / s["n_samples"]
    kept = "The mean weight is as it was." if s["method"] != "paper" else f"Their mean is {words.number(mean)}."
    far = f" The last bar holds all of {words.number(edges[-2])} or more." if edges[-1] == math.inf else ""
    parts: list[Any] = [
        Bars(
            "What was tried, on rows that took no part", bars,
            "Gain in loss over the weights as they are, with one standard error; more is better. A step is accepted "
            "when its gain less one standard error is above 0. Each under the best of three ridges; all are in "
            "summary.json. What was taken was chosen on these rows, so its own figures are a little too good.",
        ),
    ]  # fmt: skip
    if not s["accepted"]:
        return parts
    parts += [
        Columns("The new weights", edges, counts, kept + far, "weight"),
        Gallery("Lowered most", shown(session, lowered), "Samples by z, with their new weight."),
    ]
    rest = [("n", "Samples", "count"), ("weight", "Mean weight", "fixed")]
    if s.get("sources"):
        parts.append(Table("Sources", [("source", "Source", "label"), *rest], s["sources"]))
    classes = weights_by_class(weighed.setup, written)
    if classes:
        intro = "Most lowered first: a class that loses much of its weight deserves a look."
        parts.append(Table("Classes", [("label", "Class", "label"), *rest], classes, intro))
    return parts


def _best_by_steps(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was tried, the best gain first, each under its best ridge (the one taken under its own)."""
    best: dict[str, dict[str, Any]] = {}
    for trial in trials:
        steps = trial["weights"].partition("; ridge / ")[0]
        if steps not in best or (trial["taken"], trial["gain"]) > (best[steps]["taken"], best[steps]["gain"]):
            best[steps] = trial
    return sorted(best.values(), key=lambda trial: -trial["gain"])


def notes_of(session: Session, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the weights."""
    notes = [*shared_in_words(summary["shared"], summary["n_samples"]), *dependence_in_words(summary)]
    if summary["method"] == "paper":
        notes.append(
            "Plain steps are taken whatever the folds say; they often raise the error. `method=safe` asks first."
        )
    if summary["folds"].split(" of ")[0] != summary["folds"].split(" of ")[1]:
        notes.append("Not every fold was asked: the answer was clear before.")
    if session.config.data.validation_weight:
        notes.append("Only rows with a validation weight were heard, in the derivative and on the folds.")
    return notes
