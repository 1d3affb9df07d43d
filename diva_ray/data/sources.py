"""Whatever a user has, as a table: a path, a Ray Dataset, Arrow, pandas, arrays, or the built-in digits."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from diva_ray.data.columns import element_type, is_list, is_number, storage_type
from diva_ray.data.reader import first_line
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table, from_arrays, from_arrow, open_parquet
from diva_ray.errors import InputError

SHOWN = (
    "image",
    "picture",
    "photo",
    "text",
    "caption",
    "sentence",
    "name",
    "raw_text",
    "raw_caption",
)  # columns the report shows unasked
CORE = 300  # digits in the built-in table that is extended by the others
KEYS = ("data.id", "data.group", "data.source")


def open_data(data: Any, builtin: str | None, noise: float, seed: int, option: str = "data.path") -> Table | Any:
    """Return the table of a path, Arrow table, DataFrame, mapping of arrays or built-in; a Ray Dataset as it is."""
    if data is None:
        return open_builtin(builtin, noise, seed, option)
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        return open_parquet(str(data), option)
    if isinstance(data, Mapping):
        return from_arrays(dict(data), option=option)
    kind = f"{type(data).__module__}.{type(data).__qualname__}"
    if isinstance(data, Table) or kind.startswith("ray.data."):
        return data
    if isinstance(data, pa.Table):
        return from_arrow(data, "the given Arrow table", option)
    if isinstance(data, pa.RecordBatch) or (hasattr(data, "columns") and hasattr(data, "__arrow_c_stream__")):
        return from_arrow(_from_frame(data), f"the given {type(data).__name__}", option)
    raise InputError(
        f"{'data' if option == 'data.path' else option}: must be a path, a Ray Dataset, an Arrow table, a DataFrame or "
        f"a mapping of arrays, got {kind}. "
        "Arrays go in as {'features': X, 'label': y}."
    )


def _from_frame(data: Any) -> pa.Table:
    """Return a DataFrame (pandas, polars, ...) or a record batch as a table; a pandas index is a column if it has a
    name of its own."""
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    names = list(map(str, data.columns)) if hasattr(data, "columns") else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"data: columns must have different names, got `{twice[0]}` twice in the DataFrame. Rename one of them."
        )
    try:
        if type(data).__module__.partition(".")[0] != "pandas":  # "pandas" alone since its version 3
            return pa.table(data)
        named = any(name is not None and name not in data.columns for name in data.index.names)
        return pa.Table.from_pandas(data, preserve_index=named)
    except (pa.ArrowException, TypeError, ValueError) as error:
        told = "; ".join(map(first_line, error.args))
        raise InputError(
            f"data: every column must hold one type, got {told} in the DataFrame. Convert it first."
        ) from error


def open_builtin(builtin: str | None, noise: float, seed: int, option: str) -> Table:
    """Return a built-in table by its name."""
    if builtin == "digits":
        return from_arrow(digits(noise, seed), f"scikit-learn's digits, {noise:.0%} of the labels flipped")
    if builtin in ("digits_core", "digits_pool"):
        rows = digits(noise if builtin == "digits_pool" else 0.0, seed)
        order = np.random.default_rng(seed + 1).permutation(len(rows))
        some = order[:CORE] if builtin == "digits_core" else order[CORE:]
        kind = "with their right labels" if builtin == "digits_core" else f"{noise:.0%} of the labels flipped"
        return from_arrow(rows.take(pa.array(some)), f"{len(some):,} of scikit-learn's digits, {kind}", option)
    if builtin == "digits_bands":
        return from_arrow(
            digits_bands(noise, seed), f"scikit-learn's digits in three bands, {noise:.0%} of labels flipped"
        )
    if builtin == "digits_augmented":
        return from_arrow(digits_augmented(seed), "scikit-learn's digits, five copies of each")
    raise InputError(f"{option}: a table must be named, got none. Set `{option}`.")


def digits(noise: float, seed: int) -> pa.Table:
    """Return scikit-learn's 1,797 digits (UCI, 64 pixels) as PNG and features, `noise` of the labels flipped.

    A flipped label is drawn uniformly from the nine others; `true_label` keeps the truth.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    if not 0 <= noise < 1:
        raise InputError(f"data.noise: must be at least 0 and below 1, got {noise}. Change `data.noise`.")
    pixels, truth = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    flipped = generator.permutation(len(truth))[: round(noise * len(truth))]
    label = truth.copy()
    label[flipped] = (truth[flipped] + generator.integers(1, 10, len(flipped))) % 10
    pictures = []
    for row in pixels:
        buffer = io.BytesIO()
        Image.fromarray(np.uint8(255 - row.reshape(8, 8) * 15)).resize((64, 64), Image.Resampling.NEAREST).save(
            buffer, "PNG"
        )
        pictures.append(buffer.getvalue())
    flat = pa.array(pixels.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "id": pa.array(np.arange(len(truth))),
            "features": pa.FixedSizeListArray.from_arrays(flat, 64),
            "label": pa.array(label),
            "true_label": pa.array(truth),
            "image": pa.array(pictures, pa.binary()),
        }
    )


def digits_bands(noise: float, seed: int) -> pa.Table:
    """Return the digits in three bands: pixels (64), directions of strokes (32), random numbers (64)."""
    table = digits(noise, seed)
    pixels = np.stack(table["features"].to_numpy()).reshape(-1, 8, 8)
    random = np.random.default_rng(seed + 2).standard_normal((len(pixels), 64))

    def band(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])

    bands = {
        "pixels": band(pixels.reshape(len(pixels), 64)),
        "strokes": band(strokes(pixels)),
        "random": band(random),
    }
    rest = table.drop_columns(["features"])
    return pa.table({**dict(zip(rest.column_names, rest.columns, strict=True)), **bands})


def strokes(pictures: np.ndarray) -> np.ndarray:
    """Return directions of strokes in each quarter of pictures (n, h, w): histograms of oriented gradients (Dalal and
    Triggs 2005), eight directions, (n, 32)."""
    down, right = (np.asarray(np.gradient(pictures, axis=axis)) for axis in (1, 2))
    sector = ((np.arctan2(down, right) / np.pi + 1) * 4).astype(int) % 8
    size, (h, w) = np.hypot(down, right), (extent // 2 for extent in pictures.shape[1:])
    halves = [(slice(None, h), slice(None, w)), (slice(None, h), slice(w, None)), (slice(h, None), slice(None, w)),
              (slice(h, None), slice(w, None))]  # fmt: skip
    return np.stack([(size * (sector == k))[:, a, b].sum((1, 2)) for k in range(8) for a, b in halves], 1)


def digits_augmented(seed: int) -> pa.Table:
    """Return 600 of scikit-learn's digits, each as it is, flipped either way, shifted and tilted."""
    from sklearn.datasets import load_digits

    from diva_ray.data.transforms import augmented

    pixels, label = load_digits(return_X_y=True)
    some = np.random.default_rng(seed).permutation(len(label))[:600]
    return augmented([np.uint8(row.reshape(8, 8) * 15) for row in pixels[some]], label[some].tolist(), seed=seed)


def find_columns(
    schema: pa.Schema, options: Any, builtin: bool, *, labelled: bool = True, partly: Mapping[str, str] | None = None
) -> tuple[Columns, tuple[str, ...]]:
    """Return which columns are what, and the columns to show; every named column must be there.

    `partly` are columns that not all files have, and the first file without each: nobody may use them.

    Raises:
        InputError: a missing column, or one whose type cannot serve.
    """
    named = {"data.features": _names("features", options.features), "data.label": [options.label] if labelled else []}
    partly = partly or {}
    usual = "id" if "id" in (*schema.names, *partly) else None
    identifier = None if options.id == "none" else options.id or usual
    if identifier:
        named["data.id"] = [identifier]
    for option in ("weight", "validation_weight", "group", "source", "offset", "truth"):
        if getattr(options, option):
            named[f"data.{option}"] = [getattr(options, option)]
    if options.show is not None and not (isinstance(options.show, str) and options.show in ("none", "auto")):
        named["data.show"] = _names("show", options.show)
    _check_bands(named["data.features"], pair=not labelled)
    for option, names in named.items():
        for name in names:
            if name in partly:
                raise InputError(
                    f"{option}: every file must have column `{name}`, got none at {partly[name]}. Fix the table or "
                    f"`{option}`{'=none' if option == 'data.id' else ''}."
                )
            if name not in schema.names:
                pairs = ", or use `task=pairs` for pairs without labels" if len(named["data.features"]) == 2 else ""
                hints = {"data.features": ", one name or a list: `data.features=[a,b]`", "data.label": pairs}
                raise InputError(
                    f"{option}: column `{name}` must be in the table, got columns {', '.join(schema.names[:20])}. "
                    f"Change `{option}`{hints.get(option, '')}."
                )
            if schema.names.count(name) > 1:
                raise InputError(
                    f"{option}: column `{name}` must be there once, got {schema.names.count(name)}. Fix the table."
                )
            if option in KEYS and pa.types.is_nested(storage_type(schema.field(name).type)):
                kind = schema.field(name).type
                raise InputError(
                    f"{option}: column `{name}` must hold numbers or strings, got {kind}. Change `{option}`."
                )
    for name in named["data.features"]:
        kind = element_type(schema.field(name).type)
        if not is_number(kind):
            raise InputError(
                f"data.features: column `{name}` must hold numbers or lists of numbers, got {schema.field(name).type}. "
                "Change `data.features`."
            )
    truth = options.truth or ("true_label" if builtin and "true_label" in schema.names else None)
    columns = Columns(
        tuple(named["data.features"]), options.label if labelled else "", identifier, options.weight,
        options.validation_weight, options.group, options.source, options.offset, truth,
    )  # fmt: skip
    unasked = _shown(schema, several=not labelled) if isinstance(options.show, str) and options.show == "auto" else []
    return columns, tuple(named.get("data.show", unasked))


def _names(option: str, given: Any) -> list[str]:
    """Return the columns that an option names, one or several."""
    names = list(given) if isinstance(given, (list, tuple)) else [given]
    for name in names:
        if not isinstance(name, (str, int)):
            raise InputError(
                f"data.{option}: must be a column's name or a list of names, got a {type(name).__name__}. Arrays go in "
                "as {'features': X, 'label': y}."
            )
    return list(map(str, names))


def _check_bands(features: list[str], *, pair: bool) -> None:
    """Raise unless there is a band, or two that make a pair."""
    if not features:
        raise InputError("data.features: at least one column must be named, got none. Change `data.features`.")
    if pair and len(set(features)) != 2:
        raise InputError(
            f"data.features: a pair must have two bands, got {len(set(features))} ({', '.join(features)}). Name two "
            "columns in `data.features`, or change `task`."
        )
    twice = [name for name in features if features.count(name) > 1]
    if twice:
        raise InputError(
            f"data.features: every band must be named once, got `{twice[0]}` twice. Leave it out of `data.features`."
        )


def _shown(schema: pa.Schema, *, several: bool) -> list[str]:
    """Return the first column of pictures or of texts by its name; of `several`, the first of either."""
    found: dict[bool, str] = {}
    for name in SHOWN:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and not is_list(kind) and (_is_text(kind) or _is_bytes(kind)):
            found.setdefault(_is_bytes(kind), name)
    return list(found.values())[: 2 if several else 1]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes, or the struct of bytes and a path that Hugging Face makes of a picture."""
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def task_of(schema: pa.Schema, label: str, task: str) -> str:
    """Return the task that the label's type means, or check the one that was asked for."""
    kind = schema.field(label).type
    element = element_type(kind)
    number = pa.types.is_floating(element) or pa.types.is_decimal(element)
    named = _is_text(element) or pa.types.is_integer(element) or pa.types.is_boolean(element)
    fits = {
        "classification": not is_list(kind) and named,
        "regression": not is_list(kind) and (number or pa.types.is_integer(element)),
        "multilabel": is_list(kind) and named,
        "vector": is_list(kind) and (number or pa.types.is_integer(element)),
    }
    if task == "auto":
        found = [name for name, fit in fits.items() if fit]
        if found:
            return found[0]
        task = "any task"
    elif task not in fits:
        raise InputError(f"task: must be auto, {', '.join(fits)} or pairs, got {task}. Change `task`.")
    if not fits.get(task):
        classes = task == ("multilabel" if is_list(kind) else "classification")
        cast = "Cast them to integers, or change" if number and classes else "Change"
        raise InputError(
            f"task: labels in column `{label}` must fit {task}, got {kind}. {cast} `task` or `data.label`."
        )
    return task
