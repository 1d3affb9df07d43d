"""float32 products with float64 sums and solves: what they cost at a condition number of 1e3."""

import math

import pytest
import torch

from tests.core.problems import dual_form, primal
from tests.oracles import Problem, assert_close

F64 = torch.float64


def conditioned_problem(n, p, grouped, kind="squared", condition=1e3):
    """A table whose normal matrix has the condition number, with no intercept."""
    generator = torch.Generator().manual_seed(11)
    k, ridge = min(n, p), 1.0
    left, right = (torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=F64))[0] for m in (n, p))
    Z = left * (torch.logspace(0, math.log10(condition), k, dtype=F64) - ridge).clamp_min(1e-3).sqrt() @ right.T
    Y = torch.randn(n, 3, generator=generator, dtype=F64)
    Y = Y.argmax(1) if kind == "cross_entropy" else Y
    groups = torch.arange(n) // 2 if grouped else torch.arange(n)
    ones, Lambda = torch.ones(n, dtype=F64), torch.full((p,), ridge, dtype=F64)
    return Problem(Z, Y, ones, ones, Lambda, 0.1 * torch.randn(n, 3, generator=generator, dtype=F64), groups, kind)


def single(problem):
    """The problem in float32, and the same numbers in float64."""
    fields = ("Z", "alpha", "v", "Lambda", "offset") + (("Y",) if problem.Y.ndim == 2 else ())
    low = problem.but(**{name: getattr(problem, name).float() for name in fields})
    return low, problem.but(**{name: getattr(low, name).double() for name in fields})


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_float32_costs_the_primal_a_hundred_thousandth_and_the_dual_five(form, grouped, kind):
    shape, run = ((400, 30), primal) if form == "primal" else ((40, 120), dual_form)
    low, high = single(conditioned_problem(*shape, grouped, kind))
    found, exact = run(low), run(high)
    assert 9e2 < exact.condition < 1e4, exact.condition
    assert found.derivative.dtype == torch.float32
    # the primal solves in float64, the dual inverts in float32
    digits = 1e-5 if form == "primal" else 5e-5
    for field, rtol in (("derivative", digits), ("C", digits), ("outputs", 5e-5), ("penalty", 5e-5)):
        assert_close(getattr(found, field), getattr(exact, field), rtol, field)


def test_float32_weights_and_penalties_give_float64_sums_and_solves():
    low, _ = single(conditioned_problem(100, 10, True))
    found = primal(low, blocks=4)
    assert found.W.dtype == found.penalty.dtype == F64
