"""What a reweighting run says of itself: summary, a few lines, and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diva_ray.config import ReweightConfig
from diva_ray.core.reweight import TrialSums, least_base
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup
from diva_ray.report import words
from diva_ray.report.sheet import Bars, Columns, Gallery, Inform, Sheet, Table, Tile
from diva_ray.tasks.fit.folds import outcome
from diva_ray.tasks.fit.walk import Arm
from diva_ray.tasks.setup.alike import shared_in_words
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.chance import TONES, clear, few_in_words
from diva_ray.tasks.told.measures import error_words
from diva_ray.tasks.told.page import run_facts, shown, weight_histogram, weights_by_class
from diva_ray.tasks.told.planted import planted_figures, planted_in_words
from diva_ray.tasks.told.summary import common_figures
from diva_ray.tasks.told.summary_words import dependence_in_words
from diva_ray.tasks.told.tried import as_given_ridge, at_ridge, best_by_steps, explained, trial_bars

LOSS = (
    "the loss is -log likelihood of the given label under the model's own calibration, allowing for wrong labels "
    "(classes), else the task's, of numbers no more of a row than where it looks wrong, so not the squared error that "
    "error_uniform and error_reweighted are then"
)
RULE = (
    "accepted when the loss on rows set apart is lower than that of the weights as they are, under any of the ridges "
    f"tried, by more than half a standard error of the difference, row against row; {LOSS}. Where no step is accepted, "
    "weights stay as they are, and so does the ridge, unless another (of three, with ridge=auto) gains more than three "
    "standard errors. The rows set apart took no part in any derivative, but the best of all that was tried is chosen "
    "on them: error_reweighted and gain are a little too good. error_uniform and loss_uniform: of the weights as they "
    "are under ridge_compared, the best of the ridges for them where steps were accepted. In trials, gain is over the "
    "weights as they are under the best of the ridges, gain_over_given under ridge_uniform; steps (kind and value, one "
    "after another) and ridge_factor (times ridge_uniform) say in numbers what weights says in words. is_label_issue "
    "is by the model alone: where score asks how sure the labellers were (labeller_doubt), fewer are flagged there"
)
PLAIN_RULE = (
    "plain steps are taken, not tested: error_reweighted and gain (below 0: the loss rose), on rows set apart that "
    "took no part in any derivative, tell what they did, beside the weights as they are under the same ridge, which is "
    f"kept; {LOSS}"
)
SOURCES = 5  # of the least and of the largest weight in one line


@dataclass(frozen=True)
class Weighed:
    """What a walk found.

    Attributes:
        arms: weights that were tried; `sums` compares them on rows set apart; `taken` is the one that was chosen.
        left: left-out sums of the state from which the last step was taken.
        ridge, ridge_before: the ridge to fit with under the new weights, and the one chosen for the old.
        folds: folds that were asked.
        class_dependence: of the labels that looked wrong before the last step.
        by_source: the derivatives summed over each source before the last step, see `Walk.by_source`.
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
    by_source: Tensor


def figures(session: Session, config: ReweightConfig, weighed: Weighed, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    sums, taken, weight = weighed.sums, weighed.taken, weighed.sums.weight
    stepped = bool(weighed.arms[taken].steps)
    plain = config.method == "paper"  # takes its steps whatever the folds say, under the ridge as it is
    base = 0 if plain else least_base(sums)  # what is to be beaten
    before = base if stepped else 0
    gain, error = sums.gain[base], sums.gain_error[base]
    share = (sums.error / weight).tolist()
    zero, lowered, total, squares, raised = written["weights"].tolist()
    trials = [
        {
            "weights": arm.name, **arm.figures, "gain": float(gain[k]), "gain_standard_error": float(error[k]),
            "gain_over_given": float(sums.gain[0, k]),
            "gain_over_given_standard_error": float(sums.gain_error[0, k]), "error": share[k],
            "loss": float(sums.loss[k] / weight), "taken": k == taken,
        }
        for k, arm in enumerate(weighed.arms)
    ]  # fmt: skip
    return {
        **common_figures(session, weighed.setup, weighed.ridge),
        **planted_figures(written, session.config.data.truth),
        "ridge_uniform": weighed.ridge_before,
        "ridge_compared": weighed.ridge_before * weighed.arms[before].ridge,
        "method": config.method,
        "level": config.level,
        "class_dependence": weighed.class_dependence,
        "accepted": stepped,
        "chosen": weighed.arms[taken].name,
        "loss_uniform": trials[before]["loss"],
        "loss_reweighted": trials[taken]["loss"],
        **outcome(sums, taken, before),
        "folds": f"{weighed.folds} of {config.folds}",
        "n_judged": sums.rows,
        "n_lowered": int(lowered),
        "n_raised": int(raised),
        "n_zero": int(zero),
        "weight_factor": written["max_common"],  # of every weight, so that their mean is kept where some are lowered
        "effective_samples": total**2 / squares if squares > 0 else 0.0,
        "rule": PLAIN_RULE if plain else RULE,
        "trials": trials,
    }


def told(summary: dict[str, Any]) -> list[str]:
    """Return a reweighting run in a few lines, for a terminal."""
    s = summary
    kind = error_words(s)[0]
    first, as_given = f"{s['n_samples']:,} samples, ridge {s['ridge']:.4g}", f"{kind} {s['error_uniform']:.4f} as given"
    as_given += at_ridge(s, "ridge_compared") if s["accepted"] else ""
    warnings = [f"warning: {warning}" for warning in dependence_in_words(s)]
    warnings += [f"note: {words.plain(note)}" for note in few_judged_in_words(s)]
    if not s["accepted"]:
        return [
            f"{first}; no weight changed: no step gained more than half a standard error",
            f"on folds that took no part: {as_given}" + lower_ridge(s, f"{s['error_reweighted']:.4f}"),
            *warnings,
            *planted_in_words(s),
        ]
    return [
        f"{first}; " + ("taken, not tested, as method=paper says" if s["method"] == "paper" else "accepted"),
        f"on folds that took no part: {as_given}, {s['error_reweighted']:.4f} reweighted{at_ridge(s, 'ridge')}; "
        f"loss gain {s['gain']:.4f} +- {s['gain_standard_error']:.4f}",
        f"chosen: {s['chosen']}; {s['n_lowered']:,} weights lowered, {s['n_zero']:,} to zero"
        + (f", {s['n_raised']:,} raised" if s["n_raised"] else ""),
        *sources_in_words(s),
        *warnings,
        *planted_in_words(s),
    ]


def few_judged_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where few rows, such as trusted ones, have judged the weights."""
    name = "error on folds that took no part"
    return few_in_words(summary["task"], summary["n_judged"], summary["error_reweighted"], name)


def sources_in_words(summary: dict[str, Any]) -> list[str]:
    """Return the mean weight of every source, the least first; of the least and the largest where they are many."""
    found = summary.get("sources", [])
    if not (summary["accepted"] and found):
        return []
    shown = [f"{words.clip(str(row['source']), 40)} {words.number(row['weight'])}" for row in found]
    some = shown if len(shown) <= 2 * SOURCES else [*shown[:SOURCES], "...", *shown[-SOURCES:]]
    return [f"mean weight by source: {', '.join(some)}"]


def lower_ridge(summary: dict[str, Any], error: str) -> str:
    """Return what another ridge gained where only that was taken."""
    if summary["ridge"] == summary["ridge_uniform"]:
        return ""
    return f", {error} under a ridge of {summary['ridge']:.4g} instead of {summary['ridge_uniform']:.4g}"


def sheet_of(session: Session, weighed: Weighed, summary: dict[str, Any], written: Tally) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    rows = f"{s['n_judged']:,} rows, {s['folds']} folds; ridge {words.number(s['ridge_compared'], 4)}"
    name = f"{error} reweighted" if s["accepted"] else f"{error} under another ridge"
    same = f"on the same rows; ridge {words.number(s['ridge'], 4)}; {gain_words(s)}"
    tiles = [Tile(f"{error} as given", shape(s["error_uniform"]), rows)]
    if s["accepted"] or s["ridge"] != s["ridge_uniform"]:
        tiles.append(Tile(name, shape(s["error_reweighted"]), same, tone_of(s)))
    if s["accepted"]:
        raised = f", {s['n_raised']:,} raised" if s["n_raised"] else ""
        tiles += [
            Tile("weights lowered", words.count(s["n_lowered"]), f"{s['n_zero']:,} to zero{raised}", "hurts"),
            Tile("effective samples", words.count(s["effective_samples"]), f"of {s['n_samples']:,}"),
        ]
    told_first = headline(s) + [words.sentence(said) for said in sources_in_words(s)]
    told_first += [f"Of the flags in samples/: {said}." for said in planted_in_words(s)]
    files = ["samples/: weight, derivative, z and verdicts of every row", "summary.json: every figure of this page"]
    return Sheet(
        "Which weights the samples should have", told_first, tiles, _parts(session, weighed, s, written),
        run_facts(session, s), session.runner.seconds, notes=notes_of(session, s), downloads=files,
        footer="Weights are judged on folds that took no part in the derivative they follow (DIVA, ICLR 2022, eq. 14).",
    )  # fmt: skip


def headline(summary: dict[str, Any]) -> list[str]:
    """Return what was done, and what it did on rows that took no part."""
    s, (error, shape) = summary, error_words(summary)
    before, after = shape(s["error_uniform"]), shape(s["error_reweighted"])
    if not s["accepted"]:
        told = f"On rows that took no part, {error} {before} as given{lower_ridge(s, after)}."
        return ["No weight was changed: no step gained beyond chance.", told]
    if s["method"] == "paper":
        moved = f"{turned(s['error_reweighted'] - s['error_uniform'])} from {before} to {after}"
        by = f"{words.number(abs(s['gain']))} ± {words.number(s['gain_standard_error'], 2)}"
        told = f"On rows that took no part, the {error} {moved}, the loss {turned(-s['gain'])} by {by}."
        return [f"Taken, not tested: {s['chosen']}.", told]
    given, ours = at_ridge(s, "ridge_compared"), at_ridge(s, "ridge")
    told = f"On rows that took no part, {error} {before} as given{given} and {after} reweighted{ours}."
    return [f"Accepted: {s['chosen']}.", told]


def turned(change: float) -> str:
    """Return which way a figure went."""
    return "rose" if change > 0 else "fell" if change < 0 else "went"


def tone_of(summary: dict[str, Any]) -> str:
    """Return the colour of the error that was reached, where it and the loss, row against row, went the same way and
    the loss beyond chance."""
    change = summary["error_reweighted"] - summary["error_uniform"]
    seen = clear(-summary["gain"], summary["gain_standard_error"])
    return TONES[seen] if seen == ("lower" if change < 0 else "higher") and change else ""


def gain_words(summary: dict[str, Any]) -> str:
    """Return the gain in loss with its standard error, row against row, and whether it is beyond chance."""
    gain, error = summary["gain"], summary["gain_standard_error"]
    told = f"{words.number(gain)}{words.PLUS_MINUS}{words.number(error, 2)}"
    return f"loss gain {told}, {'beyond' if clear(-gain, error) else 'within'} chance"


def _parts(session: Session, weighed: Weighed, s: dict[str, Any], written: Tally) -> list[Any]:
    error, shape = error_words(s)
    plain, chosen = s["method"] == "paper", session.config.ridge == "auto"
    tried = as_given_ridge(s["trials"]) if plain else best_by_steps(s["trials"])
    told_apart = explained(tried, s["ridge_uniform"], chosen)
    rule = (
        "All steps are taken, whatever these rows say."
        if plain
        else "Steps are taken where they gain more than half a standard error over the weights as they are under each "
        "of three ridges; else the ridge alone is lowered where that gains three. Each row is under its best ridge; "
        "all are in summary.json. What was taken was chosen on these rows: its figures are a little too good."
    )
    lowered = [row for row in written["examples"].worst if row["weight"] < 0.999 * s["mean_weight"]]
    edges, counts = weight_histogram(written["weight_counts"].numpy(), s["mean_weight"])
    mean = written["weights"][2].item() / s["n_samples"]
    kept = "The mean weight is as it was." if not plain else f"Their mean is {words.number(mean)}."
    far = f" The last bar holds all of {words.number(edges[-2])} or more." if edges[-1] == math.inf else ""
    parts: list[Any] = [
        Bars(
            "What was tried, on rows that took no part", trial_bars(tried, error, shape),
            "Gain in loss over the weights and the ridge as they are, with one standard error; more is better. "
            f"{rule} {told_apart}",
        ),
    ]  # fmt: skip
    rest = [("n", "Samples", "count"), ("weight", "Mean weight", "fixed")]
    if s.get("sources"):
        columns = [("source", "Source", "label"), *rest, ("z", "z", "z"), ("derivative", "Derivative", "number")]
        columns.append(("standard_error", "Standard error", "number"))
        intro = "Least weight first. Derivatives summed over each source, as they were before the last step: above 0, "
        parts.append(
            Table(
                "Sources",
                columns,
                s["sources"],
                f"{intro}more weight on the whole source raises the loss.",
                of=s["n_sources"],
            )
        )
    if not s["accepted"]:
        return parts
    parts.append(Columns("The new weights", edges, counts, kept + far, "weight"))
    if s["level"] == "sample":  # else rows of a source are lowered alike
        parts.append(Gallery("Lowered", shown(session, lowered), "Largest z first, with their new weight."))
    classes = weights_by_class(session, weighed.setup, written)
    if classes:
        intro = "Most lowered first: a class that loses much of its weight deserves a look."
        parts.append(Table("Classes", [("label", "Class", "label"), *rest], classes, intro))
    return parts


def notes_of(session: Session, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the weights."""
    notes = [*shared_in_words(summary["shared"], summary["n_samples"]), *dependence_in_words(summary)]
    notes += few_judged_in_words(summary)
    if summary["method"] == "paper":
        notes.append(
            "Plain steps are taken whatever the folds say; they often raise the error. `method=safe` asks first."
        )
    if summary["folds"].split(" of ")[0] != summary["folds"].split(" of ")[1]:
        notes.append(Inform("Not every fold was asked: the answer was clear before, or no row of a fold validates."))
    if session.config.data.validation_weight:
        notes.append(Inform("Only rows with a validation weight validated, in the derivative and on the folds."))
    return notes
