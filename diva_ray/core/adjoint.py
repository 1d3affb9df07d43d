"""The adjoint of the leave-one-out loss: sums over rows, and from them what the derivative of any row needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.factors import whitened_quadratic
from diva_ray.core.folding import Folding
from diva_ray.core.leave_out import Large, LeftOut, Small
from diva_ray.core.products import GramSum, add_upper_, copy_double, multiply, row_dot, symmetric
from diva_ray.core.ridge import Solution
from diva_ray.core.second_order import BendSums, SecondOrder


def own_blocks(
    left: LeftOut, alpha: Float[Tensor, " n"], t: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, " n"], list[tuple[Small | Large, Float[Tensor, "m _ _"]]]]:
    """Return alpha e't of every row alone (0 of those in groups), and B_G = sym(D e t') of groups, inside."""
    weight, blocks = alpha * row_dot(left.e, t), []
    for group in left.groups:
        rows = group.rows
        weight[rows] = 0
        outer = group.inner(alpha[rows][..., None] * left.e[rows]) @ group.inner(t[rows]).mT
        blocks.append((group, (outer + outer.mT) / 2))
    return weight, blocks


def group_weights(
    left: LeftOut, alpha: Float[Tensor, " n"], t: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, " n"], list[tuple[Small | Large, Tensor, Tensor]]]:
    """Return the weight of every row alone in S, and w and V of groups: B_G is V diag(w) V'.

    So a group of k rows enters S as k (or p) weighted rows `turned`, the same kind of sum as rows alone.
    """
    weight, blocks = own_blocks(left, alpha, t)
    return weight, [(group, *torch.linalg.eigh(B)) for group, B in blocks]


class AdjointAccumulator:
    """Adjoint sums of one reduction group in whitened coordinates: sum u t' and sum_G sym(U_G' D_G e_G t_G' U_G).

    The sums of the derivative, n p^2 + 2 n p c operations; and beside them those under sign vectors, which draw its
    standard error: sum u xi t', 2 n p c operations a vector, with fewer columns under a `folding`, and what stands for
    the second order (`core.second_order`).
    """

    def __init__(
        self,
        p: int,
        c: int,
        vectors: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        inputs: str = "full",
        *,
        folding: Folding | None = None,
    ) -> None:
        self.folding = folding
        columns = c if folding is None else folding.buckets
        self.M = torch.zeros(c + vectors * columns, p, dtype=torch.float64, device=device)
        self.inputs, self.dtype = inputs, dtype if inputs == "full" else torch.float32
        self.S = GramSum(p, self.dtype, device, inputs)
        self.moments = BendSums.zero(vectors, device) if vectors else None

    def add(
        self,
        U: Float[Tensor, "n p"],
        alpha: Float[Tensor, " n"],
        left: LeftOut,
        t: Float[Tensor, "n c"],
        signs: Float[Tensor, "n vectors"],
        second: SecondOrder | None = None,
    ) -> None:
        """Add a block of whole groups; rows of one group share their signs. `second` is needed with sign vectors."""
        weight, blocks = group_weights(left, alpha, t)
        if self.moments is not None and second is not None:
            self.moments = self.moments + BendSums.of(second, alpha, signs)
        U, t, weight, signs = (x.to(self.dtype) for x in (U, t, weight, signs))
        self.M += multiply(_side_by_side(t, signs, self.folding).T, U, self.inputs)
        self._add_gram(U, weight)
        for group, w, V in blocks:
            turned = group.turned(V.to(self.dtype), U)
            self._add_gram(turned.flatten(0, 1), w.to(self.dtype).flatten())

    def _add_gram(self, U: Tensor, weight: Tensor) -> None:
        if bool((weight != 0).any()):
            self.S.add(U, weight)

    def sums(self) -> AdjointSums:
        """Return the sums so far."""
        return AdjointSums(self.M.T, self.S.value(), self.moments)


@dataclass(frozen=True)
class AdjointSums:
    """Whitened adjoint sums M = sum u t', (p, c and the columns of every sign vector), and S (p, p), upper triangle;
    `moments` with sign vectors. `+`, `+=` merge."""

    M: Tensor
    S: Tensor
    moments: BendSums | None = None

    def __add__(self, other: AdjointSums) -> AdjointSums:
        return AdjointSums(self.M + other.M, add_upper_(copy_double(self.S), other.S), self._moments(other))

    def __iadd__(self, other: AdjointSums) -> AdjointSums:
        self.M.add_(other.M)
        add_upper_(self.S, other.S)
        return AdjointSums(self.M, self.S, self._moments(other))

    def _moments(self, other: AdjointSums) -> BendSums | None:
        return None if self.moments is None or other.moments is None else self.moments + other.moments


@dataclass(frozen=True)
class Adjoint:
    """What a row needs for its derivative: P = A^-1 M (p, c and the columns of every sign vector), and T (p, p) with
    z'Qz = (zT) . z; `moments` for its standard error.

    With `inputs` other than full it is of whitened rows u = L^-1 z: P = sum u t' and u' S u, whose products may be of
    low precision at any condition number.
    """

    P: Tensor
    T: Tensor
    inputs: str = "full"
    moments: BendSums | None = None

    def to(self, dtype: torch.dtype) -> Adjoint:
        """Return the same matrices in another dtype; those of whitened rows always in float32."""
        dtype = dtype if self.inputs == "full" else torch.float32
        return replace(self, P=self.P.to(dtype), T=self.T.to(dtype))

    def first(self, c: int) -> Adjoint:
        """Return what the derivative itself needs, without the sign vectors that draw its standard error."""
        return replace(self, P=self.P[:, :c], moments=None)


def solve_adjoint(solution: Solution, sums: AdjointSums, inputs: str = "full") -> tuple[Adjoint, Float[Tensor, " p"]]:
    """Return the adjoint, and dL/dLambda of every column; p^3 operations.

    dL/dLambda_k = -(P * W).sum(1)_k + Q_kk: the gradient of the leave-one-out loss with respect to all penalties is
    free. Summed over a band's columns it is the derivative of the band's penalty.
    """
    P = multiply(solution.Linv.T, sums.M)
    T = quadratic_form(sums.S, solution.Linv)
    penalty = T.diagonal() - row_dot(P[:, : solution.W.shape[1]].contiguous(), solution.W)
    if inputs == "full":
        return Adjoint(P, T, inputs, sums.moments), penalty
    return Adjoint(sums.M, as_product_(symmetric(sums.S)), inputs, sums.moments), penalty


def quadratic_form(S: Float[Tensor, "p p"], Linv: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return T with z'Qz = (zT) . z, Q = L'^-1 S L^-1, from the upper triangle of S; p^3 operations."""
    return as_product_(whitened_quadratic(Linv, S))


def as_product_(Q: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return a lower T with z'Qz = (zT) . z for a symmetric Q, in its memory."""
    diagonal = Q.diagonal().clone()
    T = Q.tril_().mul_(2)
    T.diagonal().copy_(diagonal)
    return T


def _side_by_side(t: Tensor, signs: Tensor, folding: Folding | None) -> Tensor:
    """Return t and, after it, t under every sign vector, (n, columns of M)."""
    if not signs.shape[1]:
        return t
    if folding is None:
        return torch.cat([t, (signs[:, :, None] * t[:, None, :]).flatten(1)], 1)
    drawn = [folding.fold(t, vector).mul_(signs[:, vector, None]) for vector in range(signs.shape[1])]
    return torch.cat([t, *drawn], 1)
