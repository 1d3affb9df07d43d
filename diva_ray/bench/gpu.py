"""A derivative on a GPU against what that GPU reaches in the same run: its largest products and its copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from diva_ray.bench.speed import Figure, Sizes, derivative_of, draw, loaded, setup_of
from diva_ray.core.products import multiply
from diva_ray.engine.shelf import Keeping

NOWHERE = 1 << 60  # bytes said to be needed beside the rows, so that none stays on the device
NAMES = {"full": "float32", "tf32": "tf32", "bf16": "bf16"}


def gpu(s: Sizes) -> Iterator[Figure]:
    """Derivatives on the first GPU, by columns and precision; one line where torch sees none."""
    if not torch.cuda.is_available():
        yield Figure("no GPU", None, note=f"torch {torch.__version__} sees none: nothing here ran on a GPU")
        return
    yield from on_device(torch.device("cuda", 0), s, torch.cuda.get_device_name(0))


def on_device(device: torch.device, s: Sizes, name: str) -> Iterator[Figure]:
    """Return the figures of a device."""
    peaks = {inputs: product_rate(device, s.gpu_gemm, inputs) for inputs in NAMES}
    for inputs, rate in peaks.items():
        yield Figure(f"{NAMES[inputs]} product", rate / 1e12, "TF/s", note=f"{name}; {s.gpu_gemm} cubed")
    inside, arriving = copy_rates(device, s.gpu_bytes)
    yield Figure("copy inside the device", inside / 1e9, "GB/s", note="bytes read and written")
    yield Figure("copy from the host", arriving / 1e9, "GB/s", note="page-locked" if device.type == "cuda" else "")
    for p in s.gpu_p:
        X, y = draw(max(s.gpu_values // p, 2 * p), p, s.c)
        n, half = len(X), X.astype("float16")
        del X
        runner = loaded(half, y, keeping=Keeping(gpus=1.0))
        for inputs, rate in peaks.items():
            setup = replace(setup_of(p, s.c), inputs=inputs)
            seconds = median_seconds(lambda setup=setup, runner=runner: derivative_of(runner, setup), s.repeats)
            yield Figure(f"p={p:,}, {NAMES[inputs]}: derivative", seconds, "s", note=f"n={n:,} c={s.c}, float16 rows")
            share = 4 * n * p**2 / (seconds * rate)
            yield Figure("  share of peak, 4 n p^2 / (s x product)", share)
            yield Figure("  share of bandwidth, 3 reads of the rows", 3 * half.nbytes / seconds / inside)
        runner.engine.close()
        runner, setup = loaded(half, y, keeping=Keeping(gpus=1.0, sums=NOWHERE)), setup_of(p, s.c)
        seconds = median_seconds(lambda setup=setup, runner=runner: derivative_of(runner, setup), s.repeats)
        note = "share of the copy rate from the host that 3 reads take"
        yield Figure(f"p={p:,}, float32, rows on the host", seconds, "s", note=note)
        yield Figure("  share of the host's copy rate", 3 * half.nbytes / seconds / arriving)
        runner.engine.close()


def product_rate(device: torch.device, side: int, inputs: str) -> float:
    """Return operations a second of a large square product."""
    a = torch.randn(side, side, device=device)
    a = a.bfloat16() if inputs == "bf16" else a  # as a product of many panels finds it
    return 2 * side**3 / median_seconds(lambda: _wait(device, multiply(a, a, inputs)), 5)


def copy_rates(device: torch.device, size: int) -> tuple[float, float]:
    """Return bytes a second, read and written, of a copy inside the device, and bytes a second from the host."""
    a, b = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    inside = median_seconds(lambda: _wait(device, b.copy_(a)), 5)
    return 2 * size / inside, size / median_seconds(lambda: _wait(device, b.copy_(host, non_blocking=True)), 5)


def _wait(device: torch.device, _result: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of some calls after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return sorted(found[1:])[(repeats - 1) // 2]
