"""What every kind of raw data has in common: units of work, and rows in chunks of a fixed length."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.files import part_name
from diva_ray.errors import first_line

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
MOST_BYTES = 64 << 20  # of one sample as stored
MOST_HELD = 256 << 20  # of samples as stored that are read or written together
MOST_UNKNOWN = 100  # columns of a unit that are told by name; the others are counted together
OTHER_ID = "raw_id"  # a column, or a field of a tar's .json, whose name is `id` without being the id
OTHERS, LONGEST_NAME = "(others)", 200


@dataclass(frozen=True)
class Unit:
    """A piece of the input that becomes one output file.

    Attributes:
        index: its place among all units, and the number in its file's name.
        path: file (or folder) it lies in.
        start, stop: which part: row groups, batches, bytes or rows, as the reader of its kind takes them.
        rows: how many, where that is known without reading.
        bytes: as stored, for estimates.
        mark: size and time of change: a changed file is another unit.
        first: position of its first row among all rows, where that is known.
        skip: rows at its start that belong to the unit before; it ends after `rows` rows.
        files: names of the files of a unit that is a list of files, packed (`listing.pack`).
    """

    index: int
    path: str
    start: int = 0
    stop: int = 0
    rows: int | None = None
    bytes: int = 0
    mark: str = ""
    first: int = 0
    skip: int = 0
    files: bytes = field(default=b"", repr=False)

    @property
    def file(self) -> str:
        """Name of its output."""
        return f"{part_name(self.index)}.parquet"


@dataclass(frozen=True)
class Failure:
    """A sample that was put aside."""

    id: str
    where: str
    column: str
    reason: str


@dataclass
class RawRows:
    """Some rows of a unit: a table that has the column `id`, where each row lies, and what could not be read at all.

    `unknown` tells of columns that the data's head did not have, in the unit so far; see `note_unknown`.
    """

    table: pa.Table
    where: Callable[[int], str]
    failures: list[Failure] = field(default_factory=list)
    unknown: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Raw data that was found.

    Attributes:
        kind: parquet, folder, webdataset, jsonl, csv or huggingface.
        name: what the user named.
        schema: columns of a row, `id` among them.
        rows: how many, or None where only reading tells; `estimate` then says about how many.
        read: (source, unit, columns, rows at a time) -> rows; `id` is always among the columns that come back.
        root: folder to which paths in a column are relative.
        classes: names of the classes that a column of whole numbers stands for; its rows come back by name.
        other_id: name that a stored column `id` has here where it is not the id.
    """

    kind: str
    name: str
    schema: pa.Schema
    units: tuple[Unit, ...]
    rows: int | None
    filesystem: pyarrow.fs.FileSystem
    read: Callable[[Source, Unit, list[str], int], Iterator[RawRows]]
    root: str
    key: str | None = None  # column that is the id; None: made
    estimate: int = 0
    classes: dict[str, pa.Array] = field(default_factory=dict)
    other_id: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def stored(self, column: str) -> str | None:
        """Return the name of a column in storage; None for an id that is made."""
        return self.key if column == "id" else "id" if column == self.other_id else column

    @property
    def bytes(self) -> int:
        """Bytes as stored."""
        return sum(unit.bytes for unit in self.units)

    def about(self) -> int:
        """Return the number of rows, known or estimated."""
        return self.rows if self.rows is not None else self.estimate


def rechunk(
    parts: Iterable[tuple[pa.Table, int, list[Failure]]],
    rows: int,
    where: Callable[[int], str],
    unknown: dict[str, dict[str, Any]] | None = None,
) -> Iterator[RawRows]:
    """Yield rows in chunks of exactly `rows` (the last may be shorter), however the reader cut them; fewer where they
    are so large that a chunk would take more than MOST_HELD.

    Args:
        parts: (table, number of its first row as `where` counts, failures) in order, row numbers consecutive.
        rows: of a chunk: what is encoded together must not depend on how a file happens to be cut.
        where: number of a row -> its place.
        unknown: what `note_unknown` fills while parts are read.
    """
    held: list[pa.Table] = []
    failures: list[Failure] = []
    count, first, size = 0, 0, 0
    for table, number, failed in parts:
        if not count:
            first = number
        held.append(table)
        failures += failed
        count, size = count + table.num_rows, size + table.nbytes
        while count >= rows:
            whole = pa.concat_tables(held)
            yield _rows(whole.slice(0, rows), first, where, failures, unknown)
            held, failures = [whole.slice(rows)], []
            count, first, size = count - rows, first + rows, held[0].nbytes
        if size > MOST_HELD:
            yield _rows(pa.concat_tables(held), first, where, failures, unknown)
            held, failures, count, size = [], [], 0, 0
    if count or failures:
        yield _rows(pa.concat_tables(held), first, where, failures, unknown)


def _rows(
    table: pa.Table, first: int, where: Callable[[int], str], failures: list[Failure], unknown: dict | None
) -> RawRows:
    return RawRows(table, lambda k: where(first + k), failures, {} if unknown is None else unknown)


def note_unknown(found: dict[str, dict[str, Any]], row: dict[str, Any], known: pa.StructType, at: int, where: str):
    """Count the values of a row that no column takes: by name, in how many rows they are, and where the first is.

    Args:
        found: what is known so far of a unit, by name: rows, row (number of the first in the unit), where (it lies).
        known: the columns as they are stored; objects inside are looked into (`meta.size`).
    """
    for name in dict.fromkeys(_beyond(row, known, "")):
        short = name[:LONGEST_NAME]
        told = short if short in found or len(found) < MOST_UNKNOWN else OTHERS
        found.setdefault(told, {"rows": 0, "row": at, "where": where})["rows"] += 1


def _beyond(value: Any, kind: pa.DataType, name: str) -> Iterator[str]:
    """Yield the names of values that a type has no field for."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        for key, inner in value.items():
            at = kind.get_field_index(key)
            if inner not in (None, {}) and at < 0:
                yield f"{name}{key}"
            elif inner is not None:
                yield from _beyond(inner, kind.field(at).type, f"{name}{key}.")
    elif isinstance(value, list) and pa.types.is_list(kind) and pa.types.is_nested(kind.value_type):
        for inner in value:
            yield from _beyond(inner, kind.value_type, name)


def loaded(text: bytes) -> Any:
    """Return the value of JSON; ValueError for what is none, or is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def misfit(row: dict[str, Any], kinds: Iterable[tuple[str, pa.DataType]]) -> tuple[str, str] | None:
    """Return the column of the first value that is not of the type that the data's head has, and why; None: all fit."""
    for column, kind in kinds:
        try:
            pa.array([row.get(column)], kind)
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            return column, f"value does not fit: {first_line(error, 160)}; `data.peek` looks at more samples"
        if (lost := _fraction(row.get(column), kind)) is not None:  # which Arrow cuts off without a word
            return column, f"value does not fit: {kind} must be there, got {lost}; `data.peek` looks at more samples"
    return None


def _fraction(value: Any, kind: pa.DataType) -> float | None:
    """Return a number in a value that is not whole where its type has whole numbers alone."""
    if isinstance(value, float):
        return value if pa.types.is_integer(kind) and not value.is_integer() else None
    inside: list[tuple[Any, pa.DataType]] = []
    if isinstance(value, dict) and pa.types.is_struct(kind):
        inside = [(value.get(field.name), field.type) for field in kind]
    elif isinstance(value, list) and pa.types.is_list(kind):
        inside = [(one, kind.value_type) for one in value]
    return next((lost for one, of in inside if (lost := _fraction(one, of)) is not None), None)


def head_columns(rows: Iterable[dict[str, Any]]) -> list[pa.Field]:
    """Return the columns of the rows at the head of the data. Of texts and bytes nothing is kept meanwhile.

    A column that is null in all of them is none: its type is not known, and a guess would cost samples.
    """
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            some = values.setdefault(name, [])
            if value is not None:
                some.append(type(value)() if isinstance(value, (str, bytes)) else value)
    fields = [field_of(name, some) for name, some in values.items() if some]
    return [field.with_type(kind) for field in fields if (kind := _storable(field.type)) is not None]


def _storable(kind: pa.DataType) -> pa.DataType | None:
    """Return a type without what Parquet cannot hold: objects that are `{}` in every row. None: nothing is left."""
    if pa.types.is_struct(kind):
        inner = [field.with_type(found) for field in kind if (found := _storable(field.type)) is not None]
        return pa.struct(inner) if inner else None
    if pa.types.is_list(kind):
        found = _storable(kind.value_type)
        return None if found is None else pa.list_(found)
    return pa.string() if pa.types.is_null(kind) else kind


def field_of(name: str, values: list[Any]) -> pa.Field:
    """Return a column's type from its first values; where they disagree, that of most: the others will be failures."""
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        known = [value for value in values if value is not None and _fits_alone(value)]
        most = Counter(type(value) for value in known).most_common(1)[0][0] if known else object
        try:
            kind = pa.array([value for value in known if type(value) is most]).type
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # objects of no common shape
            kind = pa.null()
    return pa.field(name, pa.string() if pa.types.is_null(kind) else kind)


def _fits_alone(value: Any) -> bool:
    """Return whether Arrow can hold a value at all: of integers, 64 bits."""
    try:
        pa.array([value])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return os.path.basename(path.rstrip("/"))


def root_of(path: str, file: str, folder: str) -> str:
    """Return to what paths in a column are relative: the folder; of a URI the URI, or its parent where it is a file."""
    if "://" not in path:
        return folder
    return path.rpartition("/")[0] if name_of(path) == name_of(file) else path


def below(base: str, path: str) -> str:
    """Return a path as seen from a folder above it: unlike its name alone, no other file's under that folder."""
    return path[len(base.rstrip("/")) + 1 :] if path.startswith(base.rstrip("/") + "/") else name_of(path)


def suffix_of(path: str) -> str:
    """Return the suffix in small letters, without the dot and without a compression's."""
    name = name_of(path).lower()
    for packed in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(packed)
    return name.rpartition(".")[2] if "." in name else ""


def file_mark(info: pyarrow.fs.FileInfo) -> str:
    """Return what tells a file from a changed one."""
    return f"{info.size}-{info.mtime_ns}"
