"""Where a process keeps what does not fit its memory: arrays go into a file without a name, and come back as they were.

The file has no name, so nothing is left of it when the process ends, however it ends.
"""

from __future__ import annotations

import copy
import errno
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diva_ray.errors import InputError

MOST_AT_ONCE = 1 << 30  # bytes of one system call; Linux moves less than 2 GiB
LEAVES = (torch.Tensor, np.ndarray, pa.Array)


@dataclass(frozen=True)
class Slot:
    """Where an array lies in the file, and what it was: a tensor, a NumPy array, or an Arrow array as an IPC stream."""

    offset: int
    bytes: int
    kind: str
    dtype: np.dtype
    shape: tuple[int, ...]


class Cache:
    """Keeps arrays, alone or inside lists, tuples, dicts and plain objects, in a file on a local disk.

    Args:
        folder: on a disk, not in memory (no tmpfs); it is made if it is not there.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.end, self.lock = folder, 0, threading.Lock()
        self.free: dict[int, list[int]] = defaultdict(list)  # places of dropped arrays, by their bytes
        try:
            os.makedirs(folder, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, prefix="diva_ray-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InputError(
                f"cluster.cache: a file must be made there, got {error.strerror} at {folder}. Change `cluster.cache`."
            ) from error

    def put(self, value: Any) -> Any:
        """Return the value with a slot in the place of every array, which is in the file now."""
        return mapped(value, LEAVES, self._write)

    def get(self, kept: Any) -> Any:
        """Return what was put: arrays of this process's own."""
        return mapped(kept, Slot, self._read)

    def drop(self, kept: Any) -> None:
        """Give the places of a value's arrays to others of their size."""
        mapped(kept, Slot, lambda slot: self.free[slot.bytes].append(slot.offset))

    def close(self) -> None:
        """Delete everything."""
        self.file.close()

    def _write(self, array: Any) -> Slot:
        kind, values = _as_numpy(array)
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        with self.lock:
            free = self.free[len(raw)]
            offset = free.pop() if free else self.end
            self.end = max(self.end, offset + len(raw))
        try:
            for start in range(0, len(raw), MOST_AT_ONCE):
                self._write_all(raw[start : start + MOST_AT_ONCE], offset + start)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InputError(
                f"cluster.cache: the disk must have room for the rows that do not fit memory, got {error.strerror} "
                f"after {self.end / 2**30:.2f} GiB at {self.folder}. Free space, change `cluster.cache` (none: read "
                "the table again in every pass), raise `cluster.memory`, or add workers."
            ) from error
        return Slot(offset, len(raw), kind, values.dtype, values.shape)

    def _write_all(self, raw: memoryview, offset: int) -> None:
        while raw:
            done = os.pwrite(self.file.fileno(), raw, offset)
            raw, offset = raw[done:], offset + done

    def _read(self, slot: Slot) -> Any:
        values = np.empty(slot.shape, slot.dtype)
        raw, offset = values.reshape(-1).view(np.uint8).data, slot.offset
        while raw:
            done = os.preadv(self.file.fileno(), [raw[:MOST_AT_ONCE]], offset)
            if not done:
                raise OSError(errno.EIO, f"the cache ends before byte {offset + len(raw)}", self.folder)
            raw, offset = raw[done:], offset + done
        if slot.kind == "arrow":
            return from_ipc(values)
        return torch.from_numpy(values) if slot.kind == "torch" else values


def _as_numpy(array: Any) -> tuple[str, np.ndarray]:
    if isinstance(array, torch.Tensor):
        return "torch", array.numpy()
    if isinstance(array, pa.Array):
        return "arrow", to_ipc(array)
    return "numpy", array


def to_ipc(array: pa.Array) -> np.ndarray:
    """Return an array as the bytes of an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([pa.field("_", array.type)])) as writer:
        writer.write_batch(pa.record_batch([array], ["_"]))
    return np.frombuffer(sink.getvalue(), np.uint8)


def from_ipc(values: np.ndarray) -> pa.Array:
    """Return the array of an Arrow IPC stream, on the same memory."""
    return pa.ipc.open_stream(pa.py_buffer(values)).read_next_batch().column(0)


def mapped(value: Any, leaf: Any, change: Any) -> Any:
    """Return the value with `change(x)` in the place of every x of type `leaf` inside it."""
    if isinstance(value, leaf):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(one, leaf, change) for one in value)
    if isinstance(value, dict):
        return type(value)({name: mapped(one, leaf, change) for name, one in value.items()})
    if hasattr(value, "__dict__") and not isinstance(value, type):
        other = copy.copy(value)
        for name, one in vars(value).items():
            object.__setattr__(other, name, mapped(one, leaf, change))  # of a frozen dataclass too
        return other
    return value


class Spilled(MutableMapping[str, Any]):
    """Per-row results by name, kept in the cache: what is read is a copy, so changes must be set again."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.kept = cache, {}

    def __getitem__(self, name: str) -> Any:
        return self.cache.get(self.kept[name])

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.kept:
            del self[name]
        self.kept[name] = self.cache.put(value)

    def __delitem__(self, name: str) -> None:
        self.cache.drop(self.kept.pop(name))

    def __contains__(self, name: object) -> bool:
        return name in self.kept

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)
