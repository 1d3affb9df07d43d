"""The passes in this process, shard after shard; ray is never loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from diva_ray.data.shards import Columns, Extent, Shard
from diva_ray.data.table import Table
from diva_ray.engine.context import Kernel
from diva_ray.engine.meter import Counted, Meter
from diva_ray.engine.reduce import add_in_order, units
from diva_ray.engine.shelf import Shelf


class Inline:
    """Holds every shard of one or two tables (training, held out) in this process."""

    kind = "inline"
    workers = 1

    def __init__(
        self, tables: list[Table], columns: Columns, extents: list[Extent], threads: int | None = None
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.extents, self.shelf = extents, Shelf(tables, columns)
        self.known: dict[str, Any] = {}
        self.meter = Meter()

    def start(self) -> None:
        """Do nothing: this process runs already."""

    def load(self) -> Iterator[int]:
        """Read every shard but those of a pool; yield its rows when it is there."""
        for extent in self.extents:
            if not extent.pool:
                self.shelf.read(extent)
                yield extent.stop - extent.start

    @property
    def shards(self) -> list[Shard]:
        """What is kept of the shards."""
        return list(self.shelf.kept.values())

    def tell(self, **known: Any) -> None:
        """Make values known to every later pass."""
        self.known.update(known)

    def forget(self, *names: str) -> None:
        """Drop known values and per-row results that followed from them."""
        for name in names:
            self.known.pop(name, None)
            for shard in self.shards:
                shard.state.pop(name, None)

    def each(
        self, kernel: Kernel, extents: list[Extent], done: Callable[[int], Any] = int, features: bool = True
    ) -> Iterator[Any]:
        """Yield the sum of the partials of every unit of shards, in order; `done` hears of finished rows.

        A kernel that needs no `features` does not make a pool be read again.
        """
        shards = self.shelf.each(extents, features=features)

        def partials(unit: list[Extent]) -> Iterator[Any]:
            for extent in unit:
                counted = Counted(kernel, features=features)
                partial = counted(next(shards), self.known)
                self.meter.add(0, counted.work)
                done(extent.stop - extent.start)
                yield partial

        for unit in units(extents):
            yield add_in_order(partials(unit))

    def duplicate(self, field: str, *, pool: bool = False) -> int | None:
        """Return a 64-bit key (`keys` or `group_keys`) that occurs twice among all shards (a pool's too), or None."""
        shards = [shard for shard in self.shards if pool or not shard.extent.pool]
        parts = [np.asarray(getattr(shard, field)) for shard in shards if getattr(shard, field) is not None]
        return first_duplicate(parts)

    def shared(self, field: str) -> int | None:
        """Return a 64-bit key that occurs in a pool and in another table too, or None."""
        keys = [(shard.extent.pool, getattr(shard, field)) for shard in self.shards]
        sides = [[np.asarray(k) for pool, k in keys if pool == side and k is not None] for side in (False, True)]
        return first_shared(*sides)

    def close(self) -> None:
        """Release the shards."""
        self.shelf.close()


def first_duplicate(parts: list[np.ndarray]) -> int | None:
    """Return a value that occurs twice in the concatenated arrays, or None; sorts once."""
    keys = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    return int(keys[twice[0]]) if len(twice) else None


def first_shared(ours: list[np.ndarray], theirs: list[np.ndarray]) -> int | None:
    """Return a value that occurs in arrays of both lists, or None."""
    left, right = (np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in (ours, theirs))
    both = np.intersect1d(left, right)
    return int(both[0]) if len(both) else None
