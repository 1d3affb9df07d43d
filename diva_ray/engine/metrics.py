"""Figures of a run for Prometheus, through the metrics of Ray: each node's agent serves them (it needs `ray[default]`).

Without that agent they go nowhere, at the same cost: a few microseconds a shard.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import ray
from ray.util import metrics

# name -> (kind, what it is, tags besides JobId). Prometheus shows them as ray_NAME, counters as ray_NAME_total.
METRICS = {
    "diva_ray_rows": ("counter", "Rows that kernels went over", ("pass", "worker")),
    "diva_ray_feature_bytes": ("counter", "Bytes of features that kernels went over", ("pass", "worker")),
    "diva_ray_kernel_seconds": ("counter", "Seconds in kernels", ("pass", "worker")),
    "diva_ray_memory_bytes": ("gauge", "Resident memory of a worker's process", ("worker",)),
    "diva_ray_restarts": ("counter", "Workers that took a dead one's place", ("worker",)),
    "diva_ray_pass_running": ("gauge", "1 while a pass runs, then 0", ("pass",)),
    "diva_ray_pass_step": ("gauge", "How often a pass had run before", ("pass",)),
    "diva_ray_pass_progress": ("gauge", "Share of a pass's rows that is done, 0 to 1", ("pass",)),
    "diva_ray_pass_seconds": ("counter", "Seconds of finished passes, as the driver sees them", ("pass",)),
    "diva_ray_rows_per_second": ("gauge", "Rows a second of the last finished pass of its name", ("pass",)),
}
KINDS = {"counter": metrics.Counter, "gauge": metrics.Gauge}


class RayMetrics:
    """The metrics of one process."""

    def __init__(self, **tags: str) -> None:
        self.tags = {"JobId": ray.get_runtime_context().get_job_id(), **tags}
        self.made: dict[str, metrics.Counter | metrics.Gauge] = {}

    def tell(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter (nothing, where there is nothing to add), or set a gauge."""
        kind, description, keys = METRICS[name]
        if name not in self.made:
            self.made[name] = KINDS[kind](name, description, ("JobId", *keys))
        found, tags = self.made[name], {**self.tags, **tags}
        if isinstance(found, metrics.Gauge):
            found.set(value, tags)
        elif value > 0:
            found.inc(value, tags)


class WorkerMetrics:
    """What a worker tells of itself."""

    def __init__(self, worker: int) -> None:
        self.told, self.process = RayMetrics(worker=str(worker)), psutil.Process()
        self.restarts = restarts()
        if self.restarts:  # each life of a worker tells of one: the sum over lives is how many there were
            self.told.tell("diva_ray_restarts", 1)

    def counting(self, label: str) -> Callable[[int, int, float], None]:
        """Return what is to hear of every shard of a pass."""

        def count(rows: int, size: int, seconds: float) -> None:
            self.told.tell("diva_ray_rows", rows, **{"pass": label})
            self.told.tell("diva_ray_feature_bytes", size, **{"pass": label})
            self.told.tell("diva_ray_kernel_seconds", seconds, **{"pass": label})
            self.told.tell("diva_ray_memory_bytes", self.process.memory_info().rss)

        return count


class PassMetrics:
    """What a driver tells of its passes."""

    def __init__(self) -> None:
        self.told = RayMetrics()

    def went(self, label: str, step: int, share: float) -> None:
        """Tell that a pass runs, and how far it is: again and again, for an agent forgets a gauge after 20 seconds."""
        self.told.tell("diva_ray_pass_running", 1, **{"pass": label})
        self.told.tell("diva_ray_pass_step", step, **{"pass": label})
        self.told.tell("diva_ray_pass_progress", share, **{"pass": label})

    def ended(self, label: str, rows: int, seconds: float) -> None:
        """Tell that a pass has ended."""
        self.told.tell("diva_ray_pass_running", 0, **{"pass": label})
        self.told.tell("diva_ray_pass_seconds", seconds, **{"pass": label})
        self.told.tell("diva_ray_rows_per_second", rows / max(seconds, 1e-9), **{"pass": label})


def restarts() -> int:
    """Return how often this actor was started anew, as Ray's control store counts."""
    from ray._private.state import actors  # the public call tells only whether: was_current_actor_reconstructed

    found = actors(actor_id=ray.get_runtime_context().get_actor_id())
    return int(found["NumRestarts"]) if found else 0
