"""Raw pictures and texts as encoders take them: decoded with bounds, every refusal with its reason."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs
from PIL import Image, ImageOps

from diva_ray.data.raw.units import MOST_BYTES
from diva_ray.errors import one_line
from diva_ray.pictures import FORMATS, upright

FILTERS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip
MOST_CHARACTERS = 100_000  # of a text; encoders read far less
MOST_RESIZED = 64 << 20  # pixels of a picture on its way to a square: long and narrow ones grow
SMALL = 32  # pixels: pictures up to this side are kept as they are, exactly
NO_FILE, NOT_READABLE = "no file at ", "not readable: "  # reasons that may pass: another time the file may be read


class RefusedError(Exception):
    """A sample that cannot be encoded; the message is the reason."""


@dataclass(frozen=True)
class Form:
    """How a picture becomes a square of `size` pixels.

    Attributes:
        fit: crop (shorter side to size / crop, centre taken), squash (both sides to size), pad (whole, on white).
        crop: share of the resized side that the centre keeps.
        filter: nearest, bilinear, bicubic or lanczos.
    """

    size: int
    fit: str = "crop"
    crop: float = 1.0
    filter: str = "bicubic"

    @property
    def least(self) -> int:
        """Side that a picture must have; that of a part of it where twice its size is not enough."""
        return math.ceil(self.size / self.crop) if self.fit == "crop" and self.crop < 0.5 else self.size

    def of(self, picture: Image.Image) -> np.ndarray:
        """Return the picture as uint8 (size, size, 3).

        Raises:
            RefusedError: too long and narrow.
        """
        side, how = (self.size, self.size), FILTERS[self.filter]
        if self.fit == "squash":
            shown = picture.resize(side, how)
        elif self.fit == "pad":
            if max(picture.size) > 2 * self.size * min(picture.size):  # nothing of the shorter side would be left
                raise RefusedError(f"{picture.width} x {picture.height} pixels, too long and narrow")
            shown = ImageOps.pad(picture, side, how, color="white")
        else:
            inner = int(self.size / self.crop + 1e-6)  # rounded as torchvision and timm do, whose networks these are
            width, height = (inner * length // min(picture.size) for length in picture.size)
            if width * height > MOST_RESIZED:
                raise RefusedError(f"{picture.width} x {picture.height} pixels, too long and narrow")
            shown = picture.resize((width, height), how)
            left, top = (round((length - self.size) / 2) for length in (width, height))
            shown = shown.crop((left, top, left + self.size, top + self.size))
        return np.asarray(shown, np.uint8)


class Pictures:
    """Opens pictures given as bytes, as {bytes, path}, or as paths or URIs under a root."""

    def __init__(self, root: str, most_pixels: int) -> None:
        self.root, self.most_pixels = root, most_pixels
        self.filesystem, self.base = (
            pyarrow.fs.FileSystem.from_uri(root) if "://" in root else (pyarrow.fs.LocalFileSystem(), root)
        )
        self.local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)
        if self.local:
            self.base = os.path.realpath(self.base)

    def open(self, value: Any, least: int = 0) -> Image.Image:
        """Return an upright RGB picture, on white where it is transparent.

        Args:
            value: as the column has it.
            least: side that is needed: a JPEG may be decoded at a fraction of its size that is at least twice that.

        Raises:
            RefusedError: no picture, too many pixels, a path outside the root, ...
        """
        data = self._bytes(value)
        if not data:
            raise RefusedError("no bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(data), formats=FORMATS)
            with picture:
                if picture.width * picture.height > self.most_pixels:
                    raise RefusedError(
                        f"{picture.width} x {picture.height} pixels, more than most_pixels={self.most_pixels}"
                    )
                if least:
                    picture.draft("RGB", (2 * least, 2 * least))
                return upright(picture)
        except RefusedError:
            raise
        except Image.DecompressionBombError as error:
            raise RefusedError(f"too many pixels: {error}") from error
        except Exception as error:  # hostile bytes: Pillow's decoders raise almost any type
            told = " ".join(re.sub(r"<_io.BytesIO object at 0x[0-9a-f]+>", "the bytes", str(error)).split())[:160]
            raise RefusedError(f"not decodable: {told or type(error).__name__}") from error

    def state(self, named: str | None) -> str:
        """Return the size and the time of change of a file under a local root; nothing where none is named."""
        if named is None:
            return ""
        try:
            found = os.stat(self._path(named))
        except (OSError, RefusedError, ValueError):
            return "not there"
        return f"{found.st_size} {found.st_mtime_ns}"

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise RefusedError("no value")
        if isinstance(value, bytes):
            if len(value) > MOST_BYTES:
                raise RefusedError(f"{len(value)} bytes, more than {MOST_BYTES}")
            return value
        if isinstance(value, str):
            return self._file(value)
        raise RefusedError(f"neither bytes nor a path but {type(value).__name__}")

    def _file(self, named: str) -> bytes:
        """Return the bytes of a file named by a path or a URI under the root."""
        try:
            with self.filesystem.open_input_file(self._path(named)) as stream:  # two requests to a store
                if stream.size() > MOST_BYTES:
                    raise RefusedError(f"{stream.size()} bytes, more than {MOST_BYTES}")
                return stream.read()
        except FileNotFoundError as error:
            raise RefusedError(f"{NO_FILE}{named[:200]} below data.root, {self.root[:200]}") from error
        except (OSError, pa.ArrowException, ValueError) as error:
            raise RefusedError(f"{NOT_READABLE}{one_line(error, 160)}") from error

    def _path(self, named: str) -> str:
        """Return the full path of a path or a URI under the root."""
        return self._inside(self._relative(named) if "://" in named else named)

    def _relative(self, uri: str) -> str:
        """Return the path of a URI; refuse one that is not under the root, as text.

        Nothing is opened for that: a table must not make a worker call any host or bucket that it names.
        """
        if uri.startswith(("http://", "https://")):
            raise RefusedError("http is not read: download the pictures first")
        if self.local and uri.startswith("file:///"):
            return unquote(uri.removeprefix("file://"))
        if not uri.startswith(self.root.rstrip("/") + "/"):
            raise RefusedError(f"the URI leaves data.root{self._root_told()}")
        return unquote(uri[len(self.root.rstrip("/")) + 1 :])

    def _inside(self, named: str) -> str:
        """Return the full path; refuse one that leaves the root: a table must not name any file of the machine."""
        if self.local:
            link = os.path.join(self.base, named)
            full = os.path.realpath(link)
            if os.path.islink(link) and not os.path.exists(full):
                raise RefusedError(f"{NO_FILE}{full[:200]}, to which it links")
        else:
            full = os.path.normpath(named if os.path.isabs(named) else f"{self.base}/{named}")
        if not full.startswith(self.base.rstrip("/") + "/") or "\0" in named:
            raise RefusedError(f"the path leaves data.root{self._root_told()}")
        return full

    def _root_told(self) -> str:
        return f", {self.root[:200]}: set that to the folder or URI below which all pictures lie"


def thumbnail(picture: Image.Image, side: int) -> bytes:
    """Return a small copy: PNG where every pixel counts, else JPEG."""
    small = max(picture.size) <= min(side, SMALL)
    shown = picture
    if max(picture.size) > side:
        shown = picture.copy()
        shown.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    shown.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    return out.getvalue()


def text_of(value: Any) -> str:
    """Return a text, bounded; refuse an empty one."""
    if value is None:
        raise RefusedError("no value")
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        raise RefusedError("empty text")
    return text[:MOST_CHARACTERS]
