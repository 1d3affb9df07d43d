"""Our own figures for the benchmark: each entry yields figures, measured in a process of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.bench import peers
from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.dual import fit_dual
from diva_ray.core.grid import default_ridges, rotate
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import from_arrays, open_parquet
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels import passes
from diva_ray.engine.setup import Setup, default_block
from diva_ray.engine.shelf import IN_MEMORY, Keeping
from diva_ray.tasks.fit.derive import Runner, derive, fit_ridge, penalty_pattern
from diva_ray.tasks.setup.forms import sign_vectors

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Sizes:
    """How large the entries are: the issue's sizes (`full`), or seconds in all (`small`)."""

    n: int = 60_000
    p: int = 1_280
    c: int = 10
    gemm: int = 4_096
    errors_n: int = 4_000
    dual_n: int = 8_000
    dual_p: int = 9_000
    textbook_n: int = 8_000
    accuracy_n: int = 8_000
    scaling: tuple[int, ...] = (20_000, 50_000, 100_000, 200_000, 500_000)
    scaling_p: int = 256
    pool_n: int = 2_000_000
    pool_p: int = 512
    gpu_p: tuple[int, ...] = (512, 1_024, 2_048, 4_096)
    gpu_values: int = 400_000_000  # features of a table on a GPU
    gpu_gemm: int = 8_192
    gpu_bytes: int = 1 << 30
    repeats: int = 3
    cleanlab_share: float = 1 / 6
    data_folder: str | None = None


SUSTAINED = 3.0  # seconds for which a product rate is measured
SMALL = Sizes(4_000, 128, 10, 1_024, 2_000, 800, 900, 800, 2_000, (4_000, 8_000, 16_000), 64, 100_000, 64,
              (32, 64), 100_000, 256, 1 << 20)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One line of the table; a goal is met from above (`least`) or from below."""

    what: str
    value: float | None
    unit: str = ""
    goal: float | None = None
    least: bool = False
    note: str = ""

    def verdict(self) -> str:
        """Return `met`, `not met`, or nothing without a goal."""
        if self.goal is None or self.value is None:
            return ""
        return "met" if (self.value >= self.goal if self.least else self.value <= self.goal) else "not met"


def draw(n: int, p: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, p) float32 around c class centres, and classes (n,)."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((c, p), dtype=np.float32) * np.float32(2 / p**0.5)
    y = generator.integers(0, c, n)
    X = generator.standard_normal((n, p), dtype=np.float32)
    for a in range(0, n, 4096):
        X[a : a + 4096] += centres[y[a : a + 4096]]
    return X, y


def setup_of(p: int, c: int, dtype: torch.dtype = torch.float32) -> Setup:
    """Return the setup of passes over features as given, with an intercept."""
    scale = Scale((torch.zeros(p, dtype=torch.float64),), (1.0,), True)
    classes, rows = pa.array(range(c)), default_block(scale.width)
    return Setup("classification", scale, classes, c, "cross_entropy", None, "label", dtype, rows, 0)


def loaded(X: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, keeping: Keeping = IN_MEMORY) -> Runner:
    """Return a runner of the inline engine that holds the rows."""
    given = {} if weight is None else {"weight": weight}
    table = from_arrays({"features": X, "label": y, **given})
    columns = Columns(("features",), "label", weight="weight" if given else None)
    runner = Runner(Inline([table], columns, split(table, columns), 1, keeping), quiet=True)
    runner.load()
    return runner


def derivative_of(runner: Runner, setup: Setup, ridge: float = 1.0) -> Tensor:
    """Derive every row with one fit, one adjoint and one score pass; return the derivative of every penalty."""
    runner.engine.forget("rows", "scored")
    setup, _, solution, _ = fit_ridge(runner, setup, ridge)
    left = runner.run(passes.leave_one_out, "leave-out")
    adjoint, penalty = runner.timed("solve", solve_adjoint, solution, left.sums, setup.inputs)
    runner.engine.tell(adjoint=adjoint.to(setup.dtype))
    runner.run(passes.score, "score")
    return penalty


def ours(s: Sizes, X: np.ndarray, y: np.ndarray) -> float:
    """Return the median seconds of a derivative on these rows, inline."""
    runner, setup = loaded(X, y), setup_of(X.shape[1], s.c)
    return peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)


def scored(runner: Runner) -> Tensor:
    """Return derivative and standard error of every row (n, 2)."""
    assert isinstance(runner.engine, Inline)
    return torch.cat([shard.state["scored"] for shard in runner.engine.shards])  # type: ignore[misc]  # none is unloaded here


def machine(s: Sizes) -> Iterator[Figure]:
    """The processor and what its BLAS reaches."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    kernels = os.environ.get("OPENBLAS_CORETYPE", "as detected")
    cores = len(os.sched_getaffinity(0))
    yield Figure("cores", cores, note=f"{model}; OpenBLAS kernels {kernels}; one thread a worker")
    syrk, trmm = peers.triangular_rates(min(s.n, 2_500), s.p + 1)
    yield Figure("sgemm", peers.gemm_rate(s.gemm, 3) / 1e9, "GF/s", note=f"{s.gemm} x {s.gemm}")
    yield Figure("ssyrk at our shape", syrk / 1e9, "GF/s", note="n p^2 operations counted")
    yield Figure("strmm at our shape", trmm / 1e9, "GF/s", note="n p^2 operations counted")


def derivative(s: Sizes) -> Iterator[Figure]:
    """Sample, ridge and band derivatives, inline."""
    X, y = draw(s.n, s.p, s.c)
    rate = peers.gemm_rate(s.gemm)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    seconds = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    syrk, trmm = peers.triangular_rates(2_500, s.p + 1)
    rate = max(rate, peers.gemm_rate(s.gemm))
    split_up = ", ".join(f"{name} {taken / s.repeats:.2f}" for name, taken in runner.seconds.items() if name != "load")
    yield Figure("derivative", seconds, "s", note=f"n={s.n:,} p={s.p:,} c={s.c} float32; mean s: {split_up}")
    share = 4 * s.n * s.p**2 / (seconds * rate)
    yield Figure("share of peak, 4 n p^2 / (s x sgemm)", share, "", 0.75, True, f"sgemm {rate / 1e9:.0f} GF/s")
    floor = 2 * s.n * s.p**2 * (1 / syrk + 1 / trmm)
    yield Figure("share of the BLAS floor", floor / seconds, note="2 SYRK + 2 TRMM passes at their measured rates")


def memory(s: Sizes) -> Iterator[Figure]:
    """Memory of one derivative beyond the data."""
    X, y = draw(s.n, s.p, s.c)
    runner = loaded(X, y)
    level = peers.reset_memory()
    derivative_of(runner, setup_of(s.p, s.c))
    extra = peers.memory_above(level) / 1e9
    note = f"high-water mark above the level after loading {X.nbytes / 1e9:.2f} GB"
    yield Figure("memory beyond the data", extra, "GB", 0.25, note=note)


def ridges(s: Sizes) -> Iterator[Figure]:
    """Twenty ridges from one orthogonal reduction and one pass."""
    X, y = draw(s.n, s.p, s.c)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    runner.engine.tell(setup=setup)
    sums = runner.run(passes.fit, "fit")

    def grid() -> None:
        rotation = rotate(sums, penalty_pattern(setup), runner.rows)
        runner.engine.tell(family=rotation.at(default_ridges(rotation, runner.rows), setup.dtype))
        runner.run(passes.grid, "ridge")

    seconds = peers.seconds_of(grid, s.repeats)
    fit = peers.seconds_of(lambda: runner.run(passes.fit, "fit"), s.repeats)
    one = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    note = f"{seconds:.2f} s: reduction + grid pass; the derivative's fit pass serves both"
    yield Figure("20 ridges / derivative", seconds / one, "x", 0.9, note=note)
    yield Figure("20 ridges with a fit pass of their own", (seconds + fit) / one, "x")


def errors(s: Sizes) -> Iterator[Figure]:
    """Standard errors: what they cost, and how near the estimate is."""
    X, y = draw(s.n, s.p, s.c)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    one = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    vectors = sign_vectors(s.p + 1, s.c)
    drawn = peers.seconds_of(lambda: derivative_of(runner, replace(setup, vectors=vectors)), s.repeats)
    note = f"{vectors} sign vectors, beyond the derivative itself: ({drawn:.2f} - {one:.2f}) s"
    yield Figure("standard errors / derivative", (drawn - one) / one, "x", 4.5, note=note)
    yield Figure("derivative with standard errors / without", drawn / one, "x")
    found, m = {}, s.errors_n
    small = loaded(X[:m], y[:m])
    for kind in ("exact", "estimate"):
        small.engine.forget("rows", "scored", "validation")
        derive(small, setup, 1.0, m, kind)
        found[kind] = scored(small)
    ratio = (found["estimate"][:, 1] / found["exact"][:, 1]).numpy()
    z = [(rows[:, 0] / rows[:, 1]).argsort().argsort().double() for rows in found.values()]
    note = f"n={m:,}; 16th to 84th percentile {np.quantile(ratio, 0.16):.2f} to {np.quantile(ratio, 0.84):.2f}"
    yield Figure("estimated / exact standard error, median", float(np.median(ratio)), note=note)
    yield Figure("rank correlation of z, estimated and exact", float(torch.corrcoef(torch.stack(z))[0, 1]))


def dual(s: Sizes) -> Iterator[Figure]:
    """The n x n form against LAPACK alone."""
    n, p = s.dual_n, s.dual_p
    X, y = draw(n, p, s.c)
    runner, setup = loaded(X, y), setup_of(p, s.c)
    before = peers.dual_floor(n, p)
    seconds = peers.seconds_of(lambda: derive(runner, setup, float(p), n, "auto"), s.repeats)
    syrk, invert = map(min, before, peers.dual_floor(n, p))
    Z, alpha, offset = peers.with_intercept(X, torch.float32), torch.ones(n), torch.zeros(n, s.c)
    penalty = p * penalty_pattern(setup).float()
    fit = peers.seconds_of(lambda: fit_dual(Z, torch.from_numpy(y), alpha, penalty, offset), s.repeats)
    note = f"{seconds:.2f} s at n={n:,} p={p:,}; SSYRK {syrk:.2f} s + SPOTRF and SPOTRI {invert:.2f} s"
    yield Figure("dual: share of its floor", (syrk + invert) / seconds, "", 0.85, True, note)
    note = f"{fit:.2f} s: without exact standard errors and derivatives of penalties"
    yield Figure("dual: share of its floor, fit alone", (syrk + invert) / fit, note=note)


def on_ray(s: Sizes) -> Iterator[Figure]:
    """Two Ray workers of one thread against this process, in turns: other work on the machine slows both alike."""
    import pyarrow.parquet as pq

    from diva_ray.engine.cluster import Cluster
    from diva_ray.engine.connect import connect

    X, y = draw(s.n, s.p, s.c)
    setup = setup_of(s.p, s.c)
    here = loaded(X, y)
    penalty = derivative_of(here, setup)
    with tempfile.TemporaryDirectory() as folder:
        rows = from_arrays({"features": X, "label": y}).memory
        pq.write_table(rows, f"{folder}/t.parquet", row_group_size=5_000, use_dictionary=False, compression="none")
        del X, rows
        start = time.perf_counter()
        connect("local")
        connected = time.perf_counter() - start
        table, columns = open_parquet(folder), Columns(("features",), "label")
        extents = split(table, columns)
        environment = {name: os.environ[name] for name in (*THREADS, "OPENBLAS_CORETYPE") if name in os.environ}
        cluster = Cluster([table], columns, extents, workers=2, threads=1, environment=environment)
        runner = Runner(cluster, quiet=True)
        runner.load()
        ready = time.perf_counter() - start - connected
        same = bool(torch.equal(penalty, derivative_of(runner, setup)))
        turns = [
            [peers.seconds_of(lambda one=one: derivative_of(one, setup), 1) for one in (here, runner)]
            for _ in range(2 * s.repeats - 1)
        ]
        inline, seconds = np.median(turns, 0).tolist()
        alone, beside = cores_beside(cluster.actors, min(s.n, 2_500), s.p + 1)
        runner.engine.close()
    note = f"{inline:.2f} s / {seconds:.2f} s after start-up, medians of {len(turns)} in turns"
    yield Figure("2 Ray workers: speed-up over inline", inline / seconds, "x", 1.75, True, note)
    rates = f"{alone / 1e9:.0f} and {beside / 1e9:.0f} GF/s"
    note = f"SSYRK for {SUSTAINED:g} s at our shape, {rates}: the most that a speed-up can be"
    yield Figure("  two workers' product rate / one alone", beside / alone, "x", note=note)
    yield Figure("Ray start-up", connected, "s", note="ray.init on this machine")
    yield Figure("workers start and read Parquet, overlapped", ready, "s", note=f"{s.n * s.p * 4 / 1e9:.2f} GB")
    yield Figure("same bits as inline", float(same), note="penalty derivatives; 1 = yes")


def cores_beside(actors: list[Any], rows: int, p: int) -> tuple[float, float]:
    """Return the product rate of the first worker alone, and of all of them at once."""
    import ray

    def rates(some: list[Any]) -> float:
        return sum(ray.get([actor.solve.remote(peers.sustained_rate, rows, p, SUSTAINED) for actor in some]))

    return rates(actors[:1]), rates(actors)
