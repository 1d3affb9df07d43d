"""Where shards begin and end: boundaries depend on the table alone, and never cut through a group."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from diva_ray.data.columns import one_chunk, row_keys, storage_type, to_matrix
from diva_ray.data.shards import Columns, Extent
from diva_ray.data.table import Reader, Table

FEWEST_ROWS, MOST_ROWS = 1024, 32_768  # of a shard
MOST_BYTES = 64 << 20  # of a shard's features: three shards and more are in flight where rows do not fit memory
LOOK, LOOKS = 64, 64  # rows, and places in a table, at which widths are looked for


def split(
    table: Table, columns: Columns, *, first: int = 0, which: int = 0, held_out: bool = False, pool: bool = False
) -> list[Extent]:
    """Return the shards of a table: a function of its rows alone (and of where groups end), never of the cluster.

    They are numbered from `first`; `which` is the table's number, the others its role (see `Extent`).

    12 shards (2, 3, 4, 6 or 12 workers get equal shares), or as many more, in multiples of 12, as it takes to have at
    most 32,768 rows and 64 MiB of features in each; of small tables fewer, with 1,024 rows or more each.
    """
    row = sum(width * size for width, size in band_widths(table, columns))
    largest = max(1, min(MOST_ROWS, MOST_BYTES // max(1, row)))
    count = min(max(1, table.rows // FEWEST_ROWS), 12 * -(-table.rows // (12 * largest)))
    cuts = [table.rows * k // count for k in range(count + 1)]
    if columns.group:
        cuts = sorted({_group_end(table, table.reader(), columns.group, cut) for cut in cuts})
    return [Extent(first + k, a, b, which, held_out, pool) for k, (a, b) in enumerate(pairwise(cuts))]


def _group_end(table: Table, reader: Reader, group: str, cut: int) -> int:
    """Return the first row at or after `cut` whose group differs from the row before."""
    if cut in (0, table.rows):
        return cut
    span = 4096
    while True:
        stop = min(cut + span, table.rows)
        keys = row_keys(one_chunk(reader.read(cut - 1, stop, [group])[group]))
        changes = np.flatnonzero(keys[1:] != keys[0])
        if len(changes):
            return cut + int(changes[0])
        if stop == table.rows:
            return stop
        span *= 4


def band_widths(table: Table, columns: Columns) -> list[tuple[int, int]]:
    """Return (width, bytes of an element) of every band: from the schema, or from the first row that has it among some
    of many row groups (texts may come before pictures)."""
    widths = []
    for name in columns.features:
        kind = storage_type(table.schema.field(name).type)
        if pa.types.is_fixed_size_list(kind):
            widths.append((kind.list_size, np.dtype(kind.value_type.to_pandas_dtype()).itemsize))
        else:
            for start in _looks(table):
                some = table.reader().read(start, min(start + LOOK, table.rows), [name])[name]
                values, _ = to_matrix(some, name, lambda row, start=start: table.where(start + row))
                if values.shape[1]:
                    break
            widths.append((values.shape[1], values.dtype.itemsize))
    return widths


def _looks(table: Table) -> list[int]:
    """Return rows from which on to look: starts of row groups, or (in memory) of stretches of rows."""
    starts = [piece.start for piece in table.pieces if piece.rows] or list(range(0, table.rows, LOOK))
    return starts[:: -(-len(starts) // LOOKS)]
