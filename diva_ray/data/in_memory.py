"""Rows in memory as files in a run's folder, where every worker can read them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from diva_ray.data.files import part_name
from diva_ray.data.folder import Folder
from diva_ray.data.table import Table, open_parquet
from diva_ray.errors import InputError, first_line

PART_ROWS = 65_536


def stored(table: Table, folder: Folder, name: str) -> Table:
    """Return the table in files that every worker can read, written once if it is in memory."""
    if table.memory is None:
        return table
    write_parts(table, folder, name)
    return open_parquet(folder.location(name))


def write_parts(table: Table, folder: Folder, name: str, row_group_size: int | None = None) -> None:
    """Write a table that is in memory as Parquet files of a sub-folder.

    A file that is there already with the same bytes is left alone: a resumed run finds the data it began with. Files
    of other rows, which a run that had hardly begun has left, are deleted.

    Raises:
        InputError: a column that Parquet cannot hold.
    """
    assert table.memory is not None
    rows, present = table.memory, set(folder.names(name))
    starts = range(0, rows.num_rows, PART_ROWS)
    for other in present - {f"{part_name(k)}.parquet" for k in range(len(starts))}:
        folder.remove(f"{name}/{other}")
    for k, start in enumerate(starts):
        file, sink = f"{part_name(k)}.parquet", pa.BufferOutputStream()
        part = rows.slice(start, PART_ROWS)
        try:
            pq.write_table(part, sink, row_group_size=row_group_size, write_page_checksum=True)
        except pa.ArrowNotImplementedError as error:
            raise InputError(
                f"data: every column must be one that Parquet can hold, got {first_line(error)} in {table.name}. "
                "Convert the column or leave it out."
            ) from error
        content = sink.getvalue().to_pybytes()
        if file not in present or folder.read(f"{name}/{file}") != content:
            folder.write(f"{name}/{file}", content)
