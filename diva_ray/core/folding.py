"""Many classes folded onto fewer buckets, where only random draws of a sum over them are wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Folding:
    """A count sketch of the classes for every copy: class k adds, under a random sign, to one of `buckets` columns.

    Of folded vectors E[(fold a . fold b)^2] = (a . b)^2 + (|a|^2 |b|^2 + (a . b)^2 - 2 sum_k a_k^2 b_k^2) / buckets: a
    mean square over copies is too large by a share that falls with the buckets, never too small (Charikar, Chen,
    Farach-Colton 2002). Exact, and no sketch, while the classes are no more than the buckets.

    Attributes:
        signs: of every copy and class, (copies, c).
        shifts: of every copy and run of `buckets` classes: its first class is in this column, (copies, runs).
    """

    buckets: int
    signs: Tensor
    shifts: Tensor

    def fold(self, x: Float[Tensor, "n c"], copy: int) -> Float[Tensor, "n buckets"]:
        """Return rows of classes as rows of buckets; n c operations."""
        folded = torch.zeros(len(x), self.buckets, dtype=x.dtype, device=x.device)
        for run, shift in enumerate(self.shifts[copy].tolist()):
            columns = slice(run * self.buckets, (run + 1) * self.buckets)
            part = x[:, columns] * self.signs[copy, columns].to(x)
            inside = min(part.shape[1], self.buckets - shift)  # the rest begins again in the first column
            folded[:, shift : shift + inside] += part[:, :inside]
            folded[:, : part.shape[1] - inside] += part[:, inside:]
        return folded


def folding(classes: int, buckets: int, copies: int, seed: int, dtype: torch.dtype) -> Folding | None:
    """Return the folding of classes onto buckets, a function of its arguments alone; None where there is none to do."""
    if classes <= buckets or not copies:
        return None
    generator = torch.Generator().manual_seed(seed)
    signs = 1 - 2 * torch.randint(0, 2, (copies, classes), generator=generator).to(dtype)
    return Folding(buckets, signs, torch.randint(0, buckets, (copies, -(-classes // buckets)), generator=generator))
