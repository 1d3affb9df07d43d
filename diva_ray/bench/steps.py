"""Speed of what goes beyond one derivative: weight steps, and a pool that is read from storage."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diva_ray.bench import peers
from diva_ray.bench.speed import Figure, Sizes, derivative_of, draw, loaded, setup_of
from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.reweight import Step
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import from_arrays, open_parquet
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels import passes, pool
from diva_ray.engine.shelf import IN_MEMORY, Shelf
from diva_ray.tasks.fit.calibrate import calibrate
from diva_ray.tasks.fit.derive import fit_ridge
from diva_ray.tasks.fit.walk import Walk
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.step_paths import Path

STEPS = 3
CHUNK = 65_536  # rows of a row group of the pool


def weight_steps(s: Sizes) -> Iterator[Figure]:
    """Three plain weight steps against one derivative."""
    X, y = draw(s.n, s.p, s.c)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    walk = Walk(runner, setup, 1.0, Path(Step("plain", 0.1)), runner.engine.extents)

    def steps() -> None:
        sums = walk.begin(None)
        for _ in range(STEPS):
            sums = walk.move(walk.solve(sums))
        walk.solve(sums)

    one = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    runner.engine.forget("step", "factor", "weights")
    all_steps = peers.seconds_of(steps, s.repeats)
    note = f"{all_steps:.2f} s / {one:.2f} s; two reads a step"
    yield Figure(f"{STEPS} weight steps / derivative", all_steps / one, "x", 3.5, note=note)


def pool_reading(s: Sizes) -> Iterator[Figure]:
    """A pool of many rows, scored in one read, against reading it alone and against its products alone."""
    rows, p = s.pool_n, s.pool_p
    X, y = draw(4 * p, p, s.c)
    with tempfile.TemporaryDirectory() as folder:
        _write_pool(folder, rows, p, s.c)
        tables = [from_arrays({"features": X, "label": y}), open_parquet(folder, "pool.path")]
        columns = Columns(("features",), "label")
        core = split(tables[0], columns)
        extents = split(tables[1], columns, first=len(core), which=1, pool=True)
        start = time.perf_counter()
        for _ in Shelf(tables, columns, extents, IN_MEMORY).each(extents):
            pass
        reading = time.perf_counter() - start
        runner = Runner(Inline(tables, columns, [*core, *extents], 1), quiet=True)
        _ready(runner, core, p, s.c)
        level = peers.reset_memory()
        start = time.perf_counter()
        runner.run(pool.score_pool, "score pool", extents)
        seconds, memory = time.perf_counter() - start, peers.memory_above(level)
    products = rows * (p + 1) ** 2 / peers.gemm_rate(s.gemm, 1)
    slower = "reading" if reading > products else "products"
    note = f"{seconds:.1f} s; {slower} is the slower: reading alone {reading:.1f} s, products alone {products:.1f} s"
    yield Figure(f"pool of {rows:,} x {p}, float16: rows a second", rows / seconds, "", note=note)
    yield Figure("share of the slower of reading and products", max(reading, products) / seconds, "", 0.8, True, note)
    yield Figure("memory while it is scored", memory / 1e9, "GB", 2.0, note=f"the pool has {rows * p * 2 / 1e9:.1f} GB")


def _write_pool(folder: str, rows: int, p: int, c: int) -> None:
    """Write a pool in row groups of one chunk, which repeats; ids tell the rows apart."""
    X, y = draw(CHUNK, p, c, seed=1)
    features = pa.FixedSizeListArray.from_arrays(pa.array(X.astype(np.float16).reshape(-1)), p)
    for k, start in enumerate(range(0, rows, CHUNK)):
        n = min(CHUNK, rows - start)
        table = pa.table({"features": features.slice(0, n), "label": y[:n], "id": np.arange(start, start + n)})
        pq.write_table(table, os.path.join(folder, f"part-{k:05d}.parquet"), compression="none")


def _ready(runner: Runner, core: list, p: int, c: int) -> None:
    """Fit to the core and make known what scoring a pool needs."""
    runner.load()
    setup, _, solution, _ = fit_ridge(runner, setup_of(p, c), 1.0)
    left = runner.run(passes.leave_one_out, "leave-out")
    adjoint, _ = solve_adjoint(solution, left.sums)
    runner.engine.tell(adjoint=adjoint.to(setup.dtype), seed=0, round=0, near=0.01, mean_uncertainty=0.5)
    runner.engine.tell(new=torch.zeros(c, dtype=torch.bool))
    runner.engine.tell(uniform_seed=1, uniform_slice=(0.0, 0.01))
    calibrate(runner, setup, left.tally, core)
