"""Speed and quality side by side in one run; every entry in a fresh process, one thread a worker."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.config import BenchmarkConfig, ScoreConfig
from diva_ray.core.derivative import solve_adjoint
from diva_ray.core.dual import fit_dual
from diva_ray.core.grid import default_ridges, rotate
from diva_ray.data.columns import to_matrix
from diva_ray.data.shards import Columns, Extent, Scale, Shard
from diva_ray.data.sources import digits as digits_table
from diva_ray.data.split import split
from diva_ray.data.table import Table, from_arrays, open_parquet
from diva_ray.engine import passes
from diva_ray.engine.context import Setup
from diva_ray.engine.inline import Inline
from diva_ray.errors import InputError
from diva_ray.tasks import peers
from diva_ray.tasks.derive import SIGN_VECTORS, Runner, derive, fit_ridge, penalty_pattern
from diva_ray.tasks.folder import Folder
from diva_ray.tasks.plan import blas_environment

log = logging.getLogger("diva_ray")
GOAL_SIZE = {"n": 60_000, "p": 1_280, "c": 10}
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
    repeats: int = 3
    cleanlab_share: float = 1 / 6
    data_folder: str | None = None


SMALL = Sizes(4_000, 128, 10, 1_024, 2_000, 800, 900, 800, 2_000, (4_000, 8_000, 16_000), 64)


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
    classes, rows = pa.array(range(c)), ScoreConfig().block_rows
    return Setup("classification", scale, classes, c, "cross_entropy", None, "label", dtype, rows, 0)


def loaded(X: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Runner:
    """Return a runner of the inline engine that holds the rows."""
    given = {} if weight is None else {"weight": weight}
    table = from_arrays({"features": X, "label": y, **given})
    columns = Columns(("features",), "label", weight="weight" if given else None)
    runner = Runner(Inline([table], columns, split(table, columns, table.reader()), 1), quiet=True)
    runner.load()
    return runner


def derivative_of(runner: Runner, setup: Setup, ridge: float = 1.0) -> Tensor:
    """Derive every row with one fit, one adjoint and one score pass; return the derivative of every penalty."""
    runner.engine.forget("rows", "scored")
    setup, _, solution, _ = fit_ridge(runner, setup, ridge)
    left = runner.run(passes.leave_one_out, "leave-out")
    adjoint, penalty = runner.timed("solve", solve_adjoint, solution, left.sums)
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
    return torch.cat([shard.state["scored"] for shard in runner.engine.shards])  # type: ignore[misc]


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
    """Twenty ridges from one eigendecomposition and one pass."""
    X, y = draw(s.n, s.p, s.c)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    runner.engine.tell(setup=setup)
    sums = runner.run(passes.fit, "fit")

    def grid() -> None:
        rotation = rotate(sums, penalty_pattern(setup))
        runner.engine.tell(rotation=rotation.to(setup.dtype), ridges=default_ridges(rotation))
        runner.run(passes.grid, "ridge")

    seconds = peers.seconds_of(grid, s.repeats)
    fit = peers.seconds_of(lambda: runner.run(passes.fit, "fit"), s.repeats)
    one = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    note = f"{seconds:.2f} s: eigendecomposition + grid pass; the derivative's fit pass serves both"
    yield Figure("20 ridges / derivative", seconds / one, "x", 0.9, note=note)
    yield Figure("20 ridges with a fit pass of their own", (seconds + fit) / one, "x")


def errors(s: Sizes) -> Iterator[Figure]:
    """Standard errors: what they cost, and how near the estimate is."""
    X, y = draw(s.n, s.p, s.c)
    runner, setup = loaded(X, y), setup_of(s.p, s.c)
    one = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    nine = peers.seconds_of(lambda: derivative_of(runner, replace(setup, copies=1 + SIGN_VECTORS)), s.repeats)
    note = f"{SIGN_VECTORS} sign vectors, beyond the derivative itself: ({nine:.2f} - {one:.2f}) s"
    yield Figure("standard errors / derivative", (nine - one) / one, "x", 4.5, note=note)
    yield Figure("derivative with standard errors / without", nine / one, "x")
    found, m = {}, s.errors_n
    small = loaded(X[:m], y[:m])
    for kind in ("exact", "estimate"):
        small.engine.forget("rows", "scored", "validation")
        derive(small, setup, 1.0, m, m, kind)
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
    seconds = peers.seconds_of(lambda: derive(runner, setup, float(p), n, n, "auto"), s.repeats)
    syrk, invert = map(min, before, peers.dual_floor(n, p))
    Z, alpha, offset = peers.with_intercept(X, torch.float32), torch.ones(n), torch.zeros(n, s.c)
    penalty = p * penalty_pattern(setup).float()
    fit = peers.seconds_of(lambda: fit_dual(Z, torch.from_numpy(y), alpha, penalty, offset), s.repeats)
    note = f"{seconds:.2f} s at n={n:,} p={p:,}; SSYRK {syrk:.2f} s + SPOTRF and SPOTRI {invert:.2f} s"
    yield Figure("dual: share of its floor", (syrk + invert) / seconds, "", 0.85, True, note)
    note = f"{fit:.2f} s: without exact standard errors and derivatives of penalties"
    yield Figure("dual: share of its floor, fit alone", (syrk + invert) / fit, note=note)


def on_ray(s: Sizes) -> Iterator[Figure]:
    """Two Ray workers of one thread against this process."""
    import pyarrow.parquet as pq

    from diva_ray.engine.cluster import Cluster
    from diva_ray.engine.connect import connect

    X, y = draw(s.n, s.p, s.c)
    setup = setup_of(s.p, s.c)
    runner = loaded(X, y)
    inline = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
    penalty = derivative_of(runner, setup)
    with tempfile.TemporaryDirectory() as folder:
        rows = from_arrays({"features": X, "label": y}).memory
        pq.write_table(rows, f"{folder}/t.parquet", row_group_size=5_000, use_dictionary=False, compression="none")
        del X, runner, rows
        start = time.perf_counter()
        connect("local")
        connected = time.perf_counter() - start
        table, columns = open_parquet(folder), Columns(("features",), "label")
        extents = split(table, columns, table.reader())
        environment = {name: os.environ[name] for name in (*THREADS, "OPENBLAS_CORETYPE") if name in os.environ}
        runner = Runner(Cluster([table], columns, extents, workers=2, threads=1, environment=environment), quiet=True)
        runner.load()
        ready = time.perf_counter() - start - connected
        seconds = peers.seconds_of(lambda: derivative_of(runner, setup), s.repeats)
        same = bool(torch.equal(penalty, derivative_of(runner, setup)))
        runner.engine.close()
    note = f"{inline:.2f} s / {seconds:.2f} s after start-up"
    yield Figure("2 Ray workers: speed-up over inline", inline / seconds, "x", 1.75, True, note)
    yield Figure("Ray start-up", connected, "s", note="ray.init on this machine")
    yield Figure("workers start and read Parquet, overlapped", ready, "s", note=f"{s.n * s.p * 4 / 1e9:.2f} GB")
    yield Figure("same bits as inline", float(same), note="penalty derivatives; 1 = yes")


class Drawn(Inline):
    """An engine whose rows are drawn when a pass needs them and dropped after it; only per-row results stay."""

    def __init__(self, n: int, p: int, c: int) -> None:
        columns = Columns(("features",), "label")
        table = Table("rows drawn on the fly", pa.schema([]), n, 0)
        super().__init__([table], columns, split(table, columns, table.reader()), 1)
        self.shape, self.drawing = (p, c), 0.0
        self.kept: dict[int, dict[str, object]] = {extent.index: {} for extent in self.extents}

    def each(self, kernel: Any, extents: list[Extent] | None = None) -> Iterator[Any]:
        """Yield the partial of every shard; the seconds of drawing rows add up in `drawing`."""
        for extent in self.extents if extents is None else extents:
            start = time.perf_counter()
            rows = extent.stop - extent.start
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


def conditioned(n: int, p: int, condition: float) -> np.ndarray:
    """Return dense float32 features whose Gram matrix has about this condition number in the 1-norm."""
    generator = np.random.default_rng(0)
    G, (turn, _) = generator.standard_normal((n, p)), np.linalg.qr(generator.standard_normal((p, p)))
    spread = condition
    for _ in range(4):
        X = (G * np.logspace(0, -np.log10(spread) / 2, p)) @ turn
        spread *= condition / np.linalg.cond(X.T @ X, 1)
    return X.astype(np.float32)


def largest_error(found: Tensor, true: Tensor) -> float:
    """Return the largest difference relative to the largest entry."""
    return float((found.double() - true.double()).abs().max() / true.double().abs().max())


def accuracy(s: Sizes) -> Iterator[Figure]:
    """Both modes against torch autograd in float64."""
    n, p = s.accuracy_n, 200
    y = draw(n, 2, s.c)[1]
    for condition, goal in ((1e3, 1e-5), (2.5e4, 5e-5), (1e8, 5e-5)):
        X, ridge = conditioned(n, p, condition), 1e-3 * n / condition
        runner, setup = loaded(X, y), setup_of(p, s.c)
        found = derive(runner, setup, ridge, n, n, "estimate")
        Z, penalty = peers.with_intercept(X, torch.float64), ridge * penalty_pattern(setup)
        true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty, torch.ones(n, dtype=torch.float64))
        products = str(found.setup.dtype).removeprefix("torch.")
        note = f"n={n:,} p={p}; measured condition {found.condition:.1e}, products chosen: {products}"
        error = largest_error(scored(runner)[:, 0], true)
        yield Figure(f"float32 mode, condition {condition:.1e}", error, "", goal, note=note)
    n, p = 400, 30
    X, y = draw(n, p, s.c)
    weight = np.random.default_rng(1).uniform(0, 2, n)
    runner, setup = loaded(X, y, weight), setup_of(p, s.c, torch.float64)
    derivative_of(runner, setup)
    Z = peers.with_intercept(X, torch.float64)
    true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty_pattern(setup), torch.from_numpy(weight))
    error = largest_error(scored(runner)[:, 0], true)
    yield Figure("float64 mode against torch autograd", error, "", 1e-10, note=f"n={n} p={p}, random weights")


def ridge_cv(s: Sizes) -> Iterator[Figure]:
    """Scikit-learn's RidgeCV, one penalty."""
    X, y = draw(s.n, s.p, s.c)
    one, level = ours(s, X, y), peers.reset_memory()
    seconds = peers.seconds_of(lambda: peers.ridge_cv(X, y, s.c, 1.0))
    note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB; losses only, no derivative"
    yield Figure("RidgeCV leave-one-out / ours", seconds / one, "x", 3.5, True, note)


def autograd(s: Sizes) -> Iterator[Figure]:
    """Torch autograd through the careful p x p formula."""
    X, y = draw(s.n, s.p, s.c)
    one = ours(s, X, y)
    Z, labels = peers.with_intercept(X, torch.float32), torch.from_numpy(y)
    penalty = penalty_pattern(setup_of(s.p, s.c)).float()
    del X
    level = peers.reset_memory()
    seconds = peers.seconds_of(lambda: peers.autograd_primal(Z, labels, s.c, penalty, torch.ones(s.n)))
    note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB"
    yield Figure("torch autograd, primal formula / ours", seconds / one, "x", 4.5, True, note)


def textbook(s: Sizes) -> Iterator[Figure]:
    """Torch autograd through the n x n formula, at a size where that fits."""
    m = s.textbook_n
    X, y = draw(s.n, s.p, s.c)
    one, small = ours(s, X, y), ours(s, X[:m], y[:m])
    Z, labels = peers.with_intercept(X[:m], torch.float32), torch.from_numpy(y[:m])
    penalty, alpha = penalty_pattern(setup_of(s.p, s.c)).float(), torch.ones(m)
    del X
    forms: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "hat matrix": (2, lambda: peers.autograd_hat(Z, labels, s.c, penalty, alpha)),
        "kernel": (3, lambda: peers.autograd_kernel(Z[:, 1:], labels, s.c, 1.0, alpha)),
    }
    for name, (power, run_form) in forms.items():
        level = peers.reset_memory()
        seconds = peers.seconds_of(run_form)
        note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB; ours {small:.2f} s"
        yield Figure(f"torch autograd, n x n {name}, n={m:,} / ours", seconds / small, "x", note=note)
        scaled = seconds * (s.n / m) ** power
        yield Figure(f"  scaled by n^{power} to n={s.n:,}, NOT RUN", scaled / one, "x", note=f"{scaled:,.0f} s")


def cleanlab(s: Sizes) -> Iterator[Figure]:
    """Cleanlab with 5-fold logistic regression."""
    X, y = draw(s.n, s.p, s.c)
    m = round(s.n * s.cleanlab_share)
    one, small = ours(s, X, y), ours(s, X[:m], y[:m])
    seconds = peers.seconds_of(lambda: peers.cleanlab(X[:m], y[:m]))
    note = f"measured: {seconds:.1f} s, ours {small:.2f} s"
    yield Figure(f"cleanlab 5-fold, n={m:,} / ours there", seconds / small, "x", note=note)
    scaled, label = seconds * s.n / m, "measured" if m == s.n else "EXTRAPOLATED linearly"
    yield Figure(f"cleanlab 5-fold, n={s.n:,} / ours", scaled / one, "x", 15, True, f"{label}: {scaled:.0f} s")


def digits(s: Sizes) -> Iterator[Figure]:
    """Detection on scikit-learn's digits."""
    tables = [digits_table(0.2, seed).drop_columns(["image"]) for seed in range(3)]
    yield from detection(tables, "true_label", {"AUC margin": 0.996, "AUC derivative": 0.990})


def quality_on(name: str) -> Callable[[Sizes], Iterator[Figure]]:
    """Return the detection entry of a real data set in `data_folder`."""

    def entry(s: Sizes) -> Iterator[Figure]:
        table = open_parquet(f"{s.data_folder}/{name}/train.parquet")
        rows = table.reader().read(0, table.rows, table.schema.names)
        if "gold_label" in rows.column_names:  # human noise
            tables = [rows.select(["features", "label", "gold_label"])]
            return detection(tables, "gold_label", {"AUC label_score": 0.825})
        rows, truth = rows.select(["features"]), rows["label"].to_numpy(zero_copy_only=False)
        tables = [rows.append_column("label", pa.array(peers.plant(truth, 0.2, seed))) for seed in range(3)]
        tables = [noisy.append_column("true_label", pa.array(truth)) for noisy in tables]
        goals = {"F1 best": 0.83} if name == "dtd" else {"AUC best": 0.99, "F1 best": 0.93}
        return detection(tables, "true_label", goals)

    return entry


def detection(tables: list[pa.Table], truth: str, goals: dict[str, float]) -> Iterator[Figure]:
    """Return how well wrong labels are found, ours (mean over tables) next to cleanlab (first table)."""
    found, labels = [], [[t[name].to_numpy(zero_copy_only=False) for name in ("label", truth)] for t in tables]
    for table, (given, true) in zip(tables, labels, strict=True):
        found.append(peers.ours_found(table, truth, given != true))
    mean = {name: float(np.mean([one.figures[name] for one in found])) for name in found[0].figures}
    mean["AUC best"] = max(mean["AUC z"], mean["AUC label_score"])
    mean["F1 best"] = max(mean["F1 is_label_issue"], mean["F1 is_detrimental"])
    for name, value in mean.items():
        each = ", ".join(f"{one.figures[name]:.4f}" for one in found if name in one.figures)
        yield Figure(name, value, "", goals.get(name), True, each or "better of the two means")
    note = f"diva_ray.score on {tables[0].num_rows:,} rows, report and files included"
    yield Figure("seconds", float(np.median([one.seconds for one in found])), "s", note=note)
    X, (given, true) = to_matrix(tables[0]["features"], "features", "")[0], labels[0]
    codes = np.unique(given, return_inverse=True)[1]
    other = peers.cleanlab_found(np.asarray(X, np.float32), codes, given != true)
    for name, value in other.figures.items():
        yield Figure(f"{name} of cleanlab", value, note="5-fold LogisticRegression, first seed")
    yield Figure("seconds of cleanlab", other.seconds, "s")


ENTRIES: dict[str, Callable[[Sizes], Iterator[Figure]]] = {
    "machine": machine, "derivative": derivative, "memory": memory, "ridges": ridges, "errors": errors, "dual": dual,
    "ray": on_ray, "scaling": scaling, "accuracy": accuracy, "ridge_cv": ridge_cv, "autograd": autograd,
    "textbook": textbook, "cleanlab": cleanlab, "digits": digits,
    **{name: quality_on(name) for name in ("flowers", "caltech101", "dtd", "agnews")},
}  # fmt: skip
NEEDS_DATA = ("flowers", "caltech101", "dtd", "agnews")
UNTIMED = ("memory", "accuracy", "scaling", *NEEDS_DATA, "digits")  # no machine rate is measured around these


@dataclass
class Report:
    """What one run measured; figures by entry."""

    sizes: Sizes
    entries: dict[str, list[Figure]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the table for a terminal."""
        rows = [("entry", "what", "value", "goal", "", "note")]
        for entry, figures in self.entries.items():
            for figure in figures:
                value = "-" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()
                goal = "" if figure.goal is None else f"{'>=' if figure.least else '<='} {figure.goal:g}"
                rows.append((entry, figure.what, value, goal, figure.verdict(), figure.note))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join([*(row[k].ljust(widths[k]) for k in range(5)), row[5]]).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines[:1])))
        lines += ["", *self.drift()]
        if any(getattr(self.sizes, name) != value for name, value in GOAL_SIZE.items()):
            lines += ["The goals are for n=60,000 p=1,280 c=10; at other sizes `met` and `not met` only indicate."]
        verdicts = [figure.verdict() for figures in self.entries.values() for figure in figures]
        total = sum(self.seconds.values())
        failed = sum(figure.what == "FAILED" for figures in self.entries.values() for figure in figures)
        met, missed = verdicts.count("met"), verdicts.count("not met")
        lines += [f"{met} goals met, {missed} not met, {failed} entries failed; {total:,.0f} s in all"]
        return lines

    def drift(self) -> list[str]:
        """Return how the machine's rate moved, and which entries ran while it was not at its best."""
        best = max((rate for pair in self.rates.values() for rate in pair), default=0.0)
        slow = [f"{e} {min(pair) / 1e9:.0f}" for e, pair in self.rates.items() if pair and min(pair) < 0.85 * best]
        if not best:
            return []
        busy = f"; the machine was slower (busy?) around: {', '.join(slow)}. Run these again" if slow else ""
        return [f"sgemm-{self.sizes.gemm} around the entries: {best / 1e9:.0f} GF/s at best{busy}."]

    def record(self) -> dict[str, Any]:
        """Return everything for benchmark.json."""
        figures = {e: [{**asdict(f), "verdict": f.verdict()} for f in found] for e, found in self.entries.items()}
        return {"sizes": asdict(self.sizes), "entries": figures, "sgemm_rates": self.rates, "seconds": self.seconds}


def sizes_of(config: BenchmarkConfig) -> Sizes:
    """Return the sizes a config asks for."""
    for name, value, allowed in (("size", config.size, ("full", "small")), ("peers", config.peers, ("sample", "full"))):
        if value not in allowed:
            raise InputError(f"{name}: must be {' or '.join(allowed)}, got {value}. Change `{name}`.")
    unknown = [name for name in config.only if name not in ENTRIES]
    if unknown:
        raise InputError(f"only: entries must be among {', '.join(ENTRIES)}, got {unknown[0]}. Change `only`.")
    given = {name: value for name in ("n", "p", "c") if (value := getattr(config, name)) is not None}
    sizes = replace(SMALL if config.size == "small" else Sizes(), **given, data_folder=config.data_folder)
    if not (sizes.p > 1 and sizes.c > 1 and min(sizes.n, sizes.textbook_n, sizes.errors_n) > sizes.p + 1):
        got = f"n={sizes.n} p={sizes.p} c={sizes.c}"
        raise InputError(f"n: rows must outnumber columns, p and c be at least 2, got {got}. Change `n` or `p`.")
    return replace(sizes, cleanlab_share=1.0 if config.peers == "full" else sizes.cleanlab_share)


def run(config: BenchmarkConfig) -> Report:
    """Return the report of a benchmark (`jobs/benchmark.py`); it is written again after every entry."""
    sizes = sizes_of(config)
    folder = Folder(config.output)
    folder.open_new(resume=False)
    folder.write_yaml("config.yaml", asdict(config))
    versions = {name: version(name) for name in ("diva_ray", "torch", "numpy", "scipy", "ray", "scikit-learn")}
    started, report = time.strftime("%Y-%m-%dT%H:%M:%S%z"), Report(sizes)
    for name in config.only or [name for name in ENTRIES if config.data_folder or name not in NEEDS_DATA]:
        log.info("%s ...", name)
        start = time.perf_counter()
        report.entries[name], report.rates[name] = measured_apart(name, sizes)
        report.seconds[name] = round(time.perf_counter() - start, 1)
        folder.write_json("benchmark.json", report.record())
    missed = [f"{e}: {f.what}" for e, found in report.entries.items() for f in found if f.verdict() == "not met"]
    folder.write_json("summary.json", {"not_met": missed, "seconds": report.seconds})
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    manifest = {"versions": versions, "start": started, "end": ended, "machine": platform.platform()}
    folder.write_json("manifest.json", manifest)
    return report


def measured_apart(name: str, sizes: Sizes) -> tuple[list[Figure], list[float]]:
    """Return an entry's figures, and the machine's rates around it, from a process of its own with one thread."""
    single = dict.fromkeys(THREADS, "1")
    environment = {**os.environ, **single, "RAY_worker_niceness": "0", **blas_environment()}
    with tempfile.TemporaryDirectory() as folder:
        order = json.dumps({"name": name, "sizes": asdict(sizes), "answer": f"{folder}/answer.json"})
        command = [sys.executable, "-c", "from diva_ray.tasks.benchmark import obey; obey()"]
        done = subprocess.run(command, input=order, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [Figure("FAILED", None, note=f"exit code {done.returncode}: {said[:200]}")], []
        with open(f"{folder}/answer.json") as file:
            answer = json.load(file)
    return [Figure(**figure) for figure in answer["figures"]], answer["rates"]


def obey() -> None:
    """Measure the entry that standard input names: the whole of a measuring process."""
    from threadpoolctl import threadpool_limits

    order = json.load(sys.stdin)
    sizes, figures, rates = Sizes(**order["sizes"]), [], []
    torch.set_num_threads(1)
    with threadpool_limits(1):
        try:
            timed = order["name"] not in UNTIMED
            rates = [peers.gemm_rate(sizes.gemm, 1)] if timed else []
            for figure in ENTRIES[order["name"]](sizes):
                figures.append(asdict(figure))
            rates += [peers.gemm_rate(sizes.gemm, 1)] if timed else []
        except ModuleNotFoundError as error:
            figures.append(asdict(Figure(order["name"], None, note=f"not installed: pip install {error.name}")))
    with open(order["answer"], "w") as file:
        json.dump({"figures": figures, "rates": rates}, file)
