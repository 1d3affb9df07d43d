"""Verdicts on several labels a row: calibration and shares of slips against a naive likelihood and planted ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from diva_ray.core import multilabel, verdict


def left_out(X, Y):
    """Naive leave-one-out outputs of a ridge fit with an intercept, and leverages: a refit for every row."""
    Z = np.column_stack([X, np.ones(len(X))])
    penalty = np.diag([*np.full(X.shape[1], 1.0), 0.0])
    outputs, leverage = np.empty(Y.shape), np.empty(len(X))
    whole = Z.T @ Z + penalty
    for i, z in enumerate(Z):
        rest = np.arange(len(Z)) != i
        outputs[i] = z @ np.linalg.solve(Z[rest].T @ Z[rest] + penalty, Z[rest].T @ Y[rest])
        leverage[i] = z @ np.linalg.solve(whole, z)
    return torch.tensor(outputs), torch.tensor(leverage)


def tags(rows, seed, kind, classes=6, width=8):
    """Features and several labels: of linear halves, rare, with chance in them, or an exclusive or of two halves."""
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((rows, width))
    score, other = X @ draw.standard_normal((width, classes)), X @ draw.standard_normal((width, classes))
    cut = np.quantile(score, 0.95 if kind == "rare" else 0.7, axis=0)
    if kind == "chance":
        score = score + 3 * draw.standard_normal(score.shape)
    Y = score > cut
    return X, (Y ^ (other > 0) if kind == "xor" else Y).astype(float)


def slipped(Y, missing, added, seed=5):
    """Labels of which these shares are left out and wrongly given."""
    draw = np.random.default_rng(seed).random(Y.shape)
    return np.where(Y == 1, draw >= missing, draw < added).astype(float)


def judged(X, Y, weight=None):
    weight = torch.ones(len(X)) if weight is None else weight
    F, h = left_out(X, Y)
    given = torch.tensor(Y)
    x = multilabel.unit_outputs(F, h, multilabel.class_shares(given, weight))
    slips = multilabel.fit_slips(multilabel.output_sums(x, given, weight))
    odds = multilabel.rows_log_odds(x, given, slips)
    sums = verdict.verdict_sums(odds, torch.zeros(len(X)), weight)
    rule = verdict.fit_verdict(sums, 2, shows=slips.shows, flips=True)
    return slips, verdict.label_scores(odds, rule).numpy(), rule, x


@pytest.mark.parametrize("kind", ["linear", "rare", "chance", "xor"])
def test_right_labels_are_not_flagged(kind):
    X, Y = tags(700, 1, kind)
    slips, scores, rule, _ = judged(X, Y)
    assert not slips.shows and rule.noise_rate == 0 and not (scores < rule.label.value).any()
    share = Y.mean(0)
    np.testing.assert_allclose(slips.entropy, -(share * np.log(share) + (1 - share) * np.log(1 - share)).sum())
    told = slips.information / slips.entropy
    assert told < 0.4 if kind in ("chance", "xor") else told > 0.6


@pytest.mark.parametrize(("missing", "added"), [(0.15, 0.0), (0.0, 0.04), (0.08, 0.03)])
def test_planted_slips_are_found_and_their_shares_are_right(missing, added):
    X, Y = tags(900, 2, "linear")
    given = slipped(Y, missing, added)
    wrong = (given != Y).any(1)
    slips, scores, rule, _ = judged(X, given)
    flagged = scores < rule.label.value
    assert slips.shows and abs(slips.missing - missing) < 0.025 and abs(slips.added - added) < 0.01
    precision, recall = (flagged & wrong).sum() / flagged.sum(), (flagged & wrong).sum() / wrong.sum()
    assert precision > 0.85 and recall > 0.7
    assert abs(rule.label.precision - precision) < 0.1 and abs(rule.label.recall - recall) < 0.12
    assert abs(rule.noise_rate - wrong.mean()) < 0.04


def test_slips_of_many_classes_are_judged_by_some_and_found_in_all(monkeypatch):
    X, Y = tags(900, 2, "linear")
    given = slipped(Y, 0.15, 0.01)
    whole, scores, _, _ = judged(X, given)
    monkeypatch.setattr(multilabel, "MOST_JUDGED", 2)
    some, others, rule, _ = judged(X, given)
    assert some.shows and (some.sharpness > 0).all()
    assert abs(some.missing - whole.missing) < 0.01 and abs(some.added - whole.added) < 0.005
    np.testing.assert_allclose([some.entropy, some.information], [whole.entropy, whole.information], rtol=0.02)
    assert np.corrcoef(scores, others)[0, 1] > 0.99 and rule.label.value > 0


@pytest.mark.parametrize("bends", [(math.inf, math.inf), (2.0, math.inf), (4.0, 2.0)])
def test_the_log_odds_of_a_row_are_those_of_all_its_classes(bends):
    draw = np.random.default_rng(0)
    x, Y = draw.standard_normal((40, 3)), (draw.random((40, 3)) < 0.4).astype(float)
    threshold, sharpness = torch.tensor([0.3, -0.2, 1.0]).double(), torch.tensor([2.0, 5.0, 0.0]).double()
    slips = multilabel.Slips(threshold, sharpness, bends, 0.1, 0.02, shows=True)
    odds = multilabel.rows_log_odds(torch.tensor(x), torch.tensor(Y), slips).numpy()
    likely = multilabel.corrected(torch.tensor(x), torch.tensor(Y), slips).numpy()
    assert (likely[:, 2] == Y[:, 2]).all() and (likely != Y).any()
    for i in range(40):
        right = 1.0
        for k in range(2):  # of the third, which no row has, nothing is known
            u = float(sharpness[k]) * (x[i, k] - float(threshold[k]))
            bend = bends[0] if u < 0 else bends[1]
            p = expit(u if math.isinf(bend) else bend * math.asinh(u / bend))
            as_given = {(1, 1): p * 0.9, (1, 0): (1 - p) * 0.02, (0, 0): (1 - p) * 0.98, (0, 1): p * 0.1}
            given = int(Y[i, k])
            is_right = as_given[given, given] / (as_given[given, 1] + as_given[given, 0])
            assert likely[i, k] == (given if is_right > 0.5 else 1 - given)
            right *= is_right
        np.testing.assert_allclose(odds[i], np.clip(math.log(right / (1 - right)), -24, 24), rtol=1e-9)


def test_the_calibration_has_the_greatest_likelihood():
    X, Y = tags(500, 3, "linear", classes=2)
    slips, _, _, x = judged(X, slipped(Y, 0.1, 0.02))
    given = slipped(Y, 0.1, 0.02)

    def likelihood(found):
        u = found.sharpness * (x - found.threshold)
        p = torch.sigmoid(torch.where(u < 0, bent(u, found.bends[0]), bent(u, found.bends[1]))).numpy()
        told = np.where(given == 1, p * (1 - found.missing) + (1 - p) * found.added,
                        (1 - p) * (1 - found.added) + p * found.missing)  # fmt: skip
        logs = np.log(found.sharpness.numpy())
        return np.log(told).sum() - ((logs - logs.mean()) ** 2).sum() / (2 * multilabel.SPREAD**2)

    def bent(u, limit):
        return u if math.isinf(limit) else limit * torch.asinh(u / limit)

    best = likelihood(slips)
    assert slips.shows
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for other in (
        replace(slips, threshold=slips.threshold + 0.1 * one), replace(slips, threshold=slips.threshold - 0.1 * one),
        replace(slips, sharpness=slips.sharpness * (1 + 0.3 * one)), replace(slips, missing=slips.missing + 0.04),
        replace(slips, sharpness=slips.sharpness * (1 - 0.2 * one)), replace(slips, missing=slips.missing - 0.04),
        replace(slips, added=slips.added + 0.015), replace(slips, added=slips.added * 0.3 + 1e-9),
    ):  # fmt: skip
        assert likelihood(other) < best + 0.02  # cells are 0.005 of a deviation wide


def test_sums_of_blocks_add_up_and_rows_that_are_only_judged_shape_nothing():
    draw = np.random.default_rng(4)
    x, Y = torch.tensor(draw.standard_normal((90, 4))), torch.tensor((draw.random((90, 4)) < 0.3).astype(float))
    weight = torch.tensor((draw.random(90) < 0.7).astype(float))
    whole = multilabel.output_sums(x, Y, weight)
    parts = [multilabel.output_sums(x[a:b], Y[a:b], weight[a:b]) for a, b in ((0, 30), (30, 31), (31, 90))]
    total = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(whole.counts, total.counts, rtol=0, atol=0)
    kept = multilabel.output_sums(x[weight > 0], Y[weight > 0], weight[weight > 0])
    torch.testing.assert_close(whole.counts, kept.counts, rtol=0, atol=0)
    np.testing.assert_allclose(whole.counts.sum((1, 2)), weight.sum())


@pytest.mark.parametrize("given", [np.zeros((30, 3)), np.ones((30, 3)), np.zeros((0, 3)), np.eye(3)[:1]])
def test_classes_that_no_row_has_or_every_row_say_nothing(given):
    x, Y, weight = torch.zeros(given.shape).double(), torch.tensor(given), torch.ones(len(given))
    slips = multilabel.fit_slips(multilabel.output_sums(x, Y, weight))
    assert not slips.shows
    assert (multilabel.rows_log_odds(x, Y, slips) == 24).all()
    assert torch.equal(multilabel.likely(x, slips), Y > 0.5)


def test_slips_of_other_rows_are_as_likely_as_none():
    slips = multilabel.Slips(torch.zeros(7), torch.ones(7), (math.inf, math.inf), 1e-4, 1e-4, shows=False)
    even = multilabel.even_slips(slips)
    np.testing.assert_allclose((1 - even.missing) ** 7, 0.5, rtol=1e-12)
    assert even.missing == even.added
