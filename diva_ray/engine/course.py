"""What a training run is told, and the rows of one of its workers, read from storage window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.data.columns import to_matrix
from diva_ray.data.folder import Folder
from diva_ray.data.given import Given
from diva_ray.data.prepare import prepare
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Columns, Extent, read_shard
from diva_ray.data.table import Reader, Table
from diva_ray.data.targets import class_targets, number_targets

PIECE = 8192  # rows read at a time


@dataclass(frozen=True)
class Course:
    """What every worker needs to train every arm under every seed; small, and picklable.

    Attributes:
        table, test: where rows are; workers read their own.
        columns: features, label, weight, offset.
        given: weights and flags of an earlier run.
        folder: the output, where checkpoints go.
        scale: how features enter, without a column of 1.
        classes: sorted classes; None for numbers, which are trained on as (y - offset - target_mean) /
            target_scale.
        arms: names out of weighted, uniform, without_flagged.
        build: (n_features, n_outputs) -> module.
        batch_size: rows of a step, of all workers together.
        window: rows that a worker holds and shuffles at a time.
        unused: whether a step leaves some parameter without a gradient.
        closed: closed forms, by their files in model/, that are tested beside the models.
    """

    table: Table
    test: Table
    columns: Columns
    given: Given | None
    folder: Folder
    task: str
    scale: Scale
    classes: pa.Array | None
    outputs: int
    target_mean: Tensor
    target_scale: float
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    build: Callable[[int, int], torch.nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    window: int
    threads: int
    unused: bool = False
    closed: tuple[str, ...] = ()

    @property
    def models(self) -> list[tuple[str, int]]:
        """Every arm under every seed, in the order in which they are trained."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def read(self, table: Table, reader: Reader, start: int, stop: int) -> TrainRows:
        """Return rows [start, stop) as the model sees them."""
        test = table is self.test
        shard = read_shard(table, reader, self.columns, Extent(0, start, stop, held_out=test))
        Z = prepare(shard, 0, len(shard), self.scale, torch.empty(len(shard), self.scale.width, dtype=torch.float32))
        if self.classes is not None:
            Y = class_targets(shard.label, self.classes)
            Y = Y if Y.ndim == 1 else Y.float()
        else:
            Y = number_targets(shard.label, self.columns.label, shard.where)
            rest = Y if shard.offset is None else Y - shard.offset  # all that is fitted, while it has all its digits
            return TrainRows(Z, ((rest - self.target_mean) / self.target_scale).float(), None, shard.weight)
        offset = None if shard.offset is None else shard.offset.float()
        return TrainRows(Z, Y, offset, shard.weight)


@dataclass(frozen=True)
class TrainRows:
    """Rows side by side: features (n, p), targets, offsets (of classes: of numbers they are taken off), weights."""

    Z: Tensor
    Y: Tensor
    offset: Tensor | None
    weight: Tensor

    def at(self, index: Tensor) -> TrainRows:
        """Return some rows."""
        offset = None if self.offset is None else self.offset[index]
        return TrainRows(self.Z[index], self.Y[index], offset, self.weight[index])


def joined(parts: list[TrainRows]) -> TrainRows:
    """Return rows below one another."""
    if len(parts) == 1:
        return parts[0]
    offsets = [part.offset for part in parts if part.offset is not None]
    Z, Y, weight = (torch.cat([getattr(part, name) for part in parts]) for name in ("Z", "Y", "weight"))
    return TrainRows(Z, Y, torch.cat(offsets) if offsets else None, weight)


def gathered(parts: Iterable[TrainRows], n: int) -> TrainRows:
    """Return n rows below one another; each part is let go before the next is read."""
    whole, at = None, 0
    for part in parts:
        if whole is None:
            room = [None if x is None else x.new_empty(n, *x.shape[1:]) for x in vars(part).values()]
            whole = TrainRows(*cast("list[Tensor]", room))
        for into, x in zip(vars(whole).values(), vars(part).values(), strict=True):
            if x is not None:
                into[at : at + len(x)] = x
        at += len(part.Z)
        del part
    assert whole is not None and at == n
    return whole


def cut(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """Return consecutive ranges of about `rows` rows."""
    count = max(1, -(-(stop - start) // rows))
    return list(pairwise(start + (stop - start) * k // count for k in range(count + 1)))


class Share:
    """The consecutive rows of one worker.

    In memory are at most `window` rows with their features, and one weight and one flag for every row. Windows come in
    a new order in every epoch, and the rows of a window in a new order; what fits one window is read once. A table
    that is larger than its windows and sorted by label should be shuffled first.
    """

    def __init__(self, course: Course, rank: int, world: int) -> None:
        self.course, n = course, course.table.rows
        self.start, self.stop = n * rank // world, n * (rank + 1) // world
        self.windows = cut(self.start, self.stop, course.window)
        self.reader = course.table.reader()
        self.held: TrainRows | None = None
        self.given = None if course.given is None else course.given.table.reader()

    def weights(self, arm: str) -> Tensor:
        """Return the weight of every row under an arm; rows of weight 0 take no part."""
        given = self.course.given
        if arm == "weighted" and given is not None:
            assert self.given is not None
            return given.weights(self.given, np.arange(self.start, self.stop))
        own = torch.cat([self._own(a, b) for a, b in cut(self.start, self.stop, PIECE)])
        if arm == "weighted":
            return own
        even = (own > 0).double()
        if arm == "uniform":
            return even
        assert given is not None and self.given is not None
        return even.masked_fill(given.flagged(self.given, np.arange(self.start, self.stop)), 0.0)

    def _own(self, start: int, stop: int) -> Tensor:
        """Return the table's own weights."""
        if self.course.columns.weight is None:
            return torch.ones(stop - start, dtype=torch.float64)
        name = str(self.course.columns.weight)
        values, _ = to_matrix(self.reader.read(start, stop, [name])[name], name, "", "data.weight")
        return torch.from_numpy(values[:, 0].astype("float64"))  # a list of one number is one, too

    def window(self, start: int, stop: int) -> TrainRows:
        """Return the rows of a window."""
        if self.held is not None:
            return self.held
        parts = (self.course.read(self.course.table, self.reader, a, b) for a, b in cut(start, stop, PIECE))
        found = gathered(parts, stop - start)
        if len(self.windows) == 1:
            self.held = found
        return found

    def batches(self, alpha: Tensor, steps: int, generator: torch.Generator) -> Iterator[TrainRows]:
        """Yield the rows of positive weight in a random order, in exactly `steps` batches whose sizes differ by 1.

        So every worker makes as many steps, whatever it owns; `weight` of the rows is that of `alpha`.
        """
        taken = alpha > 0
        kept = int(taken.sum())
        sizes = [kept * (s + 1) // steps - kept * s // steps for s in range(steps)]
        step, carried = 0, []
        for k in torch.randperm(len(self.windows), generator=generator).tolist():
            a, b = self.windows[k]
            rows = self.window(a, b)
            inside = slice(a - self.start, b - self.start)
            index = torch.nonzero(taken[inside]).squeeze(1)
            index = index[torch.randperm(len(index), generator=generator)]
            rows, at = TrainRows(rows.Z, rows.Y, rows.offset, alpha[inside]), 0
            while step < steps:
                need = sizes[step] - sum(len(part.Z) for part in carried)
                if len(index) - at < need:
                    carried.append(rows.at(index[at:]))
                    break
                yield joined([*carried, rows.at(index[at : at + need])])
                carried, at, step = [], at + need, step + 1
            del rows  # before the next window is read
