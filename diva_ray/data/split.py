"""Where shards begin and end: boundaries depend on the table alone, and never cut through a group."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from diva_ray.data.columns import one_chunk, row_keys
from diva_ray.data.shards import Columns, Extent
from diva_ray.data.table import Reader, Table


def split(
    table: Table, columns: Columns, *, first: int = 0, which: int = 0, held_out: bool = False, pool: bool = False
) -> list[Extent]:
    """Return the shards of a table: a function of its rows alone (and of where groups end), never of the cluster.

    They are numbered from `first`; `which` is the table's number, the others its role (see `Extent`).

    1,024 rows or more each; 12 shards (2, 3, 4, 6 or 12 workers get equal shares) up to 12 x 32,768 rows, then more, in
    multiples of 12 up to 3,072.
    """
    most = max(1, table.rows // 1024)
    count = min(most, 12 * min(256, max(1, -(-table.rows // (12 * 32_768)))))
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
