"""The scan: one look at every row, which checks it and learns what the passes need."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.shards import Shard, bare_rows
from diva_ray.data.targets import label_values, number_targets
from diva_ray.engine.context import Known, validation_weights
from diva_ray.engine.kernels.identity import alike, feature_hashes, fragments, shared
from diva_ray.engine.kernels.moments import band_moments, between, list_lengths, merge_moments, merge_values, moments
from diva_ray.engine.reduce import Rows, Tally
from diva_ray.errors import InputError

CONSTANT = 1e-24  # of the mean square: no more is rounding
NO_DIRECTION = 1e-5  # of the root mean square distance of targets from their mean: float32 ends there


class Extremes(dict[float, int]):
    """The two least and the two largest values seen, each with its rows; `+` merges."""

    def __add__(self, other: Extremes | None) -> Extremes:
        counts = Counter(self)
        counts.update(other or {})
        values = sorted(counts)
        return Extremes({value: counts[value] for value in {*values[:2], *values[-2:]}})

    def placeholder(self) -> tuple[float, int] | None:
        """Return (value, rows) of a number that several rows have, further from all others than those lie apart."""
        if len(self) < 3:
            return None
        low, *_, high = values = sorted(self)
        for value, near, far in ((low, values[1], high), (high, values[-2], low)):
            if self[value] > 1 and abs(near - value) > abs(far - near) > 0:
                return value, self[value]
        return None


@dataclass(frozen=True)
class Scan:
    """What one look at every row tells: widths, moments, classes, weights; `+` merges.

    Attributes:
        place: where the rows are, for errors.
        widths: columns of every band.
        rows: rows with each band present, among rows that may train.
        sums, squares: per band, sums of x and of (x - mean)^2 of every column, (d,).
        labels: distinct classes, or None for numbers; validation_labels, of a separate table.
        sources: distinct sources of rows that are no separate table's; None without.
        counts: `rows` that may train, `positive` weights, `weight`, sum of `validation` weights and of their squares,
            rows `validating`, leave-out `groups`, most labels of a row (`max_labels`; `max_less_labels`: less the
            fewest), rows without any feature (`bare`, of a pool), and rows that the table shares with others
            (`shared_trained`, `shared_validated`).
        target: sum of v, weighted mean (c,) and sums of v (y - mean)^2 (c,) of numbers, as one vector.
        reach: the same over all rows that train or validate, once each, of the numbers (c,); with offsets of the
            numbers, the offsets and what these leave (3 c,); of classes of the offsets.
        extremes: the two least and the two largest numbers, one a row, of rows that train, each with its rows.
        offset_width: numbers of an offset, 0 without.
        looked: hashes of the features of some rows that train, or of all, with their leave-out groups.
        fragments: what the training rows are by content (`engine.kernels.identity`), where it was asked for.
    """

    place: str
    widths: tuple[int, ...]
    rows: tuple[int, ...]
    sums: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]
    labels: pa.Array | None
    sources: pa.Array | None
    target_width: int
    target: Tensor
    reach: Tensor
    counts: Tally
    looked: Rows
    offset_width: int = 0
    fragments: Rows | None = None
    validation_labels: pa.Array | None = None
    extremes: Extremes | None = None

    def check_widths(self, other: Scan) -> None:
        """Raise where another table's bands, targets or offsets are not as long as this one's."""
        if any(a != b and a and b for a, b in zip(self.widths, other.widths, strict=True)):  # 0: no row has the band
            raise InputError(
                f"data.features: vectors of a band must have equal length, got {list(self.widths)} at {self.place} and "
                f"{list(other.widths)} at {other.place}. Fix the table or choose `data.features`."
            )
        if self.target_width != other.target_width:
            raise InputError(
                f"data.label: vector targets must have equal length, got {self.target_width} at {self.place} and "
                f"{other.target_width} at {other.place}. Fix the table or choose `data.label`."
            )
        if self.offset_width != other.offset_width:
            raise InputError(
                f"data.offset: offsets must have equal length, got {self.offset_width} at {self.place} and "
                f"{other.offset_width} at {other.place}. Fix the table or choose `data.offset`."
            )

    def __add__(self, other: Scan) -> Scan:
        self.check_widths(other)
        return Scan(
            self.place,
            tuple(map(max, self.widths, other.widths)),
            tuple(a + b for a, b in zip(self.rows, other.rows, strict=True)),
            tuple(
                a + b if len(a) == len(b) else max(a, b, key=len) for a, b in zip(self.sums, other.sums, strict=True)
            ),
            tuple(
                a + b + between(*apart) if len(a) == len(b) else max(a, b, key=len)
                for a, b, *apart in zip(
                    self.squares, other.squares, self.rows, self.sums, other.rows, other.sums, strict=True
                )
            ),
            merge_values(self.labels, other.labels),
            merge_values(self.sources, other.sources),
            self.target_width,
            merge_moments(self.target, other.target),
            merge_moments(self.reach, other.reach),
            self.counts + other.counts,
            self.looked + other.looked,
            self.offset_width,
            self.fragments + other.fragments if self.fragments and other.fragments else self.fragments,
            merge_values(self.validation_labels, other.validation_labels),
            other.extremes if self.extremes is None else self.extremes + other.extremes,
        )

    def center(self) -> tuple[Tensor, float]:
        """Return the mean of number targets (c,), and how near to it the direction from there is but rounding."""
        mean, squares = self.target[1:].chunk(2)
        return mean, NO_DIRECTION * math.sqrt(float(squares.sum() / self.target[0]))

    def spreads(self) -> list[tuple[float, float]]:
        """Return per band the mean of |x - mean|^2, 0 where only rounding differs from row to row, and of |x|^2."""
        found = []
        for rows, total, square in zip(self.rows, self.sums, self.squares, strict=True):
            mean, spread = total / max(rows, 1), float(square.sum()) / max(rows, 1)
            whole = spread + float(mean @ mean)
            found.append((spread if spread > CONSTANT * whole else 0.0, whole))
        return found


def scan(shard: Shard, known: Known) -> Scan:
    """Scan pass: check every value, and learn what standardising and encoding need; 3 n p operations."""
    trains = not shard.extent.held_out
    rows, sums, squares = _scan_bands(shard, known)
    v = validation_weights(shard, known)
    found = _scan_targets(shard, known, v)
    beside = shard.extent.held_out and not shard.extent.pool  # a validation table: its classes may be fewer
    sources = None if shard.source is None or beside else pc.unique(shard.source)
    sources = merge_values(sources, sources)
    counts = Tally(
        rows=len(shard) if trains else 0,
        positive=int((shard.weight > 0).sum()),
        weight=float(shard.weight.sum()),
        validation=float(v.sum()),
        validation_squares=float(v.square().sum()),
        validating=int((v > 0).sum()),
        groups=len(shard) if shard.group_keys is None else len(shard.group_keys),
        max_labels=found.lengths[1],
        max_less_labels=-found.lengths[0],
        shared_trained=0,
        shared_validated=0,
    )
    looked, known_by = Rows(), None
    if shard.extent.pool:  # of a table beside the one that was scanned before
        counts |= {**shared(shard, known), "bare": int(bare_rows(shard.missing, len(shard)).sum())}
    elif trains:
        hashes = feature_hashes(shard)
        looked = alike(shard, known["looked"], hashes)
        if known["cut_bits"] is not None:
            known_by = fragments(shard, known, known["cut_bits"], feature_hashes(shard, None))
    widths = tuple(values.shape[1] for values in shard.bands)
    return Scan(
        shard.where(0), widths, rows, sums, squares, None if beside else found.labels, sources, found.width,
        found.moments, found.reach, counts, looked, 0 if shard.offset is None else shard.offset.shape[1], known_by,
        found.labels if beside else None, found.extremes,
    )  # fmt: skip


def _scan_bands(shard: Shard, known: Known) -> tuple[tuple[int, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return rows, sums and sums of squared deviations of every band, nothing of rows that do not train.

    Raises:
        InputError: a value that is not finite; of pairs, a side that is missing.
    """
    found = []
    for name, values, absent in zip(known["features"], shard.bands, shard.missing, strict=True):
        here, total, square = band_moments(values, absent)
        if known.get("pairs") and absent is not None and bool(absent.any()):
            raise InputError(
                f"data.features: every pair must have both sides, got null in `{name}` at "
                f"{shard.name(int(torch.nonzero(absent)[0]))}. Drop such rows, or fill the column."
            )
        if not np.isfinite(float(square.sum() + total @ total)):
            raise _not_finite(shard, name, values)
        trains = not shard.extent.held_out
        found.append((here, total, square) if trains else (0, torch.zeros_like(total), torch.zeros_like(square)))
    rows, sums, squares = zip(*found, strict=True)
    return rows, sums, squares


class _Targets(NamedTuple):
    """What a shard's labels and offsets say; `lengths`: fewest and most labels of a row, of several."""

    width: int = 1
    moments: Tensor = torch.zeros(3, dtype=torch.float64)
    reach: Tensor = torch.zeros(3, dtype=torch.float64)
    labels: Any = None
    lengths: tuple[int, int] = (0, 0)
    extremes: Extremes | None = None


def _scan_targets(shard: Shard, known: Known, validation: Tensor) -> _Targets:
    """Return moments of targets that are numbers, or which labels there are; and how far targets and offsets reach."""
    used = ((shard.weight > 0) | (validation > 0)).double()
    if not known["numbers"]:
        if not known["label"]:
            return _Targets()
        reach = _Targets().reach if shard.offset is None else moments(shard.offset.double(), used)
        labels = merge_values(label_values(shard.label), label_values(shard.label))
        return _Targets(reach=reach, labels=labels, lengths=list_lengths(shard.label))
    Y = number_targets(shard.label, known["label"], shard.where)
    parts, extremes = [Y], None
    if shard.offset is not None and shard.offset.shape == Y.shape:  # others are refused
        offset = shard.offset.to(Y)
        parts = [Y, offset, Y - offset]
    if Y.shape[1] == 1 and not shard.extent.held_out:
        extremes = Extremes() + Extremes(zip(*(x.tolist() for x in Y.unique(return_counts=True)), strict=True))
    return _Targets(Y.shape[1], moments(Y, validation), moments(torch.cat(parts, 1), used), extremes=extremes)


def _not_finite(shard: Shard, name: str, values: Tensor) -> InputError:
    """Return the error of a band with a NaN, an infinity, or a number whose square is one."""
    values = values.cpu()
    usable = values.double().abs() <= 1e150
    bad = int(torch.nonzero(~usable.all(1))[0])
    at = int(torch.nonzero(~usable[bad])[0])
    must = "below 1e150 in size" if np.isfinite(values[bad, at].item()) else "finite"
    place = f", number {at} of 0 to {values.shape[1] - 1} there" if values.shape[1] > 1 else ""
    return InputError(
        f"data.features: column `{name}` must be {must}, got {values[bad, at].item()} at {shard.where(bad)}{place}. "
        "Fix the table or choose `data.features`."
    )
