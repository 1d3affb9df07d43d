"""Which bands a row lacks, as one number, and which rows that lack some are judged side by side.

A row without a band is predicted worse, by right labels too: its errors are measured against those of rows like it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diva_ray.core.hashing import splitmix

SHIFT = 48  # bits of a code that tell which bands are missing; those above tell how many
COMMON = 1 / 64  # of the rows drawn that have the same bands: they are judged by themselves
MANY = 16  # bands missing, or more
S = TypeVar("S")  # knows `+`


class ByKind(dict[int, S]):
    """Sums by the kind of the rows; `+` merges them, kind by kind."""

    def __add__(self, other: ByKind[S]) -> ByKind[S]:
        total: dict[int, Any] = dict(self)
        for kind, one in other.items():
            total[kind] = total[kind] + one if kind in total else one
        return ByKind(total)


def gap_codes(missing: Sequence[Bool[Tensor, " n"] | None], n: int) -> Int[Tensor, " n"] | None:
    """Return a code of the bands that each of n rows lacks, 0 for none; None where no row lacks any.

    The number of them, times 2^48, and the sum of fixed random bits of each, modulo 2^48: two patterns of one code are
    as good as never met.
    """
    if not any(absent is not None and bool(absent.any()) for absent in missing):
        return None
    which, many = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    for absent, bits in zip(missing, splitmix(torch.arange(1, len(missing) + 1)), strict=True):
        if absent is not None:
            which += absent * bits
            many += absent
    return (many << SHIFT) + (which & ((1 << SHIFT) - 1))


def common_codes(drawn: Int[Tensor, " m"]) -> Int[Tensor, " k"]:
    """Return the codes, at most 64, that are common among rows drawn at random, in order."""
    codes, counts = torch.unique(drawn, return_counts=True)
    return codes[counts >= max(COMMON * len(drawn), 1)]


def kinds_of(codes: Int[Tensor, " n"], common: Int[Tensor, " k"]) -> Int[Tensor, " n"]:
    """Return the kind of every row: its code where that is common, else how many bands it lacks, MANY or more as one.

    So there are at most 64 + MANY + 1 kinds, however many bands there are.
    """
    return torch.where(torch.isin(codes, common), codes, (codes >> SHIFT).clamp_max(MANY))


def by_kind(kinds: Int[Tensor, " n"] | None, sums_of: Callable[[Any], S]) -> ByKind[S]:
    """Return the sums of the rows of every kind; `sums_of` takes an index of them. All are of kind 0 where none are
    given."""
    if kinds is None or not len(kinds):
        return ByKind({0: sums_of(slice(None))})
    return ByKind({kind: sums_of(kinds == kind) for kind in kinds.unique().tolist()})


def factors_of(kinds: Int[Tensor, " n"], factors: dict[int, float]) -> Float[Tensor, " n"]:
    """Return the factor of every row's kind (`core.sureness`); of a kind that was never met the least there is."""
    found = torch.full((len(kinds),), min(factors.values()), dtype=torch.float64)
    for kind, factor in factors.items():
        found[kinds == kind] = factor
    return found
