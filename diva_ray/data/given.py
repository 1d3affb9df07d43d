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

WINDOW = 1 << 20  # rows between which some are picked
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

    def _read(self, reader: Reader, rows: np.ndarray, names: tuple[str, ...]) -> pa.Table:
        """Return the rows at these positions; at most WINDOW are read at a time of those between them."""
        order = np.argsort(rows, kind="stable")
        cuts = np.flatnonzero(np.diff(rows[order] // WINDOW)) + 1
        parts = []
        for inside in np.split(rows[order], cuts):
            first = int(inside[0])
            parts.append(reader.read(first, int(inside[-1]) + 1, list(names)).take(pa.array(inside - first)))
        return pa.concat_tables(parts).take(pa.array(np.argsort(order)))

    def weights(self, reader: Reader, rows: np.ndarray) -> Tensor:
        """Return the weights of the rows at these positions, float64."""
        column = one_chunk(self._read(reader, rows, ("weight",))["weight"])
        values = finite_values(column, "weight", "weights", lambda row: self.table.where(int(rows[row])))
        negative = np.flatnonzero(values[:, 0] < 0)
        if len(negative):
            row = int(negative[0])
            raise InputError(
                f"weights: column `weight` must be >= 0, got {values[row, 0]} at {self.table.where(int(rows[row]))}. "
                "Change `weights`."
            )
        return torch.from_numpy(values[:, 0].astype(np.float64))

    def flagged(self, reader: Reader, rows: np.ndarray) -> Tensor:
        """Return which of the rows at these positions are flagged; a null flags nothing."""
        found = self._read(reader, rows, self.flags)
        columns = [one_chunk(found[name]).cast(pa.bool_()).fill_null(False) for name in self.flags]
        return torch.from_numpy(np.logical_or.reduce([x.to_numpy(zero_copy_only=False).astype(bool) for x in columns]))

    def other_labels(self, reader: Reader, start: int, stop: int, label: pa.Array) -> tuple[int, int, int]:
        """Return how many of rows [start, stop) have another label than in the run, how many of those the run has not
        flagged, and how many it has not flagged at all; of lists nothing is compared."""
        if "label" not in self.table.schema.names or pa.types.is_nested(label.type):
            return 0, 0, 0
        theirs = one_chunk(reader.read(start, stop, ["label"])["label"])
        if theirs.type != label.type:
            theirs, label = (one_chunk(values.cast(pa.string())) for values in (theirs, label))
        other = pc.fill_null(pc.not_equal(theirs, label), False).to_numpy(zero_copy_only=False)
        free = ~self.flagged(reader, np.arange(start, stop)).numpy() if self.flags else np.ones(len(other), bool)
        return int(other.sum()), int((other & free).sum()), int(free.sum())

    def check(self, reader: Reader, rows: np.ndarray, ids: pa.Array | None, where: Where) -> None:
        """Raise unless the rows at these positions have these ids; without ids the position is one."""
        found = one_chunk(self._read(reader, rows, ("id",))["id"])
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
