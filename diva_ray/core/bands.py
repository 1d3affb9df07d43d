"""Bands (modalities): penalties, shares, and the least leave-one-out loss over them by its exact gradient.

Band m bears the penalty Lambda_m on each of its columns. Scaling it by sqrt(theta_m) under a common ridge is the same
fit with Lambda_m = ridge / theta_m: theta_m, with sum theta = 1, is the band's share. One Gram matrix of all bands
serves every choice of penalties; a choice costs a solve and one pass for its left-out loss, and the gradient comes with
it: dL/dLambda_k = Q_kk - (P * W).sum(1)_k (`adjoint.solve_adjoint`), summed over a band's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FLAT = 1e3  # loss over slope beyond which a start counts as flat
NEAR = 0.1  # how close, in the logarithm of every penalty, a descent has come to the end of another


def band_slices(widths: list[int], first: int) -> list[slice]:
    """Return the columns of every band; `first` columns (the intercept) come before them."""
    starts = [first + sum(widths[:k]) for k in range(len(widths))]
    return [slice(start, start + width) for start, width in zip(starts, widths, strict=True)]


def penalty_of_columns(penalties: Float[Tensor, " bands"], widths: list[int], first: int) -> Float[Tensor, " p"]:
    """Return Lambda of every column: its band's, and 0 on the intercept."""
    return torch.cat([torch.zeros(first, dtype=torch.float64), penalties.repeat_interleave(torch.tensor(widths))])


def shares_of(penalties: Float[Tensor, " bands"]) -> tuple[float, Float[Tensor, " bands"]]:
    """Return ridge and shares theta of penalties Lambda_m = ridge / theta_m, sum theta = 1."""
    ridge = 1 / float((1 / penalties).sum())
    return ridge, ridge / penalties


def share_derivatives(
    gradient: Float[Tensor, " bands"], penalties: Float[Tensor, " bands"]
) -> tuple[float, Float[Tensor, " bands"]]:
    """Return dL/dridge at fixed shares and dL/dtheta at a fixed ridge, from dL/dLambda of every band.

    Chain rule on Lambda_m = ridge / theta_m: dL/dridge = sum_m dL/dLambda_m / theta_m and
    dL/dtheta_m = -dL/dLambda_m ridge / theta_m^2.
    """
    ridge, shares = shares_of(penalties)
    return float((gradient / shares).sum()), -gradient * ridge / shares.square()


@dataclass
class Descent:
    """A search that goes down from one start.

    Attributes:
        start: what it began with, in words.
        penalties: the best found, (bands,).
        loss: there.
        losses: of every evaluation, in order.
    """

    start: str
    penalties: Tensor
    loss: float
    losses: list[float] = field(default_factory=list)


def descend(
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    start: Float[Tensor, " bands"],
    low: Float[Tensor, " bands"],
    high: Float[Tensor, " bands"],
    most: int,
    name: str = "",
    before: Sequence[Descent] = (),
) -> Descent:
    """Return the best penalties that L-BFGS-B finds from a start, within bounds, in the logarithm of every penalty.

    It ends where the loss falls by less than a millionth, or where an earlier descent ended better.

    Args:
        evaluate: penalties -> (L / n, dL/dLambda / n); one pass over the data each.
        start, low, high: penalties > 0.
        most: evaluations after which no further line search begins.
    """
    from scipy.optimize import minimize  # takes 0.4 s, which other jobs do not pay

    start = start.clamp(low, high)
    first, slope = evaluate(start)
    found = Descent(name, start, first, [first])
    # Within bounds L-BFGS-B begins with a step as long as the gradient: here e-fold in the steepest penalty, no more.
    scale = min(1 / float((slope * start).abs().max().clamp_min(1e-300)), FLAT / first) if first > 0 else 1.0

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        penalties = torch.from_numpy(np.exp(x))
        if np.array_equal(x, begin):
            return scale * first, scale * (slope * start).numpy()
        loss, gradient = evaluate(penalties)
        found.losses.append(loss)
        if loss < found.loss:
            found.penalties, found.loss = penalties, loss
        return scale * loss, scale * (gradient * penalties).numpy()

    begin = start.log().numpy()
    bounds = list(zip(low.log().tolist(), high.log().tolist(), strict=True))
    ends = [(one.penalties.log().numpy(), one.loss) for one in before]

    def known(intermediate_result: Any) -> None:  # the name by which SciPy gives it one
        x, loss = intermediate_result.x, intermediate_result.fun
        if any(scale * end <= loss and np.abs(x - there).max() < NEAR for there, end in ends):
            raise StopIteration

    options = {"ftol": 1e-6, "gtol": 1e-7, "maxfun": most}
    minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=known)
    return found
