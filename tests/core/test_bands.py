"""Penalties of bands: the gradient behind shares, fits to some of the bands, penalties that lie decades apart."""

import pytest
import torch

from diva_ray.core import bands, ridge
from diva_ray.core.grid import grid_values, rotate, weighted_sums
from diva_ray.core.leave_out import rows_by_group_size
from diva_ray.core.losses import errors, squares
from tests.core.problems import cut, fit, make_problem, primal
from tests.oracles import assert_close, left_out_outputs, refit_loss

F64 = torch.float64
WIDTHS = {"tall": [2, 1, 3], "wide": [12, 1, 16]}  # and the intercept


def banded(shape, penalties, kind="squared", grouped=True):
    """A problem whose columns bear the penalties of their bands."""
    problem = make_problem(shape, 1.0, True, kind, grouped)
    columns = bands.penalty_of_columns(torch.tensor(penalties, dtype=F64), WIDTHS[shape], 1)
    assert columns[0] == 0 and len(columns) == problem.Z.shape[1]
    return problem.but(Lambda=columns)


def loss_of_shares(problem, shape, ridge_, shares):
    """L by refits, from the definition: features scaled by the root of their band's share, one common ridge."""
    factor = torch.cat([torch.ones(1, dtype=F64), shares.sqrt().repeat_interleave(torch.tensor(WIDTHS[shape]))])
    even = torch.cat([torch.zeros(1, dtype=F64), torch.ones(len(factor) - 1, dtype=F64)])
    return refit_loss(problem.but(Z=problem.Z * factor), Lambda=ridge_ * even)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("penalties", [[0.5, 3.0, 40.0], [1e-2, 1e3, 1.0], [2.0, 2.0, 2.0]])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_derivatives_of_ridge_and_shares_are_those_of_refits(shape, penalties, grouped):
    problem = banded(shape, penalties, grouped=grouped)
    given = torch.tensor(penalties, dtype=F64)
    found = primal(problem)
    slices = bands.band_slices(WIDTHS[shape], 1)
    gradient = torch.stack([found.penalty[columns].sum() for columns in slices])
    by_ridge, by_share = bands.share_derivatives(gradient, given)
    common, shares = bands.shares_of(given)
    assert_close(shares.sum(), 1.0, 1e-15)
    assert_close(common / shares, given, 1e-15)
    point = torch.cat([torch.tensor([common], dtype=F64), shares]).requires_grad_()
    (expected,) = torch.autograd.grad(loss_of_shares(problem, shape, point[0], point[1:]), point)
    assert_close(by_ridge, expected[0], 1e-8, "ridge")
    assert_close(by_share, expected[1:], 1e-8, "shares")


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_penalties_that_lie_decades_apart_cost_no_digits_and_no_condition(shape):
    problem = banded(shape, [1e-1, 1e9, 1e4])
    solution = ridge.solve(fit(problem, cut(problem, 2)), problem.Lambda)
    A = problem.Z.T @ (problem.alpha[:, None] * problem.Z) + torch.diag(problem.Lambda)
    L = torch.linalg.inv(solution.Linv)
    assert_close(L @ L.T, A, 1e-12, "L L'")
    right = problem.Z.T @ (problem.alpha[:, None] * (problem.targets - problem.offset))
    assert_close(A @ solution.W, right, 1e-12, "A W")
    assert solution.condition < 1e-4 * float(torch.linalg.cond(A, 1))


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 3], [0, 1, 2, 4, 5, 6], [1, 2]])
def test_sub_blocks_are_the_sums_of_a_fit_to_those_columns(kept):
    problem, index = make_problem("tall"), torch.tensor(kept)
    whole = fit(problem, cut(problem, 3)).columns(index)
    expected = fit(problem.but(Z=problem.Z[:, index].contiguous()), cut(problem, 3))
    assert_close(whole.gram.triu(), expected.gram.triu(), 1e-14)
    assert_close(whole.cross, expected.cross, 1e-14)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 4, 5, 6], [0, 3]])
def test_errors_of_a_fit_to_some_bands_are_those_of_refits(kept, grouped):
    problem = banded("tall", [0.5, 3.0, 40.0], "cross_entropy", grouped)
    index, parts, ridges = torch.tensor(kept), cut(problem, 3), torch.tensor([0.3, 1.0, 5.0], dtype=F64)
    part = problem.but(Z=problem.Z[:, index], Lambda=problem.Lambda[index])
    rotation = rotate(fit(problem, parts).columns(index), problem.Lambda[index])
    total = torch.zeros(2, 3, dtype=F64)
    for rows in parts:
        b = part.rows(rows)
        groups = rows_by_group_size(b.groups)
        values = grid_values(b.Z, b.Y, b.alpha, b.offset, groups, rotation.at(ridges), (squares, errors))
        total += weighted_sums(values, b.v)
    for k, factor in enumerate(ridges):
        F = left_out_outputs(part.but(Lambda=factor * part.Lambda))
        assert_close(total[0, k], (part.v * ((F - part.targets) ** 2).sum(1)).sum(), 1e-12)
        assert_close(total[1, k], (part.v * (F.argmax(1) != part.Y).double()).sum(), 1e-14)


def quadratic(x):
    """A bowl in the logarithm of the penalties, its least value 1 at (1, e^2)."""
    u = x.log() - torch.tensor([0.0, 2.0], dtype=F64)
    return 1 + float((u * u).sum()), 2 * u / x


def test_a_descent_finds_the_bottom_stops_within_bounds_and_beside_an_earlier_one():
    low, high = torch.full((2,), 1e-3, dtype=F64), torch.full((2,), 1e3, dtype=F64)
    start = torch.tensor([30.0, 0.1], dtype=F64)
    one = bands.descend(quadratic, start, low, high, 50, "here")
    assert one.start == "here" and one.loss == min(one.losses) < 1 + 1e-6
    assert_close(one.penalties.log(), [0.0, 2.0], 1e-3)
    bounded = bands.descend(quadratic, start, low, torch.tensor([1e3, 2.0], dtype=F64), 50)
    assert_close(bounded.penalties[1], 2.0, 1e-12)
    again = bands.descend(quadratic, start, low, high, 50, before=[one])
    assert len(again.losses) <= len(one.losses)


def test_a_descent_keeps_the_best_it_has_seen_when_cut_short():
    low, high = torch.full((2,), 1e-3, dtype=F64), torch.full((2,), 1e3, dtype=F64)
    found = bands.descend(quadratic, torch.tensor([500.0, 500.0], dtype=F64), low, high, 1)
    assert found.loss == min(found.losses)
    assert_close(quadratic(found.penalties)[0], found.loss, 1e-14)


def test_the_adjoint_gives_every_column_its_derivative_also_under_uneven_penalties():
    problem = banded("tall", [1e-2, 1e3, 1.0])
    found = primal(problem)
    Lambda = problem.Lambda.clone().requires_grad_()
    (expected,) = torch.autograd.grad(refit_loss(problem, Lambda=Lambda), Lambda)
    assert_close(found.penalty, expected, 1e-9)
