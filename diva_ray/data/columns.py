"""Arrow columns to arrays without object arrays: vectors of any list type, numbers, keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from diva_ray.core.hashing import mixed
from diva_ray.errors import InputError

LISTS = pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray
Where = Callable[[int], str]  # names the place of a row for a person


def check_names(schema: pa.Schema, place: str, option: str = "data.path") -> None:
    """Raise for two columns of one name."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise InputError(
            f"{option}: columns must have different names, got `{twice[0]}` twice at {place}. Rename one of them."
        )


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the column as a single array; nothing is copied when it is one already."""
    if isinstance(column, pa.ChunkedArray):
        column = _decoded(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of no chunk
        column = pa.array([], column.type)
    if isinstance(column.type, pa.DictionaryType):
        column = column.dictionary_decode()
    return column


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionary, chunk by chunk: all dictionaries together may be more than the type of their
    numbers can count."""
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array([one.dictionary_decode() for one in column.chunks], column.type.value_type)


def in_one_chunk(table: pa.Table) -> pa.Table:
    """Return a table with one chunk a column; dictionaries that need larger numbers together get them."""
    fields = [
        one.with_type(pa.dictionary(pa.int32(), one.type.value_type, one.type.ordered)) if _overflows(column) else one
        for one, column in zip(table.schema, table.columns, strict=True)
    ]
    wide = pa.schema(fields, table.schema.metadata)
    return (table if wide == table.schema else table.cast(wide)).combine_chunks()


def _overflows(column: pa.ChunkedArray) -> bool:
    if not (pa.types.is_dictionary(column.type) and column.num_chunks > 1):
        return False
    try:
        column.combine_chunks()
    except pa.ArrowInvalid:
        return True
    return False


def take_rows(rows: pa.Table, order: np.ndarray) -> pa.Table:
    """Return the rows of a table in an order; its dictionaries are decoded."""
    plain = [_decoded(column) for column in rows.columns]
    return pa.table(plain, names=rows.column_names).take(pa.array(order))


VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary(), pa.bool8(): pa.bool_()}  # of few kernels


def without_views(schema: pa.Schema) -> pa.Schema:
    """Return the schema with strings and bytes in place of their views, true and false of bits in place of bytes."""
    kinds = [_without_views(field.type) for field in schema]
    if kinds == schema.types:
        return schema
    return pa.schema(
        [field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)], metadata=schema.metadata
    )


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) and kind.value_type in VIEWS:
        return pa.list_(kind.value_field.with_type(VIEWS[kind.value_type]))
    if pa.types.is_dictionary(kind) and kind.value_type in VIEWS:  # what polars calls categorical
        return pa.dictionary(kind.index_type, VIEWS[kind.value_type], kind.ordered)
    return VIEWS.get(kind, kind)


def words_of(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the sources of rows as they are, null where a number is none, and as strings."""
    found = nan_as_null(column)
    return found, as_words(found)


def as_words(column: pa.Array) -> pa.Array:
    """Return every value as a string; bytes that are no text in hexadecimal digits, numbers of UUIDs too."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    fixed = pa.types.is_fixed_size_binary(column.type)
    if not (fixed or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return column.cast(pa.string())
    found = column.dictionary_encode()
    words = [value.hex() if fixed else _text_or_digits(value) for value in found.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(found.indices)


def _text_or_digits(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are vectors (tensor extensions count)."""
    kind = storage_type(kind)
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Return whether values are texts."""
    kind = storage_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_picture(kind: pa.DataType) -> bool:
    """Return whether values are encoded pictures: bytes, or {bytes, path} as Hugging Face has them."""
    kind = storage_type(kind)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type under an extension or a dictionary."""
    if isinstance(kind, pa.DictionaryType):
        return storage_type(kind.value_type)
    return storage_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def element_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a vector's elements, or of the value itself."""
    return storage_type(storage_type(kind).value_type) if is_list(kind) else storage_type(kind)


def to_matrix(
    column: pa.ChunkedArray | pa.Array, name: str, where: Where | str, option: str = "data.features"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (values (n, d), missing (n,) or None) of a numeric or vector column.

    Nothing is copied for fixed-size lists, tensors and numbers without nulls. Missing rows hold zeros; d is 0 when
    every row of a variable-length column is missing.

    Raises:
        InputError: not numeric, vectors of unequal or no length, a null inside a vector.
    """
    array = one_chunk(column)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    present = np.ones(len(array), bool) if missing is None else ~missing
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        flat, owner = array.values.slice(array.offset * width, len(array) * width), np.arange(len(array))
    elif is_list(array.type):
        lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
        width, owner = _one_length(lengths, name, where, option), np.flatnonzero(present)
        flat = one_chunk(array.flatten())
    else:
        width, flat, owner = 1, array, np.arange(len(array))
    if width == 0 and present.any():
        raise InputError(
            f"{option}: vectors of column `{name}` must hold numbers, got length 0 at {_place(where, 0)}. Change "
            f"`{option}`."
        )
    found = _numbers(flat, name, where, option, owner=owner, width=width, present=present).reshape(len(owner), width)
    if missing is None:
        return found, None
    values = np.zeros((len(array), width), found.dtype)
    values[present] = found if len(owner) < len(array) else found[present]
    return values, missing


def _place(where: Where | str, row: int) -> str:
    return f"{where}, row {row}" if isinstance(where, str) else where(row)


def _one_length(lengths: np.ndarray, name: str, where: Where | str, option: str) -> int:
    """Return the length of every vector (-1 marks missing ones), 0 if all are missing."""
    present = lengths[lengths >= 0]
    width = int(present[0]) if len(present) else 0
    if (present != width).any():
        row = int(np.flatnonzero((lengths >= 0) & (lengths != width))[0])
        raise InputError(
            f"{option}: vectors of column `{name}` must have equal length, got {width} and {lengths[row]} "
            f"at {_place(where, row)}. Fix the table or change `{option}`."
        )
    return width


def is_number(kind: pa.DataType) -> bool:
    """Return whether values of a type can be features: numbers, and true or false as 1 or 0."""
    tests = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _numbers(
    flat: pa.Array, name: str, where: Where | str, option: str, *, owner: np.ndarray, width: int, present: np.ndarray
) -> np.ndarray:
    """Return a flat numeric Arrow array as numpy; `owner` is the row of every vector: only absent rows may be null."""
    if pa.types.is_decimal(flat.type):
        flat = flat.cast(pa.float64())
    if pa.types.is_boolean(flat.type):
        flat = flat.cast(pa.uint8())
    kind = flat.type
    if not is_number(kind):
        raise InputError(
            f"{option}: column `{name}` must hold numbers or lists of numbers, got {kind} at {_place(where, 0)}. "
            f"Change `{option}`."
        )
    if flat.null_count:
        holes = owner[np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False)) // width]
        holes = holes[present[holes]]
        if len(holes):
            raise InputError(
                f"{option}: column `{name}` must hold no null inside a vector, got one at "
                f"{_place(where, int(holes[0]))}. "
                "Fix the table, or make the whole vector null (a missing modality)."
            )
        flat = pc.fill_null(flat, pa.scalar(0, kind) if not pa.types.is_float16(kind) else np.float16(0))
    return flat.to_numpy(zero_copy_only=False)


def finite_values(column: pa.Array, name: str, option: str, where: Where) -> np.ndarray:
    """Return a finite numeric column as (n, d), or raise with the row."""
    values, absent = to_matrix(column, name, where, option)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    bad = ~np.isfinite(values).all(1)
    bad = bad if absent is None else bad | absent
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        found = "null" if absent is not None and absent[row] else values[row][~np.isfinite(values[row])][0]
        raise InputError(
            f"{option}: column `{name}` must be finite, got {found} at {where(row)}. Fix the table or `{option}`."
        )
    return values


def check_nulls(column: pa.Array, name: str, option: str, where: Where, *, classes: bool = False) -> None:
    """Raise for a null, a number that is none, or a null inside a list of classes; `classes`: it is a ClassLabel, which
    has -1 for one."""
    given, inside = column, ""
    column = column if option == "data.label" else nan_as_null(column)  # a label must be finite, which is asked later
    if is_list(column.type) and not column.null_count and isinstance(column, LISTS):
        parents = pc.list_parent_indices(column)
        column, inside = column.flatten(), " inside a list"
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        row = parents[row].as_py() if inside else row
        found = "one" if inside or given[row].as_py() is None else "nan"
        stored = " (-1 of a ClassLabel is none)" if classes else ""
        raise InputError(
            f"{option}: column `{name}` must hold no null, got {found}{inside} at {where(row)}{stored}. Fix the table, "
            f"copy the rows without nulls (README, Your own table), or change `{option}`."
        )


def nan_as_null(column: pa.Array) -> pa.Array:
    """Return a column with nulls for numbers that are none, as NumPy writes what is missing."""
    if not pa.types.is_floating(column.type):
        return column
    nan = np.isnan(column.to_numpy(zero_copy_only=False))  # of nulls too
    return pc.if_else(pa.array(nan), pa.scalar(None, column.type), column) if nan.any() else column


def row_keys(column: pa.Array, seed: int = 0) -> np.ndarray:
    """Return a stable 64-bit key of every value: the same for a value wherever it lies (splitmix64, SipHash)."""
    plain = storage_type(column.type)
    if pa.types.is_integer(plain):
        keys = mixed(torch.from_numpy(column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)))
        if seed:
            keys = mixed(keys ^ torch.from_numpy(np.array(seed * 0x9E3779B97F4A7C15 % 2**64, np.uint64).view(np.int64)))
        return keys.numpy().view(np.uint64)
    from pandas import util  # a quarter of a second, which tables of numbers are spared in every process

    hash_array: Any = util.hash_array
    if pa.types.is_floating(plain):  # of any width: the same number is the same group in another table
        column = column.cast(pa.float64())
    return hash_array(column.to_numpy(zero_copy_only=False), hash_key=f"diva_ray{seed:08d}")


def encode(column: pa.Array, known: pa.Array) -> np.ndarray:
    """Return the code of every value in the sorted values `known`, -1 for nulls."""
    return pc.index_in(column, known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
