"""What shards add up to, and in which order: one order for every engine, so that bits agree."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


class Tally(dict[str, Any]):
    """Named sums; `+` adds them key by key, and keeps the larger of values named `max_...`. Both have the same."""

    def __add__(self, other: Mapping[str, Any]) -> Tally:
        if self.keys() != other.keys():  # else what one shard alone has told would be lost, or not, by its place
            raise KeyError(f"sums must have the same names, got {sorted(self.keys() ^ other.keys())} in one only")
        return Tally({k: max(v, other[k]) if k.startswith("max_") else v + other[k] for k, v in self.items()})


class Rows:
    """Tensors of rows side by side, in parts; `+` appends the other's parts, `joined` copies them together once."""

    def __init__(self, *parts: tuple[Tensor, ...]) -> None:
        self.parts = parts

    def __add__(self, other: Rows) -> Rows:
        return Rows(*self.parts, *other.parts)

    def joined(self) -> tuple[Tensor, ...]:
        """Return every column as one tensor."""
        return tuple(torch.cat(columns) for columns in zip(*self.parts, strict=True))


@dataclass(frozen=True)
class ByCode:
    """Sums of rows by a code of theirs, of the codes that occur, rising: of a million sources a shard has a few. `+`
    merges; to the bits what sums of every code would be."""

    codes: Tensor
    sums: Tensor

    @staticmethod
    def of(codes: Tensor, values: Tensor) -> ByCode:
        """Return the sums of the rows' values (n, m) by their codes (n,)."""
        held, place = torch.unique(codes, return_inverse=True)
        return ByCode(held, values.new_zeros(len(held), values.shape[1]).index_add_(0, place, values))

    @staticmethod
    def none(columns: int) -> ByCode:
        """Return the sums of no rows."""
        return ByCode(torch.zeros(0, dtype=torch.int64), torch.zeros(0, columns, dtype=torch.float64))

    def __add__(self, other: ByCode) -> ByCode:
        if torch.equal(self.codes, other.codes):
            return ByCode(self.codes, self.sums + other.sums)
        codes, place = torch.unique(torch.cat([self.codes, other.codes]), return_inverse=True)
        sums = self.sums.new_zeros(len(codes), self.sums.shape[1])
        sums[place[: len(self.codes)]] = self.sums
        return ByCode(codes, sums.index_add_(0, place[len(self.codes) :], other.sums))

    def whole(self, count: int) -> Tensor:
        """Return the sums of every code below `count`; these themselves where every code occurs."""
        if len(self.codes) == count:
            return self.sums
        every = self.sums.new_zeros(count, self.sums.shape[1])
        every[self.codes] = self.sums
        return every


@dataclass(frozen=True)
class Partial:
    """What one shard adds: any parts that know `+`."""

    sums: Any
    tally: Tally
    rows: Rows | None = None

    def __add__(self, other: Partial) -> Partial:
        sums = None if self.sums is None else self.sums + other.sums
        return Partial(sums, self.tally + other.tally, self._with_rows(other))

    def __iadd__(self, other: Partial) -> Partial:
        sums = None if self.sums is None else operator.iadd(self.sums, other.sums)
        return Partial(sums, self.tally + other.tally, self._with_rows(other))

    def _with_rows(self, other: Partial) -> Rows | None:
        return self.rows if other.rows is None else other.rows if self.rows is None else self.rows + other.rows
