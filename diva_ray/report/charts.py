"""The geometry of the page's charts, in percent of the drawing; the template draws them."""

import math
from itertools import pairwise
from statistics import median

from diva_ray.report import words


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
        "x_ticks": [(x(value), words.number(value)) for value in _round_ticks(low, high, 7)],
        "y_ticks": _count_ticks(max(counts), y, scale),
        "has_issues": any(issues),
    }


def cautious_error(error: float, n: int) -> float:
    """Lower end of Wilson's interval (one standard error): small classes are not called worst by chance."""
    if not n:
        return 0.0
    spread = math.sqrt(max(error * (1 - error), 0) / n + 1 / (4 * n * n))
    return (error + 1 / (2 * n) - spread) / (1 + 1 / n)


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


def _round_ticks(low: float, high: float, at_most: int) -> list[float]:
    """At most `at_most` + 1 round numbers in low..high."""
    rough = (high - low) / at_most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(k * unit for k in (1, 2, 5, 10, 20) if k * unit >= rough)
    first, last = math.ceil(low / step), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


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
