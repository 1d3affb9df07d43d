"""Which column of a table is what: bands, label, keys, what the report shows; and the task that the label means."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Any

import pyarrow as pa

from diva_ray.data.columns import element_type, is_list, is_number, is_picture, is_text, storage_type
from diva_ray.data.shards import Columns
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

SHOWN = (
    "image",
    "picture",
    "photo",
    "text",
    "caption",
    "sentence",
    "name",
    "raw_text",
    "raw_caption",
)  # columns the report shows unasked
INDEX = "__index_level_"  # how pandas names an index in a file
KEYS = ("data.id", "data.group", "data.source")
FOUND = {"diva_ray": "found from labels"}  # metadata of a column that tells what the label is: no pattern takes it
QUOTES = ' (names with signs in them want quotes: `\'data.features=["a (cm)","b (cm)"]\'`)'
NAMED = 20  # columns that an error lists


def find_columns(
    schema: pa.Schema, options: Any, builtin: bool, *, labelled: bool = True, partly: Mapping[str, str] | None = None
) -> tuple[Columns, tuple[str, ...]]:
    """Return which columns are what, and the columns to show; every named column must be there.

    `partly` are columns that not all files have, and the first file without each: nobody may use them.

    Raises:
        InputError: a missing column, or one whose type cannot serve.
    """
    asked = _names("features", options.features)
    named = {"data.features": asked, "data.label": [options.label] if labelled else []}
    partly = partly or {}
    usual = "id" if "id" in (*schema.names, *partly) else None
    identifier = None if options.id == "none" else options.id or usual
    if identifier:
        named["data.id"] = [identifier]
    for option in ("weight", "validation_weight", "group", "source", "offset", "truth"):
        if getattr(options, option):
            named[f"data.{option}"] = [getattr(options, option)]
    if options.show is not None and not (isinstance(options.show, str) and options.show in ("none", "auto")):
        named["data.show"] = _names("show", options.show)
    used = {name for names in named.values() for name in names} | {usual, *(["true_label"] if builtin else [])}
    named["data.features"] = _matching(asked, schema, used)
    _check_bands(named["data.features"], pair=not labelled)
    pairs = ", or use `task=pairs` for pairs without labels" if len(named["data.features"]) == 2 else ""
    hints = {"data.features": ", one name, a list (`[a,b]`) or a pattern (`*`: all numbers)", "data.label": pairs}
    for option, names in named.items():
        for name in names:
            _check_named(option, name, schema, partly, hints.get(option, ""))
    for name in named["data.features"]:
        kind = element_type(schema.field(name).type)
        if not is_number(kind):
            got, cure = _nested(kind, name) if is_list(kind) else (schema.field(name).type, "Change `data.features`")
            if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
                cure += ", or give each of its values a column of 0 and 1 (`pandas.get_dummies`) if it holds categories"
            raise InputError(
                f"data.features: column `{name}` must hold numbers or lists of numbers, got {got}. {cure}."
            )
    truth = options.truth or ("true_label" if builtin and "true_label" in schema.names else None)
    columns = Columns(
        tuple(named["data.features"]), options.label if labelled else "", identifier, options.weight,
        options.validation_weight, options.group, options.source, options.offset, truth,
    )  # fmt: skip
    unasked: list[str] = []
    if isinstance(options.show, str) and options.show == "auto":
        unasked = _shown(schema, several=not labelled or len(named["data.features"]) > 1)
    return columns, tuple(named.get("data.show", unasked))


def _nested(kind: pa.DataType, name: str) -> tuple[str, str]:
    """Return what a column of lists within lists holds and what to do: a matrix goes in as one list, row by row."""
    depth = 2
    while is_list(kind := element_type(kind)):
        depth += 1
    if not is_number(kind):
        return "lists of " * depth + str(kind), "Change `data.features`"
    again = ", once more for every further level" if depth > 2 else ""
    cure = f"Make each one list first, as pandas does by `df[{name!r}] = df[{name!r}].map(numpy.concatenate)`{again}"
    return "lists of " * depth + str(kind), cure


def _check_named(option: str, name: str, schema: pa.Schema, partly: Mapping[str, str], hint: str) -> None:
    """Raise unless a named column is there, in every file, once, and of a type that the option can use."""
    if name in partly:
        raise InputError(
            f"{option}: every file must have column `{name}`, got none at {partly[name]}. Fix the table or "
            f"`{option}`{'=none' if option == 'data.id' else ''}."
        )
    if name not in schema.names:
        raise InputError(
            f"{option}: column `{name}` must be in the table, got columns {_listed(name, schema.names)}. "
            f"Change `{option}`{hint}."
        )
    if schema.names.count(name) > 1:
        raise InputError(
            f"{option}: column `{name}` must be there once, got {schema.names.count(name)}. Fix the table."
        )
    if option in KEYS and pa.types.is_nested(storage_type(schema.field(name).type)):
        kind = schema.field(name).type
        raise InputError(f"{option}: column `{name}` must hold numbers or strings, got {kind}. Change `{option}`.")
    if option in (*KEYS, "data.label", "data.truth") and _is_opaque(schema.field(name).type):
        raise InputError(
            f"{option}: column `{name}` must hold numbers, strings or dates, got {schema.field(name).type}. Write its "
            f"values as strings, or change `{option}`."
        )


def _is_opaque(kind: pa.DataType) -> bool:
    """Return whether values are of a type that Arrow cannot compare: pandas' periods and intervals."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name.startswith("pandas.")


def _listed(name: str, names: list[str]) -> str:
    """Return names of columns for an error: those most like the one that was asked for first."""
    like = get_close_matches(name.lower(), [one.lower() for one in names], n=3)
    first = [one for one in names if one.lower() in like]
    shown = list(dict.fromkeys([*first, *names]))
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more


def _names(option: str, given: Any) -> list[str]:
    """Return the columns that an option names, one or several."""
    several = isinstance(given, (list, tuple)) or (hasattr(given, "tolist") and hasattr(given, "__len__"))
    names = list(given) if several else [given]  # also an Index of pandas
    for name in names:
        if not isinstance(name, (str, int)):
            raise InputError(
                f"data.{option}: must be a column's name or a list of names, got a {type(name).__name__}. Arrays go in "
                "as {'features': X, 'label': y}."
            )
    return list(map(str, names))


def _matching(asked: list[str], schema: pa.Schema, used: set[str | None]) -> list[str]:
    """Return the columns that names and patterns stand for; a pattern takes numbers that nothing else uses, in order.

    Raises:
        InputError: a pattern that no such column matches.
    """
    found: list[str] = []
    for name in asked:
        if name in schema.names or not has_magic(name):
            found.append(name)
            continue
        kinds = {one.name: element_type(one.type) for one in schema if one.name not in used}
        free = [one for one, kind in kinds.items() if is_number(kind) and one not in found]
        free = [one for one in free if not one.startswith(INDEX)]
        flags = [one for one in free if pa.types.is_boolean(kinds[one]) and fnmatchcase(one, name)]
        free = [one for one in free if one not in flags]
        told = [one for one in free if fnmatchcase(one, name) and FOUND.items() <= _notes(schema, one).items()]
        if told:
            log.warning(
                "data.features: `%s` leaves out column `%s`, found from the labels by curate=weight. Name it as "
                "`data.weight`", name, told[0],
            )  # fmt: skip
        free = [one for one in free if one not in told]
        matching = [one for one in free if fnmatchcase(one, name)]
        if not matching:
            raise InputError(
                f"data.features: some column of numbers that no other option uses must match `{name}`, got none "
                f"among {_listed(name, schema.names)}. Change `data.features`{QUOTES if ',' in name else ''}"
                f"{_left_out(flags)}."
            )
        found += matching
        log.info(
            "data.features: `%s` is %s of %s columns: %s%s", name, len(matching), len(schema), _few(matching),
            _left_out(flags),
        )  # fmt: skip
    return found


def _few(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _left_out(flags: list[str]) -> str:
    """Return that columns of true and false are no numbers to a pattern, where it would match some."""
    return f"; true or false is no number unless named: {_few(flags)}" if flags else ""


def _notes(schema: pa.Schema, name: str) -> dict[str, str]:
    """Return a column's metadata."""
    found = (schema.field(name).metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found}


def _check_bands(features: list[str], *, pair: bool) -> None:
    """Raise unless there is a band, or two that make a pair."""
    if not features:
        raise InputError("data.features: at least one column must be named, got none. Change `data.features`.")
    if pair and len(set(features)) != 2:
        raise InputError(
            f"data.features: a pair must have two bands, got {len(set(features))} ({', '.join(features)}). Name two "
            "columns in `data.features`, or change `task`."
        )
    twice = [name for name in features if features.count(name) > 1]
    if twice:
        raise InputError(
            f"data.features: every band must be named once, got `{twice[0]}` twice. Leave it out of `data.features`."
        )


def _shown(schema: pa.Schema, *, several: bool) -> list[str]:
    """Return the first column of pictures or of texts by its name; of `several` bands, the first of either."""
    found: dict[bool, str] = {}
    for name in SHOWN:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and not is_list(kind) and (is_text(kind) or is_picture(kind)):
            found.setdefault(is_picture(kind), name)
    return list(found.values())[: 2 if several else 1]


def task_of(schema: pa.Schema, label: str, task: str) -> str:
    """Return the task that the label's type means, or check the one that was asked for."""
    kind = schema.field(label).type
    element = element_type(kind)
    number = pa.types.is_floating(element) or pa.types.is_decimal(element)
    named = is_text(element) or pa.types.is_integer(element) or pa.types.is_boolean(element)
    fits = {
        "classification": not is_list(kind) and named,
        "regression": not is_list(kind) and (number or pa.types.is_integer(element)),
        "multilabel": is_list(kind) and named,
        "vector": is_list(kind) and (number or pa.types.is_integer(element)),
    }
    if task == "auto":
        found = [name for name, fit in fits.items() if fit]
        if found:
            return found[0]
        raise InputError(
            f"task: labels in column `{label}` must be integers, strings or booleans (classes), floats (numbers), or "
            f"lists of these, got {kind}. Cast them, such as to strings, or change `data.label`."
        )
    elif task not in fits:
        raise InputError(f"task: must be auto, {', '.join(fits)} or pairs, got {task}. Change `task`.")
    if not fits.get(task):
        classes = task == ("multilabel" if is_list(kind) else "classification")
        cast = "Cast them to integers, or change" if number and classes else "Change"
        raise InputError(
            f"task: labels in column `{label}` must fit {task}, got {kind}. {cast} `task` or `data.label`."
        )
    return task
