"""Arrow columns to arrays without object arrays: vectors of any list type, numbers, keys."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from diva_ray.errors import InputError


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the column as a single array; nothing is copied when it is one already."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of no chunk
        column = pa.array([], column.type)
    if isinstance(column.type, pa.DictionaryType):
        column = column.dictionary_decode()
    return column


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are vectors (tensor extensions count)."""
    kind = storage_type(kind)
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type under an extension or a dictionary."""
    if isinstance(kind, pa.DictionaryType):
        return storage_type(kind.value_type)
    return storage_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def element_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a vector's elements, or of the value itself."""
    return storage_type(kind).value_type if is_list(kind) else storage_type(kind)


def to_matrix(column: pa.ChunkedArray | pa.Array, name: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (values (n, d), missing (n,) or None) of a numeric or vector column.

    Nothing is copied for fixed-size lists, tensors and numbers without nulls. Missing rows hold zeros.

    Raises:
        InputError: not numeric, vectors of unequal length, a null inside a vector.
    """
    array = one_chunk(column)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        flat = array.values.slice(array.offset * width, len(array) * width)
    elif is_list(array.type):
        return _ragged(array, missing, name, where)
    else:
        width, flat = 1, array
    values = _numbers(flat, name, where, missing is not None).reshape(len(array), width)
    if missing is not None:
        values = np.where(missing[:, None], values.dtype.type(0), values)
    return values, missing


def _ragged(array: pa.Array, missing: np.ndarray | None, name: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a variable-length list column as a matrix."""
    lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    present = lengths[lengths >= 0]
    width = int(present[0]) if len(present) else 0
    if (present != width).any():
        row = int(np.flatnonzero((lengths >= 0) & (lengths != width))[0])
        raise InputError(
            f"data.features: vectors of column `{name}` must have equal length, got {width} and {lengths[row]} "
            f"at {where} + row {row}. Fix the table or choose `data.features`."
        )
    flat = _numbers(array.flatten(), name, where, False)
    if missing is None:
        return flat.reshape(len(array), width), None
    values = np.zeros((len(array), width), flat.dtype)
    values[~missing] = flat.reshape(-1, width)
    return values, missing


def _numbers(flat: pa.Array, name: str, where: str, nulls_are_rows: bool) -> np.ndarray:
    """Return a flat numeric Arrow array as numpy."""
    kind = flat.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise InputError(
            f"column `{name}` must hold numbers or lists of numbers, got {kind} at {where}. "
            "Choose other columns (`data.features`, `data.label`)."
        )
    if flat.null_count:
        if not nulls_are_rows:
            raise InputError(
                f"column `{name}` must hold no null inside a vector, got {flat.null_count} at {where}. "
                "Fix the table, or make the whole vector null (a missing modality)."
            )
        flat = pc.fill_null(flat, pa.scalar(0, kind) if not pa.types.is_float16(kind) else np.float16(0))
    if pa.types.is_boolean(kind):
        flat = flat.cast(pa.uint8())
    return flat.to_numpy(zero_copy_only=False)


def row_keys(column: pa.Array, seed: int = 0) -> np.ndarray:
    """Return a stable 64-bit key of every value: the same for a value wherever it lies (splitmix64, SipHash)."""
    plain = storage_type(column.type)
    if pa.types.is_integer(plain):
        values = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False).view(np.uint64)
        return pd.util.hash_array(values + np.uint64(seed))
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False), hash_key=f"diva_ray{seed:08d}")


def encode(column: pa.Array, known: pa.Array) -> np.ndarray:
    """Return the code of every value in the sorted values `known`, -1 for nulls."""
    return pc.index_in(column, known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
