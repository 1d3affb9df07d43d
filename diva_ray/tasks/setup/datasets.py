"""A Ray Dataset as input: written once into shards that survive a restart."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pyarrow as pa

from diva_ray.data.folder import Folder
from diva_ray.data.table import check_rows, from_arrow
from diva_ray.errors import InputError
from diva_ray.tasks.setup.finish import RAW, now

log = logging.getLogger("diva_ray")

PATHS = {"train": "data.path", "held_out": "validation.path", "pool": "pool.path", "test": "test.path"}
ON_RAY = "the given Ray Dataset"
HEAD = 1000  # of its rows, which a plan looks at


def from_dataset(dataset: Any, folder: Folder, name: str, *, plan: bool) -> Any:
    """Write a Ray Dataset once into shards that survive a restart; return their path, or a table for a plan.

    That one holds the first rows alone, but counts all: Ray knows how many, or runs what is mapped lazily to count.

    Raises:
        InputError: to be resumed is a run of a Dataset of other columns. Its rows nobody knows before it is read, so
            those that were written are taken, which is said.
    """
    from diva_ray.engine.connect import check_driver
    from diva_ray.engine.regroup_on_ray import write_on_ray

    check_driver("a Ray Dataset")
    option = PATHS["train"] if name in ("table", RAW) else f"{name}.path"
    if plan:
        rows = dataset.count()
        check_rows(rows, ON_RAY, option)
        head = pa.concat_tables(dataset.limit(HEAD).iter_batches(batch_size=HEAD, batch_format="pyarrow"))
        table = from_arrow(head, ON_RAY, option)
        return replace(table, rows=rows, bytes=table.bytes * rows // table.rows)
    columns = _columns(dataset)
    if (before := folder.read_object(f"{name}.json")) is not None:  # written when all of it is there
        _check_same(columns, before, folder, option)
        log.warning("the Ray Dataset is not read again: its rows are those in %s", folder.location(name))
    else:
        log.info("the Ray Dataset is written to %s for the workers", folder.location(name))
        folder.drop(name)
        folder.share()
        write_on_ray(dataset, folder, name)
        check_rows(len(folder.names(name)), ON_RAY, option)  # no rows, no file
        folder.write_json(f"{name}.json", {"finished": now(), "columns": columns})
    return folder.location(name)


def _columns(dataset: Any) -> str:
    """Return names and types of a Dataset's columns; '' where Ray would have to run it to know."""
    schema = dataset.schema(fetch_if_missing=False)
    return "" if schema is None else ", ".join(map("{}: {}".format, schema.names, schema.types))


def _check_same(columns: str, before: dict[str, Any], folder: Folder, option: str) -> None:
    """Raise if what is known of two Datasets shows that they are not the same."""
    then = before.get("columns")
    if columns and then and columns != then:
        raise InputError(
            f"resume: {ON_RAY} must be the one whose rows were written to {folder.path}, got columns {columns}; then "
            f"{then}. Give the same for `{option}`, or use a new `output`."
        )
