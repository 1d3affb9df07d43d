"""What some rows of a table show of it before all are scanned: outputs, and how many sources there are."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from diva_ray.data.columns import is_list, one_chunk, words_of
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table

SEEN, STRETCHES = 1 << 18, 16  # rows at which a plan looks, and in how many places
FEW = 4  # places for names of sources: of each a row group is read, and they may be long


def labels_at_sight(table: Table, columns: Columns, task: str) -> pa.Array:
    """Return the labels of some rows: all of a small table, else of stretches all over it, as a table may be in the
    order of its classes; of vectors one, which has as many numbers as all."""
    if task == "vector":
        return one_chunk(table.reader().read(0, 1, [columns.label])[columns.label])
    return _at_sight(table, columns.label, STRETCHES)


def _at_sight(table: Table, name: str, places: int) -> pa.Array:
    """Return the values of a column in `SEEN` rows, from places all over the table; of a smaller one in all."""
    reader = table.reader()
    if table.rows <= SEEN:
        return one_chunk(reader.read(0, table.rows, [name])[name])
    starts = [k * (table.rows - SEEN // places) // (places - 1) for k in range(places)]
    parts = [reader.read(start, start + SEEN // places, [name])[name] for start in starts]
    return pa.concat_arrays([one_chunk(part) for part in parts])


def sources_at_sight(table: Table, name: str | None) -> int:
    """Return about how many sources there are, as some rows show it: each that is seen once stands for sqrt(rows / rows
    seen) of them (GEE: Charikar et al., Towards Estimation Error Guarantees for Distinct Values, PODS 2000)."""
    if name is None:
        return 0
    _, found = words_of(_at_sight(table, name, FEW))
    times = pc.value_counts(found).field("counts")
    once = pc.sum(pc.equal(times, 1)).as_py() or 0
    return len(times) - once + round(once * math.sqrt(table.rows / len(found)))


def outputs_at_sight(label: pa.Array, task: str) -> int:
    """Return the number of outputs as these rows show it (classes may be more)."""
    if task in ("classification", "multilabel"):
        return max(1, len(pc.unique((label.flatten() if is_list(label.type) else label).drop_null())))
    return 1 if task == "regression" else max(1, len(label[0].as_py() or [0]))
