"""Shards whose features are not in memory between passes: in this process's cache, or in the table alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import pyarrow as pa
import torch

from diva_ray.data.cache import Cache, Spilled
from diva_ray.data.columns import one_chunk
from diva_ray.data.shards import Columns, Extent, Shard, finite_matrix, read_bands
from diva_ray.data.table import Places, Reader, Table

IN_MEMORY = ("extent", "where", "state", "bands")  # what `store` handles by itself


class Bands(Sequence[torch.Tensor]):
    """A shard's features, fetched from the cache when one of them is asked for."""

    def __init__(self, cache: Cache, kept: Any) -> None:
        self.cache, self.kept, self.arrays = cache, kept, None

    @overload
    def __getitem__(self, k: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, k: Any) -> Any:
        if self.arrays is None:
            self.arrays = self.cache.get(self.kept)
        return self.arrays[k]

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class Stored:
    """A shard in the cache: nothing of it that grows with its rows is in memory, results of its rows neither."""

    extent: Extent
    table: Table
    bands: Any
    rest: dict[str, Any]
    state: Spilled


def store(shard: Shard, table: Table, cache: Cache) -> Stored:
    """Return the shard, written to the cache."""
    rest = {field.name: getattr(shard, field.name) for field in fields(Shard) if field.name not in IN_MEMORY}
    return Stored(shard.extent, table, cache.put(list(shard.bands)), cache.put(rest), Spilled(cache))


def restore(stored: Stored, cache: Cache, *, features: bool) -> Shard:
    """Return a stored shard; without `features` they are fetched when they are asked for."""
    bands = cache.get(stored.bands) if features else Bands(cache, stored.bands)
    shard = Shard(stored.extent, bands, **cache.get(stored.rest), state=stored.state)
    return replace(shard, where=Places(stored.table, stored.extent.start, shard.order, shard.original))


def lighten(shard: Shard) -> Shard:
    """Return the shard without its features and offsets; results of its rows are shared."""
    return replace(shard, bands=[], missing=[], offset=None)


def read_again(light: Shard, table: Table, reader: Reader, columns: Columns) -> Shard:
    """Return a lightened shard with its features and offsets, read anew; nothing else is."""
    names = [*columns.features, *([columns.offset] if columns.offset else [])]
    rows = reader.read(light.extent.start, light.extent.stop, names)
    if light.order is not None:
        rows = rows.take(pa.array(light.order))
    arrays = {name: one_chunk(rows[name]) for name in names}
    bands, missing = read_bands(arrays, columns, light.where)
    offset = None
    if columns.offset:
        offset = finite_matrix(arrays[columns.offset], columns.offset, "data.offset", light.where).double()
    return replace(light, bands=bands, missing=missing, offset=offset)
