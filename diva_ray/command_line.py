"""The command line of a job: words that no option can be are told in one line, with what was probably meant."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diva_ray.config import CONFIGS, SCHEMAS
from diva_ray.errors import InputError

FLAGS = (  # Hydra's
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
)  # fmt: skip
# Lines of a message that say nothing about the user's word.
UNTOLD = ("To append", "full_key", "object_type", "reference", "Config search path", "provider=")


def register() -> None:
    """Make the dataclasses of `diva_ray.config` known to Hydra as schemas."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    if sys.version_info >= (3, 14):
        # Hydra before 1.4 explains --shell-completion by an object that is made a string when it is printed. Argparse
        # has come to refuse such help when a flag is added (hydra issue 3121).
        argparse.ArgumentParser._check_help = lambda self, action: None  # pyright: ignore[reportAttributeAccessIssue]


def checked(name: str, words: list[str]) -> tuple[str, str | None, list[str], list[str]]:
    """Return (config, folder in which it lies, all other words, overrides before them) of a command line that composes.

    Raises:
        InputError: an option that is not known or not of its type; outputs of several runs in one folder.
    """
    check_flags(name, words)
    chosen, folder, rest = _chosen(name, words)
    own = _own_table(name, chosen, words)
    _check_outputs(words)
    if not any(word.startswith("-") for word in rest):
        compose(name, chosen, folder, [*own, *rest])
    return chosen, folder, rest, own


def quoted(word: str) -> str:
    """Return an override as Hydra reads it: a value that its grammar has no room for is a string, such as a path with
    `~`, `=`, brackets or letters beyond ASCII; `true` names a column where a column is asked for."""
    key, equals, value = word.partition("=")
    if not equals or word.startswith("-"):
        return word
    try:
        OverridesParser.create().parse_override(word)
        column = key.startswith("data.") and value.lower() in ("true", "false")
        return f"{key}='{value}'" if column else word
    except HydraException:
        return key + "='" + value.replace("'", "\\'") + "'"


def is_override(word: str) -> bool:
    """Return whether a word of the command line is an override of Hydra's, no flag and no value of one."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def check_flags(name: str, words: list[str]) -> None:
    """Raise for an option that is written like a flag, which argparse would answer with a page, and for no flag."""
    for word, after in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        key = flag.lstrip("-").replace("-", "_")
        if not word.startswith("--") or (flag in FLAGS and not (equals and flag == "--help")):
            continue
        if flag == "--help":
            instead = flag
        elif _known(name, key, [str(CONFIGS)]):
            apart = "VALUE" if "=" in after or after.startswith("-") or not after else after
            instead = f"{key}={value if equals else apart}"
        else:
            near = get_close_matches(key, _options(SCHEMAS[name]()), 1)
            instead = f"{near[0]}={value if equals else 'VALUE'}" if near else "--help"
        raise InputError(
            f"{name}: options must be written as KEY=VALUE, without dashes, got {word}. Write `{instead}`."
        )


def _chosen(name: str, words: list[str]) -> tuple[str, str | None, list[str]]:
    """Return (config, folder in which it lies, all other words) of a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-name", "-cn", default=name)
    parser.add_argument("--config-dir", "-cd")
    flags, rest = parser.parse_known_args(words)
    return flags.config_name, flags.config_dir, rest


def _own_table(name: str, chosen: str, words: list[str]) -> list[str]:
    """Return the override by which a table of one's own does not take over the columns of the job's built-in one."""
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    own = chosen == name and "data.path" in keys and "data" not in keys and hasattr(SCHEMAS[name](), "data")
    return ["data=table"] if own else []


def _check_outputs(words: list[str]) -> None:
    """Raise where several runs would write to one folder: the second would fail after the first was computed."""
    given = next((word.partition("=")[2] for word in words if word.startswith("output=")), None)
    if given is not None and {"-m", "--multirun"} & set(words) and "${" not in given and "," not in given:
        raise InputError(
            f"output: every run of --multirun must have a folder of its own, got {given} for all. Leave it out, or put "
            "what varies in it: 'output=runs/${ridge}'."
        )


def compose(name: str, chosen: str, folder: str | None, overrides: list[str]) -> None:
    """Raise one line for an unknown key or a wrong type, before Hydra prints a page about it."""
    bare = next((word for word in overrides if "=" not in word and word[:1] not in "~+-"), None)
    if bare is not None:
        instead = f"data.path={bare}" if hasattr(SCHEMAS[name](), "data") else f"KEY={bare}"
        raise InputError(f"{name}: options must be written as KEY=VALUE, got {bare}. Write `{instead}`.")
    sections = [one.name for one in fields(SCHEMAS[name])]
    for word in overrides:
        key = word.partition("=")[0]
        if (CONFIGS / key).is_dir() and key not in sections:  # Hydra: Could not override
            if key == "experiment" and name == "tune":
                raise InputError(f"experiment: must be added to the config, got {word}. Write `+{word}`.")
            raise InputError(
                f"{name}: options must be those of this job, got {word}, which it does not have. Leave `{key}` out."
            )
    places = [str(CONFIGS)]
    if folder is not None:
        if not os.path.isdir(folder):
            raise InputError(f"--config-dir: a folder must be there, got nothing at {folder}. Change `--config-dir`.")
        places.append(os.path.abspath(folder))
        if not (CONFIGS / f"{chosen}.yaml").exists():  # Hydra looks for it in the first place only
            places.reverse()
        overrides = [*overrides, f"hydra.searchpath=['file://{places[1]}']"]
    try:
        with hydra.initialize_config_dir(places[0], version_base="1.3"):
            OmegaConf.to_object(hydra.compose(chosen, overrides=overrides))
        for key in [word.lstrip("+").partition("=")[0] for word in overrides if word.startswith("+")]:
            if not _known(name, key, places):  # Hydra adds it, and nobody would read it
                raise HydraException(f"Key {key!r} not in {SCHEMAS[name].__name__!r}")
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(UNTOLD)] + _hints(name, overrides, places)
        told = " ".join(line if line.endswith((".", ":", ",", "?")) else f"{line}." for line in dict.fromkeys(lines))
        options = f"python jobs/{name}.py --cfg job"
        raise InputError(
            f"{name}: options must be known and of the right type, got: {told} List them with `{options}`."
        ) from error


def _hints(name: str, overrides: list[str], places: list[str]) -> list[str]:
    """Return what was probably meant by the overrides that no option of the job can be: a path in place of a section,
    or an option whose name, or its last part, is near."""
    options, found = _options(SCHEMAS[name]()), []
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        group = CONFIGS / key
        names = [] if re.search("[./]", value) else [path.stem for path in group.glob("*.yaml")]  # a path has those
        loose = (2, 0.4) if key == "encoder" else (1, 0.6)  # encoders' names are longer than what people call them
        near = [] if value in names else get_close_matches(value, names, *loose)
        if near:
            found.append(f"Did you mean {' or '.join(f'`{key}={one}`' for one in near)}?")
        elif f"{key}.path" in options and value not in names:
            found.append(f"Set `{key}.path`")
        elif key == "space" or key.startswith("space."):
            found.append("Names are added to those of a file: `space=none +space.ridge.choice=[0.1,1]`")
        elif key == "data.label" and value.startswith("["):
            found.append("A label is one column; several numbers of a row go into one column of lists.")
        elif not _known(name, key, places):
            near = get_close_matches(key, [*options, *(option.rpartition(".")[2] for option in options)], 1)
            meant = [f"`{option}`" for option in options if {option, option.rpartition(".")[2]} & set(near)]
            found += [f"Did you mean {' or '.join(meant)}?"] if meant else []
    return found


def _known(name: str, key: str, places: list[str]) -> bool:
    """Return whether a key is an option of the job, inside one, Hydra's own, or a group of configs."""
    if any(f"{key}.".startswith(f"{option}.") for option in _options(SCHEMAS[name]())) or key.startswith("hydra"):
        return True
    return any((Path(place) / re.split("[@:]", key)[0]).is_dir() for place in places)


def _options(section: Any, before: str = "") -> list[str]:
    """Return the names of all options of a section, with dots."""
    found = []
    for one in fields(section):
        value = getattr(section, one.name)
        found += _options(value, f"{before}{one.name}.") if is_dataclass(value) else [before + one.name]
    return found
