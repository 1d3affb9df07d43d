"""A pool before anything of it is chosen: scanned, checked against the table, its rows counted by class."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from diva_ray.config import ExtendConfig
from diva_ray.core.histogram import LOSS
from diva_ray.core.loss_verdict import LossSums
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import pool
from diva_ray.engine.kernels.moments import merge_values
from diva_ray.engine.kernels.scan import Scan
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.fit.derive import with_errors
from diva_ray.tasks.fit.dual import double_if_few
from diva_ray.tasks.setup.checks import check_ids, reach_takes_double
from diva_ray.tasks.setup.column_checks import check_known_classes
from diva_ray.tasks.setup.remarks import tell_missing
from diva_ray.tasks.setup.session import Session, look_beside

log = logging.getLogger("diva_ray")

FAR = 25.0  # times the table's mean square (or left-out loss), beyond which a pool is another kind of data


def bands_on_another_scale(names: tuple[str, ...], core: Scan, found: Scan) -> str:
    """Return what is to be said of bands in which the pool's rows lie far outside the table's: the mean of |x - m|^2, m
    the table's mean, is more than FAR times the table's. Nothing where none do."""
    told = []
    for k, name in enumerate(names):
        n, rows = found.rows[k], core.rows[k]
        if not (n and rows):
            continue
        apart = found.sums[k] / n - core.sums[k] / rows
        here, there = float(core.squares[k].sum()) / rows, float(found.squares[k].sum()) / n + float(apart @ apart)
        if there > FAR * here > 0:
            told.append(f"`{name}` {(there / here) ** 0.5:,.0f} times")
    if not told:
        return ""
    return (
        f"the pool's rows lie further from the table's mean than its own rows do ({', '.join(told)}): another "
        "scale, or another encoder? They would decide the fit. Make the pool's features as the table's were made"
    )


def losses_on_another_scale(pool: LossSums, left: Tally, counts: Tally) -> str:
    """Return what is to be said where the pool's numbers are predicted far worse than the table's left out: their
    median loss is more than FAR times the table's mean. `pool`: as `loss_verdict.loss_sums` gives it."""
    cells = torch.stack([one.counts[: 2 * LOSS[2]].view(2, -1).sum(0) for one in pool.values()]).sum(0)
    if not float(cells.sum()):
        return ""
    at = int(torch.searchsorted(cells.cumsum(0), cells.sum() / 2))
    low, high, count = LOSS
    median, table = 10.0 ** (low + (at + 0.5) * (high - low) / count), left["loss"] / counts["validation"]
    if median <= FAR * table or table <= 0:
        return ""
    return (
        f"the pool's numbers are predicted far worse than the table's (median loss {median:.3g}, of the table's rows "
        f"left out {table:.3g} on average): another unit, or sign? Give the pool's labels as the table's are given"
    )


def check_pool_bands(names: tuple[str, ...], found: Scan) -> None:
    """Raise for a band that no row of the pool has."""
    for name, rows in zip(names, found.rows, strict=True):
        if found.counts["rows"] and not rows:
            raise InputError(
                f"pool: some row must have the band `{name}`, got null in every row. Fix the pool, or leave the band "
                "out of `data.features`."
            )


def enroll(session: Session, config: ExtendConfig) -> tuple[list[Extent], Setup, Tensor, int]:
    """Scan the pool; return its shards, the setup with any new classes, its rows by class, and how many have no band
    at all."""
    runner, core = session.runner, session.scan
    if session.columns.id is None and "id" in session.beside_table.schema.names:
        log.warning("column `id` of the pool is not read, as the table has none: ids are positions")
    if session.columns.id is not None and session.columns.id not in session.beside_table.schema.names:
        log.warning("column `%s` is not in the pool: ids of its rows are their positions", session.columns.id)
    truth = session.columns.truth
    if truth is not None and truth not in session.beside_table.schema.names:
        log.warning("column `%s` (data.truth) is not in the pool: what is chosen is not compared with it", truth)
    found, extents = look_beside(session, "pool"), session.beside()
    rows, setup = int(found.counts["rows"]), session.setup
    if core.labels is not None and found.labels is not None:
        classes = merge_values(core.labels, found.labels)
        assert classes is not None
        if config.pool.new_classes == "error":
            cure = "Fix the pool, or set `pool.new_classes=allow`."
            check_known_classes("pool", core.labels, found.labels, cure)
        if len(classes) > len(core.labels):
            setup = replace(setup, classes=classes, outputs=len(classes))
    check_ids(runner, session.columns, pool=True)
    if session.columns.group and runner.engine.shared("group_keys") is not None:
        raise InputError(
            "data.group: a group must lie in the table or in the pool, got one that is split between them (a copy in "
            "the pool would vouch for its original). Move its rows."
        )
    if core.offset_width not in (0, setup.outputs):
        raise InputError(
            f"data.offset: column `{session.columns.offset}` must hold {setup.outputs} numbers, one for each class of "
            f"the pool too, got {core.offset_width}. Change `data.offset`, or use `pool.new_classes=error`."
        )
    check_pool_bands(session.columns.features, found)
    tell_missing(session.columns, found, "the pool's ")
    if bare := int(found.counts["bare"]):
        log.warning("%s of %s rows of the pool have no features: none of them is chosen", f"{bare:,}", f"{rows:,}")
    if reach_takes_double(setup.task, found.reach, setup.outputs):
        setup = replace(setup, dtype=torch.float64)
    if far := bands_on_another_scale(session.columns.features, core, found):
        log.warning("%s", far)
        setup = replace(setup, dtype=torch.float64)  # the table would be lost beside them
    setup = double_if_few(setup, int(core.counts["rows"]))
    setup = with_errors(setup, int(core.counts["rows"]), core.counts["validating"], config.standard_errors)
    runner.engine.tell(setup=setup)
    return extents, setup, runner.run(pool.class_counts, "count", extents, features=False), bare
