"""The task benchmarks: every set, share of wrong labels and seed in turn, and tables of mean and spread."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from diva_ray.bench import aggregate, augment, detect, extend, multimodal, pairs, reweight
from diva_ray.bench.sets import NAMES, RealSet, found_sets, read_set
from diva_ray.bench.tables import Results, Table
from diva_ray.config import BenchmarkConfig
from diva_ray.data.folder import Folder
from diva_ray.engine.progress import quieted
from diva_ray.errors import InputError
from diva_ray.report.sheet import Sheet, render_sheet
from diva_ray.tasks.setup.finish import now
from diva_ray.tasks.setup.manifest import described
from diva_ray.tasks.setup.option_checks import check_least
from diva_ray.tasks.setup.saved_config import write_config

log = logging.getLogger("diva_ray")


@dataclass(frozen=True)
class Task:
    """What is measured on a set, and how it is shown; shares of wrong labels where the config names none."""

    measure: Callable[[Any, float, int], dict[str, float]]
    tables: Callable[[Results], list[Table]]
    noise: tuple[float, ...]
    sets: tuple[str, ...] = NAMES
    read: Callable[[str, str | None], Any] | None = None  # None: classes, `sets.read_set`
    clean: bool = True  # whether nothing planted can be measured
    page: Callable[[Results, int], Sheet] | None = None  # report.html, for figures that tables cannot show


TASKS = {
    "detect": Task(detect.measure, detect.tables, (0.2,), clean=False),
    "reweight": Task(reweight.measure, reweight.tables, (0.0, 0.2, 0.4)),
    "extend": Task(extend.measure, extend.tables, (0.0, 0.4)),
    "augment": Task(augment.measure, augment.tables, (0.0,), augment.SETS),
    "aggregate": Task(aggregate.measure, aggregate.tables, (0.0, 0.2), aggregate.SETS),
    "multimodal": Task(
        multimodal.measure,
        multimodal.tables,
        (0.0, 0.4),
        multimodal.SETS,
        multimodal.read_pool,
        page=multimodal.sheet_of,
    ),
    "pairs": Task(pairs.measure, pairs.tables, (0.05, 0.2, 0.4), pairs.SETS, pairs.read_pairs, clean=False),
}


@dataclass
class TaskReport:
    """What one run measured; `lines` for a terminal, `markdown` and `record` for files."""

    task: str
    seeds: int
    first_seed: int = 0
    results: Results = field(default_factory=Results)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Return the tables of what was measured so far."""
        return TASKS[self.task].tables(self.results)

    @property
    def summary(self) -> dict[str, Any]:
        """Everything, as in benchmark.json."""
        return self.record()

    def lines(self) -> list[str]:
        """Return the tables for a terminal."""
        shown = [line for table in self.tables() for line in (*table.lines(), "")]
        return [*shown, *self.notes, f"{self._told_seeds()}; {sum(self.seconds.values()):,.0f} s in all"]

    def markdown(self) -> str:
        """Return the tables for a README."""
        spread = "mean and standard deviation over" if self.seeds > 1 else "with"
        parts = [table.markdown() for table in self.tables()]
        return "\n\n".join([*parts, f"Numbers are {spread} {self._told_seeds()}.", *self.notes]) + "\n"

    def _told_seeds(self) -> str:
        first, last = self.first_seed, self.first_seed + self.seeds - 1
        return f"seed {first}" if first == last else f"{self.seeds} seeds, {first} to {last}"

    def record(self) -> dict[str, Any]:
        """Return everything for benchmark.json."""
        return {
            "task": self.task, "seeds": self.seeds, "first_seed": self.first_seed, "results": self.results.record(),
            "notes": self.notes, "seconds": self.seconds,
        }  # fmt: skip


def check(config: BenchmarkConfig) -> None:
    """Raise for options of a task benchmark that cannot be."""
    if config.task not in TASKS:
        raise InputError(f"task: must be speed, {', '.join(TASKS)}, got {config.task}. Change `task`.")
    if config.only:
        raise InputError(f"only: must be empty with task={config.task}, got {config.only[0]}. Use `sets`.")
    check_least(config, {"seeds": 1, "first_seed": 0})
    for share in config.noise:
        if not 0 <= share < 1:
            raise InputError(f"noise: must be at least 0 and below 1, got {share}. Change `noise`.")
        if share == 0 and not TASKS[config.task].clean:
            raise InputError(f"noise: must be above 0 with task={config.task}, got {share}. Change `noise`.")


def run(config: BenchmarkConfig) -> TaskReport:
    """Return the report of a task benchmark; the files are written again after every set.

    In this process and on one thread: what is compared is how good the answers are.
    """
    check(config)
    names, left_out = found_sets(config.data_folder, list(config.sets), TASKS[config.task].sets)
    folder, started = open_folder(config)
    report = TaskReport(config.task, config.seeds, config.first_seed, notes=left_out)
    noise = tuple(config.noise) or TASKS[config.task].noise
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            for name in names:
                start = time.perf_counter()
                for seed in range(config.first_seed, config.first_seed + config.seeds):
                    reader = TASKS[config.task].read
                    one = reader(name, config.data_folder) if reader else read_set(name, config.data_folder, seed)
                    _measure_set(report, one, noise, seed)
                report.seconds[name] = round(time.perf_counter() - start, 1)
                folder.write_json("benchmark.json", report.record())
                folder.write("benchmark.md", report.markdown().encode())
                page = TASKS[config.task].page
                if page is not None:
                    folder.write("report.html", render_sheet(page(report.results, config.seeds)).encode())
    finally:
        torch.set_num_threads(threads)
    folder.write_json("summary.json", {"task": config.task, "seconds": report.seconds})
    close_folder(folder, started)
    return report


def _measure_set(
    report: TaskReport, one: RealSet | pairs.PairSet | multimodal.PoolSet, noise: Iterable[float], seed: int
) -> None:
    for share in noise if one.given is None else (None,):  # human errors are what they are
        start = time.perf_counter()
        with quieted(logging.WARNING, "diva_ray"):  # the steps of every single run; warnings stay
            found = TASKS[report.task].measure(one, share or 0.0, seed)
        report.results.add(one.name, share, found)
        what = "human errors" if share is None else f"{share:.0%} planted"
        log.info("%s, %s, seed %d: %.0f s", one.name, what, seed, time.perf_counter() - start)


def open_folder(config: BenchmarkConfig) -> tuple[Folder, str]:
    """Open the output with the config in it; return it and the time."""
    folder = Folder(config.output)
    folder.open_new(resume=False)
    write_config(folder, config)
    return folder, now()


def close_folder(folder: Folder, started: str) -> None:
    """Write versions, times and the machine."""
    more = {name: version(name) for name in ("scipy", "scikit-learn")}
    told = described({}, {"kind": "inline", "why": "a benchmark"}, started, now())
    folder.write_json("manifest.json", {**told, **more, "machine": platform.platform()})
