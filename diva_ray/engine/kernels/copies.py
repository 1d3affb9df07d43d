"""Passes over tables of augmented copies: who has which copies, and what weight each transform ends with."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, source_codes
from diva_ray.engine.kernels.samples import final_weights
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup


def count(shard: Shard, known: Known) -> Tally:
    """Return the copies of every transform, the originals that are not there as they are, and one of them."""
    setup: Setup = known["setup"]
    if shard.extent.held_out:
        return Tally(copies=torch.zeros(len(setup.sources or ()), dtype=torch.int64), bare=0, example=[])
    codes = source_codes(shard, setup)
    assert codes is not None and shard.group is not None and shard.group_keys is not None and setup.sources is not None
    plain = pc.equal(shard.source, known["identity"]).fill_null(False).to_numpy(zero_copy_only=False)
    whole = np.zeros(len(shard.group_keys), bool)
    whole[shard.group.numpy()[plain]] = True
    bare = np.flatnonzero(~whole)
    example = [shard.name(int(np.flatnonzero(shard.group.numpy() == bare[0])[0]))] if len(bare) else []
    return Tally(copies=torch.bincount(codes, minlength=len(setup.sources)), bare=len(bare), example=example)


def weights_by_source(shard: Shard, known: Known) -> Tensor:
    """Return the sum of the final weights of every source."""
    setup: Setup = known["setup"]
    codes = source_codes(shard, setup)
    assert setup.sources is not None
    if codes is None:
        return torch.zeros(len(setup.sources), dtype=torch.float64)
    return torch.zeros(len(setup.sources), dtype=torch.float64).index_add_(0, codes, final_weights(shard, known))
