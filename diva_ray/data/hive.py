"""Columns that only the names of folders hold: `key=value/`, as Hive, Spark, DuckDB and pyarrow partition tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

from diva_ray.errors import InputError

NULL = "__HIVE_DEFAULT_PARTITION__"
Value = int | str | None


def folder_values(
    files: list[str], base: str, inside: Iterable[str], option: str
) -> tuple[pa.Schema, dict[str, tuple[Value, ...]]]:
    """Return the columns that folders below `base` name, and each file's values of them.

    A column of that name inside the files wins. Values are integers where all of a key are written as integers are (a
    leading zero would be lost), else strings; null for Hive's null and for a file without the key.

    Raises:
        InputError: a name that is not UTF-8 once decoded.
    """
    words = {file: _words(file[len(base.rstrip("/")) :], file, option) for file in files}
    keys = [key for key in dict.fromkeys(key for found in words.values() for key in found) if key not in set(inside)]
    whole = {key: all(_whole(found.get(key)) for found in words.values()) for key in keys}
    whole = {key: yes and any(found.get(key) for found in words.values()) for key, yes in whole.items()}
    values = {
        file: tuple(int(word) if whole[key] and (word := found.get(key)) else found.get(key) for key in keys)
        for file, found in words.items()
    }
    return pa.schema([(key, pa.int64() if whole[key] else pa.string()) for key in keys]), values


def _words(below: str, file: str, option: str) -> dict[str, str | None]:
    found = {}
    for folder in below.split("/")[:-1]:
        key, sign, word = folder.partition("=")
        if key and sign:
            try:
                found[unquote(key, errors="strict")] = None if word == NULL else unquote(word, errors="strict")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{option}: names of folders must be UTF-8 once decoded, got {folder} at {file}. Rename it."
                ) from error
    return found


def _whole(word: str | None) -> bool:
    """Return whether a word is null or an int64 as an integer is written."""
    if word is None:
        return True
    return bool(re.fullmatch("0|-?[1-9][0-9]{0,18}", word)) and -(2**63) <= int(word) < 2**63


def append(rows: pa.Table, columns: list[str], schema: pa.Schema, values: tuple[Value, ...]) -> pa.Table:
    """Return rows with those of `columns` that a file's folders hold: `values`, in the order of `schema`."""
    for field, value in zip(schema, values, strict=True):
        if field.name in columns:
            rows = rows.append_column(field, pa.repeat(pa.scalar(value, field.type), rows.num_rows))
    return rows
