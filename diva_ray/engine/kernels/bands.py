"""What the bands say apart: how good fits to some of them are, and what each alone says of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.core.grid import Family, grid_squared_errors, grid_values, weighted_sums
from diva_ray.core.leave_out import LeverageError, leave_out
from diva_ray.core.products import multiply
from diva_ray.core.ridge_choice import pack_moments
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, blocks, validation_weights
from diva_ray.engine.kernels.extremes import examples
from diva_ray.engine.kernels.left_out import leverage_error, margins
from diva_ray.engine.kernels.samples import samples_table, write_rows
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup


@dataclass(frozen=True)
class Part:
    """A fit to some of the columns, under a family of ridges.

    Attributes:
        columns: which of Z, ascending, (k,).
        family: of the sub-block of the fit sums, under as many ridges for every part of a pass.
    """

    columns: Tensor
    family: Family


def part_losses(shard: Shard, known: Known) -> Tensor:
    """Return left-out squared errors and counted errors of every part and ridge, (parts, 2, ridges)."""
    setup: Setup = known["setup"]
    parts: list[Part] = known["parts"]
    several = setup.task == "multilabel"
    total = torch.zeros(len(parts), 2, len(parts[0].family.ridges), dtype=torch.float64)

    def counted(F: Tensor, Y: Tensor) -> Tensor:
        return losses.errors(F, Y, several=several)

    for b in blocks(shard, known):
        for k, part in enumerate(parts):
            Z = b.Z if len(part.columns) == b.Z.shape[1] else b.Z[:, part.columns]
            found = grid_values(Z, b.Y, b.alpha, b.offset, b.group_rows, part.family, (losses.squares, counted))
            total[k] += weighted_sums(found, b.v)
    return total


def part_moments(shard: Shard, known: Known) -> Tensor:
    """Return moments of the left-out squared errors, packed: of parts with one ridge each, side by side."""
    parts: list[Part] = known["parts"]
    total = torch.zeros(len(parts) + 3, len(parts) + 1, dtype=torch.float64)
    for b in blocks(shard, known):
        values = (
            grid_squared_errors(b.Z[:, one.columns], b.Y, b.alpha, b.offset, b.group_rows, one.family) for one in parts
        )
        total += pack_moments(torch.cat([*values], 1), b.alpha, b.v, b.group_rows)
    return total


def validating(shard: Shard, known: Known) -> Tally:
    """Return how many rows validate, without those set apart, and the sum of their weights there."""
    v = validation_weights(shard, known)
    return Tally(rows=int((v > 0).sum()), weight=float(v.sum()))


@dataclass(frozen=True)
class Alone:
    """A fit to one band alone.

    Attributes:
        columns: which of Z, the intercept included, (k,).
        W: its solution, (k, c); whiten: L'^-1, (k, k); in the dtype of its products.
    """

    columns: Tensor
    W: Tensor
    whiten: Tensor


def write(shard: Shard, known: Known) -> Tally:
    """Write the shard's rows with what each band alone says of them; report those on which bands differ most.

    Columns `margin_BAND` and `predicted_BAND` for classes, else `loss_BAND` (squared error), of the left-out output of
    a fit to that band alone; null where the row lacks the band. n k^2 operations a band of k columns.
    """
    table, facts = samples_table(shard, known)
    names, told, order = list(known["alone"]), [], shard.input_order()
    for m, (name, fit) in enumerate(known["alone"].items()):
        says, columns = _said(shard, known, fit, m)
        told.append(says)
        for kind, values in columns.items():
            table = table.append_column(f"{kind}_{name}", values if order is None else values.take(pa.array(order)))
    counts = write_rows(shard, known, table, facts)
    gaps = against(torch.stack(told), known["telling"], classes=known["setup"].task == "classification")
    for name, gap in zip(names, gaps, strict=True):
        counts[f"against_{name}"] = examples(shard, table, gap, "gap")
    return counts


def against(says: Tensor, telling: list[bool], *, classes: bool) -> Tensor:
    """Return by how much the best other band says each label better than this one, (bands, n); -inf where it does not,
    where either lacks the row, or, of margins, where it is not itself for the label or this band is not against it.
    Bands that are not `telling`, as they predict no better than guessing, support nothing."""
    supporting = says.nan_to_num(-torch.inf).masked_fill(~torch.tensor(telling)[:, None], -torch.inf)
    gaps = torch.full_like(says, -torch.inf)
    for m in range(len(says)):
        others = torch.cat([supporting[:m], supporting[m + 1 :]]).amax(0)
        stands = (others > 0) & (says[m] < 0) if classes else others > says[m]
        gaps[m] = torch.where(stands, others - says[m], -torch.inf).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    return gaps


def _said(shard: Shard, known: Known, fit: Alone, band: int) -> tuple[Tensor, dict[str, pa.Array]]:
    """Return how well a band alone says each label, larger is better and NaN where it is missing, and its columns."""
    setup: Setup = known["setup"]
    classes, found = setup.task == "classification", []
    for b in blocks(shard, known):
        Z = b.Z[:, fit.columns].to(fit.W.dtype)
        F = multiply(Z, fit.W)
        F = F if b.offset is None else F + b.offset.to(F)
        Y = b.Y if b.Y.ndim == 1 else b.Y.to(F)
        r = losses.subtract_from_targets(Y, F)
        try:
            left = leave_out(multiply(Z, fit.whiten), r, b.alpha.to(F), b.group_rows)
        except LeverageError as error:
            raise leverage_error(shard, b.start + error.row, error.leverage) from error
        outputs, Y = (F + r - left.e).cpu(), Y.cpu()
        found.append((margins(outputs, Y), outputs.argmax(1)) if classes else (losses.squared(outputs, Y)[0],))
    says, *predicted = (torch.cat(parts) for parts in zip(*found, strict=True))
    says = says.float()
    absent = shard.missing[band]
    gone: Any = None if absent is None else absent.numpy()
    if not classes or setup.classes is None:
        return (-says if absent is None else (-says).masked_fill(absent, torch.nan)), {
            "loss": pa.array(says.numpy(), mask=gone)
        }
    codes = pa.array(predicted[0].numpy(), mask=gone)
    said = says if absent is None else says.masked_fill(absent, torch.nan)
    return said, {"margin": pa.array(says.numpy(), mask=gone), "predicted": setup.classes.take(codes)}
