"""In which order partial sums are added: one order for every engine, so that their bits agree."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from diva_ray.data.shards import Extent

UNIT = 6  # consecutive shards whose partials are added first; a worker that holds all of them returns one sum


def units(extents: list[Extent]) -> list[list[Extent]]:
    """Return the shards in units: a pass is the sum over units, in order, of the sums over their shards, in order."""
    return [extents[k : k + UNIT] for k in range(0, len(extents), UNIT)]


def add_in_order(partials: Iterable[Any]) -> Any:
    """Return the sum, left to right: the first two make a new object, which takes the rest in place where it can."""
    rest = iter(partials)
    total = next(rest)
    for k, partial in enumerate(rest):
        total = operator.iadd(total, partial) if k else operator.add(total, partial)
    return total
