"""What an augmentation run says of itself: a few lines, and the page."""

from __future__ import annotations

from typing import Any

from diva_ray.report import words
from diva_ray.report.sheet import Bars, Sheet, Table, Tile
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.measures import error_words
from diva_ray.tasks.told.page import run_facts
from diva_ray.tasks.told.tried import at_ridge, explained

RULE = (
    "probability: share of all weights after the steps that were accepted. derivative, standard_error, z: at the "
    "weights as given, before any step, as all weights of the transform are multiplied alike; z > 0: there more weight "
    "on the transform raises {loss}. A "
    "derivative changes as weights move, so that one below 0 may end with less weight. "
    "probability_paper: after plain steps for every row, taken, not tested, under plain leave-one-out (copies of the "
    "row that is left out stay in); z_leave_one_out: z under that. error_uniform: of the weights as given under "
    "ridge_compared, the best of the ridges for them where steps were accepted"
)

VALIDATED = {
    "leave-one-out": "the left-out loss of the originals",
    "separate table": "the loss on the validation table",
}


def told(summary: dict[str, Any]) -> list[str]:
    """Return the run in a few lines, for a terminal."""
    s = summary
    state = "accepted" if s["accepted"] else "nothing changed: no step gained more than half a standard error"
    rows = sorted(s["augmentations"].items(), key=lambda item: -item[1]["probability"])
    return [
        f"{s['n_samples']:,} rows, {len(rows)} transforms; {state}",
        ", ".join(f"{name} {row['probability']:.3f} (z {row['z']:+.1f})" for name, row in rows)
        + "; z: at the weights as given, before any step",
    ]


def sheet_of(session: Session, summary: dict[str, Any]) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    rows = [{"transform": name, **row} for name, row in s["augmentations"].items()]
    rows.sort(key=lambda row: -row["probability"])
    bars = [
        {
            "label": row["transform"],
            "value": row["derivative"],
            "error": row["standard_error"],
            "detail": f"z {words.fixed(row['z'], 1)}",
        }
        for row in rows
    ]
    columns = [
        ("transform", "Transform", "label"), ("n", "Copies", "count"), ("probability", "Probability", "bar"),
        ("z", "z, before any step", "z"), ("probability_paper", "Plain steps (paper)", "percent"),
        ("z_leave_one_out", "z, copies stay in", "z"),
    ]  # fmt: skip
    apart, loss = s["validation"] == "separate table", VALIDATED[s["validation"]]
    rows_apart = "rows of the validation table" if apart else "originals"
    leak = s["error_leave_group_out"] - s["error_leave_one_out"]
    chance = 2 * (s["error_leave_group_out"] / s["n_validation"]) ** 0.5 if s["task"] == "classification" else 0.0
    leaks = (
        f"Left out alone, an original is predicted with {error} {shape(s['error_leave_one_out'])}; left out with its "
        f"copies, {shape(s['error_leave_group_out'])}. "
        + ("The copies leak: plain leave-one-out is no validation here." if leak > chance else "No leak shows here.")
        if not apart
        else "A table of its own validates: no copy can vouch for its original there."
    )
    notes = [leaks] if leak > chance else []
    headline = [
        f"Accepted: {s['chosen']}." if s["accepted"] else "Nothing was changed: no step gained beyond chance.",
        f"On {rows_apart} that took no part, {error} {shape(s['error_uniform'])} as given"
        + (
            f"{at_ridge(s, 'ridge_compared')} and {shape(s['error_reweighted'])} reweighted{at_ridge(s, 'ridge')}."
            if s["accepted"]
            else "."
        ),
    ]
    tiles = [
        Tile(
            row["transform"],
            words.percent(row["probability"]),
            f"z {words.fixed(row['z'], 1)} before any step",
            "hurts" if row["z"] > 2 else "",
        )
        for row in rows[:6]
    ]
    steps = explained([s], s["ridge_uniform"], session.config.ridge == "auto", "transforms")
    about = (
        f"Probability: the share of all weights, {'after the steps' if s['accepted'] else 'as given'}. {steps} z: "
        "derivative / standard error at the weights as given; below 0, more weight on the transform lowers "
        f"{loss}. It changes as weights move, so that a transform may lose weight though its z was below 0. "
        "Plain steps (paper): the answer if every row's weight moves against its derivative, not tested, and copies "
        f"stay in when an original is left out. {'' if notes else leaks}"
    )
    parts = [
        Table("Probabilities", columns, rows, about),
        Bars("Derivative of each transform", bars, "At the weights as given, before any step. Above 0, more weight on "
             f"the transform raises {loss}."),
    ]  # fmt: skip
    return Sheet(
        "Which transforms help", headline, tiles, parts, run_facts(session, s), session.runner.seconds, notes=notes,
        downloads=["augmentations.json: every transform's figures", "summary.json: every figure of this page"],
        footer="A table of its own validates (DIVA, ICLR 2022, Proposition 2 and data augmentation)." if apart else
        "Every original is left out with all its copies (DIVA, ICLR 2022, data augmentation).",
    )  # fmt: skip
