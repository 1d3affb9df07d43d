"""Which rows shape the rules for verdicts, and of which nothing is known when they are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, codes_of, leave_out_groups


def shaping(shard: Shard, known: Known) -> Tensor:
    """Return the weight of every row in the rules for verdicts; rows idle, held out or set apart shape nothing, nor do
    those of `known["lonely"]` classes, which vanish with their only row, unless all are."""
    lonely, fitted = known.get("lonely"), fitted_rows(shard, known)
    return fitted if lonely is None or lonely.all() else fitted.masked_fill(lonely_rows(shard, known), 0.0)


def fitted_rows(shard: Shard, known: Known) -> Tensor:
    """Return 1.0 for every row that the model is fitted to, else 0.0."""
    if shard.extent.held_out:
        return torch.zeros(len(shard), dtype=torch.float64)
    fitted = (shard.weight > 0).double()
    return fitted.masked_fill(known["fold"](shard, known), 0.0) if "fold" in known else fitted


def lonely_rows(shard: Shard, known: Known) -> Tensor:
    """Return which rows are of a class that vanishes, or nearly, when they are left out: nothing predicts it then."""
    if known.get("lonely") is None:
        return torch.zeros(len(shard), dtype=torch.bool)
    lonely: Tensor = known["lonely"][codes_of(shard, known["setup"])]
    return lonely


def units_by_class(shard: Shard, known: Known) -> Tensor:
    """Return how many of the rows of every class, or of the groups that hold some, are fitted to and left out alone."""
    setup, group, rows = known["setup"], leave_out_groups(shard, known), fitted_rows(shard, known) > 0
    codes = codes_of(shard, setup)[rows]
    if group is not None:
        codes = torch.unique(group[rows] * setup.outputs + codes) % setup.outputs
    return torch.bincount(codes, minlength=setup.outputs)
