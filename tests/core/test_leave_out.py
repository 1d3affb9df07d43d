import pytest
import torch

from diva_ray.core import leave_out
from tests.core.problems import KINDS, RIDGES, dual_form, make_problem, primal
from tests.oracles import assert_close, left_out_outputs, refit_loss

F64 = torch.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("scale", RIDGES)
@pytest.mark.parametrize("shape", ["tall", "wide", "crowded"])
def test_left_out_outputs_and_their_loss_are_those_of_refits(shape, scale, intercept, grouped, kind):
    problem = make_problem(shape, scale, intercept, kind, grouped)
    outputs, loss = left_out_outputs(problem), refit_loss(problem)
    # wide with a tiny ridge: the condition number 1e8 of A costs the primal 8 digits, the dual none
    rtol = {"tall": 1e-12, "crowded": 1e-12, "wide": 1e-12 if scale > 1 else 1e-11 if scale == 1 else 1e-6}[shape]
    found = primal(problem, blocks=3)
    assert_close(found.outputs, outputs, rtol, "outputs")
    assert_close(found.loss, loss, rtol, "loss")
    if shape == "wide":
        found = dual_form(problem)
        assert_close(found.outputs, outputs, 1e-12, "dual outputs")
        assert_close(found.loss, loss, 1e-12, "dual loss")


def test_two_references_agree():
    problem = make_problem("tall")
    assert_close(left_out_outputs(problem, form="normal"), left_out_outputs(problem), 1e-13)


def test_leverages_are_the_diagonal_of_the_hat_matrix():
    problem = make_problem("tall")
    A = problem.Z.T @ torch.diag(problem.alpha) @ problem.Z + torch.diag(problem.Lambda)
    hat = problem.Z @ torch.linalg.solve(A, problem.Z.T * problem.alpha)
    assert_close(primal(problem).leverage, hat.diagonal(), 1e-13)


def test_groups_are_listed_by_size_and_rows_alone_are_not():
    groups = torch.tensor([7, 3, 7, 5, 3, 9, 7, 2, 2])
    found = leave_out.rows_by_group_size(groups)
    assert [x.tolist() for x in found] == [[[7, 8], [1, 4]], [[0, 2, 6]]]
    assert leave_out.rows_by_group_size(torch.arange(4)) == []
    assert leave_out.rows_by_group_size(torch.zeros(0, dtype=torch.int64)) == []


def test_groups_of_one_row_given_as_blocks_are_rows_alone():
    problem = make_problem("tall", grouped=False)
    U, r = problem.Z / 10, problem.offset
    alone = leave_out.leave_out(U, r, problem.alpha, [])
    blocks = leave_out.leave_out(U, r, problem.alpha, [torch.arange(len(U))[:, None]])
    assert_close(blocks.e, alone.e, 1e-14, "e")
    for found, expected in zip(leave_out.adjoint(blocks, r), leave_out.adjoint(alone, r), strict=True):
        assert_close(found, expected, 1e-14, "adjoint")


@pytest.mark.parametrize("shape", ["tall", "crowded"])
def test_the_adjoint_is_the_transpose_of_leaving_out(shape):
    """<g, e(r)> = <t(g), r> for any g and r, group by group."""
    problem = make_problem(shape)
    U, r, g = problem.Z / 8, problem.offset, torch.roll(problem.offset, 3)
    left = leave_out.leave_out(U, r, problem.alpha, leave_out.rows_by_group_size(problem.groups))
    t, _ = leave_out.adjoint(left, g)
    for group in problem.groups.unique().tolist():
        rows = problem.groups == group
        assert_close((t[rows] * r[rows]).sum(), (g[rows] * left.e[rows]).sum(), 1e-12, f"group {group}")


@pytest.mark.parametrize("form", [primal, dual_form])
def test_one_sample_works_with_penalties_alone_and_not_with_an_intercept(form):
    alone = make_problem("wide", intercept=False).rows(torch.tensor([0]))
    alone = alone.but(alpha=torch.ones(1, dtype=F64))
    found = form(alone)
    assert_close(found.outputs, alone.offset, 1e-13, "outputs without any training row")
    assert float(found.derivative.abs().max()) < 1e-14
    with_intercept = make_problem("wide").rows(torch.tensor([0])).but(alpha=torch.ones(1, dtype=F64))
    message = r"leave_out: leverage must be below 1, got (1|0\.9999999\d*) at row 0\. Increase `ridge` or use"
    with pytest.raises(leave_out.LeverageError, match=message) as caught:
        form(with_intercept)
    assert caught.value.row == 0 and caught.value.leverage > 1 - 1e-9


def test_a_row_that_alone_sees_an_unpenalised_column_is_named():
    problem = make_problem("tall", grouped=False)
    Z, Lambda = problem.Z.clone(), problem.Lambda.clone()
    Z[:, 3], Lambda[3] = 0, 0
    Z[5, 3] = 1
    with pytest.raises(leave_out.LeverageError, match=r"leverage must be below 1, got .* at row 5\."):
        primal(problem.but(Z=Z, Lambda=Lambda, alpha=problem.alpha + 0.1))


@pytest.mark.parametrize("room", [0.0, -1e-3, float("nan")])
def test_a_leverage_that_is_lost_is_an_error_and_never_clamped(room):
    rooms = torch.tensor([0.5, 0.3, room], dtype=F64)
    with pytest.raises(leave_out.LeverageError, match="at row 2"):
        leave_out.check_leverage(rooms)


def test_float32_leverages_are_refused_earlier_than_float64_ones():
    rooms = torch.tensor([0.5, 2e-6], dtype=F64)
    leave_out.check_leverage(rooms)
    with pytest.raises(leave_out.LeverageError, match=r"use `precision=float64`"):
        leave_out.check_leverage(rooms.float())


@pytest.mark.parametrize("form", [primal, dual_form])
def test_a_group_that_holds_all_the_weight_is_refused_like_a_row_that_does(form):
    problem = make_problem("wide" if form is dual_form else "tall", intercept=True)
    alpha = torch.where(problem.groups == 5, 1.0, 0.0).double()
    assert int((alpha > 0).sum()) > 1
    with pytest.raises(ValueError, match="leverage"):
        form(problem.but(alpha=alpha))


@pytest.mark.parametrize("origin", [0.0, 0.01])
def test_residuals_alone_are_those_of_leaving_out(origin):
    draw = torch.Generator().manual_seed(5)
    n, p = 120, 6
    groups = torch.cat([torch.arange(20), 20 + torch.arange(60) // 3, 40 + torch.arange(40) // 20])
    rows = leave_out.rows_by_group_size(groups)
    assert [x.shape[1] for x in rows] == [3, 20]  # fewer and more than there are columns
    U, r = (torch.randn(n, k, generator=draw, dtype=F64) for k in (p, 2))
    U *= 0.3 / U.norm(dim=1, keepdim=True)
    alpha = 1 + torch.rand(n, generator=draw, dtype=F64)
    alpha[::5] = 0
    whole = torch.cat([U, torch.full((n, 1), origin**0.5, dtype=F64)], 1)
    expected = leave_out.leave_out(whole, r, alpha, rows)
    found = leave_out.left_out_residuals(r, alpha, expected.room, [(x, U[x]) for x in rows], origin)
    assert_close(found, expected.e, 1e-13)


@pytest.mark.parametrize("size", [4, 12])
@pytest.mark.parametrize("room", [1e-3, 2e-10, 5e-11, -1e-3])
def test_residuals_alone_are_refused_where_those_of_leaving_out_are(size, room):
    U = torch.zeros(size + 8, 6, dtype=F64)
    U[:8, 1:] = 0.1
    U[8:, 0] = ((1 - room) / size) ** 0.5  # no row alone has a leverage near 1
    r, alpha = torch.ones(size + 8, 1, dtype=F64), torch.ones(size + 8, dtype=F64)
    rows = [8 + torch.arange(size)[None]]
    kept = 1 - U.square().sum(1)
    if room > 1e-10:
        expected = leave_out.leave_out(U, r, alpha, rows).e
        assert_close(leave_out.left_out_residuals(r, alpha, kept, [(rows[0], U[rows[0]])], 0.0), expected, 1e-4)
        return
    for call in (
        lambda: leave_out.leave_out(U, r, alpha, rows),
        lambda: leave_out.left_out_residuals(r, alpha, kept, [(rows[0], U[rows[0]])], 0.0),
    ):
        with pytest.raises(leave_out.LeverageError) as caught:
            call()
        assert caught.value.row == 8 and caught.value.leverage == pytest.approx(1 - room, abs=1e-12)
