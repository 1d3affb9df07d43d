"""Raw samples in JSON lines and CSV."""

from __future__ import annotations

import codecs
import logging
import math
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from pyarrow import csv

from diva_ray.data.columns import check_names
from diva_ray.data.raw.tables import key_of, stored_columns, stored_types, to_rows, with_id
from diva_ray.data.raw.units import (
    MOST_BYTES,
    Failure,
    Rows,
    Source,
    Unit,
    below,
    head_columns,
    loaded,
    mark_of,
    misfit,
    name_of,
    note_unknown,
    rechunk,
    root_of,
)
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

RANGE = 64 << 20  # bytes of a unit of JSON lines, at most
MOST_UNITS = 10_000  # units that `unit_rows` may make of a table of lines: more rows each beyond
PEEKED = 1000  # first lines, which tell the columns
READ_ROWS = 256
TOO_LONG = b"<too long>"
RATIO_BYTES = 4 << 20  # unpacked bytes by which a packed file's rows are estimated
NULLS = csv.ConvertOptions().null_values  # what stands for no number, date or truth value: nothing, NA, NULL, ...
LEADING_ZERO = "^-?0[0-9]"


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
    found, estimate = _csv_schema(filesystem, units[0]) if kind == "csv" else _json_schema(filesystem, units, peek)
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
            units.append(Unit(len(units), info.path, start, stop, None, stop - start, mark_of(info)))
    return units


def _unpacked(filesystem: pyarrow.fs.FileSystem, path: str) -> float:
    """Return how many bytes the head of a file unpacks to, for each of its own."""
    try:
        codec = pa.Codec.detect(path).name
    except TypeError:  # pyarrow's answer to a suffix that names no codec
        return 1.0
    with filesystem.open_input_file(path) as stream:
        unpacked = pa.CompressedInputStream(stream, codec)
        return len(unpacked.read(RATIO_BYTES)) / max(1, stream.tell())


def _json_schema(filesystem: pyarrow.fs.FileSystem, units: list[Unit], peek: int) -> tuple[pa.Schema, float]:
    """Return (columns, bytes of a line) of the first lines."""
    count, size = 0, 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, size
        for _, line in islice(chain.from_iterable(_lines(filesystem, unit) for unit in units), peek):
            size += len(line)
            try:
                row = loaded(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                count += 1
                yield row

    fields = head_columns(rows())
    if not count:
        raise InputError(f"data.path: lines must be JSON objects, got none in {units[0].path}. Change `data.path`.")
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
        while block := stream.read(1 << 20):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                if not skip and not packed and offset >= unit.stop:
                    return
                if not skip and (dropped or line.strip()):
                    yield offset, TOO_LONG if dropped else line
                skip, offset, dropped = False, offset + dropped + len(line) + 1, 0
            if len(rest) > MOST_BYTES:
                rest, dropped = b"", dropped + len(rest)
        if (dropped or rest.strip()) and not skip and (packed or offset < unit.stop):
            yield offset, TOO_LONG if dropped else rest


def read_json(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[Rows]:
    """Yield the lines' rows; a line that is no JSON object, or does not fit the columns, is a failure."""
    known = stored_types(source)
    kinds = {name: known.field(name).type for name in stored_columns(source, columns)}
    unknown: dict[str, dict[str, Any]] = {}
    offsets: list[int] = []
    name = below(source.more["base"], unit.path)

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        lines, number = enumerate(_lines(source.filesystem, unit)), 0
        while some := list(islice(lines, READ_ROWS)):
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
                    wrong = "", f"line does not fit: {str(error).splitlines()[0][:160]}"
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


def _csv(filesystem: pyarrow.fs.FileSystem, path: str, kinds: pa.Schema | None, skipped: Any) -> csv.CSVStreamingReader:
    """Return a reader of the columns of `kinds`, values as it says, of which only an empty one is null; or of all, of
    what types they look like.

    A text or a class may be NA or null: of types that are not text `_cast` makes nulls of such words.
    """
    nulls = NULLS if kinds is None else [""]
    delimiter = "\t" if ".tsv" in name_of(path).lower() else ","
    return csv.open_csv(
        filesystem.open_input_stream(path, compression="detect"),
        read_options=csv.ReadOptions(use_threads=False, block_size=1 << 20),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skipped),
        convert_options=csv.ConvertOptions(
            include_columns=None if kinds is None else kinds.names,
            column_types=kinds,
            null_values=nulls,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _check_encoding(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Raise for UTF-16, as spreadsheets save "Unicode text"."""
    with filesystem.open_input_stream(path, compression="detect") as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"data.path: a CSV file must be UTF-8, got UTF-16 at {path}. Save it as UTF-8.")


def _check_header(schema: pa.Schema, path: str) -> None:
    """Raise for two columns of one name, and for a line of names that another separator parts."""
    check_names(schema, path)
    name = schema.names[0]
    if len(schema.names) == 1 and any(sign in name for sign in ";\t|"):
        raise InputError(
            f"data.path: values must be separated by commas (in .tsv by tabs), got one column {name[:80]!r} at {path}. "
            "Save it with commas."
        )


def _csv_schema(filesystem: pyarrow.fs.FileSystem, unit: Unit) -> tuple[pa.Schema, float]:
    """Return (columns, bytes of a row) of the first megabyte; numbers written as 007 are texts. A column without a
    name, as pandas writes its index, is left out."""
    _check_encoding(filesystem, unit.path)
    try:
        with _csv(filesystem, unit.path, None, lambda row: "skip") as reader:
            batch = reader.read_next_batch()
        _check_header(batch.schema, unit.path)
        written = pa.schema([(field.name, pa.binary()) for field in batch.schema if pa.types.is_integer(field.type)])
        with _csv(filesystem, unit.path, written, lambda row: "skip") as reader:
            first = reader.read_next_batch()
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.path: the names in a CSV file must be UTF-8, got other bytes at {unit.path}. Save it as UTF-8."
        ) from error
    except StopIteration as error:
        raise InputError(
            f"data.path: a CSV file must have rows, got none at {unit.path}. Change `data.path`."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data.path: files must be CSV with a first line of names, got {str(error).splitlines()[0][:200]} at "
            f"{unit.path}. Change `data.path`."
        ) from error
    codes = {name for name in written.names if pc.any(pc.match_substring_regex(first[name], LEADING_ZERO)).as_py()}
    kept = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_date, pa.types.is_timestamp)
    fields = [
        field if field.name not in codes and any(is_kind(field.type) for is_kind in kept) else (field.name, pa.string())
        for field in batch.schema
        if field.name
    ]
    if len(fields) < len(batch.schema):
        log.info("a column without a name is left out at %s", unit.path)
    return pa.schema(fields), min(unit.bytes, 1 << 20) / max(1, batch.num_rows)


def read_csv(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[Rows]:
    """Yield the file's rows; one with too many or too few values, or a value of another type, is a failure."""
    name = below(source.more["base"], unit.path)
    known = stored_types(source)
    kinds = {name: known.field(name).type for name in stored_columns(source, columns)}
    skipped: list[Failure] = []
    numbers: list[int] = []  # of the rows that fit, as the file has them

    def skip(row: Any) -> str:
        reason = f"{row.expected_columns} values must be there, got {row.actual_columns}"
        skipped.append(Failure(name, f"{name}: {(row.text or '')[:60]!r}", "", reason))
        return "skip"

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        read, good = 0, 0
        try:
            with _csv(source.filesystem, unit.path, pa.schema([(c, pa.binary()) for c in kinds]), skip) as reader:
                for batch in reader:
                    fits, wrong = _typed(pa.Table.from_batches([batch]).select(list(kinds)), kinds)
                    failed, at = skipped[:], [read + k for k in range(batch.num_rows) if k not in wrong]
                    del skipped[: len(failed)]
                    failed += [
                        Failure(f"{name}:{read + k}", f"{name} row {read + k}", *what) for k, what in wrong.items()
                    ]
                    numbers.extend(at)
                    made = pa.array([f"{name}:{number}" for number in at], pa.string())
                    yield to_rows(fits, source, columns, good, made), good, failed
                    read, good = read + batch.num_rows, good + len(at)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(
                f"data.path: every file must be CSV of the same columns, got {str(error).splitlines()[0][:200]} at "
                f"{unit.path}. Fix the file or leave it out."
            ) from error

    return rechunk(parts(), rows, lambda k: f"{name} row {numbers[k]}")


def _typed(written: pa.Table, kinds: dict[str, pa.DataType]) -> tuple[pa.Table, dict[int, tuple[str, str]]]:
    """Return the rows whose values are of these types, and (column, reason) of the others by row."""
    wrong: dict[int, tuple[str, str]] = {}
    for name, kind in kinds.items():
        for k in _unfit(written[name], kind, 0):
            shown = (written[name][k].as_py() or b"")[:60].decode("utf-8", "replace")
            wrong.setdefault(k, (name, f"value does not fit: {kind} must be there, got {shown!r}"))
    if wrong:
        written = written.filter(pa.array([k not in wrong for k in range(written.num_rows)]))
    return pa.table({name: _cast(written[name], kind) for name, kind in kinds.items()}), wrong


def _unfit(written: pa.ChunkedArray, kind: pa.DataType, first: int) -> list[int]:
    """Return the rows, counted from `first`, whose values are not of a type, by halving."""
    try:
        _cast(written, kind)
        return []
    except pa.ArrowException:
        half = len(written) // 2
        if not half:
            return [first]
        return [*_unfit(written.slice(0, half), kind, first), *_unfit(written.slice(half), kind, first + half)]


def _cast(written: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return bytes of UTF-8 as values of a type; of what is no text, blanks around it do not count."""
    texts = written.cast(pa.string())
    if pa.types.is_string(kind):
        return texts
    bare = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.is_in(bare, pa.array(NULLS)), None, bare).cast(kind)
