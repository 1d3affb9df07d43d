"""How every run of a task ends: its files described, and what only an unfinished run needs deleted."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import Any

from diva_ray.data.folder import Folder
from diva_ray.data.store import TOKEN
from diva_ray.engine.meter import peak_memory
from diva_ray.tasks.setup.done import PLACE
from diva_ray.tasks.setup.kept import PLACE as SUMS
from diva_ray.tasks.setup.manifest import manifest
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.saved_config import write_config
from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")
NEEDED = (PLACE, "weights", "uids")  # only by an unfinished run; steps first, they need the others
PARTS = ("samples", "selected", "errors", "curated", "changes")  # that workers write
RAW = "raw"  # rows in memory that are to be embedded
# What a run makes again from what it was given; not a Ray Dataset, which may take hours (and its `table.json` says so).
ROWS = ("table", "table-1", "table-2", "grouped", "grouped.json")
COPIES = (SUMS, RAW, *ROWS)


def conclude(
    session: Session,
    summary: dict[str, Any],
    page: str,
    told: Callable[[dict[str, Any]], list[str]],
    rows: str = "samples",
    *,
    worker_memory: float = 0,
) -> Result:
    """Write what every run writes: report.html, summary.json (with seconds, memory, workers), config and manifest.

    `told` says in a few lines what came out; `rows` is the sub-folder of the run's rows.
    """
    config, folder = session.config, session.folder
    driver, meter = peak_memory(), session.engine.meter
    summary["peak_memory_bytes"] = int(max(driver, worker_memory, meter.memory))
    summary["driver_memory_bytes"] = int(driver)
    summary["seconds"] = {name: round(seconds, 4) for name, seconds in session.runner.seconds.items()}
    summary["workers"] = meter.summary()
    folder.write("report.html", page.encode())
    folder.write_json("summary.json", summary)
    write_config(folder, config)
    for name in PARTS:
        folder.sweep(name)
    return seal(Result(summary, folder, session.plan.kind != "inline", told(summary), rows), session)


def seal(result: Result, session: Session) -> Result:
    """Write the manifest, the last file of a run, which says that it is whole, and delete what is not needed now."""
    folder = result.folder
    spent = _spent(folder)
    written = {name: len(folder.names(name)) for name in folder.names("") if name not in spent}
    came = {"told": result.told, "rows": result.rows, "written": written}
    folder.write_json("manifest.json", manifest(session, session.started, now()) | came)
    clear(folder)
    return result


def clear(folder: Folder) -> None:
    """Delete what is not needed once a run is whole."""
    for name in _spent(folder):
        folder.drop(name)
        folder.remove(name)
    folder.remove(TOKEN)


def _spent(folder: Folder) -> list[str]:
    """Return what only an unfinished run needs: steps, and its own copies of rows, but for those of a Ray Dataset."""
    names = set(folder.names(""))
    return [name for name in (*NEEDED, *ROWS) if name in names and f"{name}.json" not in names - {"grouped.json"}]


def found_whole(folder: Folder, *, on_ray: bool) -> Result | None:
    """Return what came of the run in a folder if it is whole: what it wrote is all there."""
    came = folder.read_object("manifest.json") or {}
    summary = folder.read_object("summary.json")
    if summary is None or "written" not in came:
        return None
    missing = [name for name, files in came["written"].items() if len(folder.names(name)) < files]
    missing += sorted(set(came["written"]) - set(folder.names("")))
    if missing:
        log.info("resume: the run in %s had finished, but not all of %s is there", folder.path, ", ".join(missing))
        return None
    return Result(summary, folder, on_ray, came["told"], came["rows"])


def now() -> str:
    """Return the time, for manifests."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
