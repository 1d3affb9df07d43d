"""In which order partial sums are added: one order for every engine, so that their bits agree."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from diva_ray.data.shards import Extent

UNIT = 6  # consecutive shards whose partials are added first
SECTIONS = 48  # sums that the driver adds, at most: those of consecutive units


def sections(extents: list[Extent]) -> list[list[list[Extent]]]:
    """Return the shards in units, and those in sections: a pass is the sum over sections, in order, of the sums over
    their units, in order, of the sums over their shards, in order. A function of the number of shards alone."""
    units = [extents[k : k + UNIT] for k in range(0, len(extents), UNIT)]
    size = -(-len(units) // SECTIONS) or 1
    return [units[k : k + size] for k in range(0, len(units), size)]


def add_in_order(partials: Iterable[Any]) -> Any:
    """Return the sum, left to right: the first two make a new object, which takes the rest in place where it can."""
    rest = iter(partials)
    total = next(rest)
    for k, partial in enumerate(rest):
        total = operator.iadd(total, partial) if k else operator.add(total, partial)
    return total
