"""The plots and the table of a search's page."""

from __future__ import annotations

from math import log10
from typing import Any

from diva_ray.report import words
from diva_ray.report.sheet import Bars, Lines, Table
from diva_ray.tasks.setup.space import Space, short
from diva_ray.tasks.told.measures import error_words


def parts_of(space: Space, s: dict[str, Any], rows: list[dict[str, Any]]) -> list[Any]:
    """Return the plots: errors by trial, and by the values of every name; and the table."""
    error, shape = error_words(s)
    known = [row for row in rows if row["error"] is not None]
    bars = [
        {
            "label": ", ".join(short(row[name]) if name != "ridge" else ridge_of(row) for name in space.dimensions),
            "value": row["error"], "error": row["standard_error"], "strong": row["trial"] == s["best"]["trial"],
            "detail": f"trial {row['trial']}"
            + (f", stopped after {words.counted(row['folds'], 'fold', 'folds')}" if row["stopped"] else ""),
        }
        for row in sorted(known, key=lambda row: (row["stopped"], row["error"], row["trial"] != s["best"]["trial"]))
    ]  # fmt: skip
    early = " Stopped trials come last: fewer rows judged them, so no error of theirs is compared." * bool(
        s["n_stopped"]
    )
    kind = "percent" if shape is words.percent else "number"
    columns = [("trial", "Trial", "count"), *((name, name, "label") for name in space.dimensions),
               ("error", error, kind), ("low", "low", kind), ("high", "high", kind), ("folds", "folds", "count"),
               ("seconds", "seconds", "fixed")]  # fmt: skip
    shown = [{**row, **{name: short(row[name]) for name in space.dimensions if name != "ridge"}, "ridge": ridge_of(row)}
             for row in rows]  # fmt: skip
    return [
        Bars(
            f"{error.capitalize()} by trial",
            bars,
            f"{', '.join(space.dimensions)}; one standard error over rows.{early}",
            percent=shape is words.percent,
        ),
        *(_by_value(name, one.kind, known, error, shape) for name, one in space.dimensions.items()),
        Table("Trials", columns, shown),
    ]


def ridge_of(row: dict[str, Any]) -> str:
    """Return the ridge of a trial, and where it was chosen the one that was used."""
    used = "-" if row["ridge_used"] is None else f"{row['ridge_used']:.3g}"
    return f"auto ({used})" if row["ridge"] is None else f"{row['ridge']:.3g}"


def _by_value(name: str, kind: str, rows: list[dict[str, Any]], error: str, shape: Any) -> Any:
    """Return a plot of the errors against the values of one name."""
    whole = [row for row in rows if not row["stopped"] and not row["failed"]]
    if kind != "choice":
        at = [log10(row[name]) for row in whole]
        ends = {
            key: [row[source] for row in whole] for key, source in (("y", "error"), ("low", "low"), ("high", "high"))
        }
        series = [{"name": error, "strong": True, "apart": True, **ends}]
        intro = "Every whole trial with its 95\N{NO-BREAK SPACE}% interval over rows; other options vary too."
        percent = shape is words.percent
        return Lines(f"{error.capitalize()} by {name}", at, series, intro, f"log10 {name}", error, percent_y=percent)
    values: dict[str, list[dict[str, Any]]] = {}
    for row in whole:
        values.setdefault("auto" if name == "ridge" and row[name] is None else short(row[name]), []).append(row)
    best = {value: min(found, key=lambda row: row["error"]) for value, found in values.items()}
    bars = [
        {"label": value, "value": row["error"], "error": row["standard_error"], "strong": row is min(
            best.values(), key=lambda one: one["error"]), "detail": f"the best of {len(values[value])}"}
        for value, row in sorted(best.items(), key=lambda item: item[1]["error"])
    ]  # fmt: skip
    intro = "The best whole trial with each value; other options vary too."
    return Bars(f"{error.capitalize()} by {name}", bars, intro, percent=shape is words.percent)
