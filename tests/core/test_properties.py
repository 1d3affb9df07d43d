"""What must hold for any table, cut and order; Hypothesis draws them, the same ones in every run."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diva_ray.core.adjoint import AdjointSums
from diva_ray.core.second_order import BendSums
from tests.core.problems import KINDS, cut, dual_form, fit, make_problem, primal
from tests.oracles import assert_close

F64 = torch.float64
few = settings(derandomize=True, deadline=None, max_examples=20)
tables = st.builds(
    make_problem,
    shape=st.just("tall"),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    intercept=st.booleans(),
    kind=st.sampled_from(KINDS),
    grouped=st.booleans(),
    seed=st.integers(0, 50),
)
wide_tables = st.builds(make_problem, shape=st.just("wide"), kind=st.sampled_from(KINDS), seed=st.integers(0, 50))


def assert_same(one, other, rtol=1e-12, order=slice(None)):
    for field in ("loss", "penalty", "W"):
        assert_close(getattr(one, field), getattr(other, field), rtol, field)
    for field in ("outputs", "derivative", "leverage", "C"):
        assert_close(getattr(one, field), getattr(other, field)[order], rtol, field)


@few
@given(tables, st.integers(1, 26))
def test_the_cut_into_blocks_does_not_matter(problem, blocks):
    assert_same(primal(problem, blocks), primal(problem))


@few
@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(problem, random):
    order = list(range(len(problem.Z)))
    random.shuffle(order)
    order = torch.tensor(order)
    assert_same(primal(problem.rows(order), 3), primal(problem), order=order)


@few
@given(wide_tables, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_to_the_dual(problem, random):
    order = list(range(len(problem.Z)))
    random.shuffle(order)
    order = torch.tensor(order)
    assert_same(dual_form(problem.rows(order)), dual_form(problem), order=order)


@few
@given(tables)
def test_merging_fit_sums_is_associative_and_commutative(problem):
    a, b, c = (fit(problem, [rows]) for rows in cut(problem, 3))
    for one, other in (((a + b) + c, a + (b + c)), (a + b, b + a)):
        assert_close(one.gram, other.gram, 1e-14, "gram")
        assert_close(one.cross, other.cross, 1e-14, "cross")


@few
@given(st.integers(0, 4), st.integers(0, 1000))
def test_merging_adjoint_sums_is_associative_and_commutative(vectors, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        M, S = (torch.randn(5, 5, generator=generator, dtype=F64) for _ in range(2))
        reach, square, *bends = torch.randn(2 + vectors, generator=generator, dtype=F64)
        return AdjointSums(M, S, BendSums(reach, square, torch.stack(bends)) if vectors else None)

    a, b, c = draw(), draw(), draw()
    for one, other in (((a + b) + c, a + (b + c)), (a + b, b + a)):
        assert_close(one.M, other.M, 1e-14, "M")
        assert_close(one.S, other.S, 1e-14, "S")
        for name in ("reach", "square", "bends") if vectors else ():
            assert_close(getattr(one.moments, name), getattr(other.moments, name), 1e-14, name)


@few
@given(tables, st.floats(0.01, 100))
def test_scaling_weights_and_penalties_together_only_scales_the_derivatives(problem, k):
    found, scaled = primal(problem), primal(problem.but(alpha=k * problem.alpha, Lambda=k * problem.Lambda))
    for field in ("loss", "outputs", "leverage", "W"):
        assert_close(getattr(scaled, field), getattr(found, field), 1e-12, field)
    for field in ("derivative", "penalty", "C"):
        assert_close(k * getattr(scaled, field), getattr(found, field), 1e-12, field)


@few
@given(wide_tables, st.floats(0.01, 100))
def test_scaling_weights_and_penalties_together_only_scales_the_dual_derivatives(problem, k):
    found, scaled = dual_form(problem), dual_form(problem.but(alpha=k * problem.alpha, Lambda=k * problem.Lambda))
    for field in ("loss", "outputs"):
        assert_close(getattr(scaled, field), getattr(found, field), 1e-12, field)
    for field in ("derivative", "penalty", "C"):
        assert_close(k * getattr(scaled, field), getattr(found, field), 1e-12, field)


@few
@given(st.one_of(tables, wide_tables))
def test_the_derivatives_of_weights_and_penalties_balance(problem):
    """sum_j alpha_j dL/dalpha_j + sum_k Lambda_k dL/dLambda_k = 0, since only their ratio matters."""
    found = dual_form(problem) if problem.Z.shape[0] < problem.Z.shape[1] else primal(problem)
    samples, penalties = problem.alpha * found.derivative[:, 0], problem.Lambda * found.penalty
    terms = samples.abs().sum() + penalties.abs().sum()
    assert abs(float(samples.sum() + penalties.sum())) <= 1e-12 * float(terms)


@few
@given(tables, st.floats(0.1, 10))
def test_units_of_features_go_with_their_penalties(problem, k):
    """Z in other units and Lambda in their squares: the same predictions and derivatives."""
    units = torch.logspace(0, 1, problem.Z.shape[1], dtype=F64) * k
    found, other = primal(problem), primal(problem.but(Z=problem.Z * units, Lambda=problem.Lambda * units**2))
    for field in ("loss", "outputs", "derivative", "leverage", "C"):
        assert_close(getattr(other, field), getattr(found, field), 1e-11, field)
    assert_close(other.penalty * units**2, found.penalty, 1e-11, "penalty")


@few
@given(tables)
def test_contributions_add_up_to_the_derivative(problem):
    found = primal(problem, 3)
    assert_close(found.C.sum(1), found.derivative[:, 0], 1e-12)
