"""From options to loaded, scanned shards: what every task does first. Bad input ends here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.compute as pc
import torch

from diva_ray.config import ExtendConfig, FitConfig, TrainConfig
from diva_ray.data.columns import is_list
from diva_ray.data.regroup import POSITION, regroup_in_memory, regroup_on_ray
from diva_ray.data.shards import Columns, Extent, Scale
from diva_ray.data.sources import find_columns, open_data, task_of
from diva_ray.data.split import split
from diva_ray.data.table import Table, family, open_parquet
from diva_ray.engine.context import Setup
from diva_ray.engine.scan import Scan, scan
from diva_ray.errors import InputError
from diva_ray.tasks import plan as planning
from diva_ray.tasks.derived import EXACT_ROWS, SIGN_VECTORS
from diva_ray.tasks.folder import Folder, stored
from diva_ray.tasks.options import choose_loss
from diva_ray.tasks.runner import Engine, Runner

log = logging.getLogger("diva_ray")
APART = {"held_out": ("held_out", "test"), "pool": ("pool", "test")}  # which roles of a table mark its shards so


@dataclass
class Session:
    """An opened run: where it is, what it holds, and the engine that holds it."""

    config: FitConfig
    folder: Folder
    tables: list[Table]
    columns: Columns
    show: str | None
    task: str
    loss: str | Callable
    plan: planning.Plan
    runner: Runner
    scan: Scan
    setup: Setup
    original: Table | None = None  # the table as given, when rows were brought together by group
    started: str = ""
    mark: dict[str, Any] = field(default_factory=dict)  # data and options, which a resumed run must share

    @property
    def engine(self) -> Engine:
        """The engine that holds the shards."""
        return self.runner.engine

    def scored(self) -> list[Extent]:
        """Return the shards whose rows are scored: all but those of a separate validation table."""
        return [extent for extent in self.engine.extents if not (extent.held_out or extent.pool)]


def make_plan(config: FitConfig, data: Any, loss: Callable | None, pool: Any = None) -> tuple[planning.Plan, Opened]:
    """Return the plan of a run and what it found; nothing is started or written."""
    opened = open_tables(config, data, loss, pool)
    table = opened.tables[0]
    widths = planning.band_widths(table, opened.columns)
    p = sum(width for width, _ in widths) + int(config.intercept)
    outputs = _outputs_at_sight(table, opened.columns, opened.task)
    rows = sum(t.rows for t, role in zip(opened.tables, opened.roles, strict=True) if role not in APART["pool"])
    need = planning.resident_bytes(rows, widths, outputs)
    copies = 1 if rows <= EXACT_ROWS else 1 + SIGN_VECTORS
    state = planning.state_bytes(p, outputs, copies)
    kind, why = planning.choose_kind(config.cluster, need + state, dataset=False)
    threads = config.cluster.threads or (os.cpu_count() or 1 if kind == "inline" else 1)
    shards = len(split(table, replace(opened.columns, group=None)))
    asked = config.cluster.workers or (os.cpu_count() or 1) // threads
    workers = 1 if kind == "inline" else max(1, min(asked, shards))
    double = config.precision == "float64"
    operations = 4.0 * rows * p * p + (2.0 * rows * p * p if config.ridge == "auto" else 0) + 16.0 * rows * p * outputs
    operations += 2.0 * (copies - 1) * rows * p * p if copies > 1 else 2.0 * rows * rows * (p + outputs)
    rate = planning.product_rate(threads) * (0.5 if double else 1.0) * 0.7 * workers
    passes = ["load", "scan", "fit", *(["ridge"] if config.ridge == "auto" else []), "leave-out", "score", "verdicts"]
    notes = []
    if isinstance(config, TrainConfig):
        passes = [name for name in passes if name not in ("leave-out", "score", "verdicts")] + ["train"]
        notes.append("the time is that of the closed form: training logs its own rate and time left")
    elif copies > 1:
        notes.append(f"standard errors are estimated from {SIGN_VECTORS} sign vectors: more than {EXACT_ROWS:,} rows")
    if planning.blas_environment():
        notes.append(
            "OpenBLAS takes this AVX-512 processor for an older one: OPENBLAS_CORETYPE=SkylakeX doubles its rate"
        )
    if table.memory is not None and kind != "inline":
        notes.append(f"rows in memory are written to {config.output}/table for the workers first")
    plan = planning.Plan(
        table.name, rows, p - int(config.intercept), outputs, kind, why, workers, threads, shards,
        rows * sum(w * s for w, s in widths), -(-need // workers) + state, state, passes, operations / rate, notes,
    )  # fmt: skip
    return plan, opened


@dataclass
class Opened:
    """Tables and columns, checked against their schemas."""

    tables: list[Table]
    columns: Columns
    show: str | None
    task: str
    loss: str | Callable
    roles: list[str]  # of every table: train, held_out, pool, test


def open_tables(config: FitConfig, data: Any, loss: Callable | None, pool: Any = None) -> Opened:
    """Return the tables of a run with their columns; only footers are read."""
    table = open_data(
        data if data is not None else config.data.path, config.data.builtin, config.data.noise, config.seed
    )
    columns, show = find_columns(table.schema, config.data, builtin=data is None and config.data.path is None)
    task = task_of(table.schema, config.data.label, config.task)
    tables, roles = [table], ["train"]
    if config.validation.path:
        tables, roles = [*tables, open_parquet(config.validation.path, "validation.path")], [*roles, "held_out"]
    if isinstance(config, ExtendConfig):
        found = open_data(config.pool.path if pool is None else pool, None, 0.0, 0, "pool.path")
        tables, roles = [*tables, found], [*roles, "pool"]
    if isinstance(config, TrainConfig):
        found = open_data(config.test.path if pool is None else pool, None, 0.0, 0, "test.path")
        tables, roles = [*tables, found], [*roles, "test"]
    for other, role in zip(tables[1:], roles[1:], strict=True):
        check_columns(table, other, columns, task, unweighted=role == "test")
    return Opened(tables, columns, show, task, choose_loss(config, task, loss), roles)


def check_columns(table: Table, other: Table, columns: Columns, task: str, *, unweighted: bool = False) -> None:
    """Raise unless a validation, pool or test table has the columns of the table, of the same kinds."""
    idle = [columns.id, columns.truth, columns.validation_weight]
    if unweighted:
        idle += [columns.weight, columns.group, columns.source]
    missing = [name for name in columns.names() if name not in other.schema.names and name not in idle]
    if missing:
        raise InputError(
            f"{other.option}: the table must have the same columns, got no `{missing[0]}` at {other.name}. Fix the "
            f"table or `{other.option}`."
        )
    kinds = [family(t.schema.field(columns.label).type) for t in (table, other)]
    if task in ("classification", "multilabel") and kinds[0] != kinds[1]:
        raise InputError(
            f"{other.option}: column `{columns.label}` must hold {kinds[0]} as in the table, got {kinds[1]} at "
            f"{other.name}. Fix the table or `{other.option}`."
        )


def _outputs_at_sight(table: Table, columns: Columns, task: str) -> int:
    """Return the number of outputs as the first rows show it (classes may be more)."""
    label = table.reader().read(0, min(table.rows, 65_536), [columns.label])[columns.label].combine_chunks()
    if task in ("classification", "multilabel"):
        return max(1, len(pc.unique(label.flatten() if is_list(label.type) else label)))
    return 1 if task == "regression" else max(1, len(label[0].as_py() or [0]))


def open_session(config: FitConfig, plan: planning.Plan, opened: Opened, folder: Folder, *, quiet: bool) -> Session:
    """Return a session with every shard loaded, scanned and checked."""
    planning.check_memory(plan, config.cluster.memory)
    planning.check_workers(plan, config.cluster)
    tables, roles, columns = list(opened.tables), opened.roles, opened.columns
    if plan.kind != "inline":
        from diva_ray.engine.connect import connect

        connect(plan.kind)
        tables = [stored(table, folder, f"table-{k}" if k else "table") for k, table in enumerate(tables)]
    runner = start(config, plan, tables, roles, columns, quiet)
    original = None
    try:
        found = look(runner, roles, columns, opened.task)
        if columns.group and len(runner.engine.extents) > 1 and runner.engine.duplicate("group_keys") is not None:
            if {"held_out", "pool"} & set(roles):
                raise InputError(
                    "data.group: groups must lie together when there is a second table, got scattered ones. Sort the "
                    "table by its groups."
                )
            runner.engine.close()
            log.info("groups lie scattered: their rows are brought together first")
            inline, original = plan.kind == "inline", tables[0]
            tables[0] = regroup_in_memory(tables[0], columns) if inline else regroup_on_ray(tables[0], columns, folder)
            columns = replace(columns, position=POSITION)
            runner = start(config, plan, tables, roles, columns, quiet)
            found = look(runner, roles, columns, opened.task)
        setup = make_setup(config, opened, found)
        check_scan(runner, columns, setup, found)
    except BaseException:
        runner.engine.close()
        raise
    return Session(
        config, folder, tables, columns, opened.show, opened.task, opened.loss, plan, runner, found, setup, original
    )


def start(
    config: FitConfig, plan: planning.Plan, tables: list[Table], roles: list[str], columns: Columns, quiet: bool
) -> Runner:
    """Return a runner whose engine is loading."""
    extents: list[Extent] = []
    for k, (table, role) in enumerate(zip(tables, roles, strict=True)):
        apart = {name: role in those for name, those in APART.items()}
        found = columns.found_in(table.schema.names) if role == "test" else columns
        extents += split(table, found, first=len(extents), which=k, **apart)
    if plan.kind == "inline":
        from diva_ray.engine.inline import Inline

        return Runner(Inline(tables, columns, extents, config.cluster.threads), quiet)
    from diva_ray.engine.cluster import Cluster

    threads = config.cluster.threads or 1
    environment = {
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        **(planning.blas_environment() if plan.kind == "local" else {}),
    }
    return Runner(
        Cluster(
            tables, columns, extents, workers=config.cluster.workers, threads=threads,
            gpus_per_worker=config.cluster.gpus_per_worker, environment=environment,
            start_timeout=config.cluster.start_timeout, pass_timeout=config.cluster.pass_timeout,
        ),
        quiet,
    )  # fmt: skip


def look(runner: Runner, roles: list[str], columns: Columns, task: str) -> Scan:
    """Load and scan every shard; those of a pool are left for its task."""
    numbers = task in ("regression", "vector")
    runner.engine.tell(features=columns.features, label=columns.label, numbers=numbers, held_out="held_out" in roles)
    runner.load()
    return runner.run(scan, "scan")


def check_scan(runner: Runner, columns: Columns, setup: Setup, found: Scan) -> None:
    """Raise for what only all rows together can tell."""
    counts = found.counts
    for name, width in zip(columns.features, found.widths, strict=True):
        if not width:
            raise InputError(
                f"data.features: some row must have the band `{name}`, got null in every row. Change `data.features`."
            )
    if found.offset_width not in (0, setup.outputs):
        raise InputError(
            f"data.offset: column `{columns.offset}` must hold {setup.outputs} numbers, one for each output, got "
            f"{found.offset_width} at {found.place}. Change `data.offset`."
        )
    if columns.group and counts["groups"] < 2:
        raise InputError(
            f"data.group: there must be at least two groups, got one in `{columns.group}`. Change `data.group`."
        )
    if counts["positive"] == 0:
        raise InputError("data.weight: some weight must be > 0, got all zero. Fix the table or `data.weight`.")
    if counts["heard"] == 0:
        raise InputError(
            "data.validation_weight: some validation weight must be > 0, got all zero. Fix `data.validation_weight`."
        )
    if setup.task == "classification" and found.labels is not None and len(found.labels) < 2:
        raise InputError(
            f"data.label: there must be at least two classes, got only {found.labels[0].as_py()!r} in "
            f"`{columns.label}`. "
            "Change `data.label`, or use task=regression for numbers."
        )
    check_ids(runner, columns)


def check_ids(runner: Runner, columns: Columns) -> None:
    """Raise if an id occurs twice, in one table or in two."""
    if columns.id is not None:
        key = runner.engine.duplicate("keys")
        if key is not None:
            everywhere = runner.engine.each(_places(key), runner.engine.extents, int, False)
            rows = [place for places in everywhere for place in places]
            raise InputError(
                f"data.id: ids must be unique, got {rows[0][0]!r} twice at "
                f"{' and '.join(place for _, place in rows[:2])}. "
                "Fix the table, choose another `data.id`, or use row positions (`data.id=none`)."
            )


def _places(key: int) -> Callable:
    from functools import partial

    from diva_ray.engine.scan import places_of_key

    return partial(places_of_key, key)


def make_setup(config: FitConfig, opened: Opened, found: Scan) -> Setup:
    """Return the setup of the passes: how bands are scaled, what the targets are, which precision."""
    means, scales = [], []
    for width, rows, total, square in zip(found.widths, found.rows, found.sums, found.squares, strict=True):
        mean, scale = torch.zeros(width, dtype=torch.float64), 1.0
        if config.standardize == "auto" and rows:
            mean = total / rows
            spread = square / rows - float(mean @ mean)
            scale = spread**-0.5 if spread > 1e-12 * (square / rows) else 1.0  # a constant band stays at 0
        means.append(mean)
        scales.append(scale)
    classes = found.labels
    outputs = len(classes) if classes is not None else found.target_width
    center = found.target[1:-1] / found.target[0] if opened.loss == "cosine" else None
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    scale = Scale(tuple(means), tuple(scales), config.intercept)
    return Setup(
        opened.task, scale, classes, outputs, opened.loss, center, opened.columns.label, dtype,
        config.block_rows, config.seed, sources=found.sources,
    )  # fmt: skip
