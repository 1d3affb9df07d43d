"""How many samples a network takes at a time, from the memory there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diva_ray.data.encoders.encoder import Encoder
from diva_ray.data.encoders.gradient import COPIES
from diva_ray.engine.device import free_bytes, roomy, whole_bytes

SPARE = 0.7  # of the memory of a GPU (or of a worker's share of it), and of what is free of it
MOST = 512
TRIED = 4  # samples of the trial on a GPU


def find_batch(encoder: Encoder, budget: int, gpu_share: float = 1.0) -> int:
    """Return a power of two of samples, at most what the encoder prefers (twice that on a GPU) and what fits.

    Args:
        budget: bytes that one batch's activations may take on a CPU.
        gpu_share: share of the GPU's memory that this process may take.

    Raises:
        InputError: a GPU is too small for the weights and a few samples.
    """
    if encoder.device == "cuda":
        gpu = own_gpu()
        with roomy(
            gpu,
            "encoder.model: a network and a few samples",
            "let fewer workers share it, choose a smaller `encoder.model`, or use `device=cpu`",
        ):
            each, weights = _on_gpu(encoder)
        mine = SPARE * min(gpu_share, 1.0) * whole_bytes(gpu) - weights
        room, most = min(mine, SPARE * free_bytes(gpu)), min(2 * encoder.batch, MOST)
    else:
        each, room, most = sample_bytes(encoder), float(budget), encoder.batch
    fits = max(1, min(most, int(room // max(each, 1))))
    return 1 << (fits.bit_length() - 1)


def own_gpu() -> torch.device:
    """Return the GPU that torch works on in this process."""
    return torch.device("cuda", torch.cuda.current_device())


def _on_gpu(encoder: Encoder) -> tuple[int, int]:
    """Return (bytes a sample, bytes of the weights), as the allocator's peak tells them."""
    encoder.run(encoder.sample(1))
    torch.cuda.synchronize()
    peaks = []
    for n in (1, 1 + TRIED):
        torch.cuda.reset_peak_memory_stats()
        encoder.run(encoder.sample(n))
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    return max(1, (peaks[1] - peaks[0]) // TRIED), torch.cuda.memory_allocated()


def sample_bytes(encoder: Encoder) -> int:
    """Return about how much memory one sample takes: three times the largest layer's input and output.

    Where features are gradients: the gradient too, and every layer's input and output, kept for the backward pass.
    """
    largest = 4 * 3 * encoder.form.size**2 if encoder.form else 1 << 16
    if encoder.model is None:
        return 8 * largest
    seen = [largest]

    def look(module: nn.Module, given: Any, output: Any) -> None:
        seen.append(sum(one.nbytes for one in _tensors((given, output))))

    leaves = [module for module in encoder.model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look) for module in leaves]
    try:
        encoder.run(encoder.sample(1))
    finally:
        for hook in hooks:
            hook.remove()
    kept = sum(seen) + 4 * COPIES * encoder.gradient if encoder.gradient else 0
    return 3 * max(seen) + kept


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    values = found.values() if isinstance(found, dict) else found if isinstance(found, (tuple, list)) else ()
    return [one for value in values for one in _tensors(value)]
