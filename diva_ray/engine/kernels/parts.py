"""The fit pass in parts: sums of chosen ranges of rows, each for its group, in columns that outlive the scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from diva_ray.core.products import copy_double
from diva_ray.core.ridge import FitAccumulator, FitSums
from diva_ray.data.prepare import prepare
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Extent, Shard
from diva_ray.engine.context import Known, device_of, rows_at_once, targets, weights
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup

Key = tuple[int, bool]  # of a group's sums; whether of its targets alone


@dataclass(frozen=True)
class Ranges:
    """Rows [start, stop) to be summed, ascending: for which group, and whether only what targets contribute."""

    start: np.ndarray
    stop: np.ndarray
    group: np.ndarray
    targets_only: np.ndarray

    def within(self, extent: Extent) -> Iterator[tuple[int, int, Key]]:
        """Yield those inside a shard: rows of the shard, and the key."""
        first = int(np.searchsorted(self.stop, extent.start, "right"))
        for k in range(first, int(np.searchsorted(self.start, extent.stop, "left"))):
            a, b = max(self.start[k], extent.start), min(self.stop[k], extent.stop)
            yield int(a - extent.start), int(b - extent.start), (int(self.group[k]), bool(self.targets_only[k]))

    def touch(self, extent: Extent) -> bool:
        """Return whether some of the rows lie in a shard."""
        return next(self.within(extent), None) is not None


@dataclass(frozen=True)
class Parts:
    """Sums by group, and how many rows went into them; `+` merges into float64 sums of its own, `+=` in place."""

    sums: dict[Key, FitSums]
    rows: Tally

    def __add__(self, other: Parts) -> Parts:
        own = {key: FitSums(copy_double(one.gram), copy_double(one.cross)) for key, one in self.sums.items()}
        merged = Parts(own, Tally(self.rows))
        merged += other
        return merged

    def __iadd__(self, other: Parts) -> Parts:
        for key, sums in other.sums.items():
            if key in self.sums:
                self.sums[key].__iadd__(sums)
            else:
                self.sums[key] = FitSums(copy_double(sums.gram), copy_double(sums.cross))
        self.rows.update(self.rows + other.rows)
        return self


def fit_parts(shard: Shard, known: Known) -> Parts:
    """Fit pass over `known["ranges"]`: Z' D Z and Z' D Y of every group, Z with a 1 and the indicators of gaps."""
    setup: Setup = known["setup"]
    device, Y = device_of(known), targets(shard, setup)
    alpha = weights(shard, known).to(device, setup.dtype)
    offset = None if shard.offset is None else shard.offset.to(device, setup.dtype)
    scale = Scale(setup.scale.mean, setup.scale.scale, True, setup.scale.bands, setup.scale.project)
    found = Parts({}, Tally(computed=0, targets_only=0))
    for start, stop, key in known["ranges"].within(shard.extent):
        sums = FitAccumulator(scale.width + len(known["gaps"]), setup.outputs, setup.dtype, device)
        for rows, Z in _blocks(shard, start, stop, scale, known["gaps"], rows_at_once(setup, device), like=alpha):
            add = sums.add_targets if key[1] else sums.add
            add(Z, Y[rows].to(device), alpha[rows], None if offset is None else offset[rows])
        one = FitSums(alpha.new_zeros(0, 0), sums.cross.T) if key[1] else sums.sums()
        found.sums[key] = found.sums[key] + one if key in found.sums else one
        found.rows["targets_only" if key[1] else "computed"] += stop - start
    return found


def _blocks(
    shard: Shard, start: int, stop: int, scale: Scale, gaps: tuple[int, ...], most: int, like: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows [start, stop) block by block with their columns [1, Z, E], in the memory of the block before."""
    count = max(1, round((stop - start) / most))
    cuts = [start + (stop - start) * k // count for k in range(count + 1)]
    buffer = like.new_empty(-(-(stop - start) // count), scale.width + len(gaps))
    for a, b in pairwise(cuts):
        Z = prepare(shard, a, b, scale, buffer)
        for k, band in enumerate(gaps):
            absent = shard.missing[band]
            Z[:, scale.width + k] = 1.0 if absent is None else (~absent[a:b]).to(like)
        yield slice(a, b), Z
