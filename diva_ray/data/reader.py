"""Rows of a table, read in order: Parquet row groups are decoded batch by batch, whatever their size."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from diva_ray.data.hive import append
from diva_ray.data.raw.classes import without_labels
from diva_ray.errors import InputError, unreadable

if TYPE_CHECKING:
    from diva_ray.data.table import Piece, Table

BATCH_BYTES = 32 << 20  # decoded at a time; decoding takes about five times as much, for levels and copies
BATCH_ROWS = 256, 32_768  # at least and at most


class Reader:
    """Reads ranges of a table; what is asked in order is decoded once, and no more than a batch is kept.

    A ClassLabel below 0 is null, which is what it stands for, unless rows are wanted `as_stored`. Not for several
    threads at a time.
    """

    def __init__(self, table: Table, *, as_stored: bool = False) -> None:
        self.table, self.as_stored = table, as_stored
        self.stream: _Stream | None = None
        self.name: str | None = None  # of the file that is open
        self.file: pq.ParquetFile | None = None
        self.footer: pq.FileMetaData | None = None

    def read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Return rows [start, stop) of some columns; touches only the row groups that hold them.

        Raises:
            InputError: a file is gone, cut off or damaged.
        """
        if self.table.memory is not None:
            rows = self.table.memory.select(columns).slice(start, stop - start)
            return rows if self.as_stored else without_labels(rows)
        parts = []
        for piece in self.table.overlapping(start, stop):
            low, high = max(start - piece.start, 0), min(stop - piece.start, piece.rows)
            try:
                parts += self._take(piece, columns, low, high)
            except InputError:
                self._close()
                raise
            except (OSError, ValueError, pa.ArrowException) as error:
                self._close()
                raise unreadable(self.table.option, error, f"{piece.file}, row group {piece.group}") from error
        return pa.concat_tables(parts, promote_options="permissive")

    def _take(self, piece: Piece, columns: list[str], low: int, high: int) -> Iterator[pa.Table]:
        """Yield rows [low, high) of a row group, from the stream that is open where it has not passed them."""
        if self.stream is None or not self.stream.leads_to(piece, columns, low):
            self.stream = _Stream(self.table, piece, columns, self._open(piece.file), as_stored=self.as_stored)
        yield from self.stream.rows(low, high)
        if high == piece.rows:
            self.stream = None
            if not self._local:  # what was fetched ahead is given back with the file
                self._close()

    def _open(self, name: str) -> pq.ParquetFile:
        """Return a file that is open; its footer is read once while no other is asked for."""
        if self.name == name and self._local and self.file is not None:
            return self.file
        footer = self.footer if self.name == name else None
        self._close()
        # A local file is read as it is decoded; of a distant one the row group is fetched ahead, as latency is dear.
        local = self._local
        self.file = pq.ParquetFile(
            name, filesystem=self.table.filesystem, pre_buffer=not local, buffer_size=1 << 20 if local else 0,
            page_checksum_verification=True, metadata=footer,
        )  # fmt: skip
        self._check_unchanged(name)
        self.name, self.footer = name, self.file.metadata
        return self.file

    def _check_unchanged(self, name: str) -> None:
        """Raise if a file is another one than when the table was opened: labels and features would be of two tables."""
        known, files = self.table.marks.get(name), self.table.filesystem
        if known is None or files is None:
            return
        found = mark_of(files.get_file_info(name))
        # Another host may have a copy of its own, or another clock.
        if found[0] != known[0] or (found != known and self.table.host == socket.gethostname()):
            raise InputError(
                f"{self.table.option}: files must stay as they are while a run reads them, got another size or time of "
                f"change at {name}. Run again, with a new `output`."
            )

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.stream = self.file = None

    @property
    def _local(self) -> bool:
        return isinstance(self.table.filesystem, pyarrow.fs.LocalFileSystem)


class _Stream:
    """The batches of one row group, in order; the last one is kept for the range that follows."""

    def __init__(
        self, table: Table, piece: Piece, columns: list[str], file: pq.ParquetFile, *, as_stored: bool
    ) -> None:
        self.piece, self.columns, self.as_stored = piece, columns, as_stored
        fewest, most = BATCH_ROWS
        rows = min(most, max(fewest, BATCH_BYTES * table.rows // max(1, table.bytes)))
        self.target = pa.schema([table.schema.field(name).with_nullable(True) for name in columns])
        self.folders = table.folders
        inside = [name for name in columns if name not in table.folders.names]
        self.batches = file.iter_batches(rows, row_groups=[piece.group], columns=inside, use_threads=False)
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
                rows = pa.Table.from_batches([batch])
                rows = rows if self.as_stored else without_labels(rows)  # by the file's own metadata
                rows = append(rows, self.columns, self.folders, self.piece.held)
                rows = rows.select(self.columns)
                self.batch = rows if rows.schema.types == self.target.types else rows.cast(self.target)
                self.start, self.stop = self.stop, self.stop + len(rows)
            assert self.batch is not None
            upto = min(high, self.stop)
            yield self.batch.slice(low - self.start, upto - low)
            low = upto


def mark_of(info: pyarrow.fs.FileInfo) -> tuple[int, int]:
    """Return what changes with a file: its size and time of change, in nanoseconds."""
    return info.size or 0, info.mtime_ns or 0
