"""Pages read as a browser reads them, and what is hostile to them."""

import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

EVIL = """</script></style><script>alert(1)</script><img src=x onerror=alert(1)>"' onload='x"""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Every tag with its attributes, the visible text, and whether tags nest."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.parts = [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style", "title"):
            self.parts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def fetches(page: Page) -> list[str]:
    """Whatever a browser would go and get."""
    names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    return [attrs[name] for _, attrs in page.tags for name in names if name in attrs]


def png(pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, "uint8")).save(out, "png")
    return out.getvalue()
