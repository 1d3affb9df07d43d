"""Weights and flags that an earlier run gave to every row of a table, read where they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.columns import Where, finite_values, one_chunk
from diva_ray.data.table import Reader, Table
from diva_ray.errors import InputError

FLAGS = {
    "is_label_issue": ("is_label_issue",),
    "is_detrimental": ("is_detrimental",),
    "either": ("is_label_issue", "is_detrimental"),
}


MOST_OTHERS = 0.05  # of the rows that are not flagged, whose label may be another than in the run


@dataclass(frozen=True)
class Given:
    """The samples of a run: row k is row k of the table.

    Attributes:
        table: its samples, in the order of the table.
        flags: columns that flag a row.
        factor: what the run multiplied every weight by, lowered or not, so that their mean is kept.
    """

    table: Table
    flags: tuple[str, ...]
    factor: float = 1.0

    def weights(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Return the weights of rows [start, stop), float64."""
        column = one_chunk(reader.read(start, stop, ["weight"])["weight"])
        values = finite_values(column, "weight", "weights", lambda row: self.table.where(start + row))
        negative = np.flatnonzero(values[:, 0] < 0)
        if len(negative):
            row = int(negative[0])
            raise InputError(
                f"weights: column `weight` must be >= 0, got {values[row, 0]} at {self.table.where(start + row)}. "
                "Change `weights`."
            )
        return torch.from_numpy(values[:, 0].astype(np.float64))

    def flagged(self, reader: Reader, start: int, stop: int) -> Tensor:
        """Return which of rows [start, stop) are flagged; a null flags nothing."""
        rows = reader.read(start, stop, list(self.flags))
        columns = [one_chunk(rows[name]).cast(pa.bool_()).fill_null(False) for name in self.flags]
        found = [column.to_numpy(zero_copy_only=False).astype(bool) for column in columns]
        return torch.from_numpy(np.logical_or.reduce(found))

    def other_labels(self, reader: Reader, start: int, stop: int, label: pa.Array) -> tuple[int, int, int]:
        """Return how many of rows [start, stop) have another label than in the run, how many of those the run has not
        flagged, and how many it has not flagged at all; of lists nothing is compared."""
        if "label" not in self.table.schema.names or pa.types.is_nested(label.type):
            return 0, 0, 0
        theirs = one_chunk(reader.read(start, stop, ["label"])["label"])
        if theirs.type != label.type:
            theirs, label = (one_chunk(values.cast(pa.string())) for values in (theirs, label))
        other = pc.fill_null(pc.not_equal(theirs, label), False).to_numpy(zero_copy_only=False)
        free = ~self.flagged(reader, start, stop).numpy() if self.flags else np.ones(len(other), bool)
        return int(other.sum()), int((other & free).sum()), int(free.sum())

    def check(self, reader: Reader, rows: np.ndarray, ids: pa.Array | None, where: Where) -> None:
        """Raise unless the rows at these positions have these ids; without ids the position is one."""
        low, high = int(rows.min()), int(rows.max()) + 1
        found = one_chunk(reader.read(low, high, ["id"])["id"]).take(pa.array(rows - low))
        known = pa.array(rows) if ids is None else ids
        if found.type != known.type:
            found, known = (one_chunk(values.cast(pa.string())) for values in (found, known))
        differ = np.flatnonzero(found.to_numpy(zero_copy_only=False) != known.to_numpy(zero_copy_only=False))
        if len(differ):
            row = int(differ[0])
            raise InputError(
                f"weights: the run must have the table's rows in the table's order, got id {found[row].as_py()!r} in "
                f"{self.table.name} where {where(row)} has {known[row].as_py()!r}. Change `weights`, or run it again "
                "on this table."
            )
