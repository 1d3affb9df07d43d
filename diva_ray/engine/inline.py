"""The passes in this process, shard after shard; ray is never loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from diva_ray.data.shards import Columns, Extent, Shard
from diva_ray.data.table import Table
from diva_ray.engine import device
from diva_ray.engine.context import Kernel
from diva_ray.engine.meter import Counted, Meter
from diva_ray.engine.reduce import add_in_order, sections
from diva_ray.engine.shelf import IN_MEMORY, Keeping, Shelf

SMALL = 512  # columns up to which a second thread gains nothing in a solve


class Inline:
    """Holds every shard of a run's tables (training, validation, pool, test) in this process."""

    workers = 1

    def __init__(
        self,
        tables: list[Table],
        columns: Columns,
        extents: list[Extent],
        threads: int | None = None,
        keeping: Keeping = IN_MEMORY,
    ) -> None:
        self.device = device.own_device(keeping.gpus)
        self.extents, self.shelf = extents, Shelf(tables, columns, extents, keeping, self.device)
        self.known: dict[str, Any] = {"device": self.device}
        self.meter = Meter()
        self.threads = Threads(threads)

    def start(self) -> None:
        """Do nothing: this process runs already."""

    def load(self) -> Iterator[int]:
        """Read every shard but those of a pool; yield its rows when it is there."""
        for extent in self.extents:
            if not extent.pool:
                self.shelf.load(extent)
                yield extent.rows

    @property
    def shards(self) -> list[Shard]:
        """The shards that were read."""
        return list(self.shelf.each([extent for extent in self.extents if extent.index in self.shelf.kept]))

    def tell(self, **known: Any) -> None:
        """Make values known to every later pass."""
        with device.roomy(self.device):
            self.known.update({name: device.placed(name, value, self.device) for name, value in known.items()})

    def forget(self, *names: str) -> None:
        """Drop known values and per-row results that followed from them."""
        for name in names:
            self.known.pop(name, None)
        self.shelf.forget(names)

    def each(
        self, kernel: Kernel, extents: list[Extent], done: Callable[[int], Any] = int, features: bool = True
    ) -> Iterator[Any]:
        """Yield the sum of the partials of every section of shards, in order, where it was computed; `done` hears of
        finished rows.

        A kernel that needs no `features` does not make a pool be read again.
        """
        shards = self.shelf.each(extents, features=features)

        def partials(unit: list[Extent]) -> Iterator[Any]:
            for extent in unit:
                counted = Counted(kernel, features=features)
                partial = counted(next(shards), self.known)
                self.meter.add(0, counted.work)
                done(extent.rows)
                yield partial

        for section in sections(extents):
            with device.working(self.device):
                found = add_in_order(add_in_order(partials(unit)) for unit in section)
            yield found
        device.finish(self.device)

    def total(self, found: Iterable[Any]) -> Any:
        """Return the sum of sections, in order, on the CPU: on a device they are added there, and come home once."""
        with device.roomy(self.device):
            return device.home(add_in_order(found), self.device)

    def solve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args), on the device if there is one and the matrices are large."""
        if self.device == device.CPU or not device.is_large(args):
            return solve_here(function, args)
        return device.solve_on(self.device, function, args)

    def duplicate(self, field: str, *, pool: bool = False) -> int | None:
        """Return a 64-bit key (`keys` or `group_keys`) that occurs twice among all shards (a pool's too), or None."""
        return first_duplicate(self._columns(field, [extent for extent in self.extents if pool or not extent.pool]))

    def shared(self, field: str) -> int | None:
        """Return a 64-bit key that occurs in a pool and in another table too, or None."""
        sides = ([extent for extent in self.extents if extent.pool == side] for side in (False, True))
        return first_shared(*(self._columns(field, extents) for extents in sides))

    def _columns(self, field: str, extents: list[Extent]) -> list[np.ndarray]:
        found = [self.shelf.column(extent.index, field) for extent in extents if extent.index in self.shelf.kept]
        return [np.asarray(column) for column in found if column is not None]

    def close(self) -> None:
        """Release the shards, and what is known; give the process its threads back."""
        self.known = {"device": self.device}
        self.shelf.close()
        self.threads.restore()


def solve_here(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return function(*args), with one thread of BLAS where matrices are small.

    OpenBLAS's threads gain nothing there, and wait for each other after every product: on two idle cores solves took up
    to ten times as long with two, and sixty times where other programs kept the cores busy
    (docs/results/clusters.md).
    """
    if device.side_of(args) > SMALL:
        return function(*args)
    with _libraries().limit(limits=1, user_api="blas"):
        return function(*args)


@functools.cache
def _libraries() -> ThreadpoolController:
    """Return the BLAS libraries of this process, which take a while to find."""
    return ThreadpoolController()


class Threads:
    """So many threads for torch and for every BLAS of this process, until they are restored; None: as they are."""

    def __init__(self, count: int | None) -> None:
        self.before, self.limits = torch.get_num_threads(), None
        if count:
            torch.set_num_threads(count)
            self.limits = threadpool_limits(count, user_api="blas")

    def restore(self) -> None:
        """Give back as many as there were before; once."""
        if self.limits is not None:
            self.limits.restore_original_limits()
            torch.set_num_threads(self.before)
            self.limits = None


def first_duplicate(parts: list[np.ndarray]) -> int | None:
    """Return a value that occurs twice in the concatenated arrays, or None; sorts once."""
    keys = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    return int(keys[twice[0]]) if len(twice) else None


def first_shared(ours: list[np.ndarray], theirs: list[np.ndarray]) -> int | None:
    """Return a value that occurs in arrays of both lists, or None."""
    left, right = (np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in (ours, theirs))
    both = np.intersect1d(left, right)
    return int(both[0]) if len(both) else None
