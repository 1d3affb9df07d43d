"""What a process needs to hold its rows, and where they are kept when its memory is too small for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
KEY = 24  # bytes of a row whose key is sorted among others, once, to find an id that occurs twice
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
    """

    rows: int
    features: int
    rest: int
    sums: int
    shard: int
    group: int
    passing: int = 0  # rows of a pool or a test table, which are read and not kept

    def need(self, place: str, workers: int) -> int:
        """Return the bytes of a worker that keeps its rows in memory, in a cache, or leaves features in storage."""
        rows = -(-self.rows // workers)
        passing = -(-self.passing // workers)
        read = max(rows, passing)
        decoded = DECODED * min(BATCH_BYTES, self.features * read) + self.features * min(self.group, read)
        flight = IN_FLIGHT * min(self.shard, rows)
        needed = {
            "memory": rows * (self.features + self.rest),
            "storage": rows * self.rest + flight * self.features,
            "cache": flight * (self.features + self.rest),
        }
        through = passing * KEY + IN_FLIGHT * min(self.shard, passing) * self.features
        return PROCESS + self.sums + decoded + rows * KEY + through + needed[place]

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
    need = sizes.need(place, workers)
    if budget is not None and need > budget:
        raise InputError(
            f"cluster.memory: a worker's rows and sums must fit {budget / 2**30:.3g} GiB, got about "
            f"{need / 2**30:.3g} GiB with features {'in memory' if place == 'memory' else 'out of it'} "
            f"({sizes.rows:,} rows, {workers} worker(s)). Raise `cluster.memory` or `cluster.workers`, or use fewer "
            "features (`projection`)."
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
