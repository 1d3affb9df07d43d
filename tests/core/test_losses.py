import pytest
import torch
from sklearn.metrics import hamming_loss, label_ranking_average_precision_score

from diva_ray.core import losses
from tests.core.problems import KINDS, loss_of, make_problem
from tests.oracles import CENTER, LOSSES, assert_close, huber

F64 = torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_plain_formula(kind):
    problem = make_problem("tall", kind=kind)
    F = (2 * problem.offset + 0.3).requires_grad_()
    values = LOSSES[problem.kind](F, problem.Y if problem.kind == "cross_entropy" else problem.targets)
    (gradient,) = torch.autograd.grad(values.sum(), F)
    found, slope = loss_of(problem)(F.detach(), problem.Y)
    assert_close(found, values.detach(), 1e-14, "values")
    assert_close(slope, gradient, 1e-14, "gradient")


@pytest.mark.parametrize("compared", [1, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_ranking_errors_are_those_of_scikit_learn(monkeypatch, compared, dtype):
    monkeypatch.setattr(losses, "COMPARED", compared)
    draw = torch.Generator().manual_seed(3)
    F = (8 * torch.rand(200, 7, generator=draw)).round().to(dtype) / 8  # many are equal
    Y = (torch.rand(200, 7, generator=draw) < torch.linspace(0.02, 0.6, 7)).to(dtype)
    Y[:3], Y[3:6] = 0, 1
    found = losses.errors(F, Y, several=True)
    ranked = (Y.sum(1) > 0) & (Y.sum(1) < 7)
    assert 100 < ranked.sum() < 195
    expected = [1 - label_ranking_average_precision_score(y[None], f[None]) for y, f in zip(Y, F, strict=True)]
    assert_close(found[ranked], torch.tensor(expected, dtype=F64)[ranked], 1e-14)
    plain = [hamming_loss(y, f > 0.5) for y, f in zip(Y, F, strict=True)]
    assert_close(found[~ranked], torch.tensor(plain, dtype=F64)[~ranked], 1e-14)
    shuffled = torch.randperm(7, generator=draw)
    assert_close(losses.errors(F[:, shuffled], Y[:, shuffled], several=True), found, 1e-14)


def test_the_only_class_of_several_labels_is_judged_by_the_threshold():
    F, Y = torch.tensor([[0.2], [0.7], [-0.1]]), torch.tensor([[1.0], [1.0], [0.0]])
    assert losses.errors(F, Y, several=True).tolist() == [1.0, 0.0, 0.0]
    assert losses.errors(F, Y, several=True, threshold=0.0).tolist() == [0.0, 0.0, 0.0]
    assert losses.errors(F, Y, several=True, threshold=-1.0).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_changes_neither_outputs_nor_targets(kind):
    problem = make_problem("tall", kind=kind)
    F, Y = problem.offset.clone(), problem.Y.clone()
    loss_of(problem)(F, Y)
    assert bool((problem.offset == F).all()) and bool((Y == problem.Y).all())


@pytest.mark.parametrize("name", ["cross_entropy", "logistic"])
def test_outputs_of_a_thousand_neither_overflow_nor_vanish(name):
    F = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], dtype=F64)
    Y = torch.tensor([0, 0]) if name == "cross_entropy" else torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    values, gradient = getattr(losses, name)(F, Y)
    expected = [0.0, 2000.0] if name == "cross_entropy" else [0.0, 4000.0]
    assert_close(values, expected, 2e-3)  # logits are 2 f - 1
    assert bool(torch.isfinite(gradient).all()) and float(gradient[0].abs().max()) < 1e-12


def test_an_unknown_class_is_a_row_of_zeros():
    F = torch.tensor([[0.5, -0.25], [0.5, -0.25]], dtype=F64)
    found = losses.subtract_from_targets(torch.tensor([-1, 1]), F)
    assert_close(found, [[-0.5, 0.25], [-0.5, 1.25]], 1e-15)
    assert_close(F, [[0.5, -0.25], [0.5, -0.25]], 1e-15)


def test_a_row_at_the_center_has_cosine_loss_one_and_no_gradient():
    F = torch.stack([CENTER, CENTER + 1, CENTER + 2])
    Y = torch.stack([CENTER + 1, CENTER, CENTER + 2])
    values, gradient = losses.cosine(CENTER)(F, Y)
    assert_close(values, [1.0, 1.0, 0.0], 1e-15)
    assert float(gradient[[0, 2]].abs().max()) < 1e-15


def test_a_target_next_to_the_center_has_no_direction():
    F = CENTER + torch.ones(3, len(CENTER), dtype=F64)
    Y = CENTER + torch.tensor([[1e-9], [-1e-9], [1e-3]], dtype=F64)
    values, gradient = losses.cosine(CENTER, near=1e-6)(F, Y)
    assert_close(values, [1.0, 1.0, 0.0], 1e-12)
    assert float(gradient.abs().max()) < 1e-12


def test_a_loss_of_ones_own_is_differentiated_and_runs_without_gradients_around_it():
    F, Y = torch.ones(4, 2, dtype=F64), torch.zeros(4, 2, dtype=F64)
    with torch.no_grad():
        values, gradient = losses.from_torch(huber)(F, Y)
    assert_close(values, [0.91] * 4, 1e-14)
    assert_close(gradient, [[0.7, 0.7]] * 4, 1e-14)
    assert not values.requires_grad and not gradient.requires_grad


def test_a_callable_that_sums_over_rows_is_told_to_return_one_value_per_row():
    loss = losses.from_torch(torch.nn.functional.mse_loss)
    with pytest.raises(ValueError, match=r"one value per row, got shape \(\) for 4 rows\. Use `reduction='none'`"):
        loss(torch.ones(4, 2), torch.zeros(4, 2))


def test_a_callable_that_does_not_sum_over_outputs_is_told_so():
    loss = losses.from_torch(torch.nn.BCEWithLogitsLoss(reduction="none"))
    with pytest.raises(
        ValueError, match=r"one value per row, got shape \(4, 2\) for 4 rows\. Add them up over outputs"
    ):
        loss(torch.ones(4, 2), torch.zeros(4, 2))


def test_a_callable_with_slopes_that_are_not_finite_is_refused():
    loss = losses.from_torch(lambda F, Y: torch.where(F > 0, F.sqrt(), 0 * F).sum(1))
    with pytest.raises(ValueError, match=r"finite slopes, got \[nan, 0.5\] at output \[-1.0, 1.0\].*torch.where"):
        loss(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.zeros(2, 2))


def test_a_callable_may_write_into_its_targets():
    Y = torch.zeros(4, 2, dtype=F64)
    losses.from_torch(lambda F, Y: (F - Y.add_(1)).square().sum(1))(torch.ones(4, 2, dtype=F64), Y)
    assert not bool(Y.any())


def test_a_callable_that_returns_nan_is_refused():
    loss = losses.from_torch(lambda F, Y: F.sum(1) * float("nan"))
    with pytest.raises(ValueError, match="finite"):
        loss(torch.ones(4, 2), torch.zeros(4, 2))
