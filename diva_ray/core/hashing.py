"""Bits of integer keys that look random and are the same everywhere: draws and signs that no worker has to be told."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor


def splitmix(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return 64 well-mixed bits of every number: splitmix64 (Steele, Lea, Flood 2014) in wrapping int64."""
    return mixed(x * -7046029254386353131)


def mixed(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return the last step of splitmix64, a bijection that keeps 0."""
    # `>>` is arithmetic, so the sign extension is masked off.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))
