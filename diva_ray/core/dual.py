"""The n x n form, for n < p: the same answers from the kernel matrix, exact at any ridge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.adjoint import own_blocks
from diva_ray.core.factors import inverse_
from diva_ray.core.leave_out import LeftOut
from diva_ray.core.losses import subtract_from_targets
from diva_ray.core.products import kernel, multiply


@dataclass(frozen=True)
class DualFit:
    """The fit in sample coordinates.

    Attributes:
        K: z_i' A^-1 z_j, (n, n); its diagonal is (1 - room) / alpha only to the absolute rounding of room.
        room: 1 - h, to full relative precision, (n,).
        r: residuals y - W'z (offset included), (n, c).
        W: ridge solution, (p, c).
        spread: A^-1 Z', (p, n), from which derivatives of penalties follow; None unless asked for.
        condition: estimated condition number of the inverted matrix.
    """

    K: Tensor
    room: Tensor
    r: Tensor
    W: Tensor
    spread: Tensor | None
    condition: float


def fit_dual(
    Z: Float[Tensor, "n p"],
    Y: Tensor,
    alpha: Float[Tensor, " n"],
    penalty: Float[Tensor, " p"],
    offset: Float[Tensor, "n c"],
    *,
    spread: bool = False,
) -> DualFit:
    """Return the ridge fit through C = (Z Lambda^-1 Z' + D_alpha^-1)^-1; n^2 p + n^3 operations, n^2 memory once
    when every weight is positive.

    With an intercept (penalty 0 on column 0) C becomes C - C11'C / 1'C1. For rows i, j of positive weight
    r = D^-1 C y, 1 - h_i = C_ii / alpha_i, z_i' A^-1 z_j = -C_ij / (alpha_i alpha_j); rows of weight 0 are predicted.

    Raises:
        ValueError: a column other than the first has no penalty, or the matrix is singular in this precision.
    """
    first = int(penalty[0] == 0)
    if not bool((penalty[first:] > 0).all()):
        raise ValueError("fit_dual: penalties must be > 0 but on the intercept, got 0. Increase `ridge`.")
    active, body = alpha > 0, Z[:, first:]
    everything = bool(active.all())
    full = kernel(body, penalty[first:].rsqrt().to(Z))
    a = alpha[active]
    rows = Z if everything else Z[active]  # a selection copies
    gram = full if everything else full[active][:, active]
    gram.diagonal().add_(1 / a)
    C, condition = inverse_(gram)
    ones = C.sum(1)
    total = ones.sum()
    mean = ones / total  # how the intercept weighs the targets; it takes no part without an intercept
    if first:
        C.addr_(ones, mean, alpha=-1)
    target = subtract_from_targets(Y, offset)
    beta = multiply(C, target[active])
    room, r = torch.ones_like(alpha), target.clone()
    room[active], r[active] = C.diagonal() / a, beta / a[:, None]
    W = torch.zeros(Z.shape[1], offset.shape[1], dtype=Z.dtype, device=Z.device)
    inverse_penalty = (1 / penalty[first:]).to(Z)
    W[first:] = inverse_penalty[:, None] * multiply(rows.T, beta)[first:]
    if first:
        W[0] = (a / a.sum()) @ (target[active] - multiply(rows, W))  # W[0] is 0 until here
    r[~active] = target[~active] - Z[~active] @ W
    weights = full[~active][:, active] @ C + (mean if first else 0)  # how an idle row's prediction weighs the targets
    maps = None
    if spread:
        maps = torch.empty(body.shape[1], len(Z), dtype=Z.dtype, device=Z.device)
        maps[:, active] = inverse_penalty[:, None] * multiply(rows.T, C)[first:] / a
        maps[:, ~active] = inverse_penalty[:, None] * (body[~active] - weights @ rows[:, first:]).T
    if everything:
        K = C.neg_().div_(a).div_(a[:, None])
        K.diagonal().copy_((1 - room) / a)
        return DualFit(K, room, r, W, maps, condition)
    within = full[~active][:, ~active] - (full[~active][:, active] @ C) @ full[active][:, ~active]
    if first:
        gap = full[~active][:, active] @ mean
        within += 1 / total - gap - gap[:, None]
    K = torch.empty_like(full)
    order = torch.cat([torch.nonzero(active), torch.nonzero(~active)]).squeeze(1)
    upper = torch.cat([-C / a / a[:, None], (weights / a).T], 1)
    K[order[:, None], order] = torch.cat([upper, torch.cat([weights / a, within], 1)])
    K.diagonal()[active] = (1 - room[active]) / a
    return DualFit(K, room, r, W, maps, condition)


def penalty_derivative(
    fit: DualFit, left: LeftOut, alpha: Float[Tensor, " n"], t: Float[Tensor, "n c"], penalty: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Return dL/dLambda of every column (0 on the intercept), as `adjoint.solve_adjoint` does in the primal."""
    if fit.spread is None:
        raise ValueError("penalty_derivative: the fit must hold A^-1 Z', got none. Fit with `spread=True`.")
    first = int(penalty[0] == 0)
    result = torch.zeros(len(penalty), dtype=torch.float64)
    P = multiply(fit.spread, t)
    weight, blocks = own_blocks(left, alpha, t)
    quadratic = fit.spread.square() @ weight
    for group, B in blocks:  # by B itself: rounding of its eigenvectors would reach rows of weight 0, which lie far out
        own = fit.spread[:, group.rows]
        quadratic += (torch.einsum("pmk,mkl->pml", own, B) * own).sum((1, 2))
    result[first:] = quadratic - (P * fit.W[first:]).sum(1)
    return result
