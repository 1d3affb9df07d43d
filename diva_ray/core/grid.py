"""Leave-one-out loss of a whole grid of ridges from one eigendecomposition and one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.factors import eigen_
from diva_ray.core.leave_out import LeverageError, check_leverage, leave_out, solve_left_out
from diva_ray.core.losses import Loss, subtract_from_targets
from diva_ray.core.products import multiply, multiply_triangular_, row_dot, symmetric
from diva_ray.core.ridge import FitSums

SIDE_BY_SIDE = 8192  # outputs of different ridges in one product


@dataclass(frozen=True)
class Rotation:
    """Coordinates x = Z basis in which A(ridge) is diagonal for every ridge, intercept apart.

    Attributes:
        basis: (p, k); its first row moves the origin to the weighted mean when there is an intercept.
        values: eigenvalues e of the centred Gram matrix in units of the penalty pattern, (k,).
        cross: x-coordinates of Z' D_alpha Y, (k, c).
        mean: weighted mean of the targets, (c,); 0 without an intercept.
        mean_variance: 1 / sum alpha; 0 without an intercept.
    """

    basis: Tensor
    values: Tensor
    cross: Tensor
    mean: Tensor
    mean_variance: float

    def to(self, dtype: torch.dtype) -> Rotation:
        """Return the same rotation in another dtype."""
        basis, values, cross, mean = (t.to(dtype) for t in (self.basis, self.values, self.cross, self.mean))
        return Rotation(basis, values, cross, mean, self.mean_variance)


def rotate(sums: FitSums, pattern: Float[Tensor, " p"]) -> Rotation:
    """Return the rotation of the family A(ridge) = Z' D_alpha Z + ridge diag(pattern); about 9 p^3 operations.

    Args:
        sums: merged fit sums.
        pattern: relative penalty of every column, > 0, but 0 on the intercept, column 0, if there is one.
    """
    gram, cross = symmetric(sums.gram), sums.cross.double()
    first = int(pattern[0] == 0)
    scale = pattern[first:].rsqrt()
    mean = torch.zeros(0, dtype=torch.float64)
    target, variance = torch.zeros_like(cross[0]), 0.0
    body, body_cross = gram[first:, first:], cross[first:]
    if first:
        mean, target, variance = gram[0, 1:] / gram[0, 0], cross[0] / gram[0, 0], 1.0 / float(gram[0, 0])
        body = body.contiguous()
        for rows, shift in zip(body.split(512), gram[1:, 0].split(512), strict=True):
            rows.sub_(torch.outer(shift, mean))
        del gram
        body_cross = body_cross - torch.outer(mean, cross[0])
    values, basis = eigen_(body.mul_(scale[:, None]).mul_(scale))
    basis.mul_(scale[:, None])
    rotated_cross = multiply(basis.T, body_cross)
    if first:
        basis = torch.cat([-(mean @ basis)[None], basis])
    return Rotation(basis, values.clamp_min(0), rotated_cross, target, variance)


def default_ridges(rotation: Rotation, count: int = 20) -> Float[Tensor, " ridges"]:
    """Return `count` ridges from 1e-6 to 1e3 times the mean eigenvalue, in equal ratios."""
    return float(rotation.values.mean()) * torch.logspace(-6, 3, count, dtype=torch.float64)


def grid_losses(
    Z: Float[Tensor, "n p"],
    Y: Tensor,
    alpha: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    offset: Float[Tensor, "n c"] | None,
    group_rows: list[Int[Tensor, "_ _"]],
    rotation: Rotation,
    ridges: Float[Tensor, " ridges"],
    loss: Loss,
) -> Float[Tensor, " ridges"]:
    """Return sum_i v_i l(f_i, y_i) of a block for every ridge; infinite where a leverage reaches 1."""
    return grid_sums(Z, Y, alpha, v, offset, group_rows, rotation, ridges, (lambda F, Y: loss(F, Y)[0],))[0]


def grid_sums(
    Z: Float[Tensor, "n p"],
    Y: Tensor,
    alpha: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    offset: Float[Tensor, "n c"] | None,
    group_rows: list[Int[Tensor, "_ _"]],
    rotation: Rotation,
    ridges: Float[Tensor, " ridges"],
    measures: Sequence[Callable[[Tensor, Tensor], Tensor]],
) -> Float[Tensor, "measures ridges"]:
    """Return sum_i v_i m(f_i, y_i) of a block for every measure (F, Y) -> (n,) and ridge.

    2 n p^2 + 2 n p (c + 1) ridges operations: q_i(ridge) = sum_k x_ik^2 / (e_k + ridge) + 1 / sum alpha. Infinite
    where a leverage reaches 1.
    """
    X = multiply(Z, rotation.basis)
    shrink = 1 / (rotation.values[:, None] + ridges.to(Z))
    leverages = multiply(X.square(), shrink) + rotation.mean_variance
    found = torch.empty(len(measures), len(ridges), dtype=torch.float64)
    at_once = max(1, SIDE_BY_SIDE // rotation.cross.shape[1])
    for first in range(0, len(ridges), at_once):
        # The predictions of some ridges side by side, from one product.
        solutions = shrink[:, first : first + at_once, None] * rotation.cross[:, None, :]
        predictions = multiply(X, solutions.flatten(1)).unflatten(1, solutions.shape[1:])
        for k in range(first, first + solutions.shape[1]):
            F = predictions[:, k - first] + rotation.mean
            F = F if offset is None else F + offset
            r = subtract_from_targets(Y, F)
            try:
                if group_rows:
                    origin = torch.full((len(X), 1), rotation.mean_variance**0.5, dtype=X.dtype, device=X.device)
                    left = leave_out(torch.cat([X * shrink[:, k].sqrt(), origin], 1), r, alpha, group_rows)
                else:
                    left = solve_left_out(r, alpha, leverages[:, k], 1 - alpha * leverages[:, k], [])
            except LeverageError:
                found[:, k] = torch.inf  # this ridge is too small for these features: not a candidate
                continue
            outputs = F + r - left.e
            for j, measure in enumerate(measures):
                found[j, k] = (v * measure(outputs, Y)).double().sum()
    return found


def outputs_factor(rotation: Rotation) -> Float[Tensor, "k k"]:
    """Return a lower R with |C'x| = |R'x| for C = `rotation.cross`, (k, c), k <= c; 2 k^2 c operations."""
    return torch.linalg.qr(rotation.cross.T, mode="r").R.T.contiguous()


def grid_squares(
    Z: Float[Tensor, "n p"],
    Y: Int[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    rotation: Rotation,
    ridges: Float[Tensor, " ridges"],
    factor: Float[Tensor, "k k"],
) -> Float[Tensor, " ridges"]:
    """Return what `grid_losses` does for the squared error of classes, rows alone, without a row's outputs.

    |y - f|^2 = 1 - 2 f_y + |f|^2, and |f|^2 by the factor of `outputs_factor`: 2 n p^2 + n p (p + 2) ridges operations,
    whatever c.
    """
    X = multiply(Z, rotation.basis)
    mean, known = rotation.mean, Y >= 0
    to_mean, mean_square = multiply(rotation.cross, mean[:, None]), mean @ mean
    solution = torch.where(known, mean[Y], torch.zeros_like(alpha)), rotation.cross.T[Y]
    found = torch.empty(len(ridges), dtype=torch.float64)
    for k, ridge in enumerate(ridges.tolist()):
        x = X / (rotation.values + ridge)
        room = 1 - alpha * (row_dot(X, x) + rotation.mean_variance)
        try:
            check_leverage(room)
        except LeverageError:
            found[k] = torch.inf
            continue
        own = solution[0] + torch.where(known, row_dot(x, solution[1]), torch.zeros_like(alpha))
        along = multiply(x, to_mean).squeeze(1)
        whole = multiply_triangular_(x, factor, upper=False)
        squares = known.to(own) - 2 * own + row_dot(whole, whole) + 2 * along + mean_square
        found[k] = (v * squares / room.square()).double().sum()
    return found
