import pytest
import torch

from diva_ray.core import dual
from tests.core.problems import KINDS, RIDGES, dual_form, make_problem, primal, rows_of
from tests.oracles import assert_close, contributions, fifty_digit_derivative, gradients, refit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("scale", RIDGES)
def test_the_dual_derivative_is_that_of_brute_force_refits(scale, intercept, grouped, kind):
    problem = make_problem("wide", scale, intercept, kind, grouped)
    d, penalty = gradients(problem)
    C, found, first = contributions(problem), dual_form(problem), int(intercept)
    for trained in (True, False):
        # float64 refits are good to 1e-7 for rows of positive weight at a tiny ridge: see the 50-digit test
        rows, rtol = rows_of(problem, trained), 1e-6 if trained and scale < 1 else 1e-12
        assert_close(found.derivative[rows, 0], d[rows], rtol, f"derivative, trained {trained}")
        assert_close(found.C[rows], C[rows], rtol, f"contributions, trained {trained}")
        assert_close(found.C[rows].norm(dim=1), C[rows].norm(dim=1), rtol, f"standard error, trained {trained}")
    assert_close(found.penalty[first:], penalty[first:], 1e-11, "penalty derivative")
    assert found.penalty[:first].tolist() == [0.0] * first


@pytest.mark.parametrize("intercept", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_dual_is_exact_at_a_tiny_ridge_by_fifty_digits(intercept):
    problem = make_problem("wide", 1e-6, intercept, "squared")
    found, rows = dual_form(problem).derivative[:, 0], rows_of(problem, True)[:1].tolist()
    assert_close(found[rows], [fifty_digit_derivative(problem, j) for j in rows], 1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_dual_and_primal_agree(shape, scale, intercept, kind):
    problem = make_problem(shape, scale, intercept, kind)
    one, other, first = dual_form(problem), primal(problem, blocks=3), int(intercept)
    rtol = 1e-12 if shape == "tall" or scale > 1 else 1e-9
    for field in ("loss", "outputs", "C", "derivative", "W"):
        assert_close(getattr(one, field), getattr(other, field), rtol, field)
    assert_close(1 - one.leverage, 1 - other.leverage, rtol, "room")
    assert_close(one.penalty[first:], other.penalty[first:], rtol, "penalty derivative")


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("idle", [True, False])
def test_the_fit_is_the_ridge_solution_its_residuals_kernel_and_spread(idle, intercept):
    problem = make_problem("wide", 1.0, intercept)
    problem = problem if idle else problem.but(alpha=problem.alpha + 0.1)
    Z, a, first = problem.Z, problem.alpha, int(intercept)
    inverse = torch.linalg.inv(Z.T @ torch.diag(a) @ Z + torch.diag(problem.Lambda))
    W = refit(problem, torch.arange(len(Z)), a, problem.Lambda, "stationary")
    fit = dual.fit_dual(Z, problem.Y, a, problem.Lambda, problem.offset, spread=True)
    off = ~torch.eye(len(Z), dtype=torch.bool)
    assert_close(fit.W, W, 1e-12, "W")
    assert_close(fit.r, problem.targets - problem.offset - Z @ W, 1e-11, "r")
    assert_close(fit.room, 1 - a * (Z @ inverse @ Z.T).diagonal(), 1e-11, "room")
    assert_close(fit.K[off], (Z @ inverse @ Z.T)[off], 1e-11, "K off the diagonal")
    assert_close(fit.spread, (inverse @ Z.T)[first:], 1e-11, "spread")


def test_the_diagonal_of_the_kernel_is_the_leverage_over_the_weight():
    problem = make_problem("wide")
    fit = dual.fit_dual(problem.Z, problem.Y, problem.alpha, problem.Lambda, problem.offset)
    rows = problem.alpha > 0
    assert_close(fit.K.diagonal()[rows], ((1 - fit.room) / problem.alpha)[rows], 1e-12)


def test_the_spread_is_only_there_if_asked_for():
    problem = make_problem("wide")
    assert dual.fit_dual(problem.Z, problem.Y, problem.alpha, problem.Lambda, problem.offset).spread is None


def test_a_column_without_a_penalty_is_refused():
    problem = make_problem("wide")
    Lambda = problem.Lambda.clone()
    Lambda[4] = 0
    with pytest.raises(ValueError, match=r"fit_dual: penalties must be > 0 but on the intercept.*Increase `ridge`"):
        dual.fit_dual(problem.Z, problem.Y, problem.alpha, Lambda, problem.offset)


def test_a_kernel_that_is_singular_in_float32_says_what_to_change():
    problem = make_problem("wide", 1e-6)
    Z = problem.Z.repeat(1, 1)[torch.zeros(len(problem.Z), dtype=torch.int64)].float()
    alpha, Lambda = torch.full((len(Z),), 1e9), problem.Lambda.float()
    with pytest.raises(ValueError, match=r"ridge: the kernel matrix must be positive definite.*precision=float64"):
        dual.fit_dual(Z, problem.Y.float(), alpha, Lambda, problem.offset.float())
