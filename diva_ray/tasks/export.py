"""Export: the uids of the rows to keep, merged from the shards' sorted parts in bounded memory."""

from __future__ import annotations

import io

import numpy as np

from diva_ray.engine.uids import UID, in_order
from diva_ray.tasks.folder import Folder

CHUNK = 4_000_000  # uids merged at a time, 64 MB
MARKS = 256  # of every part, by which ranges are chosen


def merge_uids(folder: Folder, chunk: int = CHUNK) -> int:
    """Write `subset.npy`, all uids of `uids/` in order (dtype u8,u8), and return how many; `uids/` is dropped.

    Exact. Ranges of about `chunk` uids are merged one after another: that much memory, and one read of 16 bytes a row.
    """
    parts = [f"uids/{name}" for name in sorted(folder.names("uids"))]
    sizes, marks = [], []
    for part in parts:
        uids = folder.open_array(part)
        sizes.append(len(uids))
        marks.append(np.array(uids[np.linspace(0, len(uids) - 1, min(len(uids), MARKS)).astype(np.int64)]))
    total = sum(sizes)
    marks = in_order(np.concatenate([*marks, np.empty(0, UID)]))
    count = min(-(-total // chunk), max(len(marks), 1))
    cuts = [marks[len(marks) * k // count] for k in range(1, count)]

    def fill(stream: io.RawIOBase) -> None:
        np.lib.format.write_array_header_1_0(stream, {"descr": UID.descr, "fortran_order": False, "shape": (total,)})  # type: ignore[arg-type]
        begin = [0] * len(parts)
        for cut in [*cuts, None]:
            found = []
            for k, part in enumerate(parts):
                uids = folder.open_array(part)
                end = len(uids) if cut is None else first_from(uids, cut)
                found.append(np.array(uids[begin[k] : end]))
                begin[k] = end
            stream.write(in_order(np.concatenate([*found, np.empty(0, UID)])).tobytes())

    folder.stream("subset.npy", fill)
    folder.drop("uids")
    return total


def first_from(uids: np.ndarray, cut: np.void) -> int:
    """Return the place of the first uid that is not below `cut`, by bisection."""
    low, high = 0, len(uids)
    while low < high:
        middle = (low + high) // 2
        below = uids[middle].item() < cut.item()
        low, high = (middle + 1, high) if below else (low, middle)
    return low
