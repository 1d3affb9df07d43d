import pytest
import torch

from diva_ray.core import ridge
from tests.core.problems import KINDS, RIDGES, cut, fit, make_problem
from tests.oracles import assert_close, refit


def plain(problem):
    """The weighted least-squares solution of all rows, and its sums, in one line each."""
    W = refit(problem, torch.arange(len(problem.Z)), problem.alpha, problem.Lambda, "stationary")
    D = torch.diag(problem.alpha)
    return W, problem.Z.T @ D @ problem.Z, problem.Z.T @ D @ (problem.targets - problem.offset)


@pytest.mark.parametrize("scale", RIDGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intercept", [True, False])
def test_the_merged_sums_and_the_solution_are_those_of_the_whole_table(kind, intercept, scale):
    problem = make_problem("tall", scale, intercept, kind)
    W, gram, cross = plain(problem)
    sums = fit(problem, cut(problem, 4))
    assert_close(sums.gram.triu(), gram.triu(), 1e-14, "gram")
    assert_close(sums.cross, cross, 1e-14, "cross")
    solution = ridge.solve(sums, problem.Lambda)
    assert_close(solution.W, W, 1e-12, "W")
    A = gram + torch.diag(problem.Lambda)
    assert_close(solution.Linv @ A @ solution.Linv.T, torch.eye(len(A), dtype=A.dtype), 1e-12, "whitened A")
    bearing = problem.Lambda > 0
    even = torch.where(bearing, (problem.Lambda[bearing].min() / problem.Lambda).sqrt(), torch.ones(len(A)))
    exact = float(torch.linalg.cond(even * A * even[:, None], 1))  # as it is factored: all penalties alike
    assert exact / 5 < solution.condition < exact * 1.01


@pytest.mark.parametrize("kind", ["cross_entropy", "squared_codes", "squared"])
def test_neutral_weights_take_the_short_way_to_the_same_sums(kind):
    problem = make_problem("tall", kind=kind)
    problem = problem.but(alpha=torch.ones_like(problem.alpha), offset=torch.zeros_like(problem.offset))
    accumulator = ridge.FitAccumulator(problem.Z.shape[1], 3, torch.float64)
    accumulator.add(problem.Z, problem.Y, problem.alpha)
    _, gram, cross = plain(problem)
    assert_close(accumulator.sums().gram.triu(), gram.triu(), 1e-14, "gram")
    assert_close(accumulator.sums().cross, cross, 1e-14, "cross")


def test_merging_into_sums_adds_what_plus_adds():
    problem = make_problem("tall")
    one, other, third = (fit(problem, [rows]) for rows in cut(problem, 3))
    merged = ridge.FitSums(one.gram.clone(), one.cross.clone())
    merged += other
    merged += third
    expected = one + other + third
    assert_close(merged.gram, expected.gram, 1e-15, "gram")
    assert_close(merged.cross, expected.cross, 1e-15, "cross")


def test_rows_of_weight_zero_change_nothing():
    problem = make_problem("tall")
    kept = problem.rows(torch.nonzero(problem.alpha > 0).squeeze(1))
    whole, part = (fit(table, [torch.arange(len(table.Z))]) for table in (problem, kept))
    assert_close(whole.gram, part.gram, 1e-14, "gram")
    assert_close(whole.cross, part.cross, 1e-14, "cross")


def test_a_wide_table_without_penalties_has_no_solution_and_says_what_to_change():
    problem = make_problem("wide")
    with pytest.raises(ValueError, match=r"ridge: the normal matrix must be positive definite.*Increase `ridge`"):
        ridge.solve(fit(problem, cut(problem, 1)), torch.zeros_like(problem.Lambda))
