"""Fit sums of some of the columns, or of their random projections, from the sums of all: no new look at a row."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.products import multiply, symmetric
from diva_ray.core.ridge import FitSums


def gaussian_projection(width: int, columns: int, name: str, seed: int) -> Float[Tensor, "d k"]:
    """Return R with independent entries of N(0, 1 / columns): |x R|^2 = |x|^2 on average.

    A pure function of its arguments: a band has the same projection whichever other bands there are.

    References:
        Johnson and Lindenstrauss 1984; Dasgupta and Gupta 2003.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), width, columns])
    return torch.from_numpy(generator.standard_normal((width, columns)) / columns**0.5)


def projections(names: tuple[str, ...], widths: list[int], columns: int | None, seed: int) -> tuple[Tensor | None, ...]:
    """Return the projection of every band that has more than `columns` columns; () where no band has."""
    found = [
        gaussian_projection(width, columns, name, seed) if columns and width > columns else None
        for name, width in zip(names, widths, strict=True)
    ]
    return tuple(found) if any(one is not None for one in found) else ()


def row_spaces(Z: Float[Tensor, "n p"], bands: list[slice]) -> list[Float[Tensor, "d k"] | None]:
    """Return an orthonormal basis of the rows of every band that has more columns than there are rows, else None.

    A fit whose penalty is one number on the band is the same on the rows' coordinates in it: solution, leverages and
    derivatives, exactly. 2 n^2 d operations a band.
    """
    return [
        torch.linalg.qr(Z[:, band].T.double()).Q.contiguous() if band.stop - band.start > len(Z) else None
        for band in bands
    ]


def restrict(sums: FitSums, columns: Int[Tensor, " k"], project: list[tuple[slice, Tensor]]) -> FitSums:
    """Return the fit sums of some columns, some of which are then projected: T'GT and T'C.

    T is the identity but for blocks R; exact up to rounding. About 2 p^2 k operations for blocks of k columns in all.

    Args:
        sums: fit sums of p columns, upper triangle.
        columns: which of them, ascending.
        project: which of the chosen columns are replaced by their projection R, in order; the others stay.
    """
    part = sums.columns(columns)
    gram, cross = symmetric(part.gram), part.cross.double()
    for part, R in reversed(project):  # from the last block, so that earlier positions stay true
        left = torch.cat([gram[:, : part.start], multiply(gram[:, part].contiguous(), R), gram[:, part.stop :]], 1)
        gram = torch.cat([left[: part.start], multiply(R.T, left[part].contiguous()), left[part.stop :]])
        cross = torch.cat([cross[: part.start], multiply(R.T, cross[part].contiguous()), cross[part.stop :]])
    return FitSums(gram.contiguous(), cross.contiguous())


def rescale(sums: FitSums, factor: Float[Tensor, " k"]) -> FitSums:
    """Return the fit sums of columns that are multiplied by a factor each."""
    return FitSums(factor[:, None] * sums.gram * factor, factor[:, None] * sums.cross)


def expand(W: Float[Tensor, "k c"], project: list[tuple[slice, Tensor]]) -> Float[Tensor, "p c"]:
    """Return the solution in the chosen columns themselves, T W: its outputs on them are those of W on projections."""
    parts, at, start = [], 0, 0
    for part, R in project:
        unchanged = part.start - start
        parts += [W[at : at + unchanged], multiply(R, W[at + unchanged : at + unchanged + R.shape[1]].contiguous())]
        at, start = at + unchanged + R.shape[1], part.stop
    return torch.cat([*parts, W[at:]])
