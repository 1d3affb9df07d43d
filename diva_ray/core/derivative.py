"""The dataset derivative dL/dalpha of every row from the adjoint, and its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.adjoint import Adjoint
from diva_ray.core.folding import Folding
from diva_ray.core.hashing import splitmix
from diva_ray.core.leave_out import LeftOut, own_moves, rows_by_group_size
from diva_ray.core.products import multiply, multiply_triangular_, row_dot, spare
from diva_ray.core.second_order import BendSums

ROUNDING = 32  # units in the last place of the terms of a derivative that are no digit of it


@dataclass(frozen=True)
class OwnTerms:
    """What a row's own group adds to the sums, and must not add to its derivative.

    Attributes:
        own: own term of the derivative, (n,).
        drawn: of its first order alone, as sign vectors see it: (n,), or under a folding (n, vectors).
        reach, bend: see `second_order.SecondOrder`, (n,).
    """

    own: Tensor
    drawn: Tensor | None = None
    reach: Tensor | None = None
    bend: Tensor | None = None

    @classmethod
    def none(cls, Z: Float[Tensor, "n p"], reach: Float[Tensor, " n"] | None = None) -> OwnTerms:
        """Return those of rows without weight that validate nothing."""
        zeros = Z.new_zeros(len(Z))
        return cls(zeros) if reach is None else cls(zeros, zeros, reach, zeros)


def own_draws(
    left: LeftOut, r: Float[Tensor, "n c"], t: Float[Tensor, "n c"], vectors: int, folding: Folding | None
) -> Tensor:
    """Return the own term of every row's first order, (n,), or (n, vectors) where each sees other classes."""
    if folding is None:
        return own_moves(left, t, r)
    seen = [own_moves(left, folding.fold(t, k), folding.fold(r, k)) for k in range(vectors)]
    return torch.stack(seen, 1)


def derivative(
    Z: Float[Tensor, "n p"],
    r: Float[Tensor, "n c"],
    own: OwnTerms,
    signs: Float[Tensor, "n vectors"],
    adjoint: Adjoint,
    scratch: Float[Tensor, "m p"] | None = None,
    folding: Folding | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n vectors"]]:
    """Return d_j = r_j' P' z_j - own_j + z_j' Q z_j of every row, and draws of its standard error under sign vectors.

    Z holds whitened rows if the adjoint is of those; `scratch` is memory for m >= n rows. The derivative is exact;
    n p^2 + 2 n p c operations, and 2 n p c a vector. Rows of weight 0 (a pool) are scored like any other.

    Args:
        own: see `OwnTerms`; all of it with sign vectors.
        folding: of the classes under sign vectors, as the sums had it.

    References:
        Dukler et al. 2022, Prop. 1 and 3; here in three passes with O(p^2) state.
    """
    c, vectors = r.shape[1], signs.shape[1]
    projected = multiply(Z, adjoint.P, adjoint.inputs)
    turned = multiply_triangular_(spare(Z, scratch), adjoint.T, upper=False, inputs=adjoint.inputs)
    first, last = row_dot(r, projected[:, :c]), row_dot(Z, turned)
    d = first - own.own + last
    # What cancels to rounding is 0: over a standard error of rounding it would be a z of any size.
    size = first.abs().add_(own.own.abs()).add_(last.abs())
    d[d.abs() <= ROUNDING * torch.finfo(d.dtype).eps * size] = 0
    if not vectors:
        return d, torch.empty(len(Z), 0, dtype=Z.dtype, device=Z.device)
    assert own.drawn is not None and own.reach is not None and own.bend is not None and adjoint.moments is not None
    drawn = projected[:, c:].unflatten(1, (vectors, -1))
    if folding is None:
        draws = torch.einsum("nkc,nc->nk", drawn, r)
    else:
        draws = torch.stack([row_dot(folding.fold(r, k), drawn[:, k]) for k in range(vectors)], 1)
    mine = own.drawn if own.drawn.ndim == 2 else own.drawn[:, None]
    means, bend = adjoint.moments.means().to(Z), own.bend / adjoint.moments.whole().to(Z)
    draws -= signs * mine
    return d, draws.add_(own.reach[:, None] * (means - signs * bend[:, None]))


def drawn_variance(reach: Float[Tensor, " n"], moments: BendSums) -> Float[Tensor, " n"]:
    """Return what the variance of the second order adds to the mean square of every row's draws, float64.

    That sum estimates the squared standard error: E[draw^2] = sum_G C_jG^2 (Hutchinson 1989) to first order and in the
    mean of the second, with a relative spread of sqrt(2 / vectors).
    """
    return moments.variance() * reach.double().square()


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
    groups: list[Int[Tensor, "_ _"]] | None = None,
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
        groups: `rows_by_group_size` of theirs, where it is known.
    """
    groups = rows_by_group_size(validation.group) if groups is None else groups
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
            t, weighted = validation.t[rows], validation.weighted[rows].mT
            if t.shape[1] > 2 * t.shape[2]:  # rows than outputs
                moved = torch.einsum("nmc,mcl->nml", torch.einsum("nmk,mkc->nmc", near, t), weighted)
            else:
                moved = torch.einsum("nmk,mkl->nml", near, t @ weighted)
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


def random_signs(keys: Int[Tensor, " n"], vectors: int, seed: int) -> Float[Tensor, "n vectors"]:
    """Return columns of random signs, at most 64, a pure function of key, column and seed."""
    bits = splitmix(keys + splitmix(torch.full_like(keys[:1], 1_000_003 * (seed + 1))))
    columns = torch.arange(vectors, dtype=torch.int64, device=keys.device)  # each takes a bit of its own
    return 1.0 - 2.0 * ((bits[:, None] >> columns) & 1).double()
