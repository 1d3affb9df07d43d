from dataclasses import replace

import pytest
import torch

from diva_ray.core import grid, reduction
from diva_ray.core.leave_out import rows_by_group_size
from diva_ray.core.losses import squares
from tests.core.problems import RIDGES, cut, fit, loss_of, make_problem
from tests.oracles import assert_close, grid_loss, left_out_outputs, sklearn_grid

F64 = torch.float64


@pytest.fixture(params=["eigenvalues", "tiles", "one tile"])
def form(request, monkeypatch):
    """What A is reduced to. Tiles of 2 columns leave one over where there is no intercept."""
    monkeypatch.setattr(reduction, "NARROWEST", 99 if request.param == "eigenvalues" else 1)
    monkeypatch.setattr(reduction, "ROWS", 1e9)
    monkeypatch.setattr(reduction, "WIDTH", 2 if request.param == "tiles" else 64)
    return request.param


def run_grid(problem, pattern, ridges, blocks=3):
    """Losses of the whole grid, block by block, and the rotation they came from."""
    parts = cut(problem, blocks)
    rotation = grid.rotate(fit(problem, parts), pattern, len(problem.Z))
    total, family = torch.zeros(len(ridges), dtype=F64), rotation.at(torch.tensor(ridges, dtype=F64))
    for rows in parts:
        b = problem.rows(rows)
        groups, offset = rows_by_group_size(b.groups), b.offset if bool(b.offset.any()) else None
        values = grid.grid_values(b.Z, b.Y, b.alpha, offset, groups, family, (lambda F, Y: loss_of(problem)(F, Y)[0],))
        total += grid.weighted_sums(values, b.v)[0]
        if problem.kind == "squared":
            errors = grid.grid_squared_errors(b.Z, b.Y, b.alpha, offset, groups, family)
            assert_close(errors, values[0], 1e-11, "squared errors of all ridges side by side")
    return total, rotation


def pattern_of(problem):
    """The problem's penalties as a pattern for a family of ridges."""
    return problem.Lambda.clone()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("kind", ["squared", "squared_codes", "cross_entropy", "logistic"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", ["tall", "wide", "crowded"])
def test_the_losses_of_a_grid_are_those_of_refits_at_every_ridge(shape, intercept, grouped, kind):
    problem = make_problem(shape, 1.0, intercept, kind, grouped)
    ridges = [1e-2, 1.0, 37.0, 1e6] if shape == "wide" else [*RIDGES, 37.0]
    found, _ = run_grid(problem, pattern_of(problem), ridges)
    expected = grid_loss(problem, problem.Lambda, ridges)
    for k, ridge in enumerate(ridges):
        assert_close(found[k], expected[k], 1e-11 if ridge < 1 and shape == "wide" else 1e-12, f"ridge {ridge}")


@pytest.mark.parametrize("intercept", [True, False])
def test_the_squares_of_many_classes_need_none_of_their_outputs(intercept):
    problem = make_problem("tall", 1.0, intercept, "squared_codes", grouped=False)
    problem = problem.but(offset=torch.zeros_like(problem.offset))
    ridges, parts = torch.tensor([1e-6, 1.0, 37.0, 1e6], dtype=F64), cut(problem, 3)
    rotation = grid.rotate(fit(problem, parts), pattern_of(problem))
    padded = torch.cat([rotation.cross, torch.zeros(len(rotation.cross), len(rotation.cross), dtype=F64)], 1)
    factor = grid.outputs_factor(replace(rotation, cross=padded).at(ridges))  # of no fewer classes than columns
    found = torch.zeros(len(ridges), dtype=F64)
    for rows in parts:
        b = problem.rows(rows)
        found += b.v @ grid.grid_squares(b.Z, b.Y, b.alpha, rotation.at(ridges), factor)
    assert_close(found, grid_loss(problem, problem.Lambda, ridges.tolist()), 1e-10)


@pytest.mark.usefixtures("form")
def test_without_an_offset_none_and_zeros_are_the_same():
    problem = make_problem("tall")
    problem = problem.but(offset=torch.zeros_like(problem.offset))
    found, _ = run_grid(problem, pattern_of(problem), [0.1, 10.0])
    assert_close(found, grid_loss(problem, problem.Lambda, [0.1, 10.0]), 1e-12)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_scikit_learn_finds_the_same_left_out_errors(shape, intercept):
    problem = make_problem(shape, 1.0, intercept, grouped=False)
    pattern = torch.ones_like(problem.Lambda)
    pattern[: int(intercept)] = 0
    problem = problem.but(alpha=problem.alpha + 0.2, offset=torch.zeros_like(problem.offset), Lambda=pattern)
    ridges = [0.5, 1.0, 30.0]
    errors = sklearn_grid(problem, ridges, intercept)
    found, _ = run_grid(problem, pattern, ridges)
    assert_close(found, torch.einsum("n,nck->k", problem.v, errors), 1e-11, "grid")
    residual = (left_out_outputs(problem.but(Lambda=1.0 * pattern)) - problem.targets).square()
    assert_close(residual, errors[:, :, 1], 1e-11, "refits")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("grouped", [True, False])
def test_a_ridge_at_which_a_leverage_reaches_one_has_an_infinite_loss(grouped):
    problem = make_problem("wide", 1.0, False, grouped=grouped)
    found, _ = run_grid(problem, pattern_of(problem), [1e-13, 1.0], blocks=1)
    assert found[0] == torch.inf
    assert_close(found[1], grid_loss(problem, problem.Lambda, [1.0])[0], 1e-11)


@pytest.mark.usefixtures("form")
def test_with_an_intercept_a_row_that_holds_all_the_weight_has_an_infinite_loss():
    problem = make_problem("tall", grouped=False)
    alpha = torch.zeros_like(problem.alpha)
    alpha[4] = 1
    found, _ = run_grid(problem.but(alpha=alpha), pattern_of(problem), [1.0, 100.0], blocks=1)
    assert found.tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize("intercept", [True, False])
def test_the_rotation_makes_the_normal_matrix_diagonal_for_every_ridge(intercept):
    problem = make_problem("tall", 1.0, intercept)
    _, rotation = run_grid(problem, pattern_of(problem), [1.0])
    X, first = problem.Z @ rotation.basis, int(intercept)
    diagonal = X.T @ (problem.alpha[:, None] * X)
    assert_close(diagonal, torch.diag(rotation.values), 1e-13)
    assert_close(rotation.mean_variance, first / problem.alpha.sum(), 1e-14)
    single = rotation.at(torch.ones(3, dtype=F64), torch.float32)
    assert single.basis.dtype == single.shrink.dtype == single.cross.dtype == single.mean.dtype == torch.float32


def test_the_default_ridges_span_nine_decades_around_the_mean_eigenvalue():
    problem = make_problem("tall")
    _, rotation = run_grid(problem, pattern_of(problem), [1.0])
    ridges, mean = grid.default_ridges(rotation, 10**6, 10), float(rotation.values.mean())
    assert_close(ridges, [mean * 10.0**k for k in range(-6, 4)], 1e-12)
    assert len(grid.default_ridges(rotation, 10**6)) == 20


def test_the_default_ridges_are_the_same_in_either_form(monkeypatch):
    sums, pattern = fit(make_problem("wide"), cut(make_problem("wide"), 3)), pattern_of(make_problem("wide"))
    expected = grid.default_ridges(grid.rotate(sums, pattern), 20)
    monkeypatch.setattr(reduction, "NARROWEST", 1)
    monkeypatch.setattr(reduction, "ROWS", 1.0)
    monkeypatch.setattr(reduction, "WIDTH", 4)
    rotation = grid.rotate(sums, pattern, 20)
    assert rotation.tiles is not None and rotation.values.shape == (29,)
    assert_close(grid.default_ridges(rotation, 20), expected, 1e-13)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_both_forms_find_the_same_on_many_columns_some_alike_and_some_zero(dtype, grouped, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    n, p, c = 400, 131, 3

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    Z, Y, alpha = normal(n, p), normal(n, c), torch.rand(n, generator=generator, dtype=F64)
    Z[:, 0], Z[:, 5:9], Z[:, 20:30] = 1, Z[:, 4:5], 0
    alpha[:40] = 0
    pattern = torch.logspace(-1, 1, p, dtype=F64)
    pattern[0] = 0
    groups = torch.arange(n) // 3 if grouped else torch.arange(n)
    sums = grid.FitSums((Z.T * alpha) @ Z, (Z.T * alpha) @ Y)
    found, rows = [], rows_by_group_size(groups)
    for narrowest in (1 << 20, 1):
        monkeypatch.setattr(reduction, "NARROWEST", narrowest)
        monkeypatch.setattr(reduction, "ROWS", 1.0)
        monkeypatch.setattr(reduction, "WIDTH", 8)
        rotation = grid.rotate(sums, pattern, n)
        assert (rotation.tiles is None) == (narrowest > 1)
        family = rotation.at(grid.default_ridges(rotation, 10**6), dtype)
        Zs, Ys, alphas = (x.to(dtype) for x in (Z, Y, alpha))
        found.append(grid.grid_values(Zs, Ys, alphas, None, rows, family, (squares,))[0].sum(0))
    assert found[0].isfinite().all()
    assert_close(found[1], found[0], 1e-9 if dtype == F64 else 1e-4)


def test_many_classes_keep_the_eigenvalues(monkeypatch):
    monkeypatch.setattr(reduction, "NARROWEST", 1)
    problem = make_problem("tall")
    assert grid.rotate(fit(problem, cut(problem, 3)), pattern_of(problem), None).tiles is None
