"""Rows of a shard as products take them: centred, scaled and side by side."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import torch
from torch import Tensor

from diva_ray.core.products import multiply
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Shard

# Standard deviations by which a mean may be rounded: rows without the band, or a fit without intercept, would see it.
MOVED = 1e-6


def prepare(shard: Shard, start: int, stop: int, scale: Scale, out: Tensor) -> Tensor:
    """Write the fit's view of rows [start, stop) into `out` (rows, p) and return it; n p operations, no other copy.

    A projected band costs 2 n d k more.
    """
    return prepare_rows(shard, slice(start, stop), scale, out[: stop - start])


def prepare_rows(shard: Shard, rows: slice | Tensor, scale: Scale, out: Tensor) -> Tensor:
    """Write the fit's view of some rows, a range or their numbers, into `out` (rows, p) and return it."""
    column = int(scale.intercept)
    if scale.intercept:
        out[:, 0] = 1
    chosen = range(len(shard.bands)) if scale.bands is None else scale.bands
    projections = scale.project or (None,) * len(scale.mean)
    for k, mean, factor, project, width in zip(chosen, scale.mean, scale.scale, projections, scale.widths, strict=True):
        into = out[:, column : column + width]
        column += width
        if not shard.bands[k].shape[1]:  # no row of the shard has the band
            into.zero_()
            continue
        _scale_band(shard, k, rows, center_of(mean, factor, out.dtype).to(out.device), factor, project, into)
    return out


def center_of(mean: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """Return what is taken off a band: its mean as the products' type has it; where that would be another mean, itself.

    The same whatever type the band is stored in.
    """
    rounded = mean.to(dtype)
    moved = float((rounded.double() - mean).norm()) * factor
    return mean if moved > MOVED else rounded


def _scale_band(
    shard: Shard, k: int, rows: slice | Tensor, mean: Tensor, factor: float, project: Tensor | None, into: Tensor
) -> None:
    """Write one band's columns: centred, scaled, 0 where the band is missing, and projected if they are to be.

    All on the device of `into`, wherever the features lie.
    """
    band, absent, place = shard.bands[k], shard.missing[k], into.device
    values = band[rows if isinstance(rows, slice) else rows.to(band.device)].to(place)
    scratch = into if project is None else torch.empty(values.shape, dtype=into.dtype, device=place)
    scaled = torch.sub(values, mean, out=scratch)
    if factor != 1:
        scaled.mul_(factor)
    if absent is not None:
        scaled[absent[rows].to(place)] = 0
    if project is not None:
        into.copy_(multiply(scaled, project.to(into)))


def block_bounds(shard: Shard, rows: int) -> list[tuple[int, int]]:
    """Return the row ranges of the shard's blocks: about `rows` each, never through a leave-out group."""
    n = len(shard)
    count = max(1, round(n / rows))
    cuts = [n * k // count for k in range(count + 1)]
    if shard.group is not None:
        ends = [*torch.nonzero(shard.group[1:] != shard.group[:-1]).squeeze(1).add_(1).tolist(), n]
        cuts = sorted({0, *(ends[bisect_left(ends, cut)] for cut in cuts[1:])})
    return list(pairwise(cuts))
