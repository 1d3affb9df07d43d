"""The passes on resident Ray actors that hold their shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import ray
import ray.exceptions

from diva_ray.data.folder import Folder
from diva_ray.data.shards import Columns, Extent
from diva_ray.data.table import Table
from diva_ray.engine import device
from diva_ray.engine.autoscale import await_workers, check_resources
from diva_ray.engine.context import Kernel
from diva_ray.engine.inline import solve_here
from diva_ray.engine.meter import Meter
from diva_ray.engine.metrics import PassMetrics
from diva_ray.engine.reduce import add_in_order, sections
from diva_ray.engine.shelf import IN_MEMORY, Keeping
from diva_ray.engine.worker import Worker, share_tensors
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

LOOK = 10.0  # seconds after which it is looked whether nodes were lost
GRACE = 2.0  # seconds for what runs when a mistake is found


class Cluster:
    """Resident workers, each holding consecutive shards. Bits do not depend on how many there are."""

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
        output: Folder | None = None,
    ) -> None:
        share_tensors()
        self.extents, self.meter = extents, Meter(PassMetrics())
        self.start_timeout, self.pass_timeout = start_timeout, pass_timeout
        self.known: dict[str, Any] = {}
        self.nodes = 0  # that were alive when it was last looked
        self.asked, self.gpus = workers is not None, gpus_per_worker
        self.parts = (tables, columns, threads, keep, output)
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
        tables, columns, threads, keep, output = self.parts
        self.workers = workers
        self.owner, self.owned = _deal(self.extents, workers)
        actor = ray.remote(Worker).options(**self.options)
        self.actors = [
            actor.remote(tables, columns, [self.extents[k] for k in mine], threads, keep(workers), number, output)
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
        self.nodes = _nodes()

    def load(self) -> Iterator[int]:
        """Wait until every shard is read; yield its rows when it is there.

        Raises:
            InputError: a worker did not start in time, or a shard holds bad input.
        """
        resident = [extent for extent in self.extents if not extent.pool]
        refs = {self._actor(extent).loaded.remote(extent.index): extent for extent in resident}
        pending = list(refs)
        deadline = time.monotonic() + self.start_timeout
        try:
            while pending:
                done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
                if not done:
                    late = sorted({self.owner[refs[ref].index] for ref in pending})
                    raise InputError(
                        f"cluster: every worker must have loaded its rows within {self.start_timeout:g} s, got none of "
                        f"the {len(pending)} shard(s) left of worker(s) {late} (free now: "
                        f"{ray.available_resources()}). Free resources, lower `cluster.workers`, or raise "
                        "`cluster.start_timeout`."
                    )
                yield fetch(done[0])
                deadline = max(deadline, time.monotonic() + self.start_timeout)
        finally:
            give_up(pending)

    def _actor(self, extent: Extent) -> Any:
        return self.actors[self.owner[extent.index]]

    def tell(self, **known: Any) -> None:
        """Make values known to every later pass; each goes to every node once."""
        self.known.update({name: ray.put(value) for name, value in known.items()})

    def solve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args), on the GPU of the first worker if there is one and the matrices are large."""
        if not self.gpus or not device.is_large(args):
            return solve_here(function, args)
        try:
            return fetch(self.actors[0].solve.remote(function, *args), self.pass_timeout)
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
        try:
            while calls:
                found = []
                for part, ref in calls.pop(0):
                    waiting.remove(ref)
                    partial, works = self._await(ref, part, waiting)
                    found.append(partial)
                    for worker, work in works:
                        self.meter.add(worker, work)
                    done(sum(extent.rows for extent in part))
                yield add_in_order(found)
        finally:
            give_up(waiting)

    def total(self, found: Iterable[Any]) -> Any:
        """Return the sum of sections, in order."""
        return add_in_order(found)

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

    def _comes(self, ref: Any) -> bool:
        """Return whether a result comes within `pass_timeout`; say so if nodes are lost meanwhile."""
        end = time.monotonic() + self.pass_timeout
        while not ray.wait([ref], timeout=min(LOOK, max(end - time.monotonic(), 0)))[0]:
            if time.monotonic() >= end:
                return False
            if (now := _nodes()) < self.nodes:
                log.warning(
                    "cluster: %d of %d nodes are there, with %g CPUs free: workers of those lost wait until Ray finds "
                    "a place for them. Add a node, or stop and go on later with `resume=true`",
                    now, self.nodes, ray.available_resources().get("CPU", 0.0),
                )  # fmt: skip
            self.nodes = now
        return True

    def _await(self, ref: Any, part: list[Extent], others: list[Any]) -> Any:
        waited, finished = 0.0, 0
        while not self._comes(ref):
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


def _nodes() -> int:
    """Return how many nodes of the cluster are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def give_up(refs: list[Any]) -> None:
    """Take back what nobody waits for any more, and let what runs already end, if it does so soon: Ray would tell of
    each that it failed when its worker ends."""
    for ref in refs:
        ray.cancel(ref)
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=GRACE, fetch_local=False)


def fetch(ref: Any, timeout: float | None = None) -> Any:
    """Return a result; a user's mistake found on a worker is raised as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise InputError(
            f"cluster: a worker must answer within {timeout:g} s, got nothing. See `ray logs`; raise "
            "`cluster.pass_timeout`, or add workers."
        ) from error
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
