"""Ranks of the rows that a round has chosen, a stretch of their order at a time: this process never holds all keys."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diva_ray.core import choose
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import selected
from diva_ray.tasks.setup.runner import Runner

STRETCH = 1 << 21  # keys here at a time


def rank_chosen(runner: Runner, extents: list[Extent], count: int, first: int) -> None:
    """Let the pool's shards know the ranks of the `count` rows of this round, from `first` on by rising key."""
    engine = runner.engine
    for after, last in pairwise([None, *_ends(runner, extents, count), None]):
        engine.tell(stretch=(after, last))
        (keys,) = runner.run(selected.stretch_keys, "rank", extents, features=False).joined()
        ranked = torch.from_numpy(np.sort(keys.numpy().view(np.uint64)).view(np.int64))
        engine.tell(ranked=(ranked, first))
        first += runner.run(selected.rank_stretch, "rank", extents, features=False)
    engine.forget("ranked")


def _ends(runner: Runner, extents: list[Extent], count: int) -> list[Tensor]:
    """Return the last key of every stretch but the last."""
    wanted = torch.arange(STRETCH, max(count, STRETCH), STRETCH)
    return list(keys_at(runner, selected.count_ranked, "rank", extents, wanted))


def keys_at(runner: Runner, count: Callable, label: str, extents: list[Extent], wanted: Tensor) -> Tensor:
    """Return the keys of the given ranks (from 1; 0: none is sought), all at once: an exact radix selection over all
    shards, by a pass for every byte of a key (`choose.byte_counts`)."""
    prefix, left = torch.zeros_like(wanted), wanted
    for level in range(choose.BYTES if bool(wanted.any()) else 0):
        runner.engine.tell(prefix=prefix, level=level)
        counts = runner.run(count, label, extents, features=False)
        prefix, left = choose.next_prefix(counts, prefix, left)
    return prefix
