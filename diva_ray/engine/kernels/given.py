"""The passes over weights that a model is trained under: those of an earlier run, and what they make of the rows."""

from __future__ import annotations

import math

import torch

from diva_ray.data.given import Given
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, blocks, keep_weights, weights
from diva_ray.engine.kernels.samples import count_weights
from diva_ray.engine.reduce import Tally

STEP = "given"  # name of the weights, for `known["step"]`


def adopt(shard: Shard, known: Known) -> Tally:
    """Check that the run's rows are the shard's and keep their weights; return what they add up to."""
    given: Given = known["given"]
    rows, reader = shard.positions(), given.table.reader()
    given.check(reader, rows, shard.id, shard.where)
    alpha = given.weights(reader, rows)
    flagged = given.flagged(reader, rows) if given.flags else alpha < 0
    keep_weights(shard, known, alpha, STEP)
    kept = given.factor * shard.weight  # what a row has whose weight the run neither lowered nor raised
    zero, lowered, total, _, raised = count_weights(alpha.double(), kept).tolist()
    return Tally(
        n=len(alpha), weight=total, n_flagged=int(flagged.sum()), n_zero=int(zero), n_lowered=int(lowered),
        n_raised=int(raised),
    )  # fmt: skip


def row_sizes(shard: Shard, known: Known) -> Tally:
    """Return what the step of SGD follows from: rows that take part, their weights alpha, and the sums of alpha |z|^2
    and alpha^2 |z|^4; also the least (`max_minus`: less it) and the largest weight of the rows that had or have one."""
    alpha = weights(shard, known)
    counted = alpha[(shard.weight > 0) | (alpha > 0)]
    sizes = torch.zeros(2, dtype=torch.float64)
    for block in blocks(shard, known):
        size = block.Z.double().square().sum(1).cpu() * alpha[block.start : block.stop]
        sizes += torch.stack([size.sum(), size.square().sum()])
    return Tally(
        taken=int((alpha > 0).sum()), weight=float(alpha.sum()), sizes=sizes, max_weight=float(alpha.max()),
        max_minus=float(-counted.min()) if len(counted) else -math.inf,
    )  # fmt: skip
