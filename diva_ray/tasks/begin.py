"""How every run of a task begins and ends: options and folder checked, a plan made, shards loaded; files described."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa

from diva_ray.config import FitConfig, TrainConfig, TuneConfig, ValidationConfig
from diva_ray.data.folder import Folder
from diva_ray.data.table import Table
from diva_ray.engine.meter import peak_memory
from diva_ray.errors import InputError
from diva_ray.tasks.done import PLACE, Done
from diva_ray.tasks.kept import PLACE as SUMS
from diva_ray.tasks.kept import expect_sums
from diva_ray.tasks.manifest import fingerprint, manifest
from diva_ray.tasks.opened import make_plan
from diva_ray.tasks.options import check_options, chosen_shares
from diva_ray.tasks.plan import Plan
from diva_ray.tasks.saved_config import differing_options, write_config
from diva_ray.tasks.session import Session, join, open_session

log = logging.getLogger("diva_ray")
PARTS = ("samples", "selected", "errors", "curated", "changes")  # that workers write
PATHS = {"train": "data.path", "held_out": "validation.path", "pool": "pool.path", "test": "test.path"}
RAW = "raw"  # rows in memory that are to be embedded
FORMAT = 9  # of what an unfinished run leaves: another one's sums and rows are not those of this code
P = ParamSpec("P")
R = TypeVar("R")


def begin(
    config: FitConfig,
    data: Any,
    loss: Callable | None,
    *,
    quiet: bool,
    pool: Any = None,
    folder: Folder | None = None,
    beside: dict[str, Table] | None = None,
) -> Session | Plan:
    """Return a session with every shard (but a pool's) loaded and checked; only its plan with `config.plan`.

    `pool` are rows of a pool or of a test table; `folder` is the output, where it is open already; `beside` are tables
    that options name, which a resumed run must find as they were.
    """
    started = now()
    check_options(config)
    folder = folder or open_folder(config)
    if type(data).__module__.startswith("ray.data"):
        data = from_dataset(data, folder, "table", plan=config.plan)
        config.data.path = None if config.plan else data
    if type(pool).__module__.startswith("ray.data"):
        pool = from_dataset(pool, folder, "pool", plan=config.plan)
    if type(config.validation.rows).__module__.startswith("ray.data"):
        rows = from_dataset(config.validation.rows, folder, "validation", plan=config.plan)
        config = replace(config, validation=ValidationConfig())  # the caller's own stays as it is
        config.validation.rows = rows
    plan, opened = make_plan(config, data, loss, pool)
    cut_bits, kept = expect_sums(config, plan, opened)
    plan = plan.settle(plan.workers, plan.budget, config.cluster.cache)
    if config.plan:
        return join(plan, config) if plan.kind == "ray" else plan
    session = open_session(config, plan, opened, folder, quiet=quiet, cut_bits=cut_bits, kept=kept)
    try:
        session.started, session.mark = started, _mark(session, beside or {})
        # Training and trials resume by files of their own; of a function nothing tells whether it is the same one.
        if loss is None and not isinstance(config, TrainConfig | TuneConfig):
            session.runner.done = Done.open(folder, session.mark, resume=config.resume)
    except BaseException:
        session.engine.close()
        raise
    return session


def open_folder(config: Any) -> Folder:
    """Return the output folder, new or empty unless a run there is to be resumed; nothing is written for a plan.

    Without a name it is a temporary one that only its owner may enter.
    """
    if not config.output:
        planned = os.path.join(tempfile.gettempdir(), f"diva_ray-{uuid.uuid4().hex[:12]}")
        config.output = planned if config.plan else tempfile.mkdtemp(prefix="diva_ray-")
    folder = Folder(config.output)
    if not config.plan:
        folder.open_new(resume=config.resume)
    return folder


def tidy(run: Callable[P, R]) -> Callable[P, R]:
    """Return the run of a task, which takes its config first, so that a mistake leaves nothing behind that stands in
    the way of the next try: neither sums of the fit nor rows to be embedded in a folder that was new, and no empty
    folder that was not there."""

    @wraps(run)
    def tidied(*args: P.args, **options: P.kwargs) -> R:
        config: Any = args[0]
        named = _local(config.output)
        new = not named or not os.path.isdir(named) or not os.listdir(named)
        absent = _absent(named)
        try:
            return run(*args, **options)
        except BaseException as error:
            made = _local(config.output)
            if not (made and new and os.path.isdir(made)):  # nothing was made, or it is somewhere else
                raise
            if isinstance(error, InputError) and set(os.listdir(made)) <= {SUMS, RAW}:
                for name in os.listdir(made):
                    shutil.rmtree(os.path.join(made, name))
            for folder in absent if named else [made]:
                try:
                    os.rmdir(folder)
                except OSError:  # it holds something
                    break
            raise

    return tidied


def _local(output: str) -> str:
    """Return the path of an output folder on this machine, '' for none and for a URI."""
    named = str(output or "")  # a pathlib.Path, too
    return os.path.abspath(os.path.expanduser(named)) if named and "://" not in named else ""


def _absent(folder: str) -> list[str]:
    """Return a folder and those above it that are not there, the innermost first."""
    found = []
    while folder and not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def conclude(session: Session, summary: dict[str, Any], page: str, *, worker_memory: float = 0) -> None:
    """Write what every run writes: report.html, summary.json (with seconds, memory, workers), config and manifest."""
    config, folder = session.config, session.folder
    driver, meter = peak_memory(), session.engine.meter
    summary["peak_memory_bytes"] = int(max(driver, worker_memory, meter.memory))
    summary["driver_memory_bytes"] = int(driver)
    summary["seconds"] = {name: round(seconds, 4) for name, seconds in session.runner.seconds.items()}
    summary["workers"] = meter.summary()
    folder.write("report.html", page.encode())
    folder.write_json("summary.json", summary)
    write_config(folder, config)
    folder.write_json("manifest.json", manifest(session, session.started, now()))
    for name in PARTS:
        folder.sweep(name)
    for name in (PLACE, "weights", "uids"):  # what only an unfinished run needs; steps first, they need the others
        folder.drop(name)


def _mark(session: Session, beside: dict[str, Table]) -> dict[str, Any]:
    """Return what tells this run from others; raise if the folder to resume holds another one."""
    config = asdict(session.config)
    for name in ("output", "resume", "plan", "cluster"):
        config.pop(name)
    shares = chosen_shares(session.config, session.columns.features)  # themselves, not where they are read
    config["shares"] = shares and dict(zip(session.columns.features, shares, strict=True))
    tables = [session.original or session.tables[0], *session.tables[1:]]
    mark = {"data": [fingerprint(table) for table in tables], "config": config, "format": FORMAT}
    mark |= {"beside": {name: fingerprint(table) for name, table in beside.items()}} if beside else {}
    mark = json.loads(json.dumps(mark, default=str))
    found = session.folder.read_json("state.json")
    if session.config.resume and found is not None and found.get("format") != FORMAT:
        raise InputError(
            f"resume: the run in {session.folder.path} must have been begun by this version of diva_ray, got another "
            "one's. Use a new `output`."
        )
    if session.config.resume and found is not None and found != mark:
        differing = differing_options(found["config"], mark["config"])
        changed = [name for name, table in mark.get("beside", {}).items() if found.get("beside", {}).get(name) != table]
        pairs = zip(session.roles, mark["data"], found["data"], strict=False)
        differing = differing or changed or [PATHS[role] for role, now, then in pairs if now != then] or ["data.path"]
        changed = [] if found["config"] != mark["config"] else [" (its files have changed)"]
        raise InputError(
            f"resume: the run in {session.folder.path} must have the same data and options, got another "
            f"{', '.join(differing)}{''.join(changed)}. Use the same options, or a new `output`."
        )
    if session.config.resume and found is not None and session.folder.read_json("summary.json") is not None:
        log.info("resume: the run in %s had finished; it is computed again", session.folder.path)
    return mark


def from_dataset(dataset: Any, folder: Folder, name: str, *, plan: bool) -> Any:
    """Write a Ray Dataset once into shards that survive a restart; return their path, or its first rows for a plan."""
    if plan:
        return pa.concat_tables(dataset.limit(1000).iter_batches(batch_size=1000, batch_format="pyarrow"))
    if f"{name}.json" in folder.names(""):  # written when all of it is there
        log.info("the rows of the Ray Dataset are those that were written to %s", folder.location(name))
    else:
        log.info("the Ray Dataset is written to %s for the workers", folder.location(name))
        folder.drop(name)
        dataset.write_parquet(folder.location(name))
        folder.write_json(f"{name}.json", {"finished": now()})
    return folder.location(name)


def now() -> str:
    """Return the time, for manifests."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
