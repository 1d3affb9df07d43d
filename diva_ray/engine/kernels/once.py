"""A part of the output that was written is not worked out again."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from diva_ray.data.files import part_name
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Kernel, Known
from diva_ray.engine.packed import pack, unpack

TOLD = "steps/write"  # what the parts reported of their rows
FILE = "part"  # bytes and SHA-256 of the part, beside what it reported
log = logging.getLogger("diva_ray")


def once(shard: Shard, known: Known, *, kernel: Kernel) -> Any:
    """Return what a kernel reports that writes a shard's part of `samples/`, from storage if an interrupted run has
    written both."""
    part, folder = part_name(shard.extent.index), known["folder"]
    whole = f"{part}.parquet" in known["written"] and f"{part}.npz" in known["told"]
    file = f"samples/{part}.parquet"
    if whole and (told := folder.read_whole(f"{TOLD}/{part}.npz")) is not None:
        if folder.local and FILE in told and json.loads(str(told.pop(FILE))) != list(folder.digest(file)):
            log.warning("%s is damaged: it is written again", folder.location(file))
            known = {**known, "written": known["written"] - {f"{part}.parquet"}}
        else:
            return unpack(told)
    found = kernel(shard, known)
    # Objects of a store are whole, and to read them again would cost as much as to write them.
    stamp = {FILE: np.array(json.dumps(folder.digest(file)))} if folder.local else {}
    folder.write_arrays(f"{TOLD}/{part}.npz", pack(found) | stamp)
    return found
