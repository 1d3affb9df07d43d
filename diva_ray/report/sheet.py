"""A page made of parts that any job can fill: figures, bars, lines, histograms, tables and samples."""

from dataclasses import dataclass, field

from markupsafe import Markup

from diva_ray.report import page


@dataclass(frozen=True)
class Tile:
    """One figure at the top; `tone` is "", "hurts", "helps", "issue" or "good"."""

    name: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Bars:
    """Bars with whiskers; rows: label, value, error (one standard error), detail, strong (the chosen one)."""

    title: str
    rows: list[dict]
    intro: str = ""
    unit: str = ""  # written after each value


@dataclass(frozen=True)
class Lines:
    """Lines over `x`; series: name, y (None leaves a gap), low and high (a band), strong (the one to look at)."""

    title: str
    x: list[float]
    series: list[dict]
    intro: str = ""
    x_name: str = ""
    y_name: str = ""
    percent_x: bool = False  # values are shares, written as percentages
    percent_y: bool = False


@dataclass(frozen=True)
class Columns:
    """A histogram: `counts[i]` lie between `edges[i]` and `edges[i + 1]`."""

    title: str
    edges: list[float]
    counts: list[int]
    intro: str = ""
    x_name: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by columns (key, heading, kind); kinds: text, label, number, fixed, count, percent, z, bar (a share)."""

    title: str
    columns: list[tuple[str, str, str]]
    rows: list[dict]
    intro: str = ""
    most: int = 200  # rows shown


@dataclass(frozen=True)
class Gallery:
    """Samples as on the score page: id, label, predicted_label, z, weight, picture, text, as far as known."""

    title: str
    rows: list[dict]
    intro: str = ""
    caption: str = ""  # key of a value shown on each card


@dataclass(frozen=True)
class Sheet:
    """Everything one page shows, as plain Python values; lists may be empty."""

    title: str
    headline: list[str]
    tiles: list[Tile]
    parts: list[Bars | Lines | Columns | Table | Gallery]
    run: list[tuple[str, str]] = field(default_factory=list)  # what was run: (name, value)
    seconds: dict = field(default_factory=dict)  # per phase; `total` comes last
    memory: float | None = None  # peak, in bytes
    notes: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # relative path, then what it holds
    footer: str = ""


def render_sheet(sheet: Sheet) -> str:
    """One self-contained HTML page: no network, readable without scripts."""
    template = page._environment().get_template("sheet.html.j2")
    return template.render(sheet=sheet, style=Markup(page._read("page.css")))
