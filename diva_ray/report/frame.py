"""What every page shares: the template environment, the policy, galleries and the times of phases."""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from diva_ray.report import words
from diva_ray.report.pictures import thumbnail

MAX_CARDS = 60
MAX_ROWS = 200


@cache  # compiling takes longer than all else of a small run
def template(name: str):
    """A template of this folder; escaping is on for everything, the formats of `words` are its filters."""
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for shape in (words.number, words.fixed, words.count, words.percent, words.share, words.memory, words.duration,
                  words.label):  # fmt: skip
        environment.filters[shape.__name__] = shape
    environment.filters["clip"] = lambda text, length=280: words.clip(str(text), length)
    environment.filters["bare"] = lambda value: "" if words.finite(value) is None else f"{words.finite(value):.9g}"
    environment.filters |= {"marked": marked, "breakable": breakable}
    environment.globals["plural"] = words.plural
    return environment.get_template(name)


def marked(text) -> Markup:
    """A text with what stands between backticks set as code; all of it is escaped first."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(str(text)))))


def breakable(text) -> Markup:
    """A name that may break after underscores, rather than within a word; it is escaped first."""
    return Markup(str(escape(str(text))).replace("_", "_<wbr>"))


def frame(*styles: str) -> dict:
    """Style, script and policy of a page that fetches nothing and runs its own script only."""
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup("".join(map(_read, styles))),
        "script": Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }


def known(figures: Mapping) -> dict:
    """The figures that there are: neither None nor NaN."""
    return {k: v for k, v in figures.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


def gallery(samples: list[dict], columns: set[str]) -> dict:
    """Cards where the table had pictures or texts, else rows of `columns`, plus what rows are known to have."""
    cards = any(row.get("picture") is not None or row.get("text") is not None for row in samples)
    shown = samples[: MAX_CARDS if cards else MAX_ROWS]
    rows = [row | {"thumbnail": None if row.get("picture") is None else thumbnail(row["picture"])} for row in shown]
    rows = [{"caption": "", "figures": []} | row for row in rows]
    extra = {key for key in ("true_label", "source") if any(row.get(key) is not None for row in rows)}
    return {"rows": rows, "cards": cards, "left_out": len(samples) - len(shown), "columns": columns | extra}


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
