"""What an extension says of itself in words: a terminal's lines, and notes of its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diva_ray.report import words
from diva_ray.tasks.setup.alike import few_shared_in_words
from diva_ray.tasks.setup.session import error_kind
from diva_ray.tasks.told.chance import clear, few_in_words
from diva_ray.tasks.told.measures import error_words, gap_words
from diva_ray.tasks.told.planted import right_in_words

LEAST_SHARE = 0.0005  # of wrong labels, which is written as a percentage with one decimal


def told(summary: dict[str, Any], where: str) -> list[str]:
    """Return an extension in a few lines, for a terminal; `where` its chosen rows are."""
    s = summary
    kind = error_words(s)[0]
    first, last = s["error_by_budget"][0], kept_step(s)
    few = few_shared_in_words(s["shared"], s["n_samples"])
    notes = [
        *against_random(s),
        *right_in_words(s),
        *(f"note: {words}" for words in [*missed_in_words(s), *notes_on_error(s), *other_shares(s), *few]),
    ]
    helpful = "with labels that are likely right" if rows_by_label(s) else "that help"
    apart = error_kind(s["validation"]) == "validation"
    error = f"{kind} on the validation table" if apart else f"left-out {kind} on the table"
    next_step = f"chosen rows: {where} (ids, without features); docs/extend.md makes one table of yours and them"
    return [
        f"{s['n_samples']:,} samples, pool of {s['n_pool']:,}{never(s)}; chose {s['n_selected']:,} "
        f"({s['n_helpful']:,} {helpful}); {s['stopped']}",
        f"{error}: {s['error_before']:.4f} before, {s['error_after']:.4f} after, "
        f"{last['error_uniform']:.4f} with {words.counted(last['uniform_chosen'], 'row', 'rows')} chosen at random"
        + ("" if loss_is_error(s) else f"; loss {first['loss']:.4f}, {last['loss']:.4f}, {last['loss_uniform']:.4f}"),
        *map(words.plain, [*change(s), *notes]),
        *([next_step] if s["n_selected"] else []),
    ]


def never(summary: dict[str, Any]) -> str:
    """Return how many rows of the pool could not be chosen, and why."""
    kinds = {"n_pool_without_weight": "of weight 0", "n_pool_without_features": "without features"}
    found = [f"{summary[key]:,} {kind}" for key, kind in kinds.items() if summary[key]]
    return f" (and {', '.join(found)})" if found else ""


def loss_is_error(summary: dict[str, Any]) -> bool:
    """Return whether the loss is the error itself: the squared error of numbers."""
    return summary["loss_function"] == "squared" and summary["task"] in ("regression", "vector")


def gap_of(summary: dict[str, Any], name: str) -> str:
    """Return a difference of the chosen rows' error with its standard error."""
    gap = summary["error_difference"][name]
    return gap_words(summary, gap["difference"], gap["standard_error"])


def change(summary: dict[str, Any]) -> list[str]:
    """Return by how much the error has changed with the chosen rows, and whether that is beyond chance."""
    if not summary["error_difference"]:
        return []
    beyond = {"lower": "a fall beyond chance", "higher": "a rise beyond chance"}
    seen = beyond.get(clear(**summary["error_difference"]["to_before"]), "no more than chance")
    error = f"{error_kind(summary['validation'])} error"
    return [f"with the chosen rows the {error} changed by {gap_of(summary, 'to_before')}: {seen}"]


def against_random(summary: dict[str, Any]) -> list[str]:
    """Return whether choosing was better than as many rows at random."""
    if not summary["error_difference"]:
        return []
    if summary["n_selected"] == summary["n_pool"]:
        return ["all of the pool was chosen, so this is what random choice would have come to"]
    beat = {"lower": "choosing beat random choice", "higher": "random choice was better than choosing"}
    seen = beat.get(clear(**summary["error_difference"]["to_uniform"]), "choosing did not clearly beat random choice")
    rows = words.counted(kept_step(summary)["uniform_chosen"], "row", "rows")
    return [f"{seen}: {gap_of(summary, 'to_uniform')} against {rows} chosen at random"]


def kept_step(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the fit to the table and the rows that are kept."""
    found: dict[str, Any] = next(s for s in summary["error_by_budget"] if s["chosen"] == summary["n_selected"])
    return found


def rows_by_label(summary: dict[str, Any]) -> bool:
    """Return whether rows were chosen for their labels alone."""
    named = summary["method"] == "balanced" and summary["task"] == "classification"
    return named and not summary["led_by_derivative"]


def notes_on_error(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where the left-out error is that of a few rows, and where it has risen: since it was
    least, beyond chance, or at all."""
    s, error = summary, f"{error_kind(summary['validation'])} error"
    return few_in_words(s["task"], s["n_validation"], s["error_after"], error) + _risen(s, error)


def _risen(s: dict[str, Any], error: str) -> list[str]:
    if s["best_budget"] < s["n_selected"]:
        rows = words.counted(s["best_budget"], "row", "rows")
        return [f"The {error} was least with {rows} added, and has risen since."]
    if s["error_after"] > s["error_before"]:
        return [
            f"The {error} is higher with the chosen rows than without, though not beyond chance: see error_by_budget; "
            f"{'a smaller ' if s['budget'] else ''}`budget` would take fewer."
        ]
    return []


def other_shares(summary: dict[str, Any], named: Callable[[Any], Any] = str) -> list[str]:
    """Return what is to be said where the pool has other shares of classes than the rows that judge."""
    if not summary["other_class_shares"]:
        return []
    judges = "the rows that validate" if error_kind(summary["validation"]) == "validation" else "the table"
    rows = sorted(summary["selected_by_class"], key=lambda row: row["weight"])
    found = f"The pool has other shares of classes than {judges}"
    if rows[0]["weight"] == rows[-1]["weight"]:
        return [
            f"{found}, and chosen rows keep them: a fit leans towards classes it saw often. With `method=balanced` and "
            f"`class_weights=auto` chosen rows weigh by their class, so that classes keep the shares of {judges}."
        ]
    least, most = (f"{words.number(row['weight'], 2)} (class {named(row['label'])})" for row in (rows[0], rows[-1]))
    return [
        f"{found}: so that classes keep the shares of {judges}, a chosen row weighs by its class, from {least} to "
        f"{most}, the `weight` in `selected/`. Fit with it (`data.weight`): without, a fit leans towards classes it "
        "saw often."
    ]


def wrong_in_pool(summary: dict[str, Any]) -> float:
    """Return the share of the pool's labels that is known to be wrong."""
    return summary["planted"]["n_planted"] / summary["n_pool"]


def missed_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where most of the labels known to be wrong were not estimated to be."""
    share, known = summary["pool_noise_estimate"], "planted" in summary and summary["n_pool"]
    if share is None or not known or wrong_in_pool(summary) < LEAST_SHARE or 2 * share >= wrong_in_pool(summary):
        return []
    return [
        f"The estimate missed most of the pool's wrong labels: it says {words.percent(share)}, and "
        f"{words.percent(wrong_in_pool(summary))} are wrong. Many of the chosen rows may be, too."
    ]


def validated(summary: dict[str, Any]) -> str:
    """Return on which rows errors are measured."""
    n = f"{summary['n_validation']:,} rows"
    if summary["validation"] == "leave-one-out":
        return f"{n} of the table, each predicted without itself"
    return f"{n} that validate"
