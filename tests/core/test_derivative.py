import pytest
import torch

from tests.core.problems import KINDS, RIDGES, make_problem, primal, rows_of
from tests.oracles import (
    assert_close,
    finite_difference,
    gradients_and_contributions,
    held_out_gradient,
    held_out_loss,
)

CASES = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.parametrize("grouped", [True, False]),
    pytest.mark.parametrize("intercept", [True, False]),
]


def cases(test):
    for mark in CASES:
        test = mark(test)
    return test


def tolerance(shape, scale, trained):
    """Tall tables keep all digits. Wide ones lose them to the condition number of A, and rows of positive weight, whose
    derivatives are smaller by a factor of the ridge, more: method.md, Numerics. `test_dual.py` is exact there."""
    if shape != "wide" or scale > 1:
        return 1e-12
    return 1e-9 if scale == 1 else 1e-5 if not trained else None


@cases
@pytest.mark.parametrize("scale", RIDGES)
@pytest.mark.parametrize("shape", ["tall", "wide", "crowded"])
def test_the_derivative_is_that_of_brute_force_refits(shape, scale, intercept, grouped, kind):
    problem = make_problem(shape, scale, intercept, kind, grouped)
    d, penalty, C = gradients_and_contributions(problem)
    found = primal(problem, blocks=3)
    for trained in (True, False):
        rows, rtol = rows_of(problem, trained), tolerance(shape, scale, trained)
        if rtol is not None:
            assert_close(found.derivative[rows, 0], d[rows], rtol, f"derivative, trained {trained}")
            assert_close(found.C[rows], C[rows], rtol, f"contributions, trained {trained}")
            assert_close(found.C[rows].norm(dim=1), C[rows].norm(dim=1), rtol, f"standard error, trained {trained}")
    assert_close(found.penalty, penalty, tolerance(shape, scale, False), "penalty derivative")


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_a_difference_of_losses(kind):
    problem = make_problem("tall", kind=kind)
    found = primal(problem)
    for field, values in (("alpha", found.derivative[:, 0]), ("Lambda", found.penalty)):
        differences = [finite_difference(problem, field, j, 1e-3) for j in range(len(values))]
        assert_close(values, differences, 1e-7, field)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_no_say_in_the_loss_of_its_own_group(kind, grouped):
    problem = make_problem("tall", kind=kind, grouped=grouped)
    everyone = primal(problem).derivative.abs().max()
    code = torch.unique(problem.groups, return_inverse=True)[1]
    heard = 0
    for group in torch.unique(problem.groups).tolist():
        own = problem.groups == group
        found = primal(problem.but(v=torch.where(own, 1.0, 0.0).double()))
        assert float(found.derivative[own].abs().max()) <= 1e-13 * float(everyone)
        assert bool((found.C[own, code[own]] == 0).all())
        heard += int((found.derivative[~own].abs() > 1e-3 * float(everyone)).any())
    assert heard > 3


@pytest.mark.parametrize("shape", ["tall", "wide", "crowded"])
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_derivatives_of_samples_and_penalties_sum_to_zero(kind, shape):
    """L(k alpha, k Lambda) = L(alpha, Lambda): a pure change of scale (Euler)."""
    found, problem = primal(make_problem(shape, kind=kind)), make_problem(shape, kind=kind)
    samples, penalties = problem.alpha * found.derivative[:, 0], problem.Lambda * found.penalty
    assert_close(-samples.sum(), penalties.sum(), 1e-9 if shape == "wide" else 1e-12)


def test_a_pool_row_is_scored_as_if_it_were_about_to_join():
    problem = make_problem("tall", kind="squared", grouped=False)
    pool = torch.tensor([4, 9, 11])
    alpha, v = problem.alpha.clone(), problem.v.clone()
    alpha[pool], v[pool] = 0, 0
    problem = problem.but(alpha=alpha, v=v)
    found, kept = primal(problem), torch.tensor([i for i in range(len(alpha)) if i not in pool.tolist()])
    differences = [finite_difference(problem, "alpha", int(j), 1e-3) for j in pool]
    assert_close(found.derivative[pool, 0], differences, 1e-7, "pool")
    assert_close(found.derivative[kept, 0], primal(problem.rows(kept)).derivative[:, 0], 1e-12, "the others")


@pytest.mark.parametrize("kind", KINDS)
def test_separate_validation_rows_give_the_derivative_of_proposition_2(kind):
    train, held_out = make_problem("tall", kind=kind), make_problem("tall", kind=kind, seed=1)
    held_out = held_out.but(Lambda=train.Lambda, groups=held_out.groups + 100)
    both = train.but(
        Z=torch.cat([train.Z, held_out.Z]),
        Y=torch.cat([train.Y, held_out.Y]),
        alpha=torch.cat([train.alpha, 0 * held_out.alpha]),
        v=torch.cat([0 * train.v, held_out.v]),
        offset=torch.cat([train.offset, held_out.offset]),
        groups=torch.cat([train.groups, held_out.groups]),
    )
    found, n = primal(both, blocks=4), len(train.Z)
    assert_close(found.loss, held_out_loss(train, held_out), 1e-12, "loss")
    assert_close(found.derivative[:n, 0], held_out_gradient(train, held_out), 1e-12, "derivative")


def test_a_validation_weight_scales_what_its_row_adds():
    problem = make_problem("tall")
    once, twice = primal(problem), primal(problem.but(v=3 * problem.v))
    assert_close(twice.derivative, 3 * once.derivative, 1e-13)
    assert_close(twice.C, 3 * once.C, 1e-13)


def test_a_copy_of_a_row_in_its_group_shares_its_derivative_and_its_weight():
    problem = make_problem("tall", grouped=False)
    halves, index = problem.alpha.clone(), torch.cat([torch.arange(len(problem.Z)), torch.tensor([8])])
    halves[8] /= 2
    copied = problem.but(alpha=halves).rows(index)
    v = copied.v.clone()
    v[8] /= 2
    v[-1] /= 2
    found, whole = primal(copied.but(v=v)), primal(problem)
    assert_close(found.derivative[:-1], whole.derivative, 1e-12)
    assert_close(found.derivative[-1], whole.derivative[8], 1e-12)
    assert_close(found.loss, whole.loss, 1e-13)
