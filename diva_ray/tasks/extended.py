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
    best = min(work.steps, key=lambda step: step["loss"])
    names = setup.classes.to_pylist() if setup.classes is not None and len(written["classes"]) > 1 else []
    return {
        **common_figures(session, setup, work.ridge),
        "method": config.method,
        "n_pool": int(work.pool_counts.sum()),
        "n_selected": int(written["n"]),
        "n_helpful": work.helped,
        "budget": config.budget,
        "stopped": work.reason,
        "pool_noise_estimate": work.noise_rate,
        "single_shot": work.was_blind,
        "error_before": work.steps[0]["error"],
        "error_after": work.steps[-1]["error"],
        "best_budget": best["chosen"],
        "error_by_budget": work.steps,
        "selected_by_class": [
            {"label": str(name), "n": int(n), "of": int(of)}
            for name, n, of in zip(names, written["classes"], work.pool_counts, strict=True)
        ]
        if names
        else [],
        "rule": "a row helps while a coin with the probability that its label is right comes up heads; chosen at "
        "random among these, classes in proportion"
        if config.method == "balanced"
        else "a row helps while its derivative is below 0; the most negative first",
    }


def told(summary: dict[str, Any]) -> list[str]:
    """Return an extension in a few lines, for a terminal."""
    s = summary
    kind = "error" if s["task"] in ("classification", "multilabel") else "squared error"
    last = s["error_by_budget"][-1]
    note = f"note: {least_in_words(s)}"
    return [
        f"{s['n_samples']:,} samples, pool of {s['n_pool']:,}; chose {s['n_selected']:,} "
        f"({s['n_helpful']:,} that help); {s['stopped']}",
        f"left-out {kind} on the table: {s['error_before']:.4f} before, {s['error_after']:.4f} after, "
        f"{last['error_uniform']:.4f} with {last['uniform_chosen']:,} rows chosen at random; loss "
        f"{s['error_by_budget'][0]['loss']:.4f}, {last['loss']:.4f}, {last['loss_uniform']:.4f}",
        *([note] if s["best_budget"] < s["n_selected"] else []),
    ]


def least_in_words(summary: dict[str, Any]) -> str:
    """Return with how many rows the left-out loss was least."""
    return f"The left-out loss was least with {summary['best_budget']:,} rows added."


def sheet_of(session: Session, work: Extension, summary: dict[str, Any]) -> Sheet:
    """Return the contents of report.html."""
    s, (error, shape) = summary, error_words(summary)
    steps = s["error_by_budget"]
    ours = {"name": "chosen", "y": [step["error"] for step in steps], "strong": True}
    beside = {"name": "at random", "y": [step["error_uniform"] for step in steps]}
    parts: list[Any] = [
        Lines(
            f"Left-out {error} by rows added", [step["chosen"] for step in steps], [ours, beside],
            "On the rows of the table, each predicted without itself; the pool's own labels are not asked.",
            "rows added", error, percent_y=error == "error",
        )
    ]  # fmt: skip
    if s["selected_by_class"]:
        columns = [("label", "Class", "label"), ("n", "Chosen", "count"), ("of", "In the pool", "count")]
        parts.append(Table("Classes", columns, sorted(s["selected_by_class"], key=lambda row: -row["n"])))
    tiles = [
        Tile("rows chosen", f"{s['n_selected']:,}", f"of {s['n_pool']:,} in the pool"),
        Tile(f"{error} before", shape(s["error_before"]), f"{s['n_samples']:,} rows, left out one by one"),
        Tile(
            f"{error} after",
            shape(s["error_after"]),
            f"at random: {shape(steps[-1]['error_uniform'])}",
            "good" if s["error_after"] < s["error_before"] else "",
        ),
        Tile(
            "left-out loss after",
            words.number(steps[-1]["loss"], 4),
            f"before {words.number(steps[0]['loss'], 4)}, at random {words.number(steps[-1]['loss_uniform'], 4)}",
            "good" if steps[-1]["loss"] < steps[0]["loss"] else "",
        ),
        Tile("of the pool's labels wrong", f"{100 * s['pool_noise_estimate']:.1f} %", "estimated", "issue"),
    ]
    notes = shared_in_words(s["shared"], s["n_samples"])
    if s["single_shot"] and s["method"] == "balanced":
        notes.append(
            "Most rows of the table were the only ones of their class, which left out cannot be predicted: nothing "
            "was known of the pool's labels, and rows were chosen by their derivative alone. A second row of each "
            "class, or a validation table, would tell more."
        )
    if s["best_budget"] < s["n_selected"]:
        notes.append(least_in_words(s))
    return Sheet(
        "Which rows of the pool to add",
        [f"Chose {s['n_selected']:,} of {s['n_pool']:,} rows: {s['stopped']}."],
        tiles, parts, [*run_facts(session, s), ("Pool", session.tables[-1].name), ("Method", s["method"])],
        session.runner.seconds, notes=notes,
        downloads=["selected/: id, rank, round, derivative and z of every chosen row", "summary.json: every figure"],
        footer="Rows of weight 0 have a derivative too: what their weight would do to the table's left-out loss (DIVA, "
        "ICLR 2022, section 4).",
    )  # fmt: skip
