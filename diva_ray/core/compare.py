"""How models compare: means over seeds with t intervals, and differences over the rows of a test table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

CONFIDENCE = 0.95
NORMAL = 1.959964  # standard errors to either side that 95 % of normal values lie within


@dataclass(frozen=True)
class Interval:
    """A mean with its standard error and the ends of its 95 % interval; None where one value cannot tell."""

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None


def mean_interval(values: list[float]) -> Interval:
    """Return the mean of independent values with Student's t interval: mean +- t_(k-1) s / sqrt(k).

    Exact for normal values; it says nothing of what the values have in common, such as their test rows.
    """
    k, mean = len(values), float(np.mean(values))
    if k < 2:
        return Interval(mean, None, None, None)
    alike = min(values) == max(values)  # whose mean may differ from them by rounding
    error = 0.0 if alike else float(np.std(values, ddof=1)) / k**0.5
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, k - 1)) * error
    return Interval(mean, error, mean - reach, mean + reach)


@dataclass(frozen=True)
class RowSums:
    """Sums over test rows of the errors e of K models; `+` merges.

    Attributes:
        n: rows.
        total: sum e, (K,).
        products: sum e e', (K, K).
    """

    n: float
    total: Float[Tensor, " k"]
    products: Float[Tensor, "k k"]

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(self.n + other.n, self.total + other.total, self.products + other.products)

    def contrast(self, weights: Float[Tensor, " k"]) -> Interval:
        """Return the mean over rows of weights' e with its interval: paired, row against row.

        The variance of weights' e is weights' (sum e e') weights / n - mean^2, whatever the models have in common.
        Normal approximation: enough rows must differ.
        """
        mean = float(weights @ self.total) / self.n
        variance = max(float(weights @ self.products @ weights) / self.n - mean**2, 0.0)
        if self.n < 2:
            return Interval(mean, None, None, None)
        error = (variance / (self.n - 1)) ** 0.5
        reach = NORMAL * error
        return Interval(mean, error, mean - reach, mean + reach)


def ratio_error(
    mean: Tensor | float, squares: Tensor | float, products: Tensor | float, weight_squares: float, weight: float
) -> Tensor:
    """Return the standard error of mean = sum s / sum w over units, sqrt(sum (s - mean w)^2) / sum w, float64.

    Args:
        squares, products, weight_squares: sums of s^2, s w and w^2 over units; `weight`: sum w.

    References:
        Cochran 1977, Sampling Techniques, section 6.4, without its correction for few units.
    """
    mean, squares, products = (torch.as_tensor(x, dtype=torch.float64) for x in (mean, squares, products))
    spread = squares - 2 * mean * products + mean.square() * weight_squares
    return spread.clamp_min(0).sqrt() / weight


def wilson(share: float, rows: float, reach: float = NORMAL) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share that was found in so many rows: `reach` standard errors.

    References:
        Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    odd = reach**2 / rows
    middle, half = share + odd / 2, math.sqrt(odd * (max(share * (1 - share), 0.0) + odd / 4))
    return max((middle - half) / (1 + odd), 0.0), min((middle + half) / (1 + odd), 1.0)
