"""The n x n form, on the driver: fewer rows than columns, so the rows themselves are smaller than the p x p sums."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch
from torch import Tensor

from diva_ray.core.bands import band_slices
from diva_ray.core.derivative import Validation, pairwise_contributions
from diva_ray.core.dual import DualFit, fit_dual, penalty_derivative
from diva_ray.core.factors import eigen_
from diva_ray.core.grid import default_ridges, grid_squared_errors, rotate
from diva_ray.core.leave_out import LeverageError, adjoint, rows_by_group_size, solve_left_out
from diva_ray.core.losses import subtract_from_targets
from diva_ray.core.products import kernel, multiply
from diva_ray.core.ridge import FitAccumulator
from diva_ray.core.ridge_choice import Moments, pack_moments
from diva_ray.core.subspace import row_spaces
from diva_ray.engine.kernels import passes
from diva_ray.engine.kernels.left_out import RowStore, facts_of_outputs
from diva_ray.engine.reduce import Partial
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.fit.derived import (
    MOST_CONDITION_DUAL,
    MOST_LEVERAGE,
    Derived,
    RidgeGrid,
    best_ridge,
    by_band,
    penalty_pattern,
)
from diva_ray.tasks.setup.runner import Runner

log = logging.getLogger("diva_ray")


def derive_dual(runner: Runner, setup: Setup, ridge: float | str, *, keep: bool = False) -> Derived:
    """Return what `derive` does, from the kernel matrix of the rows; `keep`: contributions stay known to the shards."""
    # Outputs are no more than the rows themselves, or W; and the inverse of the kernel matrix bears no rounding.
    setup = replace(setup, keeps_outputs=True, inputs="full")
    runner.engine.tell(setup=setup)
    Z, Y, alpha, v, offset, codes = runner.run(passes.gather, "gather").joined()
    pattern, grid = penalty_pattern(setup).to(setup.dtype), RidgeGrid([])
    groups = rows_by_group_size(codes)
    start = time.perf_counter()
    if ridge == "auto":
        grid = dual_grid(Z.double(), Y, alpha.double(), v.double(), offset.double(), groups, setup)
        ridge = best_ridge(grid)
    several = len(setup.scale.mean) > 1
    fit = _fit_dual_or_none(Z, Y, alpha, float(ridge) * pattern, offset, spread=several)
    if fit is None:
        log.info("the kernel matrix is too badly conditioned for float32: products in float64 from here")
        runner.engine.forget("targets")
        return replace(derive_dual(runner, replace(setup, dtype=torch.float64), float(ridge), keep=keep), grid=grid)
    q = (1 - fit.room) / alpha.clamp_min(torch.finfo(setup.dtype).tiny)
    try:
        blocks = [(rows, fit.K[rows[:, :, None], rows[:, None, :]]) for rows in groups]
        left = solve_left_out(fit.r, alpha, q, fit.room, blocks)
    except LeverageError as error:
        raise InputError(
            f"ridge: leverage must be below 1, got {error.leverage:.9g} at row {error.row}. Increase `ridge`."
        ) from error
    outputs = subtract_from_targets(Y, left.e)
    values, gradient = setup.loss_function()(outputs, Y)
    t, own = adjoint(left, v[:, None] * gradient)
    scored, moved = _contributions(fit, t, alpha[:, None] * left.e, codes, keep or setup.sources is not None)
    if several:
        bands = by_band(setup, penalty_derivative(fit, left, alpha, t, pattern))
    else:
        # L is the same under (k alpha, k ridge), so the derivative of the ridge follows from those of the weights.
        bands = -(alpha.double() @ scored[:, 0])[None] / float(ridge)
    store = {"r": fit.r, "outputs": outputs, "own": own, "leverage": 1 - fit.room, "loss": values}
    store["q"] = fit.K.diagonal()
    store |= facts_of_outputs(outputs, Y, setup)
    runner.add_seconds("solve", time.perf_counter() - start)
    found = _hand_back(runner, setup, store, scored, moved, left.least_room)
    by_source = found.tally.pop("sources").whole(setup.n_sources)
    return Derived(
        setup, setup.dtype, float(ridge), fit.condition, grid, found.tally, bands, "exact", "dual", by_source
    )


def _contributions(
    fit: DualFit, t: Tensor, weighted: Tensor, codes: Tensor, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return derivative and standard error of every row (n, 2), and all contributions (n, groups) if asked for."""
    _, group = torch.unique(codes, return_inverse=True)
    validation = Validation(t, weighted, group)
    scored, kept = torch.empty(len(t), 2, dtype=torch.float64), []
    for a in range(0, len(t), 256):
        part = slice(a, a + 256)
        C = pairwise_contributions(fit.K[part], fit.r[part], group[part], validation)
        scored[part, 0], scored[part, 1] = C.sum(1).double(), C.norm(dim=1).double()
        if keep:
            kept.append(C)
    return scored, torch.cat(kept) if keep else None


def _hand_back(
    runner: Runner, setup: Setup, store: dict[str, Tensor], scored: Tensor, moved: Tensor | None, least_room: float
) -> Partial:
    """Give every shard its rows of the results, and return their tallies."""
    extents = runner.engine.extents
    sizes = [extent.rows for extent in extents]
    kept, at = {}, 0
    for extent, n in zip(extents, sizes, strict=True):
        kept[extent.index] = RowStore(n, setup)
        kept[extent.index].least_room = least_room
        kept[extent.index].put(0, n, **{name: column[at : at + n] for name, column in store.items()})
        at += n
    parts = dict(zip(kept, scored.split(sizes), strict=True))
    contributions = {} if moved is None else dict(zip(kept, moved.split(sizes), strict=True))
    runner.engine.tell(dual=kept, dual_scored=parts, dual_contributions=contributions)
    return runner.run(passes.receive, "receive")


def _fit_dual_or_none(
    Z: Tensor, Y: Tensor, alpha: Tensor, penalty: Tensor, offset: Tensor, *, spread: bool
) -> DualFit | None:
    """Return the fit; None where float32 would lose it and float64 may not."""
    single = Z.dtype == torch.float32
    try:
        fit = fit_dual(Z, Y, alpha, penalty, offset, spread=spread)
    except ValueError as error:
        if single:
            return None
        raise InputError(str(error)) from error
    return (
        None
        if single and (fit.condition > MOST_CONDITION_DUAL * len(Z) ** 0.5 or float(fit.room.min()) < 1 - MOST_LEVERAGE)
        else fit
    )


def dual_grid(Z: Tensor, Y: Tensor, alpha: Tensor, v: Tensor, offset: Tensor, groups: list, setup: Setup) -> RidgeGrid:
    """Return the grid in the n coordinates that span the rows."""
    first = int(setup.scale.intercept)
    body = Z[:, first:]
    values, E = eigen_(kernel(body, torch.ones(body.shape[1], dtype=body.dtype)))
    X = torch.cat([Z[:, :first], E * values.clamp_min(0).sqrt()], 1)
    sums = FitAccumulator(X.shape[1], setup.outputs, torch.float64)
    sums.add(X, Y, alpha, offset)
    pattern = torch.ones(X.shape[1], dtype=torch.float64)
    pattern[:first] = 0
    rotation = rotate(sums.sums(), pattern, len(X))
    ridges = default_ridges(rotation, len(X))
    errors = grid_squared_errors(X, Y, alpha, offset, groups, rotation.at(ridges))
    return RidgeGrid.of(ridges, Moments.unpack(pack_moments(errors, alpha, v, groups)))


def for_few_rows(runner: Runner, setup: Setup) -> Setup:
    """Return the setup for many fits of the p x p form: of fewer rows than columns in float64, and on the spaces that
    the rows span. Not for rows that are yet to come (a pool)."""
    rows = runner.rows
    return double_if_few(_on_row_spaces(runner, setup, rows), rows)


def double_if_few(setup: Setup, rows: int) -> Setup:
    """Return the setup in float64 for fewer rows than columns: the p x p form needs every digit then."""
    return replace(setup, dtype=torch.float64) if rows < setup.scale.width else setup


def _on_row_spaces(runner: Runner, setup: Setup, rows: int) -> Setup:
    """Return the setup with bands of more columns than there are rows replaced by the rows' coordinates in them, where
    that halves the columns at least: each fit is of p^3."""
    scale = setup.scale
    if 2 * sum(min(width, rows) for width in scale.widths) > scale.width:
        return setup
    runner.engine.tell(setup=replace(setup, dtype=torch.float64, keeps_outputs=True))
    Z = runner.run(passes.gather, "gather").joined()[0]
    found = runner.timed("solve", row_spaces, Z, band_slices(scale.widths, int(scale.intercept)))
    before = scale.project or (None,) * len(found)
    project = tuple(
        inner if basis is None else basis if inner is None else multiply(inner, basis)
        for inner, basis in zip(before, found, strict=True)
    )
    runner.engine.forget("targets")
    return replace(setup, scale=replace(scale, project=project))
