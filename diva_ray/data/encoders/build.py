"""From an encoder's config to the encoder, tried once."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any

import torch
import yaml

from diva_ray.config import CONFIGS, EncoderConfig
from diva_ray.data.encoders import language, plain, vision
from diva_ray.data.encoders.encoder import IMAGE, TEXT, Encoder
from diva_ray.data.encoders.gradient import check_jacobian
from diva_ray.errors import InputError, one_line

READY = CONFIGS / "encoder"
KINDS = {
    "edges": {IMAGE: plain.edge_encoder},
    "words": {TEXT: plain.word_encoder},
    "timm": {IMAGE: vision.timm},
    "torchvision": {IMAGE: vision.torchvision},
    "open_clip": {IMAGE: vision.open_clip, TEXT: language.open_clip},
    "efficientnet_lite": {IMAGE: vision.efficientnet_lite},
    "transformers": {TEXT: language.transformers},
    "sentence_transformers": {TEXT: language.sentence_transformers},
}
PLAIN = ("edges", "words")


def ready() -> list[str]:
    """Return the names of the ready configs."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def encoder_config(given: Any) -> EncoderConfig:
    """Return a config from a ready one's name, from fields (with `name` for a ready one to start from), or as it is."""
    if isinstance(given, EncoderConfig):
        return replace(given)
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, dict) or not isinstance(values.get("name", ""), str):
        raise InputError(
            f"encoder: must be a name, or fields of EncoderConfig, got {type(given).__name__}. Change `encoder`."
        )
    name = values.get("name", "")
    start: dict[str, Any] = {}
    if name in ready():
        start = {k: v for k, v in yaml.safe_load((READY / f"{name}.yaml").read_text()).items() if v != "???"}
    elif "kind" not in values:
        near = difflib.get_close_matches(name, ready(), 3, 0.4)
        raise InputError(
            f"encoder: must be one of {', '.join(ready())}, got {name or 'none'}. Change `encoder`"
            f"{', to ' + ' or '.join(near) if near else ''}."
        )
    known = [field.name for field in fields(EncoderConfig)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise InputError(
            f"encoder: options must be fields of EncoderConfig, got {unknown[0]!r}. Choose from {', '.join(known)}."
        )
    return EncoderConfig(**{**start, **values})


def tower_of(config: EncoderConfig) -> str:
    """Return what an encoder reads, image or text; raise for a kind that there is not."""
    if config.kind not in KINDS and config.kind != "module":
        near = difflib.get_close_matches(config.kind, [*KINDS, "module"], 3, 0.4)
        raise InputError(
            f"encoder.kind: must be {', '.join(KINDS)} or module, got {config.kind}. Change `encoder.kind`"
            f"{', to ' + near[0] if near else ''}."
        )
    towers = list(KINDS.get(config.kind, {IMAGE: 0, TEXT: 0}))
    return towers[0] if len(towers) == 1 else config.tower


def build(config: EncoderConfig, device: str, precision: str, given: Any = None) -> Encoder:
    """Return the encoder of a config.

    Args:
        given: the user's module, or a function that returns it, for kind=module.

    Raises:
        InputError: unknown names, a missing package (with the command that installs it), weights that do not fit, a
            layer that is not there.
    """
    tower = tower_of(config)
    if config.batch is not None and config.batch < 1:
        raise InputError(f"encoder.batch: must be at least 1, got {config.batch}. Change `encoder.batch`.")
    check_jacobian(config)
    if config.kind not in PLAIN and config.model in ("", "???") and given is None:
        raise InputError(f"encoder.model: must be named for {config.kind}, got none. Set `encoder.model`.")
    if config.kind in PLAIN and (config.layer or config.model or config.weights != "auto"):
        raise InputError(
            f"encoder.layer: {config.kind} is a fixed function, got layer={config.layer}, model={config.model!r}, "
            f"weights={config.weights}. Leave them out, or change `encoder`."
        )
    config = replace(config)  # a kind may fill in what it takes from the model
    makers: dict[str, Any] = KINDS.get(config.kind) or {IMAGE: vision.module, TEXT: language.module}
    if tower not in makers:
        raise InputError(
            f"encoder.tower: must be {' or '.join(makers)} for {config.kind}, got {tower}. Change `encoder.tower`."
        )
    more = (given,) if config.kind == "module" else ()
    with torch.random.fork_rng(devices=[]):  # what is not loaded is drawn, alike in every process
        torch.default_generator.manual_seed(0)  # of a GPU's the user's own stays as it is
        return makers[tower](config, device, precision, *more)


def width_of(encoder: Encoder, config: EncoderConfig) -> int:
    """Return the number of features, by encoding two made-up samples; raise if the network cannot take them."""
    try:
        found = encoder.run(encoder.sample(2))
    except InputError:
        raise
    except Exception as error:  # a network raises what it likes
        size = f" of side {encoder.form.size}" if encoder.form else ""
        raise InputError(
            f"encoder: the model must take samples{size}, got {type(error).__name__} "
            f"({one_line(error)}) from {config.name or config.kind}. Change `encoder.size`, "
            "`encoder.layer` or `encoder.model`."
        ) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != 2 or not found.shape[1]:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"encoder.layer: must give one vector a sample, got {shape} for 2 samples. Change `encoder.layer` or "
            "`encoder.pool`."
        )
    if config.jacobian and not (found.isfinite().all() and found.any()):
        what = "0 everywhere" if found.isfinite().all() else "NaN or infinite"
        raise InputError(
            f"encoder.parameters: the outputs' gradient by them must be finite and not 0, got one that is {what} for 2 "
            "made-up samples. Change `encoder.parameters` or `encoder.model`."
        )
    return found.shape[1]
