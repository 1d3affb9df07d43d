"""A page made of parts that any job can fill: figures, bars, lines, histograms, tables and samples."""

import math
import re
from dataclasses import dataclass, field

from diva_ray.report import charts, frame, words
from diva_ray.report.gallery import gallery

MAX_BARS = 60
TONES = ("hurts", "helps", "issue", "good")
NOUGHT = r"0(\.0*)?\s?%?"  # of what hurts or looks wrong none was found, which has no colour
KINDS = {
    "text": lambda value: words.clip(str(value), 280),
    "label": words.label,
    "number": words.number,
    "fixed": words.fixed,
    "fixed3": lambda value: words.fixed(value, 3),
    "count": words.count,
    "percent": words.percent,
    "z": lambda value: words.fixed(value, 1),
    "bar": words.percent,
    "wrong": words.percent,
    "most": words.count,
}
RIGHT = ("number", "fixed", "fixed3", "count", "percent", "z")  # kinds that line up at the right
BARRED = ("bar", "wrong", "most")  # kinds with a bar


@dataclass(frozen=True)
class Tile:
    """One figure at the top; `tone` is "", "hurts", "helps", "issue" or "good"."""

    name: str
    value: str
    detail: str = ""
    tone: str = ""


class Inform(str):
    """A note that informs and warns of nothing: it is shown more quietly."""

    informs = True


@dataclass(frozen=True)
class Bars:
    """Bars with whiskers; rows: label, value, error (one standard error), detail, strong (the chosen one)."""

    title: str
    rows: list[dict]
    intro: str = ""
    unit: str = ""  # written after each value
    percent: bool = False  # values are shares, written as percentages
    points: bool = False  # values are differences of shares, written as percentage points
    most: int | None = None  # decimals, where what was measured cannot tell more; None: as the values ask for


@dataclass(frozen=True)
class Lines:
    """Lines over `x`; series: name, y (None leaves a gap), low and high (a band), strong (the one to look at), apart
    (points with whiskers: neighbours have nothing to do with each other)."""

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
    """A histogram: `counts[i]` lie between `edges[i]` and `edges[i + 1]`; the last may be infinite."""

    title: str
    edges: list[float]
    counts: list[int]
    intro: str = ""
    x_name: str = ""
    y_name: str = "samples"


@dataclass(frozen=True)
class Pulls:
    """The histogram of z with its threshold: which way samples pull, and for how many in each bin `looks` is true."""

    title: str
    edges: list[float]
    counts: list[int]
    issues: list[int]
    threshold: float | None
    above: int | None = None  # samples above the threshold
    intro: str = ""
    things: tuple[str, str] = ("sample", "samples")
    looks: str = "label looks wrong"


@dataclass(frozen=True)
class Table:
    """Rows by columns (key, heading, kind); kinds: text, label, number, fixed, fixed3 (decimals), count, percent, z,
    bar (a share), wrong (a share of errors), most (a count beside the largest)."""

    title: str
    columns: list[tuple[str, str, str]]
    rows: list[dict]
    intro: str = ""
    most: int = 200  # rows shown
    of: int = 0  # rows that there are, where `rows` are but the first of them


@dataclass(frozen=True)
class Terms:
    """What words of the page mean; rows: term, its tag ("", "hurts", "helps" or "issue"), text."""

    title: str
    rows: list[tuple[str, str, str]]
    intro: str = ""


@dataclass(frozen=True)
class Facts:
    """A few figures in a box; rows: name, value."""

    title: str
    rows: list[tuple[str, str]]
    intro: str = ""
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Samples: id, label, predicted_label, z, weight, picture, text, as far as known."""

    title: str
    rows: list[dict]
    intro: str = ""
    caption: str = ""  # key of a value shown on each card
    filters: bool = False  # buttons that leave only what hurts or only labels that look wrong, where there are both


@dataclass(frozen=True)
class Sheet:
    """Everything one page shows, as plain Python values; lists may be empty."""

    title: str
    headline: list[str]
    tiles: list[Tile]
    parts: list[Bars | Lines | Columns | Pulls | Table | Terms | Facts | Gallery]
    run: list[tuple[str, str]] = field(default_factory=list)  # what was run: (name, value)
    seconds: dict = field(default_factory=dict)  # per phase; `total` comes last
    memory: float | None = None  # peak, in bytes
    notes: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # relative path, then what it holds
    footer: str = ""


def render_sheet(sheet: Sheet) -> str:
    """One self-contained HTML page: no network, readable without scripts.

    Every string is taken as hostile and escaped, pictures are decoded, shrunk and encoded again
    (`diva_ray.report.pictures`), and the page's own policy allows only its own script. Missing
    numbers (None, NaN) are a dash or left out.
    Cost: proportional to what is shown, at most 60 bars, 60 cards and `most` rows a part.

    Raises:
        ValueError: a column's kind is unknown.
        TypeError: a part is none of the kinds above.
    """
    return frame.template().render(
        sheet=sheet,
        tiles=[_tile(tile) for tile in sheet.tiles],
        headline=[words.clip(str(sentence), 400) for sentence in sheet.headline],
        parts=[_shown(part) | {"name": f"part-{k}"} for k, part in enumerate(sheet.parts)],
        phases=frame.phases(sheet.seconds),
        memory=words.finite(sheet.memory),
        **frame.frame(),
    )


def _tile(tile: Tile) -> dict:
    """A figure with only the colours there are."""
    tone = tile.tone if tile.tone in TONES else ""
    if tone in ("hurts", "issue") and re.fullmatch(NOUGHT, str(tile.value)):
        tone = ""
    value, detail = words.clip(str(tile.value), 40), words.clip(str(tile.detail), 120)
    return {"name": words.clip(str(tile.name), 60), "value": value, "detail": detail, "tone": tone}


def _shown(part) -> dict:
    """What the template draws of a part; `kind` names its macro, `empty` says that there is nothing to draw."""
    match part:
        case Bars():
            shown = _bars(part)
        case Lines():
            shown = _lines(part)
        case Columns():
            shown = {"drawn": charts.columns(part.edges, part.counts), "x_name": part.x_name, "y_name": part.y_name}
        case Pulls():
            drawn = charts.histogram(part.edges, part.counts, part.issues, part.threshold)
            shown = {"drawn": drawn, "threshold": words.number(part.threshold), "above": part.above,
                     "things": part.things, "looks": part.looks}  # fmt: skip
        case Table():
            shown = _table(part)
        case Terms():
            shown = {"rows": part.rows}
        case Facts():
            shown = {"rows": part.rows, "note": part.note}
        case Gallery():
            shown = gallery(part.rows, part.caption)
            both = all(any(row.get(key) for row in shown["rows"]) for key in ("is_label_issue", "is_detrimental"))
            shown["filters"] = part.filters and both
        case _:
            raise TypeError(
                f"render_sheet: parts must be Bars, Lines, Columns, Pulls, Table, Terms, Facts or Gallery, got "
                f"{type(part)}."
            )
    shown |= {"kind": type(part).__name__, "title": words.clip(str(part.title), 160), "intro": part.intro}
    return shown | {"empty": not (shown["drawn"] if "drawn" in shown else shown["rows"])}


def _bars(part: Bars) -> dict:
    """Each bar with its place and its words; all values have the same decimals."""
    rows, unit = part.rows[:MAX_BARS], part.unit
    if part.percent or part.points:
        rows, unit = [{**row, **_hundredfold(row)} for row in rows], words.PERCENT if part.percent else words.POINTS
    drawn = charts.bars(rows)
    errors = [row["error"] for row in drawn["rows"]]
    finest = min((error for error in errors if error), default=None)
    texts = words.aligned([row["value"] for row in drawn["rows"]] + errors, finest=finest, most=part.most)
    words_of = zip(rows, drawn["rows"], texts[: len(rows)], texts[len(rows) :], strict=True)
    shown = [
        place | {"label": words.label(row.get("label"), 120), "detail": row.get("detail") or "", "text": text,
                 "error_text": "" if place["error"] is None or place["value"] is None else error,
                 "strong": bool(row.get("strong"))}
        for row, place, text, error in words_of
    ]  # fmt: skip
    whiskers = any(row["error_text"] for row in shown)
    return {"rows": shown, "zero": drawn["zero"], "ticks": drawn["ticks"], "unit": unit, "whiskers": whiskers,
            "left_out": len(part.rows) - len(rows)}  # fmt: skip


def _hundredfold(row: dict) -> dict:
    found = {key: words.finite(row.get(key)) for key in ("value", "error")}
    return {key: None if value is None else 100 * value for key, value in found.items()}


def _lines(part: Lines) -> dict:
    """Curves and the same numbers as a table; the strong series takes the first colour and is drawn last."""
    drawn = charts.lines(part.x, part.series, percent_x=part.percent_x, percent_y=part.percent_y)
    if drawn is None:
        return {"drawn": None}
    order, ranked = drawn["order"], sorted(part.series, key=lambda one: not one.get("strong"))
    at = words.exact([part.x[i] for i in order], percent=part.percent_x)
    for one, curve in zip(part.series, drawn["series"], strict=True):
        texts = {
            key: words.aligned(_picked(one.get(key), order), percent=part.percent_y) for key in ("y", "low", "high")
        }
        banded = any(value is not None for key in ("low", "high") for value in one.get(key) or [])
        curve |= {
            "name": words.label(one.get("name"), 60),
            "colour": next(k for k, other in enumerate(ranked) if other is one) % 5,
            "strong": bool(one.get("strong")),
            "texts": texts,
            "banded": banded,
        }
    longest = max(len(text) for _, text in drawn["y_ticks"])
    return {"drawn": drawn, "at": at, "x_name": part.x_name or "x", "y_name": part.y_name, "indent": 8 * longest + 12}


def _picked(values: list | None, order: list[int]) -> list:
    return [values[i] if values and i < len(values) else None for i in order]


def _table(part: Table) -> dict:
    """The first `most` rows, every cell as words, a key to sort by and, for a share, a bar."""
    unknown = [kind for _, _, kind in part.columns if kind not in KINDS]
    if unknown:
        raise ValueError(f"Table: a column's kind must be one of {', '.join(KINDS)}, got {unknown[0]!r}.")
    heads = [{"name": words.label(name), "right": kind in RIGHT, "barred": kind in BARRED}
             for _, name, kind in part.columns]  # fmt: skip
    largest = {key: max((words.finite(row.get(key)) or 0 for row in part.rows), default=0)
               for key, _, kind in part.columns if kind == "most"}  # fmt: skip
    rows = [[_cell(row.get(key), kind, largest.get(key)) for key, _, kind in part.columns]
            for row in part.rows[: part.most]]  # fmt: skip
    return {"heads": heads, "rows": rows if heads else [], "left_out": max(max(part.of, len(part.rows)) - part.most, 0)}


def _cell(value, kind: str, largest: float | None = None) -> dict:
    """A value as its column writes it; the bar of a count is its share of the `largest`."""
    number = words.finite(value)
    cell = {"bar": None, "text": KINDS[kind](value), "tone": "", "sort": "" if number is None else f"{number:.9g}"}
    if kind in ("text", "label"):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return cell | {"text": words.MISSING if missing else cell["text"], "sort": None}
    if kind == "z" and number:
        cell["tone"] = "hurts" if number > 0 else "helps"
    if kind in BARRED:
        cell |= {"bar": (number or 0) / (largest or 1), "tone": "hurts" if kind == "wrong" else ""}
    return cell
