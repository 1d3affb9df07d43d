"""Results of passes as plain arrays and back, without pickle."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diva_ray.data.cache import from_ipc, to_ipc

HOME = "diva_ray."  # where the classes of results are: no other is made from what was stored


def pack(value: Any) -> dict[str, np.ndarray]:
    """Return arrays from which `unpack` makes the value again, bit for bit: tensors, arrays, numbers, words and what
    Arrow can hold, inside lists, tuples, dicts and objects of this package."""
    arrays: dict[str, np.ndarray] = {}
    tree = _tree(value, arrays)
    arrays["tree"] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> Any:
    """Return the value that `pack` made arrays of."""
    return _value(json.loads(arrays["tree"].tobytes()), arrays)


def _tree(value: Any, arrays: dict[str, np.ndarray]) -> Any:  # noqa: PLR0911 one for every kind
    """Return the value as JSON, in which arrays have numbers."""

    def array(kind: str, values: np.ndarray) -> dict[str, str]:
        arrays[name := f"a{len(arrays)}"] = values
        return {kind: name}

    if value is None or type(value) in (bool, int, float, str):  # of floats JSON keeps every bit
        return value
    if type(value) is list:
        return [_tree(one, arrays) for one in value]
    if isinstance(value, torch.Tensor):
        return array("torch", value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return array("numpy", value)
    if isinstance(value, np.generic):
        return array("scalar", np.asarray(value))
    if isinstance(value, dict):
        items = [[_tree(name, arrays), _tree(one, arrays)] for name, one in value.items()]
        return {"dict": items, "of": _name(type(value))}
    if isinstance(value, tuple):
        return {"tuple": [_tree(one, arrays) for one in value], "of": _name(type(value))}
    if type(value).__module__.startswith(HOME):
        fields = {name: _tree(one, arrays) for name, one in vars(value).items()}
        return {"object": fields, "of": _name(type(value))}
    if isinstance(value, pa.Array):
        return array("column", to_ipc(value))
    return array("arrow", to_ipc(pa.array([value])))


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type:
    module, _, kind = name.partition(":")
    if module == "builtins":
        return {"dict": dict, "tuple": tuple}[kind]
    if not module.startswith(HOME):
        raise ValueError(f"no class of this package: {name}")
    found = getattr(importlib.import_module(module), kind)
    if not isinstance(found, type):
        raise ValueError(f"no class: {name}")
    return found


def _value(tree: Any, arrays: dict[str, np.ndarray]) -> Any:  # noqa: PLR0911
    if isinstance(tree, list):
        return [_value(one, arrays) for one in tree]
    if not isinstance(tree, dict):
        return tree
    kind, inside = next(iter(tree.items()))
    if kind == "dict":
        return _class(tree["of"])((_value(name, arrays), _value(one, arrays)) for name, one in inside)
    if kind == "tuple":
        return _class(tree["of"])(_value(one, arrays) for one in inside)
    if kind == "object":
        found = object.__new__(_class(tree["of"]))
        for name, one in inside.items():
            object.__setattr__(found, name, _value(one, arrays))  # of a frozen dataclass too
        return found
    values = arrays[inside]
    if kind in ("arrow", "column"):
        column = from_ipc(values)
        return column if kind == "column" else column[0].as_py()
    return torch.from_numpy(values) if kind == "torch" else values[()] if kind == "scalar" else values
