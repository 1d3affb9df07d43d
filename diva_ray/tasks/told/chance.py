"""Whether a difference is told as one: the same rule on every page."""

from __future__ import annotations

from diva_ray.core.compare import NORMAL

CLEAR = NORMAL  # standard errors beyond which a difference is told as one
TONES = {"lower": "good", "higher": "hurts"}  # of errors and losses


def clear(difference: float, standard_error: float) -> str:
    """Return whether an error is lower or higher beyond chance; nothing where it is neither."""
    if not abs(difference) > CLEAR * standard_error:
        return ""
    return "lower" if difference < 0 else "higher"
