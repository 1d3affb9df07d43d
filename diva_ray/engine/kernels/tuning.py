"""Passes of a search: fit sums of every fold from one read, and the errors of a model on rows it never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.core.products import multiply
from diva_ray.core.ridge import FitAccumulator
from diva_ray.data.prepare import prepare_rows
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Known,
    blocks,
    device_of,
    fold_of,
    group_codes,
    rows_at_once,
    targets,
    validation_weights,
)
from diva_ray.engine.kernels.passes import fit
from diva_ray.engine.kernels.steps import Each
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup


def fold_sums(shard: Shard, known: Known) -> Each:
    """Return the fit sums of the rows of every fold, `known["folds"]`, side by side: n p^2 operations in all.

    With a separate validation table every training row is in one: its own rows are those that are set apart.
    """
    if known.get("held_out", False):
        return Each([fit(shard, known)])
    setup, count = known["setup"], known["folds"]
    device = device_of(known)
    folds = fold_of(shard, count).to(device)
    sums = [FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device) for _ in range(count)]
    wide = {**known, "setup": replace(setup, block_rows=setup.block_rows * count)}  # a fold's part of a block is enough
    for b in blocks(shard, wide):
        for k in range(count):
            rows = torch.nonzero(folds[b.start : b.stop] == k).squeeze(1)
            if len(rows):
                sums[k].add(b.Z[rows], b.Y[rows], b.alpha[rows], None if b.offset is None else b.offset[rows])
    return Each(one.sums() for one in sums)


@dataclass(frozen=True)
class Model:
    """A model to be judged: its solution (p, c) in the columns of `scale`, and the fold that it never saw.

    `fold=None`: every row of the shards that are asked (a test table's).
    """

    solution: Tensor
    scale: Scale
    folds: int
    fold: int | None


def model_errors(shard: Shard, known: Known) -> Tally:
    """Return sums over the model's unseen rows: of v, v e and their products over units (rows, or whole groups).

    e is `losses.errors`: 1 for a wrong class, the ranking error of several labels, the squared error of numbers.
    2 n p c operations on these rows alone.
    """
    setup: Setup = known["setup"]
    model: Model = known["model"]
    # of a test table every row counts alike, as in `train`
    v = torch.ones_like(shard.validation) if model.fold is None else validation_weights(shard, known)
    chosen = v > 0
    if model.fold is not None:
        chosen &= fold_of(shard, model.folds) == model.fold
    rows = torch.nonzero(chosen).squeeze(1)
    if not len(rows):
        return Tally(rows=0, weight=0.0, error=0.0, weight_weight=0.0, weight_error=0.0, error_error=0.0)
    Y, v = targets(shard, setup), v[rows].double()
    parts = torch.split(torch.arange(len(rows)), rows_at_once(setup, device_of(known)))
    wrong = torch.cat([_errors(shard, known, rows[part], Y[rows[part]]) for part in parts])
    unit = torch.unique(group_codes(shard, known)[rows], return_inverse=True)[1]
    w, s = (torch.zeros(int(unit.max()) + 1, dtype=torch.float64).index_add_(0, unit, x) for x in (v, v * wrong))
    return Tally(
        rows=len(rows), weight=float(w.sum()), error=float(s.sum()), weight_weight=float(w @ w),
        weight_error=float(w @ s), error_error=float(s @ s),
    )  # fmt: skip


def _errors(shard: Shard, known: Known, rows: Tensor, Y: Tensor) -> Tensor:
    """Return the error of each of some rows, float64."""
    setup, model = known["setup"], known["model"]
    into = torch.empty(len(rows), model.scale.width, dtype=setup.dtype, device=device_of(known))
    F = multiply(prepare_rows(shard, rows, model.scale, into), model.solution).cpu()
    F = F if shard.offset is None else F + shard.offset[rows].to(F)
    return losses.errors(F, Y, several=setup.task == "multilabel")
