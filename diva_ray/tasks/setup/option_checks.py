"""The checks that options of several jobs have in common: one of some words, at least or between numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import reduce
from typing import Any

from diva_ray.errors import InputError

CLUSTER = {
    "cluster.workers": 1, "cluster.threads": 1, "cluster.gpus_per_worker": 0, "cluster.start_timeout": 0.001,
    "cluster.pass_timeout": 0.001,
}  # fmt: skip


def check_choices(config: Any, allowed: Mapping[str, Collection[str]]) -> None:
    """Raise for options (dots lead into sections) that are none of the words they may be."""
    for name, words in allowed.items():
        if (value := _value(config, name)) not in words:
            listed = (" or " if len(words) == 2 else ", ").join(words)
            raise InputError(f"{name}: must be {listed}, got {value}. Change `{name}`.")


def check_least(config: Any, least: Mapping[str, float]) -> None:
    """Raise for numbers below the least they may be; None is none."""
    for name, bound in least.items():
        if (value := _value(config, name)) is not None and not value >= bound:
            raise InputError(f"{name}: must be at least {bound:g}, got {value}. Change `{name}`.")


def check_range(config: Any, **ranges: tuple[int, int]) -> None:
    """Raise for numbers outside [least, most]."""
    for name, (least, most) in ranges.items():
        if not least <= getattr(config, name) <= most:
            raise InputError(f"{name}: must be {least} to {most}, got {getattr(config, name)}. Change `{name}`.")


def check_size(eta: float) -> None:
    """Raise for a size of plain steps that is no number above 0."""
    if not 0 < eta < math.inf:
        raise InputError(f"eta: must be a number > 0, got {eta}. Change `eta`.")


def _value(config: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), config)
