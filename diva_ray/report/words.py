"""Numbers, labels and texts as a reader wants to see them."""

import math
import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise

MISSING = "\N{EN DASH}"
HIDDEN = ("Cc", "Cf", "Cs")  # control characters, among them those that turn the direction of text
PERCENT = "\N{NO-BREAK SPACE}%"
PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
POINTS = "\N{NO-BREAK SPACE}points"  # percentage points
JOINERS = "\u200c\u200d"  # which Persian and emoji need


def number(value, digits: int = 3) -> str:
    """`value` to `digits` significant digits, with a true minus sign; a dash where there is none."""
    value = finite(value, keep_infinite=True)
    if value is None:
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if value == round(value) and abs(value) < 10**digits:
        return _minus(f"{value:.0f}")
    if abs(value) >= 10**digits and abs(value) < 1e9:
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:.{digits}g}")


def fixed(value, places: int = 2) -> str:
    """`value` with a fixed number of decimals, so that a column lines up."""
    value = finite(value)
    return MISSING if value is None else _minus(f"{value:,.{places}f}")


def score(value) -> str:
    """`value` in [0, 1] with two decimals, or four where two would say 1 of what is less."""
    value = finite(value)
    return fixed(value, 4 if value is not None and 0.995 <= value < 1 else 2)


def count(value) -> str:
    """A whole number with thousands separators."""
    value = finite(value)
    return MISSING if value is None else _minus(f"{value:,.0f}")


def share(value) -> float:
    """A share in 0..1 as the length of a bar in percent; nothing where there is no number."""
    return round(100 * min(max(finite(value) or 0.0, 0.0), 1.0), 1)


def compact(value) -> str:
    """A count in the room of an axis label: 950, 2,000, 20k, 3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit > 1e3):
            return f"{value / unit:.3g}{name}"
    return count(value)


def percent(share) -> str:
    """A share in 0..1 as a percentage with one decimal."""
    share = finite(share)
    return MISSING if share is None else _minus(f"{100 * share:.1f}\N{NO-BREAK SPACE}%")


def points(share, error=None) -> str:
    """The difference of two shares in percentage points, with one decimal, its sign and its standard error."""
    share, error = finite(share), finite(error)
    if share is None:
        return MISSING
    text = _minus(f"{100 * share:.1f}")
    sign = "+" * (share > 0 and text.strip("0.") != "")
    spread = "" if error is None else f"{PLUS_MINUS}{100 * error:.1f}"
    return f"{sign}{text}{spread}{POINTS}"


def aligned(values: list, *, percent: bool = False, finest=None, most: int | None = None) -> list[str]:
    """Numbers of one column with the same decimals: three digits for the largest, and one for `finest`; `most` such
    decimals where no more can be told."""
    factor, unit = (100, PERCENT) if percent else (1, "")
    known = [finite(value) for value in values]
    top = max((factor * abs(value) for value in known if value is not None), default=0.0)
    if 1e-6 < top < 1e9:
        places = max(2 - math.floor(math.log10(top)), 0)
        least = finite(finest)
        if least:
            places = max(places, min(-math.floor(math.log10(factor * abs(least))), places + 3))
        places = places if most is None else min(places, most)
        return [MISSING if value is None else fixed(factor * value, places) + unit for value in known]
    return [MISSING if value is None else number(factor * value) + unit for value in known]


def ticks(values: list[float], *, percent: bool = False) -> list[str]:
    """Evenly spaced round numbers with as many decimals as tell them apart."""
    shown = [100 * value for value in values] if percent else list(values)
    top = max(map(abs, shown), default=0.0)
    close = 1e-6 * max((abs(b - a) for a, b in pairwise(shown)), default=top)
    places = next((p for p in range(9) if all(abs(round(v, p) - v) <= close for v in shown)), None)
    if places is None or 0 < top < 1e-4:  # 0.0000001 is read as a row of zeros
        digits = next((d for d in range(3, 12) if len({number(v, d) for v in shown}) == len(shown)), 12)
        texts = [re.sub("(e.)0+", "\\1", number(value, digits)) for value in shown]
    else:
        texts = [fixed(value, places) for value in shown]
    short = [compact(value) for value in shown]
    if 1e4 <= top < 1e12 and min(shown) >= 0 and len(set(short)) == len(shown):
        texts = short
    return [text + PERCENT * percent for text in texts]


def exact(values: list, *, percent: bool = False) -> list[str]:
    """Positions on an axis, to six digits."""
    return [number(100 * value, 6) + PERCENT if percent else number(value, 6) for value in values]


def plain(line: str) -> str:
    """Return a line of a page for a terminal, which may know no signs but ASCII."""
    for sign, instead in (("±", "+-"), ("\N{MINUS SIGN}", "-"), ("\N{NO-BREAK SPACE}", " ")):
        line = line.replace(sign, instead)
    return line


def sentence(said: str) -> str:
    """Return words as a sentence: a capital first, a full stop last."""
    return f"{said[0].upper()}{said[1:]}."


def plural(value, one: str, many: str) -> str:
    """`3 samples`, `1 sample`, `no samples`."""
    return counted(value, one, many) if finite(value) else f"no {many}"


def counted(value, one: str, many: str) -> str:
    """`3 samples`, `1 sample`, `0 samples`."""
    return f"{count(value)} {one if value == 1 else many}"


def hurting(title: str, n_detrimental) -> str:
    """The title over the samples of largest z, which says so where none of them hurts beyond the threshold."""
    return "Largest z (none beyond the threshold)" if n_detrimental == 0 else title


def memory(value) -> str:
    """Bytes in the binary unit that reads best."""
    value = finite(value)
    if value is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.3g}\N{NO-BREAK SPACE}{unit}"
        value /= 1024
    return f"{value:,.4g}\N{NO-BREAK SPACE}TiB"


def duration(value) -> str:
    """Seconds as milliseconds, seconds, minutes or hours."""
    value = finite(value)
    if value is None:
        return MISSING
    if value < 1:
        return f"{1000 * value:.0f}\N{NO-BREAK SPACE}ms"
    if value < 100:
        return f"{value:.3g}\N{NO-BREAK SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def label(value, length: int = 60) -> str:
    """A class, a number, or a list of either, in one short line."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        value = [f"{key}: {label(item)}" for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        items = [label(item, length) for item in list(value)[:9]]
        value = ", ".join(items[:8] + ["…"] * (len(items) > 8)) or "none"
    return clip(str(value), length)


def clip(text: str, length: int) -> str:
    """`text` on one line without control characters, cut at a word if longer than `length`."""
    text = text[: 8 * length].encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if unicodedata.category(c) in HIDDEN and c not in JOINERS else c for c in text)
    text = re.sub("[^\\S\N{NO-BREAK SPACE}]+", " ", text).strip()  # a number stays with its unit
    if len(text) <= length:
        return text
    head = text[: length - 1]
    word = head.rsplit(" ", 1)[0]
    return (word if len(word) > 0.7 * length else head).rstrip(" ,;:") + "…"


def finite(value, *, keep_infinite: bool = False) -> float | None:
    """`value` as a float, or None where it is missing, not a number, or infinite."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    if math.isnan(value) or (math.isinf(value) and not keep_infinite):
        return None
    return value


def _minus(text: str) -> str:
    """A true minus sign, in the exponent too, where a line would break after a hyphen, and none before a zero."""
    text = text.replace("e-", "e\N{MINUS SIGN}")
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") and text.strip("-0.,% ") else text.lstrip("-")
