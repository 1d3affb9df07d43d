"""Uids of 128 bits, as DataComp's subset files hold them: two 64-bit numbers a row, sorted."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from diva_ray.data.files import part_name
from diva_ray.data.folder import Folder
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known
from diva_ray.engine.reduce import Tally
from diva_ray.errors import InputError

UID = np.dtype("u8,u8")  # the first and the last 16 of 32 hexadecimal digits (mlfoundations/datacomp)
DIGITS = "^[0-9a-fA-F]{32}$"


def check_uids(shard: Shard, known: Known) -> Tally:
    """Raise for an id that is no uid."""
    assert shard.id is not None
    fits = pc.fill_null(pc.match_substring_regex(shard.id, DIGITS), False).to_numpy(zero_copy_only=False)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        raise InputError(
            f"data.id: ids must be 32 hexadecimal digits for export=datacomp, got {shard.id[row].as_py()!r} at "
            f"{shard.where(row)}. Change `data.id`, or leave `export` out."
        )
    return Tally(rows=len(shard))


def uids_of(ids: pa.Array) -> np.ndarray:
    """Return strings of 32 hexadecimal digits as sorted pairs of 64-bit numbers."""
    digits = bytes.fromhex("".join(ids.to_pylist()))
    return in_order(np.frombuffer(digits, ">u8,>u8").astype(UID))


def in_order(uids: np.ndarray) -> np.ndarray:
    """Return uids sorted by their first number, then the second."""
    return uids[np.lexsort((uids["f1"], uids["f0"]))]


def write_uids(shard: Shard, folder: Folder, kept: Tensor) -> None:
    """Write the sorted uids of the shard's kept rows into `uids/`, where the driver merges them."""
    assert shard.id is not None
    stream = io.BytesIO()
    np.save(stream, uids_of(shard.id.filter(pa.array(kept.numpy()))))
    folder.write(f"uids/{part_name(shard.extent.index)}.npy", stream.getvalue())
