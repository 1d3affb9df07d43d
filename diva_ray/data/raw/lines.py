"""Raw samples in lines: JSON, and where CSV files are cut."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.raw.delimited import csv_schema, read_csv, whole
from diva_ray.data.raw.tables import key_of, stored_columns, stored_types, to_rows, with_id
from diva_ray.data.raw.units import (
    MOST_BYTES,
    Failure,
    RawRows,
    Source,
    Unit,
    below,
    file_mark,
    head_columns,
    loaded,
    misfit,
    note_unknown,
    rechunk,
    root_of,
)
from diva_ray.errors import InputError, first_line

RANGE = 64 << 20  # bytes of a unit of JSON lines, at most
MOST_UNITS = 10_000  # units that `unit_rows` may make of a table of lines: more rows each beyond
PEEKED = 1000  # first lines, which tell the columns
READ_ROWS = 256
TOO_LONG = b"<too long>"
RATIO_BYTES = 4 << 20  # unpacked bytes by which a packed file's rows are estimated


def find(
    path: str,
    kind: str,
    filesystem: pyarrow.fs.FileSystem,
    base: str,
    infos: list[pyarrow.fs.FileInfo],
    id: str | None,
    unit_rows: int,
    peek: int | None,
) -> Source:
    """Return byte ranges of JSON lines (a packed file is one), of about `unit_rows` lines, or CSV files, as units."""
    units, peek = _ranges(infos, None), peek or PEEKED
    found, estimate = csv_schema(filesystem, units[0]) if kind == "csv" else _json_schema(filesystem, units, peek)
    if kind != "csv":
        size = sum(info.size for info in infos)
        units = _ranges(infos, min(RANGE, math.ceil(max(unit_rows * estimate, size / MOST_UNITS, 1))))
    key = key_of(found, id)
    schema, other = with_id(found, key, pa.string())
    total = sum(unit.bytes for unit in units) * _unpacked(filesystem, units[0].path)
    reader = read_csv if kind == "csv" else read_json
    root = root_of(path, infos[0].path, infos[0].path.rpartition("/")[0])
    more = {"base": base, "head": f"{peek:,} lines"}
    about = int(total / max(estimate, 1))
    return Source(
        kind, path, schema, tuple(units), None, filesystem, reader, root, key, about, other_id=other, more=more
    )


def _ranges(infos: list[pyarrow.fs.FileInfo], step: int | None) -> list[Unit]:
    """Return files in ranges of so many bytes as units; packed ones, and all without a step, whole."""
    units: list[Unit] = []
    for info in infos:
        plain = info.path.lower().endswith((".jsonl", ".ndjson"))
        size = step if step and plain else max(info.size, 1)
        for start in range(0, max(info.size, 1), size):
            stop = min(start + size, info.size)
            units.append(Unit(len(units), info.path, start, stop, None, stop - start, file_mark(info)))
    return units


def _unpacked(filesystem: pyarrow.fs.FileSystem, path: str) -> float:
    """Return how many bytes the head of a file unpacks to, for each of its own."""
    try:
        codec = pa.Codec.detect(path).name
    except TypeError:  # pyarrow's answer to a suffix that names no codec
        return 1.0
    with whole(path), filesystem.open_input_file(path) as stream:
        unpacked = pa.CompressedInputStream(stream, codec)
        return len(unpacked.read(RATIO_BYTES)) / max(1, stream.tell())


def _json_schema(filesystem: pyarrow.fs.FileSystem, units: list[Unit], peek: int) -> tuple[pa.Schema, float]:
    """Return (columns, bytes of a line) of the first lines."""
    count, size, why = 0, 0, ""

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, size, why
        for _, line in islice(chain.from_iterable(_lines(filesystem, unit) for unit in units), peek):
            size += len(line)
            try:
                row = loaded(line)
            except ValueError as error:  # also letters that are not UTF-8
                why = why or f" ({first_line(error)})"
                continue
            if isinstance(row, dict):
                count += 1
                yield row

    fields = head_columns(rows())
    if not count:
        raise InputError(
            f"data.path: lines must be JSON objects in UTF-8, got none in {units[0].path}{why}. Change `data.path`."
        )
    return pa.schema(fields), size / count


def _lines(filesystem: pyarrow.fs.FileSystem, unit: Unit) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of the lines that begin in [start, stop); a packed file is read whole.

    Of a line that is longer than MOST_BYTES only a mark comes, TOO_LONG: memory does not grow with it.
    """
    packed = not unit.path.lower().endswith((".jsonl", ".ndjson"))
    if packed:
        stream, offset = filesystem.open_input_stream(unit.path, compression="detect"), 0
    else:
        stream, offset = filesystem.open_input_file(unit.path), max(unit.start - 1, 0)
        stream.seek(offset)
    with stream:
        rest, skip = b"", bool(offset or unit.start)  # up to the line's end before the range: it is another's
        dropped = 0  # bytes of a line that is too long to be kept
        while block := _block(stream, unit.path):
            *ended, rest = (rest + block).split(b"\n")
            for line in ended:
                if not skip and not packed and offset >= unit.stop:
                    return
                if not skip and (dropped or line.strip()):
                    yield offset, TOO_LONG if dropped else line
                skip, offset, dropped = False, offset + dropped + len(line) + 1, 0
            if len(rest) > MOST_BYTES:
                rest, dropped = b"", dropped + len(rest)
        if (dropped or rest.strip()) and not skip and (packed or offset < unit.stop):
            yield offset, TOO_LONG if dropped else rest


def _block(stream: pa.NativeFile, path: str) -> bytes:
    """Return the next megabyte."""
    with whole(path):
        return stream.read(1 << 20)


def _next(lines: Iterator[tuple[int, tuple[int, bytes]]]) -> list[tuple[int, tuple[int, bytes]]]:
    """Return the next READ_ROWS lines, or less of long ones."""
    found, size = [], 0
    for line in lines:
        found.append(line)
        size += len(line[1][1])
        if len(found) == READ_ROWS or size > MOST_BYTES:
            break
    return found


def read_json(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield the lines' rows; a line that is no JSON object, or does not fit the columns, is a failure."""
    known = stored_types(source)
    kinds = {name: known.field(name).type for name in stored_columns(source, columns)}
    unknown: dict[str, dict[str, Any]] = {}
    offsets = array("q")
    name = below(source.more["base"], unit.path)

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        lines, number = enumerate(_lines(source.filesystem, unit)), 0
        while some := _next(lines):
            good: list[dict[str, Any]] = []
            failed = []
            for at, (offset, line) in some:
                try:
                    if line is TOO_LONG:
                        raise ValueError(f"longer than {MOST_BYTES} bytes")
                    row = loaded(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"not an object but {type(row).__name__}")
                except ValueError as error:
                    wrong = "", f"line does not fit: {first_line(error, 160)}"
                else:
                    wrong = misfit(row, kinds.items())
                if wrong:
                    failed.append(Failure(f"{name}:{offset}", f"{name} byte {offset}", *wrong))
                    continue
                note_unknown(unknown, row, known, at, f"{name} byte {offset}")
                good.append({column: row.get(column) for column in kinds})
                offsets.append(offset)
            table = pa.Table.from_pylist(good, pa.schema(kinds.items()))
            made = pa.array([f"{name}:{offset}" for offset in offsets[number:]], pa.string())
            yield to_rows(table, source, columns, number, made), number, failed
            number += len(good)

    return rechunk(parts(), rows, lambda k: f"{name} byte {offsets[k]}", unknown)
