"""A shard: consecutive rows of a table, resident as arrays in the dtype they were stored in.

Shards are the reduction groups: their boundaries depend on the table alone, so sums over them have the same bits
whatever engine or number of workers holds them.
"""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.core.gaps import gap_codes
from diva_ray.data.columns import Where, check_nulls, finite_values, one_chunk, row_keys, take_rows, to_matrix, words_of
from diva_ray.data.raw.classes import class_names
from diva_ray.data.table import Places, Reader, Table
from diva_ray.errors import InputError


@dataclass(frozen=True)
class Columns:
    """Which columns are what (the options `data.*`); None where the table has none. Pairs have no label: ""."""

    features: tuple[str, ...]
    label: str
    id: str | None = None
    weight: str | None = None
    validation_weight: str | None = None
    group: str | None = None
    source: str | None = None
    offset: str | None = None
    truth: str | None = None
    validation_source: str | None = None  # value of `source` whose rows alone validate
    position: str | None = None  # row numbers of the original table, when rows were brought together by group

    def names(self) -> list[str]:
        """Return every column that a shard reads, once."""
        rest = (
            self.label or None,
            self.id,
            self.weight,
            self.validation_weight,
            self.group,
            self.source,
            self.offset,
            self.truth,
            self.position,
        )
        return list(dict.fromkeys([*self.features, *(name for name in rest if name)]))

    def found_in(self, names: list[str]) -> Columns:
        """Return the same without what a table that only validates or tests may lack."""
        idle = ("id", "weight", "validation_weight", "group", "source", "truth", "position")
        return replace(self, **{name: None for name in idle if getattr(self, name) not in names})


@dataclass(frozen=True)
class Extent:
    """Rows [start, stop) of one of a run's tables.

    Attributes:
        index: of the shard, among those of all tables.
        table: which table.
        held_out: of a separate validation table: no weight, not scored.
        pool: of a pool: weight 0 until chosen, does not validate, and is not resident. Rows of a test table are both.
    """

    index: int
    start: int
    stop: int
    table: int = 0
    held_out: bool = False
    pool: bool = False

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


@dataclass
class Shard:
    """Resident rows. Band arrays are as stored; everything else is small.

    Attributes:
        bands: features (n, d) of every band; `missing` marks rows without that band.
        label: labels as read.
        weight, validation: alpha and v, float64.
        group: code of the row's leave-out group inside this shard; None when every row is left out alone.
        offset: (n, c) or None.
        keys: stable 64-bit key of every row.
        gaps: code of the bands that every row lacks (`core.gaps`); None where no row lacks any.
        order: positions of the rows in the table, relative to start, when they were sorted by group.
        state: per-row results by name; whatever is lost can be computed again.
    """

    extent: Extent
    bands: Sequence[Tensor]
    missing: list[Tensor | None]
    label: pa.Array
    weight: Tensor
    validation: Tensor
    keys: Tensor
    gaps: Tensor | None = None
    group: Tensor | None = None
    group_keys: np.ndarray | None = None
    group_values: pa.Array | None = None
    source: pa.Array | None = None
    source_values: pa.Array | None = None
    offset: Tensor | None = None
    truth: pa.Array | None = None
    id: pa.Array | None = None
    order: np.ndarray | None = None
    original: np.ndarray | None = None
    where: Where = str
    state: MutableMapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.extent.rows

    def positions(self) -> np.ndarray:
        """Return the position of every row in the table."""
        if self.original is not None:
            return self.original
        return self.extent.start + (np.arange(len(self)) if self.order is None else self.order)

    def ids(self) -> pa.Array:
        """Return the id of every row; without ids, its position in the table."""
        return pa.array(self.positions()) if self.id is None else self.id

    def input_order(self) -> np.ndarray | None:
        """Return where the rows are, in the order of the input; None where they are in that order."""
        return None if self.order is None else np.argsort(self.order)

    def name(self, row: int) -> str:
        """Return a row's id and place, for a person."""
        return self.where(row) if self.id is None else f"id {self.id[row].as_py()} ({self.where(row)})"


def read_shard(table: Table, reader: Reader, columns: Columns, extent: Extent) -> Shard:
    """Return one shard, checked; the features are views of what was decoded.

    Raises:
        InputError: a value that cannot be used, with its row.
    """
    if extent.held_out or extent.pool:
        columns = columns.found_in(table.schema.names)
    rows = reader.read(extent.start, extent.stop, columns.names())
    order = None
    if columns.group:
        keys = row_keys(one_chunk(rows[columns.group]))
        if (keys[1:] != keys[:-1]).sum() + 1 != len(np.unique(keys)):
            order = np.argsort(keys, kind="stable")
            rows = take_rows(rows, order)
    arrays = {name: one_chunk(rows[name]) for name in columns.names()}
    original = arrays[columns.position].to_numpy() if columns.position else None
    where = Places(table, extent.start, order, original)
    bands, missing = read_bands(arrays, columns, where)
    weight = _weights(arrays, columns.weight, "data.weight", where, len(rows))
    validation = _weights(arrays, columns.validation_weight, "data.validation_weight", where, len(rows))
    if extent.held_out:
        weight = torch.zeros_like(weight)
    elif extent.pool:  # of a row without any band nothing is known but how common its class is: it cannot be chosen
        weight = weight.masked_fill(bare_rows(missing, len(rows)), 0.0)
    ids = arrays[columns.id] if columns.id else None
    for option in ("id", "label", "group", "truth"):
        if name := getattr(columns, option):
            check_nulls(arrays[name], name, f"data.{option}", where, classes=name in class_names(table.schema))
    position = np.arange(extent.start, extent.stop) if order is None else extent.start + order
    keys = row_keys(ids, seed=int(extent.held_out)) if ids is not None else row_keys(pa.array(position), extent.table)
    shard = Shard(
        extent,
        bands,
        missing,
        arrays[columns.label] if columns.label else pa.nulls(len(rows)),
        weight,
        validation,
        _signed(keys),
        gap_codes(missing, len(rows)),
        id=ids,
        order=order,
        original=original,
        where=where,
    )
    if columns.group:
        group_keys = row_keys(arrays[columns.group])
        shard.group_keys, inverse = np.unique(group_keys, return_inverse=True)
        shard.group, shard.group_values = torch.from_numpy(inverse.astype(np.int64)), arrays[columns.group]
    if columns.source:
        shard.source_values, shard.source = words_of(arrays[columns.source])
    if columns.truth:
        shard.truth = arrays[columns.truth]
    if columns.offset:
        shard.offset = finite_matrix(arrays[columns.offset], columns.offset, "data.offset", where).double()
    return shard


def bare_rows(missing: list[Tensor | None], n: int) -> Tensor:
    """Return which of n rows have no band at all."""
    found = torch.ones(n, dtype=torch.bool)
    for absent in missing:
        found = torch.zeros_like(found) if absent is None else found & absent
    return found


def _signed(keys: np.ndarray) -> Tensor:
    return torch.from_numpy(keys.view(np.int64))


def read_bands(arrays: dict, columns: Columns, where: Where) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the features of every band, and which rows lack it."""
    bands, missing = [], []
    for name in columns.features:
        values, absent = to_matrix(arrays[name], name, where)
        if values.dtype not in (np.float16, np.float32, np.float64):
            values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        bands.append(as_tensor(values))
        missing.append(None if absent is None else torch.from_numpy(absent))
    return bands, missing


def as_tensor(values: np.ndarray) -> Tensor:
    """Return a tensor on the same memory; shards are never written to, and Arrow's memory is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def finite_matrix(column: pa.Array, name: str, option: str, where: Where) -> Tensor:
    """Return a finite numeric column as (n, d), or raise with the row."""
    return as_tensor(finite_values(column, name, option, where))


def _weights(arrays: dict, name: str | None, option: str, where: Where, n: int) -> Tensor:
    """Return a weight column as float64, 1 without one."""
    if name is None:
        return torch.ones(n, dtype=torch.float64)
    values = finite_matrix(arrays[name], name, option, where)
    if values.shape[1] != 1:
        raise InputError(
            f"{option}: column `{name}` must hold one number a row, got {values.shape[1]} at {where(0)}. Change "
            f"`{option}`."
        )
    negative = torch.nonzero(values[:, 0] < 0)
    if len(negative):
        row = int(negative[0])
        found = values[row, 0].item()
        raise InputError(
            f"{option}: column `{name}` must be >= 0, got {found} at {where(row)}. Fix the table or `{option}`."
        )
    return values[:, 0].double()
