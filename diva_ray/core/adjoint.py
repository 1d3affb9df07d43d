"""The adjoint of the leave-one-out loss: sums over rows, and from them what the derivative of any row needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.factors import whitened_quadratic
from diva_ray.core.folding import Folding
from diva_ray.core.leave_out import LeftOut
from diva_ray.core.products import GramSum, add_upper_, copy_double, multiply, row_dot, symmetric
from diva_ray.core.ridge import Solution

Each = Callable[..., list[Any]]  # (function, items, *shared) -> [function(item, *shared), ...]


def group_weights(
    left: LeftOut, alpha: Float[Tensor, " n"], t: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, " n"], list[tuple[Tensor, Tensor, Tensor]]]:
    """Return the weight of every row alone in S, and (rows, w, V) of groups: sym(D e t') = V diag(w) V'.

    So a group of k rows enters S as k weighted rows V'U, the same kind of sum as rows alone.
    """
    weight = alpha * row_dot(left.e, t)
    blocks = []
    for rows, _, _ in left.blocks:
        weight[rows] = 0
        outer = (alpha[rows][..., None] * left.e[rows]) @ t[rows].mT
        w, V = torch.linalg.eigh((outer + outer.mT) / 2)
        blocks.append((rows, w, V))
    return weight, blocks


class AdjointAccumulator:
    """Adjoint sums of one reduction group in whitened coordinates: sum u t' and sum_G sym(U_G' D_G e_G t_G' U_G).

    `copies` sets of sums are kept side by side, one for each column of signs: the first is the derivative (signs 1),
    the others draw its standard error. n p^2 + 2 n p c operations a copy. Of the others, `folding` keeps fewer columns
    of M, and with `first_order` there is no S.
    """

    def __init__(
        self,
        p: int,
        c: int,
        copies: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        inputs: str = "full",
        *,
        folding: Folding | None = None,
        first_order: bool = False,
    ) -> None:
        self.folding = folding
        columns = c if folding is None else folding.buckets
        self.M = torch.zeros(c + (copies - 1) * columns, p, dtype=torch.float64, device=device)
        self.inputs, self.dtype = inputs, dtype if inputs == "full" else torch.float32
        self.S = [GramSum(p, self.dtype, device, inputs) for _ in range(1 if first_order else copies)]

    def add(
        self,
        U: Float[Tensor, "n p"],
        alpha: Float[Tensor, " n"],
        left: LeftOut,
        t: Float[Tensor, "n c"],
        signs: Float[Tensor, "n copies"],
    ) -> None:
        """Add a block of whole groups; rows of one group share their sign."""
        weight, blocks = group_weights(left, alpha, t)
        U, t, weight, signs = (x.to(self.dtype) for x in (U, t, weight, signs))
        self.M += multiply(_side_by_side(t, signs, self.folding).T, U, self.inputs)
        self._add_gram(U, weight, signs)
        for rows, w, V in blocks:
            turned = V.to(self.dtype).mT @ U[rows]
            self._add_gram(turned.flatten(0, 1), w.to(self.dtype).flatten(), signs[rows].flatten(0, 1))

    def _add_gram(self, U: Tensor, weight: Tensor, signs: Tensor) -> None:
        if bool((weight != 0).any()):
            for copy, gram in enumerate(self.S):
                gram.add(U, weight * signs[:, copy])

    def sums(self) -> AdjointSums:
        """Return the sums so far."""
        return AdjointSums(self.M.T, tuple(gram.value() for gram in self.S))


@dataclass(frozen=True)
class AdjointSums:
    """Whitened adjoint sums M = sum u t', (p, c copies), and S (p, p) for every copy that has one; `+`, `+=` merge."""

    M: Tensor
    S: tuple[Tensor, ...]

    def __add__(self, other: AdjointSums) -> AdjointSums:
        return AdjointSums(
            self.M + other.M, tuple(add_upper_(copy_double(a), b) for a, b in zip(self.S, other.S, strict=True))
        )

    def __iadd__(self, other: AdjointSums) -> AdjointSums:
        self.M.add_(other.M)
        for a, b in zip(self.S, other.S, strict=True):
            add_upper_(a, b)
        return self


@dataclass(frozen=True)
class Adjoint:
    """What a row needs for its derivative: P = A^-1 M (p, c copies), and T with z'Qz = (zT) . z of every copy that has
    it.

    With `inputs` other than full it is of whitened rows u = L^-1 z: P = sum u t' and u' S u, whose products may be of
    low precision at any condition number.
    """

    P: Tensor
    T: tuple[Tensor, ...]
    inputs: str = "full"

    def to(self, dtype: torch.dtype) -> Adjoint:
        """Return the same matrices in another dtype; those of whitened rows always in float32."""
        dtype = dtype if self.inputs == "full" else torch.float32
        return replace(self, P=self.P.to(dtype), T=tuple(T.to(dtype) for T in self.T))

    def first(self, c: int) -> Adjoint:
        """Return what the derivative itself needs, without the copies that draw its standard error."""
        return replace(self, P=self.P[:, :c], T=self.T[:1])


def one_after_another(function: Callable[..., Any], items: Sequence[Any], *shared: Any) -> list[Any]:
    """Return function(item, *shared) of every item."""
    return [function(item, *shared) for item in items]


def solve_adjoint(
    solution: Solution, sums: AdjointSums, inputs: str = "full", each: Each = one_after_another
) -> tuple[Adjoint, Float[Tensor, " p"]]:
    """Return the adjoint of every copy, and dL/dLambda of every column; p^3 operations a copy (one for low `inputs`).

    dL/dLambda_k = -(P * W).sum(1)_k + Q_kk: the gradient of the leave-one-out loss with respect to all penalties is
    free. Summed over a band's columns it is the derivative of the band's penalty.

    Args:
        each: what runs the work of p^3, which every copy has for itself.
    """
    (P,) = each(_of_columns, [sums.M], solution.Linv)
    full = inputs == "full"
    forms = each(quadratic_form, sums.S if full else sums.S[:1], solution.Linv)
    penalty = forms[0].diagonal() - row_dot(P[:, : solution.W.shape[1]].contiguous(), solution.W)
    if full:
        return Adjoint(P, tuple(forms)), penalty
    return Adjoint(sums.M, tuple(as_product_(symmetric(S)) for S in sums.S), inputs), penalty


def quadratic_form(S: Float[Tensor, "p p"], Linv: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return T with z'Qz = (zT) . z, Q = L'^-1 S L^-1, from the upper triangle of S; p^3 operations."""
    return as_product_(whitened_quadratic(Linv, S))


def as_product_(Q: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return a lower T with z'Qz = (zT) . z for a symmetric Q, in its memory."""
    diagonal = Q.diagonal().clone()
    T = Q.tril_().mul_(2)
    T.diagonal().copy_(diagonal)
    return T


def _of_columns(M: Float[Tensor, "p k"], Linv: Float[Tensor, "p p"]) -> Float[Tensor, "p k"]:
    return multiply(Linv.T, M)


def _side_by_side(t: Tensor, signs: Tensor, folding: Folding | None) -> Tensor:
    """Return t under the signs of every copy, (n, columns of M)."""
    if folding is None:
        return (signs[:, :, None] * t[:, None, :]).flatten(1)
    others = [folding.fold(t, copy).mul_(signs[:, copy + 1, None]) for copy in range(signs.shape[1] - 1)]
    return torch.cat([t * signs[:, :1], *others], 1)
