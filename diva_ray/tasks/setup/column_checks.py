"""What a task, a copy or an export cannot do with the columns of a table: told by footers, before any start."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from diva_ray.config import (
    AggregateConfig,
    FitConfig,
    ScoreConfig,
    TuneConfig,
)
from diva_ray.data.columns import element_type, is_list, is_number, storage_type
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table, family
from diva_ray.errors import InputError
from diva_ray.report.words import counted
from diva_ray.tasks.setup.space import features_of


def check_task(config: FitConfig, table: Table, columns: Columns, task: str) -> None:
    """Raise for what a task or an export cannot do with these columns."""
    check_names_of_bands(config, columns, task)
    if isinstance(config, ScoreConfig) and config.curate == "relabel" and task not in ("classification", "multilabel"):
        raise InputError(f"curate: relabel is for classes, got task={task}. Change `curate`.")
    if task == "pairs" and not isinstance(config, ScoreConfig):
        raise InputError("task: pairs must be scored, got another job. Use `jobs/score.py task=pairs`.")
    if task == "pairs" and columns.offset:
        raise InputError(
            f"data.offset: pairs must have none, got `{columns.offset}`: aligned towers are found and used as offset. "
            "Leave `data.offset` out."
        )
    if task == "pairs" and config.shares is not None:
        raise InputError(
            "shares: pairs must have none, got shares: each band predicts the other alone. Leave `shares` out."
        )
    if task == "pairs" and config.projection is not None:
        raise InputError(
            f"projection: pairs must have none, got {config.projection}: each band is predicted as it is. Leave "
            "`projection` out."
        )
    truth = None if columns.truth is None else table.schema.field(columns.truth).type
    if task == "pairs" and truth is not None and not pa.types.is_boolean(truth):
        raise InputError(
            f"data.truth: column `{columns.truth}` of pairs must hold true or false, got {truth}. Change `data.truth`."
        )
    if task != "pairs" and truth is not None:
        label = table.schema.field(columns.label).type
        if is_list(label):
            raise InputError(
                f"data.truth: labels must be one value a row to be held against the truth, got {label} in "
                f"`{columns.label}`. Leave `data.truth` out."
            )
        check_truth(table, columns)
    if isinstance(config, ScoreConfig) and config.curate != "none":
        check_copied(table)
    if isinstance(config, ScoreConfig) and config.export == "datacomp":
        kind = None if columns.id is None else storage_type(table.schema.field(columns.id).type)
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(
                f"data.id: ids must be strings of 32 hexadecimal digits for export=datacomp, got "
                f"{'row positions' if kind is None else f'{kind} in `{columns.id}`'}. Change `data.id`, or leave "
                "`export` out."
            )


def check_truth(table: Table, columns: Columns, place: str = "") -> None:
    """Raise unless the true labels of a table can be held against its labels."""
    label, truth = (table.schema.field(name).type for name in (columns.label, columns.truth))
    if _comparable(label) != _comparable(truth) or is_list(truth):
        raise InputError(
            f"data.truth: column `{columns.truth}` must hold what the label holds, got {truth} for {label}{place}. "
            "Change `data.truth`."
        )


def _comparable(kind: pa.DataType) -> str:
    """Return the name of the types whose values can be held against each other."""
    plain = element_type(kind)
    return "number" if is_number(plain) or pa.types.is_boolean(plain) else family(kind)


def check_copied(table: Table) -> None:
    """Raise for columns that a copy of the table cannot have: only in some files, or of a type Parquet cannot hold."""
    if table.partly:
        name, file = next(iter(table.partly.items()))
        raise InputError(
            f"curate: every file must have the same columns, to be copied with all of them, got no `{name}` at {file}. "
            "Add it there, as nulls, or leave `curate` out."
        )
    for field in table.schema:
        try:
            pq.write_table(pa.Table.from_batches([], schema=pa.schema([field])), pa.BufferOutputStream())
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"curate: every column must be of a type that Parquet can hold, got {field.type} in `{field.name}`. "
                "Write its values as strings, or drop the column."
            ) from error


def check_names_of_bands(config: FitConfig, columns: Columns, task: str) -> None:
    """Raise where a task needs several bands, or their names."""
    if isinstance(config, AggregateConfig) and len(columns.features) < 2:
        raise InputError(
            f"data.features: must name at least two bands, got {config.data.features}. Change `data.features`."
        )
    if isinstance(config, AggregateConfig) and task == "classification" and "label" in columns.features:
        raise InputError(
            "data.features: no band may be called `label`, got one: samples/ has predicted_BAND beside "
            "predicted_label. Give the column another name."
        )
    if isinstance(config, TuneConfig) and columns.features != features_of(config):
        raise InputError(
            f"data.features: a search must name its columns one by one, got {', '.join(features_of(config))}, which is "
            f"{', '.join(columns.features[:20])}. List them in `data.features`."
        )


def check_known_classes(option: str, known: pa.Array, found: pa.Array, cure: str, where: str = "") -> None:
    """Raise for classes of another table that the table does not have; `where` is the place of them."""
    names = set(known.to_pylist())
    new = [label for label in found.to_pylist() if label not in names and label is not None]
    if new:
        raise InputError(
            f"{option}: labels must be among the table's {len(names)} classes, got "
            f"{counted(len(new), 'new one', 'new ones')}, such as {new[0]!r}{where}. {cure}"
        )


def check_columns(table: Table, other: Table, columns: Columns, task: str, role: str) -> None:
    """Raise unless a validation, pool or test table has the columns of the table, of the same kinds."""
    idle = [columns.id, columns.truth, columns.validation_weight]
    if role in ("held_out", "test"):  # its rows have no weight in the fit
        idle += [columns.weight, columns.source]
    if role == "test":
        idle.append(columns.group)
    missing = [name for name in columns.names() if name not in other.schema.names and name not in idle]
    if missing:
        raise InputError(
            f"{other.option}: the table must have the same columns, got no `{missing[0]}` at "
            f"{other.partly.get(missing[0], other.name)}. Fix the table or `{other.option}`."
        )
    if role == "pool" and columns.truth in other.schema.names:
        check_truth(other, columns, f" in {other.option}")
    if columns.group and columns.group in other.schema.names and columns.group not in idle:
        kinds = [_comparable(t.schema.field(columns.group).type) for t in (table, other)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"{other.option}: column `{columns.group}` must hold {kinds[0]} as in the table, got {kinds[1]} at "
                f"{other.name}: a group that both have would not be found. Fix the table or `{other.option}`."
            )
    if task not in ("classification", "multilabel"):
        return
    kinds = [family(t.schema.field(columns.label).type) for t in (table, other)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{other.option}: column `{columns.label}` must hold {kinds[0]} as in the table, got {kinds[1]} at "
            f"{other.name}. Fix the table or `{other.option}`."
        )
