"""Weight steps and the criterion for them, against loops over rows and refits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diva_ray.core import losses, reweight
from diva_ray.core.links import Link, uncertainty
from diva_ray.core.reweight import (
    Calibration,
    Step,
    best_base,
    best_trial,
    label_losses,
    source_factors,
    trial_losses,
    trial_sums,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_plain_step_is_the_papers_equation_14():
    alpha, d = draw(50).abs(), draw(50, seed=1)
    after = Step("plain", 0.3)(alpha, d, d.abs())
    for k in range(50):
        assert float(after[k]) == pytest.approx(max(float(alpha[k]) - 0.3 * float(d[k]), 0.0))


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_a_shrunk_weight_makes_the_first_order_harm_one_standard_error(strength):
    alpha, d, error = draw(80).abs() + 0.1, draw(80, seed=1), draw(80, seed=2).abs() + 0.01
    after = Step("shrink", strength)(alpha, d, error)
    for k in range(80):
        z = float(d[k] / error[k])
        assert float(after[k]) == pytest.approx(float(alpha[k]) * (1 if z <= strength else strength / z))
    assert bool((after <= alpha).all()), "no weight is ever raised by it"


def test_labels_that_look_wrong_lose_all_weight_and_no_other_does():
    alpha, issue = draw(20).abs() + 1, torch.arange(20) % 3 == 0
    after = Step("issues")(alpha, alpha, alpha, issue=issue)
    assert torch.equal(after == 0, issue)
    assert torch.equal(after[~issue], alpha[~issue])


def test_a_label_likelier_wrong_than_right_weighs_by_twice_its_score_and_no_other_is_touched():
    alpha, score = draw(30).abs() + 0.1, torch.linspace(0, 1, 30).double()
    after = Step("doubtful")(alpha, alpha, alpha, score=score)
    for k in range(30):
        assert float(after[k]) == pytest.approx(float(alpha[k]) * min(1.0, 2 * float(score[k])))
    assert torch.equal(after[score >= 0.5], alpha[score >= 0.5])


@pytest.mark.parametrize("value", [0.2, 0.5, 1.0])
def test_a_share_of_the_weight_goes_by_uncertainty_and_less_to_doubtful_labels(value):
    alpha, score, unsure = draw(30).abs() + 0.1, torch.linspace(0, 1, 30).double(), draw(30, seed=1).abs()
    after = Step("uncertain", value)(alpha, alpha, alpha, score=score, unsure=unsure)
    for k in range(30):
        share = 1 - value + value * float(unsure[k])
        assert float(after[k]) == pytest.approx(float(alpha[k]) * min(1.0, 2 * float(score[k])) * share)


def test_uncertainty_is_the_chance_that_two_drawn_classes_differ():
    F, link = draw(40, 4), Link(0.3, 4.0)
    p = (4.0 * 0.3 * np.arcsinh(F.numpy() / 0.3)).astype(np.float64)
    p = np.exp(p) / np.exp(p).sum(1, keepdims=True)
    differ = [sum(row[a] * row[b] for a in range(4) for b in range(4) if a != b) for row in p]
    np.testing.assert_allclose(uncertainty(F, link), differ, rtol=1e-12)


def test_a_step_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="kind must be .* with what it needs, got 'issues'"):
        Step("issues")(draw(2), draw(2), draw(2))


def test_sources_move_against_their_z_and_stay_positive():
    d, error = torch.tensor([6.0, -6.0, 0.0, 1.0, 100.0]).double(), torch.tensor([2.0, 2.0, 1.0, 0.0, 1.0]).double()
    factor = source_factors(d, error, 0.5)
    expected = [math.exp(-1.5), math.exp(1.5), 1.0, 1.0, math.exp(-1.5)]  # z 3, -3, 0, undefined, 100 cut at 3
    torch.testing.assert_close(factor, torch.tensor(expected, dtype=torch.float64))


def test_label_losses_are_the_likelihood_of_labels_that_may_be_replaced():
    F, y = draw(30, 4), torch.arange(30) % 4
    calibration = Calibration(Link(math.inf, 3.0), 0.2)
    p = (3.0 * F).softmax(1)
    expected = [-math.log(0.8 * float(p[k, y[k]]) + 0.2 / 3 * (1 - float(p[k, y[k]]))) for k in range(30)]
    torch.testing.assert_close(
        label_losses(F, y, calibration), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_numbers_are_tried_by_their_own_loss():
    F, Y = draw(10, 2), draw(10, 2, seed=1)
    loss, error = trial_losses(F, Y, None, losses.squared)
    torch.testing.assert_close(loss, (F - Y).square().sum(1))
    torch.testing.assert_close(error, (F - Y).square().sum(1))


@given(cuts=st.lists(st.integers(0, 40), max_size=5), bases=st.integers(1, 3), grouped=st.booleans())
@settings(deadline=None, derandomize=True, max_examples=30)
def test_gains_and_their_errors_equal_a_loop_over_groups_however_rows_are_cut(cuts, bases, grouped):
    n, models = 40, 5
    values, errors, v = draw(n, models).abs(), draw(n, models, seed=1).abs(), draw(n, seed=2).abs()
    unit = torch.arange(n) // 2 if grouped else torch.arange(n)
    edges = sorted({0, n, *(cut // 2 * 2 for cut in cuts)})
    total = None
    for a, b in pairwise(edges):
        part = trial_sums(values[a:b], errors[a:b], v[a:b], torch.unique(unit[a:b], return_inverse=True)[1], bases)
        total = part if total is None else total + part
    assert total is not None
    for base in range(bases):
        for m in range(models):
            per_unit = [
                sum(float(v[i] * (values[i, base] - values[i, m])) for i in range(n) if unit[i] == u)
                for u in unit.unique()
            ]
            weights = [sum(float(v[i]) for i in range(n) if unit[i] == u) for u in unit.unique()]
            mean = sum(per_unit) / sum(weights)
            spread = sum((g - w * mean) ** 2 for g, w in zip(per_unit, weights, strict=True)) ** 0.5 / sum(weights)
            assert float(total.gain[base, m]) == pytest.approx(mean, abs=1e-12)
            assert float(total.gain_error[base, m]) == pytest.approx(spread, abs=1e-9)


def test_where_no_model_is_taken_the_nearest_base_that_is_surely_better_is():
    n = 400
    noise = draw(n, 4)
    first = 1 + 0.1 * noise[:, 0]
    near = first - 0.1 + 0.02 * noise[:, 1]
    far = near - 1e-4 + 0.05 * noise[:, 2]  # the best, by less than its standard error
    farther = first - 0.3 + 0.02 * noise[:, 1]
    lucky = first - 0.05 + 0.5 * noise[:, 3]  # better by two standard errors or less
    v, unit = torch.ones(n).double(), torch.arange(n)

    def chosen(*bases):
        zero = torch.zeros(n, len(bases) + 1).double()
        return best_base(trial_sums(torch.stack([*bases, first - 1], 1), zero, v, unit, len(bases)))

    assert chosen(first, near, far) == 1
    assert chosen(first, near, farther) == 2
    assert chosen(first, lucky, first + 0.1) == chosen(first, first, first) == 0


def test_a_model_must_beat_every_base_by_more_than_a_standard_error():
    n = 400
    noise = draw(n, 4)
    base = 1 + 0.1 * noise[:, 0]
    better = base - 0.1 + 0.01 * noise[:, 1]
    lucky = base - 0.001 + 0.5 * noise[:, 2]
    rival = base - 0.2  # a base that is better than `better`
    zero, v, unit = torch.zeros(n, 3).double(), torch.ones(n).double(), torch.arange(n)
    assert best_trial(trial_sums(torch.stack([base, lucky, better], 1), zero, v, unit, 1)) == 2
    assert best_trial(trial_sums(torch.stack([base, rival, better], 1), zero, v, unit, 2)) == 0
    assert best_trial(trial_sums(torch.stack([base, base, base], 1), zero, v, unit, 1)) == 0


def test_a_calibration_finds_the_share_of_replaced_labels():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (6000,), generator=generator)
    F = torch.nn.functional.one_hot(truth, 5).double() + 0.3 * torch.randn(6000, 5, generator=generator).double()
    replaced = torch.rand(6000, generator=generator) < 0.3
    y = torch.where(replaced, (truth + torch.randint(1, 5, (6000,), generator=generator)) % 5, truth)
    found = reweight.fit_calibration(reweight.links.link_sums(F, y, torch.ones(6000).double()), 5)
    assert found.noise_rate == pytest.approx(float(replaced.double().mean()), abs=0.03)
