"""Scattered groups on a cluster: rows brought together by Ray Data, back into order by tasks; Ray Datasets written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from diva_ray.data.columns import one_chunk, row_keys
from diva_ray.data.files import part_name
from diva_ray.data.folder import Folder
from diva_ray.data.regroup import POSITION, SAMPLES_BLOCK, restore_in_memory
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table
from diva_ray.engine.cluster import fetch
from diva_ray.engine.progress import quieted

GROUP = "__group__"  # 64-bit key of the group, the order of the copy
ROWS = 8_192  # read at a time
MOST_PARTS = 256  # of samples that are sorted back
AT_ONCE = 4  # tasks that do so


def regroup_on_ray(table: Table, columns: Columns, folder: Folder) -> None:
    """Write a copy of the table sorted by group into `output`/grouped, by Ray Data; no row passes the driver."""
    found = [{"piece": k} for k, piece in enumerate(table.pieces) if piece.rows]
    pieces = ray.data.from_items(found, override_num_blocks=len(found))
    read_pieces = partial(_read_pieces, table=table, columns=columns)
    read = pieces.map_batches(read_pieces, batch_size=1, batch_format="pyarrow")
    write_on_ray(read.sort([GROUP, POSITION]), folder, "grouped")


def write_on_ray(dataset: Any, folder: Folder, name: str) -> None:
    """Write a Ray Dataset as Parquet into a sub-folder, from every node that has rows of it.

    Raises:
        InputError: one of them does not reach the folder.
    """
    if folder.local:  # fused with the write, so it runs where that does
        dataset = dataset.map_batches(folder.pass_on, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    try:
        with quieted(logging.ERROR, "ray.data"):
            dataset.write_parquet(folder.location(name))
    except ray.exceptions.RayTaskError:
        folder.drop(name)
        _check_nodes(folder)  # Ray Data hands on what is wrong as text only, between its own
        raise


def _check_nodes(folder: Folder) -> None:
    """Raise where a node does not reach the folder."""
    check = ray.remote(Folder.check_reached)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    fetch([check.options(num_cpus=0, scheduling_strategy=place).remote(folder) for place in there])


def _read_pieces(batch: pa.Table, table: Table, columns: Columns) -> Iterator[pa.Table]:
    """Yield the rows of one row group, some at a time, with their position and the key of their group."""
    for k in batch["piece"].to_pylist():
        piece, reader = table.pieces[k], table.reader()
        for start in range(piece.start, piece.start + piece.rows, ROWS):
            stop = min(start + ROWS, piece.start + piece.rows)
            rows = reader.read(start, stop, columns.names())
            keys = row_keys(one_chunk(rows[columns.group])).view(np.int64)
            rows = without_tensors(rows).append_column(POSITION, pa.array(np.arange(start, stop)))
            yield rows.append_column(GROUP, pa.array(keys))


def without_tensors(rows: pa.Table) -> pa.Table:
    """Return rows with tensors as lists of their numbers: Ray Data's sort makes an empty table of their schema, which
    Arrow cannot of a tensor that names a permutation, as all of its own do."""
    for k, field in enumerate(rows.schema):
        if isinstance(field.type, pa.FixedShapeTensorType):
            flat = pa.chunked_array([part.storage for part in rows[k].chunks], field.type.storage_type)
            rows = rows.set_column(k, field.name, flat)
    return rows


def restore_on_ray(folder: Folder) -> None:
    """Sort `samples/` into `samples-in-order/` by tasks that take no CPU: the workers are there still and may hold all
    of them, so that Ray Data, whose tasks take one each, would wait for ever. No row passes the driver."""
    names = sorted(name for name in folder.names("samples") if name.endswith(".parquet"))
    with ThreadPoolExecutor(16) as pool:
        rows = sum(pool.map(partial(_rows_of, folder), names))
    parts = min(MOST_PARTS, -(-rows // SAMPLES_BLOCK))
    if parts < 2:
        written = [ray.remote(num_cpus=0)(restore_in_memory).remote(folder)]
    else:
        bounds = [rows * k // parts for k in range(parts + 1)]
        deal, gather = ray.remote(num_cpus=0, num_returns=parts)(_deal), ray.remote(num_cpus=0)(_gather)
        dealt = _few(deal.remote(folder, name, bounds) for name in names)
        written = _few(gather.remote(folder, k, *(refs[k] for refs in dealt)) for k in range(parts))
    fetch(written)


def _few(calls: Iterator[Any]) -> list[Any]:
    """Start calls, no more than `AT_ONCE` of them at a time; return their references."""
    found, running = [], []
    for call in calls:
        found.append(call)
        running.append(call[0] if isinstance(call, list) else call)  # of several returns any
        if len(running) >= AT_ONCE:
            _, running = ray.wait(running, fetch_local=False)
    return found


def _rows_of(folder: Folder, name: str) -> int:
    return pq.read_metadata(folder.within(f"samples/{name}"), filesystem=folder.filesystem).num_rows


def _deal(folder: Folder, name: str, bounds: list[int]) -> list[pa.Table]:
    """Return the rows of a file by the part of the order of the input in which they lie."""
    table = pq.read_table(folder.within(f"samples/{name}"), filesystem=folder.filesystem).sort_by(POSITION)
    cuts = np.searchsorted(table[POSITION].to_numpy(), bounds)
    return [table.slice(a, b - a).combine_chunks() for a, b in pairwise(cuts)]


def _gather(folder: Folder, k: int, *dealt: pa.Table) -> None:
    """Write a part of the rows in the order of the input."""
    folder.check_reached()
    rows = pa.concat_tables(dealt).sort_by(POSITION).drop_columns([POSITION])
    folder.write_table(f"samples-in-order/{part_name(k)}.parquet", rows)
