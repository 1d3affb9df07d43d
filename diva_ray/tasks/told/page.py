"""What the pages of several tasks share: what was run, the histograms, samples as the table has them, notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from diva_ray.data.table import Table
from diva_ray.engine.kernels.samples import WEIGHT_EDGES, Z_EDGES
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.report import words
from diva_ray.report.sheet import Inform
from diva_ray.tasks.fit.derived import Derived, leaning_in_words, may_lie_further
from diva_ray.tasks.setup.manifest import versions
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.summary import errors_of
from diva_ray.tasks.told.summary_words import verdict_notes, warnings_of
from diva_ray.tasks.told.tried import ridge_in_words

BINS, WEIGHT_BINS = 60, 40  # bars of z, and at most of weights
LABELS = ("label", "predicted_label", "true_label")


def run_facts(session: Session, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was run, for a page."""
    plan, chosen = session.plan, session.config.ridge == "auto"
    columns = words.counted(summary["n_features"], "column", "columns")
    return [
        ("Data", plan.table),
        ("Features", ", ".join(session.columns.features) + f" ({columns})"),
        *([("Missing", missing_in_words(summary))] if summary["missing"] else []),
        *([("Label", session.columns.label)] if session.columns.label else []),
        ("Loss", f"{summary['loss_function']}, {summary['validation']}"),
        ("Ridge", ridge_in_words(summary, chosen)),
        ("Where", f"{plan.kind}, {session.engine.workers} worker(s)"),
        *_busy(session),
        ("Versions", ", ".join(f"{name} {versions()[name]}" for name in ("diva_ray", "ray", "torch"))),
    ]


def missing_in_words(summary: dict[str, Any]) -> str:
    """Return in how many rows the bands with most gaps are missing."""
    most = sorted(summary["missing"].items(), key=lambda one: -one[1])
    told = ", ".join(f"{name} in {words.plural(count, 'row', 'rows')}" for name, count in most[:10])
    return told + (f", {words.counted(len(most) - 10, 'more column', 'more columns')}" if len(most) > 10 else "")


def _busy(session: Session) -> list[tuple[str, str]]:
    """Return how busy the workers were, where there are several to compare."""
    found = session.engine.meter.summary()
    if found["count"] < 2:
        return []
    busy, slowest = found["seconds"], next(one for one in found["each"] if one["worker"] == found["slowest"])
    told = (
        f"worker {slowest['worker']} on {slowest['host']}, busy {busy['most']:.3g} s; the median {busy['median']:.3g} s"
    )
    return [("Slowest worker", told + (f"; {found['restarts']} restart(s)" if found["restarts"] else ""))]


def histogram(written: Tally) -> tuple[list[float], list[int], list[int]]:
    """Return edges, counts and counts of label issues of z in even bins; a thousandth of either tail is in the last."""
    counts, issues = written["z_counts"].numpy(), written["z_issue_counts"].numpy()
    centers = (Z_EDGES[1:] + Z_EDGES[:-1]).numpy() / 2
    share = counts.cumsum() / max(counts.sum(), 1)
    low = min(centers[int((share < 0.001).sum())], -1.0)
    high = max(centers[min(int((share < 0.999).sum()), len(centers) - 1)], 1.0)
    edges = np.linspace(low, high, BINS + 1)
    both = [np.histogram(centers.clip(low, high), edges, weights=c)[0].astype(int).tolist() for c in (counts, issues)]
    return edges.tolist(), both[0], both[1]


def weight_histogram(counts: np.ndarray, mean: float) -> tuple[list[float], list[int]]:
    """Return edges and counts of all weights, given by cells of mean weights; those far above most are in the last."""
    left, there = WEIGHT_EDGES.numpy(), np.flatnonzero(counts)
    right = left[1:]
    most = int(np.searchsorted(counts.cumsum(), 0.98 * counts.sum()).clip(0, len(right) - 1))
    last = there[-1] if there[-1] < len(right) and right[there[-1]] <= 1.5 * right[most] else most
    cell = round(right[last] - left[last], 6)
    low, high = min(left[there[0]], left[last]), right[last]
    room = max(20 * cell - (high - low), 0) / 2  # weights that are all alike are one bar in the middle
    low, high = max(low - room, 0), min(high + room, left[-1])
    steps = (k * 10**e for e in range(4) for k in (1, 2, 4, 5))
    width = cell * next(k for k in steps if k * cell * WEIGHT_BINS >= high - low)
    edges = (width * np.arange(np.floor(low / width + 1e-6), np.ceil(high / width - 1e-6) + 1)).round(6)
    at = np.searchsorted(edges * (1 - 1e-9), left, side="right") - 1
    found = np.bincount(at[there].clip(0), counts[there], len(edges)).astype(int).tolist()
    ends = (mean * edges).tolist()
    return (ends, found[:-1]) if not found[-1] else ([*ends, np.inf], found)


def shown(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their picture or text; of several labels those that were corrected, in one order, since
    theirs means nothing."""
    if session.task == "multilabel":
        rows = [in_order(row) for row in rows]
    places = [row.get("__row__", row["row"]) for row in rows]
    found = seen(session, places)
    return [with_names(session, row) | found[at] for row, at in zip(rows, places, strict=True)]


def with_names(session: Session, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its classes as a page shows them."""
    return row | {name: session.named(row[name]) for name in LABELS if name in row}


def in_order(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its lists of labels sorted; the corrected ones stand for the predicted."""
    corrected = row.get("corrected_label")
    row = row if corrected is None else {**row, "predicted_label": corrected}
    lists = {key: row.get(key) for key in ("label", "predicted_label")}
    return {**row, **{key: sorted(found, key=str) for key, found in lists.items() if isinstance(found, list)}}


def seen(session: Session, places: list[int]) -> dict[int, dict[str, Any]]:
    """Return the pictures and texts of rows of the table as it was given, as far as there are columns to show."""
    return seen_in(session.given, list(session.show), places)


def seen_in(table: Table, show: list[str], places: list[int]) -> dict[int, dict[str, Any]]:
    """Return the pictures and texts of rows of any table, from the columns to show, by the rows' places; read in their
    order, so that a row group is fetched once for all of them."""
    reader = table.reader()
    return {at: _seen(reader.read(at, at + 1, show), show) if show else {} for at in sorted(set(places))}


def _seen(values: pa.Table, show: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in show:
        value = values[name][0].as_py()
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # a picture as Hugging Face keeps it
            value = value["bytes"]
        if isinstance(value, bytes):
            found.setdefault("picture", value)
        elif value is not None:
            text = value if isinstance(value, str) else f"{name} {words.label(value)}"
            found["text"] = f"{found['text']} | {text}" if "text" in found else text
    return found


def weights_by_class(session: Session, setup: Setup, written: Tally) -> list[dict[str, Any]]:
    """Return every class with its rows and their mean weight, the most lowered first."""
    if "class_weight" not in written or setup.classes is None:
        return []
    rows = zip(setup.classes.to_pylist(), written["class_n"].tolist(), written["class_weight"].tolist(), strict=True)
    found = [
        {"label": str(session.named(label)), "n": int(n), "weight": total / n if n else 0.0} for label, n, total in rows
    ]
    return sorted(found, key=lambda row: row["weight"])


def notes_of(session: Session, derived: Derived, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes: list[str] = [*warnings_of(summary), *map(Inform, verdict_notes(summary))]
    if may_lie_further(derived.grid):
        notes.append("The chosen ridge lies at the end of the grid; set `ridge` to look further.")
    if derived.grid.leans:
        notes.append(Inform(f"The ridge is, {leaning_in_words(derived.grid)}."))
    return notes + [Inform(note) for note in _informing(session, derived, summary)]


def _informing(session: Session, derived: Derived, summary: dict[str, Any]) -> list[str]:
    """Return what was done, and why, that warns of nothing."""
    notes = []
    if "r2" in summary:
        notes.append(
            "A number is flagged where it looks like another row's, or lies far from any prediction (a gross outlier), "
            "and stands apart from what long tails or a model that does not quite fit would leave. label_score ranks "
            "all of them."
        )
    if derived.standard_errors != "exact":
        found = derived.agreement or {"rows": 0}
        checked = (
            f"; on {found['rows']} rows, estimate / exact is {found['median_ratio']:.2f} +- {found['spread']:.2f}"
            if found["rows"]
            else ""
        )
        notes.append(f"Standard errors are estimated from {errors_of(derived)}{checked}.")
    if derived.accuracy is not None:
        found, low = derived.accuracy, session.config.precision
        given_up = "" if derived.setup.inputs == low else ", so products of full precision took their place"
        notes.append(
            f"With {low} products the derivatives of {found['rows']} rows are off by {found['relative_error']:.1e}"
            f"{given_up}."
        )
    if derived.form == "dual":
        notes.append("Fewer rows than columns: solved in its n x n form.")
    if summary["precision"] == "float64" and session.config.precision != "float64":
        far = "" if derived.setup.classes is not None else ", or the numbers lie far from 0 or close together"
        notes.append(
            f"Products in float64: the condition number is {derived.condition:.1e}, or a leverage is near 1{far}."
        )
    elif derived.fitted != derived.setup.dtype:
        notes.append(f"The fit is in float64: the condition number is {derived.condition:.1e}.")
    return notes


def downloads(sources: bool, curated: bool) -> list[str]:
    """Return the written files, each with what it holds."""
    files = [
        "samples/: one Parquet row per sample, in the order of the input",
        "summary.json: every figure of this page and the rules behind the verdicts",
        "manifest.json: versions, the data's fingerprint, start and end",
        "config.yaml: the options of this run",
    ]
    files += ["curated/, changes/: a copy of the table, and what changed in it"] if curated else []
    return files + (["sources.parquet: the derivative of every source"] if sources else [])
