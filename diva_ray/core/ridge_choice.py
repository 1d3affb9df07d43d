"""Which ridge of a grid is taken, from sums of left-out losses: those of all rows know it where few rows validate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Moments(NamedTuple):
    """Sums of the left-out losses l(f_i, y_i) over rows, for every ridge, float64; infinite where a leverage reaches 1.

    Attributes:
        validated: sum_i v_i l_i, and behind the ridges sum_i v_i, (ridges + 1,).
        fitted: sum_i alpha_i l_i of the rows that are fitted, and behind the ridges the sum of the alpha_i of those
            that do not validate, (ridges + 1,).
        products: sum_u x_u x_u' with x_u = sum of v_i (l_i, 1) over the rows i that leave together, (ridges + 1,) * 2;
            0 where `validated` is infinite.
    """

    validated: Tensor
    fitted: Tensor
    products: Tensor

    @classmethod
    def unpack(cls, packed: Float[Tensor, "_ _"]) -> Moments:
        """Return the moments of packed ones, (ridges + 3, ridges + 1), which add up."""
        return cls(packed[0], packed[1], packed[2:])


def pack_moments(
    losses: Float[Tensor, "n ridges"],
    alpha: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    group_rows: list[Int[Tensor, "_ _"]],
) -> Float[Tensor, "ridges+3 ridges+1"]:
    """Return the `Moments` of a block of rows, packed; n ridges^2 operations."""
    refused = torch.cat([torch.isinf(losses).any(0), losses.new_zeros(1, dtype=torch.bool)])
    losses = torch.cat([losses.double(), v.new_ones(len(v), 1).double()], 1).masked_fill(refused, 0.0)
    validated = v.double()[:, None] * losses
    alone = torch.ones(len(losses), 1, dtype=torch.float64, device=losses.device)
    products = torch.zeros(losses.shape[1], losses.shape[1], dtype=torch.float64, device=losses.device)
    for rows in group_rows:
        together = validated[rows].sum(1)
        products += together.T @ together
        alone[rows] = 0.0
    products += (validated * alone).T @ validated
    fitted = alpha.double() @ losses
    fitted[-1] = alpha[v == 0].double().sum()
    sums = torch.stack([validated.sum(0), fitted]).masked_fill(refused, torch.inf)
    return torch.cat([sums, products]).cpu()


def choose_ridge(moments: Moments, errors: float = 1.0) -> int:
    """Return which ridge is the nearest to the one under which all rows that are fitted lose least, among those under
    which the rows that validate lose no more than under their best, but for `errors` standard errors.

    Their best, where all of those validate, whatever they weigh. Few of them, five a class, choose between ridges by
    chance, and a one-standard-error rule (Breiman et al. 1984) mends that. The error is that of a paired difference
    over units that leave together, as of a ratio: they may weigh differently.
    """
    validated, total = moments.validated[:-1], float(moments.validated[-1])
    best, fitted = int(validated.argmin()), moments.fitted[:-1]
    if not bool(torch.isfinite(validated[best])) or not total > 0 or not float(moments.fitted[-1]) > 0:
        return best
    S, difference = moments.products, (validated - validated[best]) / total
    squares = S.diagonal()[:-1] - 2 * S[best, :-1] + S[best, best]
    along = S[:-1, -1] - S[best, -1]
    variance = (squares - 2 * difference * along + difference.square() * S[-1, -1]).clamp_min(0.0) / total**2
    units = total**2 / float(S[-1, -1])  # as many as weigh alike; one says nothing of others
    error = (variance * units / (units - 1)).sqrt() if units > 1 + 1e-9 else torch.full_like(validated, torch.inf)
    alike = torch.nonzero(torch.isfinite(validated) & (difference <= errors * error)).squeeze(1)
    return int(alike[(alike - int(fitted.argmin())).abs().argmin()])
