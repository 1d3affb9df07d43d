"""Speed and quality side by side in one run; every entry in a fresh process, one thread a worker."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.bench import peers, quality
from diva_ray.bench.gpu import gpu
from diva_ray.bench.speed import (
    SMALL,
    THREADS,
    Figure,
    Sizes,
    derivative,
    derivative_of,
    draw,
    dual,
    errors,
    loaded,
    machine,
    memory,
    on_ray,
    ours,
    ridges,
    scaling,
    scored,
    setup_of,
)
from diva_ray.bench.steps import pool_reading, weight_steps
from diva_ray.bench.tune import tuning
from diva_ray.config import BenchmarkConfig
from diva_ray.data.columns import to_matrix
from diva_ray.data.sources import digits as digits_table
from diva_ray.data.table import open_parquet
from diva_ray.errors import InputError
from diva_ray.tasks.derive import derive, penalty_pattern
from diva_ray.tasks.plan import blas_environment

log = logging.getLogger("diva_ray")
GOAL_SIZE = {"n": 60_000, "p": 1_280, "c": 10}


def accuracy(s: Sizes) -> Iterator[Figure]:
    """Both modes against torch autograd in float64."""
    n, p = s.accuracy_n, 200
    y = draw(n, 2, s.c)[1]
    for condition, goal in ((1e3, 1e-5), (2.5e4, 5e-5), (1e8, 5e-5)):
        X, ridge = peers.conditioned(n, p, condition), 1e-3 * n / condition
        runner, setup = loaded(X, y), setup_of(p, s.c)
        found = derive(runner, setup, ridge, n, n, "estimate")
        Z, penalty = peers.with_intercept(X, torch.float64), ridge * penalty_pattern(setup)
        true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty, torch.ones(n, dtype=torch.float64))
        products = str(found.setup.dtype).removeprefix("torch.")
        note = f"n={n:,} p={p}; measured condition {found.condition:.1e}, products chosen: {products}"
        error = peers.largest_error(scored(runner)[:, 0], true)
        yield Figure(f"float32 mode, condition {condition:.1e}", error, "", goal, note=note)
    n, p = 400, 30
    X, y = draw(n, p, s.c)
    weight = np.random.default_rng(1).uniform(0, 2, n)
    runner, setup = loaded(X, y, weight), setup_of(p, s.c, torch.float64)
    derivative_of(runner, setup)
    Z = peers.with_intercept(X, torch.float64)
    true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty_pattern(setup), torch.from_numpy(weight))
    error = peers.largest_error(scored(runner)[:, 0], true)
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
    "textbook": textbook, "cleanlab": cleanlab, "weight_steps": weight_steps, "pool": pool_reading,
    "tune": tuning, "gpu": gpu, "digits": digits,
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


def run(config: BenchmarkConfig) -> Report | quality.TaskReport:
    """Return the report of a benchmark (`jobs/benchmark.py`): of a task, or of speed, entry by entry."""
    return run_speed(config) if config.task == "speed" else quality.run(config)


def run_speed(config: BenchmarkConfig) -> Report:
    """Return the report of the speed entries; it is written again after every entry."""
    sizes = sizes_of(config)
    folder, started = quality.open_folder(config)
    report = Report(sizes)
    for name in config.only or [name for name in ENTRIES if config.data_folder or name not in NEEDS_DATA]:
        log.info("%s ...", name)
        start = time.perf_counter()
        report.entries[name], report.rates[name] = measured_apart(name, sizes)
        report.seconds[name] = round(time.perf_counter() - start, 1)
        folder.write_json("benchmark.json", report.record())
    missed = [f"{e}: {f.what}" for e, found in report.entries.items() for f in found if f.verdict() == "not met"]
    folder.write_json("summary.json", {"not_met": missed, "seconds": report.seconds})
    quality.close_folder(folder, started)
    return report


def measured_apart(name: str, sizes: Sizes) -> tuple[list[Figure], list[float]]:
    """Return an entry's figures, and the machine's rates around it, from a process of its own with one thread."""
    single = dict.fromkeys(THREADS, "1")
    environment = {**os.environ, **single, "RAY_worker_niceness": "0", **blas_environment()}
    with tempfile.TemporaryDirectory() as folder:
        order = json.dumps({"name": name, "sizes": asdict(sizes), "answer": f"{folder}/answer.json"})
        command = [sys.executable, "-c", "from diva_ray.bench.benchmark import obey; obey()"]
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
