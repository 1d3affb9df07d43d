"""Sums of one look at rows, and how those of two parts of them become those of both."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.columns import is_list

FEW = 64


def band_moments(values: Tensor, absent: Tensor | None) -> tuple[int, Tensor, Tensor]:
    """Return how many rows (n, d) are there, their sums and their sums of (x - mean)^2, (d,); 4 n d operations.

    Sums are of differences from the mean of a few rows, so that those of a band far from 0 do not cancel: what is
    taken off in the end is at most n / FEW times what is left.
    """
    there = torch.arange(len(values)) if absent is None else torch.nonzero(~absent).squeeze(1)
    some = values[there[:FEW].to(values.device)].double()
    near = some.mean(0) if len(some) else torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    total, square = torch.zeros_like(near), torch.zeros_like(near)
    for a in range(0, len(values), 4096):
        part = values[a : a + 4096] - near
        if absent is not None:
            part[absent[a : a + 4096].to(part.device)] = 0
        total += part.sum(0)
        square += part.square_().sum(0)
    square -= total.square() / max(len(there), 1)
    return len(there), (total + len(there) * near).cpu(), square.clamp_min_(0).cpu()  # which keeps NaN


def between(a: int, total: Tensor, b: int, other: Tensor) -> Tensor:
    """Return what a and b rows with these sums have more of (x - mean)^2 together than each by themselves, (d,).

    Deviations, not squares: those of a band far from 0 would cancel (Chan, Golub and LeVeque 1983).
    """
    if not (a and b):
        return torch.zeros_like(total)
    return a * b / (a + b) * (other / b - total / a).square()


def merge_values(one: pa.Array | None, other: pa.Array | None) -> pa.Array | None:
    """Return the distinct values of both, sorted, in the wider of their types."""
    if one is None or other is None:
        return one if other is None else other
    pair = [pa.schema([("value", values.type)]) for values in (one, other)]
    kind = pa.unify_schemas(pair, promote_options="permissive").field(0).type
    values = pc.unique(pa.concat_arrays([one.cast(kind), other.cast(kind)]))
    return values.take(pc.sort_indices(values))


def list_lengths(label: pa.Array) -> tuple[int, int]:
    """Return how many classes a row has at least and at most; 0 where labels are no lists."""
    if not is_list(label.type):
        return 0, 0
    found = pc.min_max(pc.list_value_length(label))
    return found["min"].as_py(), found["max"].as_py()


def moments(Y: Tensor, v: Tensor) -> Tensor:
    """Return sum of v, weighted mean and sums of squared deviations of Y (n, c), (1 + 2 c,).

    Deviations, not squares: numbers far from 0 would cancel.
    """
    weight = v.sum()
    mean = v @ Y / weight if weight > 0 else torch.zeros_like(Y[0])
    return torch.cat([weight[None], mean, v @ (Y - mean).square()])


def merge_moments(one: Tensor, other: Tensor) -> Tensor:
    """Return the moments of both (Chan, Golub and LeVeque 1983)."""
    a, b = one[0], other[0]
    if not (a > 0 and b > 0):
        return one if a > 0 else other
    (mean, squares), (mean_, squares_) = one[1:].chunk(2), other[1:].chunk(2)
    apart, share = mean_ - mean, b / (a + b)
    return torch.cat([(a + b)[None], mean + share * apart, squares + squares_ + a * share * apart.square()])
