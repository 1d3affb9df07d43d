"""The shares of classes in a table and in what is chosen of a pool, and what chosen rows weigh where they differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core import choose
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import pool_choice, steps
from diva_ray.tasks.setup.runner import Runner

RARE = 0.1  # of the rows of a class of middling size: of labels with fewer the fit and its calibration can say nothing


@dataclass(frozen=True)
class ClassShares:
    """Whether a pool has other shares of classes than the rows that judge.

    Attributes:
        other: whether it has.
        weights: what a chosen row of each class weighs, 1 where nothing is to be made even, (c,).
    """

    other: bool
    weights: Tensor


def compare_shares(runner: Runner, extents: list[Extent], given: Tensor | None, *, weigh: bool) -> ClassShares:
    """Return how the shares of classes compare, and, to `weigh` rows by class, tell the pool's shards what they weigh.

    Rows that judge, those that validate, count as they weigh there.

    Args:
        runner, extents: of the pool.
        given: rows of the pool by class, (c,); None: those whose label is likely right, as wrong labels make the
            classes of a pool look alike.
    """
    if given is None:
        runner.engine.tell(near_only=False)
        found: Tensor = runner.run(pool_choice.count_choices, "choose", extents, features=False)
        given = found[0]
    rows, weight = runner.run(steps.validating_by_class, "choose", features=False)
    own, counts = rows.sum() * weight / weight.sum(), given.double()
    other = choose.shares_apart(own, counts) >= choose.OTHER_SHARES
    weights = choose.class_weights(own, counts) if weigh else torch.ones_like(counts)
    if weigh:
        runner.engine.tell(class_weights=weights)
    return ClassShares(other, weights)


def hardly_known(rows: Tensor) -> Tensor:
    """Return which classes have next to no rows in the table, by the rows of each.

    What was chosen of them does not count: outputs are calibrated on the table's rows, and a class that is hardly ever
    predicted there would look wrong wherever it is given.
    """
    return rows < RARE * rows.double().mean()
