"""Outer folds: weights that were tried are judged by rows that took no part, until the answer is clear."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor

from diva_ray.core.reweight import TrialSums
from diva_ray.core.verdict import Verdict
from diva_ray.engine.context import Fold
from diva_ray.engine.kernels.steps import FoldModels, fold_counts
from diva_ray.engine.setup import Setup
from diva_ray.errors import EmptyFoldError
from diva_ray.tasks.fit.walk import RIDGES, Arm, Walk, calibrate_arms, pack, try_arms, walk_arms
from diva_ray.tasks.setup.runner import Runner

log = logging.getLogger("diva_ray")
CLEAR = 4.0  # standard errors beyond which no further fold is asked,
CLEAR_ROWS = 5_000  # once so many rows have spoken


def try_folds(walk: Walk, folds: int, steps: int) -> tuple[list[Arm], TrialSums, int]:
    """Return every arm, how it does on the folds set apart, and how many were asked until the answer was clear."""
    asked = check_folds(walk.runner, walk.setup, folds)
    solutions: dict[int, Tensor] = {}
    rules: dict[int, Verdict | None] = {}
    calibrating, fresh = None, []  # what calibrates the arms, and the folds of which that says nothing yet
    for at, k in enumerate(asked, 1):
        if not walk.runner.quiet:
            log.info("fold %d of %d set apart", k + 1, folds)
        found = walk_arms(walk, Fold(k, folds), steps)
        arms, solutions[k], rules[k] = [arm for arm, _ in found], pack(found, walk.setup.dtype), walk.first
        last, fresh = at == len(asked), [*fresh, k]
        if last or walk.runner.rows >= CLEAR_ROWS * folds / at:
            trials = FoldModels(folds, dict(solutions), dict(rules), len(found), len(RIDGES))
            more = calibrate_arms(walk.runner, walk.setup, replace(trials, solutions={k: solutions[k] for k in fresh}))
            calibrating, fresh = more if calibrating is None else calibrating + more, []
            sums = try_arms(walk.runner, walk.setup, trials, calibrating)
            if last or _clear(sums):
                return arms, sums, at
    raise AssertionError("the last fold always answers")


def outcome(sums: TrialSums, taken: int, base: int) -> dict[str, float]:
    """Return how the trial that was taken did on the folds, beside one of the weights as given, for a summary."""
    error = (sums.error / sums.weight).tolist()
    return {
        "error_uniform": error[base],
        "error_reweighted": error[taken],
        "gain": float(sums.gain[base, taken]),
        "gain_standard_error": float(sums.gain_error[base, taken]),
    }


def check_folds(runner: Runner, setup: Setup, folds: int, *, every: bool = False) -> list[int]:
    """Return the folds in which rows validate: of ten trusted rows one fold of five has none every other time, and
    says nothing. Raise unless they are most (or `every`) of them, and each leaves rows to validate and to fit to."""
    runner.engine.tell(setup=setup, folds=folds)
    counts = runner.run(fold_counts, "count").tolist()
    which = "every outer fold" if every else "most outer folds"
    asked = [k for k, (inside, _, _) in enumerate(counts) if inside or every]
    for k in asked if 2 * len(asked) > folds else range(folds):
        inside, outside, fitted = counts[k]
        if not (inside and outside and fitted):
            found = f"{inside} in fold {k}, {outside} outside and {fitted} to fit to"
            raise EmptyFoldError(
                f"folds: {which} must have rows that validate and leave some outside, got {found}. Lower "
                "`folds`, or let more rows (or groups) validate.",
                found,
            )
    return asked


def _clear(sums: TrialSums) -> bool:
    """Return whether another fold could hardly change the answer: some arm surely gains, or none can."""
    z = (sums.gain / sums.gain_error.clamp_min(1e-300)).amin(0)[len(RIDGES) :]
    return bool((z > CLEAR).any() or (z < -CLEAR / 2).all())
