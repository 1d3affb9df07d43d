"""Where a run will happen, what it will need, and how long it should take, before anything is started."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import psutil
import pyarrow as pa

from diva_ray.config import ClusterConfig
from diva_ray.data.columns import storage_type, to_matrix
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table
from diva_ray.errors import InputError

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
NODE_SECONDS = 60.0  # of passes for which another worker is worth the start of a node


@dataclass
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
    feature_bytes: int
    worker_bytes: int
    driver_bytes: int
    passes: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the plan for a person."""
        gib = 1 << 30
        return [
            f"table      {self.table}",
            f"rows       {self.rows:,} in {self.shards} shards; {self.features:,} features, {self.outputs:,} outputs",
            f"features   {self.feature_bytes / gib:.3f} GiB as stored",
            f"where      {self.kind}: {self.why}",
            f"workers    {self.workers} with {self.threads} BLAS thread(s)",
            f"memory     {self.worker_bytes / gib:.3f} GiB a worker, {self.driver_bytes / gib:.3f} GiB on the driver "
            "(estimate)",
            f"passes     {', '.join(self.passes)}",
            f"time       about {self.seconds:,.1f} s of passes, after loading (estimate)",
            *(f"note       {note}" for note in self.notes),
        ]


def parse_bytes(text: str | int | None) -> int | None:
    """Return the bytes of a size such as `2GiB`, `500MB` or a number."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]i?|)b?\s*", str(text).lower())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size <= 0:
        raise InputError(f"cluster.memory: must be a size such as 2GiB, got {text}. Change `cluster.memory`.")
    return size


def band_widths(table: Table, columns: Columns) -> list[tuple[int, int]]:
    """Return (width, bytes of an element) of every band: from the schema, or from the first row that has it."""
    widths = []
    for name in columns.features:
        kind = storage_type(table.schema.field(name).type)
        if pa.types.is_fixed_size_list(kind):
            widths.append((kind.list_size, np.dtype(kind.value_type.to_pandas_dtype()).itemsize))
        else:
            values, _ = to_matrix(table.reader().read(0, min(64, table.rows), [name])[name], name, table.where)
            widths.append((values.shape[1], values.dtype.itemsize))
    return widths


def choose_kind(cluster: ClusterConfig, need: int, *, dataset: bool) -> tuple[str, str]:
    """Return where to run (`inline`, `local` or `ray`) and why."""
    if cluster.kind not in ("auto", "inline", "local", "ray"):
        raise InputError(f"cluster: must be auto, inline, local or ray, got {cluster.kind}. Change `cluster`.")
    if cluster.kind != "auto":
        return cluster.kind, f"cluster={cluster.kind}"
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") or _ray_is_running():
        return "ray", "a Ray cluster is in reach of this process"
    if dataset:
        return "local", "a Ray Dataset needs Ray"
    budget = parse_bytes(cluster.memory)
    room = budget if budget is not None else psutil.virtual_memory().available // 2
    source = "cluster.memory" if budget is not None else "half of this machine's free memory"
    if need <= room:
        return "inline", f"{need / 2**30:.2f} GiB fit {source} ({room / 2**30:.2f} GiB)"
    return "local", f"{need / 2**30:.2f} GiB do not fit {source} ({room / 2**30:.2f} GiB)"


def _ray_is_running() -> bool:
    import sys

    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def resident_bytes(rows: int, widths: list[tuple[int, int]], outputs: int) -> int:
    """Return the bytes that `rows` rows need in memory: features as stored, and per-row results."""
    features = sum(width * size for width, size in widths)
    return rows * (features + 4 * (2 * outputs + 3) + 8 * 8)


def state_bytes(p: int, outputs: int, copies: int) -> int:
    """Return the bytes of one process's p x p state: sums in float32 and float64, factor, adjoint, one block."""
    return 8 * p * p * (7 + 2 * copies) + 8 * p * outputs * (3 + copies) + 6 * 1024 * p * 4


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


def check_memory(plan: Plan, memory: str | None) -> None:
    """Raise if a worker would need more than `cluster.memory`, or more than the machine has."""
    budget = parse_bytes(memory)
    limit = budget if budget is not None else psutil.virtual_memory().total if plan.kind != "ray" else None
    need = plan.worker_bytes if plan.kind != "local" or budget is not None else plan.worker_bytes * plan.workers
    if limit is not None and need > limit:
        raise InputError(
            f"cluster.memory: a worker's rows and sums must fit {limit / 2**30:.3g} GiB, got about {need / 2**30:.3g} "
            "GiB "
            f"({plan.rows:,} rows, {plan.workers} worker(s)). Raise `cluster.memory` or `cluster.workers`, or store "
            "features as float16."
        )


def check_workers(plan: Plan, cluster: ClusterConfig) -> None:
    """Raise for more workers than this machine has CPUs, before Ray is started on it."""
    have = os.cpu_count() or 1
    if plan.kind == "local" and not _ray_is_running() and (cluster.workers or 1) * plan.threads > have:
        raise InputError(
            f"cluster.workers: this machine must have {cluster.workers or 1} x {plan.threads} CPUs, got {have}. "
            "Lower `cluster.workers` or `cluster.threads`."
        )


def useful_workers(plan: Plan) -> int:
    """Return how many workers a cluster that grows is asked for: one for every minute of one worker's passes."""
    return max(1, math.ceil(plan.seconds * plan.workers / NODE_SECONDS))


def blas_environment() -> dict[str, str]:
    """Return the environment under which OpenBLAS uses this processor's AVX-512 kernels, if it does not by itself."""
    from threadpoolctl import threadpool_info

    if "OPENBLAS_CORETYPE" in os.environ or not os.path.exists("/proc/cpuinfo"):
        return {}
    taken = {str(info.get("architecture")) for info in threadpool_info() if info.get("internal_api") == "openblas"}
    with open("/proc/cpuinfo") as file:
        return better_coretype(taken, file.read())


def better_coretype(architectures: set[str], cpuinfo: str) -> dict[str, str]:
    """Return OPENBLAS_CORETYPE for a processor that has AVX-512 but was taken for one without.

    OpenBLAS takes AMD's Zen 4 and 5 for Haswell: 128 instead of 251 GF/s in float32 products.
    """
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if architectures & {"Haswell", "Zen"} and "avx512vl" in cpuinfo else {}
