"""Leave-one-out loss of a whole grid of ridges from one orthogonal reduction and one pass.

Reduced to its eigenvalues, A(ridge) is diagonal for every ridge; reduced to block tridiagonal form, at a fraction of
that cost, solving with it is cheap: for wide tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.factors import eigen_
from diva_ray.core.leave_out import LeverageError, check_leverage, least_room_of, left_out_residuals
from diva_ray.core.losses import squares, subtract_from_targets
from diva_ray.core.products import multiply, multiply_add_, multiply_triangular_, row_dot, symmetric
from diva_ray.core.reduction import Chain, Tiles, block_tridiagonal_, factor, takes_tiles
from diva_ray.core.ridge import FitSums

GRID_RIDGES = 20  # that are tried
SIDE_BY_SIDE = 8192  # outputs of different ridges in one product
IN_CACHE = 512  # of them that are worked on at a time


@dataclass(frozen=True)
class Family:
    """A(ridge) for the ridges of a grid, in the dtype of the products with rows.

    Attributes:
        basis, cross, mean, mean_variance: as of the `Rotation`.
        ridges: (ridges,), float64.
        shrink: 1 / (e + ridge) of every eigenvalue e, (k, ridges); None if reduced to tiles.
        chain: factors of the tiles under every ridge; None if reduced to eigenvalues.
    """

    basis: Tensor
    cross: Tensor
    mean: Tensor
    mean_variance: float
    ridges: Tensor
    shrink: Tensor | None
    chain: Chain | None


@dataclass(frozen=True)
class Rotation:
    """Coordinates x = Z basis in which A(ridge) is B + ridge I for every ridge, intercept apart.

    Attributes:
        basis: (p, k); its first row moves the origin to the weighted mean when there is an intercept.
        values: diagonal of B, the centred Gram matrix in units of the penalty pattern, (k,): its eigenvalues, or the
            diagonal of the tiles.
        cross: x-coordinates of Z' D_alpha Y, (k, c).
        mean: weighted mean of the targets, (c,); 0 without an intercept.
        mean_variance: 1 / sum alpha; 0 without an intercept.
        tiles: B where it is block tridiagonal; None where it is diagonal.
    """

    basis: Tensor
    values: Tensor
    cross: Tensor
    mean: Tensor
    mean_variance: float
    tiles: Tiles | None = None

    def at(self, ridges: Float[Tensor, " ridges"], dtype: torch.dtype = torch.float64) -> Family:
        """Return what rows meet for these ridges, in the dtype of their products."""
        basis, cross, mean = (t.to(dtype) for t in (self.basis, self.cross, self.mean))
        if self.tiles is not None:
            chain = factor(self.tiles, ridges, dtype)
            return Family(basis, cross, mean, self.mean_variance, ridges, None, chain)
        shrink = (1 / (self.values[:, None] + ridges)).to(dtype)
        return Family(basis, cross, mean, self.mean_variance, ridges, shrink, None)


def rotate(sums: FitSums, pattern: Float[Tensor, " p"], rows: int | None = None) -> Rotation:
    """Return the rotation of the family A(ridge) = Z' D_alpha Z + ridge diag(pattern).

    About 9 p^3 operations for eigenvalues, 8/3 p^3 for tiles, taken on a CPU where both passes and this are cheaper so.

    Args:
        sums: merged fit sums.
        pattern: relative penalty of every column, > 0, but 0 on the intercept, column 0, if there is one.
        rows: how many the grid will be asked of; None: eigenvalues, whatever they cost (`grid_squares` needs them).
    """
    gram, cross = symmetric(sums.gram), sums.cross.double()
    first = int(pattern[0] == 0)
    scale = pattern[first:].rsqrt()
    mean = torch.zeros(0, dtype=torch.float64)
    target, variance = torch.zeros_like(cross[0]), 0.0
    body, body_cross = gram[first:, first:], cross[first:]
    if first:
        mean, target, variance = gram[0, 1:] / gram[0, 0], cross[0] / gram[0, 0], 1.0 / float(gram[0, 0])
        body, shift = body.contiguous(), gram[1:, 0].clone()
        del gram  # and every view of it
        for part, shifts in zip(body.split(512), shift.split(512), strict=True):
            part.sub_(torch.outer(shifts, mean))
        body_cross = body_cross - torch.outer(mean, cross[0])
    body.mul_(scale[:, None]).mul_(scale)
    tiles = None
    if rows is not None and body.is_cpu and takes_tiles(len(body), rows):
        tiles, basis = block_tridiagonal_(body), body
        values = tiles.diagonal.diagonal(dim1=1, dim2=2).flatten()[: len(body)].clone()
    else:
        values, basis = eigen_(body)
        values.clamp_min_(0)
    basis.mul_(scale[:, None])
    rotated_cross = multiply(basis.T, body_cross)
    if first:
        basis = torch.cat([-(mean @ basis)[None], basis])
    return Rotation(basis, values, rotated_cross, target, variance, tiles)


def default_ridges(rotation: Rotation, rows: int, count: int = GRID_RIDGES) -> Float[Tensor, " ridges"]:
    """Return `count` ridges from 1e-6 to 1e3 times the mean eigenvalue, in equal ratios.

    The mean is over as many as there are rows, if those are fewer: the p x p and the n x n form try the same ridges.
    """
    mean = float(rotation.values.sum()) / min(len(rotation.values), rows)
    return mean * torch.logspace(-6, 3, count, dtype=torch.float64)


def weighted_sums(
    values: Float[Tensor, "measures n ridges"], v: Float[Tensor, " n"]
) -> Float[Tensor, "measures ridges"]:
    """Return sum_i v_i m_i for every measure and ridge; infinite where a leverage reaches 1."""
    refused = torch.isinf(values).any(1)
    sums = torch.einsum("n,mnk->mk", v.double(), values.masked_fill(refused[:, None], 0.0))
    return sums.masked_fill(refused, torch.inf).cpu()


def grid_values(
    Z: Float[Tensor, "n p"],
    Y: Tensor,
    alpha: Float[Tensor, " n"],
    offset: Float[Tensor, "n c"] | None,
    group_rows: list[Int[Tensor, "_ _"]],
    family: Family,
    measures: Sequence[Callable[[Tensor, Tensor], Tensor]],
) -> Float[Tensor, "measures n ridges"]:
    """Return m(f_i, y_i) of left-out outputs for every measure (F, Y) -> (n,), row of a block and ridge, float64.

    2 n p^2 + 2 n p (c + 1) ridges operations by eigenvalues, and 4 (n + c) p b ridges by tiles of b columns. Infinite
    where a leverage reaches 1.
    """
    found = torch.empty(len(measures), len(Z), len(family.ridges), dtype=torch.float64, device=Z.device)
    fits = _by_eigenvalues if family.chain is None else _by_tiles
    for k, (fitted, q, own) in enumerate(fits(Z, family, group_rows)):
        F = fitted if offset is None else fitted + offset
        r = subtract_from_targets(Y, F)
        try:
            e = left_out_residuals(r, alpha, 1 - alpha * q, own, family.mean_variance)
        except LeverageError:
            found[..., k] = torch.inf  # this ridge is too small for these features: not a candidate
            continue
        outputs = F + r - e
        for j, measure in enumerate(measures):
            found[j, :, k] = measure(outputs, Y)
    return found


def grid_squared_errors(
    Z: Float[Tensor, "n p"],
    Y: Tensor,
    alpha: Float[Tensor, " n"],
    offset: Float[Tensor, "n c"] | None,
    group_rows: list[Int[Tensor, "_ _"]],
    family: Family,
) -> Float[Tensor, "n ridges"]:
    """Return what `grid_values` does for the squared error; of rows alone, by eigenvalues, for all ridges side by side:
    of narrow tables a ridge alone is more calls than work."""
    if group_rows or family.shrink is None:
        return grid_values(Z, Y, alpha, offset, group_rows, family, (squares,))[0]
    X, shrink = multiply(Z, family.basis), family.shrink
    room = 1 - alpha[:, None] * (multiply(X.square(), shrink) + family.mean_variance)
    found = torch.empty(len(Z), len(family.ridges), dtype=torch.float64, device=Z.device)
    fixed = family.mean if offset is None else (family.mean + offset)[:, None]
    for first, predictions in _side_by_side(X, shrink, family.cross):
        some = max(1, IN_CACHE // family.cross.shape[1])
        for k, part in zip(range(first, len(family.ridges), some), predictions.split(some, 1), strict=False):
            e = subtract_from_targets(Y, part + fixed) / room[:, k : k + some, None][:, : part.shape[1]]
            found[:, k : k + part.shape[1]] = e.square_().sum(2)
    # A ridge that is too small for these features is not a candidate.
    return found.masked_fill_(~(room > least_room_of(room.dtype)).all(0), torch.inf)


# Of every ridge: what it fits (n, c), q (n,) and the groups' rows with those whitened, the intercept apart.
Groups = list[tuple[Tensor, Tensor]]
Fits = Iterator[tuple[Tensor, Tensor, Groups]]


def _by_eigenvalues(Z: Tensor, family: Family, group_rows: list[Tensor]) -> Fits:
    """Yield the fit at every ridge: q = sum_k x_k^2 / (e_k + ridge) + 1 / sum alpha."""
    X, shrink = multiply(Z, family.basis), family.shrink
    assert shrink is not None
    leverages = multiply(X.square(), shrink) + family.mean_variance
    groups = [(rows, X[rows]) for rows in group_rows]
    for first, predictions in _side_by_side(X, shrink, family.cross):
        for k, prediction in enumerate(predictions.unbind(1), first):
            yield prediction + family.mean, leverages[:, k], [(rows, U * shrink[:, k].sqrt()) for rows, U in groups]


def _side_by_side(X: Tensor, shrink: Tensor, cross: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield a ridge's place, and the predictions (n, some, c) of some ridges from there on, from one product; without
    the mean."""
    at_once = max(1, SIDE_BY_SIDE // cross.shape[1])
    for first in range(0, shrink.shape[1], at_once):
        solutions = shrink[:, first : first + at_once, None] * cross[:, None, :]
        yield first, multiply(X, solutions.flatten(1)).unflatten(1, solutions.shape[1:])


def _by_tiles(Z: Tensor, family: Family, group_rows: list[Tensor]) -> Fits:
    """Yield the fit at every ridge: u = L^-1 x, q = |u|^2 + 1 / sum alpha, and x'w = u' L^-1 C; summed tile by tile, in
    the cache."""
    X, chain = multiply(family.basis.T, Z.T), family.chain
    assert chain is not None
    for k in range(len(family.ridges)):
        cross = torch.cat(list(chain.whitened(k, family.cross)))
        F, squares, parts = X.new_zeros(X.shape[1], cross.shape[1]), X.new_zeros(chain.width, X.shape[1]), []
        for part, U in zip(cross.split(chain.width), chain.whitened(k, X), strict=True):
            squares[: len(U)].addcmul_(U, U)
            multiply_add_(F, U.T, part)
            if group_rows:
                parts.append(U)
        q = squares.sum(0) + family.mean_variance
        whitened = torch.cat(parts).T if group_rows else X
        yield F.add_(family.mean), q, [(rows, whitened[rows]) for rows in group_rows]


def outputs_factor(family: Family) -> Float[Tensor, "k k"]:
    """Return a lower R with |C'x| = |R'x| for C = `family.cross`, (k, c), k <= c; 2 k^2 c operations."""
    return torch.linalg.qr(family.cross.T, mode="r").R.T.contiguous()


def grid_squares(
    Z: Float[Tensor, "n p"],
    Y: Int[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    family: Family,
    factor: Float[Tensor, "k k"],
) -> Float[Tensor, "n ridges"]:
    """Return what `grid_values` does for the squared error of classes, rows alone, without a row's outputs.

    |y - f|^2 = 1 - 2 f_y + |f|^2, and |f|^2 by the factor of `outputs_factor`: 2 n p^2 + n p (p + 2) ridges operations,
    whatever c. By eigenvalues: with tiles each of these products would take a solve more.
    """
    assert family.shrink is not None
    X = multiply(Z, family.basis)
    mean, known = family.mean, Y >= 0
    to_mean, mean_square = multiply(family.cross, mean[:, None]), mean @ mean
    solution = torch.where(known, mean[Y], torch.zeros_like(alpha)), family.cross.T[Y]
    found = torch.empty(len(Z), len(family.ridges), dtype=torch.float64, device=Z.device)
    for k in range(len(family.ridges)):
        x = X * family.shrink[:, k]
        room = 1 - alpha * (row_dot(X, x) + family.mean_variance)
        try:
            check_leverage(room)
        except LeverageError:
            found[:, k] = torch.inf
            continue
        own = solution[0] + torch.where(known, row_dot(x, solution[1]), torch.zeros_like(alpha))
        along = multiply(x, to_mean).squeeze(1)
        whole = multiply_triangular_(x, factor, upper=False)
        squares = known.to(own) - 2 * own + row_dot(whole, whole) + 2 * along + mean_square
        found[:, k] = squares / room.square()
    return found
