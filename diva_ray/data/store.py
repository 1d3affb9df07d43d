"""Files under one path, local or a URI: every one whole or absent."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

TOKEN = ".run"  # what the driver leaves for workers to find: a path may be another folder on another node
LOCK = ".lock"  # by which a run keeps others out (`data.lock`)
OURS = {TOKEN, LOCK}  # no results of a run
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, a quota and a limit say


class Store:
    """Files under one path; picklable, so workers write their own."""

    def __init__(self, path: str, option: str = "output") -> None:
        """Open a folder that `option` names; it need not be there."""
        self.path, self.option = place_of(path), option
        try:
            if "\0" in self.path:
                raise ValueError("a character 0")
            self.filesystem, self.base = pyarrow.fs.FileSystem.from_uri(self.path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{option}: must be a folder or URI that can be written, got {path} ({error}). Change `{option}`."
            ) from error
        self.local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def names(self, inside: str) -> list[str]:
        """Return the names in a sub-folder ('' for the folder itself) but those of files that are half written, of a
        token and of a lock; none in a file."""
        return [name for name in self._names(inside) if not _is_half(name) and name not in OURS]

    def sweep(self, inside: str) -> None:
        """Delete the files in a sub-folder that workers which died have left half written."""
        for name in self._names(inside):
            if _is_half(name):
                self.filesystem.delete_file(self._full(f"{inside}/{name}"))

    def _names(self, inside: str) -> list[str]:
        if self.filesystem.get_file_info(self._full(inside)).type == pyarrow.fs.FileType.File:
            return []
        selector = pyarrow.fs.FileSelector(self._full(inside), allow_not_found=True)
        return [item.base_name for item in self.filesystem.get_file_info(selector)]

    def _full(self, name: str) -> str:
        return f"{self.base}/{name}" if name else self.base

    def write(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all."""
        self._replace(name, lambda stream: stream.write(content))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file, whole or not at all."""
        self._replace(name, lambda stream: pq.write_table(table, stream, **_encoding(table.schema)))

    @contextmanager
    def stream_table(self, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """Write one Parquet file row group by row group; it is there when all of it is, or not at all."""
        full, partial = self._places(name)
        try:
            with (
                self.filesystem.open_output_stream(partial) as stream,
                pq.ParquetWriter(stream, schema, **_encoding(schema)) as writer,
            ):
                yield writer
        except BaseException as error:
            self._give_up(partial, error)
            raise
        if partial != full:
            os.replace(partial, full)

    def digest(self, name: str) -> tuple[int, str]:
        """Return (bytes, SHA-256) of a file."""
        found, size = hashlib.sha256(), 0
        with self.filesystem.open_input_stream(self._full(name)) as stream:
            while block := stream.read(1 << 20):
                found.update(block)
                size += len(block)
        return size, found.hexdigest()

    def footer(self, name: str) -> pq.FileMetaData | None:
        """Return the footer of a Parquet file, or None if there is none that can be read."""
        if self.filesystem.get_file_info(self._full(name)).type != pyarrow.fs.FileType.File:
            return None
        try:
            return pq.read_metadata(self._full(name), filesystem=self.filesystem)
        except (pa.ArrowException, OSError):
            return None

    def _replace(self, name: str, fill: Any) -> None:
        full, partial = self._places(name)
        try:
            with self.filesystem.open_output_stream(partial) as stream:
                fill(stream)
        except BaseException as error:
            self._give_up(partial, error)
            raise
        if partial != full:
            os.replace(partial, full)

    def _give_up(self, partial: str, error: BaseException) -> None:
        """Delete what there is of a file (an object store shows what was closed, whole or not); say so if the disk is
        full."""
        if self.filesystem.get_file_info(partial).type == pyarrow.fs.FileType.File:
            self.filesystem.delete_file(partial)
        if isinstance(error, OSError) and error.errno in FULL:
            raise InputError(
                f"output: the disk must have room for the run, got {os.strerror(error.errno)} at {self.path}. Free "
                "space there, then finish the run with `resume=true`."
            ) from error

    def _places(self, name: str) -> tuple[str, str]:
        """Return where a file will be and where it is written first; its folder is there then."""
        full = self._full(name)
        self.filesystem.create_dir(os.path.dirname(full), recursive=True)
        if not self.local:
            return full, full
        return full, os.path.join(os.path.dirname(full), f".{os.path.basename(full)}.{uuid.uuid4().hex[:12]}.part")

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays into one file, whole or not at all."""
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # a name may be `allow_pickle`, as the stub sees it
        self.write(name, stream.getvalue())

    def read_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of a file, or None if there is none."""
        if self.filesystem.get_file_info(self._full(name)).type != pyarrow.fs.FileType.File:
            return None
        with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as found:
            return dict(found)

    def read_whole(self, name: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of a file, or None if there is none, or a damaged one, of which a warning tells."""
        try:
            return self.read_arrays(name)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            log.warning("%s is damaged (%s): what it held is computed again", self.location(name), error)
            return None

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        with self.filesystem.open_input_stream(self._full(name)) as stream:
            return stream.read()

    def stream(self, name: str, fill: Any) -> None:
        """Write one file piece by piece, whole or not at all: `fill` gets the open stream."""
        self._replace(name, fill)

    def read_array(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return some rows of an npy file of a vector, of which no more is read than they take."""
        with self.filesystem.open_input_file(self._full(name)) as file:
            np.lib.format.read_magic(file)
            (rows,), _, kind = np.lib.format.read_array_header_1_0(file)
            stop = rows if stop is None else stop
            file.seek(file.tell() + start * kind.itemsize)
            return np.frombuffer(file.read(max(stop - start, 0) * kind.itemsize), kind)

    def drop(self, name: str) -> None:
        """Delete a sub-folder, if it is there."""
        if self.filesystem.get_file_info(self._full(name)).type == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(self._full(name))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.filesystem.get_file_info(self._full(name)).type == pyarrow.fs.FileType.File:
            self.filesystem.delete_file(self._full(name))

    def within(self, name: str) -> str:
        """Return the path of a name inside, as the file system has it."""
        return self._full(name)

    def location(self, name: str) -> str:
        """Return the path or URI of a name inside; of a URI before its options."""
        where, mark, options = self.path.partition("?") if "://" in self.path else (self.path, "", "")
        return f"{where}/{name}{mark}{options}"

    def read_table(self, name: str) -> pa.Table:
        """Return the Parquet files of a sub-folder as one table, in the order of their names."""
        files = sorted(file for file in self.names(name) if file.endswith(".parquet"))
        if not files:
            raise InputError(
                f"{self.option}: the run's rows must be there, got none at {self.location(name)}. Name an `output` "
                "that stays, and run it again."
            )
        return pa.concat_tables(
            pq.read_table(self._full(f"{name}/{file}"), filesystem=self.filesystem) for file in files
        )

    def replace(self, new: str, old: str) -> None:
        """Put folder `new` in the place of folder `old`."""
        self.filesystem.delete_dir(self._full(old))
        if self.local:
            self.filesystem.move(self._full(new), self._full(old))
            return
        self.filesystem.create_dir(self._full(old))
        for name in self.names(new):  # Arrow moves no folder of an object store
            self.filesystem.move(self._full(f"{new}/{name}"), self._full(f"{old}/{name}"))
        self.drop(new)


def place_of(path: str) -> str:
    """Return an absolute path, or a URI without slashes at its end."""
    if "://" not in path:
        return os.path.abspath(os.path.expanduser(path))
    scheme, _, rest = path.partition("://")
    where, mark, options = rest.partition("?")
    return f"{scheme}://{where.rstrip('/') or where}{mark}{options}"


def _is_half(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return how our Parquet files are written: values of floats hardly repeat, so a dictionary of them only costs."""
    keys = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_integer(field.type)]
    return {"compression": "zstd", "use_dictionary": keys, "write_page_checksum": True}
