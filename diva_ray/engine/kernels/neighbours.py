"""Passes over a sample of rows and their nearest: from them flips between classes and labellers' doubt are fitted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diva_ray.core import labellers
from diva_ray.core.products import multiply_triangular_
from diva_ray.data.prepare import prepare_rows
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, codes_of, device_of, group_codes, rows_at_once
from diva_ray.engine.kernels.passes import left_out_outputs, left_out_rows
from diva_ray.engine.kernels.sampling import draws, rows_of_sample, sampled
from diva_ray.engine.kernels.shaping import shaping
from diva_ray.engine.kernels.verdicts import worth
from diva_ray.engine.reduce import Rows
from diva_ray.engine.setup import Setup


def _facts(shard: Shard, known: Known, chosen: Tensor) -> Tensor:
    """Return weight, leverage, nearness (1 under a link without), label and left-out outputs of the chosen rows side
    by side."""
    kept, Y = left_out_rows(shard, known), codes_of(shard, known["setup"])
    value = worth(shard, known, known["link"])
    near = torch.ones(len(Y), dtype=torch.float64) if value is None else value.double()
    head = torch.stack([shard.weight.double(), kept.leverage.double(), near, Y.double()], 1)[chosen]
    outputs = [F[chosen[rows]].double() for rows, F in left_out_outputs(shard, known)]
    return torch.cat([head, torch.cat(outputs)], 1)


def sample_facts(shard: Shard, known: Known) -> Rows:
    """Return the facts of a few rows, from which flips between classes are fitted."""
    return rows_of_sample(shard, known, _facts(shard, known, sampled(shard, known)))


def sample_whitened(shard: Shard, known: Known) -> Rows:
    """Return whitened features and group codes of the same rows."""
    chosen = sampled(shard, known)
    U = torch.cat([U.cpu() for _, U in _whitened(shard, known, chosen)])
    return rows_of_sample(shard, known, U, group_codes(shard, known)[chosen])


def nearest(shard: Shard, known: Known) -> labellers.Nearest:
    """Return, for each of the sampled rows, its nearest row in this shard, of the share of rows that is searched."""
    codes = group_codes(shard, known)
    searched = draws(shard, known) < known["searched"]
    searched &= shaping(shard, known) > 0
    facts, at = _facts(shard, known, searched), 0
    device = device_of(known)
    reference, reference_codes = (x.to(device) for x in known["references"])  # once a shard: they are large
    first, total = int(known["setup"].scale.intercept), None
    for rows, U in _whitened(shard, known, searched):
        mine = facts[at : at + len(rows)]
        part = labellers.nearest_rows(reference, reference_codes, U, codes[rows].to(device), mine.to(device), first)
        part = labellers.Nearest(part.cosine.cpu(), part.facts.cpu())
        at += len(rows)
        total = part if total is None else total + part
    assert total is not None
    return total


def _whitened(shard: Shard, known: Known, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers and whitened features of the chosen rows, a block of them at a time; no other row is touched."""
    setup: Setup = known["setup"]
    device = device_of(known)
    for rows in torch.nonzero(chosen).squeeze(1).split(rows_at_once(setup, device)):
        out = torch.empty(len(rows), setup.scale.width, dtype=setup.dtype, device=device)
        Z = prepare_rows(shard, rows, setup.scale, out)
        U = multiply_triangular_(Z, known["solution"]["whiten"], upper=True) if len(Z) else Z
        yield rows, U.float()  # cosines need no more
