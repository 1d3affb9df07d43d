"""The run whose weights are trained with, and the test table's classes: checked before anything is started."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from diva_ray.config import TrainConfig
from diva_ray.data.columns import one_chunk
from diva_ray.data.folder import Folder
from diva_ray.data.given import FLAGS, MOST_OTHERS, Given
from diva_ray.data.shards import Columns
from diva_ray.data.table import Table, open_parquet
from diva_ray.data.targets import label_values
from diva_ray.errors import InputError
from diva_ray.tasks.setup.column_checks import check_known_classes

log = logging.getLogger("diva_ray")

LOOK = 65_536  # rows at either end whose ids are compared on the driver; workers compare all of theirs
LABELS = 1 << 20  # rows up to which the driver reads the labels


def open_given(config: TrainConfig, table: Table | None = None, columns: Columns | None = None) -> Given | None:
    """Return the weights and flags of a run, or None if there is none yet.

    Raises:
        InputError: no run there, or one on other rows.
    """
    if config.weights in (None, "auto"):
        return None
    folder = Folder(str(config.weights), "weights")
    if "samples" not in folder.names(""):
        raise InputError(
            "weights: must be the output of a reweight or score run, with samples/, got none at "
            f"{config.weights}. Change `weights`."
        )
    told = folder.read_object("summary.json")
    if told is not None and not {"accepted", "weights"} & told.keys():
        log.info("weights: that run changed no weight, so that `weighted` is trained with the table's own")
    samples = open_parquet(f"{str(config.weights).rstrip('/')}/samples", "weights")
    flags = FLAGS[config.flag]
    for name in ("id", "weight", *(flags if config.flag != "is_label_issue" else ())):
        if name not in samples.schema.names:
            raise InputError(
                f"weights: samples/ must have column `{name}`, got {', '.join(samples.schema.names)} at "
                f"{samples.name}. Change `weights`{' or `flag`' if name in flags else ''}."
            )
    present = tuple(name for name in flags if name in samples.schema.names)
    given = Given(samples, present, folder.read_figure("weight_factor", 1.0))
    if table is not None and columns is not None:
        _compare(given, table, columns)
    return given


def _compare(given: Given, table: Table, columns: Columns) -> None:
    """Raise if a run was on another number of rows, or on rows with other ids."""
    if given.table.rows != table.rows:
        raise InputError(
            f"weights: the run must have the table's {table.rows:,} rows, got {given.table.rows:,} at "
            f"{given.table.name}. Change `weights`, or run it again on this table."
        )
    reader, rows, labels = given.table.reader(), table.reader(), np.zeros(3, int)
    first_end = min(LOOK, table.rows)
    for start, stop in {(0, first_end), (max(first_end, table.rows - LOOK), table.rows)}:
        if start == stop:
            continue
        ids = None if columns.id is None else one_chunk(rows.read(start, stop, [columns.id])[columns.id])
        given.check(reader, np.arange(start, stop), ids, lambda row, first=start: table.where(first + row))
        if ids is None:  # rows in another order have the same positions
            own = one_chunk(rows.read(start, stop, [columns.label])[columns.label])
            labels += np.array(given.other_labels(reader, start, stop, own))
    other, unflagged, free = labels.tolist()
    if unflagged > MOST_OTHERS * max(free, 1):
        raise InputError(
            f"weights: the run must have the table's rows in the table's order, got another label in {other:,} rows "
            f"at its ends, {unflagged:,} of them not flagged, at {given.table.name}. Change `weights`, or run it again "
            "on this table; a column of ids (`data.id`) would tell rows apart."
        )
    if other:
        log.warning(
            "weights: in that run %s rows at the table's ends have another label: relabelled since?", f"{other:,}"
        )


def check_classes(table: Table, test: Table, label: str) -> None:
    """Raise if the test rows have a class that the table has not; reads the label column of both, of large tables
    neither: there the scan tells, on the workers."""
    if max(table.rows, test.rows) > LABELS:
        return
    check_scanned_classes(_classes(table, label), _classes(test, label), test)


def check_scanned_classes(known: pa.Array | None, found: pa.Array | None, test: Table) -> None:
    """Raise if there are new classes among those that were found in the test rows; None of both for numbers."""
    if known is not None and found is not None:
        cure = "Fix the test table or `test.path`."
        check_known_classes("test.path", known, found, cure, f" at {test.name}")


def _classes(table: Table, label: str) -> pa.Array:
    return label_values(one_chunk(table.reader().read(0, table.rows, [label])[label]))
