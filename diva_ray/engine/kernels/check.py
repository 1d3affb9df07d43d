"""Estimated standard errors against exact ones, on a few rows of every shard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core.derivative import Validation, pairwise_contributions
from diva_ray.core.losses import subtract_from_targets
from diva_ray.core.products import multiply
from diva_ray.data.prepare import prepare_rows
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, device_of, group_codes, targets
from diva_ray.engine.kernels.left_out import outputs_of
from diva_ray.engine.kernels.passes import scored_rows
from diva_ray.engine.reduce import Rows
from diva_ray.engine.setup import Setup

CHECKED = 64  # rows in all


@dataclass(frozen=True)
class Checked:
    """The rows that are computed exactly: whitened features (m, p), residuals (m, c), group codes."""

    U: Tensor
    r: Tensor
    codes: Tensor

    def sums(self, U: Tensor, t: Tensor, moved: Tensor, codes: Tensor) -> Tensor:
        """Return what a block of whole validation groups adds to the derivatives and to their squared standard errors,
        (2, m), by products of full precision; 2 n p m operations."""
        known, group = torch.unique(codes, return_inverse=True)
        at = torch.searchsorted(known, self.codes).clamp_max(len(known) - 1)
        inside = torch.where(known[at] == self.codes, at, -1)
        C = pairwise_contributions(multiply(self.U, U.T), self.r, inside, Validation(t, moved, group))
        return torch.stack([C.double().sum(1), C.double().square().sum(1)])


def _positions(shard: Shard, known: Known) -> list[int]:
    count = min(len(shard), -(-CHECKED // known["shards"]))
    return torch.linspace(0, len(shard) - 1, count).long().tolist()


def sample(shard: Shard, known: Known) -> Rows:
    """Return the checked rows of a shard: features as the fit sees them, residuals, group codes."""
    setup: Setup = known["setup"]
    rows = torch.tensor(_positions(shard, known))
    into = torch.empty(len(rows), setup.scale.width, dtype=setup.dtype, device=device_of(known))
    Z = prepare_rows(shard, rows, setup.scale, into)
    offset = None if shard.offset is None else shard.offset[rows.to(shard.offset.device)]
    F = outputs_of(Z, offset, known).cpu()
    return Rows((Z.cpu(), subtract_from_targets(targets(shard, setup)[rows], F), group_codes(shard, known)[rows]))


def estimated(shard: Shard, known: Known) -> Rows:
    """Return derivative and estimated standard error of the same rows, (m, 2)."""
    return Rows((scored_rows(shard, known)[_positions(shard, known)],))
