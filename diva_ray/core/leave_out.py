"""Predictions without one's own row or group, exactly, from one fit (paper eq. 13 and its block form)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.products import row_dot


@dataclass(frozen=True)
class LeftOut:
    """Left-out residuals of a block of rows, and what the adjoint needs of them.

    Attributes:
        e: residual of every row under the model fitted without its group, (n, c).
        q: z' A^-1 z, (n,); the leverage is alpha q.
        room: 1 - h, (n,).
        blocks: for groups of two or more rows, by size k: rows (m, k), Q_G (m, k, k) and I - Q_G D_G (m, k, k).
    """

    e: Tensor
    q: Tensor
    room: Tensor
    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]


def rows_by_group_size(groups: Int[Tensor, " n"]) -> list[Int[Tensor, "_ _"]]:
    """Return the rows of every group with at least two rows, one (m, k) index for each group size k."""
    order = torch.argsort(groups, stable=True)
    _, counts = torch.unique_consecutive(groups[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    sizes = [int(k) for k in torch.unique(counts) if k > 1]
    return [order[starts[counts == k][:, None] + torch.arange(k, device=groups.device)] for k in sizes]


def leave_out(
    U: Float[Tensor, "n p"],
    r: Float[Tensor, "n c"],
    alpha: Float[Tensor, " n"],
    group_rows: list[Int[Tensor, "_ _"]],
) -> LeftOut:
    """Return e = (I - Q_G D_G)^-1 r for every group; r / (1 - h) for a row alone.

    Exact: equal to refitting without the group. n p operations for rows alone, n k p + n k^2 for groups of k rows.

    Args:
        U: whitened features Z L'^-1.
        r: residuals of the fit to all rows.
        alpha: sample weights, >= 0.
        group_rows: from `rows_by_group_size`; rows of no group here are left out alone.

    Raises:
        ValueError: a leverage reaches 1: without that row or group the model is undetermined.

    References:
        Dukler et al. 2022, eq. 12 and 13; Allen 1974 (PRESS).
    """
    q = row_dot(U, U)
    blocks = [(rows, U[rows] @ U[rows].mT) for rows in group_rows]
    return solve_left_out(r, alpha, q, 1 - alpha * q, blocks)


def solve_left_out(
    r: Float[Tensor, "n c"],
    alpha: Float[Tensor, " n"],
    q: Float[Tensor, " n"],
    room: Float[Tensor, " n"],
    blocks: list[tuple[Int[Tensor, "_ _"], Float[Tensor, "_ _ _"]]],
) -> LeftOut:
    """Return the left-out residuals from q, room = 1 - alpha q (given apart: the dual form knows it to full relative
    precision) and the blocks Q_G of groups of two or more rows. Raises as `leave_out`."""
    check_leverage(room)
    e = r / room[:, None]
    solved = []
    for rows, Q in blocks:
        factor = -Q * alpha[rows][:, None, :]
        factor.diagonal(dim1=1, dim2=2).copy_(room[rows])
        root = alpha[rows].sqrt()
        check_leverage(1 - torch.linalg.eigvalsh(root[:, :, None] * Q * root[:, None, :])[:, -1], rows[:, 0])
        e[rows] = torch.linalg.solve(factor, r[rows])
        solved.append((rows, Q, factor))
    return LeftOut(e, q, room, tuple(solved))


def check_leverage(room: Float[Tensor, " n"], rows: Int[Tensor, " n"] | None = None) -> None:
    """Raise if 1 - h is lost in rounding: a left-out residual would be noise, never a silent clamp.

    Of a group, h is the largest eigenvalue of D^1/2 Q D^1/2, and `rows` names its first row.
    """
    least = 1e-5 if room.dtype == torch.float32 else 1e-10
    lost = torch.nonzero(~(room > least)).squeeze(1)
    if len(lost):
        first = int(lost[0])
        raise LeverageError(first if rows is None else int(rows[first]), 1 - float(room[first]))


class LeverageError(ValueError):
    """A leverage that reaches 1, at `row` of the block that was given."""

    def __init__(self, row: int, leverage: float) -> None:
        self.row, self.leverage = row, leverage
        super().__init__(
            f"leave_out: leverage must be below 1, got {leverage:.9g} at row {row}. "
            "Increase `ridge` or use `precision=float64`."
        )


def adjoint(left: LeftOut, g: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
    """Return t = (I - Q_G D_G)^-T g and the own term (Q_G t)_j . e_j of every row.

    The own term is what the row's weight does to its own group's prediction through the two other terms of the
    derivative; subtracting it makes a row's derivative free of its own group's loss.
    """
    t = g / left.room[:, None]
    for rows, _, factor in left.blocks:
        t[rows] = torch.linalg.solve(factor.mT, g[rows])
    return t, own_moves(left, t, left.e)


def own_moves(left: LeftOut, t: Float[Tensor, "n k"], x: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return (Q_G t)_j . x_j of every row."""
    own = left.q * row_dot(t, x)
    for rows, Q, _ in left.blocks:
        own[rows] = row_dot((Q @ t[rows]).flatten(0, 1), x[rows].flatten(0, 1)).unflatten(0, rows.shape)
    return own
