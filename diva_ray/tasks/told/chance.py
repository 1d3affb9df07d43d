"""Whether a difference is told as one: the same rule on every page."""

from __future__ import annotations

from diva_ray.core.compare import NORMAL
from diva_ray.report.words import percent
from diva_ray.tasks.fit.trials import error_figures

CLEAR = NORMAL  # standard errors beyond which a difference is told as one
FEW = 100  # rows: the error of fewer says little
TONES = {"lower": "good", "higher": "hurts"}  # of errors and losses


def clear(difference: float, standard_error: float) -> str:
    """Return whether an error is lower or higher beyond chance; nothing where it is neither."""
    if not abs(difference) > CLEAR * standard_error:
        return ""
    return "lower" if difference < 0 else "higher"


def few_in_words(task: str, rows: int, error: float, name: str) -> list[str]:
    """Return what is to be said of the counted error of a few rows: what it may be of others."""
    if task != "classification" or rows >= FEW:
        return []
    wrong = error * rows
    once = {"error": wrong, "weight": rows, "error_error": wrong, "weight_error": wrong, "weight_weight": rows}
    high = percent(error_figures(once, counted=True)["high"])
    return [f"The {name} is that of {rows} rows alone, and says little: of others up to {high} may be wrong (95 %)."]
