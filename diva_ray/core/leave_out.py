"""Predictions without one's own row or group, exactly, from one fit (paper eq. 13 and its block form)."""

from __future__ import annotations

from collections.abc import Sequence
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
        groups: those of two or more rows, by their size.
    """

    e: Tensor
    q: Tensor
    room: Tensor
    groups: tuple[Small | Large, ...]

    @property
    def least_room(self) -> float:
        """1 less the largest leverage of a row or group: what rounding is divided by."""
        rooms = [self.room, *(group.room for group in self.groups)]
        return min((float(room.min()) for room in rooms if len(room)), default=1.0)


@dataclass(frozen=True)
class Small:
    """m groups of k rows each, by their k x k matrices.

    Attributes:
        rows: (m, k).
        Q: Q_G = U_G U_G', (m, k, k).
        factor: I - Q_G D_G, (m, k, k).
        room: 1 less the largest eigenvalue of D^1/2 Q_G D^1/2, (m,).
    """

    rows: Tensor
    Q: Tensor
    factor: Tensor
    room: Tensor

    @staticmethod
    def of(rows: Tensor, Q: Tensor, alpha: Tensor, room: Tensor) -> Small:
        """Return the groups with these rows; `room` is 1 - h of every row. Raises as `leave_out`."""
        root = alpha[rows].sqrt()
        least = _room_of_groups(rows, root[:, :, None] * Q * root[:, None, :])
        factor = -Q * alpha[rows][:, None, :]
        factor.diagonal(dim1=1, dim2=2).copy_(room[rows])
        return Small(rows, Q, factor, least)

    def solve(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return (I - Q_G D_G)^-1 x."""
        return torch.linalg.solve(self.factor, x)

    def solve_adjoint(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return (I - Q_G D_G)^-T x."""
        return torch.linalg.solve(self.factor.mT, x)

    def reach(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return Q_G x."""
        return self.Q @ x

    def inner(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m _ c"]:
        """Return x in the coordinates in which `kernel` and B_G are small: the rows'."""
        return x

    def kernel(self) -> Float[Tensor, "m _ _"]:
        """Return R_G = (I - Q_G D_G) Q_G in these coordinates: tr(B_G R_G) is that of the inner B_G by it."""
        return self.factor @ self.Q

    def reaches(self, kernel: Float[Tensor, "m _ _"]) -> Float[Tensor, "m k"]:
        """Return the diagonal of R_G from the kernel."""
        return kernel.diagonal(dim1=1, dim2=2)

    def turned(self, V: Float[Tensor, "m _ _"], U: Float[Tensor, "n p"]) -> Float[Tensor, "m _ p"]:
        """Return the rows V'U_G, whose weighted sum of squares is U_G' B_G U_G where V diag(w) V' is the inner B_G."""
        return V.mT @ U[self.rows]


@dataclass(frozen=True)
class Large:
    """m groups of k rows each, more than there are columns: p x p matrices stand for theirs (Woodbury).

    Attributes:
        rows: (m, k); `U`: their whitened features, (m, k, p); `alpha`: their weights, (m, k, 1).
        S: I - U_G' D_G U_G, (m, p, p); `root` its Cholesky factor.
        room: 1 less the largest eigenvalue of U_G' D_G U_G, (m,).
    """

    rows: Tensor
    U: Tensor
    alpha: Tensor
    S: Tensor
    root: Tensor
    room: Tensor

    @staticmethod
    def of(rows: Tensor, U: Tensor, alpha: Tensor) -> Large:
        """Return the groups with these rows. Raises as `leave_out`."""
        weighted = alpha[rows][..., None] * U
        taken = U.mT @ weighted
        least = _room_of_groups(rows, taken)
        S = torch.eye(U.shape[2], dtype=U.dtype, device=U.device) - taken
        return Large(rows, U, alpha[rows][..., None], S, torch.linalg.cholesky(S), least)

    def solve(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return (I - Q_G D_G)^-1 x = x + U_G S^-1 U_G' D_G x."""
        return x + self.U @ torch.cholesky_solve(self.U.mT @ (self.alpha * x), self.root)

    def solve_adjoint(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return (I - Q_G D_G)^-T x = x + D_G U_G S^-1 U_G' x."""
        return x + self.alpha * (self.U @ torch.cholesky_solve(self.U.mT @ x, self.root))

    def reach(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k c"]:
        """Return Q_G x."""
        return self.U @ (self.U.mT @ x)

    def inner(self, x: Float[Tensor, "m k c"]) -> Float[Tensor, "m _ c"]:
        """Return U_G'x: R_G = U_G S U_G'."""
        return self.U.mT @ x

    def kernel(self) -> Float[Tensor, "m _ _"]:
        """Return S."""
        return self.S

    def reaches(self, kernel: Float[Tensor, "m _ _"]) -> Float[Tensor, "m k"]:
        """Return the diagonal of R_G."""
        return ((self.U @ kernel) * self.U).sum(2)

    def turned(self, V: Float[Tensor, "m _ _"], U: Float[Tensor, "n p"]) -> Float[Tensor, "m _ p"]:
        """Return V': the inner B_G is U_G' B_G U_G itself."""
        return V.mT


def _room_of_groups(rows: Tensor, taken: Tensor) -> Tensor:
    """Return 1 less the largest eigenvalue of every group's D^1/2 Q D^1/2, or of U'DU; raise if that reaches 1."""
    room = 1 - torch.linalg.eigvalsh(taken)[:, -1]
    check_leverage(room, rows[:, 0])
    return room


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

    Exact: equal to refitting without the group. n p operations for rows alone, n k p + n k^2 for groups of k <= p rows,
    n p^2 and p^3 a group for larger ones.

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
    room = 1 - alpha * q
    check_leverage(room)
    groups = []
    for rows in group_rows:
        own = U[rows]
        large = rows.shape[1] > U.shape[1]
        groups.append(Large.of(rows, own, alpha) if large else Small.of(rows, own @ own.mT, alpha, room))
    return _left_out(r, q, room, groups)


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
    return _left_out(r, q, room, [Small.of(rows, Q, alpha, room) for rows, Q in blocks])


def left_out_residuals(
    r: Float[Tensor, "n c"],
    alpha: Float[Tensor, " n"],
    room: Float[Tensor, " n"],
    groups: list[tuple[Int[Tensor, "_ _"], Float[Tensor, "_ _ p"]]],
    mean_variance: float,
) -> Float[Tensor, "n c"]:
    """Return e alone, as `leave_out`, for a search among ridges: Cholesky factors say whether a leverage reaches 1, at
    a fraction of the cost of eigenvalues. n k p + n k^2 operations for groups of k <= p rows, n p^2 and p^3 a group for
    larger ones.

    Args:
        room: 1 - alpha q of every row.
        groups: rows (m, k) and their whitened features (m, k, p), without the intercept.
        mean_variance: what the intercept adds to z' A^-1 z; 0 without one.

    Raises:
        ValueError: as `leave_out`.
    """
    check_leverage(room)
    e = r / room[:, None]
    for rows, U in groups:
        own, root = r[rows], alpha[rows].sqrt()[..., None]
        if rows.shape[1] > U.shape[2] + 1:
            whole = torch.cat([U, U.new_full((*rows.shape, 1), mean_variance**0.5)], 2)
            weighted = root * whole
            moved = torch.cholesky_solve(weighted.mT @ (root * own), _factor_of_room(rows, weighted.mT @ weighted))
            e[rows] = own + whole @ moved
        else:
            Q = U @ U.mT + mean_variance
            moved = torch.cholesky_solve(root * own, _factor_of_room(rows, root * Q * root.mT))
            e[rows] = own + Q @ (root * moved)  # and not over the root, which may be 0
    return e


def _factor_of_room(rows: Tensor, taken: Tensor) -> Tensor:
    """Return the Cholesky factors of I - taken; raise if an eigenvalue of `taken` reaches 1."""
    least, n = least_room_of(taken.dtype), taken.shape[1]
    room = torch.eye(n, dtype=taken.dtype, device=taken.device) - taken
    factor, failed = torch.linalg.cholesky_ex(room)
    below = taken.flatten(1).norm(dim=1) < 1 - least  # and so is every eigenvalue
    close = torch.nonzero(~below | (failed != 0)).squeeze(1)
    if len(close):
        room.diagonal(dim1=1, dim2=2).sub_(least)
        lost = close[torch.nonzero(torch.linalg.cholesky_ex(room[close])[1] | failed[close]).squeeze(1)]
        if len(lost):
            raise LeverageError(int(rows[lost[0], 0]), float(torch.linalg.eigvalsh(taken[lost[0]])[-1]))
    return factor


def _left_out(r: Tensor, q: Tensor, room: Tensor, groups: Sequence[Small | Large]) -> LeftOut:
    e = r / room[:, None]
    for group in groups:
        e[group.rows] = group.solve(r[group.rows])
    return LeftOut(e, q, room, tuple(groups))


def check_leverage(room: Float[Tensor, " n"], rows: Int[Tensor, " n"] | None = None) -> None:
    """Raise if 1 - h is lost in rounding: a left-out residual would be noise, never a silent clamp.

    Of a group, h is the largest eigenvalue of D^1/2 Q D^1/2, and `rows` names its first row.
    """
    lost = torch.nonzero(~(room > least_room_of(room.dtype))).squeeze(1)
    if len(lost):
        first = int(lost[0])
        raise LeverageError(first if rows is None else int(rows[first]), 1 - float(room[first]))


def least_room_of(dtype: torch.dtype) -> float:
    """Return how near to 1 a leverage may come."""
    return 1e-5 if dtype == torch.float32 else 1e-10


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
    for group in left.groups:
        t[group.rows] = group.solve_adjoint(g[group.rows])
    return t, own_moves(left, t, left.e)


def own_moves(left: LeftOut, t: Float[Tensor, "n k"], x: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return (Q_G t)_j . x_j of every row."""
    own = left.q * row_dot(t, x)
    for group in left.groups:
        rows = group.rows
        own[rows] = row_dot(group.reach(t[rows]).flatten(0, 1), x[rows].flatten(0, 1)).unflatten(0, rows.shape)
    return own
