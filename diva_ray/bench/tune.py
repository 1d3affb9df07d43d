"""What Ray Tune costs beside the trials themselves, in processor seconds of every process."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow.parquet as pq

from diva_ray.bench.speed import Figure, Sizes, draw
from diva_ray.config import ClusterConfig, DataConfig, TuneConfig
from diva_ray.data.table import from_arrays
from diva_ray.tasks.fit.study import Study
from diva_ray.tasks.setup.begin import begin
from diva_ray.tasks.setup.space import parse_space

BANDS = ["image", "text"]
LOOK = 0.2  # seconds between looks at what processes have spent: a process may spend that much unseen at its end


def space(p: int) -> dict:
    """Return sixteen trials: half of them choose their ridge, with or without a projection, of one band or two."""
    return {
        "bands": {"choice": [BANDS, BANDS[:1]]}, "ridge": {"choice": ["auto", 10.0]},
        "projection": {"choice": ["none", max(p // 5, 1)]}, "standardize": {"choice": ["auto", "none"]},
    }  # fmt: skip


class ProcessorSeconds:
    """Counts processor seconds, user and system, of this process and of all that descend from it."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, float], float] = {}
        self.over = threading.Event()
        self.spent = self.seconds = 0.0

    def __enter__(self) -> ProcessorSeconds:
        self._look()
        self.before, self.start = dict(self.seen), time.perf_counter()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:  # ended meanwhile: what was seen of it counts
                continue

    def _watch(self) -> None:
        while not self.over.wait(LOOK):
            self._look()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self._look()
        self.seconds = time.perf_counter() - self.start
        self.spent = sum(self.seen.values()) - sum(self.before.values())


def in_one_process(config: TuneConfig) -> list[float]:
    """Return the errors of every combination, judged in this process one after another; Ray is not loaded."""
    chosen, found = parse_space(config), []
    names = list(chosen.dimensions)
    with begin(config, None, None, quiet=True) as session:
        study = Study(session, config)
        for point in itertools.product(*(chosen.dimensions[name].labels() for name in names)):
            choice = chosen.choice(dict(zip(names, point, strict=True)))
            sums = [study.judge(choice, k) for k in range(config.folds)]
            found.append(sum(one["error"] for one in sums) / sum(one["weight"] for one in sums))
    return found


def tuning(s: Sizes) -> Iterator[Figure]:
    """Sixteen trials by Ray Tune against the same in one process."""
    from diva_ray.tasks.tune import Tuned, run

    X, y = draw(s.n, s.p, s.c)
    bands = dict(zip(BANDS, map(np.ascontiguousarray, np.split(X, [s.p // 2], 1)), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        rows = from_arrays({**bands, "label": y}).memory
        pq.write_table(rows, f"{folder}/t.parquet", row_group_size=5_000, use_dictionary=False, compression="none")
        del X, bands, rows

        def config(name: str, kind: str, workers: int | None = None) -> TuneConfig:
            return TuneConfig(
                data=DataConfig(path=f"{folder}/t.parquet", features=BANDS), space=space(s.p), search="grid",
                cluster=ClusterConfig(kind=kind, workers=workers, threads=1), output=f"{folder}/{name}",
            )  # fmt: skip

        with ProcessorSeconds() as alone:
            errors = in_one_process(config("alone", "inline"))
        note = f"16 trials, 5 folds, n={s.n:,} p={s.p:,} c={s.c}; {alone.seconds:.1f} s; one load, sums shared"
        yield Figure("in one process without Ray", alone.spent, "cpu s", note=note)
        for words, kind, workers in (("data in this process", "inline", None), ("on 2 workers", "local", 2)):
            with ProcessorSeconds() as tuned:
                result = run(config(kind, kind, workers), quiet=True)
            assert isinstance(result, Tuned)
            # A grid's order is Tune's own.
            same = sorted(result.trials["error"].to_pylist()) == sorted(errors)
            note = f"{tuned.spent:.1f} cpu s, {tuned.seconds:.1f} s; start of Ray included; same errors: {same}"
            goal = 1.3 if kind == "inline" else None
            yield Figure(f"Ray Tune, {words} / in one process", tuned.spent / alone.spent, "x", goal, note=note)
