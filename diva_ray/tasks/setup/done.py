"""Passes that are done: what each led to is kept, so that a run that is resumed does not run them again.

A resumed run goes its way from the start: the driver's part is computed again, and a pass whose result is in `steps/`
is not run. What it had left with the rows is found in `steps/` too (`kernels.row_files`), as by a worker that takes a
dead one's place. `steps/0007-leave-out.json` tells a person of a pass that is done; its result is the npz file beside
it, written before. Only passes before which all are kept are taken over.
"""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diva_ray.data.folder import Folder
from diva_ray.engine.kernels.row_files import RowFiles
from diva_ray.engine.packed import pack, unpack
from diva_ray.errors import InputError, LostLeverageError
from diva_ray.report.words import counted

log = logging.getLogger("diva_ray")
PLACE = "steps"
DEAR = 10.0  # seconds of passes that are kept together: what a killed driver may lose besides the pass that ran
MOST_WAITING = 32 << 20  # bytes of results that wait to be kept


@dataclass(frozen=True)
class Lost:
    """What a pass led to that met a leverage which its precision cannot tell from 1."""

    told: str


@dataclass
class Done:
    """The passes of one run, in the order in which it takes them.

    Attributes:
        mark: data and options of the run, which one that resumes it must share.
        found: names of those that an earlier attempt has kept.
        count: passes taken by this one.
    """

    folder: Folder
    mark: dict[str, Any]
    found: list[str] = field(default_factory=list)
    count: int = 0
    waiting: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = field(default_factory=list)

    @staticmethod
    def open(folder: Folder, mark: dict[str, Any], *, resume: bool) -> Done:
        """Return what an earlier attempt has kept, up to the first pass that is missing."""
        names = [name.removesuffix(".json") for name in folder.names(PLACE) if name.endswith(".json")]
        names.sort(key=lambda name: (len(name.partition("-")[0]), name))  # 10000-fit comes after 9999-fit
        whole = [name for k, name in enumerate(names) if name.startswith(f"{k:04d}-")]
        found = whole[: next((k for k, name in enumerate(whole) if name != names[k]), len(whole))]
        return Done(folder, mark, found if resume else [])

    def once(self, label: str, kernel: str, rows: int, go: Callable[[], Any]) -> Any:
        """Return what a pass leads to: kept, or run now.

        Raises:
            LostLeverageError: as the pass did. That is kept too: a caller may go on from it with more digits, and so
                must the run that is resumed.
        """
        taken = self._kept(label, kernel, rows)
        self.count += 1
        value = self._run(label, kernel, rows, go) if taken is None else taken[0]
        if isinstance(value, Lost):
            raise LostLeverageError(value.told)
        return value

    def _run(self, label: str, kernel: str, rows: int, go: Callable[[], Any]) -> Any:
        """Return what a pass leads to, and keep it."""
        start = time.perf_counter()
        try:
            value = go()
        except LostLeverageError as error:
            value = Lost(str(error))
        told = {"step": self.count - 1, "pass": label, "kernel": kernel, "rows": rows}
        told |= {"seconds": round(time.perf_counter() - start, 4), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        arrays = pack(value)
        told["bytes"] = sum(array.nbytes for array in arrays.values())
        large = sum(one["bytes"] for one, _ in self.waiting) + told["bytes"] > MOST_WAITING
        # What waits is a copy: the caller may go on adding to its own.
        self.waiting.append((told, arrays if large else {name: array.copy("A") for name, array in arrays.items()}))
        if large or sum(one["seconds"] for one, _ in self.waiting) >= DEAR:
            self.keep()
        return value

    def files(self, what: str) -> RowFiles:
        """Return where the passes from here on keep what they find of rows."""
        return RowFiles(self.folder, f"{PLACE}/{self.count:04d}-{what}")

    @property
    def resumes_here(self) -> bool:
        """Whether the next pass is the first that was not done."""
        return 0 < self.count == len(self.found)

    def keep(self) -> None:
        """Write the passes that wait."""
        if self.waiting and self.folder.read_json("state.json") is None:
            self.folder.write_json("state.json", self.mark)
        while self.waiting:
            told, arrays = self.waiting[0]
            name = f"{PLACE}/{told['step']:04d}-{told['pass'].replace(' ', '-')}"
            self.folder.stream(f"{name}.npz", lambda stream, arrays=arrays: np.savez(stream, **arrays))
            self.folder.write_json(f"{name}.json", told)
            self.waiting.pop(0)

    def _kept(self, label: str, kernel: str, rows: int) -> tuple[Any] | None:
        """Return what the next pass led to, if that is kept."""
        if self.count >= len(self.found):
            return None
        name = f"{PLACE}/{self.found[self.count]}"
        expected = {"pass": label, "kernel": kernel, "rows": rows}
        told = self._told(name)
        if told and {key: told.get(key) for key in expected} != expected:
            raise InputError(
                f"resume: the run must go the way it went, got `{label}` over {rows:,} rows where {name}.json says "
                f"`{told.get('pass')}` over {told.get('rows'):,}. It was made by another version: use a new `output`."
            )
        try:
            arrays = self.folder.read_arrays(f"{name}.npz") if told else None
            value = None if arrays is None else (unpack(arrays),)
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            log.warning("resume: %s.npz is damaged (%s)", name, error)
            value = None
        if value is None:
            log.warning("resume: passes from %s on are run again", name)
            del self.found[self.count :]
        elif self.count + 1 == len(self.found):
            passes = counted(self.count + 1, "pass is", "passes are")
            log.info("resume: %s done already, up to `%s` (%s)", passes, label, told["finished"])
        return value

    def _told(self, name: str) -> dict[str, Any]:
        """Return what is said of a kept pass; nothing where that is damaged."""
        try:
            return self.folder.read_object(f"{name}.json") or {}
        except InputError as error:
            log.warning("resume: %s", error)
            return {}
