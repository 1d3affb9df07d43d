"""What an encoder is, and what the libraries behind them share: need, device, precision."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_ray.core.products import float32_products
from diva_ray.data.decode import Form
from diva_ray.errors import InputError, first_line, one_line

IMAGE, TEXT = "image", "text"


@dataclass
class Encoder:
    """Pictures (uint8 (size, size, 3) each) or texts in, features (n, width) out.

    Attributes:
        tower: image or text.
        form: how pictures are cut; None for texts.
        run: samples -> (n, d) float tensor on any device.
        model: the network, None where there is none.
        device: where it runs.
        batch: samples at a time that its kind prefers on this device, if memory allows.
        mark: what tells its weights from others: name, size and time of change of their file.
        gradient: entries of a sample's gradient, where features are gradients; 0: activations.
    """

    tower: str
    form: Form | None
    run: Callable[[Sequence[Any]], Tensor]
    model: torch.nn.Module | None
    device: str
    batch: int
    mark: str = ""
    gradient: int = 0

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters()) if self.model is not None else 0

    @property
    def told(self) -> str:
        """What is taken of the network, for a person: nothing to say of activations."""
        return f", gradients by {self.gradient:,} of its parameters" if self.gradient else ""

    def sample(self, n: int = 1) -> list[Any]:
        """Return made-up samples, to try it with."""
        if self.form is None:
            return ["a sample of text, long enough to be one"] * n
        return [
            np.random.default_rng(k).integers(0, 256, (self.form.size,) * 2 + (3,)).astype(np.uint8) for k in range(n)
        ]


def need(module: str, extra: str) -> Any:
    """Return a module of an optional package; raise with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise InputError(
            f"encoder.kind: {extra} must be installed, got no module {missing} ({first_line(error, 120)}). "
            f'Install it with `pip install -e ".[{extra}]"`, or change `encoder`.'
        ) from error
    except Exception as error:  # binaries of another build of torch, such as torchvision's, raise what they like
        raise InputError(
            f"encoder.kind: {extra} must import, got {type(error).__name__} ({first_line(error, 120)}) from {module}. "
            "Install builds of torch, torchvision and what uses them that belong together, or change `encoder`."
        ) from error


def choose_device(device: str) -> str:
    """Return cpu or cuda."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: must be auto, cpu or cuda, got {device}. Change `device`.")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("device: a GPU must be there for cuda, got none in this process. Use `device=auto`.")
    return "cuda" if found and device != "cpu" else "cpu"


def mixed(device: str, precision: str) -> Any:
    """Return the context in which a network runs: mixed precision on a GPU, float32 elsewhere."""
    if device != "cuda" or precision == "float32":
        return exact(device)
    return torch.autocast("cuda", torch.bfloat16 if _has_bfloat16() else torch.float16)


def _has_bfloat16() -> bool:
    """Return whether the GPU itself has it: torch emulates it on others, where cuDNN has no convolutions of it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Let products, and cuDNN, work in float32 and in one order: its convolutions and recurrent layers are of TF32 by
    default, and the gradients of its convolutions may add up in the order in which threads come."""
    if device != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    wanted: list[tuple[Any, str, Any]] = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if _one_switch(cudnn):
        wanted.append((cudnn, "allow_tf32", False))  # first: it sets those below, too
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9 brought it
        wanted += [(one, "fp32_precision", "ieee") for one in (cudnn.conv, cudnn.rnn)]
    before = [getattr(one, name) for one, name, _ in wanted]
    try:
        for one, name, value in wanted:
            setattr(one, name, value)
        with float32_products("full"):
            yield
    finally:
        for (one, name, _), value in zip(wanted, before, strict=True):
            setattr(one, name, value)


def _one_switch(cudnn: Any) -> bool:
    """Return whether the older switch can be read, and so be restored: torch refuses to where a process has set the
    newer ones one by one."""
    try:
        return cudnn.allow_tf32 is not None
    except RuntimeError:
        return False


def check_weights_file(path: str) -> str:
    """Return what tells a local weights file from another; raise if there is none."""
    if not os.path.isfile(path):
        raise InputError(
            f"encoder.weights: a local weights file must be there, got none at {path}. Change `encoder.weights`."
        )
    return f"{os.path.abspath(path)}-{os.stat(path).st_size}-{os.stat(path).st_mtime_ns}"


def is_file(weights: str) -> bool:
    """Return whether the option names a file and not a tag."""
    return (
        os.sep in weights
        or weights.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))
        or os.path.isfile(weights)
    )


def read_weights(path: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a torch file read without running code."""
    check_weights_file(path)
    try:
        if path.endswith(".safetensors"):
            found = need("safetensors.torch", "safetensors").load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise many types; a file that needs code to load is refused
        raise InputError(
            f"encoder.weights: must be safetensors or a plain torch state_dict, got {type(error).__name__} "
            f"({one_line(error)}) at {path}. Save `model.state_dict()` as .safetensors."
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            f"encoder.weights: must be a state_dict of tensors, got {type(found).__name__} at {path}. Save "
            "`model.state_dict()`."
        )
    return {name.removeprefix("module."): value for name, value in found.items()}


def load_weights(model: torch.nn.Module, path: str, what: str, head: Sequence[str] = ()) -> None:
    """Load a weights file into a model; every tensor of the body must fit, the head's may be left out.

    Raises:
        InputError: names or shapes differ; the line says how many and gives one.
    """
    found, wanted = read_weights(path), model.state_dict()
    apart = lambda name: any(name == one or name.startswith(one + ".") for one in head)  # noqa: E731
    shapes = {name: (tuple(found[name].shape), tuple(value.shape)) for name, value in wanted.items() if name in found}
    wrong = [f"{name} {one} for {two}" for name, (one, two) in shapes.items() if one != two and not apart(name)]
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in found and not apart(name) and name not in counters]
    # Older versions of transformers saved the positions 0, 1, 2, ... among the weights.
    extra = [name for name in found if name not in wanted and not apart(name) and not name.endswith("position_ids")]
    told = [
        f"{len(names)} {word} (such as {names[0]})"
        for names, word in ((missing, "missing"), (extra, "unknown"), (wrong, "of another shape"))
        if names
    ]
    if told:
        raise InputError(
            f"encoder.weights: the file must fit {what}, got tensors {', '.join(told)} in {path}. Change "
            "`encoder.weights` or `encoder.model`."
        )
    kept = {name: value for name, value in found.items() if name in wanted and shapes[name][0] == shapes[name][1]}
    model.load_state_dict(kept, strict=False)
