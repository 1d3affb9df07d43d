"""Samples as they are shown: cards of pictures and texts, else the rows of a table."""

import math
from collections.abc import Mapping

from diva_ray.report import words
from diva_ray.report.pictures import thumbnail

MAX_CARDS = 60
MAX_ROWS = 200
FIGURES = ("weight", "z", "derivative", "margin", "loss", "label_score")


def gallery(samples: list[dict], caption: str = "") -> dict:
    """Cards where there are pictures or texts, else rows, with the columns that any sample knows."""
    rows = [_known(row) for row in samples]
    if all(row.get("weight", 1) == 1 for row in rows):  # which says nothing
        rows = [{key: value for key, value in row.items() if key != "weight"} for row in rows]
    has = lambda *keys: any(key in row for row in rows for key in keys)  # noqa: E731
    cards = has("picture", "text")
    columns = {key for key in (*FIGURES, "true_label", "source") if has(key)}
    columns |= {"labels"} if has("label", "predicted_label") else set()
    columns |= {"found"} if has("is_label_issue", "is_detrimental") else set()
    columns |= {"caption"} if caption and has(caption) else set()
    shown = [row | {"caption": _caption(row, caption), "figures": _figures(row),
                    "thumbnail": thumbnail(row["picture"]) if "picture" in row else None}
             for row in rows[: MAX_CARDS if cards else MAX_ROWS]]  # fmt: skip
    return {"rows": shown, "cards": cards, "left_out": len(rows) - len(shown), "columns": columns}


def _known(sample: Mapping) -> dict:
    """What there is of a sample: neither None nor NaN."""
    return {k: v for k, v in sample.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


def _caption(row: dict, key: str) -> str:
    """The value of `key` on a card; a number has its name before it."""
    value = row.get(key)
    if value is None or not key:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{words.clip(key.replace('_', ' '), 40)} {words.number(value)}"
    return words.label(value, 160)


def _figures(row: dict) -> list[str]:
    """`weight 0.25`, `z 4.1`, `loss 2.50`, as far as known."""
    known = {"weight": lambda weight: words.number(weight, 2), "z": lambda z: words.fixed(z, 1), "loss": words.fixed}
    return [f"{name} {shape(row[name])}" for name, shape in known.items() if words.finite(row.get(name)) is not None]
