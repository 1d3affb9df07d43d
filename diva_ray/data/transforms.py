"""Named transforms of pictures, and the table of augmented copies that the augment job reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter, ImageOps

from diva_ray.data.decode import RefusedError
from diva_ray.data.decoded import open_picture, png
from diva_ray.errors import InputError, first_line

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]
IDENTITY = "identity"


def _shift(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Up to an eighth of each side, edges repeated: what a sloppy crop does."""
    reach = max(1, picture.width // 8), max(1, picture.height // 8)
    dx, dy = (int(generator.integers(-r, r + 1)) for r in reach)
    pixels = np.asarray(picture)
    rows = np.clip(np.arange(picture.height) - dy, 0, picture.height - 1)
    columns = np.clip(np.arange(picture.width) - dx, 0, picture.width - 1)
    return Image.fromarray(pixels[rows][:, columns])


def _crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A window of four fifths of each side, brought back to size."""
    width, height = max(1, round(0.8 * picture.width)), max(1, round(0.8 * picture.height))
    left = int(generator.integers(0, picture.width - width + 1))
    top = int(generator.integers(0, picture.height - height + 1))
    return picture.resize(picture.size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def _tilt(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Up to 15 degrees either way: a camera held by hand."""
    return picture.rotate(float(generator.uniform(-15, 15)), Image.Resampling.BILINEAR)


TRANSFORMS: dict[str, Transform] = {
    IDENTITY: lambda picture, _: picture,
    "hflip": lambda picture, _: ImageOps.mirror(picture),  # harmless for most objects, wrong for text and digits
    "vflip": lambda picture, _: ImageOps.flip(picture),  # things seldom stand on their heads
    "rotate90": lambda picture, _: picture.transpose(Image.Transpose.ROTATE_90),  # fine from above, wrong elsewhere
    "rotate180": lambda picture, _: picture.transpose(Image.Transpose.ROTATE_180),
    "tilt": _tilt,
    "shift": _shift,
    "crop": _crop,
    "blur": lambda picture, _: picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 32)),
    "invert": lambda picture, _: ImageOps.invert(picture.convert("RGB")).convert(picture.mode),
}


def augmented(
    pictures: Sequence[Any],
    labels: Sequence[Any],
    transforms: Sequence[str] = (IDENTITY, "hflip", "vflip", "shift", "tilt"),
    encoder: Callable[[list[Image.Image]], Any] | None = None,
    *,
    seed: int = 0,
    batch: int = 256,
) -> pa.Table:
    """Return a table in which every picture occurs once under every transform, for `diva_ray.augment`.

    Rows of one picture lie together. Columns: `id`, `features`, `label`, `transform` (`data.source`), `original`
    (`data.group`: the picture's number), `image` (PNG, for the report).

    Args:
        pictures: PIL images, encoded bytes, or uint8 arrays (height, width) or (height, width, 3); all are held.
        labels: one for each picture.
        transforms: names in `TRANSFORMS`; `identity` must be among them.
        encoder: list of PIL images -> features (n, d); None: the pixels, / 255, of pictures of one size.
        seed: of what is random in a transform, with the places of picture and transform: the same copies for the same
            lists.
        batch: pictures encoded at a time.

    Raises:
        InputError: an unknown transform, or no identity; a picture that does not open, or is of another size where no
            encoder is given; labels that are no column; an encoder that returns no row of finite numbers for a picture.
    """
    check_transforms(transforms)
    if encoder is not None and not callable(encoder):
        raise InputError(
            f"encoder: must be a function from a list of pictures to their features, got {encoder!r}. Names are "
            "for `diva_ray.embed`."
        )
    pictures, labels = (one if hasattr(one, "__len__") else list(one) for one in (pictures, labels))
    given = _labels(pictures, labels)
    for name, value, least in (("seed", seed, 0), ("batch", batch, 1)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name}: must be a whole number of at least {least}, got {value!r}. Change `{name}`.")
    features: list[np.ndarray] = []
    images, first = [], None
    for start in range(0, len(pictures), batch):
        copies = []
        for k, one in enumerate(pictures[start : start + batch], start):
            picture = _opened(one, k)
            for t, name in enumerate(transforms):
                copies.append(TRANSFORMS[name](picture, np.random.default_rng([seed, k, t])))
        first = first or copies[0]
        if encoder is None:
            features.append(_pixels(copies, first, start, len(transforms)))
        else:
            width = features[0].shape[1] if features else None
            features.append(_encoded(encoder(copies), len(copies), width))
        images += [png(copy) for copy in copies]
    flat = np.concatenate(features)
    copies_each = len(transforms)
    original = np.repeat(np.arange(len(pictures)), copies_each)
    return pa.table(
        {
            "id": pa.array(np.arange(len(original))),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
            "label": given.take(pa.array(original)),
            "transform": pa.array(list(transforms) * len(pictures)),
            "original": pa.array(original),
            "image": pa.array(images, pa.binary()),
        }
    )


def _labels(pictures: Sequence[Any], labels: Sequence[Any]) -> pa.Array:
    """Return the labels as a column, one for each picture."""
    if not len(pictures):
        raise InputError("augmented: there must be pictures, got none. Give at least one.")
    if len(pictures) != len(labels):
        raise InputError(
            f"augmented: there must be a label for every picture, got {len(pictures)} pictures and {len(labels)} "
            "labels. Give one of each."
        )
    try:
        return pa.array(list(labels))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            "augmented: labels must be of one kind, numbers, strings or lists of them, got "
            f"{first_line(error)}. Change `labels`."
        ) from error


def _opened(given: Any, k: int) -> Image.Image:
    """Return picture number k."""
    try:
        return open_picture(given)
    except InputError as error:
        raise InputError(f"augmented: picture {k:,}: {error}") from error
    except (OSError, ValueError, SyntaxError, RefusedError) as error:  # as Pillow and `decode` raise them
        raise InputError(f"augmented: every picture must open, got {error} at picture {k:,}. Leave it out.") from error


def _pixels(copies: list[Image.Image], first: Image.Image, start: int, each: int) -> np.ndarray:
    """Return pictures of the size and mode of the first as rows of pixels, (n, d); they begin with number `start`."""
    for k, copy in enumerate(copies):
        if (copy.size, copy.mode) != (first.size, first.mode):
            raise InputError(
                "augmented: without an `encoder` all pictures must be of one size and mode, and square where they are "
                f"turned, got {_shape(copy)} at picture {start + k // each:,}, {_shape(first)} at picture 0. Resize "
                "them, or give an `encoder`."
            )
    return np.stack([np.asarray(copy, np.float32).reshape(-1) / 255 for copy in copies])


def _shape(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height} {picture.mode}"


def _encoded(found: Any, rows: int, width: int | None) -> np.ndarray:
    """Return what an encoder made of so many pictures, (n, d), d as before."""
    found = found.detach().cpu() if hasattr(found, "detach") else found  # a tensor
    features = np.asarray(found)
    whole = features.dtype.kind in "fiu" and features.ndim == 2 and len(features) == rows
    if not whole or features.shape[1] not in ([width] if width else range(1, features.size + 1)):
        numbers = f"{width} numbers" if width else "numbers"
        raise InputError(
            f"encoder: must return a row of {numbers} for each of {rows} pictures, got {features.dtype} of shape "
            f"{features.shape}. Change `encoder`."
        )
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(1).sum())
        raise InputError(f"encoder: must return finite numbers, got others in {bad} of {rows} rows. Change `encoder`.")
    return features.astype(np.float32)


def check_transforms(transforms: Sequence[str]) -> None:
    """Raise for a name that is not in `TRANSFORMS`, or if no copy is left as it is."""
    unknown = [name for name in transforms if name not in TRANSFORMS]
    if unknown:
        raise InputError(f"transforms: must be among {', '.join(TRANSFORMS)}, got {unknown[0]!r}. Change `transforms`.")
    if len(set(transforms)) < len(transforms):
        raise InputError(f"transforms: each must be named once, got {', '.join(transforms)}. Change `transforms`.")
    if IDENTITY not in transforms:
        raise InputError(f"transforms: `{IDENTITY}` must be among them, got {', '.join(transforms)}. Add it.")
