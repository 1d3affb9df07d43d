"""Weighted counts of rows in fixed cells, which passes add up, whatever the number of rows, and verdicts fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIMIT = 24.0  # of log-odds
ODDS = (-LIMIT, LIMIT, 160)  # a grid: first edge, last edge, cells; of the log-odds,
Z = (-2.5, 7.5, 125)  # of asinh(z): z from -6 to 904,
LOSS = (-30.0, 30.0, 1200)  # of log10(loss)


@dataclass(frozen=True)
class Histogram:
    """Weighted counts in fixed cells; `+` merges them. `squares`: sum of the squared weights of the rows."""

    counts: Tensor
    squares: float

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.squares + other.squares)

    def rows(self, total: float) -> float:
        """Return the effective number of rows behind a total weight, (sum w)^2 / sum w^2."""
        return total**2 / self.squares if self.squares > 0 else 0.0


def cell_of(x: Tensor, grid: tuple[float, float, int]) -> Tensor:
    """Return the cell of every value; those beyond the edges lie in the last ones."""
    low, high, cells = grid
    return x.nan_to_num(0.0).sub_(low).mul_(cells / (high - low)).clamp_(0, cells - 1).long()


def count_cells(cells: Tensor, w: Tensor, size: int) -> Tensor:
    """Return the weight in every cell, (size,)."""
    return torch.zeros(size, dtype=torch.float64, device=w.device).index_add_(0, cells, w)


def edges_of(grid: tuple[float, float, int]) -> np.ndarray:
    """Return the edges of the cells of a grid."""
    return np.linspace(grid[0], grid[1], grid[2] + 1)
