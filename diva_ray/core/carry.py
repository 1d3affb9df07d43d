"""Fit sums carried to another centre and scale of the features, from the sums alone.

A band enters the fit as z = (x - m) s, and as 0 where the band is missing. Under m' and s' the same row enters as
z' = (s'/s) z + s' (m - m') e, e = 1 where the band is there: linear in the columns [1, Z, E], E the indicators of the
bands with gaps. Sums of those columns hence give the sums under every other centre and scale. Exact up to rounding; the
shift cancels little, because the centre of a table that changed a little lies near the old one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.bands import band_slices
from diva_ray.core.products import multiply, symmetric
from diva_ray.core.ridge import FitSums


@dataclass(frozen=True)
class Frame:
    """What the columns [1, Z of every band, E] of fit sums are.

    Attributes:
        means: centre of every band, (d,).
        scales: factor of every band.
        project: random projection (d, k) of a band's scaled columns, or None.
        gaps: bands that some row lacks, in ascending order: each has an indicator column, 1 where the band is there.
    """

    means: tuple[Tensor, ...]
    scales: tuple[float, ...]
    project: tuple[Tensor | None, ...]
    gaps: tuple[int, ...] = ()

    @property
    def widths(self) -> list[int]:
        """Columns of every band."""
        pairs = zip(self.means, self.project, strict=True)
        return [len(mean) if into is None else into.shape[1] for mean, into in pairs]

    @property
    def body(self) -> int:
        """Number of columns of 1 and Z."""
        return 1 + sum(self.widths)

    @property
    def width(self) -> int:
        """Number of all columns."""
        return self.body + len(self.gaps)

    def indicator(self, band: int) -> int:
        """Return the column that is 1 where a band is there: the 1 itself for a band without gaps."""
        return self.body + self.gaps.index(band) if band in self.gaps else 0


def carry(sums: FitSums, old: Frame, new: Frame) -> FitSums:
    """Return sums over the same rows in the columns of another frame; about 4 p^2 operations for every band.

    With D the factors s'/s, S the rows s' (m - m') and U = D G_ZE + S' G_EE / 2: Z''Z' = D G_ZZ D + U S + (U S)'.

    Args:
        sums: gram (upper triangle) and cross in the columns of `old`.
        old, new: frames of the same bands; a band with gaps only in `new` has none in these rows.
    """
    G, C = symmetric(sums.gram), sums.cross.double()
    bands = range(len(old.means))
    factor, shift = torch.ones(old.body, dtype=torch.float64), torch.zeros(len(bands), old.body, dtype=torch.float64)
    for band, part in enumerate(band_slices(old.widths, 1)):
        moved, into = new.scales[band] * (old.means[band] - new.means[band]).double(), new.project[band]
        factor[part] = new.scales[band] / old.scales[band]
        shift[band, part] = moved if into is None else multiply(moved[None], into.double())[0]
    there = torch.tensor([old.indicator(band) for band in bands])
    kept = torch.tensor([0, *(old.indicator(band) for band in new.gaps)])  # the indicators of the new frame
    body = slice(0, old.body)
    mixed = G[body][:, there]
    half = factor[:, None] * mixed + 0.5 * multiply(shift.T.contiguous(), G[there][:, there].contiguous())
    rank = multiply(half, shift)
    ZZ = factor[:, None] * G[body, body] * factor + rank + rank.T
    ZE = factor[:, None] * G[body][:, kept] + multiply(shift.T.contiguous(), G[there][:, kept].contiguous())
    gram = torch.zeros(new.width, new.width, dtype=torch.float64)
    gram[body, body], gram[body, new.body :] = ZZ, ZE[:, 1:]
    gram[new.body :, new.body :] = G[kept[1:]][:, kept[1:]]
    cross = factor[:, None] * C[body] + multiply(shift.T.contiguous(), C[there].contiguous())
    return FitSums(gram, torch.cat([cross, C[kept[1:]]]))


def distance(old: Frame, new: Frame) -> float:
    """Return how far the centres of two frames lie apart, of the bands the most, in the units of the new one: there
    rows are 1 from the centre, in root mean square. Sums carried lose eps times its square."""
    moved = zip(old.means, new.means, new.scales, strict=True)
    return max(float((before - now).norm()) * scale for before, now, scale in moved)


def of_fit(sums: FitSums, frame: Frame, *, intercept: bool) -> FitSums:
    """Return the sums of the fit's own columns: without the indicators, and without the 1 if there is no intercept."""
    columns = torch.arange(0 if intercept else 1, frame.body)
    return sums.columns(columns)


def pack(gram: Float[Tensor, "p p"]) -> Float[Tensor, " k"]:
    """Return the upper triangle row by row, p (p + 1) / 2 numbers."""
    return torch.from_numpy(gram.numpy()[_upper(len(gram))])


def unpack(packed: Float[Tensor, " k"], p: int) -> Float[Tensor, "p p"]:
    """Return the matrix whose upper triangle was packed; zeros below."""
    gram = torch.zeros(p, p, dtype=packed.dtype)
    gram.numpy()[_upper(p)] = packed.numpy()
    return gram


def _upper(p: int) -> np.ndarray:
    return ~np.tri(p, k=-1, dtype=bool)  # numpy takes a mask seven times as fast as torch
