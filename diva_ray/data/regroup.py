"""Tables whose leave-out groups lie scattered: rows of a group are brought together, and back into order at the end.

Here in one process; `engine.regroup_on_ray` does both on a cluster.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diva_ray.data.columns import one_chunk, row_keys, take_rows
from diva_ray.data.files import part_name
from diva_ray.data.folder import Folder
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table, from_arrow

POSITION = "__row__"  # position in the original table
SAMPLES_BLOCK = 65_536


def regroup_in_memory(table: Table, columns: Columns) -> Table:
    """Return the table's used columns sorted by group, in this process."""
    rows = table.reader().read(0, table.rows, columns.names())
    keys = row_keys(one_chunk(rows[columns.group])).view(np.int64)  # as Ray Data sorts them
    order = np.argsort(keys, kind="stable")
    grouped = take_rows(rows, order).append_column(POSITION, pa.array(order))
    del rows
    pa.default_memory_pool().release_unused()  # as large as the table
    return from_arrow(grouped, table.name)


def restore_in_memory(folder: Folder) -> None:
    """Sort `samples/` into `samples-in-order/` and drop the position column, in this process."""
    folder.check_reached()
    table = folder.read_table("samples").sort_by(POSITION).drop_columns([POSITION])
    for k, start in enumerate(range(0, len(table), SAMPLES_BLOCK)):
        folder.write_table(f"samples-in-order/{part_name(k)}.parquet", table.slice(start, SAMPLES_BLOCK))
