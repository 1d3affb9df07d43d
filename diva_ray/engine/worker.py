"""An actor that holds shards and runs kernels on them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch

from diva_ray.data.folder import Folder
from diva_ray.data.shards import Columns, Extent, as_tensor
from diva_ray.data.table import Table
from diva_ray.engine import device
from diva_ray.engine.context import Kernel
from diva_ray.engine.inline import first_duplicate, first_shared
from diva_ray.engine.meter import Counted, Work
from diva_ray.engine.metrics import WorkerMetrics
from diva_ray.engine.reduce import add_in_order
from diva_ray.engine.shelf import Keeping, Shelf
from diva_ray.errors import InputError


def share_tensors() -> None:
    """Let tensors cross between processes as numpy arrays, which Ray maps instead of copying."""
    ray.util.register_serializer(torch.Tensor, serializer=lambda t: t.detach().cpu().numpy(), deserializer=as_tensor)


class Worker:
    """Actor that reads its shards from storage, in the background from the start, and runs kernels on them.

    Kernels are pure, so Ray may run one again on a worker that took a dead one's place.
    """

    def __init__(
        self,
        tables: list[Table],
        columns: Columns,
        extents: list[Extent],
        threads: int,
        keeping: Keeping,
        number: int,
        output: Folder | None,
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
            if output is not None:
                output.check_reached()
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
        return extent.rows

    def run(
        self, kernel: Kernel, units: list[list[int]], refs: dict[str, Any], features: bool = True, label: str = ""
    ) -> tuple[Any, list[tuple[int, Work]]]:
        """Return the sum over units, in order, of the kernel's partials over their shards, in order; what it took."""
        known, counted = self._known(refs), Counted(kernel, features=features, told=self.metrics.counting(label))
        counted.work.restarts = self.metrics.restarts
        shards = self.shelf.each(self._wait([index for unit in units for index in unit]), features=features)
        with device.working(self.device):
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
                with device.roomy(self.device):
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
