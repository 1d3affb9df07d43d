"""The geometry of the page's charts, in percent of the drawing; the template draws them."""

import math
from itertools import groupby, pairwise
from statistics import median

from diva_ray.report import words

MAX_DOTS = 60
ROOM = 45  # characters of a tick's size that fit side by side on a narrow screen


def histogram(z_edges: list[float], counts: list[int], issues: list[int], threshold: float | None) -> dict | None:
    """Bars, ticks and the threshold of a histogram, or None where there is nothing to draw."""
    edges = _finite_edges(z_edges)
    if edges is None or len(edges) != len(counts) + 1 or not any(counts):
        return None
    issues = list(issues) if len(issues) == len(counts) else [0] * len(counts)
    threshold = words.finite(threshold)
    low, high = edges[0], edges[-1]
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    x = lambda value: 100 * (value - low) / (high - low)  # noqa: E731 - a scale, used as one
    y, scale = _count_scale(counts)
    bars = []
    for left, right, n, n_issues in zip(edges[:-1], edges[1:], counts, issues, strict=True):
        middle = (left + right) / 2
        bars.append(
            {"x": x(left), "width": x(right) - x(left), "height": y(n), "issue_height": y(n_issues), "from": left,
             "to": right, "n": n, "n_issues": n_issues, "hurts": threshold is not None and middle > threshold}
        )  # fmt: skip
    return {
        "bars": bars,
        "scale": scale,
        "threshold": None if threshold is None else x(threshold),
        "zero": x(0.0) if low < 0 < high else None,
        "x_ticks": _ticks(low, high, 7, x),
        "y_ticks": _count_ticks(max(counts), y, scale),
        "has_issues": any(issues),
    }


def columns(edges: list, counts: list) -> dict | None:
    """Bars and ticks of a histogram without a threshold, or None where there is nothing to draw."""
    ends = [words.finite(edge, keep_infinite=True) for edge in edges]
    known = [edge for edge in ends if edge is not None]
    if not counts or len(known) < len(ends):
        return None
    drawn = histogram(known, [max(round(words.finite(n) or 0), 0) for n in counts], [], None)
    if drawn is None:
        return None
    last = len(counts) - 1
    return drawn | {
        "bars": [bar | {"open": k == last and math.isinf(known[-1])} for k, bar in enumerate(drawn["bars"])]
    }


def bars(rows: list[dict]) -> dict:
    """Bars from zero with whiskers of one standard error, negative ones to the left, and the ticks below them."""
    numbers = [(_drawable(row.get("value")), _drawable(row.get("error"))) for row in rows]
    numbers = [(value, None if error is None or error < 0 else error) for value, error in numbers]
    ends = [0.0] + [v + sign * (e or 0.0) for v, e in numbers if v is not None for sign in (-1, 1)]
    low, high = min(ends), max(ends)
    if low == high:
        high = low + 1.0
    room = 0.03 * (high - low)
    low, high = low - room * (low < 0), high + room * (high > 0)
    x = lambda value: 100 * (value - low) / (high - low)  # noqa: E731 - a scale, used as one
    drawn = []
    for value, error in numbers:
        bar = None if value is None else {"x": x(min(value, 0.0)), "width": abs(x(value) - x(0.0))}
        whisker = (
            None
            if value is None or not error
            else {"x": x(value - error), "width": x(value + error) - x(value - error)}
        )
        drawn.append({"bar": bar, "whisker": whisker, "value": value, "error": error})
    return {"rows": drawn, "zero": x(0.0), "ticks": _ticks(low, high, 6, x)}


def lines(x: list, series: list[dict], *, percent_x: bool = False, percent_y: bool = False) -> dict | None:
    """Lines with gaps, bands and dots as SVG points, and the ticks; None where there is nothing to draw."""
    at = [_drawable(value) for value in x]
    known = sorted((value, i) for i, value in enumerate(at) if value is not None)
    curves = [_curve(one, [i for _, i in known]) for one in series]
    heights = [v for curve in curves for key in ("y", "low", "high") for v in curve[key] if v is not None]
    if not heights:
        return None
    (left, right), (bottom, top) = _span(known[0][0], known[-1][0]), _axis(min(heights), max(heights))
    whole = not percent_x and all(value == round(value) for value, _ in known)  # epochs, rows: no halves between
    across = lambda value: 100 * (value - left) / (right - left)  # noqa: E731 - scales, used as such
    up = lambda value: 100 * (value - bottom) / (top - bottom)  # noqa: E731
    places = [across(value) for value, _ in known]
    return {
        "order": [i for _, i in known],
        "series": [
            (_apart if one.get("apart") else _drawn)(curve, places, up)
            for one, curve in zip(series, curves, strict=True)
        ],
        "x_ticks": _ticks(left, right, 6, across, percent_x, least=1.0 if whole else 0.0),
        "y_ticks": _ticks(bottom, top, 5, up, percent_y, room=math.inf),
        "zero": up(0.0) if bottom < 0 < top else None,
    }


def _curve(one: dict, order: list[int]) -> dict:
    """Heights and band of a series, in the order of x; what is missing is None."""
    y, low, high = ([_drawable(v) for v in one.get(key) or []] for key in ("y", "low", "high"))
    pick = lambda values: [values[i] if i < len(values) else None for i in order]  # noqa: E731
    return {"y": pick(y), "low": pick(low), "high": pick(high)}


def _drawn(curve: dict, places: list[float], up) -> dict:
    """Points of each unbroken stretch of a line and of its band; dots, unless there are too many to see."""
    spot = lambda x, y: f"{x:.2f},{100 - up(y):.2f}"  # noqa: E731
    line = _unbroken([None if y is None else (x, y) for x, y in zip(places, curve["y"], strict=True)])
    ends = zip(places, curve["low"], curve["high"], strict=True)
    band = _unbroken([None if a is None or b is None else (x, min(a, b), max(a, b)) for x, a, b in ends])
    alone = {run[0][0] for run in line if len(run) == 1}
    dotted = len(places) <= MAX_DOTS
    return {
        "lines": [" ".join(spot(x, y) for x, y in run) for run in line if len(run) > 1],
        "bands": [" ".join([spot(x, b) for x, _, b in run] + [spot(x, a) for x, a, _ in reversed(run)])
                  for run in band if len(run) > 1],
        "dots": [(x, 100 - up(y)) if y is not None and (dotted or x in alone) else None
                 for x, y in zip(places, curve["y"], strict=True)],
    }  # fmt: skip


def _apart(curve: dict, places: list[float], up) -> dict:
    """Points each by itself, with their bands as whiskers."""
    ends = zip(places, curve["low"], curve["high"], strict=True)
    whiskers = [f"{x:.2f},{100 - up(a):.2f} {x:.2f},{100 - up(b):.2f}" for x, a, b in ends if None not in (a, b)]
    return {"lines": whiskers, "bands": [], "dots": _drawn(curve, places, up)["dots"]}


def _unbroken(points: list) -> list[list]:
    """Stretches between the gaps."""
    return [list(run) for there, run in groupby(points, key=lambda point: point is not None) if there]


def _axis(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis around `low`..`high`, both ticks: from zero where that costs little room."""
    if 0 <= low <= 0.6 * high:
        low = 0.0
    low, high = _span(low, high)
    step = 0.0
    ends = low, high
    while (wider := _step(*ends, 5)) > 1.001 * step:  # ends on ticks are further apart, which may ask for wider ticks
        step = wider
        ends = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    return ends


def _span(low: float, high: float) -> tuple[float, float]:
    """`low`..`high`, widened where it is a single number or too narrow to be told apart."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


def _ticks(
    low: float, high: float, at_most: int, scale, percent: bool = False, *, least: float = 0.0, room: float = ROOM
) -> list[tuple[float, str]]:
    """Place and text of round numbers in low..high, `least` or more apart, and as many as do not touch."""
    for parts in range(at_most, 0, -1):
        values = _round_ticks(low, high, parts, least)
        texts = words.ticks(values, percent=percent)
        apart = room * (values[1] - values[0]) / (high - low) if len(values) > 1 else math.inf
        if apart > 1 + max(map(len, texts), default=0):
            break
    return [(scale(v), text) for v, text in zip(values, texts, strict=True)]


def _drawable(value) -> float | None:
    """A number that can be placed: finite, and differences of two of them are as well."""
    value = words.finite(value)
    return None if value is None or abs(value) > 1e150 else 0.0 if abs(value) < 1e-150 else value


def _finite_edges(edges: list[float]) -> list[float] | None:
    """`edges` with an open first or last bin given the width of its neighbour."""
    edges = [float(edge) for edge in edges]
    if len(edges) > 2 and math.isinf(edges[0]):
        edges[0] = 2 * edges[1] - edges[2] if math.isfinite(edges[2]) else edges[1] - 1
    if len(edges) > 2 and math.isinf(edges[-1]):
        edges[-1] = 2 * edges[-2] - edges[-3]
    ordered = all(a < b for a, b in pairwise(edges))
    return edges if ordered and all(map(math.isfinite, edges)) else None


def _count_scale(counts: list[int]):
    """Height in percent for a count, and its scale: the more a few bins dwarf the others, the flatter."""
    top = max(counts)
    peak = top / median(n for n in counts if n > 0)
    if peak > 200:
        return lambda n: 94 * math.log1p(max(n, 0)) / math.log1p(top), "logarithm"
    if peak > 12:
        return lambda n: 94 * math.sqrt(max(n, 0) / top), "square root"
    return lambda n: 94 * max(n, 0) / top, "linear"


def _round_ticks(low: float, high: float, at_most: int, least: float = 0.0) -> list[float]:
    """At most `at_most` + 1 round numbers in low..high, `least` or more apart."""
    step = max(_step(low, high, at_most), least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12 - min(math.floor(math.log10(step)), 0)) for k in range(first, last + 1)]


def _step(low: float, high: float, at_most: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten that cuts low..high into at most `at_most` parts."""
    rough = (high - low) / at_most
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(k * unit for k in (1, 2, 5, 10, 20) if k * unit >= rough)


def _count_ticks(top: int, y, scale: str) -> list[tuple[float, str]]:
    """Round counts from the top down, no two closer than a line of text."""
    if scale == "linear":
        return [(y(value), words.compact(value)) for value in _round_ticks(0, top, 4) if value == round(value)]
    magnitude = int(math.log10(max(top, 1)))
    ladder = [k * 10**e for e in range(magnitude, -1, -1) for k in (5, 2, 1) if k * 10**e <= top]
    ticks = [(0.0, "0")]
    for value in ladder:
        if y(value) > 12 and all(abs(y(value) - at) > 12 for at, _ in ticks):
            ticks.append((y(value), words.compact(value)))
    return ticks
