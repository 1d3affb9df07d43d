"""Where a sample of rows ends."""

from __future__ import annotations

import math

from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import sampling
from diva_ray.tasks.setup.runner import Runner


def tell_sample(runner: Runner, scored: list[Extent], most: int, phase: str) -> None:
    """Tell the shards which rows are of a sample of `most` rows that shape the rules: all of them, if no more are
    there; one pass that reads no feature, else."""
    last = math.inf
    if sum(extent.rows for extent in scored) > most:
        runner.engine.tell(most=most)
        drawn: sampling.Drawn = runner.run(sampling.least_draws, phase, scored, features=False)
        last = float(drawn.draw[-1]) if len(drawn.draw) else last
        runner.engine.forget("most")
    runner.engine.tell(last_draw=last)
