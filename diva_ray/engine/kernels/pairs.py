"""Pairs: either band predicted from the other by the passes there are, each direction as a view of the same shards.

A view is a shard whose one band is the source, whose targets are the other band, and whose results carry the
direction's name; what is known of a direction carries it too. Whatever a worker lost is computed again as in any pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diva_ray.core.products import add_rows_
from diva_ray.data.prepare import prepare
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Extent, Shard
from diva_ray.engine.context import Kernel, Known, blocks, device_of, group_codes, own_sources, unit_keys
from diva_ray.engine.device import CPU
from diva_ray.engine.kernels.passes import left_out_rows, scored_rows
from diva_ray.engine.kernels.sampling import rows_of_sample, sampled
from diva_ray.engine.reduce import ByCode, Rows, Tally
from diva_ray.engine.setup import Setup

DIRECTIONS = {"forward": (0, 1), "backward": (1, 0)}  # source and target, as places in `data.features`


class Prefixed(MutableMapping[str, Any]):
    """The entries of a mapping whose names begin with a prefix, without it."""

    def __init__(self, inner: MutableMapping[str, Any], prefix: str) -> None:
        self.inner, self.prefix = inner, prefix

    def __getitem__(self, name: str) -> Any:
        return self.inner[self.prefix + name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.inner[self.prefix + name] = value

    def __delitem__(self, name: str) -> None:
        del self.inner[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.inner if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Directed:
    """An engine that runs every pass on one direction of its pairs."""

    def __init__(self, engine: Any, direction: str) -> None:
        self.engine, self.direction = engine, direction

    def tell(self, **known: Any) -> None:
        """Make values known to every later pass of this direction."""
        self.engine.tell(**{f"{self.direction}.{name}": value for name, value in known.items()})

    def forget(self, *names: str) -> None:
        """Drop known values and per-row results of this direction."""
        self.engine.forget(*(f"{self.direction}.{name}" for name in names))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)  # all else is of both directions

    def each(
        self, kernel: Kernel, extents: list[Extent], done: Callable[[int], Any] = int, features: bool = True
    ) -> Iterator[Any]:
        """Yield the sum of the partials of every unit of shards, in order."""
        return self.engine.each(partial(directed, kernel=kernel, direction=self.direction), extents, done, features)


def directed(shard: Shard, known: Known, *, kernel: Kernel, direction: str) -> Any:
    """Return what a kernel makes of one direction."""
    return kernel(*view(shard, known, direction))


def view(shard: Shard, known: Known, direction: str) -> tuple[Shard, Known]:
    """Return the shard and what is known as one direction sees them.

    Targets are centred and scaled to mean squared norm 1. With `slope`, the towers are aligned and the source itself,
    times the slope, is the pretrained model's output that the fit corrects.
    """
    mine: dict[str, Any] = {**known, **Prefixed(dict(known), f"{direction}.")}
    source, target = DIRECTIONS[direction]
    state, setup = Prefixed(shard.state, f"{direction}."), mine["setup"]
    if "targets" not in state:
        state["targets"] = standardised(shard, target, mine["scales"], setup.dtype)
    slope = mine["slope"]
    offset = None
    if slope is not None:  # made where the pass needs it, from features that are there
        offset = slope * standardised(shard, source, mine["scales"], setup.dtype, device_of(known))
    one = replace(
        shard, bands=[shard.bands[source]], missing=[shard.missing[source]], offset=offset, state=state
    )  # fmt: skip
    return one, mine


def views(shard: Shard, known: Known) -> list[tuple[Shard, Known]]:
    """Return both directions."""
    return [view(shard, known, direction) for direction in DIRECTIONS]


def standardised(
    shard: Shard, band: int, scales: tuple[Scale, Scale], dtype: torch.dtype, device: torch.device = CPU
) -> Tensor:
    """Return one band, centred and scaled, (n, d), on a device."""
    n, scale = len(shard), scales[band]
    one = replace(shard, bands=[shard.bands[band]], missing=[None])
    return prepare(one, 0, n, scale, torch.empty(n, scale.width, dtype=dtype, device=device))


def sample_sides(shard: Shard, known: Known) -> Rows:
    """Return both sides of a few pairs, and their groups: whether the towers are aligned is tested on these."""
    chosen = sampled(shard, known)
    sides = [standardised(shard, band, known["scales"], torch.float32)[chosen] for band in (0, 1)]
    return rows_of_sample(shard, known, *sides, unit_keys(shard)[chosen])


def join(shard: Shard, known: Known) -> Tally:
    """Derivative and standard error of the sum of both directions' losses, kept with the shard; sums for every source.

    Both are exact where each direction's are: contributions of a validation group (or of a draw of signs, the same in
    both directions) are added before they are squared.
    """
    both = views(shard, known)
    scored = torch.stack([scored_rows(*one)[:, 0] for one in both]).sum(0)[:, None].repeat(1, 2)
    setup: Setup = known["setup"]
    (held, codes), sums = own_sources(shard, setup, device_of(known)), None
    for rows, contributions in _contributions(both):
        every = torch.cat([scored[rows, :1].to(contributions), contributions], 1)
        scored[rows, 1] = both[0][1]["setup"].errors_of(every)[1].cpu()
        sums = torch.zeros(len(held), every.shape[1], dtype=every.dtype, device=held.device) if sums is None else sums
        if codes is not None:
            add_rows_(sums, codes[rows], every.to(sums.device))
    shard.state["scored"] = scored
    return Tally(rows=len(shard), sources=ByCode.none(1) if sums is None else ByCode(held, sums))


def _contributions(both: list[tuple[Shard, Known]]) -> Iterator[tuple[slice, Tensor]]:
    """Yield what every validation group adds to the joint derivatives of slices of rows, float64; or what every sign
    vector does, and the variance of the second order, which either direction has for itself."""
    (shard, known), _ = both
    if "dual" in known:
        moved = [one["dual_contributions"][shard.extent.index].double() for _, one in both]
        yield slice(0, len(shard)), moved[0] + moved[1]
    elif known["setup"].vectors:
        one, other = (scored_rows(*direction, "drawn") for direction in both)
        yield slice(0, len(shard)), one + other
    else:
        yield from _exact_contributions(both)


def _exact_contributions(directions: list[tuple[Shard, Known]]) -> Iterator[tuple[slice, Tensor]]:
    device = device_of(directions[0][1])
    r = [left_out_rows(*one).r.to(device) for one in directions]
    codes = group_codes(*directions[0]).to(device)
    for both in zip(*(blocks(*one) for one in directions), strict=True):
        part = slice(both[0].start, both[0].stop)
        found = [
            one[1]["validation"].contributions(block.Z, residual[part], codes[part])
            for one, block, residual in zip(directions, both, r, strict=True)
        ]
        for (inner, C), (_, D) in zip(*found, strict=True):
            yield slice(part.start + inner.start, part.start + inner.stop), C.double() + D.double()


def joint_scores(shard: Shard, known: Known) -> Tensor:
    """Return derivative and standard error of the sum of the losses, (n, 2)."""
    if "scored" not in shard.state:
        join(shard, known)
    scored = shard.state["scored"]
    assert isinstance(scored, Tensor)
    return scored
