"""Networks for texts by name: transformers, sentence-transformers, and the text tower of open_clip."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diva_ray.config import EncoderConfig
from diva_ray.data.encoders.encoder import TEXT, Encoder, check_weights_file, is_file, load_weights, mixed, need
from diva_ray.data.encoders.gradient import gradients
from diva_ray.data.encoders.network import Tapped, check_pool, finish, pooled
from diva_ray.data.encoders.vision import clip_model, from_hub, own_weights
from diva_ray.errors import InputError


def model_place(model: str, extra: str) -> str:
    """Return a hub id or a folder as it is; of `package:NAME` the folder of weights inside a Python package."""
    if not model.startswith("package:"):
        return os.path.expanduser(model) if model.startswith("~") else model
    name = model.removeprefix("package:")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        need(name, extra)
        raise InputError(
            f"encoder.model: must be a Python package with a folder `model`, got {name}. Change `encoder.model`."
        )
    folder = os.path.join(next(iter(found.submodule_search_locations)), "model")
    if not os.path.isdir(folder):
        raise InputError(
            f"encoder.model: the package {name} must have a folder `model`, got none. Change `encoder.model`."
        )
    return folder


def model_mark(place: str) -> str:
    """Return what tells a folder's weights from others: names, sizes, times of change; of a hub id the id."""
    if not os.path.isdir(place):
        return place
    files = sorted(name for name in os.listdir(place) if name.endswith((".safetensors", ".bin", ".json")))
    found = [(name, os.stat(os.path.join(place, name))) for name in files]
    return ",".join(f"{name}-{one.st_size}-{one.st_mtime_ns}" for name, one in found)


def positions_of(model: torch.nn.Module) -> int:
    """Return how many tokens a network has places for, where those of padding are left out as RoBERTa's are: it counts
    from the one after, and has two fewer than its config says."""
    for name, one in model.named_modules():
        if not isinstance(one, torch.nn.Embedding) or one.padding_idx is None:
            continue
        if name.endswith("position_embeddings"):
            return one.num_embeddings - one.padding_idx - 1
    return 10**9


def transformers(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return a text model of transformers: its last hidden layer (or the one named), pooled over tokens."""
    place = model_place(config.model, "transformers")
    library = need("transformers", "transformers")
    check_pool(config)
    if config.pool == "flatten":
        raise InputError(
            "encoder.pool: must be mean, first, last, max for texts, whose lengths differ, got flatten. Change "
            "`encoder.pool`."
        )
    local = {"local_files_only": os.path.isdir(place), "trust_remote_code": False}
    tokenizer = from_hub(config, lambda: library.AutoTokenizer.from_pretrained(place, **local))
    known = from_hub(config, lambda: library.AutoConfig.from_pretrained(place, **local))
    if config.weights == "none" or is_file(config.weights):
        model = library.AutoModel.from_config(known)
    else:
        model = from_hub(config, lambda: library.AutoModel.from_pretrained(place, **local))
    mark = model_mark(place)
    if is_file(config.weights):
        load_weights(model, config.weights, config.model)
        mark = f"{mark} {check_weights_file(config.weights)}"
    model = getattr(model, "get_encoder", lambda: model)() if getattr(known, "is_encoder_decoder", False) else model
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    longest = min(
        config.tokens or 10**9, tokenizer.model_max_length, getattr(known, "max_position_embeddings", 10**9) or 10**9,
        positions_of(model),
    )  # fmt: skip
    longest = longest if longest < 10**6 else 512
    model = model.to(device).eval()
    taken = Tapped(model, config.layer, config.tap) if config.layer else model

    def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return dict(found.to(device))

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> Tensor:
        batch = tokens(texts)
        with mixed(device, precision):
            output = taken(**batch)
        output = output if config.layer else output.last_hidden_state
        return finish(pooled(output, config.pool, batch["attention_mask"]), config.normalize)

    most = 256 if device == "cuda" else 32
    if config.jacobian:
        outputs = lambda batch: pooled(model(**batch).last_hidden_state, config.pool, batch["attention_mask"])  # noqa: E731
        features, entries = gradients(model, outputs, config, device)
        run_gradients = lambda texts: finish(features(tokens(texts)), config.normalize)  # noqa: E731
        return Encoder(TEXT, None, run_gradients, model, device, most, mark, entries)
    return Encoder(TEXT, None, run, model, device, most, mark)


def sentence_transformers(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return a model of sentence-transformers, with the pooling and scaling that it was trained with."""
    place = model_place(config.model, "minilm" if config.model.startswith("package:") else "sentence_transformers")
    if config.layer or config.weights != "auto":
        raise InputError(
            f"encoder.layer: a sentence-transformers model is taken as it is, got layer={config.layer}, "
            f"weights={config.weights}. Use `encoder.kind=transformers`, or leave them out."
        )
    library = need("sentence_transformers", "sentence_transformers")
    local = {"local_files_only": os.path.isdir(place), "trust_remote_code": False}
    model = from_hub(config, lambda: library.SentenceTransformer(place, device=device, **local)).eval()
    if config.tokens:
        model.max_seq_length = min(config.tokens, model.max_seq_length or config.tokens)
    prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None  # as `encode` does

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> Tensor:
        batch = model.preprocess(list(texts), prompt=prompt)
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with mixed(device, precision):
            found = model(batch)["sentence_embedding"]
        return finish(found.float(), config.normalize)

    return Encoder(TEXT, None, run, model, device, 256 if device == "cuda" else 32, model_mark(place))


def open_clip(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return the text tower of a CLIP model, whose space is the image tower's."""
    if config.layer:
        raise InputError(
            f"encoder.layer: the text tower of open_clip is taken as it is, got layer={config.layer}. Leave it out."
        )
    library, model, mark = clip_model(config)
    tokenizer = library.get_tokenizer(config.model)
    model = model.to(device).eval()

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> Tensor:
        with mixed(device, precision):
            found = model.encode_text(tokenizer(list(texts)).to(device))
        return finish(found.float(), config.normalize)

    return Encoder(TEXT, None, run, model, device, 256 if device == "cuda" else 32, mark)


def module(config: EncoderConfig, device: str, precision: str, given: Any) -> Encoder:
    """Return the user's own module or function of a list of texts."""
    model = copy.deepcopy(given) if isinstance(given, torch.nn.Module) else given  # the user's own stays as it is
    if isinstance(model, type) or (not isinstance(model, torch.nn.Module) and config.model):
        model = given()
    if not callable(model):
        raise InputError(f"encoder.model: must be callable, got {type(model).__name__}. Change `encoder.model`.")
    net = model.to(device).eval() if isinstance(model, torch.nn.Module) else None
    if net is None and (config.layer or config.jacobian or config.weights not in ("auto", "none")):
        raise InputError(
            f"encoder.layer: a function of texts is taken as it is, got layer={config.layer}, weights="
            f"{config.weights}, jacobian={config.jacobian}. Leave them out, or give a torch.nn.Module."
        )
    mark = "given" if net is None else own_weights(net, config)
    taken = Tapped(net, config.layer, config.tap) if net is not None and config.layer else model

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> Tensor:
        with mixed(device, precision):
            found = taken(list(texts))
        return finish(pooled(torch.as_tensor(found), config.pool), config.normalize)

    if net is not None and config.jacobian:
        outputs = lambda batch: pooled(net(batch), config.pool)  # noqa: E731
        features, entries = gradients(net, outputs, config, device, singly=True)  # strings cannot be vmapped over
        run_gradients = lambda texts: finish(features(list(texts)), config.normalize)  # noqa: E731
        return Encoder(TEXT, None, run_gradients, net, device, 64, mark, entries)
    return Encoder(TEXT, None, run, net, device, 64, mark)
