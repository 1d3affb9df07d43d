"""How large a step of SGD may be: from the curvature of the loss of a linear model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.products import symmetric

MATVECS = 50  # after which the estimate is too low by a fifth at most for 65,000 columns, mostly by far less


def largest_eigenvalue(gram: Float[Tensor, "p p"]) -> float:
    """Return about the largest eigenvalue of a symmetric positive semidefinite matrix, never more than it.

    Power iteration from a fixed draw: the Rayleigh quotient v'Av / v'v after `MATVECS` products. 2 p^2 operations each.

    Args:
        gram: upper triangle.

    References:
        Kuczynski and Wozniakowski 1992: after k products the expected relative error is at most 0.871 ln(p) / (k - 1).
    """
    A = symmetric(gram)
    v = torch.randn(len(A), dtype=A.dtype, generator=torch.Generator().manual_seed(0))
    for _ in range(MATVECS):
        v = A @ v
        norm = float(v.norm())
        if not norm > 0:
            return 0.0
        v /= norm
    return float(v @ (A @ v))


def stable_rate(largest: float, size: float, batch: float, momentum: float, bend: float, decay: float) -> float:
    """Return a rate of SGD at which a linear model converges: 1 / (b (lambda + (1 + m) / (1 - m) R / B) + decay).

    It is 1 / (2 (1 + m)) of what is stable. With the whole table in every step, momentum m and the curvature H of the
    loss, that is below 2 (1 + m) / lambda_1(H). A batch of B rows adds noise of variance R w'Hw / B to the gradient,
    which momentum gathers: the mean square stays finite while
        rate (lambda_1 + (1 + m) / (1 - m) R / B) < 2 (1 + m),
    at m = 0 the bound of Ma et al. but for a factor (B - 1) / B of lambda_1. The second bound is approximate: it takes
    R H for E[|z|^2 z z'], which has the same trace, and lambda_1 for the curvature of every direction. Losses other
    than half the squared error have at most `bend` times the curvature. Of modules that are not linear it says nothing.

    Args:
        largest: largest eigenvalue of the mean of alpha z z', weights of mean 1.
        size: R, mean of alpha^2 |z|^4 over that of alpha |z|^2.
        batch: rows of a step.
        momentum: below 1.
        bend: most that the loss bends: 1 of half a squared error, 1/2 of cross-entropy, 1/4 of binary cross-entropy.
        decay: weight decay, which adds to every curvature.

    References:
        Polyak 1964 (heavy ball); Ma, Bassily and Belkin 2018, The power of interpolation (batches); Bohning 1992 (1/2).
    """
    noise = (1 + momentum) / (1 - momentum) * size / batch
    bound = bend * (largest + noise) + decay
    return 1 / bound if bound > 0 else float("inf")
