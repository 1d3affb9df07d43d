"""The dataset derivative dL/dalpha, its standard error, and the derivatives of penalties, in O(p^2) state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.leave_out import LeftOut, rows_by_group_size
from diva_ray.core.products import (
    GramSum,
    copy_double,
    multiply,
    multiply_triangular_,
    row_dot,
    symmetric,
    whitened_quadratic,
)
from diva_ray.core.ridge import Solution


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
    the others draw its standard error. n p^2 + 2 n p c operations a copy.
    """

    def __init__(
        self, p: int, c: int, copies: int, dtype: torch.dtype, device: torch.device | str = "cpu", inputs: str = "full"
    ) -> None:
        self.M = torch.zeros(c * copies, p, dtype=torch.float64, device=device)
        self.inputs, self.dtype = inputs, dtype if inputs == "full" else torch.float32
        self.S = [GramSum(p, self.dtype, device, inputs) for _ in range(copies)]

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
        self.M += multiply((signs[:, :, None] * t[:, None, :]).flatten(1).T, U, self.inputs)
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
    """Whitened adjoint sums M = sum u t', (p, c copies), and S (p, p) for every copy; `+` and `+=` merge them."""

    M: Tensor
    S: tuple[Tensor, ...]

    def __add__(self, other: AdjointSums) -> AdjointSums:
        return AdjointSums(
            self.M + other.M, tuple(copy_double(a).add_(b) for a, b in zip(self.S, other.S, strict=True))
        )

    def __iadd__(self, other: AdjointSums) -> AdjointSums:
        self.M.add_(other.M)
        for a, b in zip(self.S, other.S, strict=True):
            a.add_(b)
        return self


@dataclass(frozen=True)
class Adjoint:
    """What a row needs for its derivative: P = A^-1 M (p, c copies) and, for every copy, T with z'Qz = (zT) . z.

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


def solve_adjoint(solution: Solution, sums: AdjointSums, inputs: str = "full") -> tuple[Adjoint, Float[Tensor, " p"]]:
    """Return the adjoint of every copy, and dL/dLambda of every column; p^3 operations a copy (one for low `inputs`).

    dL/dLambda_k = -(P * W).sum(1)_k + Q_kk: the gradient of the leave-one-out loss with respect to all penalties is
    free.
    Summed over a band's columns it is the derivative of the band's penalty.
    """
    P = multiply(solution.Linv.T, sums.M)
    T = []
    penalty = torch.empty(0)
    for copy, S in enumerate(sums.S):
        Q = whitened_quadratic(solution.Linv, S) if copy == 0 or inputs == "full" else S
        if copy == 0:
            c = solution.W.shape[1]
            penalty = Q.diagonal() - row_dot(P[:, :c].contiguous(), solution.W)
        Q = Q if inputs == "full" else symmetric(S)
        T.append(Q.tril_().add_(Q.tril(-1)))
    return Adjoint(P if inputs == "full" else sums.M, tuple(T), inputs), penalty


def derivative(
    Z: Float[Tensor, "n p"],
    r: Float[Tensor, "n c"],
    own: Float[Tensor, " n"],
    signs: Float[Tensor, "n copies"],
    adjoint: Adjoint,
    scratch: Float[Tensor, "m p"] | None = None,
) -> Float[Tensor, "n copies"]:
    """Return d_j = r_j' P' z_j - own_j + z_j' Q z_j of every row and copy; `scratch` is memory for m >= n rows.

    Z holds whitened rows if the adjoint is of those.

    Exact; n p^2 + 2 n p c operations a copy. Rows of weight 0 (a pool) are scored like any other.

    References:
        Dukler et al. 2022, Prop. 1 and 3; here in three passes with O(p^2) state.
    """
    c = r.shape[1]
    projected = multiply(Z, adjoint.P, adjoint.inputs)
    result = torch.empty(len(Z), len(adjoint.T), dtype=Z.dtype, device=Z.device)
    scratch = torch.empty_like(Z) if scratch is None else scratch[: len(Z)]
    for copy, T in enumerate(adjoint.T):
        linear = row_dot(r, projected[:, copy * c : (copy + 1) * c])
        quadratic = row_dot(Z, multiply_triangular_(scratch.copy_(Z), T, upper=False, inputs=adjoint.inputs))
        result[:, copy] = linear - signs[:, copy] * own + quadratic
    return result


@dataclass(frozen=True)
class Validation:
    """Validation rows as a row's pairwise contributions see them.

    Attributes:
        t: adjoint residuals, (m, c).
        weighted: alpha e, (m, c).
        group: group code of every row, consecutive from 0, (m,).
    """

    t: Tensor
    weighted: Tensor
    group: Tensor


def pairwise_contributions(
    K: Float[Tensor, "n m"],
    r: Float[Tensor, "n c"],
    group: Int[Tensor, " n"],
    validation: Validation,
) -> Float[Tensor, "n groups"]:
    """Return C_jG = (K_jG t_G) . (r_j + K_jG D_G e_G), what validation group G adds to the derivative of row j.

    dL/dalpha_j = sum_G C_jG; its standard error over validation samples is sqrt(sum_G C_jG^2). C_jG = 0 for j in G.
    2 n m c operations, and 2 n m k for groups of k rows. Where every group is one row, columns follow the rows of
    `validation`, else its group codes.

    Args:
        K: z_j' A^-1 z_i, entries within a group may hold anything finite.
        r: residuals of the rows j.
        group: group code of every row j, in the codes of `validation.group`; -1 in none.
        validation: the rows i.
    """
    groups = rows_by_group_size(validation.group)
    if not groups:
        column = torch.argsort(validation.group)  # of every group code
        contributions = _alone(K, r, validation.t, validation.weighted)
    else:
        column = torch.arange(int(validation.group.max()) + 1, device=K.device)
        contributions = torch.empty(len(K), len(column), dtype=K.dtype, device=K.device)
        lone = torch.ones(len(validation.group), dtype=torch.bool, device=K.device)
        products = multiply(r, validation.t.T)
        for rows in groups:
            lone[rows] = False
            near = K[:, rows]
            moved = torch.einsum("nmk,mkl->nml", near, validation.t[rows] @ validation.weighted[rows].mT)
            contributions[:, validation.group[rows[:, 0]]] = near.mul_(moved.add_(products[:, rows])).sum(2)
        if bool(lone.any()):
            alone = _alone(K[:, lone], r, validation.t[lone], validation.weighted[lone])
            contributions[:, validation.group[lone]] = alone
    inside = torch.nonzero(group >= 0).squeeze(1)
    contributions[inside, column[group[inside]]] = 0
    return contributions


def _alone(K: Tensor, r: Tensor, t: Tensor, weighted: Tensor) -> Tensor:
    """Return K_ji t_i . (r_j + K_ji alpha_i e_i), validation rows alone."""
    contributions = multiply(r, t.T)
    return contributions.addcmul_(K, row_dot(weighted, t)[None, :]).mul_(K)


def random_signs(keys: Int[Tensor, " n"], copies: int, seed: int) -> Float[Tensor, "n copies"]:
    """Return a first column of 1 and `copies` columns of random signs, a pure function of key, column and seed.

    E[d_xi^2] = sum_G C_jG^2 for the derivative d_xi drawn with signs xi (Hutchinson 1989), so the mean square over
    columns estimates the squared standard error, with a relative spread of sqrt(2 / copies).
    """
    columns = torch.arange(copies, dtype=torch.int64, device=keys.device)
    bits = splitmix(keys[:, None] + splitmix(columns + 1_000_003 * (seed + 1)))
    signs = 1.0 - 2.0 * ((bits >> 40) & 1).double()
    return torch.cat([torch.ones(len(keys), 1, dtype=torch.float64, device=keys.device), signs], 1)


def splitmix(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return 64 well-mixed bits of every number: splitmix64 (Steele, Lea, Flood 2014) in wrapping int64."""
    # `>>` is arithmetic, so the sign extension is masked off.
    x = x * -7046029254386353131
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))
