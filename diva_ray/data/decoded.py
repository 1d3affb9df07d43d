"""Pictures that are decoded already (arrays, tensors, PIL images) as bytes of files, which every reader takes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from diva_ray.config import EmbedConfig
from diva_ray.data.decode import Pictures
from diva_ray.errors import InputError
from diva_ray.pictures import turned, upright

PICTURES = Pictures("/", EmbedConfig().most_pixels)
CHANNELS = (1, 3, 4)


def with_pictures_as_bytes(data: Any) -> Any:
    """Return a mapping of arrays, a pandas DataFrame, an Arrow table or a Ray Dataset with PNG in place of pixels; all
    else as it is. A Ray Dataset is mapped on its workers."""
    kind = type(data).__module__
    if kind.startswith("datasets."):
        return data
    if isinstance(data, Mapping):
        return {name: pictures_as_bytes(values) for name, values in data.items()}
    if kind.startswith("ray.data."):
        schema = data.schema()
        if schema is None or not any(map(_is_pixels, schema.types)):
            return data
        return data.map_batches(_columns_as_bytes, batch_size=64, batch_format="pyarrow")
    if isinstance(data, pa.Table):
        return _columns_as_bytes(data)
    return _frame_as_bytes(data) if hasattr(data, "iloc") else data


def pictures_as_bytes(values: Any) -> Any:
    """Return encoded pictures for PIL images, arrays or tensors (a list, None where one is missing, or all in one);
    else as is."""
    whole = isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim in (3, 4)
    first = next((one for one in values if one is not None), None) if isinstance(values, (list, tuple)) else None
    if whole or _is_picture(first):
        return [None if picture is None else png(open_picture(picture)) for picture in values]
    return values


def open_picture(given: Any) -> Image.Image:
    """Return a picture as `pictures.upright` has it; grey ones stay grey. Tensors may have their channels first.

    Raises:
        InputError: an array or tensor of another type or shape.
        RefusedError: bytes that cannot be decoded.
    """
    if isinstance(given, Image.Image):
        held = turned(given)
        return held if held.mode in ("L", "RGB") and "transparency" not in held.info else upright(held)
    if isinstance(given, bytes):
        return PICTURES.open(given)
    pixels = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    if isinstance(given, torch.Tensor) and pixels.ndim == 3 and pixels.shape[2] not in CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (2, 3, 4))):
        raise InputError(
            f"pictures: arrays must be uint8 of shape (height, width) or (height, width, 3), got {pixels.dtype} of "
            f"shape {pixels.shape}. Convert the picture."
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _is_picture(value: Any) -> bool:
    """Return whether a value is a decoded picture."""
    array = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3)
    return array or isinstance(value, Image.Image)


def _is_pixels(kind: Any) -> bool:
    """Return whether a column of this type holds decoded pictures: tensors of bytes, of one shape or of many."""
    if not isinstance(kind, pa.BaseExtensionType) or getattr(kind, "value_type", None) != pa.uint8():
        return False
    shape = getattr(kind, "shape", ())
    return len(shape) in (2, 3)


def _frame_as_bytes(frame: Any) -> Any:
    """Return a pandas DataFrame with PNG in place of pixels."""
    for k, name in enumerate(frame.columns if frame.columns.is_unique else ()):
        values = frame.iloc[:, k].tolist() if frame.dtypes.iloc[k].kind == "O" else []
        found = pictures_as_bytes(values)
        frame = frame if found is values else frame.assign(**{name: found})
    return frame


def _columns_as_bytes(rows: pa.Table) -> pa.Table:
    """Return a table with PNG in place of pixels."""
    for k, name in enumerate(rows.column_names):
        if _is_pixels(rows.schema.field(k).type):
            found = [one for chunk in rows.column(k).chunks for one in pictures_as_bytes(list(_pixels(chunk)))]
            rows = rows.set_column(k, name, pa.array(found, pa.binary()))
    return rows


def _pixels(chunk: Any) -> Iterator[np.ndarray | None]:
    """Yield the pixels of every picture, None where one is missing."""
    here = chunk.drop_null() if chunk.null_count else chunk
    fixed = isinstance(here, pa.FixedShapeTensorArray)
    found = iter(here.to_numpy_ndarray() if fixed else here.to_numpy(zero_copy_only=False)) if len(here) else iter(())
    for there in chunk.is_valid().to_pylist():
        yield next(found) if there else None


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
