"""What tells that pictures which rows name by path were replaced: their size and time of change."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor

import pyarrow as pa
import pyarrow.compute as pc

from diva_ray.data.decode import Pictures


class PictureStates:
    """Size and time of change of the pictures that rows name by path, as one digest. Below a local root only: of a
    store each would be a request."""

    def __init__(self, columns: list[str], pictures: Pictures, pool: Executor) -> None:
        self.pictures, self.pool, self.named = pictures, pool, 0
        self.digests = {name: hashlib.sha256() for name in columns}

    def add(self, rows: pa.Table) -> None:
        """Look at the pictures of some rows, in their order."""
        for name, digest in self.digests.items() if self.pictures.local else ():
            paths = paths_of(rows[name])
            if paths is not None:
                self.named += len(paths) - paths.null_count
                for state in self.pool.map(self.pictures.state, paths.to_pylist()):
                    digest.update(f"{state}\n".encode())

    def mark(self) -> bytes:
        """Return what stands for the states of all, whatever the chunks in which rows came; nothing where no picture
        was named."""
        return " ".join(digest.hexdigest() for digest in self.digests.values()).encode() if self.named else b""


def paths_of(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the paths in a column of pictures, null where a row has bytes; None of a column of bytes."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(column, "path")
    own = None if kind.get_field_index("bytes") < 0 else pc.struct_field(column, "bytes")
    if own is None or pa.types.is_null(own.type):
        return paths
    empty = pc.equal(pc.fill_null(pc.binary_length(own), 0), 0)
    return pc.if_else(empty, paths, pa.scalar(None, paths.type))
