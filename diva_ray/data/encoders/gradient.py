"""Features of a whole network (`encoder.jacobian`): gradients of its outputs by its parameters, not activations."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from diva_ray.config import EncoderConfig
from diva_ray.core.linearize import count_sketch, gradient_features, gradient_features_singly
from diva_ray.data.encoders.encoder import TEXT, exact
from diva_ray.errors import InputError, one_line

log = logging.getLogger("diva_ray")
SEED = 0  # the sketch is the same in every run: tables that are embedded apart go together
ROOM = {"cpu": 1 << 28, "cuda": 1 << 32}  # bytes of gradients and their copies at a time
COPIES = 3  # as autograd gives them, in one row, in the order of the sketch
SINGLY = "%s: gradients of one sample at a time, since torch.func.vmap does not take the network (%s)"
NO_NETWORK = ("edges", "words")


def check_jacobian(config: EncoderConfig) -> None:
    """Raise for options that do not go together, before anything is loaded."""
    k = config.jacobian
    if k < 0:
        raise InputError(f"encoder.jacobian: must be at least 0, got {k}. Change `encoder.jacobian`.")
    if not k and config.parameters != "*":
        raise InputError(
            f"encoder.parameters: must go with encoder.jacobian, got {config.parameters} and jacobian=0. Set "
            "`encoder.jacobian`, or leave `encoder.parameters` out."
        )
    if not k:
        return
    if config.kind in NO_NETWORK:
        raise InputError(
            f"encoder.jacobian: must be 0 for {config.kind}, a fixed function, got {k}. Change `encoder.jacobian` or "
            "`encoder`."
        )
    if config.kind == "sentence_transformers" or (config.kind == "open_clip" and config.tower == TEXT):
        raise InputError(
            f"encoder.jacobian: must be 0 for texts by {config.kind}, got {k}. Use `encoder.kind=transformers` with "
            "the same folder or hub id."
        )
    if config.layer or config.tap != "output":
        raise InputError(
            f"encoder.layer: must be left out with encoder.jacobian, the gradient of the network's own outputs, got "
            f"layer={config.layer}, tap={config.tap}. Choose layers by `encoder.parameters`."
        )


def chosen(model: nn.Module, glob: str) -> dict[str, Tensor]:
    """Return the parameters whose names match, frozen or not; the error names those that look like the pattern."""
    there = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    found = {name: value.detach() for name, value in there.items() if fnmatch.fnmatchcase(name, glob)}
    if not found:
        part = glob.strip("*")
        near = [name for name in there if part in name][:3] or difflib.get_close_matches(part, there, 3, 0.3)
        raise InputError(
            f"encoder.parameters: must match the whole name of some of the model's {len(there)} parameters (`*` is "
            f"anything), got {glob}. Change `encoder.parameters`; there are {', '.join(near or list(there)[-3:])}."
        )
    return found


class _Outputs(nn.Module):
    """A network and what is called of it, as one module whose parameters can be replaced."""

    def __init__(self, model: nn.Module, call: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, batch: Any) -> Tensor:
        return self.call(batch)


def gradients(
    model: nn.Module, call: Callable[[Any], Tensor], config: EncoderConfig, device: str, *, singly: bool = False
) -> tuple[Callable[[Any], Tensor], int]:
    """Return (batch -> sketched gradients (n, encoder.jacobian), entries of a gradient).

    Args:
        model: in eval mode, on its device.
        call: batch -> outputs (n, d), by the model.
        singly: the batch is a list of samples, of which the model takes one-element lists: nothing to vmap over.
    """
    outputs = _Outputs(model.float().requires_grad_(False), call)
    weights = {f"model.{name}": value for name, value in chosen(model, config.parameters).items()}
    entries = sum(value.numel() for value in weights.values())
    sketch = count_sketch(entries, config.jacobian, SEED).to(device)
    chunk = max(1, ROOM[device] // (COPIES * 4 * entries))
    vmapped: list[bool] = [False] if singly else []  # known after the first sample
    if singly:
        log.warning(SINGLY, config.name or config.kind, "its samples are strings")

    def f(w: dict[str, Tensor], batch: Any) -> Tensor:
        return functional_call(outputs, w, (batch,))

    def by_sample(batch: Any) -> Tensor:
        return gradient_features_singly(f, weights, _samples(batch), sketch)

    @torch.no_grad()
    def run(batch: Any) -> Tensor:
        with _repeatable(device):
            if not vmapped:
                vmapped.append(
                    _vmap_takes(lambda one: gradient_features(f, weights, one, sketch, 1), by_sample, batch, config)
                )
            return gradient_features(f, weights, batch, sketch, chunk) if vmapped[0] else by_sample(batch)

    return run, entries


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Take gradients in float32 and, of convolutions and attention, with the same bits on every run; a CPU does."""
    if device != "cuda":
        yield
        return
    with exact(device), sdpa_kernel(SDPBackend.MATH):  # the backward of its fused kernels adds up in no fixed order
        yield


def _samples(batch: Any) -> Sequence[Any]:
    """Return the samples of a batch, each as a batch of one."""
    if isinstance(batch, list):
        return [[one] for one in batch]
    n = len(tree_leaves(batch)[0])
    return [tree_map(lambda one, k=k: one[k : k + 1], batch) for k in range(n)]


def _vmap_takes(
    together: Callable[[Any], Tensor], by_sample: Callable[[Any], Tensor], batch: Any, config: EncoderConfig
) -> bool:
    """Return whether vmap takes the network, tried on one sample; raise what plain autograd says if it fails too."""
    one = _samples(batch)[0]
    try:
        together(one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # vmap refuses in many ways: RuntimeError, NotImplementedError, what the network raises
        by_sample(one)
        told = f"{type(error).__name__}: {one_line(error)}"
        log.warning(SINGLY, config.name or config.kind, told)
        return False
    return True
