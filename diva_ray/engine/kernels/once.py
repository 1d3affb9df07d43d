"""A part of the output that was written is not worked out again."""

from __future__ import annotations

from typing import Any

from diva_ray.data.files import part_name
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Kernel, Known
from diva_ray.engine.packed import pack, unpack

TOLD = "steps/write"  # what the parts reported of their rows


def once(shard: Shard, known: Known, *, kernel: Kernel) -> Any:
    """Return what a kernel reports that writes a shard's part of `samples/`, from storage if an interrupted run has
    written both."""
    part, folder = part_name(shard.extent.index), known["folder"]
    whole = f"{part}.parquet" in known["written"] and f"{part}.npz" in known["told"]
    if whole and (told := folder.read_whole(f"{TOLD}/{part}.npz")) is not None:
        return unpack(told)
    found = kernel(shard, known)
    folder.write_arrays(f"{TOLD}/{part}.npz", pack(found))
    return found
