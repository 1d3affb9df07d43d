"""How every run of a task begins: options and folder checked, a plan made, shards loaded."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from diva_ray.config import FitConfig, ScoreConfig, TrainConfig, TuneConfig, ValidationConfig
from diva_ray.data.folder import Folder
from diva_ray.data.lock import check_free, is_kept, keep_others_out, let_others_in
from diva_ray.data.sources import is_ray_dataset
from diva_ray.data.store import OURS, TOKEN, place_of
from diva_ray.data.table import Table
from diva_ray.errors import InputError, first_line
from diva_ray.tasks.setup.datasets import PATHS, from_dataset
from diva_ray.tasks.setup.done import Done
from diva_ray.tasks.setup.finish import COPIES, clear, found_whole, now
from diva_ray.tasks.setup.kept import expect_sums
from diva_ray.tasks.setup.make_plan import make_plan
from diva_ray.tasks.setup.manifest import fingerprint
from diva_ray.tasks.setup.opened import Opened
from diva_ray.tasks.setup.options import check_options, chosen_shares
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.saved_config import differing_options, refuse_differing, with_places
from diva_ray.tasks.setup.session import Session, join, open_session

log = logging.getLogger("diva_ray")
MAKING = {"data.builtin", "data.noise", "seed"}  # of which the rows of a built-in table are made
FORMAT = 21  # of what an unfinished run leaves: another one's sums and rows are not those of this code
P = ParamSpec("P")
R = TypeVar("R")


class Finished(Exception):  # noqa: N818 (no error)
    """Ends a task of which only the plan was asked, or whose run, which was to be resumed, had finished: `tidy` returns
    what there is."""

    def __init__(self, result: Result | Plan) -> None:
        super().__init__()
        self.result = result


def begin(
    config: FitConfig,
    data: Any,
    loss: Callable | None,
    *,
    quiet: bool,
    pool: Any = None,
    folder: Folder | None = None,
    beside: dict[str, Table] | None = None,
) -> Session:
    """Return a session with every shard (but a pool's) loaded and checked.

    `pool` are rows of a pool or of a test table; `folder` is the output, where it is open already; `beside` are tables
    that options name, which a resumed run must find as they were.

    Raises:
        Finished: with its plan, if only that is asked for (`config.plan`); with its result, if the run to be resumed
            had: no cluster is asked then.
    """
    started = now()
    check_options(config)
    folder = folder or open_folder(config)
    if is_ray_dataset(data):
        data = from_dataset(data, folder, "table", plan=config.plan)
        config.data.path = None if config.plan else data
    if is_ray_dataset(pool):
        pool = from_dataset(pool, folder, "pool", plan=config.plan)
    if is_ray_dataset(config.validation.rows):
        rows = from_dataset(config.validation.rows, folder, "validation", plan=config.plan)
        config = replace(config, validation=ValidationConfig())  # the caller's own stays as it is
        config.validation.rows = rows
    plan, opened = make_plan(config, data, loss, pool)
    cut_bits, kept = expect_sums(config, plan, opened)
    plan = plan.settle(plan.workers, plan.budget, config.cluster.cache)
    if config.plan:
        raise Finished(join(plan, config) if plan.kind == "ray" else plan)
    # Training and trials resume by files of their own; of a function nothing tells whether it is the same one.
    by_steps = loss is None and not isinstance(config, TrainConfig | TuneConfig)
    finished = found_whole(folder, on_ray=plan.kind != "inline") if by_steps and config.resume else None
    mark = _mark(config, opened, folder, beside or {}, finished=finished is not None)
    if finished and not _lacks_copy(config, finished.summary):
        log.info("resume: the run in %s had finished: nothing is left to do", folder.path)
        clear(folder)
        raise Finished(finished)
    session = open_session(config, plan, opened, folder, quiet=quiet, cut_bits=cut_bits, kept=kept)
    session.started, session.mark, session.finished = started, mark, finished
    if by_steps:
        session.runner.done = Done.open(folder, mark, resume=config.resume)
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
        check_free(folder)
        folder.open_new(resume=config.resume)
        keep_others_out(folder)
        folder.open_new(resume=config.resume)  # as it is now that no one else can write there
    return folder


def tidy(run: Callable[P, R]) -> Callable[P, R]:
    """Return the run of a task, which takes its config first, so that a mistake leaves nothing behind that stands in
    the way of the next try: neither sums of the fit nor copies of its rows in a folder that was new, and no empty
    folder that was not there. Then other runs may write there."""

    @wraps(run)
    def tidied(*args: P.args, **options: P.kwargs) -> R:
        config: Any = args[0]
        named = _local(config.output)
        new = not named or not os.path.isdir(named) or set(os.listdir(named)) <= OURS
        absent = _absent(named)
        try:
            return run(*args, **options)
        except Finished as finished:
            return cast(R, finished.result)
        except OSError as error:
            # A time-out, or a connection to Ray that is lost, is an OSError too, and no storage.
            places = {"output": str(config.output or ""), "data.path": str(config.data.path or "")}
            far = [name for name, place in places.items() if "://" in place]
            if not far or isinstance(error, (TimeoutError, ConnectionError)):
                raise
            raise InputError(
                f"{' or '.join(far)}: storage must stay within reach, got {first_line(error)} at "
                f"{' or '.join(places[name] for name in far)}. Run it again, with `resume=true` if it had begun."
            ) from error
        except BaseException as error:
            made = _local(config.output)
            if not (made and new and is_kept(made)):  # nothing was made, or it is somewhere else, or another run's
                raise
            if isinstance(error, InputError) and set(os.listdir(made)) <= {*COPIES, *OURS}:
                for name in COPIES:
                    Folder(made).drop(name)
                    Folder(made).remove(name)
                Folder(made).remove(TOKEN)
            let_others_in(made)
            for folder in absent if named else [made]:
                try:
                    os.rmdir(folder)
                except OSError:  # it holds something
                    break
            raise
        finally:
            let_others_in(place_of(str(config.output or "")))

    return tidied


def _local(output: str) -> str:
    """Return the path of an output folder on this machine, '' for none and for a URI."""
    named = str(output or "")  # a pathlib.Path, too
    return place_of(named) if named and "://" not in named else ""


def _absent(folder: str) -> list[str]:
    """Return a folder and those above it that are not there, the innermost first."""
    found = []
    while folder and not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def _lacks_copy(config: FitConfig, summary: dict[str, Any]) -> bool:
    """Return whether a finished run is asked for a curated copy that it has not made."""
    return isinstance(config, ScoreConfig) and config.curate != "none" and "curated" not in summary


def _mark(
    config: FitConfig, opened: Opened, folder: Folder, beside: dict[str, Table], *, finished: bool
) -> dict[str, Any]:
    """Return what tells this run from others; raise if the folder to resume holds another one."""
    options = with_places(asdict(config))
    for name in ("output", "resume", "plan", "cluster"):
        options.pop(name)
    features = opened.columns.features
    shares = chosen_shares(config, features)  # themselves, not where they are read
    options["shares"] = shares and dict(zip(features, shares, strict=True))
    mark = {"data": [fingerprint(table) for table in opened.tables], "config": options, "format": FORMAT}
    mark |= {"beside": {name: fingerprint(table) for name, table in beside.items()}} if beside else {}
    mark = json.loads(json.dumps(mark, default=str))
    found = folder.read_object("state.json")
    if config.resume and found is None:
        log.info("resume: no pass was kept in %s yet: the run begins anew", folder.path)
    if config.resume and found is not None and found.get("format") != FORMAT:
        raise InputError(
            f"resume: the run in {folder.path} must have been begun by this version of diva_ray, got another one's. "
            "Use a new `output`."
        )
    copied = found["config"].get("curate") if found is not None and "config" in found else None
    now_asked = config.curate if isinstance(config, ScoreConfig) and finished else copied
    if found and copied and isinstance(config, ScoreConfig) and "none" in (copied, now_asked):
        found["config"]["curate"] = config.curate  # a copy may be asked for later, and stays: no figure needs it
    if config.resume and found is not None and found["config"].keys() != mark["config"].keys():
        raise InputError(
            f"resume: the run in {folder.path} must be one of this job, got another job's. Use its `output`, or a new "
            "one."
        )
    if config.resume and found is not None and found != mark:
        differing = differing_options(found["config"], mark["config"])
        changed = [name for name, table in mark.get("beside", {}).items() if found.get("beside", {}).get(name) != table]
        pairs = list(zip(opened.roles, mark["data"], found["data"], strict=False))
        changed += [PATHS[role] for role, now, then in pairs if now != then]
        if not MAKING.isdisjoint(differing) or len(mark["data"]) != len(found["data"]):
            changed = []  # which the options explain
        refuse_differing(folder, differing, changed or ["data.path"] * (not differing))
    return mark
