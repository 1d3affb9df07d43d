"""A sample of rows, drawn by their keys: the same whatever the shards, and whatever the order of rows with ids."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_ray.core import choose
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known
from diva_ray.engine.kernels.shaping import shaping
from diva_ray.engine.reduce import Rows


class Drawn:
    """The `most` rows with the least draws seen so far, in their order; `+` keeps the least of both."""

    def __init__(self, draw: Tensor, rows: Tensor, most: int) -> None:
        at = torch.argsort(draw, stable=True)[:most]
        self.draw, self.rows, self.most = draw[at], rows[at], most

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn(torch.cat([self.draw, other.draw]), torch.cat([self.rows, other.rows]), self.most)


def draws(shard: Shard, known: Known) -> Tensor:
    """Return the draw of every row, in [0, 1)."""
    return choose.uniform_draw(shard.keys, known["setup"].seed)


def least_draws(shard: Shard, known: Known) -> Drawn:
    """Return the least draws, `known["most"]` of them, of rows that shape the rules: a sample ends at the last."""
    draw = draws(shard, known)[shaping(shard, known) > 0]
    return Drawn(draw, draw, known["most"])


def sampled(shard: Shard, known: Known) -> Tensor:
    """Return which rows are of the sample: they shape the rules and draw no more than `known["last_draw"]`."""
    return (shaping(shard, known) > 0) & (draws(shard, known) <= known["last_draw"])


def rows_of_sample(shard: Shard, known: Known, *columns: Tensor) -> Rows:
    """Return what the shard has of a sample, and the draws that put the whole of it in order (`in_order`)."""
    return Rows((*columns, draws(shard, known)[sampled(shard, known)]))


def in_order(rows: Rows) -> list[Tensor]:
    """Return the columns of a whole sample by their rows' draws: any first part is a sample too."""
    *columns, draw = rows.joined()
    order = torch.argsort(draw, stable=True)
    return [column[order] for column in columns]
