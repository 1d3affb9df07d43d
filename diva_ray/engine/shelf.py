"""The shards of one process: resident, or (a pool) read again for every pass, the next one while one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from diva_ray.data.shards import Columns, Extent, Shard, lighten, read_again, read_shard
from diva_ray.data.table import Table


class Shelf:
    """Reads shards and keeps what must be kept of them.

    Of a pool's shard everything but the features stays: ids, labels, and the results of its rows. At most two shards'
    features are in memory beside the resident ones.
    """

    def __init__(self, tables: list[Table], columns: Columns) -> None:
        self.tables, self.columns = tables, columns
        self.readers = [table.reader() for table in tables]
        self.kept: dict[int, Shard] = {}
        self.ahead: dict[int, Future[Shard]] = {}
        self.thread = ThreadPoolExecutor(1)  # one: a reader remembers its last piece

    def read(self, extent: Extent) -> Shard:
        """Return a shard with its features, and keep it (without them, if it belongs to a pool)."""
        table, reader = self.tables[extent.table], self.readers[extent.table]
        known = self.kept.get(extent.index)
        if known is not None and not extent.pool:
            return known
        shard = read_again(known, table, reader, self.columns) if known else read_shard(
            table, reader, self.columns, extent
        )  # fmt: skip
        self.kept[extent.index] = lighten(shard) if extent.pool else shard
        return shard

    def each(self, extents: list[Extent], *, features: bool = True) -> Iterator[Shard]:
        """Yield shards in order; pool shards are read ahead by one, or come without their features if none are needed.

        What was lost with a worker is read whole, so that a kernel can compute its rows' results again.
        """
        for extent, following in zip(extents, [*extents[1:], None], strict=True):
            known = extent.index in self.kept and extent.index not in self.ahead  # read ahead: whole, for this pass
            if known and not (extent.pool and features):
                yield self.kept[extent.index]
                continue
            shard = self._ahead(extent).result()
            del self.ahead[extent.index]
            if following is not None and following.pool:
                self._ahead(following)
            yield shard

    def _ahead(self, extent: Extent) -> Future[Shard]:
        if extent.index not in self.ahead:
            self.ahead[extent.index] = self.thread.submit(self.read, extent)
        return self.ahead[extent.index]

    def close(self) -> None:
        """Release everything."""
        self.thread.shutdown(cancel_futures=True)
        self.kept.clear()
        self.ahead.clear()
