"""A symmetric matrix made block tridiagonal: enough to solve with it under every ridge, at a third of the cost of its
eigenvectors, and in its own memory.

Products go through numpy, whose BLAS takes a part of a matrix as it lies; scipy's would copy it, torch's is slow on
AMD (see `products`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import lapack
from torch import Tensor

from diva_ray.core.products import multiply, multiply_add_

WIDTH = 64  # of a tile: at 32 and 48 the reduction is slower, and a pass no faster; at 96 both are slower
SLAB = 8  # rows of tiles that a product works on at a time
# Measured, seconds of one thread: tiles save 0.9, 7 and 81 at 2,048, 4,096 and 8,192 columns; a pass over 20 ridges
# takes 0.12 us more a row and column under them. They pay up to k^2 / 1,200 (4,096) and k^2 / 820 (8,192) rows, if all
# is done by one; but passes are shared out, and one process reduces while the others wait: a second of it counts twice.
NARROWEST = 4096
ROWS = 1 / 400


def takes_tiles(k: int, rows: int) -> bool:
    """Return whether k columns are better reduced to tiles than to eigenvalues, for a pass over so many rows.

    Of the sizes alone: the bits of a result are the same on every engine.
    """
    return k >= NARROWEST and rows < ROWS * k * k


@dataclass(frozen=True)
class Tiles:
    """A symmetric block tridiagonal matrix B, float64, padded with zeros to whole tiles.

    Attributes:
        diagonal: B_jj, (tiles, b, b).
        below: B_j+1,j, (tiles, b, b); the last is 0.
    """

    diagonal: Tensor
    below: Tensor


def block_tridiagonal_(A: Float[Tensor, "k k"]) -> Tiles:
    """Return B = Q'AQ of a symmetric A on a CPU, in whose memory is the orthogonal Q then; 8/3 k^3 operations.

    The first stage of a reduction in two stages: of every column of tiles all below the second is made 0 by Householder
    reflectors Q = I - V T V', and Q'(rest)Q = rest - X V' - V X', with Y = (rest) V T and X = Y - V (V T)'Y / 2. Their
    product then takes the place of the columns of V, from the last to the first.

    Raises:
        ValueError: A is not finite.

    References:
        Bischof, Lang, Sun 2000, ACM TOMS 26(4), "A framework for symmetric band reduction".
    """
    if not all(bool(part.isfinite().all()) for part in A.split(512)):
        raise ValueError("rotate: sums must be finite, got NaN or infinity. Scale the features, or give `ridge`.")
    a, b = A.numpy(), WIDTH
    k, count = len(a), -(-len(a) // b)
    diagonal, below = np.zeros((2, count, b, b))
    work, triangles = np.empty(SLAB * b * k), []
    for j in range(count):
        at, s = j * b, (j + 1) * b
        tile, panel = a[at:s, at:s], a[s:, at:s]
        diagonal[j, : len(tile), : len(tile)] = tile
        if len(panel) > b:
            reflected, T, _ = lapack.dgeqrt(b, panel)
            below[j] = np.triu(reflected[:b])
            panel[:] = np.tril(reflected, -1)
            np.fill_diagonal(panel, 1.0)
            triangles.append(T)
            _reflect(a, s, panel.copy(), T, work)
        else:
            below[j, : len(panel), : len(tile)] = panel
    _accumulate(a, triangles, work)
    return Tiles(torch.from_numpy(diagonal), torch.from_numpy(below))


def _slabs(s: int, k: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows from s to k."""
    step = SLAB * WIDTH
    while s < k:
        stop = min((s // step + 1) * step, k)
        yield s, stop
        s = stop


def _product(a: np.ndarray, b: np.ndarray, work: np.ndarray) -> np.ndarray:
    return np.matmul(a, b, out=work[: len(a) * b.shape[1]].reshape(len(a), b.shape[1]))


def _reflect(a: np.ndarray, s: int, V: np.ndarray, T: np.ndarray, work: np.ndarray) -> None:
    """Apply I - V T V' to a[s:, s:] from both sides. Of it slabs of rows up to the diagonal are read and kept."""
    W, Y = (V @ T).T.copy(), np.zeros((V.shape[1], len(V)))
    for i, e in _slabs(s, len(a)):
        Y[:, : e - s] += _product(W[:, i - s : e - s], a[i:e, s:e], work)
        Y[:, i - s : e - s] += _product(W[:, : i - s], a[i:e, s:i].T, work)
    X = Y - 0.5 * (Y @ W.T) @ V.T
    left, right = np.concatenate([X.T, V], 1), np.concatenate([V.T, X])
    for i, e in _slabs(s, len(a)):
        a[i:e, s:e] -= _product(left[i - s : e - s], right[:, : e - s], work)


def _accumulate(a: np.ndarray, triangles: list[np.ndarray], work: np.ndarray) -> None:
    """Write the product of all reflectors over the columns of a that hold them, from the last to the first."""
    b, done = WIDTH, (len(triangles) + 1) * WIDTH
    a[done:, done:] = np.eye(max(0, len(a) - done))
    for j in reversed(range(len(triangles))):
        s, e = (j + 1) * b, (j + 2) * b
        V = a[s:, s - b : s].copy()
        _unit(a, s, e)
        left, right = V @ triangles[j], V.T @ a[s:, s:]
        for i, stop in _slabs(s, len(a)):
            a[i:stop, s:] -= _product(left[i - s : stop - s], right, work)
    _unit(a, 0, b)


def _unit(a: np.ndarray, s: int, e: int) -> None:
    """Make rows and columns s to e of a[s:, s:] those of the identity."""
    a[s:, s:e], a[s:e, s:] = 0, 0
    np.fill_diagonal(a[s:e, s:e], 1.0)


@dataclass(frozen=True)
class Chain:
    """Cholesky factors L of B + ridge I for some ridges, as whitening takes them.

    Attributes:
        inverse: L_jj^-1, (ridges, tiles, b, b); NaN from where B + ridge I is not positive definite.
        carry: -L_jj^-1 L_j,j-1, (ridges, tiles, b, b).
    """

    inverse: Tensor
    carry: Tensor

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.inverse.shape[-1]

    def whitened(self, ridge: int, X: Float[Tensor, "k n"]) -> Iterator[Float[Tensor, "_ n"]]:
        """Yield L^-1 X, tile by tile of rows; 4 n k b operations."""
        before = None
        for j, x in enumerate(X.split(self.width)):
            h = len(x)
            found = multiply(self.inverse[ridge, j, :h, :h], x)
            if before is not None:
                multiply_add_(found, self.carry[ridge, j, :h], before)
            yield found
            before = found


def factor(tiles: Tiles, ridges: Float[Tensor, " ridges"], dtype: torch.dtype) -> Chain:
    """Return the factors for every ridge, found in float64; 3 k b^2 operations a ridge."""
    count, b, _ = tiles.diagonal.shape
    inverse = torch.empty(len(ridges), count, b, b, dtype=dtype)
    carry = torch.empty_like(inverse)
    identity = torch.eye(b, dtype=torch.float64)
    shift = ridges.double()[:, None, None] * identity
    coupled = torch.zeros_like(shift)
    for j in range(count):
        L, lost = torch.linalg.cholesky_ex(tiles.diagonal[j] + shift - coupled @ coupled.mT)
        L[lost > 0] = torch.nan
        Linv = torch.linalg.solve_triangular(L, identity, upper=False)
        inverse[:, j], carry[:, j] = Linv, -Linv @ coupled
        coupled = tiles.below[j] @ Linv.mT
    return Chain(inverse, carry)
