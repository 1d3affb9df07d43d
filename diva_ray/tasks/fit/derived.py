"""What is known of a dataset once every row has its derivative, and the choice of its ridge."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diva_ray.core.bands import band_slices
from diva_ray.core.ridge_choice import Moments, choose_ridge
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.errors import FitError

log = logging.getLogger("diva_ray")

MOST_CONDITION = 1e5  # above it a fit in float32 may cost more than 5e-5 of the derivative: 1e-5 there, 4e-5 at 1e6
MOST_CONDITION_FITTED = 3e6  # likewise with a fit and its residuals in float64, and float32 products after them
MOST_CONDITION_DUAL = 300.0  # times the root of n (1-norms of n x n matrices grow so): an inverse loses more
SETTLED = 1e-4  # of the loss: less does not change from one ridge of the grid to the next
MOST_LEVERAGE = 0.99  # above it float32 loses left-out residuals
MOST_ERROR = {"tf32": 1e-2, "bf16": 5e-2}  # of the checked rows' derivatives, by which low precision is given up


@dataclass(frozen=True)
class Derived:
    """What is known of the whole dataset once every row has its derivative.

    Attributes:
        fitted: the dtype of the products of the fit; of all others: `setup`.
        band_derivatives: dL/dridge by the columns of every band: their sum is dL/dridge.
        standard_errors: `exact`, `estimate` or `none`.
        form: `primal` or `dual`.
        by_source: of every source what `Setup.errors_of` takes.
    """

    setup: Setup
    fitted: torch.dtype
    ridge: float
    condition: float
    grid: RidgeGrid
    tally: Tally
    band_derivatives: Tensor
    standard_errors: str
    form: str
    by_source: Tensor
    agreement: dict[str, float] | None = None  # estimated standard errors against exact ones, on a few rows
    accuracy: dict[str, float] | None = None  # likewise derivatives, where products of low precision were asked for

    @property
    def penalty_derivatives(self) -> Tensor:
        """dL/dLambda of every band, Lambda = ridge / share: in the fit its columns are longer by the share's root."""
        shares = self.setup.scale.shares or (1.0,) * len(self.band_derivatives)
        return self.band_derivatives * torch.tensor(shares, dtype=torch.float64)


def precision_of(derived: Derived) -> str:
    """Return the precision of the products, for a person."""
    setup = derived.setup
    name, fitted = (str(dtype).removeprefix("torch.") for dtype in (setup.dtype, derived.fitted))
    words = name if setup.inputs == "full" else f"{setup.inputs} of whitened rows, else {name}"
    return words if fitted == name else f"{words}; {fitted} in the fit"


def penalty_pattern(setup: Setup) -> Tensor:
    """Return the relative penalty of every column: 1, but 0 on the intercept."""
    pattern = torch.ones(setup.scale.width, dtype=torch.float64)
    pattern[: int(setup.scale.intercept)] = 0
    return pattern


class RidgeGrid(NamedTuple):
    """Ridges with the summed leave-one-out squared errors of the rows that validate, none where none were tried; and
    which of them was chosen (`choose_ridge`), by which of them all rows that are fitted lose least."""

    tried: list[tuple[float, float]]
    chosen: int = 0
    of_all: int = 0

    @classmethod
    def of(cls, ridges: Tensor, moments: Moments) -> RidgeGrid:
        """Return the grid of these ridges."""
        tried = list(zip(ridges.tolist(), moments.validated[:-1].tolist(), strict=True))
        return cls(tried, choose_ridge(moments), int(moments.fitted[:-1].argmin()))

    @property
    def leans(self) -> bool:
        """Whether another ridge than the best of the rows that validate was chosen."""
        return bool(self.tried) and self.chosen != min(range(len(self.tried)), key=lambda k: self.tried[k][1])


def best_ridge(grid: RidgeGrid, *, warn: bool = True) -> float:
    """Return the chosen ridge; warn if a better one may lie beyond the grid."""
    ridge, loss = grid.tried[grid.chosen]
    if not loss < float("inf") and not grid.tried[-1][0] > 0:
        raise FitError(
            "data.features: some column must vary from row to row, got the same values in every row that has a weight. "
            "Change `data.features`."
        )
    if not loss < float("inf"):
        raise FitError(
            "ridge: some ridge must leave every leverage below 1, got none from "
            f"{grid.tried[0][0]:.3g} to {grid.tried[-1][0]:.3g}. Set `ridge` to a larger number, or add samples."
        )
    if warn and may_lie_further(grid):
        log.warning("the best ridge %.3g lies at the end of the grid: set `ridge` to look further", ridge)
    if warn and grid.leans:
        log.info("ridge %.3g: %s", ridge, leaning_in_words(grid))
    return ridge


def leaning_in_words(grid: RidgeGrid) -> str:
    """Return why another ridge was chosen than the one with the least error of the rows that validate."""
    least = min(grid.tried, key=lambda pair: pair[1])[0]
    return (
        f"of those under which the rows that validate lose no more than under {least:.3g}, but for a standard error, "
        f"the nearest to {grid.tried[grid.of_all][0]:.3g}, under which all rows lose least"
    )


def may_lie_further(grid: RidgeGrid) -> bool:
    """Return whether the chosen ridge is the first or the last of the grid, and the loss has not settled there."""
    losses, at = [loss for _, loss in grid.tried], grid.chosen
    if len(losses) < 2 or at not in (0, len(losses) - 1):
        return False
    return not abs(losses[1 if at == 0 else -2] - losses[at]) <= SETTLED * abs(losses[at])


def by_band(setup: Setup, columns: Tensor) -> Tensor:
    """Return the sum of a per-column quantity over every band."""
    slices = band_slices(setup.scale.widths, int(setup.scale.intercept))
    return torch.stack([columns[band].sum() for band in slices]).double()
