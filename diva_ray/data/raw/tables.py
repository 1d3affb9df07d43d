"""Raw samples in Parquet: bytes, paths, URIs and texts in columns."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from diva_ray.data.files import is_parquet
from diva_ray.data.hive import append
from diva_ray.data.raw.classes import class_names, to_names, with_names
from diva_ray.data.raw.units import OTHER_ID, Failure, RawRows, Source, Unit, file_mark, name_of, rechunk
from diva_ray.data.table import Piece, open_parquet
from diva_ray.errors import InputError, unreadable

log = logging.getLogger("diva_ray")
READ_ROWS = 256  # rows decoded at a time
MOST_PARTS = 16  # of one row group: each part reads the row group's start again


def find(path: str, id: str | None, unit_rows: int, mark: str | None = None) -> Source:
    """Return the row groups of a Parquet file, folder, glob or URI as units: small ones together, huge ones in parts.

    `mark` tells the data from others where the files' sizes and times do not matter.
    """
    table = open_parquet(path)
    key = key_of(table.schema, id)
    if table.partly:
        told = ", ".join(f"`{name}` (not in {file})" for name, file in table.partly.items())
        log.warning("data.path: columns that only some files have are left out: %s", told)
    files = sorted({piece.file for piece in table.pieces})
    assert table.filesystem is not None
    infos = table.filesystem.get_file_info(files)
    held = {piece.file: piece.held for piece in table.pieces}
    marks = {
        file: (mark or file_mark(info)) + (f" {held[file]}" if held[file] else "")
        for file, info in zip(files, infos, strict=True)
    }
    sizes = {file: info.size for file, info in zip(files, infos, strict=True)}
    in_file: Counter[str] = Counter()
    for piece in table.pieces:
        in_file[piece.file] += piece.rows
    units = []
    for group in _groups(table.pieces, unit_rows):
        rows, piece = sum(one.rows for one in group), group[0]
        parts = min(MOST_PARTS, rows // unit_rows) if len(group) == 1 and rows >= 2 * unit_rows else 1
        cuts = np.linspace(0, rows, parts + 1).astype(int).tolist()
        for a, b in pairwise(cuts):
            size = sizes[piece.file] * (b - a) // max(in_file[piece.file], 1)
            units.append(
                Unit(
                    len(units),
                    piece.file,
                    piece.group,
                    group[-1].group + 1,
                    b - a,
                    size,
                    marks[piece.file],
                    piece.start + a,
                    a,
                )
            )
    classes = {name: names for name, names in class_names(table.schema).items() if name != key}
    schema, other = with_id(with_names(table.schema, classes), key, pa.int64())
    root = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    root = os.path.dirname(root) if "*" in root or is_parquet(root) else root
    return Source(
        "parquet", path, schema, tuple(units), table.rows, table.filesystem, read, root, key, classes=classes,
        other_id=other, more={"folders": table.folders, "held": held},
    )  # fmt: skip


def _groups(pieces: tuple[Piece, ...], unit_rows: int) -> list[list[Piece]]:
    """Return row groups of one file together until they have `unit_rows` rows."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1] if groups else None
        if last and last[0].file == piece.file and sum(one.rows for one in last) + piece.rows <= unit_rows:
            last.append(piece)
        else:
            groups.append([piece])
    return groups


def key_of(schema: pa.Schema, id: str | None) -> str | None:
    """Return the column that is the id: the one named, else `id` if it is there."""
    key = None if id == "none" else id or ("id" if "id" in schema.names else None)
    if key and key not in schema.names:
        raise InputError(
            f"data.id: column `{key}` must be there, got columns {', '.join(schema.names[:20])}. Change `data.id`."
        )
    return key


def with_id(schema: pa.Schema, key: str | None, made: pa.DataType) -> tuple[pa.Schema, str | None]:
    """Return the schema with the id's column named `id`, first, and the new name of an `id` that is not the id."""
    kind = schema.field(key).type if key else made
    other = OTHER_ID
    while other in schema.names:
        other = f"raw_{other}"
    rest = [field.with_name(other) if field.name == "id" else field for field in schema if field.name != key]
    return pa.schema([pa.field("id", kind), *rest]), other if key != "id" and "id" in schema.names else None


def to_rows(table: pa.Table, source: Source, columns: list[str], number: int, made: pa.Array | None = None) -> pa.Table:
    """Return the wanted columns, the id first; without a key the ids are made, or the rows' numbers."""
    if source.key:
        ids = table[source.key]
    else:
        ids = made if made is not None else pa.array(np.arange(number, number + table.num_rows))
    fields = {"id": ids.cast(source.schema.field("id").type)}
    for name in columns:
        if name != "id":
            column, stored = table[source.stored(name)], source.stored(name)
            if stored in source.classes:
                column = to_names(column, source.classes[stored], stored, source.name)
            kind = source.schema.field(name).type
            fields[name] = column if column.type == kind else column.cast(kind)
    return pa.table(fields)


def stored_columns(source: Source, columns: list[str]) -> list[str]:
    """Return the columns to read from storage: what is asked for, and the key."""
    return [name for name in dict.fromkeys(source.stored(column) for column in ("id", *columns)) if name]


def stored_types(source: Source) -> pa.StructType:
    """Return every stored column by its name in storage."""
    return pa.struct([(source.stored(f.name), f.type) for f in source.schema if source.stored(f.name)])


def read(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield the unit's rows, `rows` at a time."""

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        wanted, left, skip, number = stored_columns(source, columns), unit.rows or 0, unit.skip, unit.first
        folders, held = source.more["folders"], source.more["held"][unit.path]
        inside = [name for name in wanted if name not in folders.names]
        try:
            with pq.ParquetFile(unit.path, filesystem=source.filesystem, pre_buffer=False) as file:
                groups = list(range(unit.start, unit.stop))
                for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=inside, use_threads=False):
                    before = min(skip, len(batch))
                    mine, skip = batch.slice(before, left), skip - before
                    if len(mine):
                        table = append(pa.Table.from_batches([mine]), wanted, folders, held)
                        yield to_rows(table, source, columns, number), number, []
                    number, left = number + len(mine), left - len(mine)
                    if not left:
                        return
        except (OSError, pa.ArrowException) as error:
            raise unreadable("data.path", error, unit.path) from error

    return rechunk(
        parts(), rows, lambda k: f"{name_of(unit.path)} row {k - unit.first + unit.skip} of row group {unit.start}"
    )
