"""What an extension says of itself: summary, a few lines, and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diva_ray.engine.reduce import Tally
from diva_ray.report import words
from diva_ray.report.sheet import Lines, Sheet, Table, Tile
from diva_ray.tasks.alike import shared_in_words
from diva_ray.tasks.page import run_facts
from diva_ray.tasks.reweighted import error_words
from diva_ray.tasks.session import Session
from diva_ray.tasks.summary import common_figures

if TYPE_CHECKING:
    from diva_ray.tasks.extend import Extension


def figures(session: Session, work: Extension, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    config, setup = work.config, work.setup
    steps, kept = work.gauge.steps, work.kept
    names = setup.classes.to_pylist() if setup.classes is not None and len(written["classes"]) > 1 else []
    return {
        **common_figures(session, setup, kept["ridge"]),
        "method": config.method,
        "n_pool": int(work.pool_counts.sum()),
        "n_pool_without_features": work.bare,
        "n_selected": int(written["n"]),
        "n_helpful": kept["helpful"],
        "budget": config.budget,
        "stopped": work.reason,
        "pool_noise_estimate": None if work.was_blind else work.noise_rate,
        "single_shot": work.was_blind,
        "error_before": steps[0]["error"],
        "error_after": kept["error"],
        "best_budget": work.best["chosen"],
        "error_by_budget": steps,
        "selected_by_class": [
            {"label": str(name), "n": int(n), "of": int(of)}
            for name, n, of in zip(names, written["classes"], work.pool_counts, strict=True)
        ]
        if names
        else [],
        "rule": rule_of(config.method, session.task, single_shot=work.was_blind),
    }


def rule_of(method: str, task: str, *, single_shot: bool) -> str:
    """Return which rows count as helpful (`n_helpful`), and the order in which they are chosen."""
    if method == "paper":
        return "helpful: its derivative is below 0; the most negative first"
    if single_shot:
        return "helpful: its derivative is below 0; the most negative first, classes in proportion"
    if task == "classification":
        return (
            "helpful: a coin with the probability that its label is right comes up heads; chosen at random among "
            "these, classes in proportion"
        )
    right = {"multilabel": "a coin with the probability that all its labels are right comes up heads"}
    return (
        f"helpful: {right.get(task, 'its label is likelier right than wrong')}, and its derivative is below 0; chosen "
        "at random among these"
    )


def told(summary: dict[str, Any]) -> list[str]:
    """Return an extension in a few lines, for a terminal."""
    s = summary
    kind = "error" if s["task"] in ("classification", "multilabel") else "squared error"
    first, last = s["error_by_budget"][0], kept_step(s)
    notes = [f"note: {words}" for words in notes_on_error(s)]
    helpful = "with labels that are likely right" if rows_by_label(s) else "that help"
    return [
        f"{s['n_samples']:,} samples, pool of {s['n_pool']:,}; chose {s['n_selected']:,} "
        f"({s['n_helpful']:,} {helpful}); {s['stopped']}",
        f"left-out {kind} on the table: {s['error_before']:.4f} before, {s['error_after']:.4f} after, "
        f"{last['error_uniform']:.4f} with {last['uniform_chosen']:,} rows chosen at random; loss "
        f"{first['loss']:.4f}, {last['loss']:.4f}, {last['loss_uniform']:.4f}",
        *notes,
    ]


def kept_step(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the fit to the table and the rows that are kept."""
    found: dict[str, Any] = next(s for s in summary["error_by_budget"] if s["chosen"] == summary["n_selected"])
    return found


def rows_by_label(summary: dict[str, Any]) -> bool:
    """Return whether rows were chosen for their labels alone."""
    return summary["method"] == "balanced" and summary["task"] == "classification" and not summary["single_shot"]


def notes_on_error(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where the left-out error has risen: since it was least, beyond chance, or at all."""
    s = summary
    if s["best_budget"] < s["n_selected"]:
        return [f"The left-out error was least with {s['best_budget']:,} rows added, and has risen since."]
    if s["error_after"] > s["error_before"]:
        return [
            "The left-out error is higher with the chosen rows than without, though not beyond chance: see "
            "error_by_budget; `budget` would take fewer."
        ]
    return []


def _validated(summary: dict[str, Any]) -> str:
    """Return on which rows errors are measured."""
    n = f"{summary['n_validation']:,} rows"
    if summary["validation"] == "leave-one-out":
        return f"{n} of the table, each predicted without itself"
    return f"{n} that validate"


def sheet_of(session: Session, work: Extension, summary: dict[str, Any]) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    steps, kept = s["error_by_budget"], kept_step(s)
    ours = {"name": "chosen", "y": [step["error"] for step in steps], "strong": True}
    beside = {"name": "at random", "y": [step["error_uniform"] for step in steps]}
    parts: list[Any] = [
        Lines(
            f"Left-out {error} by rows added", [step["chosen"] for step in steps], [ours, beside],
            f"On {_validated(s)}; the pool's own labels are not asked. At random: about as many rows, counted in "
            "summary.json.",
            "rows added", error, percent_y=error == "error",
        )
    ]  # fmt: skip
    if s["selected_by_class"]:
        columns = [("label", "Class", "label"), ("n", "Chosen", "count"), ("of", "In the pool", "count")]
        parts.append(Table("Classes", columns, sorted(s["selected_by_class"], key=lambda row: -row["n"])))
    tiles = [
        Tile("rows chosen", f"{s['n_selected']:,}", f"of {s['n_pool']:,} in the pool"),
        Tile(f"{error} before", shape(s["error_before"]), _validated(s)),
        Tile(
            f"{error} after",
            shape(s["error_after"]),
            f"at random: {shape(kept['error_uniform'])}",
            "good" if s["error_after"] < s["error_before"] else "",
        ),
        Tile(
            "left-out loss after",
            words.number(kept["loss"], 4),
            f"before {words.number(steps[0]['loss'], 4)}, at random {words.number(kept['loss_uniform'], 4)}",
            "good" if kept["loss"] < steps[0]["loss"] else "",
        ),
    ]
    if s["pool_noise_estimate"] is not None:
        share = words.percent(s["pool_noise_estimate"])
        tiles.append(Tile("of the pool's labels wrong", share, "estimated", "issue"))
    notes = shared_in_words(s["shared"], s["n_samples"])
    if s["single_shot"] and s["method"] == "balanced":
        notes.append(
            "Most rows of the table were the only ones of their class, which left out cannot be predicted: nothing "
            "was known of the pool's labels, and rows were chosen by their derivative alone. A second row of each "
            "class, or a validation table, would tell more."
        )
    notes += notes_on_error(s)
    return Sheet(
        "Which rows of the pool to add",
        [f"Chose {s['n_selected']:,} of {s['n_pool']:,} rows: {s['stopped']}."],
        tiles, parts, [*run_facts(session, s), ("Pool", session.tables[-1].name), ("Method", s["method"])],
        session.runner.seconds, notes=notes,
        downloads=["selected/: id, rank, round, derivative and z of every chosen row", "summary.json: every figure"],
        footer="Rows of weight 0 have a derivative too: what their weight would do to the table's left-out loss (DIVA, "
        "ICLR 2022, section 4).",
    )  # fmt: skip
