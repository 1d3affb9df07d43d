"""What every worker did in every pass: rows, bytes of features, seconds in kernels. Counted by shard, never by row."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter, process_time
from typing import Any, Protocol

from diva_ray.data.shards import Shard
from diva_ray.engine.context import Kernel, Known

MOST_WORKERS = 64  # that a summary lists one by one: the busiest


@dataclass
class Work:
    """What one worker did: its sums, and what is known of its process.

    Attributes:
        rows, bytes: rows, and bytes of their features, that kernels went over; a row counts once in every pass.
        seconds: in kernels, on the worker's clock.
        memory: peak of the process in bytes.
        restarts: how often the process was started anew.
        host: the machine.
        cpu_seconds: processor time of all threads of the process during `seconds`. With one thread a worker, much less
            of it means that others kept the cores busy (or the disk was slow).
    """

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    memory: int = 0
    restarts: int = 0
    host: str = ""
    cpu_seconds: float = 0.0

    def add(self, other: Work) -> None:
        """Add another's sums; keep the larger peak and the latest place."""
        self.rows, self.bytes = self.rows + other.rows, self.bytes + other.bytes
        self.seconds, self.cpu_seconds = self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds
        self.memory, self.restarts = max(self.memory, other.memory), max(self.restarts, other.restarts)
        self.host = other.host


class Counted:
    """A kernel that notes what it went over; `told` hears of every shard: its rows, bytes and seconds."""

    def __init__(self, kernel: Kernel, *, features: bool, told: Callable[[int, int, float], Any] | None = None) -> None:
        self.kernel, self.features, self.told = kernel, features, told
        self.work = Work(host=socket.gethostname())

    def __call__(self, shard: Shard, known: Known) -> Any:
        """Return what the kernel makes of a shard."""
        start, used = perf_counter(), process_time()
        found = self.kernel(shard, known)
        seconds, used = perf_counter() - start, process_time() - used
        size = sum(band.nbytes for band in shard.bands) if self.features else 0
        self.work.add(Work(len(shard), size, seconds, peak_memory(), self.work.restarts, self.work.host, used))
        if self.told is not None:
            self.told(len(shard), size, seconds)
        return found


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had."""
    if os.path.exists("/proc/self/status"):  # Linux, where ru_maxrss would hold what the process that started it had
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Export(Protocol):
    """Where a driver's passes are told to as they run; `engine.metrics` tells Ray."""

    def went(self, label: str, step: int, share: float) -> None: ...  # noqa: D102
    def ended(self, label: str, rows: int, seconds: float) -> None: ...  # noqa: D102


@dataclass
class Meter:
    """Adds up the work of every worker, in the pass that runs and in all.

    What a worker did comes back with its results, so a worker that dies takes nothing along.
    """

    export: Export | None = None
    label: str = "other"
    wanted: int = 0  # rows of the pass
    steps: dict[str, int] = field(default_factory=dict)  # how often every pass was begun
    now: dict[int, Work] = field(default_factory=dict)  # by worker, in this pass
    workers: dict[int, Work] = field(default_factory=dict)  # in all
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)  # by worker and pass

    def begin(self, label: str, rows: int) -> None:
        """Note that a pass over some rows begins."""
        self.label, self.wanted, self.now = label, rows, {}
        self.steps[label] = self.steps.get(label, -1) + 1
        self._tell()

    def add(self, worker: int, work: Work) -> None:
        """Add what a worker did in the pass that runs."""
        for known in (self.now, self.workers):
            known.setdefault(worker, Work()).add(work)
        seconds = self.seconds.setdefault(worker, {})
        seconds[self.label] = seconds.get(self.label, 0.0) + work.seconds
        self._tell()

    def _tell(self) -> None:
        if self.export is not None:
            share = sum(work.rows for work in self.now.values()) / max(self.wanted, 1)
            self.export.went(self.label, self.steps.get(self.label, 0), share)

    def end(self, seconds: float) -> None:
        """Note that the pass has ended."""
        if self.export is not None:
            self.export.ended(self.label, sum(work.rows for work in self.now.values()), seconds)

    def figures(self) -> dict[str, Any]:
        """Return what a log line tells of the pass besides its rows and seconds."""
        found: dict[str, Any] = {"step": self.steps.get(self.label, 0), "workers": len(self.now)}
        if self.now:
            slowest = max(self.now, key=lambda k: self.now[k].seconds)
            found["bytes"] = sum(work.bytes for work in self.now.values())
            found |= {"slowest_worker": slowest, "slowest_seconds": round(self.now[slowest].seconds, 4)}
        return found

    @property
    def memory(self) -> int:
        """Peak of the worker that had most, in bytes; of nobody: 0."""
        return max((work.memory for work in self.workers.values()), default=0)

    def summary(self) -> dict[str, Any]:
        """Return how many workers there were, how busy they were, and the busiest one by one."""
        if not self.workers:
            return {"count": 0, "restarts": 0, "each": []}
        busy = sorted(work.seconds for work in self.workers.values())
        slowest = sorted(self.workers, key=lambda k: self.workers[k].seconds, reverse=True)
        return {
            "count": len(busy),
            "restarts": sum(work.restarts for work in self.workers.values()),
            "seconds": {"least": round(busy[0], 4), "median": round(median(busy), 4), "most": round(busy[-1], 4)},
            "slowest": slowest[0],
            "each": [self._entry(k) for k in sorted(slowest[:MOST_WORKERS])],
        }

    def _entry(self, worker: int) -> dict[str, Any]:
        told = asdict(self.workers[worker])
        told["peak_memory_bytes"] = told.pop("memory")
        told |= {key: round(told[key], 4) for key in ("seconds", "cpu_seconds")}
        passes = {label: round(seconds, 4) for label, seconds in self.seconds[worker].items()}
        return {"worker": worker, **told, "seconds_by_pass": passes}
