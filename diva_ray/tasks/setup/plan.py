"""Where a run will happen, what it will need, and how long it should take, before anything is started."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import psutil

from diva_ray.config import ClusterConfig
from diva_ray.engine.shelf import Keeping
from diva_ray.errors import InputError
from diva_ray.report.words import counted
from diva_ray.tasks.setup.memory import Sizes, check_fit, choose_place, parse_bytes

WARNING = "warning"  # begins a line of the plan that tells of a doubt
NODE_SECONDS = 60.0  # of passes for which another worker is worth the start of a node


@dataclass(repr=False)
class Plan:
    """What a run will do, as `plan=true` prints it."""

    table: str
    rows: int
    features: int
    outputs: int
    kind: str
    why: str
    workers: int
    threads: int
    shards: int
    sizes: Sizes
    keeping: Keeping
    budget: int | None  # bytes of a worker; None: of nodes that are not known yet
    passes: list[str]
    seconds: float  # of one worker's passes, reading and decoding too
    alone: float  # of what the driver does between them
    notes: list[str] = field(default_factory=list)
    task: str = ""
    warnings: list[str] = field(default_factory=list)

    def settle(self, workers: int, budget: int | None, cache: str) -> Plan:
        """Return the plan for so many workers of so much memory: it says where rows are kept between passes."""
        place, why = choose_place(self.sizes, workers, budget, cache)
        check_fit(self.sizes, place, workers, budget)
        folder = os.path.join(tempfile.gettempdir(), "diva_ray-cache") if cache == "auto" else cache
        keeping = replace(self.keeping, place=place, folder=folder, why=why, sums=self.sizes.sums)
        return replace(self, workers=workers, budget=budget, keeping=keeping)

    def device(self) -> str:
        """Return where the passes work on features, for a person."""
        if not self.keeping.gpus:
            return "CPU"
        share = "" if self.keeping.gpus == 1 else f", {self.keeping.gpus:g} of it for each worker"
        return f"GPU{share}: features stay in its memory while it has room, else they come from the host in every pass"

    def kept(self) -> str:
        """Return where rows are kept between passes, and why, for a person."""
        keeping, disk = self.keeping, self.sizes.disk(self.workers) / 2**30
        if keeping.place == "memory":
            return f"in memory: {keeping.why}"
        if keeping.place == "storage":
            return f"in the table, which every pass reads again (cluster.cache=none): {keeping.why}"
        return f"on each worker's disk, {disk:.2f} GiB in {keeping.folder}, read once a pass: {keeping.why}"

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the plan for a person."""
        gib = 1 << 30
        return [
            f"table      {self.table}",
            f"rows       {self.rows:,} in {counted(self.shards, 'shard', 'shards')}; "
            f"{counted(self.features, 'feature', 'features')}, {counted(self.outputs, 'output', 'outputs')}",
            f"task       {self.task}",
            f"features   {self.sizes.rows * self.sizes.features / gib:.3f} GiB as stored",
            f"where      {self.kind}: {self.why}",
            f"workers    {self.workers} with {self.threads} BLAS thread(s)",
            f"memory     {self.sizes.need(self.keeping.place, self.workers) / gib:.3f} GiB a worker, "
            f"{self.sizes.driver() / gib:.3f} GiB on the driver (estimate)",
            f"device     {self.device()}",
            f"rows kept  {self.kept()}",
            f"passes     {', '.join(self.passes)}",
            f"time       about {self.seconds / self.workers + self.alone:,.1f} s, {self.alone:,.1f} s of it on the "
            "driver between the passes (estimate for an idle machine)",
            *(f"note       {note}" for note in self.notes),
            *(f"{WARNING}    {warning}" for warning in self.warnings),
        ]


def choose_kind(cluster: ClusterConfig, need: int) -> tuple[str, str]:
    """Return where to run (`inline`, `local` or `ray`) and why."""
    if cluster.kind not in ("auto", "inline", "local", "ray"):
        raise InputError(f"cluster: must be auto, inline, local or ray, got {cluster.kind}. Change `cluster`.")
    if cluster.kind != "auto":
        return cluster.kind, f"cluster={cluster.kind}"
    own = getattr(sys.modules.get("diva_ray.engine.connect"), "started_here", bool)()
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") or (ray_is_running() and not own):
        return "ray", "a Ray cluster is in reach of this process"
    budget = parse_bytes(cluster.memory)
    room = budget if budget is not None else psutil.virtual_memory().available // 2
    source = "cluster.memory" if budget is not None else "half of this machine's free memory"
    if need <= room:
        return "inline", f"{need / 2**30:.2f} GiB fit {source} ({room / 2**30:.2f} GiB)"
    return "local", f"{need / 2**30:.2f} GiB do not fit {source} ({room / 2**30:.2f} GiB)"


def ray_is_running() -> bool:
    """Return whether this process has joined a cluster already."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


@cache
def product_rate(threads: int) -> float:
    """Return the measured float32 matrix-product rate of this process in operations a second; measured once."""
    from threadpoolctl import threadpool_limits

    a = np.ones((1024, 1024), np.float32)
    with threadpool_limits(threads):
        np.dot(a, a)
        start = time.perf_counter()
        for _ in range(4):
            np.dot(a, a)
        return 4 * 2 * 1024**3 / (time.perf_counter() - start)


def check_workers(kind: str, workers: int, threads: int) -> None:
    """Raise for more workers than this machine has CPUs, before Ray is started on it."""
    have = os.cpu_count() or 1
    if kind == "local" and workers * threads > have and not ray_is_running():
        raise InputError(
            f"cluster.workers: this machine must have {workers} x {threads} CPUs, got {have}. Lower `cluster.workers` "
            "or `cluster.threads`."
        )


def useful_workers(plan: Plan) -> int:
    """Return how many workers a cluster that grows is asked for: one for every minute of one worker's passes."""
    return max(1, math.ceil(plan.seconds / NODE_SECONDS))
