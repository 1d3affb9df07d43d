"""The fit to a table and what was chosen of a pool: its left-out error on the table, beside that of uniform choice."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.compare import ratio_error
from diva_ray.core.ridge import FitSums, Solution
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import passes, pool, table_left_out
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.derive import (
    fit_with_room,
    ridge_grid,
    solve_in_range,
    sum_all,
    tell_solution,
    validation_rows,
)
from diva_ray.tasks.fit.derived import best_ridge, penalty_pattern
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")

BEYOND_CHANCE = 3.0  # standard errors by which the left-out error must rise: the least of ten is so partly by luck


class Gauge:
    """What is known after every round.

    Attributes:
        setup: its dtype is that of the sums, float64 from where float32 would lose the fit.
        steps: after so many rounds: rows chosen, of them `helpful`, error, loss, the same of uniform choice, ridge.
        left: what leaving the table's rows out of the fit to the table and all chosen rows has found.
    """

    def __init__(self, session: Session, setup: Setup, ridge: float | str, extents: list[Extent]) -> None:
        self.session, self.runner, self.ridge, self.extents = session, session.runner, ridge, extents
        self.sums: FitSums

        def fit(runner: Runner, setup: Setup) -> FitSums:
            self.sums = sum_all(runner, setup)
            return self.sums

        # In the precision that the table takes; its rows alone.
        self.setup, chosen, solution, _ = fit_with_room(self.runner, setup, ridge, fit)
        self._start: tuple[Solution, float] | None = (solution, chosen)
        self.uniform_sums = self.sums
        self.rounds = self.chosen = self.helpful = self.uniform_chosen = 0
        self.steps: list[dict[str, Any]] = []
        self.left: Tally
        self._derivative: tuple[Solution, Partial] | None = None  # what it follows from, until it is told

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
        self._derivative = None
        self.runner.engine.forget("adjoint", "validation")  # no p x p beside those of a fit but the sums
        beside, fitted, self._start = None, self._start, None
        if fitted is None:
            beside = self._measure_uniform()
            fitted = None if beside is None else self._fit(self.sums)
        if fitted is None:
            return self._measure_in_double()
        solution, ridge = fitted
        tell_solution(self.runner, solution, self.setup.dtype)
        self.runner.engine.tell(errors=_chosen(self.rounds))
        self.runner.engine.forget("rows")
        left: Partial = self.runner.run(table_left_out.leave_table_out, "leave-out")
        self._derivative, self.left = (solution, left), left.tally
        tally, v = left.tally, self.session.scan.counts["validation"]
        beside = tally if beside is None else beside  # nothing is chosen yet
        self.steps.append({
            "rounds": self.rounds, "chosen": self.chosen, "helpful": self.helpful, "error": tally["wrong"] / v,
            "loss": tally["loss"] / v, "uniform_chosen": self.uniform_chosen,
            "error_uniform": float(beside["wrong"]) / v, "loss_uniform": float(beside["loss"]) / v, "ridge": ridge,
        })  # fmt: skip
        return None

    def _measure_uniform(self) -> Tally | None:
        """Return error and loss beside as many rows chosen at random; None where float32 sums lose the fit."""
        fitted = self._fit(self.uniform_sums)
        if fitted is None:
            return None
        tell_solution(self.runner, fitted[0], self.setup.dtype)
        self.runner.engine.tell(errors=_uniform(self.rounds))
        del fitted  # a p x p that the next fit need not lie beside
        found: Tally = self.runner.run(table_left_out.core_error, "uniform")
        return found

    def tell_derivative(self) -> None:
        """Make known from what the derivative of pool rows follows, and give up the sums that took."""
        assert self._derivative is not None
        (solution, left), self._derivative = self._derivative, None
        adjoint, _ = self.runner.timed("solve", solve_adjoint, solution, left.sums)
        self.runner.engine.tell(adjoint=adjoint.to(self.setup.dtype))
        if left.rows is not None:
            self.runner.engine.tell(validation=validation_rows(solution, left.rows, self.setup.dtype))

    def rises(self) -> bool:
        """Return whether the left-out error is higher than the least before, beyond chance, row by row (group by
        group). Not the loss: cross-entropy rises with the ridge alone."""
        now, least = self.steps[-1], self.least
        if now is least:
            return False
        ((rise, error),) = self._compare([(_chosen(now["rounds"]), _chosen(least["rounds"]))])
        return rise > BEYOND_CHANCE * error

    def compare(self) -> None:
        """Note of every step by how much its left-out error is above that of the table alone and of as many rows chosen
        at random, each with its standard error over rows (or groups)."""
        steps = [step for step in self.steps if step["chosen"]]
        pairs = [(_chosen(s["rounds"]), other) for s in steps for other in (_chosen(0), _uniform(s["rounds"]))]
        found = iter(self._compare(pairs) if pairs else ())
        for step in steps:
            for name in ("to_before", "to_uniform"):
                step[name] = dict(zip(("difference", "standard_error"), next(found), strict=True))

    def _compare(self, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
        """Return by how much the mean of the first of each pair of kept left-out errors is above the second's, with its
        standard error over units: that of a ratio, as units may weigh differently."""
        self.runner.engine.tell(compared=pairs)
        found: Tally = self.runner.run(table_left_out.compare_errors, "compare", features=False)
        v = self.session.scan.counts["validation"]
        mean = found["difference"] / v
        error = ratio_error(mean, found["square"], found["product"], found["weight_square"], float(v))
        return list(zip(mean.tolist(), error.tolist(), strict=True))

    def _fit(self, sums: FitSums) -> tuple[Solution, float] | None:
        """Return the fit, and the ridge with the least left-out squared error on the table; None where float32 sums
        lose it."""
        ridge = self.ridge
        if ridge == "auto":
            ridge = best_ridge(ridge_grid(self.runner, self.setup, sums), warn=False)
        solution = solve_in_range(self.runner, self.setup, sums, float(ridge) * penalty_pattern(self.setup))
        return None if solution is None else (solution, float(ridge))

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


def _chosen(rounds: int) -> str:
    """Return the name of the left-out errors under the fit to the table and what was chosen in so many rounds."""
    return f"chosen{rounds}"


def _uniform(rounds: int) -> str:
    """Return the same of as many rows chosen at random."""
    return f"uniform{rounds}"
