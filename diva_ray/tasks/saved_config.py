"""The options of a run in its folder: written as a config that composes, and compared with those of a later run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from diva_ray.config import SCHEMAS
from diva_ray.data.folder import Folder
from diva_ray.errors import InputError


def write_config(folder: Folder, config: Any) -> None:
    """Write config.yaml, with which the job runs again: `--config-dir=FOLDER --config-name=config output=NEW`."""
    job = next(name for name, schema in SCHEMAS.items() if type(config) is schema)
    heads: list[Any] = [f"{job}_schema", "_self_"]
    if hasattr(config, "cluster"):
        heads.append({"optional cluster": config.cluster.kind})  # a group, so that cluster=local takes its place
    value = {"defaults": heads, **asdict(config), "output": folder.path}
    folder.write("config.yaml", yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


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


def refuse_differing(folder: Folder, differing: list[str], what: str = "run") -> None:
    """Raise if what is in the folder to resume was made of other data or with other options, which are named."""
    if differing:
        raise InputError(
            f"resume: the {what} in {folder.path} must have the same data and options, got another "
            f"{', '.join(dict.fromkeys(differing))}. Use the same options, or a new `output`."
        )
