"""Left-out predictions of a shard's rows: what is kept of them, and how they are computed again block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.core.derivative import OwnTerms
from diva_ray.core.leave_out import LeftOut, LeverageError, leave_out, solve_left_out
from diva_ray.core.products import multiply, multiply_triangular_
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Block, Known
from diva_ray.engine.setup import Setup
from diva_ray.errors import LostLeverageError


class RowStore:
    """Per-row results of a shard, on the CPU, filled block by block.

    Attributes:
        r, outputs: residuals of the fit and left-out outputs, (n, c), or None where they are not kept.
        own, drawn, reach, bend: what its own group adds to a row, see `core.derivative.OwnTerms`; but the first only
            with sign vectors.
        leverage, loss: (n,), in the dtype of the products; `wrong`: counted error, float64. `q`: z' A^-1 z.
        least_room: 1 less the largest leverage of a row or group.
        given, margin, predicted: of classes only: left-out output of the given label, its margin, the best class.
    """

    def __init__(self, n: int, setup: Setup) -> None:
        kept, self.least_room = n if setup.keeps_outputs else 0, 1.0
        self.r, self.outputs = (torch.empty(kept, setup.outputs, dtype=setup.dtype) for _ in range(2))
        self.own, self.leverage, self.q, self.loss, self.given, self.margin = (
            torch.empty(n, dtype=setup.dtype) for _ in range(6)
        )
        some = n if setup.vectors else 0
        self.reach, self.bend = (torch.empty(some, dtype=setup.dtype) for _ in range(2))
        self.drawn = torch.empty((some, setup.vectors) if setup.folding() else (some,), dtype=setup.dtype)
        self.wrong, self.predicted = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.int64)

    def own_terms(self, rows: slice, like: Tensor) -> OwnTerms:
        """Return what their own groups add to some rows, in the dtype and on the device of a tensor."""
        more = (self.drawn, self.reach, self.bend) if len(self.reach) else ()
        return OwnTerms(*(values[rows].to(like) for values in (self.own, *more)))

    def put(self, start: int, stop: int, **columns: Tensor) -> None:
        """Store one block; what is not kept is left."""
        for name, values in columns.items():
            kept = getattr(self, name)
            if len(kept):
                kept[start:stop] = values


def facts_of_outputs(outputs: Tensor, Y: Tensor, setup: Setup) -> dict[str, Tensor]:
    """Return what is kept of left-out outputs in any case: the counted error, and of classes three more numbers."""
    facts = {"wrong": losses.errors(outputs, Y, several=setup.task == "multilabel")}
    if setup.task == "classification":
        facts["given"] = outputs.gather(1, Y[:, None]).squeeze(1)
        facts["margin"], facts["predicted"] = margins(outputs, Y), outputs.argmax(1)
    return facts


def margins(outputs: Tensor, Y: Tensor) -> Tensor:
    """Return the output of every given label less the best other; NaN with one class."""
    if outputs.shape[1] < 2:
        return torch.full((len(Y),), torch.nan, device=Y.device)
    own = outputs.gather(1, Y[:, None])
    others = outputs.scatter(1, Y[:, None], -torch.inf)
    return own.squeeze(1) - others.amax(1)


def outputs_of(Z: Tensor, offset: Tensor | None, known: Known) -> Tensor:
    """Return the outputs of the fit, in the precision of the solution; 2 n p c operations."""
    W = known["solution"]["W"]
    F = multiply(Z.to(W.dtype), W)
    return F if offset is None else F + offset.to(F)


def fitted(b: Block, known: Known) -> tuple[Tensor, Tensor]:
    """Return the outputs of the fit to all rows, and its residuals, found in the precision of the solution."""
    F = outputs_of(b.Z, b.offset, known)
    r = losses.subtract_from_targets(b.Y, F)
    return F.to(b.Z.dtype), r.to(b.Z.dtype)


def left_out_of(shard: Shard, known: Known, b: Block, r: Tensor) -> tuple[Tensor, LeftOut]:
    """Return whitened features, in the memory of Z, and the left-out residuals of a block.

    Raises:
        LostLeverageError: a row that the model cannot do without.
    """
    U = multiply_triangular_(b.Z, known["solution"]["whiten"], upper=True)
    try:
        return U, leave_out(U, r, b.alpha, b.group_rows)
    except LeverageError as error:
        raise leverage_error(shard, b.start + error.row, error.leverage) from error


def outputs_again(shard: Shard, known: Known, b: Block, leverage: Tensor) -> Tensor:
    """Return the left-out outputs of a block whose leverages are known; 2 n p c operations, and n p^2 with groups."""
    F, r = fitted(b, known)
    e = left_out_of(shard, known, b, r)[1].e if b.group_rows else r / (1 - leverage)[:, None]
    return F.add_(r).sub_(e)


def left_out_again(b: Block, r: Tensor, q: Tensor) -> LeftOut:
    """Return the left-out residuals of a block without groups from the rows' known q = z' A^-1 z: the same bits."""
    q = q[b.start : b.stop].to(r)
    return solve_left_out(r, b.alpha, q, 1 - b.alpha * q, [])


def leverage_error(shard: Shard, row: int, leverage: float) -> LostLeverageError:
    """Return the error of a row that the model cannot do without."""
    return LostLeverageError(
        f"ridge: leverage must be below 1, got {leverage:.9g} at {shard.name(row)}. Increase `ridge` or use "
        "`precision=float64`; a row that is fitted alone (as without a fold) has 1 at any ridge: more must train."
    )
