"""Many classes folded onto fewer buckets, where only random draws of a sum over them are wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Folding:
    """A count sketch of the classes for every sign vector: class k adds, under a random sign, to one of the columns.

    Of folded vectors E[(fold a . fold b)^2] = (a . b)^2 + (|a|^2 |b|^2 + (a . b)^2 - 2 sum_k a_k^2 b_k^2) / buckets: a
    mean square over vectors is too large by a share that falls with the buckets, never too small (Charikar, Chen,
    Farach-Colton 2002). Exact, and no sketch, while the classes are no more than the buckets.

    Attributes:
        signs: of every vector and class, (vectors, c).
        shifts: of every vector and run of `buckets` classes: its first class is in this column, (vectors, runs).
    """

    buckets: int
    signs: Tensor
    shifts: Tensor

    def fold(self, x: Float[Tensor, "n c"], vector: int) -> Float[Tensor, "n buckets"]:
        """Return rows of classes as rows of buckets; n c operations."""
        folded = torch.zeros(len(x), self.buckets, dtype=x.dtype, device=x.device)
        for run, shift in enumerate(self.shifts[vector].tolist()):
            columns = slice(run * self.buckets, (run + 1) * self.buckets)
            part = x[:, columns] * self.signs[vector, columns].to(x)
            inside = min(part.shape[1], self.buckets - shift)  # the rest begins again in the first column
            folded[:, shift : shift + inside] += part[:, :inside]
            folded[:, : part.shape[1] - inside] += part[:, inside:]
        return folded


def folding(classes: int, buckets: int, vectors: int, seed: int, dtype: torch.dtype) -> Folding | None:
    """Return the folding of classes onto buckets, a function of its arguments alone; None where there is none to do."""
    if classes <= buckets or not vectors:
        return None
    generator = torch.Generator().manual_seed(seed)
    signs = 1 - 2 * torch.randint(0, 2, (vectors, classes), generator=generator).to(dtype)
    return Folding(buckets, signs, torch.randint(0, buckets, (vectors, -(-classes // buckets)), generator=generator))
