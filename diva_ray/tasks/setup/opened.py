"""What a run finds before it starts: tables, columns and roles; only footers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from diva_ray.config import (
    AugmentConfig,
    ExtendConfig,
    FitConfig,
    TrainConfig,
    TuneConfig,
)
from diva_ray.data.roles import find_columns, task_of
from diva_ray.data.shards import Columns
from diva_ray.data.sources import open_data
from diva_ray.data.table import Table
from diva_ray.errors import InputError
from diva_ray.tasks.setup.column_checks import check_columns, check_task
from diva_ray.tasks.setup.options import choose_loss, chosen_shares

APART = {"held_out": ("held_out", "test"), "pool": ("pool", "test")}  # which roles of a table mark its shards so


@dataclass
class Opened:
    """Tables and columns, checked against their schemas."""

    tables: list[Table]
    columns: Columns
    show: tuple[str, ...]
    task: str
    loss: str | Callable
    roles: list[str]  # of every table: train, held_out, pool, test


def open_own(config: FitConfig, data: Any) -> Table:
    """Return the table of a run: the rows given, or what `data.path` or `data.builtin` names."""
    given = data if data is not None else config.data.path
    return open_data(given, config.data.builtin, config.data.noise, config.seed)


def open_tables(config: FitConfig, data: Any, loss: Callable | None, pool: Any = None) -> Opened:
    """Return the tables of a run with their columns; only footers are read."""
    table = open_own(config, data)
    own, pairs = data is not None or config.data.path is not None, config.task == "pairs"
    columns, show = find_columns(table.schema, config.data, builtin=not own, labelled=not pairs, partly=table.partly)
    task = "pairs" if pairs else task_of(table.schema, config.data.label, config.task)
    check_task(config, table, columns, task)
    chosen_shares(config, columns.features)
    tables, roles = [table], ["train"]
    if isinstance(config, AugmentConfig) and not config.validation.given:
        columns = replace(columns, validation_source=config.identity)
    if config.validation.given:
        named = config.validation.path if config.validation.rows is None else config.validation.rows
        found = open_data(named, None, 0.0, 0, "validation.path")
        tables, roles = [*tables, found], [*roles, "held_out"]
    if isinstance(config, ExtendConfig):
        builtin = "digits_pool" if config.data.builtin == "digits_core" and not own else None
        named = config.pool.path if pool is None else pool
        found = open_data(named, builtin, config.data.noise, config.seed, "pool.path")
        tables, roles = [*tables, found], [*roles, "pool"]
        if config.budget is not None and config.budget > found.rows:
            raise InputError(
                f"budget: must be at most the pool's {found.rows:,} rows, got {config.budget:,}. Change `budget`."
            )
    if isinstance(config, TrainConfig) or (isinstance(config, TuneConfig) and (config.test.path or pool is not None)):
        found = open_data(config.test.path if pool is None else pool, None, 0.0, 0, "test.path")
        tables, roles = [*tables, found], [*roles, "test"]
    for other, role in zip(tables[1:], roles[1:], strict=True):
        check_columns(table, other, columns, task, role)
    return Opened(tables, columns, show, task, choose_loss(config, task, loss), roles)
