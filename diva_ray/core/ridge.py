"""Fit sums, how they merge, and the ridge solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.factors import inverse_factor_
from diva_ray.core.products import GramSum, add_rows_, add_upper_, copy_double, multiply, symmetric


@dataclass(frozen=True)
class FitSums:
    """Sums over rows from which the ridge is solved; `+` merges them (paper eq. 3), `+=` into float64 sums of its own.

    Attributes:
        gram: Z' D_alpha Z, upper triangle, (p, p).
        cross: Z' D_alpha (Y - offset), (p, c).
    """

    gram: Tensor
    cross: Tensor

    def __add__(self, other: FitSums) -> FitSums:
        return FitSums(add_upper_(copy_double(self.gram), other.gram), copy_double(self.cross).add_(other.cross))

    def __iadd__(self, other: FitSums) -> FitSums:
        add_upper_(self.gram, other.gram)
        self.cross.add_(other.cross)
        return self

    def columns(self, kept: Int[Tensor, " k"]) -> FitSums:
        """Return the sums of a fit to some of the columns, given in ascending order: a sub-block, no pass over rows."""
        return FitSums(self.gram[kept][:, kept], self.cross[kept])


class FitAccumulator:
    """Fit sums of one reduction group, block by block: n p^2 + n p (c if targets are values) operations."""

    def __init__(self, p: int, c: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.gram = GramSum(p, dtype, device)
        self.cross = torch.zeros(c, p, dtype=torch.float64, device=device)

    def add(self, Z: Tensor, Y: Tensor, alpha: Tensor, offset: Tensor | None = None) -> None:
        """Add the rows of one block; weights of 0 add nothing."""
        self.gram.add(Z, None if bool((alpha == 1).all()) else alpha)
        self.add_targets(Z, Y, alpha, offset)

    def add_targets(self, Z: Tensor, Y: Tensor, alpha: Tensor, offset: Tensor | None = None) -> None:
        """Add what a block's targets contribute, and leave the Gram matrix as it is."""
        if Y.ndim == 1:
            # Sums over the rows of each class: the one-hot product without its zeros.
            known = Y >= 0
            rows = Z if bool((alpha == 1).all()) and bool(known.all()) else Z[known] * alpha[known, None]
            classes, row = torch.unique(Y[known], return_inverse=True)
            found = add_rows_(torch.zeros(len(classes), Z.shape[1], dtype=Z.dtype, device=Z.device), row, rows)
            add_rows_(self.cross, classes, found.double())
        else:
            self.cross += multiply((Y * alpha[:, None]).T, Z)
        if offset is not None:
            self.cross -= multiply((offset * alpha[:, None]).T, Z)

    def sums(self) -> FitSums:
        """Return the sums so far."""
        return FitSums(self.gram.value(), self.cross.T)


@dataclass(frozen=True)
class Solution:
    """The ridge solution and its inverse factor, float64.

    Attributes:
        W: A^-1 Z' D_alpha Y, (p, c).
        Linv: inverse of the Cholesky factor L of A, (p, p).
        condition: estimated condition number of A (1-norm).
    """

    W: Tensor
    Linv: Tensor
    condition: float


def solve(sums: FitSums, penalty: Float[Tensor, " p"]) -> Solution:
    """Return W = (Z' D_alpha Z + diag(penalty))^-1 Z' D_alpha Y.

    Exact in float64; p^3 operations. Columns are scaled so that all bear the same penalty before A is factored (bands
    whose penalties lie decades apart would spoil its condition else). The relative error grows with the condition
    number of the scaled A, which is returned.

    Args:
        sums: merged fit sums.
        penalty: Lambda of every column, >= 0; 0 on the intercept.

    Raises:
        NotDefiniteError: A is not positive definite (penalty too small for these features).

    References:
        Dukler et al. 2022, eq. 3 and 4.
    """
    A = symmetric(sums.gram)
    A.diagonal().add_(penalty)
    scale = evening_scale(penalty)
    if scale is None:
        Linv, condition = inverse_factor_(A)
    else:
        Linv, condition = inverse_factor_(A.mul_(scale).mul_(scale[:, None]))
        Linv.mul_(scale)
    W = multiply(Linv.T, multiply(Linv, sums.cross.double()))
    return Solution(W, Linv, condition)


def evening_scale(penalty: Float[Tensor, " p"]) -> Float[Tensor, " p"] | None:
    """Return factors of the columns under which all penalties but zeros become the least; None where they are even."""
    bearing = penalty > 0
    if not bool(bearing.any()) or bool((penalty[bearing] == penalty[bearing][0]).all()):
        return None
    return torch.where(bearing, (penalty[bearing].min() / penalty).sqrt(), torch.ones_like(penalty))
