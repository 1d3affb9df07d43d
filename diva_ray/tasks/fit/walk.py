"""A walk of weight steps, and the trial of everything it passes on rows that took no part in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from diva_ray.core.reweight import Step, TrialSums, fit_calibration, source_factors
from diva_ray.core.ridge import FitSums, Solution, solve
from diva_ray.core.verdict import Verdict
from diva_ray.data.shards import Extent
from diva_ray.engine.context import Fold
from diva_ray.engine.kernels import passes, steps, verdicts
from diva_ray.engine.reduce import Partial
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.derive import score_rows, tell_solution
from diva_ray.tasks.fit.derived import penalty_pattern
from diva_ray.tasks.fit.judge import judge
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.step_paths import RIDGES, Path


@dataclass(frozen=True)
class Arm:
    """What a walk can end with: some steps, one after another, and a ridge."""

    steps: tuple[Step, ...] = ()
    ridge: float = 1.0  # times the one chosen for the weights as they are

    @property
    def moves(self) -> str:
        """The steps in words."""
        return "; then ".join(step.name for step in self.steps) or "weights as they are"

    @property
    def name(self) -> str:
        """The arm in words."""
        return self.moves + ("" if self.ridge == 1 else f"; ridge / {1 / self.ridge:.0f}")

    @property
    def figures(self) -> dict[str, Any]:
        """The arm as a summary says it: in words as `moves` and in numbers."""
        return {"moves": self.moves, "steps": [asdict(step) for step in self.steps], "ridge_factor": self.ridge}


@dataclass
class Walk:
    """Weight steps from the table's weights, on all rows or without a fold of them.

    Attributes:
        ridge: fixed: scaling all weights is a change of ridge in disguise, so their mean is kept.
        path: which steps are taken.
        store: folder that keeps the weights for a worker that takes another's place, or for a run that is resumed; None
            where neither can be.
    """

    runner: Runner
    setup: Setup
    ridge: float
    path: Path
    scored: list[Extent]
    store: Any = None
    at: int = 0
    name: str = ""
    flips: dict[int, bool] = field(default_factory=dict)  # by step, whether without the first fold classes flip
    moved: int = 0  # weights that were changed, by steps that look at all rows first
    grown: float = 1.0  # what the factors that keep the mean have made of weights that no step but the last changed
    first: Verdict | None = None  # on numbers and vectors, at the first look
    final: tuple[str, float] | None = None  # step and factor of the weights that a walk to an arm ended with
    penalty: Tensor = field(default_factory=lambda: torch.zeros(0))  # dL/dLambda of every column, at the last look
    class_dependence: float = 0.0  # of the labels that look wrong, at the last look
    by_source: Tensor = field(default_factory=lambda: torch.zeros(0, 1))  # what the last look found, see `passes.score`

    def begin(self, fold: Fold | None, sums: FitSums | None = None) -> FitSums:
        """Go back to the table's weights, perhaps without a fold; return the fit sums there (`sums`, if known)."""
        engine = self.runner.engine
        engine.forget("fold", "step", "factor", "weights", "rows", "scored", "lonely")
        self.at, self.moved, self.first, self.grown = 0, 0, None, 1.0
        self.name = "all" if fold is None else f"without{fold.k}"
        engine.tell(setup=self.setup, store=self.store, multiplied=self.path.chain.kind == "sources")
        engine.tell(**({} if fold is None else {"fold": fold}))
        return self.runner.run(passes.fit, "fit") if sums is None else sums

    def solve(self, sums: FitSums, factor: float = 1.0) -> Solution:
        """Return the fit, perhaps under another ridge."""
        return self.runner.timed("solve", solve, sums, factor * self.ridge * penalty_pattern(self.setup))

    def ends(self, taken: tuple[Step, ...], sums: FitSums, first: Solution | None = None) -> list[tuple[Arm, Tensor]]:
        """Return the arms that end after some steps, one for each ridge, with their solutions."""
        found = [first or self.solve(sums), *(self.solve(sums, ridge) for ridge in RIDGES[1:])]
        return [(Arm(taken, ridge), one.W) for ridge, one in zip(RIDGES, found, strict=True)]

    def look(self, solution: Solution) -> Partial:
        """Score every row under the current weights and fit the rules for verdicts; return the left-out sums."""
        left = self.leave_out(solution)
        self.penalty, scored = score_rows(self.runner, self.setup, solution, left)
        apart = self.name != "all"  # a fold: the others seek classes that flip at a step only where the first had some
        rule, _ = judge(
            self.runner, self.setup, left.tally, self.scored, flips=not apart or self.flips.get(self.at, True)
        )
        if apart:
            self.flips.setdefault(self.at, rule.flips)
        self.class_dependence = rule.class_dependence
        if not self.at and rule.loss == self.setup.loss:  # trials cut the fit's own losses where it says
            self.first = rule
        self.by_source = scored.tally["sources"].whole(self.setup.n_sources)
        if any(step.kind == "uncertain" for step in (self.path.chain, *self.path.beside)):
            total = self.runner.run(verdicts.total_uncertainty, "judge", self.scored, features=False).tolist()
            self.runner.engine.tell(mean_uncertainty=total[1] / total[0])
        if self.path.chain.kind == "sources":
            self._tell_factors(self.by_source)
        return left

    def leave_out(self, solution: Solution) -> Partial:
        """Make the solution known and return the left-out sums."""
        tell_solution(self.runner, solution, self.setup.dtype)
        return self.runner.run(passes.leave_one_out, "leave-out")

    def move(self, solution: Solution) -> FitSums:
        """Take a step of the chain that needs no more than a row's derivative, without keeping the mean: two reads.

        The score pass moves the weights and adds the next fit sums from the same read of every block.
        """
        engine, name = self.runner.engine, f"{self.name}-{self.at + 1}"
        left = self.leave_out(solution)
        engine.tell(update=self.path.chain, next_step=name)
        _, scored = score_rows(self.runner, self.setup, solution, left)
        engine.forget("update", "rows", "scored")
        self.at += 1
        engine.tell(step=name, factor=1.0)
        return scored.sums

    def _tell_factors(self, by_source: Tensor) -> None:
        d, error = self.setup.errors_of(by_source)
        rates = {step.value for step in (self.path.chain, *self.path.beside)}
        self.runner.engine.tell(factors={rate: source_factors(d, error, rate) for rate in rates})

    def propose(self, sums: FitSums, choices: tuple[Step, ...], kept: int | None) -> tuple[list[FitSums], list[float]]:
        """Return the fit sums after each choice and the factor that keeps the mean weight; keep one's weights."""
        step = f"{self.name}-{self.at + 1}"
        self.runner.engine.tell(steps=choices, kept=kept, next_step=step)
        found: Partial = self.runner.run(steps.propose, "propose")
        self.moved += int(found.tally["moved"][kept]) if kept is not None else 0
        before, *after = found.tally["totals"].tolist()
        factors = [before / total if total > 0 else 1.0 for total in after]
        after_sums = [  # a step that leaves no row is no step
            steps.changed(sums, change, k) if total > 0 else sums
            for change, k, total in zip(found.sums, factors, after, strict=True)
        ]
        return after_sums, factors

    def go(self, factor: float) -> None:
        """Move to the weights that `propose` kept."""
        self.at += 1
        self.grown *= factor
        self.runner.engine.forget("rows", "scored")
        self.runner.engine.tell(step=f"{self.name}-{self.at}", factor=factor)


def walk_arms(walk: Walk, fold: Fold | None, count: int) -> list[tuple[Arm, Tensor]]:
    """Return every arm of a walk of `count` steps with the solution it ends with, the table's own weights first.

    A derivative with its standard error for each step, and n p^2 times the share of changed weights for each arm.
    """
    sums, taken, chain, beside = walk.begin(fold), (), walk.path.chain, walk.path.beside
    solution = walk.solve(sums)
    arms = walk.ends(taken, sums, solution)
    for _ in range(count):
        if chain.kind == "plain":
            sums = walk.move(solution)
        else:
            walk.look(solution)
            (sums, *others), (factor, *_) = walk.propose(sums, (chain, *beside), kept=0)
            for last, other in zip(beside, others, strict=True):
                arms += walk.ends((*taken, last), other)
            walk.go(factor)
        taken, solution = (*taken, chain), walk.solve(sums)
        arms += walk.ends(taken, sums, solution)
    return arms


def walk_to(walk: Walk, arm: Arm) -> Partial:
    """Take the steps of an arm on all rows; return the left-out sums of the state from which its last step is taken.

    The rows' results stay those of that state: they are why the weights become what they become. `known["final"]`
    tells the last weights, and `walk.final`: None where they are the table's, though steps found rows to change while
    a fold was set apart.
    """
    sums = walk.begin(None)
    for k, step in enumerate(arm.steps):
        solution = walk.solve(sums)
        if step.kind == "plain" and k < len(arm.steps) - 1:
            sums = walk.move(solution)
            continue
        left = walk.look(solution)
        (sums,), (factor,) = walk.propose(sums, (step,), kept=0)
        factor = 1.0 if step.kind == "plain" else factor
        if k == len(arm.steps) - 1 and (walk.moved or step.kind == "plain"):
            walk.final = (f"{walk.name}-{walk.at + 1}", factor)
            walk.runner.engine.tell(final=walk.final, common=walk.grown * factor)
        if k == len(arm.steps) - 1:
            return left
        walk.go(factor)
    return walk.look(walk.solve(sums))


def calibrate_arms(runner: Runner, setup: Setup, trials: steps.FoldModels) -> steps.Each:
    """Return the sums by which every arm's outputs of classes are calibrated on the rows set apart from it, none for
    other targets: one read of these rows, 2 n p c models operations. Those of different folds add up."""
    if setup.task != "classification":
        return steps.Each()
    runner.engine.forget("fold")
    runner.engine.tell(trials=trials)
    found: steps.Each = runner.run(steps.calibrate_trials, "try")
    return found


def try_arms(runner: Runner, setup: Setup, trials: steps.FoldModels, calibrating: steps.Each) -> TrialSums:
    """Return how every arm does on the rows set apart from it, calibrated by what `calibrate_arms` found of all of
    them: one read of these rows, 2 n p c models operations."""
    engine = runner.engine
    engine.forget("fold")
    engine.tell(trials=trials, calibrations=[fit_calibration(one, setup.outputs) for one in calibrating])
    found: TrialSums = runner.run(steps.judge_trials, "try")
    engine.forget("trials", "calibrations")
    return found


def pack(arms: list[tuple[Arm, Tensor]], dtype: torch.dtype) -> Tensor:
    """Return the solutions of all arms side by side, (p, arms c)."""
    return torch.cat([W for _, W in arms], 1).to(dtype)
