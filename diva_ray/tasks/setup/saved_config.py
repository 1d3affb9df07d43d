"""The options of a run in its folder: written as a config that composes, and compared with those of a later run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml

from diva_ray.config import SCHEMAS
from diva_ray.data.folder import Folder
from diva_ray.data.store import place_of
from diva_ray.errors import InputError


def write_config(folder: Folder, config: Any) -> None:
    """Write config.yaml, with which the job runs again: `--config-dir=FOLDER --config-name=config output=NEW`."""
    job = next(name for name, schema in SCHEMAS.items() if type(config) is schema)
    heads: list[Any] = [f"{job}_schema", "_self_"]
    if hasattr(config, "cluster"):
        heads.append({"optional cluster": config.cluster.kind})  # a group, so that cluster=local takes its place
    value = {"defaults": heads, **literal({**asdict(config), "output": folder.path})}
    folder.write("config.yaml", yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def literal(value: Any) -> Any:
    """Return values so that a config of them means what they are: `${` in a column's name asks for no other value."""
    if isinstance(value, dict):
        return {name: literal(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(one) for one in value]
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value


def with_places(options: dict[str, Any]) -> dict[str, Any]:
    """Return options whose paths are where they lead, however they were written."""
    found = {name: with_places(one) if isinstance(one, dict) else one for name, one in options.items()}
    path = found.get("path")
    if isinstance(path, str):
        found["path"] = place_of(path)
    return found


def differing_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the options that were different, those inside a section with its name and a dot."""
    found = []
    for name, value in now.items():
        other = before.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            found += [f"{name}.{inside}" for inside in differing_options(other, value)]
        elif other != value:
            found.append(name)
    return found


def refuse_differing(folder: Folder, differing: list[str], changed: Sequence[str] = (), what: str = "run") -> None:
    """Raise if what is in the folder to resume was made with other options or, at the `changed` ones, of other data."""
    same = [f"{name} (what lies there has changed)" for name in dict.fromkeys(changed) if name not in differing]
    if differing or same:
        back = "Put it back as it was (`cp -p` keeps the times of files), or use a new `output`."
        cure = "Use the same options, or a new `output`." if differing else back
        raise InputError(
            f"resume: the {what} in {folder.path} must have the same data and options, got another "
            f"{', '.join([*dict.fromkeys(differing), *same])}. {cure}"
        )
