"""Time and memory against the number of rows, which are drawn on the fly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diva_ray.bench import peers
from diva_ray.bench.speed import Figure, Sizes, derivative_of, draw, setup_of
from diva_ray.data.shards import Columns, Extent, Shard
from diva_ray.data.split import split
from diva_ray.data.table import Table
from diva_ray.engine.inline import Inline
from diva_ray.engine.reduce import add_in_order, sections
from diva_ray.tasks.setup.runner import Runner


class Drawn(Inline):
    """An engine whose rows are drawn when a pass needs them and dropped after it; only per-row results stay."""

    def __init__(self, n: int, p: int, c: int) -> None:
        columns = Columns(("features",), "label")
        schema = pa.schema([("features", pa.list_(pa.float32(), p))])
        table = Table("rows drawn on the fly", schema, n, 0)
        super().__init__([table], columns, split(table, columns), 1)
        self.shape, self.drawing = (p, c), 0.0
        self.kept: dict[int, dict[str, object]] = {extent.index: {} for extent in self.extents}

    def each(self, kernel: Any, extents: list[Extent], done: Any = int, features: bool = True) -> Iterator[Any]:
        """Yield the sum of every section of shards; the seconds of drawing rows add up in `drawing`."""
        for section in sections(extents):
            yield add_in_order(add_in_order(self.partials(kernel, unit)) for unit in section)

    def partials(self, kernel: Any, unit: list[Extent]) -> Iterator[Any]:
        """Yield the partial of every shard."""
        for extent in unit:
            start = time.perf_counter()
            rows = extent.rows
            X, y = draw(rows, *self.shape, seed=1 + extent.index)
            ones, keys = torch.ones(rows, dtype=torch.float64), torch.arange(extent.start, extent.stop)
            shard = Shard(extent, [torch.from_numpy(X)], [None], pa.array(y), ones, ones, keys)
            shard.state = self.kept[extent.index]
            self.drawing += time.perf_counter() - start
            yield kernel(shard, self.known)


def scaling(s: Sizes) -> Iterator[Figure]:
    """Time against n, rows drawn on the fly."""
    setup, taken, extra = setup_of(s.scaling_p, s.c), [], []
    derivative_of(Runner(Drawn(s.scaling[0], s.scaling_p, s.c), quiet=True), setup)  # warm up
    for n in s.scaling:
        level, times = peers.reset_memory(), []
        for _ in range(s.repeats):
            engine, start = Drawn(n, s.scaling_p, s.c), time.perf_counter()
            derivative_of(Runner(engine, quiet=True), setup)
            times.append(time.perf_counter() - start - engine.drawing)
        taken.append(float(np.median(times)))
        extra.append(peers.memory_above(level) / 1e9)
    exponent = float(np.polyfit(np.log(s.scaling), np.log(taken), 1)[0])
    tail = float(np.log(taken[-1] / taken[-2]) / np.log(s.scaling[-1] / s.scaling[-2]))
    listed = ", ".join(f"{n:,}: {t:.2f} s" for n, t in zip(s.scaling, taken, strict=True))
    yield Figure("exponent of n", exponent, "", 1.05, note=f"p={s.scaling_p}, drawing not counted; {listed}")
    yield Figure("exponent between the last two n", tail, note="the fixed p^3 work lowers the one above")
    note = f"features alone would be {s.scaling[-1] * s.scaling_p * 4 / 1e9:.2f} GB"
    yield Figure(f"memory at n={s.scaling[-1]:,}", extra[-1], "GB", note=note)
