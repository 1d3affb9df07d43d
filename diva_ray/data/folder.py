"""The output folder of a run: new or empty, reached by every node; what it says of itself in JSON and YAML."""

from __future__ import annotations

import json
import socket
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.fs
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diva_ray.data.store import TOKEN, Store
from diva_ray.errors import InputError, first_line

SUMMARY = "summary.json"
WRITTEN = {"samples", "selected", "errors", "curated", "changes", "features", "report.html", "summary.json"}  # by runs
BEGUN = {"state.json", "steps", "sums", "weights", "reweight"}  # what a run writes first; it can be resumed from there
BEGUN |= {"table.json", "pool.json", "validation.json", "raw.json"}  # a Ray Dataset has been written out


class Folder(Store):
    """What a run writes; picklable, so workers write their own."""

    def __init__(self, path: str, option: str = "output") -> None:
        """Open a folder that `option` names; it need not be there."""
        super().__init__(path, option)
        self.token = ""  # of this run, where workers of other nodes are to write
        self.reached = True  # whether this process has found the token

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"reached": not self.token}

    def share(self) -> None:
        """Leave a token in a folder of a file system of this node, so that what others write is not lost unseen."""
        if self.local and not self.token:
            self.write(TOKEN, (token := uuid.uuid4().hex).encode())
            self.token = token

    def check_reached(self) -> None:
        """Raise on a node that does not find what the driver has left in the folder.

        Raises:
            InputError: the path is another folder here, or none.
        """
        if self.reached:
            return
        token = self.filesystem.get_file_info(self._full(TOKEN))
        if token.type != pyarrow.fs.FileType.File or self.read(TOKEN).decode() != self.token:
            raise InputError(
                f"output: every node must reach the folder of the run, got none or another one on "
                f"{socket.gethostname()} at {self.path}. Use a URI, or a folder that is mounted on every node."
            )
        self.reached = True

    def pass_on(self, rows: pa.Table) -> pa.Table:
        """Return the rows where the folder that they are to be written to is reached."""
        self.check_reached()
        return rows

    def open_new(self, *, resume: bool) -> None:
        """Create the folder; raise if it holds files, unless a run there is to be resumed."""
        info = self.filesystem.get_file_info(self.base)
        if info.type == pyarrow.fs.FileType.File:
            raise InputError(f"output: must be a folder, got a file at {self.path}. Change `output`.")
        inside = self.names("") if info.type == pyarrow.fs.FileType.Directory else []
        begun = bool(BEGUN & set(inside))
        if inside and not resume:
            whole = {"summary.json", "manifest.json"} <= set(inside)  # the manifest is the last file of a run
            cure = ", or use `resume=true` to finish the run there" if begun and not whole else ""
            listed = ", ".join(sorted(inside)[:3]) + (", ..." if len(inside) > 3 else "")
            entries = "1 entry" if len(inside) == 1 else f"{len(inside)} entries"
            raise InputError(
                f"output: the folder must be new or empty, got {entries} ({listed}) at {self.path}. Change "
                f"`output`{cure}."
            )
        others = sorted(WRITTEN & set(inside))
        if others and "state.json" not in inside:
            raise InputError(
                f"resume: the folder must hold a run that was begun there, got {others[0]} without state.json at "
                f"{self.path}. Change `output`."
            )
        try:
            self.filesystem.create_dir(self.base, recursive=True)
        except OSError as error:
            raise InputError(
                f"output: the folder must be writable, got {error} at {self.path}. Change `output`."
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write indented JSON."""
        self.write(name, (json.dumps(value, indent=2, default=str, allow_nan=False) + "\n").encode())

    def read_config(self) -> dict[str, Any]:
        """Return the options in config.yaml.

        Raises:
            InputError: it is damaged, or somebody else's.
        """
        try:
            found: Any = OmegaConf.to_container(OmegaConf.create(self.read("config.yaml").decode()), resolve=True)
        except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
            raise self._damaged("config.yaml", error) from error
        return self._mapping("config.yaml", found)

    def read_json(self, name: str) -> Any:
        """Return a JSON file's value, or None.

        Raises:
            InputError: it is damaged, or somebody else's.
        """
        if self.filesystem.get_file_info(self._full(name)).type != pyarrow.fs.FileType.File:
            return None
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self._damaged(name, error) from error

    def read_object(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's mapping, or None.

        Raises:
            InputError: it is damaged, or somebody else's.
        """
        found = self.read_json(name)
        return None if found is None else self._mapping(name, found)

    def read_figure(self, key: str, otherwise: Any) -> Any:
        """Return the number >= 0 of a key in summary.json; `otherwise` where there is none.

        Raises:
            InputError: it is something else.
        """
        value = (self.read_object(SUMMARY) or {}).get(key)
        if value is None:
            return otherwise
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise self._damaged(SUMMARY, f"{key}: {value!r} instead of a number >= 0")
        return value

    def _mapping(self, name: str, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise self._damaged(name, f"{type(found).__name__} instead of a mapping")
        return found

    def _damaged(self, name: str, why: Any) -> InputError:
        return InputError(
            f"{self.option}: files of a run must be as it wrote them, got {first_line(why)} in {self.location(name)}. "
            f"Change `{self.option}`, or make that run again."
        )

    def _places(self, name: str) -> tuple[str, str]:
        self.check_reached()
        return super()._places(name)
