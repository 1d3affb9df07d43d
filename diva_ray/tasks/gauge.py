"""The fit to a table and what was chosen of a pool: its left-out error on the table, beside that of uniform choice."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from diva_ray.core.grid import default_ridges, rotate
from diva_ray.core.ridge import FitSums, Solution, solve
from diva_ray.data.shards import Extent
from diva_ray.engine import passes, pool
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.derive import fit_with_room, tell_solution
from diva_ray.tasks.derived import MOST_CONDITION, best_ridge, penalty_pattern
from diva_ray.tasks.session import Session

log = logging.getLogger("diva_ray")

BEYOND_CHANCE = 3.0  # standard errors by which the left-out error must rise: the least of ten is so partly by luck


Fit = dict[str, torch.Tensor]  # W and whiten: what left-out predictions take of a solution


class Gauge:
    """What is known after every round.

    Attributes:
        setup: its dtype is that of the sums, float64 from where float32 would lose the fit.
        steps: after so many rounds: rows chosen, of them `helpful`, error, loss, the same of uniform choice, ridge.
        solution: of the fit to the table and all chosen rows; `left`: what leaving the table's rows out of it found.
    """

    def __init__(self, session: Session, setup: Setup, ridge: float | str, extents: list[Extent]) -> None:
        self.session, self.runner, self.ridge, self.extents = session, session.runner, ridge, extents
        # In the precision that the table takes; its rows alone.
        self.setup, _, _, _ = fit_with_room(self.runner, setup, ridge)
        self.sums: FitSums = self.runner.run(passes.fit, "fit")
        self.uniform_sums = self.sums
        self.rounds = self.chosen = self.helpful = self.uniform_chosen = 0
        self.steps: list[dict[str, Any]] = []
        self.solution: Solution
        self.left: Partial
        self._first: Fit  # to the table alone
        self._now: list[Fit]  # the fit to table and chosen rows, and to as many chosen at random
        self._best: list[Fit]  # the same of the step with the least error

    def add(self, rounds: int, sums: FitSums, chosen: int, helpful: int) -> None:
        """Add rows chosen in the last of so many rounds, of which `helpful` help."""
        self.rounds, self.sums = rounds, self.sums + sums
        self.chosen, self.helpful = self.chosen + chosen, self.helpful + helpful

    def add_uniform(self, sums: FitSums, chosen: int) -> None:
        """Add as many rows chosen at random."""
        self.uniform_sums, self.uniform_chosen = self.uniform_sums + sums, self.uniform_chosen + chosen

    @property
    def least(self) -> dict[str, Any]:
        """The step with the least left-out error, of equal ones the last."""
        return min(reversed(self.steps), key=lambda step: step["error"])

    def measure(self) -> None:
        """Fit to the table and what was chosen; note the left-out error on the table, beside that of uniform choice."""
        if self.steps and self.steps[-1]["chosen"] == self.chosen:
            return
        fitted = self._fit(self.uniform_sums)
        if fitted is None:
            return self._measure_in_double()
        tell_solution(self.runner, fitted[0], self.setup.dtype)
        uniform = fitted[0]
        beside: Tally = self.runner.run(pool.core_error, "uniform")
        fitted = self._fit(self.sums)
        if fitted is None:
            return self._measure_in_double()
        self.solution, ridge = fitted
        tell_solution(self.runner, self.solution, self.setup.dtype)
        self.runner.engine.forget("rows")
        self.left = self.runner.run(passes.leave_one_out, "leave-out")
        tally, v = self.left.tally, self.session.scan.counts["validation"]
        self.steps.append({
            "rounds": self.rounds, "chosen": self.chosen, "helpful": self.helpful, "error": tally["wrong"] / v,
            "loss": tally["loss"] / v, "uniform_chosen": self.uniform_chosen,
            "error_uniform": float(beside["wrong"]) / v, "loss_uniform": float(beside["loss"]) / v, "ridge": ridge,
        })  # fmt: skip
        self._now = [self._of(one) for one in (self.solution, uniform)]
        if len(self.steps) == 1:
            self._first = self._now[0]
        if self.least is self.steps[-1]:
            self._best = self._now
        return None

    def _of(self, solution: Solution) -> Fit:
        """Return what left-out predictions take of a fit."""
        W, Linv = (one.to(self.setup.dtype) for one in (solution.W, solution.Linv))
        return {"W": W, "whiten": Linv.T.contiguous()}

    def rises(self) -> bool:
        """Return whether the left-out error is higher than the least before, beyond chance: row by row (group by group)
        under both fits, 2 n p^2 operations, where it is higher at all. Not the loss: cross-entropy rises with the ridge
        alone."""
        if self.steps[-1] is self.least:
            return False
        (total, error), *_ = self._compare([self._now[0], self._best[0]])
        return total > BEYOND_CHANCE * error

    def differences(self, kept: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Return by how much the left-out error of a step, the last or the least, is above that of the table alone and
        of as many rows chosen at random, each with its standard error over rows (or groups): one look at the table,
        3 n p^2 operations. Nothing where nothing was chosen."""
        if not kept["chosen"]:
            return {}
        ours, uniform = self._now if kept is self.steps[-1] else self._best
        v = self.session.scan.counts["validation"]
        found = self._compare([ours, self._first, uniform])
        return {
            name: {"difference": total / v, "standard_error": error / v}
            for name, (total, error) in zip(("to_before", "to_uniform"), found, strict=True)
        }

    def _compare(self, fits: list[Fit]) -> list[tuple[float, float]]:
        """Return by how much the summed left-out error of the first fit is above that of every other, with its standard
        error."""
        compared = [{name: value.to(self.setup.dtype) for name, value in fit.items()} for fit in fits]
        self.runner.engine.tell(compared=compared)
        found: Tally = self.runner.run(pool.compare_errors, "compare")
        self.runner.engine.forget("compared")
        pairs = zip(found["difference"].tolist(), found["square"].tolist(), strict=True)
        return [(total, max(square - total**2 / found["units"], 0.0) ** 0.5) for total, square in pairs]

    def _fit(self, sums: FitSums) -> tuple[Solution, float] | None:
        """Return the fit, and the ridge with the least left-out squared error on the table; None where float32 sums
        lose it."""
        pattern, ridge, single = penalty_pattern(self.setup), self.ridge, self.setup.dtype == torch.float32
        if ridge == "auto":
            rotation = self.runner.timed("solve", rotate, sums, pattern, self.runner.rows)
            ridges = default_ridges(rotation, self.runner.rows)
            self.runner.engine.tell(family=self.runner.timed("solve", rotation.at, ridges, self.setup.dtype))
            losses = self.runner.run(passes.grid, "ridge").tolist()
            ridge = best_ridge(list(zip(ridges.tolist(), losses, strict=True)), warn=not self.steps)
            self.runner.engine.forget("family")
        try:
            solution: Solution = self.runner.timed("solve", solve, sums, float(ridge) * pattern)
        except InputError:  # not positive definite, perhaps by rounding only
            if not single:
                raise
            return None
        return None if single and solution.condition > MOST_CONDITION else (solution, float(ridge))

    def _measure_in_double(self) -> None:
        """Sum table, chosen rows and those of uniform choice again in float64: two reads, one of the pool."""
        log.info("with the chosen rows float32 would lose the fit: products in float64 from here")
        self.setup = replace(self.setup, dtype=torch.float64)
        self.runner.engine.forget("rows", "scored", "targets", "pool")
        self.runner.engine.tell(setup=self.setup)
        table: FitSums = self.runner.run(passes.fit, "fit")
        found: Tally = self.runner.run(pool.sum_again, "fit", self.extents)
        self.sums, self.uniform_sums = table + found["chosen"], table + found["uniform"]
        self.measure()
