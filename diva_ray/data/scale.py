"""How features enter the fit: which bands, how each is centred and scaled, and what it is projected onto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """How a band enters the fit: (x - mean) * scale, missing rows 0; an intercept column of 1 comes first.

    Attributes:
        mean: per band (d,), zeros when features are taken as given.
        scale: per band, 1 / root of the mean squared norm of the centred rows.
        bands: which of the shard's bands these are, in this order; None: all of them.
        shares: what each band's own scale was multiplied by the root of; () multiplies none.
        project: per band, a random projection (d, k) of its scaled columns, or None; () projects no band.
    """

    mean: tuple[Tensor, ...]
    scale: tuple[float, ...]
    intercept: bool
    bands: tuple[int, ...] | None = None
    project: tuple[Tensor | None, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def widths(self) -> list[int]:
        """Number of columns of every band as the fit sees it."""
        projections = self.project or (None,) * len(self.mean)
        pairs = zip(self.mean, projections, strict=True)
        return [len(mean) if into is None else into.shape[1] for mean, into in pairs]

    @property
    def width(self) -> int:
        """Number of columns p, intercept included."""
        return int(self.intercept) + sum(self.widths)

    def shared(self, shares: Sequence[float]) -> Scale:
        """Return the scale under which a common ridge is the penalty ridge / share on every band."""
        scale = tuple(s * share**0.5 for s, share in zip(self.scale, shares, strict=True))
        return replace(self, scale=scale, shares=tuple(shares))
