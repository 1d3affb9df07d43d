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
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from diva_ray.bench import peers, quality
from diva_ray.bench.beside import accuracy, autograd, cleanlab, ridge_cv, textbook
from diva_ray.bench.detect import digits, quality_on
from diva_ray.bench.gpu import gpu
from diva_ray.bench.scaling import scaling
from diva_ray.bench.speed import (
    SMALL,
    THREADS,
    Figure,
    Sizes,
    derivative,
    dual,
    errors,
    machine,
    memory,
    on_ray,
    ridges,
)
from diva_ray.bench.steps import pool_reading, weight_steps
from diva_ray.bench.tune import tuning
from diva_ray.config import BenchmarkConfig
from diva_ray.errors import InputError
from diva_ray.tasks.setup.option_checks import check_choices
from diva_ray.tasks.setup.options import check_types
from diva_ray.threads import blas_environment

log = logging.getLogger("diva_ray")
GOAL_SIZE = {"n": 60_000, "p": 1_280, "c": 10}


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

    @property
    def summary(self) -> dict[str, Any]:
        """Everything, as in benchmark.json."""
        return self.record()

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
    check_choices(config, {"size": ("full", "small"), "peers": ("sample", "full")})
    unknown = [name for name in config.only if name not in ENTRIES]
    if unknown:
        raise InputError(f"only: entries must be among {', '.join(ENTRIES)}, got {unknown[0]}. Change `only`.")
    given = {name: value for name in ("n", "p", "c") if (value := getattr(config, name)) is not None}
    sizes = replace(SMALL if config.size == "small" else Sizes(), **given, data_folder=config.data_folder)
    if not (sizes.p > 1 and sizes.c > 1 and min(sizes.n, sizes.textbook_n, sizes.errors_n) > sizes.p + 1):
        got = f"n={sizes.n} p={sizes.p} c={sizes.c}"
        raise InputError(f"n: rows must outnumber columns, p and c be at least 2, got {got}. Change `n` or `p`.")
    return replace(sizes, cleanlab_share=1.0 if config.peers == "full" else sizes.cleanlab_share)


def benchmark(**options: Any) -> Report | quality.TaskReport:
    """Return the report of a benchmark: `.summary` has every figure, `.lines()` the tables.

    Args:
        **options: fields of `BenchmarkConfig`; files go to `output`, by default a temporary folder.

    Raises:
        InputError: bad options, in one line.
    """
    known = [one.name for one in fields(BenchmarkConfig)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"benchmark: options must be {', '.join(known)}, got {unknown[0]!r}. Choose from these.")
    config = BenchmarkConfig(**{"output": "", **options})
    check_types(config)
    config.output = config.output or tempfile.mkdtemp(prefix="diva_ray-")
    return run(config)


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
