"""Pictures that come from strangers, as rooms take them: which formats are opened, how one becomes upright RGB."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # decoded in process; EPS would start a program
TURNS = {  # what undoes each orientation that EXIF knows
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def upright(picture: Image.Image) -> Image.Image:
    """Return 8-bit RGB, turned as the camera says, on white; 16-bit and float pictures are stretched to 0..255."""
    picture.load()
    picture = turned(picture)  # before the stretch, whose result does not know how it was held
    if picture.mode.startswith(("I", "F")):
        grey = np.nan_to_num(np.asarray(picture, np.float64))
        grey = grey - grey.min()
        picture = Image.fromarray((255 * grey / (grey.max() or 1)).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def turned(picture: Image.Image) -> Image.Image:
    """Return the picture as it was held. Of its header only that is read: what else is odd there spoils no picture."""
    try:
        how = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a header that nobody can read tells nothing
        how = None
    return picture if how is None else picture.transpose(how)
