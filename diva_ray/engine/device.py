"""Where the heavy part of a pass runs: features and the matrices they meet on a device, results of rows on the CPU."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.core.products import float32_products
from diva_ray.data.cache import mapped
from diva_ray.errors import InputError, first_line

log = logging.getLogger("diva_ray")
CPU = torch.device("cpu")
# What a pass multiplies features with, by the name it is known by (or its end, of pairs); the rest stays on the CPU.
ON_DEVICE = (
    "solution",
    "adjoint",
    "family",
    "validation",
    "checked",
    "parts",
    "alone",
    "trials",
    "model",
    "scales",
)
ALLOCATIONS = ("ALLOC_FAILED", "CUDA error: out of memory")  # which libraries make outside of torch's own memory
RESIDENT = 0.8  # of a worker's share of the device's memory that its rows, sums and blocks may take
BLOCK_BYTES = 1 << 30  # of one block's features, outputs and products on a device
COPIES = 4  # of a block's features at once: prepared, whitened, weighted, and a product of the two
MOST_BLOCK_ROWS = 16_384
CHUNK = 8 << 20  # bytes of the page-locked memory through which features go that lie in ordinary memory
SLAB = 512 << 20  # bytes of page-locked memory that are asked for at a time
LARGE = 2_048  # columns from which a solve goes to the device


def own_device(gpus: float) -> torch.device:
    """Return the device of a process that was started by hand: the first GPU if it was asked for.

    Raises:
        InputError: torch sees no GPU.
    """
    return _checked(torch.device("cuda", 0), "this process") if gpus else CPU


def given_device(gpus: float, ids: Sequence[Any], worker: str) -> torch.device:
    """Return the device of a Ray worker: the GPU it was given, even where it sees others.

    Raises:
        InputError: torch does not see it.
    """
    if not gpus:
        return CPU  # such a worker may still see CUDA_VISIBLE_DEVICES
    if not ids:
        raise InputError(
            f"cluster.gpus_per_worker: Ray must give {worker} a GPU, got none. Check `ray status`, or leave "
            "`cluster.gpus_per_worker` out."
        )
    return _checked(torch_device(ids[0], os.environ.get("CUDA_VISIBLE_DEVICES")), f"{worker} (GPU {ids[0]})")


def torch_device(gpu: Any, visible: str | None) -> torch.device:
    """Return a GPU, named as Ray names it, as torch counts those that are visible."""
    names = visible.split(",") if visible else []
    return torch.device("cuda", names.index(str(gpu)) if str(gpu) in names else int(gpu))


def _checked(device: torch.device, where: str) -> torch.device:
    if torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
        try:
            (torch.ones(1, device=device) + 1).cpu()  # the first to need the GPU itself, and code for its kind
            small = torch.eye(2, dtype=torch.float64, device=device)
            torch.linalg.cholesky(small @ small).cpu()  # its libraries take their memory before what is free is asked
        except RuntimeError as error:
            raise InputError(
                f"cluster.gpus_per_worker: the GPU must be free to use and of a kind that torch {torch.__version__} "
                f"has code for, got `{first_line(error)}` at {where}. See `nvidia-smi` there, install "
                "another build of torch, or leave `cluster.gpus_per_worker` out."
            ) from error
        return device
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise InputError(
        f"cluster.gpus_per_worker: torch must see the GPU, got torch {torch.__version__}, {built}, which sees "
        f"{torch.cuda.device_count()} at {where}. Install a CUDA build of torch there "
        "(https://pytorch.org/get-started) and NVIDIA's driver, or leave "
        "`cluster.gpus_per_worker` out: the passes then run on CPUs."
    )


def placed(name: str, value: Any, device: torch.device) -> Any:
    """Return what is known by a name as the kernels on a device want it: what meets features is there, once a pass."""
    kind = name.rpartition(".")[2]
    if device == CPU or (kind not in ON_DEVICE and kind != "setup"):
        return value
    if kind == "setup":
        return replace(value, scale=moved(value.scale, device))
    return moved(value, device)


def moved(value: Any, device: torch.device) -> Any:
    """Return the value with every tensor inside it on a device."""
    return mapped(value, Tensor, lambda tensor: tensor.to(device))


@contextmanager
def working(device: torch.device) -> Iterator[None]:
    """Compute on a device: float32 products in full, whatever the process lets its own be, but where TF32 is asked for.

    Of the process's main work alone: another thread that did so would restore the setting at the wrong time.
    """
    if device == CPU:
        yield
        return
    with roomy(device), float32_products("full"):
        yield


@contextmanager
def roomy(
    device: torch.device,
    what: str = "cluster.gpus_per_worker: sums and blocks of rows",
    cure: str = "let fewer workers share it, use fewer features (`projection`), or leave `cluster.gpus_per_worker` out",
) -> Iterator[None]:
    """Tell in one line where a device's memory is too small.

    Args:
        what: must fit it.
        cure: what else to do than to stop others.

    Raises:
        InputError: more memory was needed than it has.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in ALLOCATIONS):
            raise
        free, whole = (f"{size(device) / 2**30:.2f} GiB" for size in (free_bytes, whole_bytes))
        raise InputError(
            f"{what} must fit the GPU's memory, got {free} free of {whole} where more was needed at {device} of "
            f"{socket.gethostname()}. Stop what else uses it, {cure}."
        ) from error


def home(value: Any, device: torch.device) -> Any:
    """Return a device's results on the CPU."""
    return value if device == CPU else moved(value, CPU)


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was told: the seconds of a pass are those of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def block_rows(asked: int, size: int, device: torch.device) -> int:
    """Return the rows of a block of so many bytes a row: on a device at least as many as keep it busy."""
    return asked if device == CPU else max(asked, min(MOST_BLOCK_ROWS, BLOCK_BYTES // size))


def row_bytes(width: int, outputs: int, itemsize: int, draws: int = 0) -> int:
    """Return what a row of a block needs on a device: its features, its outputs, and its outputs under all sign vectors
    (`draws` in all) some times over."""
    return itemsize * (COPIES * width + 14 * outputs + 3 * draws)


def side_of(args: Any) -> int:
    """Return of how many columns the square sums of a solve are."""
    sides = [0]
    mapped(args, Tensor, lambda x: sides.append(x.shape[0]) if x.ndim == 2 and x.shape[0] == x.shape[1] else None)
    return max(sides)


def is_large(args: Any) -> bool:
    """Return whether a solve has square sums of so many columns that a device is worth the way."""
    return side_of(args) >= LARGE


def solve_on(device: torch.device, function: Any, args: Any) -> Any:
    """Return function(*args), computed on a device and brought home."""
    with working(device):
        return home(function(*moved(args, device)), device)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that this process may still take: what is free of it, and what its own torch holds
    without using it, within its share."""
    used = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - used
    return max(0, min(free, int(share_of(device) * whole_bytes(device)) - used))


def share_of(device: torch.device) -> float:
    """Return the share of a device's memory that torch lets this process take; all where it cannot tell."""
    told = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # newer than torch 2.6
    return 1.0 if told is None else told(device)


def whole_bytes(device: torch.device) -> int:
    """Return the memory of a device."""
    return torch.cuda.mem_get_info(device)[1]


class Lane:
    """Takes features to a device: for good while its memory has room, else page-locked, for each pass anew.

    It has a stream of its own, so a thread that fetches the next shard works beside the kernels on the last.

    Args:
        share: of the device that is this process's: torch takes no more of its memory until the lane is closed.
        reserve: bytes that sums and blocks need beside the rows.
    """

    def __init__(self, device: torch.device, share: float = 1.0, reserve: int = 0) -> None:
        self.device, self.lock = device, threading.Lock()
        room = min(free_bytes(device), int(min(share, 1.0) * whole_bytes(device)))
        self.left = int(RESIDENT * room) - reserve - BLOCK_BYTES
        self.cuda = device.type == "cuda"
        self.slab, self.used, self.refused = torch.empty(0, dtype=torch.uint8), 0, False
        if self.cuda:
            self.main, self.side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            self.chunks = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self.sent = [torch.cuda.Event() for _ in range(2)]
            self.before = share_of(device)
            self.limited = share < self.before
            if self.limited:  # else a worker could take what those beside it were promised
                torch.cuda.set_per_process_memory_fraction(float(share), device)

    def keep(self, bands: Sequence[Tensor]) -> list[Tensor]:
        """Return features where they stay between passes."""
        size = sum(band.numel() * band.element_size() for band in bands)
        with self.lock:  # shards are loaded ahead by one thread, and fetched again by another
            fits = size <= self.left
            self.left -= size * fits
        if fits:
            try:
                return self.bring(bands)
            except InputError as error:  # others have taken what was free
                log.warning("%s", error)
                self.left = 0
        return [self._locked(band) if self.cuda and band.numel() else band.clone() for band in bands]

    def _locked(self, band: Tensor) -> Tensor:
        """Return features in page-locked memory, next to those before: torch gives every piece of it the next power of
        two, up to twice what is needed. Once the system has refused more of it: in ordinary memory."""
        size = band.numel() * band.element_size()
        with self.lock:
            if len(self.slab) - self.used < size and not self.refused:
                self._take_slab(max(SLAB, size))
            if self.refused:
                return band.clone()
            piece = self.slab[self.used : self.used + size]
            self.used += -(-size // 64) * 64
        return piece.view(band.dtype).view(band.shape).copy_(band)

    def _take_slab(self, size: int) -> None:
        try:
            self.slab, self.used = torch.empty(size, dtype=torch.uint8, pin_memory=True), 0
        except RuntimeError as error:  # no OutOfMemoryError: that is of a device's own memory
            self.refused = True
            told = first_line(error)
            log.warning(
                "%s: no more page-locked memory (%s): features reach the GPU from ordinary memory, at a slower rate",
                socket.gethostname(), told,
            )  # fmt: skip

    def holds(self, bands: Sequence[Tensor]) -> bool:
        """Return whether features are on the device."""
        return all(band.device == self.device for band in bands)

    def bring(self, bands: Sequence[Tensor]) -> list[Tensor]:
        """Return features on the device; they are there when this returns."""
        if not self.cuda or self.holds(bands):
            return [band.to(self.device) for band in bands]
        with roomy(self.device), self.lock, torch.cuda.device(self.device), torch.cuda.stream(self.side):
            found = [self._send(band) for band in bands]
            self.side.synchronize()
        return found

    def close(self) -> None:
        """Give memory that nothing uses any more back, the device's and the page-locked, for other processes."""
        if not self.cuda:
            return
        self.chunks, self.slab, self.used = [], torch.empty(0, dtype=torch.uint8), 0
        gc.collect()  # torch keeps what a cycle still holds
        torch.cuda.empty_cache()
        if self.limited:
            torch.cuda.set_per_process_memory_fraction(self.before, self.device)
        if hasattr(torch._C, "_host_emptyCache"):  # empty_cache() leaves page-locked memory as it is
            torch._C._host_emptyCache()

    def _send(self, band: Tensor) -> Tensor:
        there = torch.empty(band.shape, dtype=band.dtype, device=self.device)
        there.record_stream(self.main)  # its memory is not given to the next before the kernels are done with it
        if band.is_pinned():
            return there.copy_(band, non_blocking=True)
        flat, into, step = band.reshape(-1), there.view(-1), CHUNK // band.element_size()
        for k, start in enumerate(range(0, len(flat), step)):
            chunk, sent, part = self.chunks[k % 2], self.sent[k % 2], flat[start : start + step]
            sent.synchronize()
            locked = chunk.view(band.dtype)[: len(part)].copy_(part)
            into[start : start + step].copy_(locked, non_blocking=True)
            sent.record(self.side)
        return there
