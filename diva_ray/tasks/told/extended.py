"""What an extension says of itself: summary and the page; its words are in `extended_words`."""

from __future__ import annotations

from typing import Any

import torch

from diva_ray.engine.kernels.pool_choice import HARMS
from diva_ray.engine.reduce import Tally
from diva_ray.report import words
from diva_ray.report.sheet import Gallery, Inform, Lines, Sheet, Table, Tile
from diva_ray.tasks.fit.extension import Extension
from diva_ray.tasks.setup.alike import few_shared_in_words, shared_in_words
from diva_ray.tasks.setup.session import Session, error_kind
from diva_ray.tasks.told.chance import CLEAR, TONES, clear
from diva_ray.tasks.told.extended_words import (
    LEAST_SHARE,
    against_random,
    change,
    gap_of,
    kept_step,
    loss_is_error,
    missed_in_words,
    never,
    notes_on_error,
    other_shares,
    rows_by_label,
    validated,
    wrong_in_pool,
)
from diva_ray.tasks.told.measures import error_words, loss_words
from diva_ray.tasks.told.page import run_facts, seen_in, with_names
from diva_ray.tasks.told.planted import right_of_chosen
from diva_ray.tasks.told.summary import common_figures

SHOWN = 24  # of the rows chosen first, on the page


def figures(session: Session, work: Extension, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    config, setup = work.config, work.setup
    pool, by = int(work.pool_counts.sum()), session.config.data.truth
    rows = sum(extent.rows for extent in work.extents)
    steps, kept = work.gauge.steps, work.kept
    weights = torch.ones_like(work.pool_counts) if work.shares is None else work.shares.weights
    names = setup.classes.to_pylist() if setup.classes is not None and len(written["classes"]) > 1 else []
    return {
        **common_figures(session, setup, kept["ridge"]),
        "method": config.method,
        "n_pool": pool,
        "n_pool_without_features": work.bare,
        "n_pool_without_weight": rows - work.bare - pool,
        "n_selected": int(written["n"]),
        "n_helpful": kept["helpful"],
        "budget": config.budget,
        "stopped": work.reason,
        "pool_noise_estimate": None if work.single else work.noise_rate,
        "single_shot": work.single,
        "led_by_derivative": work.was_blind,
        "error_before": steps[0]["error"],
        "error_after": kept["error"],
        "error_difference": {name: kept[name] for name in ("to_before", "to_uniform") if name in kept},
        **({"planted": right_of_chosen(written, pool, by)} if "wrong" in written else {}),
        "best_budget": work.best["chosen"],
        "error_by_budget": steps,
        "other_class_shares": work.shares is not None and work.shares.other,
        "selected_by_class": [
            {"label": str(name), "n": int(n), "of": int(of), "in_table": int(own), "weight": float(weight)}
            for name, n, of, own, weight in zip(
                names, written["classes"], work.pool_counts, work.gauge.left["class_n"], weights, strict=True
            )
        ]
        if names
        else [],
        "rule": rule_of(config.method, session.task, blind=work.was_blind, single=work.single),
    }


def rule_of(method: str, task: str, *, blind: bool, single: bool) -> str:
    """Return which rows count as helpful (`n_helpful`), and the order in which they are chosen, if most rows of the
    table are the only ones of their class (`single`), and where nothing is known of labels (`blind`)."""
    if method == "paper":
        return "helpful: its derivative is below 0; the most negative first"
    if blind:
        return "helpful: its derivative is below 0; the most negative first, classes in proportion"
    if task == "classification":
        return (
            "helpful: a coin with the probability that its label is right comes up heads; chosen at random among "
            "these, "
            + ("" if single else "rows whose class the fit is unsure of and whose label is surer more often, ")
            + "classes in proportion"
        )
    if task == "multilabel":
        right = (
            "a coin with the probability that all its labels are right comes up heads, and its derivative is below 0"
        )
    else:
        right = (
            "its label is likelier right than wrong; where no wrong ones show, its derivative is not above "
            f"{HARMS} root mean squares of all"
        )
    return f"helpful: {right}; chosen at random among these"


def chosen_first(session: Session, written: Tally) -> list[dict[str, Any]]:
    """Return the rows chosen first with their picture or text."""
    pool = session.beside_table
    show = [name for name in session.show if name in pool.schema.names]
    kept = ("id", "label", "z", "label_score")  # the score is NaN where labels are not judged
    rows = written["first"].worst[:SHOWN]
    found = seen_in(pool, show, [row["row"] for row in rows])
    return [with_names(session, {name: row[name] for name in kept if name in row}) | found[row["row"]] for row in rows]


def sheet_of(session: Session, summary: dict[str, Any], first: list[dict[str, Any]]) -> Sheet:
    """Return the contents of report.html; `first`: the rows chosen first."""
    s = summary
    parts: list[Any] = [_errors_by_rows(s)]
    if "planted" in s:
        parts.append(_right_labels(s))
    if s["selected_by_class"]:
        parts.append(_classes(session, s))
    if first:
        parts.append(Gallery("Chosen first", first, "The rows of the pool in the order in which they were chosen."))
    tiles, notes = _tiles(s), _notes(session, s)
    chose = f"chose {s['n_selected']:,} of {words.counted(s['n_pool'], 'row', 'rows')}: {s['stopped']}"
    return Sheet(
        "Which rows of the pool to add",
        [words.sentence(line) for line in (chose, *change(s), *against_random(s))],
        tiles, parts, [*run_facts(session, s), ("Pool", session.beside_table.name), ("Method", s["method"])],
        session.runner.seconds, notes=notes,
        downloads=["selected/: id, rank, round, derivative, z and weight of chosen rows", "summary.json: every figure"],
        footer=f"The derivative of a pool row says what happens to the {error_kind(s['validation'])} loss if the row "
        "is added with a small weight: below 0 the loss falls (DIVA, ICLR 2022, section 4).",
    )  # fmt: skip


def _errors_by_rows(s: dict[str, Any]) -> Lines:
    """Return the error by rows added, beside that of rows at random."""
    error, which, steps = error_words(s)[0], error_kind(s["validation"]), s["error_by_budget"]
    ours: dict[str, Any] = {"name": "chosen", "y": [step["error"] for step in steps], "strong": True}
    for end, sign in (("low", -1), ("high", 1)):
        errors = (step["to_uniform"]["standard_error"] if step["chosen"] else 0.0 for step in steps)
        ours[end] = [max(step["error"] + sign * CLEAR * error, 0.0) for step, error in zip(steps, errors, strict=True)]
    beside = {"name": "at random", "y": [step["error_uniform"] for step in steps]}
    return Lines(
        f"{which.capitalize()} {error} by rows added", [step["chosen"] for step in steps], [ours, beside],
        f"On {validated(s)}; the pool's own labels are not asked. At random: about as many rows, counted in "
        "summary.json. The band is the 95\N{NO-BREAK SPACE}% interval of the difference between the two, row by "
        "row: where the line at random leaves it, choosing differs from it beyond chance.",
        "rows added", error, percent_y=error == "error",
    )  # fmt: skip


def _right_labels(s: dict[str, Any]) -> Table:
    """Return how many labels are right in the pool and among the chosen, where that is known."""
    p, both = s["planted"], [("rows", "Rows", "count"), ("wrong", "Wrong", "count"), ("right", "Right", "percent")]
    pool = {"of": "the pool", "rows": s["n_pool"], "wrong": p["n_planted"], "right": p["right_in_pool"]}
    ours = {"of": "chosen", "rows": s["n_selected"], "wrong": p["n_chosen"], "right": p["right_among_chosen"]}
    intro = f"By {p['by'] or 'what was planted'}, which choosing did not see."
    return Table("Labels that are right", [("of", "Labels of", "label"), *both], [ours, pool], intro)


def _classes(session: Session, s: dict[str, Any]) -> Table:
    """Return how many rows of every class were chosen."""
    columns = [("label", "Class", "label"), ("n", "Chosen", "count"), ("of", "In the pool", "count")]
    columns.append(("in_table", "In the table", "count"))
    if s["other_class_shares"]:
        columns.append(("weight", "Weight of a row", "number"))
    by_class = [row | {"label": session.named(row["label"])} for row in s["selected_by_class"]]
    return Table("Classes", columns, sorted(by_class, key=lambda row: -row["n"]), "Most chosen first.")


def _tiles(s: dict[str, Any]) -> list[Tile]:
    """Return the figures at the head of the page."""
    (error, shape), which, steps, kept = error_words(s), error_kind(s["validation"]), s["error_by_budget"], kept_step(s)
    tiles = [
        Tile("rows chosen", f"{s['n_selected']:,}", f"of {s['n_pool']:,} in the pool{never(s)}"),
        Tile(f"{error} before", shape(s["error_before"]), validated(s)),
        _after(s),
        _at_random(s),
    ]
    if not loss_is_error(s):
        tiles.append(
            Tile(
                f"{which} {loss_words(s['loss_function'])} after", words.number(kept["loss"], 4),
                f"before {words.number(steps[0]['loss'], 4)}, at random {words.number(kept['loss_uniform'], 4)}; "
                "standard error not known",
            )
        )  # fmt: skip
    return tiles + _noise(s)


def _notes(session: Session, s: dict[str, Any]) -> list[Any]:
    """Return what is to be said of the table, the pool and the error."""
    notes = [*shared_in_words(s["shared"], s["n_samples"])]
    notes += map(Inform, few_shared_in_words(s["shared"], s["n_samples"]))
    if s["single_shot"] and s["method"] == "balanced":
        notes.append(
            "Most rows of the table were the only ones of their class, which left out cannot be predicted: "
            + (
                "how far to trust the fit was judged by the pool's own labels"
                if rows_by_label(s)
                else "nothing was known of the pool's labels, and rows were chosen by their derivative alone"
            )
            + ". A second row of each class, or a validation table, would tell more."
        )
    return [*notes, *missed_in_words(s), *notes_on_error(s), *other_shares(s, session.named)]


def _after(s: dict[str, Any]) -> Tile:
    """Return the error with the chosen rows; coloured where it has changed beyond chance."""
    error, shape = error_words(s)
    if not s["error_difference"]:
        return Tile(f"{error} after", shape(s["error_after"]), "nothing was added")
    seen = clear(**s["error_difference"]["to_before"])
    detail = f"{gap_of(s, 'to_before')}, {'beyond' if seen else 'within'} chance"
    return Tile(f"{error} after", shape(s["error_after"]), detail, TONES.get(seen, ""))


def _at_random(s: dict[str, Any]) -> Tile:
    """Return the error with as many rows chosen at random."""
    (error, shape), kept = error_words(s), kept_step(s)
    rows = words.counted(kept["uniform_chosen"], "row", "rows")
    gap = f"; chosen less random {gap_of(s, 'to_uniform')}" if s["error_difference"] else ""
    return Tile(f"{error} at random", shape(kept["error_uniform"]), f"{rows}{gap}")


def _noise(s: dict[str, Any]) -> list[Tile]:
    """Return the estimate of the pool's wrong labels; of none that stands apart it is not known that none is wrong."""
    share = s["pool_noise_estimate"]
    if "planted" in s and s["n_pool"]:
        p, true = s["planted"], wrong_in_pool(s)
        guessed = "not estimated" if share is None else f"{words.percent(share)} estimated"
        by = f"by {p['by']}" if p["by"] else "as planted"
        return [Tile("of the pool's labels wrong", words.percent(true), f"{by}; {guessed}", "issue" * (true > 0))]
    if share is None:
        return []
    if share < LEAST_SHARE:
        return [Tile("of the pool's labels stands apart", "none", "which does not say that all are right")]
    return [Tile("of the pool's labels wrong", words.percent(share), "estimated", "issue")]
