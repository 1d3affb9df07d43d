"""Whatever a user has, as a table: a path, a Ray Dataset, Arrow, pandas, arrays, or the built-in digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from diva_ray.data.decoded import png
from diva_ray.data.table import Table, from_arrays, from_arrow, open_parquet
from diva_ray.errors import InputError, first_line

CORE = 300  # digits in the built-in table that is extended by the others


def open_data(data: Any, builtin: str | None, noise: float, seed: int, option: str = "data.path") -> Table | Any:
    """Return the table of a path, Arrow table, DataFrame, mapping of arrays or built-in; a Ray Dataset as it is."""
    if data is None:
        return open_builtin(builtin, noise, seed, option)
    check_given(data, option)
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        return open_parquet(str(data), option)
    kind = _kind(data)
    if isinstance(data, Mapping) and not kind.startswith("datasets."):
        return from_arrays(dict(data), option=option)
    if isinstance(data, Table) or is_ray_dataset(data):
        return data
    if isinstance(data, pa.Table):
        return from_arrow(data, "the given Arrow table", option)
    rows = _from_hugging_face(data, kind) if kind.startswith("datasets.") else _from_frame(data)
    return from_arrow(rows, f"the given {type(data).__name__}", option)


def check_given(data: Any, option: str = "data.path", *, raw: bool = False) -> None:
    """Raise unless `data` is something that `open_data` opens, with what to give instead; `raw`: to be embedded."""
    kind = _kind(data)
    if isinstance(data, (str, Mapping, Table, pa.Table, pa.RecordBatch)) or hasattr(data, "__fspath__"):
        return
    lazy = type(data).__qualname__ == "LazyFrame"  # polars warns whoever asks it for its columns
    if kind.startswith(("datasets.", "ray.data.")) or (
        not lazy and hasattr(data, "columns") and hasattr(data, "__arrow_c_stream__")
    ):
        return
    first = data[0] if isinstance(data, (list, tuple)) and data else None
    words = isinstance(first, str) or getattr(getattr(data, "dtype", None), "kind", "") == "U"
    if lazy:
        hint = "Call `.collect()` first."
    elif isinstance(first, Mapping):
        hint = "Rows go in as pandas.DataFrame(rows) or pyarrow.Table.from_pylist(rows)."
    elif raw and words:
        hint = 'Texts go in as {"text": [...]}.'
    elif raw:
        hint = 'Pictures go in as {"image": [...]}, texts as {"text": [...]}.'
    else:
        hint = 'Arrays go in as {"features": X, "label": y}.'
    raise InputError(
        f"{'data' if option == 'data.path' else option}: must be a path, a Ray or Hugging Face Dataset, an Arrow "
        f"table, a DataFrame or a mapping of arrays, got {kind}. {hint}"
    )


def _kind(data: Any) -> str:
    return f"{type(data).__module__}.{type(data).__qualname__}"


def _from_hugging_face(data: Any, kind: str) -> pa.Table:
    """Return a dataset of the library `datasets` as a table; of several splits one must be chosen."""
    if isinstance(data, Mapping):
        splits = ", ".join(map(str, data))
        raise InputError(f"data: must be one split of a Hugging Face dataset, got {splits}. Give one: data['train'].")
    if not hasattr(data, "__len__"):
        raise InputError(
            f"data: a Hugging Face dataset must be in memory or on disk, got {kind}, which streams. Write it to "
            "Parquet and give the path."
        )
    return data.with_format("arrow")[:]


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
        raise InputError(_unconverted(data, error)) from error


def _unconverted(data: Any, error: Exception) -> str:
    """Return the message for a DataFrame that Arrow cannot hold, with the first such column of pandas' and its cure."""
    for k, name in enumerate(data.columns if hasattr(data, "iloc") else ()):
        try:
            pa.Table.from_pandas(data.iloc[:, [k]], preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError) as found:
            kind = str(data.dtypes.iloc[k])
            why = "" if kind.startswith("Sparse") else f" ({first_line(found.args[0])})"
            cure = "make it dense (`.sparse.to_dense()`)" if kind.startswith("Sparse") else "convert it"
            return (
                f"data: every column must hold one type that Arrow has, got {kind}{why} in column `{name}` of the "
                f"DataFrame. Leave it out where nothing needs it (`df.drop(columns=[{name!r}])`), or {cure}."
            )
    told = "; ".join(map(first_line, error.args)).rstrip(".")
    return f"data: every column must hold one type that Arrow has, got {told} in the DataFrame. Convert it first."


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


def is_ray_dataset(data: Any) -> bool:
    """Return whether these are rows of Ray Data, which is not imported for the question."""
    return type(data).__module__.startswith("ray.data.")


def digits(noise: float, seed: int) -> pa.Table:
    """Return scikit-learn's 1,797 digits (UCI, 64 pixels) as PNG and features, `noise` of the labels flipped.

    A flipped label is drawn uniformly from the nine others; `true_label` keeps the truth.
    """
    from sklearn.datasets import load_digits

    if not 0 <= noise < 1:
        raise InputError(f"data.noise: must be at least 0 and below 1, got {noise}. Change `data.noise`.")
    pixels, truth = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    flipped = generator.permutation(len(truth))[: round(noise * len(truth))]
    label = truth.copy()
    label[flipped] = (truth[flipped] + generator.integers(1, 10, len(flipped))) % 10
    small = (Image.fromarray(np.uint8(255 - row.reshape(8, 8) * 15)) for row in pixels)
    pictures = [png(one.resize((64, 64), Image.Resampling.NEAREST)) for one in small]
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
