"""Names of classes that Hugging Face's libraries keep beside whole numbers, in the metadata of a schema."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diva_ray.data.columns import is_list, storage_type
from diva_ray.errors import InputError

KEY = b"huggingface"


def class_names(schema: pa.Schema) -> dict[str, pa.Array]:
    """Return the names of the classes of every ClassLabel column (or list of them), by column."""
    try:
        features = json.loads((schema.metadata or {}).get(KEY, b"{}"))["info"]["features"]
        found = {name: _names(feature) for name, feature in features.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # another library's, or none
        return {}
    return {
        name: pa.array(names, pa.string())
        for name, names in found.items()
        if names and name in schema.names and _counts(schema.field(name).type)
    }


def _names(feature: Any) -> list[str] | None:
    """Return the names of a feature, or of those in its list: [feature] or {"feature": ...}, as versions have it."""
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    label = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return [str(name) for name in feature.get("names") or []] if label else None


def _counts(kind: pa.DataType) -> bool:
    """Return whether values are whole numbers, or lists of them."""
    kind = storage_type(kind)
    return pa.types.is_integer(kind.value_type if is_list(kind) else kind)


def without_labels(table: pa.Table) -> pa.Table:
    """Return the table, ClassLabels still as numbers; one below 0, which stands for no label, becomes null."""
    for name in class_names(table.schema):
        column, k = table[name], table.schema.get_field_index(name)
        if pa.types.is_signed_integer(column.type):
            field = table.schema.field(k).with_nullable(True)
            table = table.set_column(k, field, pc.if_else(pc.less(column, 0), None, column))
    return table


def with_names(schema: pa.Schema, classes: dict[str, pa.Array]) -> pa.Schema:
    """Return the schema of the rows after `to_names`."""
    for name in classes:
        kind = pa.list_(pa.string()) if is_list(schema.field(name).type) else pa.string()
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    return schema


def to_names(column: pa.ChunkedArray, names: pa.Array, name: str, where: str) -> pa.ChunkedArray:
    """Return classes by name; a number below 0, which stands for no label, becomes null.

    Raises:
        InputError: a number that has no name.
    """
    if is_list(column.type):
        parts = [_lists(part, names, name, where) for part in column.chunks]
        return pa.chunked_array(parts, pa.list_(pa.string()))
    given = column.cast(pa.int64())
    most = pc.max(given).as_py()
    if most is not None and most >= len(names):
        raise InputError(
            f"data.path: classes of column `{name}` must have one of its {len(names)} names, got {most} at {where}. "
            "Fix the dataset, or its features."
        )
    return names.take(pc.if_else(pc.less(given, 0), None, given))


def _lists(part: pa.Array, names: pa.Array, name: str, where: str) -> pa.Array:
    part = part.cast(pa.list_(pa.int64()))
    inside = to_names(pa.chunked_array([part.flatten()]), names, name, where)
    lengths = pc.fill_null(pc.list_value_length(part), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    flat = pa.concat_arrays(inside.chunks) if inside.num_chunks else pa.array([], pa.string())
    return pa.ListArray.from_arrays(offsets, flat, mask=part.is_null() if part.null_count else None)
