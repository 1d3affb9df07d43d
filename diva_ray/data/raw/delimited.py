"""Raw samples in CSV, with commas or tabs."""

from __future__ import annotations

import codecs
import logging
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from pyarrow import csv

from diva_ray.data.columns import check_names
from diva_ray.data.raw.tables import stored_columns, stored_types, to_rows
from diva_ray.data.raw.units import (
    Failure,
    RawRows,
    Source,
    Unit,
    below,
    name_of,
    rechunk,
)
from diva_ray.errors import InputError, first_line

log = logging.getLogger("diva_ray")

NULLS = csv.ConvertOptions().null_values  # what stands for no number, date or truth value: nothing, NA, NULL, ...
LEADING_ZERO = "^-?0[0-9]"


def _delimiter(path: str) -> str:
    return "\t" if ".tsv" in name_of(path).lower() else ","


def _csv(filesystem: pyarrow.fs.FileSystem, path: str, kinds: pa.Schema | None, skipped: Any) -> csv.CSVStreamingReader:
    """Return a reader of the columns of `kinds`, values as it says, of which only an empty one is null; or of all, of
    what types they look like.

    A text or a class may be NA or null: of types that are not text `_cast` makes nulls of such words.
    """
    nulls = NULLS if kinds is None else [""]
    return csv.open_csv(
        filesystem.open_input_stream(path, compression="detect"),
        read_options=csv.ReadOptions(use_threads=False, block_size=1 << 20),
        parse_options=csv.ParseOptions(
            delimiter=_delimiter(path), newlines_in_values=True, invalid_row_handler=skipped
        ),
        convert_options=csv.ConvertOptions(
            include_columns=None if kinds is None else kinds.names,
            column_types=kinds,
            null_values=nulls,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


@contextmanager
def whole(path: str) -> Iterator[None]:
    """Say in one line that a file which is packed is cut off or damaged, or that a file cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data.path: every file must be whole, got {first_line(error)} at {path}. Replace the file or leave it out."
        ) from error


def _check_encoding(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Raise for UTF-16, as spreadsheets save "Unicode text"."""
    with whole(path), filesystem.open_input_stream(path, compression="detect") as stream:
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


def _first_names(filesystem: pyarrow.fs.FileSystem, path: str) -> pa.Schema:
    """Return the names of the first line, as texts."""
    with whole(path), filesystem.open_input_stream(path, compression="detect") as stream:
        line = stream.read(1 << 16).decode("utf-8", "replace").partition("\n")[0].strip("\r\ufeff")
    names = line.split(_delimiter(path))
    return pa.schema([(name.strip('"'), pa.string()) for name in names])


def csv_schema(filesystem: pyarrow.fs.FileSystem, unit: Unit) -> tuple[pa.Schema, float]:
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
        _check_header(_first_names(filesystem, unit.path), unit.path)  # rows of other lengths are left out
        raise InputError(
            f"data.path: a CSV file must have rows, got none at {unit.path}. Change `data.path`."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data.path: files must be CSV with a first line of names, got {first_line(error)} at "
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


def read_csv(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield the file's rows; one with too many or too few values, or a value of another type, is a failure."""
    name = below(source.more["base"], unit.path)
    known = stored_types(source)
    kinds = {name: known.field(name).type for name in stored_columns(source, columns)}
    skipped: list[Failure] = []
    endless: list[str] = []  # begins of rows that go on beyond their line, as a quote is not closed
    numbers = array("q")  # of the rows that fit, as the file has them

    def skip(row: Any) -> str:
        reason = f"{row.expected_columns} values must be there, got {row.actual_columns}"
        text = row.text or ""
        skipped.append(Failure(name, f"{name}: {text[:60]!r}", "", reason))
        if "\n" in text.strip() and text.count('"') % 2:
            endless.append(text[:60])
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
                    _check_closed(endless, unit.path)
            _check_closed(endless, unit.path)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(
                f"data.path: every file must be CSV of the same columns, got {first_line(error)} at "
                f"{unit.path}. Fix the file or leave it out."
            ) from error

    return rechunk(parts(), rows, lambda k: f"{name} row {numbers[k]}")


def _check_closed(endless: list[str], path: str) -> None:
    """Raise where the rest of a file would pass for one row."""
    if endless:
        raise InputError(
            f"data.path: every quote in a CSV file must be closed, got one that is not in {endless[0]!r} at {path}. "
            'Close it, or write it twice (`""`) inside quotes.'
        )


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _typed(written: pa.Table, kinds: dict[str, pa.DataType]) -> tuple[pa.Table, dict[int, tuple[str, str]]]:
    """Return the rows whose values are of these types, and (column, reason) of the others by row."""
    wrong: dict[int, tuple[str, str]] = {}
    for name, kind in kinds.items():
        for k in _unfit(written[name], kind, 0):
            value = written[name][k].as_py() or b""
            shown = value[:60].decode("utf-8", "replace")
            must = f"{kind} must be there" if _is_utf8(value) else "text must be UTF-8"
            wrong.setdefault(k, (name, f"value does not fit: {must}, got {shown!r}"))
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
