"""What a trial of a search costs and says: a model fitted without a fold, from sums that all trials share, and judged
on the fold.

Fit sums of every fold are made once, of all bands; a subset of them is a sub-block, a random projection R acts as R'GR,
and the sums without a fold are those of the others. So another ridge, loss, band or projection reads only the rows of
the fold, to count errors; `ridge=auto` adds one pass for a grid, and a rule for the weights its own derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.config import TuneConfig
from diva_ray.core.bands import band_slices, shares_of
from diva_ray.core.reweight import Step
from diva_ray.core.ridge import FitSums
from diva_ray.core.subspace import expand, projections, rescale, restrict
from diva_ray.data.scale import Scale
from diva_ray.data.shards import Extent
from diva_ray.engine.context import Fold, Kernel
from diva_ray.engine.kernels import bands, tuning
from diva_ray.engine.reduce import Tally, add_in_order
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.derive import ridge_grid, solve_in_range, with_errors
from diva_ray.tasks.fit.derived import best_ridge, penalty_pattern
from diva_ray.tasks.fit.shares import PenaltySearch, aggregate_bands
from diva_ray.tasks.fit.walk import Walk
from diva_ray.tasks.setup.checks import features_take_double
from diva_ray.tasks.setup.options import choose_loss
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.settle import make_scale
from diva_ray.tasks.setup.space import BARE, RULES, Choice
from diva_ray.tasks.setup.step_paths import Path

STARTS, EVALUATIONS = 2, 20  # of the descents for shares, without each fold
LEFT_BEHIND = ("fold", "step", "factor", "weights", "rows", "scored", "update", "next_step", "validation")


@dataclass(frozen=True)
class Trained:
    """A model of a choice: its solution in the columns of `scale` (nothing projected there), and the ridge it has."""

    solution: Tensor
    scale: Scale
    setup: Setup
    ridge: float


@dataclass
class Study:
    """Loaded shards, and what trials share.

    Attributes:
        sums: fit sums of every fold, by (standardize, dtype), of every band and an intercept.
        ridges, shares: what the grid, or a descent, chose, by everything that depends on.
        passes: how many passes over the rows were made, by what for.
    """

    session: Session
    config: TuneConfig
    sums: dict[tuple[str, torch.dtype], list[FitSums]] = field(default_factory=dict)
    ridges: dict[tuple, float] = field(default_factory=dict)
    shares: dict[tuple, tuple[float, Tensor, torch.dtype]] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    def judge(self, choice: Choice, fold: int | None, extents: list[Extent] | None = None) -> Tally:
        """Return the errors of a choice on the rows of a fold that took no part in its weights, ridge or fit; without a
        fold, fitted to all rows, on those of a test table, `extents`."""
        trained = self.train(choice, fold)
        self._tell(trained.setup)
        model = tuning.Model(trained.solution.to(trained.setup.dtype), trained.scale, self.config.folds, fold)
        self.session.engine.tell(model=model)
        found = self._pass(tuning.model_errors, "judge", extents)
        self.session.engine.forget("model")
        found["ridge"] = trained.ridge
        return found

    def train(self, choice: Choice, fold: int | None, dtype: torch.dtype | None = None) -> Trained:
        """Return the model of a choice, fitted to the rows outside a fold (all rows without one).

        Products are repeated in float64 where the condition number asks for it, whatever other trials needed.
        """
        setup = self.setup(choice, dtype)
        sums, asked = self._fit_sums(choice, setup, fold), choice
        if choice.shares == "auto" and len(choice.bands) > 1:
            setup, sums, choice = self._share(choice, setup, sums, fold)
        ridge = self._ridge(choice, setup, sums, fold)
        solution = solve_in_range(self.session.runner, setup, sums, ridge * penalty_pattern(setup))
        if solution is None:
            again = asked if asked.shares == "auto" else replace(asked, ridge=ridge)
            return self.train(again, fold, torch.float64)
        W = solution.W if choice.rule == "none" else self._weigh(choice, setup, sums, ridge, fold)
        plain = replace(setup.scale, project=())
        return Trained(expand(W, _projected(setup.scale)), plain, setup, ridge)

    def setup(self, choice: Choice, dtype: torch.dtype | None = None) -> Setup:
        """Return how the rows enter the fit of a choice, and its loss."""
        whole, at = self._whole(choice.standardize), [self._names.index(name) for name in choice.bands]
        means = tuple(whole.mean[k] for k in at)
        project = projections(choice.bands, [len(mean) for mean in means], choice.projection, self.config.seed)
        scale = Scale(means, tuple(whole.scale[k] for k in at), choice.intercept, tuple(at), project)
        if dtype is None:  # fewer rows than columns: the p x p form needs every digit
            double = self.session.runner.rows < scale.width or features_take_double(
                self.session.scan, standardized=choice.standardize == "auto", intercept=choice.intercept
            )
            dtype = torch.float64 if double else self.session.setup.dtype
        loss = self.session.loss
        if choice.loss not in ("", self.config.loss):  # of the space, where it may be code too
            loss = choose_loss(replace(self.config, loss=choice.loss), self.session.task, None)
        center, near = self.session.scan.center() if loss == "cosine" else (None, 0.0)
        if isinstance(choice.shares, Mapping):
            scale = scale.shared([choice.shares[name] for name in choice.bands])
        return replace(self.session.setup, scale=scale, loss=loss, center=center, near=near, dtype=dtype)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.session.columns.features

    def _whole(self, standardize: str) -> Scale:
        """Return how every band enters, with an intercept and nothing projected."""
        config = replace(self.config, standardize=standardize, intercept=True, projection=None, shares=None)
        return make_scale(config, self.session.scan, self._names)

    def _fit_sums(self, choice: Choice, setup: Setup, fold: int | None) -> FitSums:
        """Return the fit sums of a choice's columns over the rows outside a fold, from those of all columns by fold."""
        whole = replace(setup, scale=self._whole(choice.standardize))
        key = (choice.standardize, setup.dtype)
        if key not in self.sums:
            self._tell(whole)
            self.session.engine.tell(folds=self.config.folds)
            self.sums[key] = list(self._pass(tuning.fold_sums, "fit"))
        parts = self.sums[key]
        kept = parts if fold is None or len(parts) == 1 else [*parts[:fold], *parts[fold + 1 :]]
        slices = band_slices(whole.scale.widths, 1)
        chosen = [torch.arange(*slices[self._names.index(name)].indices(whole.scale.width)) for name in choice.bands]
        columns = torch.cat([torch.zeros(int(choice.intercept), dtype=torch.int64), *chosen])
        timed = self.session.runner.timed
        found = timed("solve", restrict, add_in_order(kept), columns, _projected(setup.scale))
        if isinstance(choice.shares, Mapping):
            found = rescale(found, _roots(setup.scale, [choice.shares[name] for name in choice.bands]))
        return found

    def _share(self, choice: Choice, setup: Setup, sums: FitSums, fold: int | None) -> tuple[Setup, FitSums, Choice]:
        """Return setup, fit sums and choice with the shares and ridge that a descent of the exact leave-one-out
        gradient finds among the rows outside the fold: the one place where a trial's penalties per band are decided."""
        bare = replace(choice, rule="none", ridge="auto").canonical()
        key = (bare.key(), setup.dtype, fold)
        if key not in self.shares:
            self._tell(setup, fold)
            validating: Tally = self.session.runner.run(bands.validating, "count", features=False)
            search = PenaltySearch(self.session.runner, setup, validating["weight"], validating["rows"], sums)
            found = aggregate_bands(search, list(choice.bands), STARTS, EVALUATIONS)
            self._count("shares", found.evaluations)
            self.dtype = search.setup.dtype
            self.shares[key] = *shares_of(found.multiple * found.penalties), self.dtype
        ridge, shares, dtype = self.shares[key]
        if dtype != setup.dtype:  # float32 would not do
            self.shares[(key[0], dtype, fold)] = self.shares[key]
            setup = replace(setup, dtype=dtype)
            sums = self._fit_sums(choice, setup, fold)
        sums = rescale(sums, _roots(setup.scale, shares.tolist()))
        chosen = replace(choice, ridge=ridge if choice.ridge == "auto" else choice.ridge)
        return replace(setup, scale=setup.scale.shared(shares.tolist())), sums, chosen

    def _ridge(self, choice: Choice, setup: Setup, sums: FitSums, fold: int | None) -> float:
        """Return the ridge of a choice; `auto` is found by leave-one-out among the rows outside the fold."""
        if choice.ridge != "auto":
            return float(choice.ridge)
        bare = replace(choice.canonical(), rule="none", loss="").canonical()
        key = (bare.key(), setup.dtype, fold)
        if key not in self.ridges:
            self._tell(setup, fold)
            grid = ridge_grid(self.session.runner, setup, sums, self._pass)
            self.ridges[key] = best_ridge(grid, warn=False)
        return self.ridges[key]

    def _weigh(self, choice: Choice, setup: Setup, sums: FitSums, ridge: float, fold: int | None) -> Tensor:
        """Return the solution under the weights that a rule leaves, from the rows outside the fold alone."""
        step = RULES[choice.rule]
        assert step is not None
        step = Step("plain", choice.eta) if step.kind == "plain" else step
        session = self.session
        rows, validating = (int(session.scan.counts[name]) for name in ("rows", "validating"))
        errors = "none" if choice.rule in BARE else self.config.standard_errors
        self._tell(setup)
        store = session.folder if session.plan.kind != "inline" else None
        walk = Walk(
            session.runner,
            with_errors(setup, rows, validating, errors),
            ridge,
            Path(step),
            session.scored(),
            store,
        )
        sums = walk.begin(None if fold is None else Fold(fold, self.config.folds), sums)
        for _ in range(choice.steps):
            solution = walk.solve(sums)
            if step.kind == "plain":
                sums = walk.move(solution)
                continue
            walk.look(solution)
            (sums,), (factor,) = walk.propose(sums, (step,), kept=0)
            walk.go(factor)
        self._count("derivative", choice.steps)
        return walk.solve(sums).W

    def _tell(self, setup: Setup, fold: int | None = None) -> None:
        """Make a setup known, and which fold is set apart; forget what the trial before left behind."""
        engine = self.session.engine
        engine.forget(*LEFT_BEHIND, *(("targets",) if setup.dtype != self.dtype else ()))
        self.dtype = setup.dtype
        engine.tell(setup=setup, **({} if fold is None else {"fold": Fold(fold, self.config.folds)}))

    def _pass(self, kernel: Kernel, label: str, extents: list[Extent] | None = None) -> Any:
        self._count(label)
        return self.session.runner.run(kernel, label, extents)

    def _count(self, label: str, times: int = 1) -> None:
        self.passes[label] = self.passes.get(label, 0) + times


def _roots(scale: Scale, shares: list[float]) -> Tensor:
    """Return the factor of every column under shares: a common ridge is then ridge / share."""
    roots = torch.tensor(shares, dtype=torch.float64).sqrt().repeat_interleave(torch.tensor(scale.widths))
    return torch.cat([torch.ones(int(scale.intercept), dtype=torch.float64), roots])


def _projected(scale: Scale) -> list[tuple[slice, Tensor]]:
    """Return where the projected bands lie among the columns before projection, and their projections."""
    found, start = [], int(scale.intercept)
    for mean, project in zip(scale.mean, scale.project or (None,) * len(scale.mean), strict=True):
        if project is not None:
            found.append((slice(start, start + len(mean)), project))
        start += len(mean)
    return found
