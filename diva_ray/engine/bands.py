"""The pass that tells how good fits to some of the bands are, several of them in one read of every block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.core.grid import Rotation, grid_sums
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, Setup, blocks, validation_weights


@dataclass(frozen=True)
class Part:
    """A fit to some of the columns, under a family of ridges.

    Attributes:
        columns: which of Z, ascending, (k,).
        rotation: of the sub-block of the fit sums.
        ridges: in units of the rotation's pattern; as many for every part of a pass.
    """

    columns: Tensor
    rotation: Rotation
    ridges: Tensor


def part_losses(shard: Shard, known: Known) -> Tensor:
    """Return left-out squared errors and counted errors of every part and ridge, (parts, 2, ridges)."""
    setup: Setup = known["setup"]
    parts: list[Part] = known["parts"]
    several = setup.task == "multilabel"
    total = torch.zeros(len(parts), 2, len(parts[0].ridges), dtype=torch.float64)

    def squared(F: Tensor, Y: Tensor) -> Tensor:
        return losses.squared(F, Y)[0]

    def counted(F: Tensor, Y: Tensor) -> Tensor:
        return losses.errors(F, Y, several=several)

    for b in blocks(shard, known):
        for k, part in enumerate(parts):
            Z = b.Z if len(part.columns) == b.Z.shape[1] else b.Z[:, part.columns]
            total[k] += grid_sums(
                Z, b.Y, b.alpha, b.v, b.offset, b.group_rows, part.rotation, part.ridges, (squared, counted)
            )
    return total


def heard_weight(shard: Shard, known: Known) -> float:
    """Return the sum of the validation weights."""
    return float(validation_weights(shard, known).sum())
