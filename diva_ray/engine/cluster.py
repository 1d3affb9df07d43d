"""The passes on resident Ray actors that hold their shards; the only room that knows ray."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch

from diva_ray.data.shards import Columns, Extent
from diva_ray.data.table import Table
from diva_ray.engine import device
from diva_ray.engine.autoscale import await_workers, check_resources
from diva_ray.engine.context import Kernel
from diva_ray.engine.inline import first_duplicate, first_shared
from diva_ray.engine.meter import Counted, Meter, Work
from diva_ray.engine.metrics import PassMetrics, WorkerMetrics
from diva_ray.engine.reduce import add_in_order, sections
from diva_ray.engine.shelf import IN_MEMORY, Keeping, Shelf
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")


def share_tensors() -> None:
    """Let tensors cross between processes as numpy arrays, which Ray maps instead of copying."""
    ray.util.register_serializer(torch.Tensor, serializer=lambda t: t.detach().cpu().numpy(), deserializer=_as_tensor)


def _as_tensor(values: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


class Worker:
    """Actor that reads its shards from storage, in the background from the start, and runs kernels on them.

    Kernels are pure, so Ray may run one again on a worker that took a dead one's place.
    """

    def __init__(
        self, tables: list[Table], columns: Columns, extents: list[Extent], threads: int, keeping: Keeping, number: int
    ) -> None:
        torch.set_num_threads(threads)
        share_tensors()
        self.number, self.metrics = number, WorkerMetrics(number)
        self.extents = {extent.index: extent for extent in extents}
        self.fault: BaseException | None = None
        self.arrived = threading.Condition()
        self.cache: dict[str, tuple[Any, Any]] = {}
        self.device = device.CPU
        try:
            worker = f"worker {number} on {ray.util.get_node_ip_address()}"
            self.device = device.given_device(keeping.gpus, ray.get_gpu_ids(), worker)
        except InputError as error:  # told by whoever waits for a shard
            self.fault = error
        self.shelf = Shelf(tables, columns, extents, keeping, self.device)
        if self.fault is None:
            self._begin_loading()

    def _begin_loading(self) -> None:
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        try:
            for extent in self.extents.values():
                if not extent.pool:
                    self.shelf.load(extent)
                    with self.arrived:
                        self.arrived.notify_all()
        except BaseException as error:  # handed to whoever waits for the shard, and raised there
            with self.arrived:
                self.fault = error
                self.arrived.notify_all()

    def _wait(self, indices: list[int]) -> list[Extent]:
        """Return extents once those that are resident have been read."""
        wanted = [self.extents[index] for index in indices]
        resident = [extent.index for extent in wanted if not extent.pool]
        with self.arrived:
            self.arrived.wait_for(lambda: self.fault is not None or all(k in self.shelf.kept for k in resident))
            if self.fault is not None and any(k not in self.shelf.kept for k in resident):
                raise self.fault
        return wanted

    def loaded(self, index: int) -> int:
        """Return the rows of a shard once it is here."""
        (extent,) = self._wait([index])
        return extent.stop - extent.start

    def run(
        self, kernel: Kernel, units: list[list[int]], refs: dict[str, Any], features: bool = True, label: str = ""
    ) -> tuple[Any, list[tuple[int, Work]]]:
        """Return the sum over units, in order, of the kernel's partials over their shards, in order; what it took."""
        known, counted = self._known(refs), Counted(kernel, features=features, told=self.metrics.counting(label))
        counted.work.restarts = self.metrics.restarts
        shards = self.shelf.each(self._wait([index for unit in units for index in unit]), features=features)
        total = add_in_order(add_in_order(counted(next(shards), known) for _ in unit) for unit in units)
        return device.home(total, self.device), [(self.number, counted.work)]

    def solve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args), computed on this worker's device."""
        return device.solve_on(self.device, function, args)

    def add(self, counts: list[int], *found: tuple[Any, list[tuple[int, Work]]]) -> tuple[Any, list[tuple[int, Work]]]:
        """Return the sum, in order, of units of so many partials each; what all of them took."""
        rest = iter([partial for partial, _ in found])
        total = add_in_order(add_in_order(next(rest) for _ in range(count)) for count in counts)
        return total, [one for _, works in found for one in works]

    def _known(self, refs: dict[str, Any]) -> dict[str, Any]:
        stale = [name for name, (ref, _) in self.cache.items() if refs.get(name) != ref]
        for name in stale:
            del self.cache[name]
        for name, ref in refs.items():
            if name not in self.cache:
                self.cache[name] = (ref, device.placed(name, ray.get(ref), self.device))
        return {"device": self.device, **{name: value for name, (_, value) in self.cache.items()}}

    def forget(self, names: tuple[str, ...]) -> None:
        """Drop per-row results by name."""
        self.shelf.forget(names)

    def split_keys(self, field: str, indices: list[int], parts: int) -> Any:
        """Return this worker's keys in `parts` arrays by their value."""
        for _ in self.shelf.each([extent for extent in self._wait(indices) if extent.index not in self.shelf.kept]):
            pass  # a pool's shard that was lost with a worker
        found = [self.shelf.column(index, field) for index in indices]
        keys = np.concatenate([np.asarray(values) for values in found if values is not None] or [np.empty(0, np.int64)])
        keys = keys.view(np.uint64)
        pieces = [keys[keys % parts == part] for part in range(parts)]
        return pieces if parts > 1 else pieces[0]

    def first_duplicate(self, *parts: np.ndarray) -> int | None:
        """Return a key that occurs twice."""
        return first_duplicate(list(parts))

    def first_shared(self, half: int, *parts: np.ndarray) -> int | None:
        """Return a key that occurs in the first `half` arrays and in the others."""
        return first_shared(list(parts[:half]), list(parts[half:]))

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()


class Cluster:
    """Resident workers, each holding consecutive shards. Bits do not depend on how many there are."""

    kind = "ray"

    def __init__(
        self,
        tables: list[Table],
        columns: Columns,
        extents: list[Extent],
        *,
        workers: int | None,
        threads: int,
        gpus_per_worker: float = 0.0,
        keep: Callable[[int], Keeping] = lambda _: IN_MEMORY,
        environment: dict[str, str] | None = None,
        start_timeout: float = 600.0,
        pass_timeout: float = 3600.0,
        useful: int = 1,
    ) -> None:
        share_tensors()
        self.extents, self.meter = extents, Meter(PassMetrics())
        self.start_timeout, self.pass_timeout = start_timeout, pass_timeout
        self.known: dict[str, Any] = {}
        self.asked, self.gpus = workers is not None, gpus_per_worker
        self.parts = (tables, columns, threads, keep)
        self.options = {
            "num_cpus": threads,
            "num_gpus": self.gpus,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment} if environment else None,
        }
        self._launch(check_resources(workers, threads, gpus_per_worker, len(extents), useful))

    def _launch(self, workers: int) -> None:
        """Start workers, or ask for them: one that does not fit makes an autoscaler add a node."""
        tables, columns, threads, keep = self.parts
        self.workers = workers
        self.owner, self.owned = _deal(self.extents, workers)
        actor = ray.remote(Worker).options(**self.options)
        self.actors = [
            actor.remote(tables, columns, [self.extents[k] for k in mine], threads, keep(workers), number)
            for number, mine in enumerate(self.owned)
        ]

    def start(self) -> None:
        """Wait until every worker runs; they read their shards meanwhile. If nobody asked for a number, those that came
        before the cluster stopped to grow share all shards."""
        refs = [actor.process.remote() for actor in self.actors]
        ran = await_workers(refs, self.start_timeout, all_of_them=self.asked)
        if ran < self.workers:
            log.info("%-10s no more nodes come: %d workers instead of %d", "start", ran, self.workers)
            self.close()
            self._launch(ran)
            await_workers([actor.process.remote() for actor in self.actors], self.start_timeout, all_of_them=True)

    def load(self) -> Iterator[int]:
        """Wait until every shard is read; yield its rows when it is there.

        Raises:
            InputError: a worker did not start in time, or a shard holds bad input.
        """
        resident = [extent for extent in self.extents if not extent.pool]
        refs = {self._actor(extent).loaded.remote(extent.index): extent for extent in resident}
        pending = list(refs)
        deadline = time.monotonic() + self.start_timeout
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = sorted({self.owner[refs[ref].index] for ref in pending})
                raise InputError(
                    f"cluster: every worker must have loaded its rows within {self.start_timeout:g} s, got none of the "
                    f"{len(pending)} shards left of worker(s) {late} (free now: {ray.available_resources()}). "
                    "Free resources, lower `cluster.workers`, or raise `cluster.start_timeout`."
                )
            yield fetch(done[0])
            deadline = max(deadline, time.monotonic() + self.start_timeout)

    def _actor(self, extent: Extent) -> Any:
        return self.actors[self.owner[extent.index]]

    def tell(self, **known: Any) -> None:
        """Make values known to every later pass; each goes to every node once."""
        self.known.update({name: ray.put(value) for name, value in known.items()})

    def solve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args), on the GPU of the first worker if there is one and the matrices are large."""
        if not self.gpus or not device.is_large(args):
            return function(*args)
        try:
            return ray.get(self.actors[0].solve.remote(function, *args), timeout=self.pass_timeout)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):  # core's, which says what to change
                raise error.cause from None
            raise

    def forget(self, *names: str) -> None:
        """Drop known values and per-row results that followed from them."""
        for name in names:
            self.known.pop(name, None)
        for ref in [actor.forget.remote(names) for actor in self.actors]:
            fetch(ref, self.pass_timeout)

    def each(
        self, kernel: Kernel, extents: list[Extent], done: Callable[[int], Any] = int, features: bool = True
    ) -> Iterator[Any]:
        """Yield the sum of the partials of every section of shards, in order, whatever the order they finish in."""
        calls = [self._begin(kernel, section, features) for section in sections(extents)]
        waiting = [ref for parts in calls for _, ref in parts]
        while calls:
            found = []
            for part, ref in calls.pop(0):
                waiting.remove(ref)
                partial, works = self._await(ref, part, waiting)
                found.append(partial)
                for worker, work in works:
                    self.meter.add(worker, work)
                done(sum(extent.stop - extent.start for extent in part))
            yield add_in_order(found)

    def _begin(self, kernel: Kernel, section: list[list[Extent]], features: bool) -> list[tuple[list[Extent], Any]]:
        """Start a section; return what is to be added, in order: shards and the reference to their sum.

        The worker that holds the start of a section adds all it holds of it as it goes, and then what others return.
        """
        first = self.owner[section[0][0].index]
        whole = 0
        while whole < len(section) and all(self.owner[extent.index] == first for extent in section[whole]):
            whole += 1
        parts, counts = [], []
        if whole:
            parts, counts = [self._call(kernel, section[:whole], features)], [1]
        for unit in section[whole:]:
            own = [extent for extent in unit if self.owner[extent.index] == self.owner[unit[0].index]]
            cut = [own, *([extent] for extent in unit[len(own) :])]
            parts += [self._call(kernel, [part], features) for part in cut]
            counts.append(len(cut))
        if len(section) == 1 or len(parts) == 1:
            return parts
        refs = [ref for _, ref in parts]
        return [([e for part, _ in parts for e in part], self.actors[first].add.remote(counts, *refs))]

    def _call(self, kernel: Kernel, units: list[list[Extent]], features: bool) -> tuple[list[Extent], Any]:
        indices = [[extent.index for extent in unit] for unit in units]
        part = [extent for unit in units for extent in unit]
        return part, self._actor(part[0]).run.remote(kernel, indices, self.known, features, self.meter.label)

    def _await(self, ref: Any, part: list[Extent], others: list[Any]) -> Any:
        waited, finished = 0.0, 0
        while not ray.wait([ref], timeout=self.pass_timeout)[0]:
            waited += self.pass_timeout
            now = len(ray.wait(others, num_returns=len(others), timeout=0)[0]) if others else 0
            if now <= finished:
                raise InputError(
                    f"cluster: a unit of shards must be finished every {self.pass_timeout:g} s, got none for "
                    f"{waited:g} s at worker {self.owner[part[0].index]}, rows {part[0].start} to {part[-1].stop}. See "
                    "`ray logs`; raise `cluster.pass_timeout` if the passes are that slow, or add workers."
                )
            finished = now
        return fetch(ref)

    def duplicate(self, field: str, *, pool: bool = False) -> int | None:
        """Return a key that occurs twice among all shards (a pool's too), or None: keys are dealt by value."""
        dealt = self._deal(field, {extent.index for extent in self.extents if pool or not extent.pool})
        found = [actor.first_duplicate.remote(*dealt[k]) for k, actor in enumerate(self.actors)]
        keys = [fetch(ref, self.pass_timeout) for ref in found]
        return next((key for key in keys if key is not None), None)

    def shared(self, field: str) -> int | None:
        """Return a key that occurs in a pool and in another table too, or None: keys are dealt by value."""
        ours, theirs = (self._deal(field, {e.index for e in self.extents if e.pool == side}) for side in (False, True))
        found = [a.first_shared.remote(len(ours[k]), *ours[k], *theirs[k]) for k, a in enumerate(self.actors)]
        keys = [fetch(ref, self.pass_timeout) for ref in found]
        return next((key for key in keys if key is not None), None)

    def _deal(self, field: str, asked: set[int]) -> list[list[Any]]:
        """Return for every actor the references to its share, by value, of every actor's keys."""
        n = len(self.actors)
        dealt = [
            actor.split_keys.options(num_returns=n).remote(field, [k for k in mine if k in asked], n)
            for actor, mine in zip(self.actors, self.owned, strict=True)
        ]
        return [[refs if n == 1 else refs[k] for refs in dealt] for k in range(n)]

    def close(self) -> None:
        """End the workers."""
        for actor in self.actors:
            ray.kill(actor)  # type: ignore[arg-type]  # a typed proxy is a handle
        self.actors = []


def fetch(ref: Any, timeout: float | None = None) -> Any:
    """Return a result; a user's mistake found on a worker is raised as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


def _deal(extents: list[Extent], workers: int) -> tuple[dict[int, int], list[list[int]]]:
    """Return the worker of every shard, and the shards of every worker: consecutive and even in every table."""
    owned: list[list[int]] = [[] for _ in range(workers)]
    for table in sorted({extent.table for extent in extents}):
        mine = [extent.index for extent in extents if extent.table == table]
        cuts = [len(mine) * w // workers for w in range(workers + 1)]
        for w, (a, b) in enumerate(pairwise(cuts)):
            owned[w] += mine[a:b]
    return {index: w for w, indices in enumerate(owned) for index in indices}, owned
