"""What every pass after the scan needs to know of the task: classes, loss, scale, how standard errors are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.core import losses
from diva_ray.core.folding import Folding, folding
from diva_ray.data.scale import Scale
from diva_ray.errors import InputError

BUCKETS = 2048  # columns of M, of every sign vector
NUMBERS = 1 << 17  # of a block of few columns
FEW_OUTPUTS = 512  # up to which left-out outputs are always kept


@dataclass(frozen=True)
class Setup:
    """What every pass after the scan needs.

    Attributes:
        classes: sorted classes of the whole table; None for numbers.
        outputs: c.
        loss: name of a loss, or a callable (F, Y) -> values (n,) for autograd.
        center: mean target, for the cosine loss.
        near: distance from it within which a target has no direction.
        dtype: of the products.
        vectors: random sign vectors that draw standard errors; 0: exact ones, or none.
        collect: whether the adjoint pass returns its validation rows, for exact standard errors.
        sources: sorted sources, null last if a row has none; or None without such a column.
        keeps_outputs: whether left-out outputs of all rows stay with their shard; else they are computed again, block
            by block, by whoever needs them, and targets of several classes stay codes.
        buckets: onto which the classes are folded under sign vectors, where they are more.
        inputs: to what the inputs of products of whitened rows are rounded, see `core.products`.
    """

    task: str
    scale: Scale
    classes: pa.Array | None
    outputs: int
    loss: str | Callable
    center: Tensor | None
    label: str
    dtype: torch.dtype
    block_rows: int
    seed: int
    vectors: int = 0
    collect: bool = False
    sources: pa.Array | None = None
    keeps_outputs: bool = True
    buckets: int = BUCKETS
    inputs: str = "full"
    near: float = 0.0

    @property
    def n_sources(self) -> int:
        """How many sources there are."""
        return 0 if self.sources is None else len(self.sources)

    def source_names(self) -> pa.Array:
        """Return the names of the sources; that of rows without one is no other's."""
        names = pa.array([], pa.string()) if self.sources is None else self.sources
        if not names.null_count:
            return names
        taken = ("(none)", *(f"(none {k})" for k in range(2, len(names) + 3)))
        return names.fill_null(next(name for name in taken if not pc.is_in(pa.scalar(name), names).as_py()))

    def folding(self) -> Folding | None:
        """Return how classes are folded under sign vectors; None where they are not."""
        return folding(self.outputs, self.buckets, self.vectors, self.seed, self.dtype)

    @property
    def draws(self) -> int:
        """Columns of M under sign vectors."""
        return self.vectors * min(self.outputs, self.buckets)

    def errors_of(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return derivatives and standard errors (m,) of rows or sources from the sums (m, k) of derivatives and of
        contributions, whose squares add up; with sign vectors of draws, whose mean square counts, and of the variance
        that the second order adds to it."""
        d, rest = sums[:, 0], sums[:, 1:]
        return d, (rest[:, :-1].square().mean(1) + rest[:, -1]).sqrt() if self.vectors else rest.norm(dim=1)

    def loss_function(self) -> losses.Loss:
        """Return the loss with its gradient."""
        if not isinstance(self.loss, str):
            return _of_the_user(losses.from_torch(self.loss))
        if self.loss == "cosine":
            assert self.center is not None
            return losses.cosine(self.center, self.near)
        return {"cross_entropy": losses.cross_entropy, "squared": losses.squared, "logistic": losses.logistic}[
            self.loss
        ]


def keeps_outputs(task: str, outputs: int, width: int) -> bool:
    """Return whether left-out outputs and residuals stay with the rows between passes: not those of more classes than
    there are features. They would need more than twice the memory of float32 features, and are a product of n c p."""
    return task not in ("classification", "multilabel") or outputs <= max(FEW_OUTPUTS, width)


def default_block(width: int) -> int:
    """Return the rows of a block of so many columns: whole thousands, of few columns as many as fill a cache. Smaller
    blocks are more calls than work: 1,000,000 x 16, five classes, take 1.6 times the time in blocks of 1,024."""
    return 1024 * max(1, min(4, round(NUMBERS / (1024 * width))))


def rows_of_block(outputs: int, width: int) -> int:
    """Return the rows of a block where outputs are not kept: 8 MiB of outputs, but no fewer rows than columns up to
    1,024, or a block would read and write more of the sums over classes than of its rows."""
    return min(1024, max(64, (2 << 20) // outputs, width))


def _of_the_user(loss: losses.Loss) -> losses.Loss:
    """Return the loss with its complaints raised as the user's to mend; it sees tensors on the CPU, like its own."""

    def checked(F: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        try:
            values, gradient = loss(F.cpu(), Y.cpu())
            return values.to(F.device), gradient.to(F.device)
        except ValueError as error:
            raise InputError(str(error)) from error.__cause__ or error

    return checked
