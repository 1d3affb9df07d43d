"""From loaded shards to a derivative for every row: which passes, in which order, in which precision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.derivative import Validation
from diva_ray.core.grid import default_ridges, outputs_factor, rotate
from diva_ray.core.products import multiply
from diva_ray.core.ridge import FitSums, Solution, solve
from diva_ray.core.ridge_choice import Moments
from diva_ray.engine.context import ValidationRows
from diva_ray.engine.kernels import check, passes
from diva_ray.engine.reduce import Partial, Rows
from diva_ray.engine.setup import Setup
from diva_ray.errors import LostLeverageError, NotDefiniteError
from diva_ray.tasks.fit.derived import (
    MOST_CONDITION,
    MOST_CONDITION_FITTED,
    MOST_ERROR,
    MOST_LEVERAGE,
    Derived,
    RidgeGrid,
    best_ridge,
    by_band,
    penalty_pattern,
)
from diva_ray.tasks.fit.dual import derive_dual
from diva_ray.tasks.setup.forms import sign_vectors, takes_dual, takes_exact
from diva_ray.tasks.setup.runner import Runner

log = logging.getLogger("diva_ray")
Fit = Callable[[Runner, Setup], FitSums]


def tell_checked_rows(runner: Runner, solution: Solution, dtype: torch.dtype) -> None:
    """Make the rows known whose standard errors the leave-out pass computes exactly."""
    runner.engine.tell(shards=len(runner.engine.extents))
    Z, r, codes = runner.run(check.sample, "check").joined()
    runner.engine.tell(checked=check.Checked(multiply(Z.double(), solution.Linv.T).to(dtype), r.to(dtype), codes))


def compare_derivatives(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Return how far the derivatives of the checked rows are from those by products of full precision."""
    norm = float(exact.norm())
    ranks = torch.stack([x.argsort().argsort().double() for x in (found, exact)])
    correlation = float(torch.corrcoef(ranks)[0, 1]) if len(exact) > 1 else 1.0
    error = float((found - exact).norm()) / norm if norm else 0.0
    return {"rows": len(exact), "relative_error": error, "rank_correlation": correlation}


def compare_errors(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Return the median and the spread of estimate / exact over the checked rows."""
    ratio = (estimate / exact)[exact > 0]
    if not len(ratio):
        return {"rows": 0}
    return {"rows": len(ratio), "median_ratio": float(ratio.median()), "spread": float(ratio.std(correction=0))}


def derive(
    runner: Runner,
    setup: Setup,
    ridge: float | str,
    validating: int,
    errors: str,
    *,
    dual: bool | None = None,
    fit: Fit | None = None,
    vectors: int | None = None,
) -> Derived:
    """Return the derivative of every row, which stays with its shard.

    Args:
        setup: see `Setup`; its dtype may be raised to float64 where float32 products would not do, for good or only
            in the fit.
        ridge: penalty, or `auto`.
        validating: rows with validation weight.
        errors: `auto`, `exact`, `estimate`, or `none`: standard errors of 0.
        dual: whether to take the n x n form, which then keeps every contribution; None: where there are fewer rows, of
            all tables together, than columns.
        fit: what returns the fit sums, where they are not those of one pass over all rows.
        vectors: sign vectors of estimated standard errors; None: as many as suit the setup.
    """
    if dual or (dual is None and takes_dual(runner.rows, setup.scale.width, ridge)):
        return derive_dual(runner, setup, ridge, keep=bool(dual))
    setup, low = with_errors(setup, runner.rows, validating, errors, vectors), setup.inputs != "full"
    exact, asked = setup.collect, setup.dtype
    setup, chosen, solution, grid = fit_ridge(runner, setup, ridge, fit)
    accuracy, agreement, fitted = None, None, setup.dtype
    if setup.dtype != asked and solution.condition <= MOST_CONDITION_FITTED:
        setup = lowered(runner, setup, solution, asked)
    while True:
        if setup.vectors or setup.inputs != "full":
            tell_checked_rows(runner, solution, setup.dtype)
        left = run_with_room(runner, setup, passes.leave_one_out, "leave-out")
        if left is None:
            setup, solution = raise_precision(runner, setup, chosen, fit)
            fitted = setup.dtype
            continue
        penalty, scored = score_rows(runner, setup, solution, left)
        if setup.vectors or setup.inputs != "full":
            (found,) = runner.run(check.estimated, "check").joined()
            exact_derivatives, squares = left.tally["checked"]
            agreement = compare_errors(found[:, 1], squares.sqrt()) if setup.vectors else None
            accuracy = accuracy or compare_derivatives(found[:, 0], exact_derivatives)
        if setup.inputs == "full" or accuracy is None or accuracy["relative_error"] <= MOST_ERROR[setup.inputs]:
            break
        log.info(
            "derivatives of %d rows are off by %.1e with %s: products of full precision from here",
            accuracy["rows"], accuracy["relative_error"], setup.inputs,
        )  # fmt: skip
        setup = replace(setup, inputs="full")
        runner.engine.forget("rows", "scored")
        runner.engine.tell(setup=setup)
    kind = "exact" if exact else "none" if errors == "none" else "estimate"
    return Derived(
        setup,
        fitted,
        chosen,
        solution.condition,
        grid,
        left.tally,
        by_band(setup, penalty),
        kind,
        "primal",
        scored.tally["sources"].whole(setup.n_sources),
        agreement,
        accuracy if low else None,
    )


def lowered(runner: Runner, setup: Setup, solution: Solution, dtype: torch.dtype) -> Setup:
    """Return the setup with products after the fit in their own dtype again: the sums of the fit lose as much as eps
    times the condition, and its residuals stay float64, but whitened rows and all that follows lose about its root.

    Measured on classes, 1,280 columns: 1e-5 of the derivative at 1e6, less than 5e-5 at 1e7; where derivatives nearly
    cancel, as of numbers that are fitted well, more of them, but at most a hundredth of a standard error.
    """
    setup = replace(setup, dtype=dtype)
    runner.engine.forget("targets")
    runner.engine.tell(setup=setup)
    tell_solution(runner, solution, dtype, solution.W.dtype)
    return setup


def with_errors(setup: Setup, rows: int, validating: int, errors: str, vectors: int | None = None) -> Setup:
    """Return the setup for standard errors that are `exact`, an `estimate`, chosen by size (`auto`), or `none`."""
    small = takes_exact(rows, validating, setup.scale.width, setup.outputs, setup.dtype.itemsize, setup.n_sources)
    exact = errors == "exact" or (errors == "auto" and small)
    vectors = sign_vectors(setup.scale.width, setup.outputs) if vectors is None else vectors
    vectors = 0 if exact or errors == "none" else vectors
    return replace(setup, collect=exact, vectors=vectors)


def score_rows(runner: Runner, setup: Setup, solution: Solution, left: Partial) -> tuple[Tensor, Partial]:
    """Return dL/dLambda of every column and the score pass: derivative and standard error stay with the shards."""
    found, penalty = runner.timed("solve", solve_adjoint, solution, left.sums, setup.inputs)
    runner.engine.tell(adjoint=found.to(setup.dtype), score_files=runner.files("score"))
    runner.engine.tell(validation=None if left.rows is None else validation_rows(solution, left.rows, setup.dtype))
    return penalty, runner.run(passes.score, "score")


def sum_all(runner: Runner, setup: Setup) -> FitSums:
    """Return the fit sums of all rows."""
    return runner.run(passes.fit, "fit")


def fit_ridge(
    runner: Runner, setup: Setup, ridge: float | str, fit: Fit | None = None
) -> tuple[Setup, float, Solution, RidgeGrid]:
    """Return the solution, with the ridge chosen by leave-one-out if it is `auto`; two passes then, else one."""
    runner.engine.tell(setup=setup)
    sums, grid = (fit or sum_all)(runner, setup), RidgeGrid([])
    if ridge == "auto":
        grid = ridge_grid(runner, setup, sums)
        ridge = best_ridge(grid)
    solution = solve_in_range(runner, setup, sums, float(ridge) * penalty_pattern(setup))
    if solution is None:
        setup, solution = raise_precision(runner, setup, float(ridge), fit)
        return setup, float(ridge), solution, grid
    tell_solution(runner, solution, setup.dtype)
    return setup, float(ridge), solution, grid


def ridge_grid(
    runner: Runner, setup: Setup, sums: FitSums, run: Callable[[Callable, str], Tensor] | None = None
) -> RidgeGrid:
    """Return the ridges of the default grid with their leave-one-out squared errors: p^3 operations, and one pass, by
    `run` if it is given."""
    many = not setup.keeps_outputs and setup.outputs >= setup.scale.width
    rotation = runner.timed("solve", rotate, sums, penalty_pattern(setup), None if many else runner.rows)
    ridges = default_ridges(rotation, runner.rows)
    family = runner.timed("solve", rotation.at, ridges, setup.dtype)
    factor = runner.timed("solve", outputs_factor, family) if many else None
    runner.engine.tell(family=family, outputs_factor=factor)
    packed = (run or runner.run)(passes.grid, "ridge")
    runner.engine.forget("family", "outputs_factor")
    return RidgeGrid.of(ridges, Moments.unpack(packed))


def solve_in_range(runner: Runner, setup: Setup, sums: FitSums, penalty: Tensor) -> Solution | None:
    """Return the solution; None where float32 sums lose it: the condition number is too high for them, or the matrix
    not positive definite, perhaps by rounding only."""
    single = setup.dtype == torch.float32
    try:
        solution: Solution = runner.timed("solve", solve, sums, penalty)
        if not (single and solution.condition > MOST_CONDITION):
            return solution
        found = f"{solution.condition:.1e}"
    except NotDefiniteError:
        if not single:
            raise
        found = "beyond float32"
    if not runner.quiet:
        log.info("condition number %s: products in float64 from here", found)
    return None


def fit_with_room(
    runner: Runner, setup: Setup, ridge: float | str, fit: Fit | None = None
) -> tuple[Setup, float, Solution, RidgeGrid]:
    """Return what `fit_ridge` does, in float64 too where a leverage is near 1, for those who do not look at it in every
    pass that leaves rows out. One more read, n p^2 operations."""
    setup, chosen, solution, grid = fit_ridge(runner, setup, ridge, fit)
    if setup.dtype != torch.float64 and run_with_room(runner, setup, passes.least_room, "leverage") is None:
        setup, solution = raise_precision(runner, setup, chosen, fit)
    return setup, chosen, solution, grid


def run_with_room(runner: Runner, setup: Setup, kernel: Callable, name: str) -> Partial | None:
    """Return what a pass that leaves rows out finds; None where float32 products would lose what it divides by."""
    try:
        found: Partial = runner.run(kernel, name)
        largest = found.tally["max_leverage"]
    except LostLeverageError:
        if setup.dtype == torch.float64:
            raise
        largest = 1.0
    if setup.dtype != torch.float64 and not largest < MOST_LEVERAGE:
        log.info("leverages up to %.6f: products in float64 from here", largest)
        return None
    return found


def raise_precision(runner: Runner, setup: Setup, ridge: float, fit: Fit | None = None) -> tuple[Setup, Solution]:
    """Fit again with float64 products and return setup, solution."""
    setup = replace(setup, dtype=torch.float64)
    runner.engine.forget("rows", "scored", "targets")
    runner.engine.tell(setup=setup)
    sums = (fit or sum_all)(runner, setup)
    solution: Solution = runner.timed("solve", solve, sums, ridge * penalty_pattern(setup))
    tell_solution(runner, solution, setup.dtype)
    return setup, solution


def tell_solution(runner: Runner, solution: Solution, dtype: torch.dtype, residuals: torch.dtype | None = None) -> None:
    """Make the solution known to the passes, in the dtype of their products; that of residuals may be another."""
    runner.engine.tell(
        solution={"W": solution.W.to(residuals or dtype), "whiten": solution.Linv.T.to(dtype).contiguous()},
        left_files=runner.files("left"),
    )


def validation_rows(solution: Solution, rows: Rows, dtype: torch.dtype) -> ValidationRows:
    """Return what exact standard errors need of every validation row, for broadcast."""
    U, t, moved, codes = rows.joined()
    known, group = torch.unique(codes, return_inverse=True)
    reach = torch.empty(U.shape[1], len(U), dtype=dtype)
    for part, into in zip(U.split(1024), reach.split(1024, 1), strict=True):  # few of them in float64 at a time
        into.copy_(multiply(part.double(), solution.Linv).T)
    return ValidationRows(reach, Validation(t, moved, group), known)
