"""Passes on an engine, with progress and the seconds of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from diva_ray.data.shards import Extent
from diva_ray.engine.kernels.row_files import RowFiles
from diva_ray.engine.meter import Meter
from diva_ray.engine.progress import Progress
from diva_ray.errors import FitError, InputError
from diva_ray.tasks.setup.done import Done


class Engine(Protocol):
    """What a task needs of an engine; `engine.inline` and `engine.cluster` describe it."""

    workers: int
    extents: list[Extent]
    meter: Meter

    def start(self) -> None: ...  # noqa: D102
    def load(self) -> Any: ...  # noqa: D102
    def tell(self, **known: Any) -> None: ...  # noqa: D102
    def forget(self, *names: str) -> None: ...  # noqa: D102
    def solve(self, function: Any, *args: Any) -> Any: ...  # noqa: D102
    def each(self, kernel: Any, extents: list[Extent], done: Any = ..., features: bool = ...) -> Any: ...  # noqa: D102
    def total(self, found: Any) -> Any: ...  # noqa: D102
    def duplicate(self, field: str, *, pool: bool = ...) -> int | None: ...  # noqa: D102
    def shared(self, field: str) -> int | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass
class Runner:
    """Runs passes on an engine, with progress, and keeps the seconds of each.

    Attributes:
        done: where results of passes are kept for a run that is resumed; None: nowhere.
    """

    engine: Engine
    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    done: Done | None = None

    @property
    def rows(self) -> int:
        """Resident rows."""
        return sum(extent.rows for extent in self._resident)

    def load(self) -> None:
        """Read every shard; the start of workers is counted apart, though they read from the moment they run."""
        self.timed("start", self.engine.start)
        progress = Progress("load", self.rows, quiet=self.quiet)
        for rows in self.engine.load():
            progress.add(rows)
        self.add_seconds("load", progress.close())

    def add_seconds(self, label: str, seconds: float) -> None:
        """Add to what a part of the run took."""
        self.seconds[label] = self.seconds.get(label, 0.0) + seconds

    def run(
        self,
        kernel: Any,
        label: str,
        extents: list[Extent] | None = None,
        *,
        features: bool = True,
        again: bool = False,
    ) -> Any:
        """Return the merged partials of a pass over some shards (those of no pool), added in their order.

        A run that is resumed takes over what was kept, but for a pass that it must take `again`: one whose files are
        its result.
        """

        # The first pass after those that were taken over may find nothing of what they left with the rows of a pool.
        first = not again and self.done is not None and self.done.resumes_here

        def go() -> Any:
            return self.engine.total(self._sections(kernel, label, extents, features=features or first))

        chosen = self._resident if extents is None else extents
        name = getattr(kernel, "__name__", "") or kernel.func.__name__
        return self.once(label, go, name, sum(e.rows for e in chosen), again=again)

    def once(self, label: str, go: Callable[[], Any], kernel: str, rows: int, *, again: bool = False) -> Any:
        """Return what some passes lead to; see `run`."""
        if self.done is None:
            return go()
        try:
            return go() if again else self.done.once(label, kernel, rows, go)
        except BaseException:
            self.done.keep()  # what was done before
            raise

    def files(self, what: str) -> RowFiles | None:
        """Return where the passes that follow keep what they find of rows; None where no run can be resumed."""
        return None if self.done is None else self.done.files(what)

    @property
    def _resident(self) -> list[Extent]:
        return [extent for extent in self.engine.extents if not extent.pool]

    def each(
        self, kernel: Any, label: str, extents: list[Extent] | None = None, *, features: bool = True
    ) -> Iterator[Any]:
        """Yield the partial of every section of shards of a pass, in order."""
        for found in self._sections(kernel, label, extents, features=features):
            yield self.engine.total([found])

    def _sections(self, kernel: Any, label: str, extents: list[Extent] | None, *, features: bool) -> Iterator[Any]:
        chosen = self._resident if extents is None else extents
        rows, meter = sum(e.rows for e in chosen), self.engine.meter
        progress = Progress(label, rows, quiet=self.quiet)
        meter.begin(label, rows)
        yield from self.engine.each(kernel, chosen, progress.add, features)
        seconds = progress.close(**meter.figures())
        meter.end(seconds)
        self.add_seconds(label, seconds)

    def timed(self, label: str, function: Any, *args: Any) -> Any:
        """Return a result of work on the driver (or the device that solves for it), counting its seconds."""
        start = time.perf_counter()
        try:
            result = self.engine.solve(function, *args)
        except InputError:
            raise
        except ValueError as error:  # core says which option to change
            raise FitError(str(error)) from error
        self.add_seconds(label, time.perf_counter() - start)
        return result
