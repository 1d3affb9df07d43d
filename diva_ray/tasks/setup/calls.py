"""A job's config from the words of its Python call: the same names, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, cast

from diva_ray.config import DataConfig, FitConfig, ValidationConfig
from diva_ray.data.sources import check_given
from diva_ray.errors import InputError
from diva_ray.tasks.setup.options import check_types, cluster_options
from diva_ray.tasks.setup.result import Result

Config = TypeVar("Config", bound=FitConfig)
P = ParamSpec("P")
R = TypeVar("R")
ARRAYS = 'Arrays go in as {"features": X, "label": y}'
COLUMNS = tuple(
    field.name for field in fields(DataConfig) if field.name not in ("path", "builtin", "noise")
)  # features, label, id, ...
SEVERAL = ("features", "show")  # those that may be lists


def configure(
    schema: type[Config], data: Any, options: Mapping[str, Any], *, call: str | None = None, more: Sequence[str] = ()
) -> tuple[Config, Any, Callable | None]:
    """Return (config, data, loss) of a call: `data` is None when it is a path, `loss` the callable if it is one.

    Args:
        schema: dataclass of the job's options.
        data: path, Ray Dataset, Arrow table, DataFrame, a mapping of arrays, or a `Result`: its rows.
        options: columns by the names of `DataConfig` (features, label, ...), `validation` (what `data` may be),
            `cluster` (a kind or fields of `ClusterConfig`), `loss`, and any other field of the schema; a nested group
            as a mapping. A `Result` stands for the folder of its run.
        call: name of the call, where it is another than the schema's.
        more: names that the call takes beside, for the list of an error.

    Raises:
        InputError: an unknown name.
    """
    known = {field.name: field for field in fields(schema)}
    columns = {name: value for name, value in options.items() if name in COLUMNS}
    values: dict[str, Any] = {"data": DataConfig(**columns), "output": ""}
    loss: Callable | None = None
    for name, value in options.items():
        if name in columns:
            continue
        if name == "cluster":
            values[name] = cluster_options(value)
        elif name == "validation":
            if isinstance(value, Mapping) and not any(one is not None for one in value.values()):
                continue  # as in a config without one
            path = path_of(value)
            values[name] = ValidationConfig(path)
            values[name].rows = value if path is None else None
        elif name == "loss" and not isinstance(value, str):
            values[name], loss = "callable", cast(Callable, value)  # what is none is refused with the other options
        elif name not in known or name == "data":
            allowed = sorted({*COLUMNS, *known, *more} - {"data"})
            near = get_close_matches(name, allowed, 1)
            meant = f"Did you mean `{near[0]}`? " if near else ""
            raise InputError(
                f"{call or schema.__name__.removesuffix('Config').lower()}: options must be columns or fields of "
                f"{schema.__name__}, got {name!r}. {meant}Choose from {', '.join(allowed)}."
            )
        else:
            values[name] = _nested(schema, name, value.path if isinstance(value, Result) else value)
    config = schema(**values)
    config.output = "" if config.output is None else config.output
    check_types(config)
    path = path_of(data)
    if path is not None:
        config.data.path, data = path, None
    return config, data, loss


def takes_table(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call whose first argument is a table, which says in one line how arrays go in where others are given:
    people try `score(X, y)` first, as elsewhere, and Python's own words would not help them."""
    name, parameters = call.__name__, list(signature(call).parameters.values())
    places = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [one.name for one in places if one.default is one.empty]

    @wraps(call)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        check_columns(options)
        if len(args) > len(places):
            raise InputError(
                f"{name}: one table must be given, and options by their names, got {len(args)} arguments without "
                f"names. {ARRAYS}."
            )
        given = dict(zip([one.name for one in places], args, strict=False)) | options
        data = given.get(places[0].name)
        if data is None and needed:
            raise InputError(f"{name}: a table must be given first, got none. Give a path or rows. {ARRAYS}.")
        missing = [other for other in needed if other not in given]
        if missing:
            raise InputError(f"{name}: a {missing[0]} must be given too, got none. Give a path or rows.")
        if data is not None and path_of(data) is None:
            check_given(data, raw=name == "embed")
        return call(*args, **options)

    return checked


def check_columns(options: Mapping[str, Any]) -> None:
    """Raise where an array stands in place of a column's name."""
    for name, value in options.items():
        if name in SEVERAL and hasattr(value, "tolist") and all(isinstance(one, str) for one in value.tolist()):
            continue  # names in an Index of pandas, or an array
        array = hasattr(value, "shape") and getattr(getattr(value, "dtype", None), "kind", "") != "U"
        numbers = isinstance(value, (list, tuple)) and value and not isinstance(value[0], str)
        if name in COLUMNS and (array or numbers):
            raise InputError(
                f"data.{name}: must be a column's name{' or a list of names' * (name in SEVERAL)}, got a "
                f"{type(value).__name__}. Put the array into the mapping and name its column: "
                f'{{"features": X, "label": y, "{name}": array}}, {name}="{name}". Names that are numbers are written '
                "as texts."
            )


def path_of(data: Any) -> str | None:
    """Return the path of a table that a call names (of a `Result`: that of its rows; also as {"path": ...}, like an
    option of a job), or None for rows in memory."""
    if isinstance(data, Result):
        return data.folder.location(data.rows)
    if isinstance(data, Mapping) and set(data) == {"path"}:
        return path_of(data["path"])
    return str(data) if isinstance(data, str) or hasattr(data, "__fspath__") else None


def _nested(schema: type, name: str, value: Any) -> Any:
    """Return a group of options as its dataclass when it was given as a mapping."""
    default = getattr(schema(), name)
    if not (is_dataclass(default) and isinstance(value, Mapping)):
        return value
    allowed = [field.name for field in fields(default)]
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InputError(f"{name}: options must be {', '.join(allowed)}, got {unknown[0]!r}. Change `{name}`.")
    return type(default)(**{key: path_of(one) if isinstance(one, Result) else one for key, one in value.items()})
