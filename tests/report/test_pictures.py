"""Pictures of a table: encoded again, of any kind, and refused where they are broken or huge."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diva_ray.report import pictures
from diva_ray.report.sheet import Gallery, Sheet, render_sheet
from tests.pages import Page, png


def page_of(*samples) -> Page:
    return Page(render_sheet(Sheet("t", [], [], [Gallery("t", list(samples))])))


def test_digits_pictures_are_encoded_again():
    digits = load_digits()
    rows = [{"id": i, "label": int(digits.target[i]), "predicted_label": 8, "picture": png(255 - digits.images[i] * 15)}
            for i in range(6)]  # fmt: skip
    images = page_of(*rows).all("img")
    assert len(images) == 6
    assert images[3]["alt"] == "sample 3: given 3, predicted 8"
    assert all(image["src"].startswith("data:image/png;base64,") and image["class"] == "small" for image in images)


def test_nothing_hidden_in_a_picture_reaches_the_page():
    out = io.BytesIO()
    info = Image.Exif()
    info[0x010E] = "secret place"
    Image.new("RGB", (600, 400), "red").save(out, "jpeg", exif=info, comment=b"<script>")
    shown = pictures.thumbnail(out.getvalue() + b"trailing secret")
    again = Image.open(io.BytesIO(_decoded(shown.uri)))
    assert max(again.size) == 256
    assert not again.getexif()
    assert b"secret" not in _decoded(shown.uri)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture(mode):
    picture = Image.new(mode, (40, 20)) if mode != "P" else Image.new("RGB", (40, 20)).convert("P")
    out = io.BytesIO()
    picture.save(out, "tiff" if mode in ("CMYK", "I", "F") else "png")
    shown = pictures.thumbnail(out.getvalue())
    assert Image.open(io.BytesIO(_decoded(shown.uri))).size == (40, 20)


def test_a_picture_of_16_bits_that_was_held_sideways_is_turned():
    out, info = io.BytesIO(), Image.Exif()
    info[0x0112] = 6
    Image.fromarray(np.linspace(0, 65535, 800).reshape(20, 40).astype("uint16")).save(out, "png", exif=info)
    assert Image.open(io.BytesIO(_decoded(pictures.thumbnail(out.getvalue()).uri))).size == (20, 40)


def test_a_header_that_nobody_can_read_spoils_no_picture():
    out = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(out, "jpeg", exif=b"Exif\x00\x00" + b"\xff" * 40)
    assert pictures.thumbnail(out.getvalue()).uri is not None


def test_sixteen_bit_picture_keeps_its_contrast():
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype("uint16")).save(out, "png")
    grey = np.asarray(Image.open(io.BytesIO(_decoded(pictures.thumbnail(out.getvalue()).uri))))
    assert grey.min() == 0
    assert grey.max() >= 254


@pytest.mark.parametrize(
    "data", [b"", b"junk", png(np.zeros((9, 9)))[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n", {"path": "x"}]
)
def test_a_broken_picture_is_named(data):
    page = page_of({"id": 1, "picture": data})
    assert "picture could not be read" in page.text
    assert not page.all("img")


@pytest.mark.parametrize("side", [6_000, 12_000, 60_000])
def test_a_huge_picture_is_refused_before_it_is_decoded(side, monkeypatch):
    monkeypatch.setattr(pictures, "upright", lambda *_: pytest.fail("decoded"))
    assert pictures.thumbnail(_bomb(side)).uri is None


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def _bomb(side: int) -> bytes:
    """A PNG of side x side pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )
