"""From options to loaded, scanned shards: what every task does first. Bad input ends here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from diva_ray.config import AggregateConfig, FitConfig, ScoreConfig
from diva_ray.data.folder import Folder
from diva_ray.data.in_memory import stored
from diva_ray.data.raw.classes import class_names
from diva_ray.data.regroup import POSITION, regroup_in_memory
from diva_ray.data.shards import Columns, Extent
from diva_ray.data.split import split
from diva_ray.data.table import Table, open_parquet
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels.identity import LOOKED
from diva_ray.engine.kernels.scan import Scan, scan
from diva_ray.engine.reduce import Rows
from diva_ray.engine.setup import Setup
from diva_ray.engine.shelf import Keeping
from diva_ray.errors import InputError
from diva_ray.tasks.setup import plan as planning
from diva_ray.tasks.setup.alike import alike_in_words, alike_of, look_for_copies, note_shared
from diva_ray.tasks.setup.checks import check_columns_vary, check_scan
from diva_ray.tasks.setup.kept import Kept
from diva_ray.tasks.setup.make_plan import count_again
from diva_ray.tasks.setup.manifest import fingerprint
from diva_ray.tasks.setup.opened import APART, Opened
from diva_ray.tasks.setup.remarks import (
    tell_hot,
    tell_missing,
    tell_one_direction,
    tell_placeholder,
    tell_units,
)
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.runner import Engine, Runner
from diva_ray.tasks.setup.settle import make_setup
from diva_ray.threads import blas_environment, of_worker

log = logging.getLogger("diva_ray")
COPIED = 2  # copies of the features while rows are sorted in memory: as read, and in their new order


@dataclass
class Session:
    """An opened run: where it is, what it holds, and the engine that holds it."""

    config: FitConfig
    folder: Folder
    tables: list[Table]
    roles: list[str]  # of every table: train, held_out, pool, test
    columns: Columns
    show: tuple[str, ...]
    task: str
    loss: str | Callable
    plan: planning.Plan
    runner: Runner
    scan: Scan
    setup: Setup
    original: Table | None = None  # the table as given, when rows were brought together by group
    started: str = ""
    mark: dict[str, Any] = field(default_factory=dict)  # data and options, which a resumed run must share
    cut_bits: int | None = None  # of segments by content, where fit sums are kept or taken over
    kept: Kept | None = None  # the sums of the run that this one updates
    shared: dict[str, dict[str, int]] = field(default_factory=dict)  # rows of other tables, and those also in this one
    validated: Rows | None = None  # hashes of the validation table's rows
    finished: Result | None = None  # what came of the run that is resumed, if only a copy is left to be made

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    @property
    def engine(self) -> Engine:
        """The engine that holds the shards."""
        return self.runner.engine

    @property
    def given(self) -> Table:
        """The table as it was given, also where its rows were brought together by group."""
        return self.original or self.tables[0]

    @property
    def beside_table(self) -> Table:
        """The pool or test table, where there is one: it is the last."""
        return self.tables[-1]

    @property
    def validation(self) -> str:
        """What validates, in words."""
        return "separate table" if any(e.held_out and not e.pool for e in self.engine.extents) else "leave-one-out"

    @cached_property
    def names(self) -> dict[str, str]:
        """What to show for a class, by itself, where the table keeps names beside whole numbers (ClassLabel)."""
        named = class_names(self.given.schema).get(self.columns.label, [])
        return {str(code): f"{name} ({code})" for code, name in enumerate(map(str, named)) if name != str(code)}

    def named(self, label: Any) -> Any:
        """Return a label, or a list of classes, as a page shows it."""
        return [self.named(one) for one in label] if isinstance(label, list) else self.names.get(str(label), label)

    def scored(self) -> list[Extent]:
        """Return the shards whose rows are scored: all but those of a separate validation table."""
        return [extent for extent in self.engine.extents if not (extent.held_out or extent.pool)]

    def beside(self) -> list[Extent]:
        """Return the shards of a pool or a test table."""
        return [extent for extent in self.engine.extents if extent.pool]


def open_session(
    config: FitConfig,
    plan: planning.Plan,
    opened: Opened,
    folder: Folder,
    *,
    quiet: bool,
    cut_bits: int | None = None,
    kept: Kept | None = None,
) -> Session:
    """Return a session with every shard loaded, scanned and checked."""
    planning.check_workers(plan.kind, config.cluster.workers or 1, plan.threads)
    tables, roles, columns = list(opened.tables), opened.roles, opened.columns
    if plan.kind != "inline":
        plan = join(plan, config)
        folder.share()
        tables = [stored(table, folder, f"table-{k}" if k else "table") for k, table in enumerate(tables)]
    for line in plan.lines() if not quiet else ():
        log.log(logging.WARNING if line.startswith(planning.WARNING) else logging.INFO, "%s", line)
    runner = start(config, plan, tables, roles, columns, folder, quiet)
    original = None
    try:
        found = look(runner, roles, columns, opened.task, cut_bits)
        if columns.group and len(runner.engine.extents) > 1 and runner.engine.duplicate("group_keys") is not None:
            original, began = tables[0], time.perf_counter()
            check_may_gather(plan, roles, original, columns)
            runner.engine.close()
            log.info("groups lie scattered: their rows are brought together first")
            tables[0] = (regroup_in_memory if plan.kind == "inline" else partial(_grouped, folder))(original, columns)
            columns = replace(columns, position=POSITION)
            runner.add_seconds("group", time.perf_counter() - began)
            runner = replace(start(config, plan, tables, roles, columns, folder, quiet), seconds=runner.seconds)
            found = look(runner, roles, columns, opened.task, cut_bits)
        setup = make_setup(config, opened, found)
        plan = count_again(plan, config, opened, setup.outputs, setup.n_sources)
        check_scan(runner, columns, setup, found, standardized=config.standardize == "auto")
        if config.ridge == "auto" and config.intercept:
            check_columns_vary(found)
        tell_missing(columns, found)
        tell_placeholder(columns, found)
        if config.standardize == "auto":
            tell_units(columns, found)
        if opened.task == "vector" and config.task == "auto":
            tell_hot(columns, found.target)
        if opened.task == "vector" and opened.loss == "cosine":
            tell_one_direction(columns, found.target)
        session = Session(
            config, folder, tables, roles, columns, opened.show, opened.task, opened.loss, plan, runner, found, setup,
            original, cut_bits=cut_bits, kept=kept,
        )  # fmt: skip
        tell_copies(session)
    except BaseException:
        runner.engine.close()
        raise
    return session


def tell_copies(session: Session) -> None:
    """Log that rows have the features of other rows, of the table or of that which validates, where they are many."""
    found, said = session.scan, isinstance(session.config, ScoreConfig | AggregateConfig) and session.task != "pairs"
    held = [extent for extent in session.engine.extents if extent.held_out and not extent.pool]
    if len(session.tables) > 1:
        look_for_copies(session, held, quiet=said)
    if held:
        return
    alike = alike_in_words(alike_of(found), int(found.counts["rows"]))
    if alike and not said:  # those tell it with their verdicts
        log.warning("%s", alike)


def join(plan: planning.Plan, config: FitConfig) -> planning.Plan:
    """Join or start Ray; return the plan as the cluster that is there has it."""
    from diva_ray.engine.autoscale import check_resources
    from diva_ray.engine.connect import connect, memory_per_worker

    connect(plan.kind)
    cluster, budget = config.cluster, plan.budget
    useful = planning.useful_workers(plan)
    workers = check_resources(cluster.workers, plan.threads, cluster.gpus_per_worker, plan.shards, useful)
    if budget is None:
        budget = memory_per_worker(plan.threads)
    return plan.settle(workers, budget, cluster.cache)


def check_may_gather(plan: planning.Plan, roles: list[str], table: Table, columns: Columns) -> None:
    """Raise where the rows of scattered groups cannot be brought together: in two tables, or without the memory."""
    if {"held_out", "pool"} & set(roles):
        raise InputError(
            "data.group: every group must lie together in one table when there are two, got one that is "
            "scattered, or split between both. Sort the tables by it, or move its rows into one."
        )
    sizes = plan.sizes
    need = sizes.need("memory", 1) + COPIED * sizes.rows * sizes.features
    if plan.kind == "inline" and (plan.keeping.place != "memory" or need > (plan.budget or need)):
        raise InputError(
            f"data.group: rows of a group must lie together where memory has no room to sort them "
            f"({need / 2**30:.3g} GiB), got groups scattered over {table.name}. Sort the table by `{columns.group}`, "
            "use `cluster=local` (Ray Data sorts it), or raise `cluster.memory`."
        )


def _grouped(folder: Folder, table: Table, columns: Columns) -> Table:
    """Return the table sorted by group, in files written once: a resumed run finds those it began with."""
    from diva_ray.engine.connect import check_driver
    from diva_ray.engine.regroup_on_ray import regroup_on_ray

    told = {"of": fingerprint(table), "by": columns.group, "columns": columns.names()}
    if folder.read_json("grouped.json") != told:
        check_driver("bringing scattered groups together")
        folder.drop("grouped")
        regroup_on_ray(table, columns, folder)
        folder.write_json("grouped.json", told)
    return open_parquet(folder.location("grouped"))


def start(
    config: FitConfig,
    plan: planning.Plan,
    tables: list[Table],
    roles: list[str],
    columns: Columns,
    folder: Folder,
    quiet: bool,
) -> Runner:
    """Return a runner whose engine is loading."""
    extents: list[Extent] = []
    for k, (table, role) in enumerate(zip(tables, roles, strict=True)):
        error_kind = {name: role in those for name, those in APART.items()}
        found = columns.found_in(table.schema.names) if role == "test" else columns
        extents += split(table, found, first=len(extents), which=k, **error_kind)
    if plan.kind == "inline":
        threads = config.cluster.threads or (1 if plan.threads == 1 else None)  # None: as the process has them
        return Runner(Inline(tables, columns, extents, threads, plan.keeping), quiet)
    from diva_ray.engine.cluster import Cluster
    from diva_ray.engine.connect import memory_per_worker

    def keep(workers: int) -> Keeping:
        budget = memory_per_worker(plan.threads) if plan.budget is None else plan.budget
        return plan.settle(workers, budget, config.cluster.cache).keeping

    threads = config.cluster.threads or 1
    environment = of_worker(threads) | (blas_environment() if plan.kind == "local" else {})
    return Runner(
        Cluster(
            tables, columns, extents, workers=config.cluster.workers, threads=threads,
            gpus_per_worker=config.cluster.gpus_per_worker, keep=keep, environment=environment,
            start_timeout=config.cluster.start_timeout, pass_timeout=config.cluster.pass_timeout,
            useful=planning.useful_workers(plan), output=folder,
        ),
        quiet,
    )  # fmt: skip


def look(runner: Runner, roles: list[str], columns: Columns, task: str, cut_bits: int | None = None) -> Scan:
    """Load and scan every shard; those of a pool are left for its task."""
    numbers = task in ("regression", "vector")
    runner.engine.tell(features=columns.features, label=columns.label, numbers=numbers, held_out="held_out" in roles)
    rows = sum(extent.rows for extent in runner.engine.extents if not (extent.held_out or extent.pool))
    runner.engine.tell(validation_source=columns.validation_source, pairs=task == "pairs", cut_bits=cut_bits)
    runner.engine.tell(looked=min(1.0, LOOKED / max(rows, 1)))
    runner.load()
    return runner.run(scan, "scan")


def look_beside(session: Session, role: str) -> Scan:
    """Scan the `pool` or the `test` table, check it against the table, and tell of rows that both have."""
    extents = session.beside()
    found: Scan = session.runner.run(scan, f"scan {role}", extents, again=role == "pool")
    place = "the pool" if role == "pool" else "the test table"
    replace(session.scan, place="the table").check_widths(replace(found, place=place))
    note_shared(session, role, sum(extent.rows for extent in extents), found.counts)
    return found


def error_kind(validation: str) -> str:
    """Return the word before `error`, by whether rows of the table are left out or another table validates."""
    return "left-out" if validation == "leave-one-out" else "validation"
