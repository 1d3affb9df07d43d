"""Rows of a table, read in order: Parquet row groups are decoded batch by batch, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from diva_ray.data.hive import append
from diva_ray.errors import InputError

if TYPE_CHECKING:
    from diva_ray.data.table import Piece, Table

BATCH_BYTES = 32 << 20  # decoded at a time; decoding takes about five times as much, for levels and copies
BATCH_ROWS = 256, 32_768  # at least and at most


class Reader:
    """Reads ranges of a table; what is asked in order is decoded once, and no more than a batch is kept.

    Not for several threads at a time.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.stream: _Stream | None = None

    def read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Return rows [start, stop) of some columns; touches only the row groups that hold them.

        Raises:
            InputError: a file is gone, cut off or damaged.
        """
        if self.table.memory is not None:
            return self.table.memory.select(columns).slice(start, stop - start)
        parts = []
        for piece in self.table.overlapping(start, stop):
            low, high = max(start - piece.start, 0), min(stop - piece.start, piece.rows)
            try:
                parts += self._take(piece, columns, low, high)
            except (OSError, pa.ArrowException) as error:
                self._end()
                raise InputError(
                    f"{self.table.option}: every file must be readable Parquet, got {type(error).__name__} "
                    f"({first_line(error)}) at {piece.file}, row group {piece.group}. Replace the file or leave it out."
                ) from error
        return pa.concat_tables(parts, promote_options="permissive")

    def _take(self, piece: Piece, columns: list[str], low: int, high: int) -> Iterator[pa.Table]:
        """Yield rows [low, high) of a row group, from the stream that is open where it has not passed them."""
        if self.stream is None or not self.stream.leads_to(piece, columns, low):
            self._end()
            self.stream = _Stream(self.table, piece, columns)
        yield from self.stream.rows(low, high)
        if high == piece.rows:
            self._end()

    def _end(self) -> None:
        if self.stream is not None:
            self.stream.file.close()
        self.stream = None


class _Stream:
    """The batches of one row group, in order; the last one is kept for the range that follows."""

    def __init__(self, table: Table, piece: Piece, columns: list[str]) -> None:
        self.piece, self.columns = piece, columns
        fewest, most = BATCH_ROWS
        rows = min(most, max(fewest, BATCH_BYTES * table.rows // max(1, table.bytes)))
        # A local file is read as it is decoded; of a distant one the row group is fetched ahead, as latency is dear.
        local = isinstance(table.filesystem, pyarrow.fs.LocalFileSystem)
        self.file = pq.ParquetFile(
            piece.file, filesystem=table.filesystem, pre_buffer=not local, buffer_size=1 << 20 if local else 0,
            page_checksum_verification=True,
        )  # fmt: skip
        self.target = pa.schema([table.schema.field(name) for name in columns])
        self.folders = table.folders
        inside = [name for name in columns if name not in table.folders.names]
        self.batches = self.file.iter_batches(rows, row_groups=[piece.group], columns=inside, use_threads=False)
        self.batch: pa.Table | None = None  # rows [start, stop)
        self.start = self.stop = 0

    def leads_to(self, piece: Piece, columns: list[str], low: int) -> bool:
        """Return whether a row can still be read."""
        return self.piece == piece and self.columns == columns and low >= self.start

    def rows(self, low: int, high: int) -> Iterator[pa.Table]:
        """Yield rows [low, high)."""
        while low < high:
            while self.stop <= low:
                batch = next(self.batches, None)
                if batch is None:
                    raise OSError(f"the row group ends after {self.stop} of {self.piece.rows} rows")
                rows = append(pa.Table.from_batches([batch]), self.columns, self.folders, self.piece.held)
                rows = rows.select(self.columns)
                self.batch = rows if rows.schema.types == self.target.types else rows.cast(self.target)
                self.start, self.stop = self.stop, self.stop + len(rows)
            assert self.batch is not None
            upto = min(high, self.stop)
            yield self.batch.slice(low - self.start, upto - low)
            low = upto


def first_line(error: object) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else "no message"
