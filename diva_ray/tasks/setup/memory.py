"""What a process needs to hold its rows, and where they are kept when its memory is too small for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import psutil

from diva_ray.data.reader import BATCH_BYTES
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
PROCESS = 468 << 20  # bytes of a worker without rows: libraries (420 MiB, measured), and what passes leave behind
IN_FLIGHT = 4  # shards that are being read, worked on, and fetched ahead, with what decoding copies
DECODED = 5  # times its size is what a batch takes while it is decoded (measured)
OWNED = 16  # bytes of a row for which a training worker reads a weight
PICKED = 33  # bytes of a row of a window beside itself: its place in an order, and in another, and whether it is taken
SOURCE = 150  # bytes of one of many sources: its name, its code, and tables of either (measured: 26 letters, a million)
SUMMED = 16  # bytes of one of its sums: as they are, and with those of a shard added
JOINED = 1.5  # times what a worker takes for its sources is what the driver does, where those of all come (measured)
KEY = 24  # bytes of a row whose key is sorted among others, once, to find an id that occurs twice
ROOM = 1.1  # times the need that is named: with more memory shards are larger, which need a little more
SHARE = 0.8  # of the machine's free memory that rows may take where no budget is given


@dataclass(frozen=True)
class Sizes:
    """Bytes of a run's rows and sums.

    Attributes:
        rows: of all tables that are kept.
        features: bytes of a row's features, as stored.
        rest: bytes of the rest of a row: key, label, weights, and its results.
        sums: bytes of one process's p x p state.
        shard: rows of a shard.
        group: rows of the largest row group if it is fetched whole, from storage that is not a local disk; else 0.
        passing: rows of a pool or a test table, which are read and not kept; `stays`: bytes that do stay of a pool's
            row; `near`: bytes of features that all workers keep for a round.
        window: rows that a worker holds at a time while a module is trained, when the passes are over; `trained`: bytes
            of such a row.
        sources: distinct sources of the rows; `of_source`: bytes of one.
    """

    rows: int
    features: int
    rest: int
    sums: int
    shard: int
    group: int
    passing: int = 0
    stays: int = 0
    near: int = 0
    window: int = 0
    trained: int = 0
    sources: int = 0
    of_source: int = 0

    def driver(self) -> int:
        """Return the bytes of a driver that is no worker."""
        return PROCESS + self.sums + int(JOINED * self.sources * self.of_source)

    def need(self, place: str, workers: int) -> int:
        """Return the bytes of a worker that keeps its rows in memory, in a cache, or leaves features in storage."""
        return max(self._passes(place, workers), self.training(workers))

    def training(self, workers: int) -> int:
        """Return the bytes of a worker that trains a module, 0 where none is trained."""
        rows = -(-self.rows // workers)
        held = rows * OWNED + min(self.window, rows) * (self.trained + PICKED)
        return PROCESS + self._decoded(rows) + held if self.window else 0

    def most_window(self, workers: int, budget: int) -> int:
        """Return how many rows a worker may hold while a module is trained; below 1 where none fits."""
        least = replace(self, window=1).training(workers) - self.trained - PICKED
        return (budget - least) // (self.trained + PICKED)

    def _decoded(self, rows: int) -> int:
        return DECODED * min(BATCH_BYTES, self.features * rows) + self.features * min(self.group, rows)

    def _passes(self, place: str, workers: int) -> int:
        rows = -(-self.rows // workers)
        passing = -(-self.passing // workers)
        decoded = self._decoded(max(rows, passing))
        flight = IN_FLIGHT * min(self.shard, rows)
        needed = {
            "memory": rows * (self.features + self.rest),
            "storage": rows * self.rest + flight * self.features,
            "cache": flight * (self.features + self.rest),
        }
        through = (
            passing * (KEY + self.stays)
            + -(-self.near // workers)
            + IN_FLIGHT * min(self.shard, passing) * self.features
        )
        sources = min(self.sources, rows) * self.of_source
        return PROCESS + self.sums + sources + decoded + rows * KEY + through + needed[place]

    def disk(self, workers: int) -> int:
        """Return the bytes of a worker's cache."""
        return -(-self.rows // workers) * (self.features + self.rest)


def choose_place(sizes: Sizes, workers: int, budget: int | None, cache: str) -> tuple[str, str]:
    """Return where a worker keeps its rows (`memory`, `cache` or `storage`), and why."""
    need, gib = sizes.need("memory", workers), 1 << 30
    if budget is None:
        return "memory", "the memory of the cluster's nodes is not known yet"
    if need <= budget:
        return "memory", f"{need / gib:.2f} GiB a worker fit {budget / gib:.2f} GiB"
    place = "storage" if cache == "none" else "cache"
    return place, f"{need / gib:.2f} GiB a worker would not fit {budget / gib:.2f} GiB"


def check_fit(sizes: Sizes, place: str, workers: int, budget: int | None) -> None:
    """Raise if a worker needs more than its budget even with its rows out of memory."""
    # Of few shards the cache holds as many as there are, beside what it reads: in memory they may need less.
    place = min((place, "memory"), key=lambda one: sizes.need(one, workers))
    need = sizes.need(place, workers)
    if budget is not None and need > budget and replace(sizes, window=0).need(place, workers) <= budget:
        most = sizes.most_window(workers, budget)
        raise InputError(
            f"window: the rows that a worker holds while it trains must fit {budget / 2**30:.3g} GiB, got about "
            f"{need / 2**30:.3g} GiB with {min(sizes.window, -(-sizes.rows // workers)):,} rows. "
            + (f"Use `window={most}` or less, or raise" if most >= 1 else "Raise")
            + " `cluster.memory`."
        )
    if budget is not None and need > budget:
        raise InputError(
            f"cluster.memory: a worker's rows and sums must fit {budget / 2**30:.3g} GiB, got about "
            f"{need / 2**30:.3g} GiB with features {'in memory' if place == 'memory' else 'out of it'} "
            f"({sizes.rows:,} rows, {workers} worker(s)). Raise `cluster.memory` to {ROOM * need / 2**30:.3g}GiB, or "
            "`cluster.workers`, or use fewer features (`projection`)."
        )


def budget_here(memory: str | None, processes: int) -> int:
    """Return the bytes of each of some processes of this machine: as asked, else their share of what is free."""
    asked = parse_bytes(memory)
    return asked if asked is not None else int(psutil.virtual_memory().available * SHARE) // processes


def parse_bytes(text: str | int | None) -> int | None:
    """Return the bytes of a size such as `2GiB`, `500MB` or a number."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]i?|)b?\s*", str(text).lower())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size <= 0:
        raise InputError(f"cluster.memory: must be a size such as 2GiB, got {text}. Change `cluster.memory`.")
    return size
