"""The plan of a run, from footers and labels at sight: passes, bytes and seconds before any row of features is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.fs
import torch

from diva_ray.config import (
    AggregateConfig,
    AugmentConfig,
    ExtendConfig,
    FitConfig,
    ReweightConfig,
    ScoreConfig,
    TrainConfig,
    TuneConfig,
)
from diva_ray.data.split import band_widths, split
from diva_ray.engine.shelf import Keeping
from diva_ray.tasks.setup import plan as planning
from diva_ray.tasks.setup.cost import Cost, cost_of
from diva_ray.tasks.setup.doubts import doubts_of_task, task_in_words
from diva_ray.tasks.setup.forms import NEAR, NEAR_BYTES, takes_dual
from diva_ray.tasks.setup.memory import PROCESS, SOURCE, SUMMED, Sizes, budget_here, check_fit, parse_bytes
from diva_ray.tasks.setup.opened import APART, Opened, open_tables
from diva_ray.tasks.setup.sight import labels_at_sight, outputs_at_sight, sources_at_sight
from diva_ray.tasks.setup.step_paths import LOWERED, SOURCES, walk_path
from diva_ray.tasks.setup.work import work_of
from diva_ray.threads import blas_environment

log = logging.getLogger("diva_ray")
TOLD = 1 << 28  # bytes that float64 products would take beyond the plan, or sources within it, from which it says so
# Operations of all passes up to which this process takes one thread: more gain a second at the most, and wait for each
# other where other programs keep the cores busy (docs/results/clusters.md). Of sizes alone, so that bits are the same
# on every day.
ONE_THREAD = 2e11
NARROW = 200  # columns and outputs up to which more threads gain nothing however many the rows, for the same reasons
MANY_FITS = (ReweightConfig, AggregateConfig, AugmentConfig)
GATHERED = 3  # copies of all rows in float64, while the space that they span is sought


def make_plan(config: FitConfig, data: Any, loss: Callable | None, pool: Any = None) -> tuple[planning.Plan, Opened]:
    """Return the plan of a run and what it found; nothing is started or written."""
    opened = open_tables(config, data, loss, pool)
    table = opened.tables[0]
    label = None if opened.task == "pairs" else labels_at_sight(table, opened.columns, opened.task)
    outputs = None if label is None else outputs_at_sight(label, opened.task)
    plan = _plan_of(config, opened, outputs, sources_at_sight(table, opened.columns.source))
    doubts = doubts_of_task(label) if label is not None and config.task == "auto" else []
    task = task_in_words(opened.task, plan.outputs, all_seen=label is None or len(label) == table.rows)
    asked, workers = config.cluster.memory, plan.workers
    budget = parse_bytes(asked) if plan.kind == "ray" else budget_here(asked, workers)
    return replace(plan, task=task, warnings=doubts).settle(workers, budget, config.cluster.cache), opened


def count_again(plan: planning.Plan, config: FitConfig, opened: Opened, outputs: int, sources: int) -> planning.Plan:
    """Return the plan with the outputs and sources that the scan has counted: of a table in the order of its classes,
    some rows show few of them.

    Raises:
        InputError: what they take does not fit a worker's memory.
    """
    seen = plan.sizes.sources
    more = [] if opened.task == "pairs" or outputs <= plan.outputs else [("classes", outputs, plan.outputs)]
    more += [("sources", sources, seen)] if sources > seen else []
    if not more:
        return plan
    shown = None if opened.task == "pairs" else plan.outputs
    again = _plan_of(config, opened, shown and max(shown, outputs), max(seen, sources))
    before = _plan_of(config, opened, shown, seen)
    kept = plan.sizes.sums - before.sizes.sums  # those that an update needs
    again = replace(again, sizes=replace(again.sizes, sums=again.sizes.sums + kept))
    need = again.sizes.need(plan.keeping.place, plan.workers) / 2**30
    log.info(
        "%s: %.3f GiB a worker, about %.1f s",
        ", ".join(f"{found:,} {what} where some rows showed {some:,}" for what, found, some in more),
        need, again.seconds / plan.workers + again.alone,
    )  # fmt: skip
    check_fit(again.sizes, plan.keeping.place, plan.workers, plan.budget)
    return replace(plan, outputs=again.outputs, sizes=again.sizes, seconds=again.seconds, alone=again.alone)


def _plan_of(config: FitConfig, opened: Opened, outputs: int | None, sources: int) -> planning.Plan:
    """Return the plan of a run on these tables with so many outputs (None: of pairs, a column each) and sources."""
    table = opened.tables[0]
    widths = band_widths(table, opened.columns)
    p = sum(min(width, config.projection or width) for width, _ in widths) + int(config.intercept)
    pairs = outputs is None
    outputs = p - int(config.intercept) if outputs is None else outputs
    rows = sum(t.rows for t, role in zip(opened.tables, opened.roles, strict=True) if role not in APART["pool"])
    bands = _spanned(config, [min(width, config.projection or width) for width, _ in widths], rows)
    q = sum(bands) + int(config.intercept)  # columns of the fits
    fits = [(q, outputs)]
    if pairs:  # either band is predicted from the other
        fits = [(a + int(config.intercept), b) for a, b in ((widths[0][0], widths[1][0]), (widths[1][0], widths[0][0]))]
    apart = [t.rows for t, role in zip(opened.tables, opened.roles, strict=True) if role == "held_out"]
    validating = sum(apart) if apart else rows  # a column of validation weights is not read yet
    costs = [_cost(config, rows, *fit, opened.task, validating, sources) for fit in fits]
    cost = _cost(config, rows, q, outputs, opened.task, validating, sources)
    extents = split(table, replace(opened.columns, group=None))
    row = sum(width * size for width, size in widths)
    fewest = min(costs, key=lambda one: one.vectors)  # both directions of pairs take as many
    results = cost.per_row() + (4 * outputs + 2 * 8 * (fewest.vectors + 1) if pairs else 0)
    distant = [t for t in opened.tables if t.pieces and not isinstance(t.filesystem, pyarrow.fs.LocalFileSystem)]
    groups = max((piece.rows for t in distant for piece in t.pieces), default=0)
    sizes = Sizes(
        rows,
        row,
        results,
        state_of(config, cost, bands) + (GATHERED * 8 * rows * p if q < p else 0),
        extents[0].stop,
        groups,
        sum(t.rows for t in opened.tables) - rows,
        sources=sources,
        of_source=SOURCE + SUMMED * (1 + (validating if cost.exact else cost.vectors + 1)),
    )
    sizes = replace(sizes, **_trained_on(config, opened, p, outputs), **_chosen_from(config, opened, cost))
    kind, why = planning.choose_kind(config.cluster, sizes.need("memory", 1) - PROCESS)
    pool = opened.tables[-1] if isinstance(config, ExtendConfig) else None
    work, notes = work_of(config, costs, [width for width, _ in widths], opened.columns.features, pool)
    little = p + outputs < NARROW or sum(times * one.operations() for times, one in work) < ONE_THREAD
    threads = config.cluster.threads or (1 if little or kind != "inline" else torch.get_num_threads())
    asked = config.cluster.workers or (os.cpu_count() or 1) // threads
    workers = 1 if kind == "inline" else max(1, min(asked, len(extents)))
    rate = planning.product_rate(threads)
    spent = [[times * part for part in one.seconds(rate)] for times, one in work]
    seconds, alone = (sum(part) for part in zip(*spent, strict=True))
    if config.cluster.workers and kind != "inline" and workers < config.cluster.workers:
        notes.append(
            f"cluster.workers={config.cluster.workers}: {len(extents)} shard(s) keep no more than {workers} busy"
            + (", but where a module is trained" if isinstance(config, TrainConfig) else "")
        )
    if (held := sources * sizes.of_source) > TOLD:
        notes.append(f"about {sources:,} sources, as some rows show: up to {held / 2**30:.2f} GiB of a worker")
    if opened.columns.group:
        notes.append("groups: leaving them out takes several times what rows take; scattered ones are sorted first")
    if isinstance(config, TrainConfig):
        notes.append(time_of_training(config))
    elif not isinstance(config, TuneConfig) and fewest.vectors:
        notes.append(f"standard errors are estimated from {fewest.errors()}")
    double = _cost(replace(config, precision="float64"), rows, q, outputs, opened.task, validating, sources)
    notes += products_in_words(config, double.state() - cost.state())
    if table.memory is not None and kind != "inline":
        notes.append(f"rows in memory are written to {config.output}/table for the workers first")
    return planning.Plan(
        table=table.name,
        rows=rows,
        features=p - int(config.intercept),
        outputs=outputs,
        kind=kind,
        why=why,
        workers=workers,
        threads=threads,
        shards=len(extents),
        sizes=sizes,
        keeping=Keeping(gpus=config.cluster.gpus_per_worker),
        budget=None,
        passes=passes_of(config),
        seconds=seconds,
        alone=alone,
        notes=notes,
    )


def _spanned(config: FitConfig, widths: list[int], rows: int) -> list[int]:
    """Return the columns of bands in the fits: tasks of many fits take bands of more columns than rows in the space
    that the rows span, where that halves them (`tasks.fit.dual.for_few_rows`)."""
    few = [min(width, rows) for width in widths]
    return few if isinstance(config, MANY_FITS) and 2 * sum(few) <= sum(widths) else widths


def _trained_on(config: FitConfig, opened: Opened, p: int, outputs: int) -> dict[str, int]:
    """Return what `Sizes` says of training: rows at a time, and bytes of one: features, targets, offset, weight."""
    if not isinstance(config, TrainConfig):
        return {}
    targets = 8 if opened.task == "classification" else 4 * outputs
    return {"window": config.window, "trained": 4 * p + targets + 4 * outputs * bool(opened.columns.offset) + 8}


def _chosen_from(config: FitConfig, opened: Opened, cost: Cost) -> dict[str, int]:
    """Return what `Sizes` says of a pool: bytes of what stays of a row, and of features that a round keeps."""
    if not isinstance(config, ExtendConfig):
        return {}
    rows, targets = opened.tables[-1].rows, 8 if opened.task == "classification" else 4 * cost.outputs
    batch = NEAR * (config.budget or rows) / config.rounds
    near = min(int(min(batch, rows)) * cost.p * cost.itemsize, NEAR_BYTES)
    return {"stays": 8 + 8 + targets + 3 * 4 + 2 * 8, "near": near}  # key, weight, what was learnt, two steps' weights


def state_of(config: FitConfig, cost: Cost, widths: list[int]) -> int:
    """Return the bytes of a process's sums of p x p numbers, and all else that it holds besides rows."""
    square = cost.p * cost.p
    if isinstance(config, TuneConfig):  # fit sums of every fold
        return cost.state() + 8 * square * 3 * config.folds
    if isinstance(config, ExtendConfig):  # those beside uniform choice, and of a round's slice of it
        return cost.state() + 8 * square * 2
    path = None  # of weight steps that are proposed side by side; the paper's moves the weights as it scores
    if isinstance(config, ReweightConfig) and config.method != "paper":
        path = walk_path("classification" if cost.classes else "", config.level)
    elif isinstance(config, AugmentConfig):
        path = SOURCES
    elif isinstance(config, AggregateConfig) and config.weights == "joint":
        path = LOWERED
    state = cost.state(1 + len(path.beside) if path else 0)
    if isinstance(config, AggregateConfig):  # sums that stay, and fits without each band that one pass compares
        state += 8 * square + cost.itemsize * sum((cost.p - width) ** 2 for width in widths)
    return state


def passes_of(config: FitConfig) -> list[str]:
    """Return the kinds of passes that a run takes, in order."""
    passes = ["load", "scan", "fit", *(["ridge"] if config.ridge == "auto" else [])]
    if isinstance(config, TrainConfig):
        return [*passes, "sizes", "train"]
    return [*passes, "judge"] if isinstance(config, TuneConfig) else [*passes, "leave-out", "score", "verdicts"]


def time_of_training(config: TrainConfig) -> str:
    """Return what is to be said of the time of a plan for training."""
    twice = ", which weights that differ from row to row take twice" if config.weights or config.data.weight else ""
    return f"the time is that of the closed form{twice}: training logs its own rate and time left"


def products_in_words(config: FitConfig, more: int) -> list[str]:
    """Return what is to be said of the time and memory of products; float64 ones would take `more` bytes."""
    notes = []
    if config.cluster.gpus_per_worker:
        notes.append("the time is that of CPUs; what GPUs take has not been measured")
    elif config.precision in ("tf32", "bf16"):
        notes.append(f"precision={config.precision} without a GPU rounds and is slower: it only shows the error")
    if config.precision == "auto" and more > TOLD:
        notes.append(
            "should the condition ask for products in float64 (a small ridge, features that nearly depend on each "
            f"other), sums take up to {more / 2**30:.2f} GiB more a worker, and passes up to twice the time"
        )
    if blas_environment():
        notes.append(
            "OpenBLAS takes this AVX-512 processor for an older one: OPENBLAS_CORETYPE=SkylakeX doubles its rate"
        )
    return notes


def _cost(config: FitConfig, rows: int, p: int, outputs: int, task: str, validating: int, sources: int) -> Cost:
    """Return the cost of one derivative."""
    double = config.precision == "float64" or (isinstance(config, MANY_FITS) and rows < p)
    auto = config.ridge == "auto"
    gpus, errors = bool(config.cluster.gpus_per_worker), config.standard_errors
    dual = isinstance(config, ScoreConfig) and takes_dual(rows, p, config.ridge)
    doubt = isinstance(config, ScoreConfig) and config.labeller_doubt != "off"
    forms = {"errors": errors, "double": double, "auto": auto, "dual": dual, "doubt": doubt}
    return cost_of(rows, p, outputs, task, gpus=gpus, validating=validating, sources=sources, **forms)
