"""Passes over a table that a pool extends: its rows' left-out errors, kept by name, and how they differ."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Known,
    blocks,
    device_of,
    found_in_store,
    group_codes,
    validation_weights,
)
from diva_ray.engine.kernels.left_out import fitted, left_out_of
from diva_ray.engine.kernels.passes import leave_one_out, left_out_rows
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup


def leave_table_out(shard: Shard, known: Known) -> Partial:
    """The adjoint pass over a resident shard; its rows' left-out errors are kept under the name `known["errors"]`."""
    found = leave_one_out(shard, known)
    _keep_errors(shard, known, left_out_rows(shard, known).wrong)
    return found


def core_error(shard: Shard, known: Known) -> Tally:
    """Return loss and errors of the left-out predictions of a resident shard, nothing else: n p^2 operations; its rows'
    errors are kept under the name `known["errors"]`."""
    setup: Setup = known["setup"]
    loss, several = setup.loss_function(), setup.task == "multilabel"
    total = torch.zeros(2, dtype=torch.float64, device=device_of(known))
    every = torch.empty(len(shard), dtype=torch.float64)
    for b in blocks(shard, known):
        F, r = fitted(b, known)
        outputs = F + r - left_out_of(shard, known, b, r)[1].e
        wrong = losses.errors(outputs, b.Y, several=several)
        total += torch.stack([b.v.double() @ loss(outputs, b.Y)[0].double(), b.v.double() @ wrong])
        every[b.start : b.stop] = wrong
    _keep_errors(shard, known, every)
    return Tally(loss=total[0], wrong=total[1])


def _keep_errors(shard: Shard, known: Known, wrong: Tensor) -> None:
    known["store"].write_arrays(_errors_file(shard, known["errors"]), {"wrong": wrong.float().numpy()})


def _errors_file(shard: Shard, name: str) -> str:
    return f"weights/errors-{name}-{shard.extent.index:05d}.npz"


def compare_errors(shard: Shard, known: Known) -> Tally:
    """Return, for every pair of `known["compared"]` names, by how much the first's kept left-out errors of a resident
    shard's rows are above the second's, summed with the rows' validation weights; and over units (rows, or groups that
    leave together) the sums of the squares of that, of it times the unit's weight, and of the weight's square."""
    pairs, v = known["compared"], validation_weights(shard, known)
    validates = v > 0
    files = {name: found_in_store(known, _errors_file(shard, name)) for pair in pairs for name in pair}
    errors = {name: v[validates] * torch.from_numpy(file["wrong"]).double()[validates] for name, file in files.items()}
    names, unit = torch.unique(group_codes(shard, known)[validates], return_inverse=True)
    weight = torch.zeros(len(names), dtype=torch.float64).index_add_(0, unit, v[validates])
    by_unit = torch.zeros(len(pairs), len(names), dtype=torch.float64)
    for k, (one, other) in enumerate(pairs):
        by_unit[k].index_add_(0, unit, errors[one] - errors[other])
    products = {"square": by_unit.square().sum(1), "product": by_unit @ weight, "weight_square": float(weight @ weight)}
    return Tally(difference=by_unit.sum(1), **products)
