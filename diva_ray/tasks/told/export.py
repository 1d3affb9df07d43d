"""Export: the uids of the rows to keep, merged from the shards' sorted parts in bounded memory."""

from __future__ import annotations

import io

import numpy as np

from diva_ray.data.folder import Folder
from diva_ray.engine.kernels.uids import UID, in_order

CHUNK = 4_000_000  # uids merged at a time, 64 MB
MARKS = 256  # of every part, by which ranges are chosen


def merge_uids(folder: Folder, chunk: int = CHUNK) -> int:
    """Write `subset.npy`, all uids of `uids/` in order (dtype u8,u8), and return how many.

    Exact. Ranges of about `chunk` uids are merged one after another: that much memory, and one read of 16 bytes a row.
    """
    parts, known = [f"uids/{name}" for name in sorted(folder.names("uids"))], []
    for part in parts:
        uids = folder.read_array(part)
        places = np.linspace(0, len(uids) - 1, min(len(uids), MARKS)).astype(np.int64)
        known.append((len(uids), places, uids[places]))
    total = sum(size for size, _, _ in known)
    marks = in_order(np.concatenate([*(found for _, _, found in known), np.empty(0, UID)]))
    count = min(-(-total // chunk), max(len(marks), 1))
    cuts = [marks[len(marks) * k // count] for k in range(1, count)]

    def fill(stream: io.RawIOBase) -> None:
        header = {"descr": UID.descr, "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]  # a raw stream writes as well
        begin = [0] * len(parts)
        for cut in [*cuts, None]:
            found = []
            for k, (size, places, mine) in enumerate(known):
                after = len(mine) if cut is None else int(np.searchsorted(mine, cut))  # marks below it
                uids = folder.read_array(parts[k], begin[k], int(places[after]) if after < len(mine) else size)
                found.append(uids if cut is None else uids[: np.searchsorted(uids, cut)])
                begin[k] += len(found[-1])
            stream.write(in_order(np.concatenate([*found, np.empty(0, UID)])).tobytes())

    folder.stream("subset.npy", fill)
    return total
