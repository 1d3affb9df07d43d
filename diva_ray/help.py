"""`--help` of a job: every option with its type, its default, and what the comments of `diva_ray.config` say of it."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any

import yaml

from diva_ray import config
from diva_ray.config import CONFIGS

WIDTH, INDENT = 110, 4
OWN_TABLE = (
    "Without data.path it runs on a built-in table; the values below are those of that run. With data.path=TABLE, no "
    "column is named but those that data.features and data.label name: `features` and `label` by default."
)
RAW_DATA = "Without data.path it runs on built-in pictures; the values below are those of that run."
GENERAL = "General options"
LATE = ("data", "validation", "cluster")  # sections after a job's own
FLAGS = {
    "--cfg job": "print the whole config as it would run, and stop",
    "--multirun, -m": "run once for every value of `OPTION=A,B`",
    "--config-dir DIR --config-name NAME": "run with DIR/NAME.yaml, such as the config.yaml of a finished run",
    "--hydra-help": "what else Hydra, which reads options, knows",
}


def job_help(name: str) -> str:
    """Return the help page of a job, from the schema of its config, with the values that its own config sets."""
    schema, configured = config.SCHEMAS[name], _configured(name)
    lines = [f"python jobs/{name}.py [OPTION=VALUE ...]"]
    every = fields(schema)
    if "data" in {one.name for one in every}:
        lines += textwrap.wrap(RAW_DATA if name == "embed" else OWN_TABLE, WIDTH)
        shared = {one.name for one in fields(config.FitConfig)}
    else:
        shared = set()
    plain = [one for one in every if _nested(one) is None]
    inner = {one.name: one for one in every if _nested(one) is not None}
    own = [one for one in plain if one.name not in shared]
    lines += ["", f"Options of jobs/{name}.py itself", *_options(schema, own, "", configured), ""]
    for key in [*(key for key in inner if key not in LATE), *(key for key in LATE[:2] if key in inner)]:
        lines += _inner(inner[key], "", configured)
    general = [one for one in plain if one.name in shared]
    lines += [GENERAL, *_options(schema, general, "", configured), ""] if general else []
    lines += _inner(inner["cluster"], "", configured) if "cluster" in inner else []
    lines += ["Flags"]
    for flag, words in FLAGS.items():
        lines += [f"  {flag}", *_wrapped(words)]
    return "\n".join(lines)


def _configured(name: str) -> dict[str, Any]:
    """Return what a job's config, and the files it takes from groups, set; a group of names that vary by its file."""
    own, found = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), {}
    sections = {one.name for one in fields(config.SCHEMAS[name]) if _nested(one)}
    for group, choice in (pair for entry in own.pop("defaults") if isinstance(entry, dict) for pair in entry.items()):
        if group in sections:
            found |= _flat(yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text()), f"{group}.")
        else:
            found[group] = choice
    return found | {option: value for option, value in _flat(own, "").items() if "${" not in str(value)}


def _flat(values: dict[str, Any] | None, before: str) -> dict[str, Any]:
    """Return the values of a file by their names with dots."""
    found: dict[str, Any] = {}
    for name, value in (values or {}).items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _inner(one: Field, before: str, configured: dict[str, Any]) -> list[str]:
    """Return the lines of a section: what it is about, its options, and the sections in it."""
    kind = _nested(one)
    assert kind is not None
    name, every = f"{before}{one.name}", fields(kind)
    lines = [f"{name}: {(inspect.getdoc(kind) or '').partition('.')[0]}."]
    lines += [*_options(kind, [each for each in every if _nested(each) is None], f"{name}.", configured), ""]
    return [*lines, *(line for each in every if _nested(each) for line in _inner(each, f"{name}.", configured))]


def _options(schema: type, some: list[Field], before: str, configured: dict[str, Any]) -> list[str]:
    """Return the lines of some options of a section: name, value, type, and what they do."""
    lines = []
    for one in some:
        value = configured.get(before + one.name, _default(one))
        lines += [f"  {before}{one.name}={_shown(value)}  ({_type(one)})"]
        lines += _wrapped(explained(schema).get(one.name, ""))
    return lines


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)


def _nested(one: Field) -> type | None:
    """Return the class of a field that is a section."""
    value = _default(one)
    return type(value) if is_dataclass(value) else None


def _default(one: Field) -> Any:
    return one.default if one.default is not MISSING else one.default_factory()  # type: ignore[misc]


def _type(one: Field) -> str:
    name = one.type if isinstance(one.type, str) else one.type.__name__
    return {"Any": "a name, number or list"}.get(name, name.replace(" | None", ""))


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false", "": "''"}
    return words[value] if isinstance(value, bool | str | None) and value in words else str(value)


def explained(schema: type) -> dict[str, str]:
    """Return the comment of every field of a schema, those it inherits too: at the end of its line, or above it."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        found |= {name: words for name, words in _comments().get(base.__name__, {}).items() if words}
    return found


@cache
def _comments() -> dict[str, dict[str, str]]:
    source = inspect.getsource(config)
    comments = {
        token.start[0]: (token.string.lstrip("# ").strip(), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        for one in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(node, ast.ClassDef) and isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                above, line = [], one.lineno - 1
                while line in comments and comments[line][1]:
                    above.insert(0, comments[line][0])
                    line -= 1
                beside = [
                    comments[k][0] for k in range(one.lineno, (one.end_lineno or one.lineno) + 1) if k in comments
                ]
                words = re.sub(r"\bNone\b", "null", " ".join([*above, *beside]))  # as YAML has it
                found.setdefault(node.name, {})[one.target.id] = words
    return found
