"""What is known of a dataset once every row has its derivative, and the choices that both forms share."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core.bands import band_slices
from diva_ray.engine.context import Setup, Tally
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

EXACT_ROWS = 10_000  # validation rows up to which standard errors are exact by default
EXACT_BYTES = 256 << 20  # and the memory of their whitened features
SIGN_VECTORS = 8  # random sign vectors beyond that
MOST_CONDITION = 3e4  # above it float32 products would cost more than 5e-5 of the derivative
MOST_CONDITION_DUAL = 300.0  # times the root of n (1-norms of n x n matrices grow so): an inverse loses more
MOST_LEVERAGE = 0.99  # likewise
MOST_ERROR = {"tf32": 1e-2, "bf16": 5e-2}  # of the checked rows' derivatives, by which low precision is given up


@dataclass(frozen=True)
class Derived:
    """What is known of the whole dataset once every row has its derivative.

    Attributes:
        band_derivatives: dL/dLambda summed over the columns of every band.
        standard_errors: `exact` or `estimate`.
        form: `primal` or `dual`.
        by_source: per source, derivative and contributions whose squares add up to its squared standard error.
    """

    setup: Setup
    ridge: float
    condition: float
    grid: list[tuple[float, float]]
    tally: Tally
    band_derivatives: Tensor
    standard_errors: str
    form: str
    by_source: Tensor
    agreement: dict[str, float] | None = None  # estimated standard errors against exact ones, on a few rows
    accuracy: dict[str, float] | None = None  # likewise derivatives, where products of low precision were asked for


def precision_of(setup: Setup) -> str:
    """Return the precision of the products, for a person."""
    name = str(setup.dtype).removeprefix("torch.")
    return name if setup.inputs == "full" else f"{setup.inputs} of whitened rows, else {name}"


def penalty_pattern(setup: Setup) -> Tensor:
    """Return the relative penalty of every column: 1, but 0 on the intercept."""
    pattern = torch.ones(setup.scale.width, dtype=torch.float64)
    pattern[: int(setup.scale.intercept)] = 0
    return pattern


def best_ridge(grid: list[tuple[float, float]], *, warn: bool = True) -> float:
    """Return the ridge with the least leave-one-out squared error; warn if it lies at the end of the grid."""
    ridge, loss = min(grid, key=lambda pair: pair[1])
    if not loss < float("inf"):
        raise InputError(
            "ridge: some ridge must leave every leverage below 1, got none from "
            f"{grid[0][0]:.3g} to {grid[-1][0]:.3g}. Set `ridge` to a larger number, or add samples."
        )
    if warn and ridge in (grid[0][0], grid[-1][0]):
        log.warning("the best ridge %.3g lies at the end of the grid: set `ridge` to look further", ridge)
    return ridge


def by_band(setup: Setup, columns: Tensor) -> Tensor:
    """Return the sum of a per-column quantity over every band."""
    slices = band_slices(setup.scale.widths, int(setup.scale.intercept))
    return torch.stack([columns[band].sum() for band in slices]).double()
