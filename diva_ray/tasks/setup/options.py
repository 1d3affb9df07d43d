"""Options, checked before any table is opened: types, choices, ranges, and the loss by its name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from diva_ray.config import ClusterConfig, FitConfig, ScoreConfig
from diva_ray.data.folder import Folder
from diva_ray.errors import InputError
from diva_ray.tasks.setup.memory import parse_bytes
from diva_ray.tasks.setup.option_checks import CLUSTER, check_choices, check_least

FITTING = {  # losses, and the tasks they are for; the first of a task is its default
    "cross_entropy": ("classification",),
    "squared": ("regression", "vector", "classification", "multilabel", "pairs"),
    "logistic": ("multilabel",),
    "cosine": ("vector", "pairs"),
}
DEFAULT = {
    "classification": "cross_entropy", "regression": "squared", "multilabel": "logistic", "vector": "squared",
    "pairs": "cosine",
}  # fmt: skip
UNDER = ("standardize", "projection", "seed")  # what shares belong to
KINDS = {
    "str": str, "bool": bool, "int": int, "float": (int, float), "None": type(None), "dict[str, Any]": Mapping,
    "list[Any]": list, "list[str]": list, "list[float]": list,
}  # fmt: skip


def check_options(config: FitConfig) -> None:
    """Raise for options that no table could make right."""
    check_types(config)
    check_choices(config, {
        "standardize": ("auto", "none"), "precision": ("auto", "float32", "float64", "tf32", "bf16"),
        "standard_errors": ("auto", "exact", "estimate"),
    })  # fmt: skip
    ridge = config.ridge
    if not (isinstance(ridge, str) and ridge == "auto") and (
        not isinstance(ridge, (int, float)) or isinstance(ridge, bool) or not 0 <= ridge <= sys.float_info.max
    ):
        raise InputError(f"ridge: must be auto or a number >= 0, got {short(ridge)}. Change `ridge`.")
    check_least(config, {"block_rows": 1, "projection": 1, **CLUSTER})
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed: must be 0 to {2**32 - 1}, got {config.seed}. Change `seed`.")
    if config.cluster.gpus_per_worker > 1:
        raise InputError(
            "cluster.gpus_per_worker: must be at most 1, because a worker uses one GPU, got "
            f"{config.cluster.gpus_per_worker:g}. Lower it, and have a worker for every GPU."
        )
    if config.precision in ("tf32", "bf16") and not (type(config) is ScoreConfig and config.method == "plain"):
        raise InputError(
            f"precision: must be auto, float32 or float64 but for score with method=plain, whose derivatives are "
            f"checked on some rows, got {config.precision}. Change `precision`."
        )
    parse_bytes(config.cluster.memory)


def check_types(config: Any, within: str = "") -> None:
    """Raise for options of another type than their field's; numbers of NumPy and paths become plain ones."""
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value) and type(value).__name__ == option.type:  # a group of options
            check_types(value, f"{option.name}.")
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind == "U":  # numbers are a table in a wrong place
            value = plain(value)
            setattr(config, option.name, value)
        empty = isinstance(value, str) and not value  # as of a shell's unset variable
        if empty and option.default != "" and option.name != "output":
            name = f"{within}{option.name}"
            raise InputError(f"{name}: must not be empty, got ''. Leave `{name}` out, or give it a value.")
        kinds = str(option.type).split(" | ")
        fits = any(kind == "Any" or isinstance(value, KINDS.get(kind, ())) for kind in kinds)
        if not fits or (isinstance(value, bool) and not {"bool", "Any"} & set(kinds)):
            raise InputError(
                f"{within}{option.name}: must be {' or '.join(kinds)}, got {short(value)} ({type(value).__name__}). "
                f"Change `{within}{option.name}`."
            )


def plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy and paths as plain ones, also inside lists and mappings: YAML keeps those."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(name): plain(one) for name, one in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def short(value: Any) -> str:
    """Return what a value looks like, on one line."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 80 else f"{words[:77]}..."


def cluster_options(given: str | Mapping[str, Any]) -> ClusterConfig:
    """Return where to run, from a name or from fields of `ClusterConfig`."""
    if isinstance(given, str):
        return ClusterConfig(kind=given)
    if not isinstance(given, Mapping):
        raise InputError(
            f"cluster: must be auto, inline, local, ray or fields of ClusterConfig, got {short(given)}. Change "
            "`cluster`."
        )
    known = [field.name for field in fields(ClusterConfig)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(
            f"cluster: options must be fields of ClusterConfig, got {unknown[0]!r}. Choose from {', '.join(known)}."
        )
    return ClusterConfig(**given)


def choose_loss(config: FitConfig, task: str, given: Callable | None) -> str | Callable:
    """Return the loss by name, or the user's callable; code named in an option needs `trust_code=true`."""
    if given is not None:
        return _callable(given, given)
    if config.loss == "auto":
        return DEFAULT[task]
    if ":" in config.loss:
        return _callable(import_code("loss", config.loss, trusted=config.trust_code), config.loss)
    if task not in FITTING.get(config.loss, ()):
        fitting = [name for name, tasks in FITTING.items() if task in tasks]
        near = get_close_matches(config.loss, fitting, 1)
        meant = f"Did you mean `{near[0]}`? " if near else ""
        raise InputError(
            f"loss: must fit {task} ({', '.join(fitting)}, module:function), got {config.loss}. {meant}Change `loss`."
        )
    return config.loss


def import_code(option: str, named: str, *, trusted: bool) -> Any:
    """Return what an option names as module:function; it is imported only with `trust_code=true`."""
    if not trusted:
        raise InputError(
            f"{option}: code may run only with trust_code=true, got {option}={named}. Add `trust_code=true`."
        )
    module, _, name = named.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        first = module.split(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == first  # not what it imports
        where = f"Run it with PYTHONPATH=FOLDER, the one with `{first}` in it, or change" if absent else "Change"
        raise InputError(
            f"{option}: must be importable as module:function, got {named} ({error}). {where} `{option}`."
        ) from error


def _callable(loss: Any, named: Any) -> Callable:
    if not callable(loss):
        raise InputError(f"loss: must be a function (outputs, targets) -> values, got {named}. Change `loss`.")
    return loss


def chosen_shares(config: FitConfig, bands: Sequence[str]) -> list[float] | None:
    """Return the share of every band, or None where all are alike; from a mapping or an aggregate run's folder."""
    given = config.shares
    if given is None:
        return None
    if isinstance(given, str):
        folder, _, name = given.rpartition("/") if given.endswith(".json") else (given, "", "bands.json")
        there = Folder(folder or ".", "shares")
        found = there.read_json(name)
        if found is None:
            raise InputError(
                f"shares: must be an aggregate run's folder or its bands.json, got {given}: there is no file "
                f"{there.location(name)}. Change `shares`."
            )
        if not isinstance(found, dict) or not all(isinstance(v, dict) and "share" in v for v in found.values()):
            raise InputError(
                f"shares: must be an aggregate run's folder or its bands.json, got {given}. Change `shares`."
            )
        for name in UNDER:
            ours = getattr(config, name)
            for theirs in (figures[name] for figures in found.values() if figures.get(name, ours) != ours):
                told = "null" if theirs is None else theirs
                raise InputError(
                    f"shares: must be used with the {name} that they were found under ({told}), got "
                    f"{name}={'null' if ours is None else ours} with {given}. Set `{name}={told}`, or find others."
                )
        given = {band: figures["share"] for band, figures in found.items()}
    if not isinstance(given, Mapping):
        raise InputError(f"shares: must be {{band: share}} or the path of bands.json, got {given!r}. Change `shares`.")
    if set(given) != set(bands):
        raise InputError(
            f"shares: every band of data.features must have one ({', '.join(bands)}), got "
            f"{', '.join(map(str, given))}. Change `shares`."
        )
    for band, share in given.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < float("inf"):
            raise InputError(
                f"shares: must be numbers > 0, got {share!r} for `{band}`. Leave the band out of `data.features`, or "
                "change `shares`."
            )
    return [float(given[band]) for band in bands]
