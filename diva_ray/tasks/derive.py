"""From loaded shards to a derivative for every row: which passes, in which order, in which precision."""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diva_ray.core.derivative import Validation, pairwise_contributions, solve_adjoint
from diva_ray.core.dual import DualFit, fit_dual, penalty_derivative
from diva_ray.core.grid import default_ridges, grid_losses, rotate
from diva_ray.core.leave_out import LeverageError, adjoint, rows_by_group_size, solve_left_out
from diva_ray.core.losses import squared, subtract_from_targets
from diva_ray.core.ridge import FitAccumulator, FitSums, Solution, solve
from diva_ray.data.shards import Extent
from diva_ray.engine import check, passes
from diva_ray.engine.context import Partial, RowStore, Setup, Tally, ValidationRows
from diva_ray.engine.progress import Progress
from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

EXACT_ROWS = 10_000  # validation rows up to which standard errors are exact by default
EXACT_BYTES = 256 << 20  # and the memory of their whitened features
SIGN_VECTORS = 8  # random sign vectors beyond that
MOST_CONDITION = 3e4  # above it float32 products would cost more than 5e-5 of the derivative
MOST_LEVERAGE = 0.99  # likewise


class Engine(Protocol):
    """What a task needs of an engine (`engine.inline`, `engine.cluster`)."""

    kind: str
    workers: int
    extents: list[Extent]

    def load(self) -> Any: ...
    def tell(self, **known: Any) -> None: ...
    def forget(self, *names: str) -> None: ...
    def each(self, kernel: Any, extents: list[Extent] | None = None) -> Any: ...
    def duplicate(self, field: str) -> int | None: ...
    def close(self) -> None: ...


@dataclass
class Runner:
    """Runs passes on an engine, with progress, and keeps the seconds of each."""

    engine: Engine
    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def load(self) -> None:
        """Read every shard."""
        progress = Progress("load", sum(e.stop - e.start for e in self.engine.extents), quiet=self.quiet)
        for rows in self.engine.load():
            progress.add(rows)
        self.seconds["load"] = progress.close()

    def run(self, kernel: Any, label: str, extents: list[Extent] | None = None) -> Any:
        """Return the merged partials of a pass, added in the order of the shards."""
        chosen = self.engine.extents if extents is None else extents
        progress = Progress(label, sum(e.stop - e.start for e in chosen), quiet=self.quiet)

        def partials() -> Any:
            for extent, partial in zip(chosen, self.engine.each(kernel, chosen), strict=True):
                progress.add(extent.stop - extent.start)
                yield partial

        total = _sum(partials())
        self.seconds[label] = self.seconds.get(label, 0.0) + progress.close()
        return total

    def timed(self, label: str, function: Any, *args: Any) -> Any:
        """Return a result of work on the driver, counting its seconds."""
        start = time.perf_counter()
        try:
            result = function(*args)
        except ValueError as error:  # core says which option to change
            raise InputError(str(error)) from error
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start
        return result


def _sum(partials: Iterator[Any]) -> Any:
    """Return the sum in order: the first two make a new object, which takes the rest in place where it can."""
    total = next(partials)
    for k, partial in enumerate(partials):
        total = operator.iadd(total, partial) if k else operator.add(total, partial)
    return total


@dataclass(frozen=True)
class Derived:
    """What is known of the whole dataset once every row has its derivative.

    Attributes:
        penalty_derivative: dL/dLambda of every column.
        standard_errors: `exact` or `estimate`.
        form: `primal` or `dual`.
        by_source: per source, derivative and contributions whose squares add up to its squared standard error.
    """

    setup: Setup
    ridge: float
    condition: float
    grid: list[tuple[float, float]]
    tally: Tally
    penalty_derivative: Tensor
    standard_errors: str
    form: str
    by_source: Tensor
    agreement: dict[str, float] | None = None  # estimated standard errors against exact ones, on a few rows


def tell_checked_rows(runner: Runner, solution: Solution, dtype: torch.dtype) -> None:
    """Make the rows known whose standard errors the leave-out pass computes exactly."""
    runner.engine.tell(shards=len(runner.engine.extents))
    Z, r, codes = runner.run(check.sample, "check")
    runner.engine.tell(checked=check.Checked((Z.double() @ solution.Linv.T).to(dtype), r, codes))


def compare_errors(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Return the median and the spread of estimate / exact over the checked rows."""
    ratio = (estimate / exact)[exact > 0]
    if not len(ratio):
        return {"rows": 0}
    return {"rows": len(ratio), "median_ratio": float(ratio.median()), "spread": float(ratio.std(correction=0))}


def penalty_pattern(setup: Setup) -> Tensor:
    """Return the relative penalty of every column: 1, but 0 on the intercept."""
    pattern = torch.ones(setup.scale.width, dtype=torch.float64)
    pattern[: int(setup.scale.intercept)] = 0
    return pattern


def derive(runner: Runner, setup: Setup, ridge: float | str, rows: int, heard: int, errors: str) -> Derived:
    """Return the derivative of every row, which stays with its shard.

    Args:
        setup: see `Setup`; its dtype may be raised to float64 where float32 products would not do.
        ridge: penalty, or `auto`.
        rows: rows of all tables together: the n x n form is chosen below p.
        heard: rows with validation weight.
        errors: `auto`, `exact`, `estimate`, or `none`: standard errors of 0.
    """
    if rows < setup.scale.width and (ridge == "auto" or float(ridge) > 0):
        return _dual(runner, setup, ridge)
    small = heard <= EXACT_ROWS and heard * setup.scale.width * setup.dtype.itemsize <= EXACT_BYTES
    exact = errors == "exact" or (errors == "auto" and small)
    setup = replace(setup, collect=exact, copies=1 if exact or errors == "none" else 1 + SIGN_VECTORS)
    setup, chosen, solution, grid = fit_ridge(runner, setup, ridge)
    while True:
        if setup.copies > 1:
            tell_checked_rows(runner, solution, setup.dtype)
        left: Partial = runner.run(passes.leave_one_out, "leave-out")
        if setup.dtype == torch.float64 or left.tally["max_leverage"] < MOST_LEVERAGE:
            break
        log.info("leverages up to %.6f: products in float64 from here", left.tally["max_leverage"])
        setup, solution = raise_precision(runner, setup, chosen)
    found, penalty = runner.timed("solve", solve_adjoint, solution, left.sums)
    runner.engine.tell(adjoint=found.to(setup.dtype))
    if exact and left.rows is not None:
        runner.engine.tell(validation=validation_rows(solution, left.rows, setup.dtype))
    scored: Partial = runner.run(passes.score, "score")
    agreement = None
    if setup.copies > 1:
        (found_errors,) = runner.run(check.estimated, "check")
        agreement = compare_errors(found_errors, left.tally["checked"].sqrt())
    kind = "exact" if exact else "none" if errors == "none" else "estimate"
    return Derived(
        setup, chosen, solution.condition, grid, left.tally, penalty, kind, "primal", scored.tally["sources"],
        agreement,
    )


def fit_ridge(runner: Runner, setup: Setup, ridge: float | str) -> tuple[Setup, float, Solution, list]:
    """Return the solution, with the ridge chosen by leave-one-out if it is `auto`; two passes then, else one."""
    runner.engine.tell(setup=setup)
    sums: FitSums = runner.run(passes.fit, "fit")
    pattern, grid = penalty_pattern(setup), []
    if ridge == "auto":
        rotation = runner.timed("solve", rotate, sums, pattern)
        ridges = default_ridges(rotation)
        runner.engine.tell(rotation=rotation.to(setup.dtype), ridges=ridges)
        grid = list(zip(ridges.tolist(), runner.run(passes.grid, "ridge").tolist(), strict=True))
        runner.engine.forget("rotation", "ridges")
        ridge = best_ridge(grid)
    solution: Solution = runner.timed("solve", solve, sums, float(ridge) * pattern)
    if setup.dtype == torch.float32 and solution.condition > MOST_CONDITION:
        log.info("condition number %.1e: products in float64 from here", solution.condition)
        return *raise_precision(runner, setup, float(ridge), fetch_ridge=True), grid
    _tell_solution(runner, solution, setup.dtype)
    return setup, float(ridge), solution, grid


def raise_precision(runner: Runner, setup: Setup, ridge: float, fetch_ridge: bool = False) -> tuple:
    """Fit again with float64 products and return setup, (ridge,) solution."""
    setup = replace(setup, dtype=torch.float64)
    runner.engine.forget("rows", "scored", "targets")
    runner.engine.tell(setup=setup)
    sums: FitSums = runner.run(passes.fit, "fit")
    solution: Solution = runner.timed("solve", solve, sums, ridge * penalty_pattern(setup))
    _tell_solution(runner, solution, setup.dtype)
    return (setup, ridge, solution) if fetch_ridge else (setup, solution)


def _tell_solution(runner: Runner, solution: Solution, dtype: torch.dtype) -> None:
    runner.engine.tell(solution={"W": solution.W.to(dtype), "whiten": solution.Linv.T.to(dtype).contiguous()})


def best_ridge(grid: list[tuple[float, float]]) -> float:
    """Return the ridge with the least leave-one-out squared error."""
    ridge, loss = min(grid, key=lambda pair: pair[1])
    if not loss < float("inf"):
        raise InputError(
            "ridge: some ridge must leave every leverage below 1, got none from "
            f"{grid[0][0]:.3g} to {grid[-1][0]:.3g}. Set `ridge` to a larger number, or add samples."
        )
    if ridge in (grid[0][0], grid[-1][0]):
        log.warning("the best ridge %.3g lies at the end of the grid: set `ridge` to look further", ridge)
    return ridge


def advance(runner: Runner, setup: Setup, ridge: float, update: Any, step: int, state_folder: str | None) -> Partial:
    """Take weight step `step` (from 0) and return the left-out sums under the new weights: two reads of every block.

    The score pass applies `update` (derivative, standard error, alpha) -> alpha row by row, and adds the next fit sums
    from the same read; the second read is the next leave-out pass. New weights stay with the shards, and in
    `state_folder` for a worker that takes another's place.
    """
    engine = runner.engine
    engine.tell(update=update, state_folder=state_folder, step=step)
    scored: Partial = runner.run(passes.score, "score")
    solution = runner.timed("solve", solve, scored.sums, ridge * penalty_pattern(setup))
    engine.forget("update", "rows", "scored")
    engine.tell(step=step + 1)
    _tell_solution(runner, solution, setup.dtype)
    left: Partial = runner.run(passes.leave_one_out, "leave-out")
    found, _ = runner.timed("solve", solve_adjoint, solution, left.sums)
    engine.tell(adjoint=found.to(setup.dtype))
    return left


def validation_rows(solution: Solution, rows: tuple[Tensor, ...], dtype: torch.dtype) -> ValidationRows:
    """Return what exact standard errors need of every validation row, for broadcast."""
    U, t, moved, codes = rows
    known, group = torch.unique(codes, return_inverse=True)
    return ValidationRows((U.double() @ solution.Linv).T.to(dtype).contiguous(), Validation(t, moved, group), known)


def _dual(runner: Runner, setup: Setup, ridge: float | str) -> Derived:
    """The n x n form: fewer rows than columns, so the rows themselves are smaller than the p x p sums."""
    runner.engine.tell(setup=setup)
    Z, Y, alpha, v, offset, codes = runner.run(passes.gather, "gather")
    pattern, grid = penalty_pattern(setup).to(setup.dtype), []
    groups = rows_by_group_size(codes)
    start = time.perf_counter()
    if ridge == "auto":
        grid = dual_grid(Z.double(), Y, alpha.double(), v.double(), offset.double(), groups, setup)
        ridge = best_ridge(grid)
    fit = _fit_dual_or_none(Z, Y, alpha, float(ridge) * pattern, offset)
    if fit is None:
        log.info("the kernel matrix is too badly conditioned for float32: products in float64 from here")
        runner.engine.forget("targets")
        return replace(_dual(runner, replace(setup, dtype=torch.float64), float(ridge)), grid=grid)
    q = (1 - fit.room) / alpha.clamp_min(torch.finfo(setup.dtype).tiny)
    try:
        blocks = [(rows, fit.K[rows[:, :, None], rows[:, None, :]]) for rows in groups]
        left = solve_left_out(fit.r, alpha, q, fit.room, blocks)
    except LeverageError as error:
        raise InputError(
            f"score: leverage must be below 1, got {error.leverage:.9g} at row {error.row}. Increase `ridge`."
        ) from error
    outputs = subtract_from_targets(Y, left.e)
    values, gradient = setup.loss_function()(outputs, Y)
    t, own = adjoint(left, v[:, None] * gradient)
    penalty = penalty_derivative(fit, left, alpha, t, pattern)
    known, group = torch.unique(codes, return_inverse=True)
    heard = Validation(t, alpha[:, None] * left.e, group)
    scored, moved = torch.empty(len(Z), 2, dtype=torch.float64), []
    for a in range(0, len(Z), 256):
        part = slice(a, a + 256)
        C = pairwise_contributions(fit.K[part], fit.r[part], group[part], heard)
        scored[part, 0], scored[part, 1] = C.sum(1).double(), C.norm(dim=1).double()
        if setup.sources is not None:
            moved.append(C)
    store = {"r": fit.r, "outputs": outputs, "own": own, "leverage": 1 - fit.room, "loss": values}
    kept, at = {}, 0
    for extent in runner.engine.extents:
        n = extent.stop - extent.start
        kept[extent.index] = RowStore(n, setup)
        kept[extent.index].put(0, n, **{name: column[at : at + n] for name, column in store.items()})
        at += n
    cut = [extent.stop - extent.start for extent in runner.engine.extents]
    parts = dict(zip(kept, scored.split(cut), strict=True))
    runner.seconds["solve"] = time.perf_counter() - start
    contributions = dict(zip(kept, torch.cat(moved).split(cut), strict=True)) if setup.sources is not None else {}
    runner.engine.tell(dual=kept, dual_scored=parts, dual_contributions=contributions)
    found: Partial = runner.run(passes.receive, "receive")
    by_source = found.tally.pop("sources")
    return Derived(setup, float(ridge), fit.condition, grid, found.tally, penalty, "exact", "dual", by_source)


def _fit_dual_or_none(Z: Tensor, Y: Tensor, alpha: Tensor, penalty: Tensor, offset: Tensor) -> DualFit | None:
    """Return the fit; None where float32 would lose it and float64 may not."""
    single = Z.dtype == torch.float32
    try:
        fit = fit_dual(Z, Y, alpha, penalty, offset, spread=True)
    except ValueError as error:
        if single:
            return None
        raise InputError(f"score: {error}") from error
    return None if single and (fit.condition > MOST_CONDITION or float(fit.room.min()) < 1 - MOST_LEVERAGE) else fit


def dual_grid(
    Z: Tensor, Y: Tensor, alpha: Tensor, v: Tensor, offset: Tensor, groups: list, setup: Setup
) -> list[tuple[float, float]]:
    """Return (ridge, leave-one-out squared error): the grid in the n coordinates that span the rows."""
    first = int(setup.scale.intercept)
    body = Z[:, first:]
    values, E = torch.linalg.eigh(body @ body.T)
    X = torch.cat([Z[:, :first], E * values.clamp_min(0).sqrt()], 1)
    sums = FitAccumulator(X.shape[1], setup.outputs, torch.float64)
    sums.add(X, Y, alpha, offset)
    pattern = torch.ones(X.shape[1], dtype=torch.float64)
    pattern[:first] = 0
    rotation = rotate(sums.sums(), pattern)
    ridges = default_ridges(rotation)
    losses = grid_losses(X, Y, alpha, v, offset, groups, rotation, ridges, squared)
    return list(zip(ridges.tolist(), losses.tolist(), strict=True))
