"""The shards of one process: in memory, or read again for every pass, the next one while one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from diva_ray.data.cache import Cache
from diva_ray.data.shards import Columns, Extent, Shard, read_shard
from diva_ray.data.stored import Stored, lighten, read_again, restore, store
from diva_ray.data.table import Table
from diva_ray.engine.device import CPU, Lane


@dataclass(frozen=True)
class Keeping:
    """How a process keeps its shards between passes.

    Attributes:
        place: memory | cache (a file on local disk holds everything of every shard) | storage (the table alone holds
            the features; the rest is in memory). A pool is never in memory: without a cache its features stay in
            storage.
        folder: of the cache.
        why: this place, for a person.
        gpus: of the process; its features are on the device while it has room beside `sums` bytes for everything else.
    """

    place: str = "memory"
    folder: str = ""
    why: str = ""
    gpus: float = 0.0
    sums: int = 0


IN_MEMORY = Keeping()


class Shelf:
    """Reads shards and keeps them as it is told; beside what is kept, three shards are in memory at most.

    For a pass that works on features they are on `device`.
    """

    def __init__(
        self,
        tables: list[Table],
        columns: Columns,
        extents: list[Extent],
        keeping: Keeping,
        device: torch.device = CPU,
    ) -> None:
        self.tables, self.columns, self.keeping = tables, columns, keeping
        self.lane = None if device == CPU else Lane(device, keeping.gpus, keeping.sums)
        self.cache = Cache(keeping.folder) if keeping.place == "cache" else None
        self.following = {one.index: two for one, two in pairwise(extents) if one.table == two.table}
        self.loaders, self.readers = ([table.reader() for table in tables] for _ in range(2))
        self.kept: dict[int, Shard | Stored] = {}
        self.ahead: dict[tuple[int, bool], Future[Shard]] = {}  # by shard, and whether with features
        self.thread = ThreadPoolExecutor(1)  # one: a reader remembers its last piece

    def load(self, extent: Extent) -> None:
        """Read and check a shard, and keep it; its reader is not that of the passes, so they may run meanwhile."""
        self._read(extent, self.loaders[extent.table])

    def _read(self, extent: Extent, reader: Any) -> Shard:
        table = self.tables[extent.table]
        shard = read_shard(table, reader, self.columns, extent)
        if self.cache is not None:
            self.kept[extent.index] = stored = store(shard, table, self.cache)
            shard.state = stored.state
        elif self._streams(extent):
            self.kept[extent.index] = lighten(shard)
        else:
            if self.lane is not None:
                shard.bands = self.lane.keep(shard.bands)
            elif table.memory is None:  # a view would keep whole row groups alive
                shard.bands = [band.clone() for band in shard.bands]
            self.kept[extent.index] = shard
        return shard

    def _streams(self, extent: Extent) -> bool:
        return extent.pool or self.keeping.place != "memory"

    def _comes(self, extent: Extent) -> bool:
        """Return whether a shard's features are fetched in every pass: into memory, or from there to the device."""
        kept = self.kept.get(extent.index)
        waiting = self.lane is not None and isinstance(kept, Shard) and not self.lane.holds(kept.bands)
        return self._streams(extent) or waiting

    def each(self, extents: list[Extent], *, features: bool = True) -> Iterator[Shard]:
        """Yield shards in order; those that are not in memory are fetched one ahead, also for the call that follows.

        `features` of False tells that they are probably not needed: from a cache they are fetched when they are, a pool
        comes without. What was lost with a worker is read whole, so that a kernel can compute its rows' results again.
        """
        if self.keeping.place == "storage" and not all(extent.pool for extent in extents):
            features = True
        for other in self.ahead.keys() - {(extent.index, features) for extent in extents[:1]}:
            self.ahead.pop(other).cancel()
        for extent in extents:
            kept = self.kept.get(extent.index)
            asked = self.ahead.pop((extent.index, features), None)
            if isinstance(kept, Shard) and asked is None and not (self._comes(extent) and features):
                yield kept
                continue
            shard = (asked or self.thread.submit(self._fetch, extent, features)).result()
            following = self.following.get(extent.index)
            # One that is not read yet is being loaded, unless it is of a pool.
            if following is not None and self._comes(following) and (following.pool or following.index in self.kept):
                self.ahead[following.index, features] = self.thread.submit(self._fetch, following, features)
            yield shard
            del shard  # before the next is there

    def _fetch(self, extent: Extent, features: bool) -> Shard:
        shard = self._found(extent, features)
        return replace(shard, bands=self.lane.bring(shard.bands)) if self.lane is not None and features else shard

    def _found(self, extent: Extent, features: bool) -> Shard:
        kept = self.kept.get(extent.index)
        if isinstance(kept, Stored):
            assert self.cache is not None
            return restore(kept, self.cache, features=features)
        if kept is None:
            return self._read(extent, self.readers[extent.table])
        if not self._streams(extent):
            return kept
        return (
            read_again(kept, self.tables[extent.table], self.readers[extent.table], self.columns) if features else kept
        )

    def column(self, index: int, name: str) -> Any:
        """Return one of the columns of a shard that was read."""
        kept = self.kept[index]
        if isinstance(kept, Stored):
            assert self.cache is not None
            return self.cache.get(kept.rest[name])
        return getattr(kept, name)

    def forget(self, names: tuple[str, ...]) -> None:
        """Drop per-row results by name."""
        for kept in list(self.kept.values()):
            for name in names:
                kept.state.pop(name, None)

    def close(self) -> None:
        """Release everything."""
        self.thread.shutdown(cancel_futures=True)
        self.kept.clear()
        self.ahead.clear()
        if self.cache is not None:
            self.cache.close()
        if self.lane is not None:
            self.lane.close()
