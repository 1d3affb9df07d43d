"""Pictures from a table, made safe and small enough for a page."""

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from diva_ray.pictures import FORMATS, upright

MAX_PIXELS = 32_000_000
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Thumbnail:
    """A re-encoded picture, `uri` None if it was refused; `small` = few pixels, to be enlarged sharply."""

    uri: str | None
    small: bool = False


def thumbnail(data, side: int = 256) -> Thumbnail:
    """A fresh PNG or JPEG at most `side` pixels wide and high; the bytes given never reach the page."""
    if not isinstance(data, bytes | bytearray | memoryview) or len(data) > MAX_BYTES:
        return Thumbnail(None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large sizes; they are refused below
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return Thumbnail(None)
                picture.draft("RGB", (2 * side, 2 * side))
                small = max(picture.size) <= side // 4
                flat = upright(picture)
                flat.thumbnail((side, side), Image.Resampling.LANCZOS)
    except Exception:  # hostile bytes: Pillow's decoders raise almost any type
        return Thumbnail(None)
    return Thumbnail(_data_uri(flat, small), small)


def _data_uri(picture: Image.Image, small: bool) -> str:
    """PNG where every pixel counts, JPEG where size does; metadata stays behind."""
    kind, options = ("png", {"optimize": True}) if small else ("jpeg", {"quality": 82})
    clean = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    out = io.BytesIO()
    clean.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
