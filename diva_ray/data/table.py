"""A table of rows that are read where they are needed: Parquet files, or Arrow already in memory.

Only footers are read here; rows are read by the shards that own them.
"""

from __future__ import annotations

import os
import socket
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from diva_ray.data.columns import check_names, element_type, in_one_chunk, is_list, storage_type, without_views
from diva_ray.data.files import list_files
from diva_ray.data.hive import Value, folder_values
from diva_ray.data.reader import Reader, mark_of
from diva_ray.errors import InputError, first_line


@dataclass(frozen=True)
class Piece:
    """One row group: rows [start, start + rows) of the table; `held` are its values of the table's `folders`."""

    file: str
    group: int
    start: int
    rows: int
    held: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows in the order of the sorted files; `memory` holds them when they are not in files.

    Attributes:
        name: how errors and plans call it.
        schema: Arrow schema of the table.
        rows: number of rows.
        bytes: uncompressed bytes of the columns, as the footers tell.
        option: the option that named it, for errors.
        partly: columns that only some files have, which are not read, and the first file without each.
        folders: the columns, last in the schema, that no file holds but the names of folders do.
        marks: size and time of change of every file, when the table was opened, as `host` saw them.
    """

    name: str
    schema: pa.Schema
    rows: int
    bytes: int
    filesystem: pyarrow.fs.FileSystem | None = None
    pieces: tuple[Piece, ...] = ()
    memory: pa.Table | None = field(default=None, repr=False)
    option: str = "data.path"
    partly: Mapping[str, str] = field(default_factory=dict)
    folders: pa.Schema = field(default_factory=lambda: pa.schema([]))
    marks: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    host: str = ""

    def where(self, row: int) -> str:
        """Return where a row lies, for a person: two tables may have files of one name."""
        which = "" if self.option == "data.path" else f"{self.option} "
        if self.memory is not None:
            return f"{which}row {row}"
        at = self._piece_of(row)
        piece = self.pieces[at]
        first = self.pieces[at - piece.group].start  # of the file
        return f"{which}{os.path.basename(piece.file)} row {row - first}"

    def _piece_of(self, row: int) -> int:
        return bisect_right(self.pieces, row, key=lambda piece: piece.start) - 1

    def overlapping(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the row groups that hold rows [start, stop)."""
        for at in range(self._piece_of(start), len(self.pieces)):
            piece = self.pieces[at]
            if piece.start >= stop:
                break
            if piece.rows:
                yield piece

    def reader(self, *, as_stored: bool = False) -> Reader:
        """Return a reader; ranges read in order decode every row once. `as_stored`: -1 of a ClassLabel stays."""
        return Reader(self, as_stored=as_stored)


@dataclass(frozen=True)
class Places:
    """Names the place of every row of a shard, for a person; holds none of their values."""

    table: Table
    start: int
    order: np.ndarray | None
    original: np.ndarray | None

    def __call__(self, row: int) -> str:
        """Return the place of a row of the shard."""
        if self.original is not None:
            return f"row {self.original[row]}"
        return self.table.where(self.start + int(row if self.order is None else self.order[row]))


def open_parquet(path: str, option: str = "data.path") -> Table:
    """Return the table of a Parquet file, folder, glob or URI; footers only, in parallel.

    Raises:
        InputError: nothing there, not Parquet, or files whose columns differ.
    """
    try:
        filesystem, files, base = list_files(path, option)
        with ThreadPoolExecutor(min(32, len(files))) as pool:
            marks = dict(zip(files, pool.map(lambda file: mark_of(filesystem.get_file_info(file)), files), strict=True))
    except UnicodeError as error:
        name = getattr(error, "object", error)
        raise InputError(
            f"{option}: names of files must be UTF-8, got {name!r} at {path!a}. Rename it; without a UTF-8 locale "
            "(LC_ALL=C, PYTHONUTF8=0) none may have letters beyond ASCII."
        ) from error
    with ThreadPoolExecutor(min(32, len(files))) as pool:
        footers = list(pool.map(lambda file: _footer(file, filesystem, option), files))
    found = list(zip(files, footers, strict=True))
    found = [(file, footer) for file, footer in found if footer.rows] or found  # pandas gives empty ones no types
    first_file, schema = found[0][0], found[0][1].schema
    inside = {name for _, footer in found for name in footer.schema.names}
    folders, held = folder_values([file for file, _ in found], base, inside, option)
    pieces, start, size = [], 0, 0
    partly: dict[str, str] = {}
    before: pa.Schema | None = None
    for file, footer in found:
        if before is None or not footer.schema.equals(before):  # of many files most are alike
            schema = _common(schema, footer.schema, partly, first_file, file, option)
            before = footer.schema
        for group, (rows, bytes_) in enumerate(footer.groups):
            pieces.append(Piece(file, group, start, rows, held[file]))
            start += rows
            size += bytes_
    if not start:
        raise InputError(
            f"{option}: the table must have rows, got 0 in {len(files)} file(s) at {path}. Change `{option}`."
        )
    schema = pa.schema([*schema, *folders], schema.metadata)
    return Table(
        path, schema, start, size, filesystem, tuple(pieces), option=option, partly=partly, folders=folders,
        marks=marks, host=socket.gethostname(),
    )  # fmt: skip


@dataclass(frozen=True)
class Footer:
    """What is kept of a file's footer: a whole one holds an entry for every column of every row group.

    Attributes:
        groups: rows and uncompressed bytes of every row group.
    """

    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(rows for rows, _ in self.groups)


def _footer(file: str, filesystem: pyarrow.fs.FileSystem, option: str) -> Footer:
    try:
        found = pq.read_metadata(file, filesystem=filesystem)
        schema = without_views(found.schema.to_arrow_schema())  # a type may refuse its text, such as a pickle
        metas = (found.row_group(k) for k in range(found.num_row_groups))
        return Footer(schema, tuple((meta.num_rows, meta.total_byte_size) for meta in metas))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{option}: every file must be readable Parquet, got {type(error).__name__} ({first_line(error)}) at "
            f"{file}. {_instead(file)}"
        ) from error


def _instead(file: str) -> str:
    """Return what to do about a file that is no Parquet."""
    if file.lower().endswith((".csv", ".tsv", ".jsonl", ".json")):
        return "Convert it first, by pandas (`to_parquet`), or texts and pictures by `jobs/embed.py`."
    return "Replace the file or leave it out."


def _common(
    schema: pa.Schema, other: pa.Schema, partly: dict[str, str], first_file: str, file: str, option: str
) -> pa.Schema:
    """Return the columns that both have, in types that hold both; note in `partly` those of one alone."""
    check_names(other, file, option)
    ours, theirs = set(schema.names), set(other.names)
    partly |= {name: file for name in schema.names if name not in theirs}
    partly |= {name: first_file for name in other.names if name not in ours and name not in partly}
    schema = pa.schema([one for one in schema if one.name not in partly], schema.metadata)
    return _merge_schemas(schema, other, first_file, file, option)


def _merge_schemas(first: pa.Schema, other: pa.Schema, first_file: str, file: str, option: str) -> pa.Schema:
    """Return the schema that holds both files' values of the first's columns; raise unless they are of the same kinds.

    Sizes of integers, declared lengths of lists and dictionaries may differ: such columns are read as the wider type.
    A column that is null (or whose lists are empty) in all of a file has no type there, and takes the other's.
    """
    kinds_of = {one.name: one.type for one in other}
    found = []
    for mine in first:
        name, kinds = mine.name, (mine.type, kinds_of[mine.name])
        if kinds[0] == kinds[1]:
            found.append(mine)
            continue
        one, two = map(family, kinds)
        if one != two and not {one, two} & {"null", "list of null"}:
            raise InputError(
                f"{option}: column `{name}` must hold one type, got {one} in {first_file} and {two} in {file}. "
                "Fix the table or choose other columns."
            )
        pair = [pa.schema([pa.field(name, storage_type(kind))]) for kind in kinds]
        found.append(pa.unify_schemas(pair, promote_options="permissive").field(0))
    return pa.schema(found, first.metadata)


def family(kind: pa.DataType) -> str:
    """Return the name of what values of this type are, whatever their size: integer, string, list of double, ..."""
    element = element_type(kind)
    plain = "string" if pa.types.is_string(element) or pa.types.is_large_string(element) else str(element)
    plain = "integer" if pa.types.is_integer(element) else plain
    return f"list of {plain}" if is_list(kind) else plain


def check_rows(rows: int, name: str, option: str) -> None:
    """Raise unless what was given, other than files, has rows."""
    if not rows:
        said = "data" if option == "data.path" else option
        least = "two samples" if option == "data.path" else "one row"
        raise InputError(f"{said}: the table must have rows, got 0 in {name}. Give at least {least}.")


def from_arrow(table: pa.Table, name: str = "the given arrays", option: str = "data.path") -> Table:
    """Return a table whose rows are in memory already; nothing is copied."""
    check_rows(table.num_rows, name, option)
    check_names(table.schema, name, option)
    if any(pa.types.is_run_end_encoded(kind) for kind in table.schema.types):
        table = pa.table({key: _decoded(column) for key, column in zip(table.column_names, table.columns, strict=True)})
    schema = without_views(table.schema)
    table = table if schema.equals(table.schema) else table.cast(schema)
    whole = in_one_chunk(table)
    return Table(name, whole.schema, whole.num_rows, whole.nbytes, memory=whole, option=option)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_run_end_encoded(column.type):
        return column
    return pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type)


def from_arrays(columns: dict[str, object], name: str = "the given arrays", option: str = "data.path") -> Table:
    """Return a table of NumPy arrays, torch tensors or lists by name; matrices become vector columns, uncopied, and
    those of one column numbers; arrays of more dimensions tensor columns. What a masked array masks is null."""
    arrays = {}
    for key, values in columns.items():
        try:
            arrays[key] = _to_arrow(values)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(
                f"data: `{key}` must be an array of numbers, strings or lists, got "
                f"{_describe(values)} "
                f"({first_line(error)}). Convert it first."
            ) from error
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"data: arrays must have one length, got {lengths}. Give one entry for each sample in every array."
        )
    return from_arrow(pa.table(arrays), name, option)


def _to_arrow(values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu().resolve_conj().resolve_neg()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    if hasattr(values, "to_numpy") and getattr(values, "ndim", 1) == 2:  # a DataFrame
        values = values.to_numpy()
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    mask = np.ma.getmaskarray(values) if np.ma.is_masked(values) else None
    values = np.asarray(values)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 2 and values.shape[1] == 1:
        values, mask = values[:, 0], None if mask is None else mask[:, 0]
    if values.ndim > 2 and mask is None and values.dtype.kind in "fiu":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    if values.ndim != 2:
        return pa.array(values, mask=mask)
    flat = np.ascontiguousarray(values).reshape(-1)
    if mask is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
    flat = pa.array(flat, mask=mask.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(mask.all(1)))


def _describe(values: object) -> str:
    return (
        f"{type(values).__name__} of {getattr(values, 'dtype', 'objects')}, shape {tuple(getattr(values, 'shape', ()))}"
    )
