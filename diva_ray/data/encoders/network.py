"""A torch network as an encoder of pictures: what is taken from which layer, and how it becomes one vector."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diva_ray.config import EncoderConfig
from diva_ray.data.decode import Form
from diva_ray.data.encoders.encoder import IMAGE, TEXT, Encoder, mixed
from diva_ray.data.encoders.gradient import gradients
from diva_ray.errors import InputError

POOLS = ("mean", "first", "last", "max", "flatten")


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return a layer by its name; the error names those that look like it."""
    layers = dict(model.named_modules())
    if layer in layers and layer:
        return layers[layer]
    names = [name for name in layers if name]
    near = difflib.get_close_matches(layer, names, 5, 0.4) or names[-5:]
    raise InputError(
        f"encoder.layer: must be one of the model's {len(names)} layers, got {layer}. Change `encoder.layer`, to "
        f"{', '.join(near)}, say."
    )


def last_linear(model: nn.Module) -> str:
    """Return the name of the last linear layer: its input is what a classifier's head sees."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise InputError(
            "encoder.layer: must be named for a model without a linear layer, got none. Set `encoder.layer`."
        )
    return names[-1]


class Tapped:
    """Calls a network and returns what passes one of its layers."""

    def __init__(self, model: nn.Module, layer: str, tap: str) -> None:
        self.model, self.layer, self.tap = model, find_layer(model, layer), tap

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Return the layer's output, or its input, in a forward call."""
        caught = []
        if self.tap == "input":
            hook = self.layer.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
        else:
            hook = self.layer.register_forward_hook(lambda module, given, output: caught.append(output))
        try:
            self.model(*args, **named)
        finally:
            hook.remove()
        if not caught:
            raise InputError(
                "encoder.layer: must take part in the model's forward call, got one that does not. Change it."
            )
        return caught[-1]


def pooled(output: Any, pool: str, mask: Tensor | None = None) -> Tensor:
    """Return one vector a sample, float32.

    (n, d) stays; of (n, channels, height, width) places are pooled, of (n, tokens, d) tokens, those of the mask.
    """
    while isinstance(output, (tuple, list)):
        output = output[0]
    output = output if isinstance(output, Tensor) else next(iter(output.values()))
    values = output.float()
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 2 or pool == "flatten":
        return values.flatten(1)
    if values.ndim >= 4:  # channels come second
        values = values.flatten(2).transpose(1, 2)
    return _over_tokens(values, pool, mask)


def _over_tokens(values: Tensor, pool: str, mask: Tensor | None) -> Tensor:
    """Pool (n, tokens, d) over the tokens of the mask."""
    if pool == "first":
        return values[:, 0]
    mask = torch.ones_like(values[:, :, 0]) if mask is None else mask.to(values.dtype)
    if pool == "last":
        return values[torch.arange(len(values), device=values.device), mask.long().sum(1) - 1]
    if pool == "max":
        return values.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)
    return (values * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def finish(features: Tensor, normalize: bool) -> Tensor:
    """Return features, of unit length if asked."""
    return torch.nn.functional.normalize(features, dim=1) if normalize else features


def to_input(pictures: Sequence[np.ndarray], device: str, mean: Tensor, std: Tensor) -> Tensor:
    """Return a normalised batch (n, 3, size, size) on the device; bytes travel, not floats."""
    batch = torch.from_numpy(np.stack(pictures))
    if device == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    x = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return x.div_(255).sub_(mean).div_(std)


def picture_encoder(
    model: nn.Module,
    config: EncoderConfig,
    form: Form,
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
    precision: str,
    call: Callable[[Tensor], Any] | None = None,
    mark: str = "",
) -> Encoder:
    """Return the encoder of a network that takes normalised pictures; its features, or a layer's.

    Args:
        call: pictures -> features, where it is not the network itself.
    """
    check_pool(config)
    model = model.to(device).eval()
    taken = Tapped(model, config.layer, config.tap) if config.layer else call or model
    center, scale = (torch.tensor(list(values), device=device).view(1, 3, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def run(pictures: Sequence[np.ndarray]) -> Tensor:
        with mixed(device, precision):
            output = taken(to_input(pictures, device, center, scale))
        return finish(pooled(output, config.pool), config.normalize)

    most = 256 if device == "cuda" else 32
    if config.jacobian:
        features, entries = gradients(model, lambda x: pooled(taken(x), config.pool), config, device)

        def run_gradients(pictures: Sequence[np.ndarray]) -> Tensor:
            return finish(features(to_input(pictures, device, center, scale)), config.normalize)

        return Encoder(IMAGE, form, run_gradients, model, device, most, mark, entries)
    return Encoder(IMAGE, form, run, model, device, most, mark)


def form_of(config: EncoderConfig, size: int, crop: float = 1.0, filter: str = "bicubic", fit: str = "crop") -> Form:
    """Return how pictures are cut: as the config says, else as the model was trained."""
    fit = fit if config.fit is None else config.fit
    if fit not in ("crop", "squash", "pad"):
        raise InputError(f"encoder.fit: must be crop, squash or pad, got {fit}. Change `encoder.fit`.")
    side, share = size if config.size is None else config.size, crop if config.crop is None else config.crop
    if side < 1 or not 0 < share <= 1:
        raise InputError(
            f"encoder.size: must be at least 1 and encoder.crop in (0, 1], got {side} and {share}. Change them."
        )
    return Form(side, fit, share, filter)


def scale_of(
    config: EncoderConfig, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of R, G, B: the config's, else the model's own."""
    found = []
    for name, given, own in (("mean", config.mean, mean), ("std", config.std, std)):
        values = list(given) or list(own)
        if len(values) != 3 or any(not isinstance(v, (int, float)) or isinstance(v, bool) for v in values):
            raise InputError(
                f"encoder.{name}: must be three numbers for R, G, B, got {values}. Change `encoder.{name}`."
            )
        found.append([float(v) for v in values])
    if min(found[1]) <= 0:
        raise InputError(f"encoder.std: must be > 0, got {found[1]}. Change `encoder.std`.")
    return found[0], found[1]


def check_pool(config: EncoderConfig) -> None:
    """Raise for a pooling or tap that there is not."""
    for name, allowed in (("pool", POOLS), ("tap", ("output", "input")), ("tower", (IMAGE, TEXT))):
        if getattr(config, name) not in allowed:
            raise InputError(f"encoder.{name}: must be {', '.join(allowed)}, got {getattr(config, name)}. Change it.")
