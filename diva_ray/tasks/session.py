"""From options to loaded, scanned shards: what every task does first. Bad input ends here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.config import FitConfig
from diva_ray.core.subspace import projections
from diva_ray.data.regroup import POSITION, regroup_in_memory, regroup_on_ray
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Columns, Extent
from diva_ray.data.split import split
from diva_ray.data.table import Table, open_parquet
from diva_ray.engine.scan import Scan, scan
from diva_ray.engine.setup import FEW_OUTPUTS, Setup, keeps_outputs, rows_of_block
from diva_ray.engine.shelf import Keeping
from diva_ray.errors import InputError
from diva_ray.tasks import plan as planning
from diva_ray.tasks.folder import Folder, stored
from diva_ray.tasks.kept import Kept
from diva_ray.tasks.manifest import fingerprint
from diva_ray.tasks.opened import APART, Opened
from diva_ray.tasks.options import chosen_shares
from diva_ray.tasks.runner import Engine, Runner
from diva_ray.threads import of_worker

log = logging.getLogger("diva_ray")

MOST_DEVIATIONS = 30.0  # of number targets between 0 and their mean, beyond which products are float64
LEAST_SPREAD = 1e-6  # standard deviation of number targets below which, or above its inverse, they are, too
TOO_SPREAD = 1e15  # beyond it, or below its inverse, derivatives (of squares) leave float32, in which they are written


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

    @property
    def engine(self) -> Engine:
        """The engine that holds the shards."""
        return self.runner.engine

    @property
    def validation(self) -> str:
        """What validates, in words."""
        return "separate table" if any(e.held_out and not e.pool for e in self.engine.extents) else "leave-one-out"

    def scored(self) -> list[Extent]:
        """Return the shards whose rows are scored: all but those of a separate validation table."""
        return [extent for extent in self.engine.extents if not (extent.held_out or extent.pool)]


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
    planning.check_workers(plan, config.cluster)
    tables, roles, columns = list(opened.tables), opened.roles, opened.columns
    if plan.kind != "inline":
        plan = join(plan, config)
        tables = [stored(table, folder, f"table-{k}" if k else "table") for k, table in enumerate(tables)]
    for line in plan.lines() if not quiet else ():
        log.info("%s", line)
    runner = start(config, plan, tables, roles, columns, quiet)
    original = None
    try:
        found = look(runner, roles, columns, opened.task, cut_bits)
        if columns.group and len(runner.engine.extents) > 1 and runner.engine.duplicate("group_keys") is not None:
            if {"held_out", "pool"} & set(roles):
                raise InputError(
                    "data.group: every group must lie together in one table when there are two, got one that is "
                    "scattered, or split between training and validation. Sort the table, or move the group."
                )
            inline, original = plan.kind == "inline", tables[0]
            if inline and plan.keeping.place != "memory":  # sorting them here would take all of them into it
                raise InputError(
                    f"data.group: rows of a group must lie together where rows do not fit memory, got groups scattered "
                    f"over {original.name}. Sort the table by `{columns.group}`, use `cluster=local` (Ray Data sorts "
                    "it), or raise `cluster.memory`."
                )
            runner.engine.close()
            log.info("groups lie scattered: their rows are brought together first")
            tables[0] = regroup_in_memory(tables[0], columns) if inline else _grouped(tables[0], columns, folder)
            columns = replace(columns, position=POSITION)
            runner = start(config, plan, tables, roles, columns, quiet)
            found = look(runner, roles, columns, opened.task, cut_bits)
        setup = make_setup(config, opened, found)
        check_scan(runner, columns, setup, found)
    except BaseException:
        runner.engine.close()
        raise
    return Session(
        config, folder, tables, roles, columns, opened.show, opened.task, opened.loss, plan, runner, found, setup,
        original, cut_bits=cut_bits, kept=kept,
    )  # fmt: skip


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


def _grouped(table: Table, columns: Columns, folder: Folder) -> Table:
    """Return the table sorted by group, in files written once: a resumed run finds those it began with."""
    told = {"of": fingerprint(table), "by": columns.group, "columns": columns.names()}
    if folder.read_json("grouped.json") != told:
        folder.drop("grouped")
        regroup_on_ray(table, columns, folder)
        folder.write_json("grouped.json", told)
    return open_parquet(folder.location("grouped"))


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

        return Runner(Inline(tables, columns, extents, config.cluster.threads, plan.keeping), quiet)
    from diva_ray.engine.cluster import Cluster
    from diva_ray.engine.connect import memory_per_worker

    def keep(workers: int) -> Keeping:
        budget = memory_per_worker(plan.threads) if plan.budget is None else plan.budget
        return plan.settle(workers, budget, config.cluster.cache).keeping

    threads = config.cluster.threads or 1
    environment = of_worker(threads) | (planning.blas_environment() if plan.kind == "local" else {})
    return Runner(
        Cluster(
            tables, columns, extents, workers=config.cluster.workers, threads=threads,
            gpus_per_worker=config.cluster.gpus_per_worker, keep=keep, environment=environment,
            start_timeout=config.cluster.start_timeout, pass_timeout=config.cluster.pass_timeout,
            useful=planning.useful_workers(plan),
        ),
        quiet,
    )  # fmt: skip


def look(runner: Runner, roles: list[str], columns: Columns, task: str, cut_bits: int | None = None) -> Scan:
    """Load and scan every shard; those of a pool are left for its task."""
    numbers = task in ("regression", "vector")
    runner.engine.tell(features=columns.features, label=columns.label, numbers=numbers, held_out="held_out" in roles)
    runner.engine.tell(heard_source=columns.heard_source, pairs=task == "pairs", cut_bits=cut_bits)
    runner.load()
    return runner.run(scan, "scan")


def check_scan(runner: Runner, columns: Columns, setup: Setup, found: Scan) -> None:
    """Raise for what only all rows together can tell."""
    counts = found.counts
    for name, rows in zip(columns.features, found.rows, strict=True):
        if not rows:
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
    if counts["heard"] == 0 and columns.heard_source is not None:
        names = [] if found.sources is None else found.sources.to_pylist()
        raise InputError(
            f"identity: some row's transform must be `{columns.heard_source}`, got {', '.join(names[:10])} in "
            f"`{columns.source}`. Change `identity`, or add the originals."
        )
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
    if setup.task == "multilabel" and found.labels is not None:
        check_several(columns, found.labels.to_pylist(), int(counts["max_labels"]), int(-counts["max_less_labels"]))
    if setup.classes is None and setup.task != "pairs":
        check_spread(columns, found.target)
    check_ids(runner, columns)


def check_several(columns: Columns, classes: list, most: int, fewest: int) -> None:
    """Raise for lists that name no class at all, or that are the rows of a matrix of zeros and ones."""
    if not classes:
        raise InputError(
            f"data.label: some row must have a class, got empty lists in every row of `{columns.label}`. Change "
            "`data.label`."
        )
    if fewest == most > 1 and set(classes) <= {0, 1}:  # False and True are 0 and 1
        raise InputError(
            f"data.label: lists must name the classes of a row, got {most} zeros and ones in every row of "
            f"`{columns.label}`. Give the positions of the ones, such as [0, 2] for [1, 0, 1], or the index of the one "
            "(`y.argmax(1)`)."
        )


def check_spread(columns: Columns, target: Tensor) -> None:
    """Raise for numbers whose derivatives could not be written."""
    mean, squares = target[1:].chunk(2)
    spread, constant = float((squares.sum() / target[0]).sqrt()), 1e-12 * float(mean.norm())
    if not spread <= constant and not 1 / TOO_SPREAD <= spread <= TOO_SPREAD:
        raise InputError(
            f"data.label: numbers must have a standard deviation of {1 / TOO_SPREAD:g} to {TOO_SPREAD:g}, got "
            f"{spread:.3g} in `{columns.label}`. Scale the column, or change `data.label`."
        )


def check_bands(session: Session) -> None:
    """Raise for a band that is the same in every row."""
    scan = session.scan
    for name, rows, total, square in zip(session.columns.features, scan.rows, scan.sums, scan.squares, strict=True):
        if rows and square / rows - float(total @ total) / rows**2 <= 1e-12 * square / rows:
            raise InputError(
                f"data.features: every band must vary from row to row, got one value in all {int(rows):,} rows of "
                f"`{name}`. Fix the column, or leave it out of `data.features`."
            )


def check_ids(runner: Runner, columns: Columns, *, pool: bool = False) -> None:
    """Raise if an id occurs twice, in one table or in two."""
    if columns.id is not None:
        key = runner.engine.duplicate("keys", pool=pool)
        if key is not None:
            asked = [extent for extent in runner.engine.extents if pool or not extent.pool]
            everywhere = runner.engine.each(_places(key), asked, int, False)
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


def check_many(config: FitConfig, outputs: int, inputs: str) -> None:
    """Raise for what does not go with more classes than outputs are kept of."""
    if inputs != "full":
        raise InputError(
            f"precision: must be auto, float32 or float64 with more classes than features (and than {FEW_OUTPUTS}), "
            f"got {inputs} with {outputs:,} classes. Change `precision`."
        )
    if config.cluster.gpus_per_worker:
        raise InputError(
            f"cluster.gpus_per_worker: must be 0 with more classes than features (and than {FEW_OUTPUTS}), got "
            f"{config.cluster.gpus_per_worker:g} with {outputs:,} classes. Leave `cluster.gpus_per_worker` out."
        )


def make_setup(config: FitConfig, opened: Opened, found: Scan) -> Setup:
    """Return the setup of the passes: how bands are scaled, what the targets are, which precision."""
    classes = found.labels
    outputs = len(classes) if classes is not None else found.target_width
    outputs = sum(found.widths) if opened.task == "pairs" else outputs
    center = found.target[1:].chunk(2)[0] if opened.loss == "cosine" and opened.task == "vector" else None
    double = config.precision == "float64" or (opened.task in ("regression", "vector") and takes_double(found.target))
    dtype = torch.float64 if double else torch.float32
    scale = make_scale(config, found, opened.columns.features)
    keeps, block_rows = keeps_outputs(opened.task, outputs, scale.width), config.block_rows
    inputs = config.precision if config.precision in ("tf32", "bf16") else "full"
    if not keeps:
        check_many(config, outputs, inputs)
        block_rows = min(block_rows, rows_of_block(outputs, scale.width))
    return Setup(
        opened.task, scale, classes, outputs, opened.loss, center, opened.columns.label, dtype,
        block_rows, config.seed, sources=found.sources, keeps_outputs=keeps, inputs=inputs,
    )  # fmt: skip


def takes_double(target: Tensor) -> bool:
    """Return whether float32 cannot hold what number targets differ by, or squares of their losses.

    Their distance from 0 costs a derivative about 1e-6 of itself for every standard deviation.
    """
    mean, squares = target[1:].chunk(2)
    spread = (squares / target[0]).sqrt()
    varies = spread > 1e-12 * mean.abs()
    far = bool((varies & (mean.abs() > MOST_DEVIATIONS * spread)).any())
    found = spread[varies]
    double = far or bool(((found < LEAST_SPREAD) | (found > 1 / LEAST_SPREAD)).any())
    if double:
        log.info("numbers to predict lie far from 0, or close to each other, or wide apart: products in float64")
    return double


def make_scale(config: FitConfig, found: Scan, names: tuple[str, ...]) -> Scale:
    """Return how every band enters the fit, from the moments of one scan."""
    means, scales = [], []
    for width, rows, total, square in zip(found.widths, found.rows, found.sums, found.squares, strict=True):
        mean, scale = torch.zeros(width, dtype=torch.float64), 1.0
        if config.standardize == "auto" and rows:
            mean = total / rows
            spread = square / rows - float(mean @ mean)
            scale = spread**-0.5 if spread > 1e-12 * (square / rows) else 1.0  # a constant band stays at 0
        means.append(mean)
        scales.append(scale)
    project = projections(names, [len(mean) for mean in means], config.projection, config.seed)
    scale = Scale(tuple(means), tuple(scales), config.intercept, project=project)
    shares = chosen_shares(config, names)
    return scale if shares is None else scale.shared(shares)
