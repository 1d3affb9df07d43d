"""What a run tells of its sources: all of them in one table, and some where a person reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.report.sheet import Table

LISTED = 1000  # sources of a summary, and of a page's table; a million of them took 6 s and 270 MB as dictionaries


def sources_of(setup: Setup, sums: Tensor, written: Tally) -> pa.Table | None:
    """Return every source with the derivative of adding the same weight to all its rows (while sources are weighed, of
    multiplying theirs), its standard error, and how many of them are flagged; None without sources.

    `sums`: see `Setup.errors_of`; `written`: what the pass that wrote the rows tells.
    """
    if setup.sources is None:
        return None
    d, error = (x.numpy() for x in setup.errors_of(sums))
    n, _, detrimental, issues = written["by_source"].whole(setup.n_sources).long().T.numpy()
    return pa.table(
        {
            "source": setup.source_names(), "n": n, "derivative": d, "standard_error": error,
            "z": np.divide(d, error, out=np.zeros_like(d), where=error > 0), "n_detrimental": detrimental,
            "n_label_issues": issues,
        }
    )  # fmt: skip


def weighed_sources(sources: pa.Table, written: Tally) -> pa.Table:
    """Return the sources with the mean weight of each, the least first and, of equal ones, the largest z."""
    n, total, *_ = written["by_source"].whole(len(sources)).T.numpy()
    weighed = sources.append_column("weight", pa.array(np.divide(total, n, out=np.zeros_like(total), where=n > 0)))
    return weighed.take(pc.sort_indices(weighed, [("weight", "ascending"), ("z", "descending")]))


def ends_of(sources: pa.Table, most: int = LISTED) -> list[dict[str, Any]]:
    """Return the rows of a table; of more than `most` as many of its begin as of its end."""
    if len(sources) <= most:
        return sources.to_pylist()
    return [*sources.slice(0, most // 2).to_pylist(), *sources.slice(len(sources) - most // 2).to_pylist()]


def table_by_z(sources: pa.Table | None, columns: list[tuple[str, str, str]], intro: str = "") -> list[Table]:
    """Return a page's table of sources, of largest z first, where there are any."""
    if sources is None:
        return []
    first = sources.take(pc.sort_indices(sources, [("z", "descending")])[:LISTED]).to_pylist()
    return [Table("Sources", columns, first, intro, of=len(sources))]


def sources_table(sources: pa.Table | None, things: str, wrong: str) -> list[Table]:
    """Return a page's table of sources with all that is known of them."""
    columns = [("source", "Source", "label"), ("n", things, "count"), ("z", "z", "z"),
               ("derivative", "Derivative", "number"), ("standard_error", "Standard error", "number"),
               ("n_detrimental", "Hurt", "count"), ("n_label_issues", wrong, "count")]  # fmt: skip
    return table_by_z(
        sources,
        columns,
        "Derivatives summed over each source: above 0, more weight on the whole source raises the loss.",
    )
