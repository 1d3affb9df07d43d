"""What is around the parts of a page: the template, the policy and the times of phases."""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from diva_ray.report import words

TONED = r"\[(hurts|helps|issue|strong): ([^]<]+)\]"


@cache  # compiling takes longer than all else of a small run
def template():
    """The template of a page; escaping is on for everything, the formats of `words` are its filters."""
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for shape in (words.number, words.fixed, words.score, words.count, words.percent, words.share, words.memory,
                  words.duration, words.label):  # fmt: skip
        environment.filters[shape.__name__] = shape
    environment.filters["clip"] = lambda text, length=280: words.clip(str(text), length)
    environment.filters["bare"] = lambda value: "" if words.finite(value) is None else f"{words.finite(value):.9g}"
    environment.filters |= {"marked": marked, "breakable": breakable}
    environment.globals["plural"] = words.plural
    return environment.get_template("sheet.html.j2")


def marked(text) -> Markup:
    """A text with `...` set as code, and `[hurts: ...]` in bold of that tone; all of it is escaped first."""
    coded = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(str(text))))
    return Markup(re.sub(TONED, r'<b class="\1">\2</b>', coded))


def breakable(text) -> Markup:
    """A name that may break after underscores, rather than within a word; it is escaped first."""
    return Markup(str(escape(str(text))).replace("_", "_<wbr>"))


def frame() -> dict:
    """Style, script and policy of a page that fetches nothing and runs its own script only."""
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup(_read("page.css")),
        "script": Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }


def phases(seconds) -> list[dict]:
    """Seconds per phase with a bar each; a `total` is listed last and has none."""
    if words.finite(seconds) is not None:
        seconds = {"total": seconds}
    if not isinstance(seconds, Mapping):
        return []
    times = {str(name).replace("_", " "): words.finite(value) for name, value in seconds.items()}
    there = {name: value for name, value in times.items() if value is not None}
    top = max((value for name, value in there.items() if name != "total"), default=0) or 1
    rows = [{"name": name, "seconds": value, "bar": value / top} for name, value in there.items()]
    rows = [row | {"bar": None} if row["name"] == "total" else row for row in rows]
    return sorted(rows, key=lambda row: row["name"] == "total")


def _read(name: str) -> str:
    return files("diva_ray.report").joinpath(name).read_text(encoding="utf-8")
