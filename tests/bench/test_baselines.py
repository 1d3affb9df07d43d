"""Published baselines against their definitions."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from diva_ray.bench import baselines


def vote(X, y, subset, x, label, k):
    """Return what a subset's k-nearest-neighbour vote is worth on one trusted row."""
    near = sorted(subset, key=lambda i: np.linalg.norm(X[i] - x))[:k]
    return sum(y[i] == label for i in near) / k


def brute_force_shapley(X, y, Xt, yt, k):
    """Return Shapley values by every subset of the other samples."""
    n, values = len(y), np.zeros(len(y))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for subset in combinations(others, size):
                for x, label in zip(Xt, yt, strict=True):
                    gain = vote(X, y, (*subset, i), x, label, k) - vote(X, y, subset, x, label, k)
                    values[i] += gain / (len(yt) * n * comb(n - 1, size))
    return values


@pytest.mark.parametrize("neighbours", [1, 3, 8, 11])
def test_knn_shapley_is_the_shapley_value_of_the_vote(neighbours):
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((8, 2)), draw.integers(0, 3, 8)
    Xt, yt = draw.standard_normal((4, 2)), draw.integers(0, 3, 4)
    found = baselines.knn_shapley(X, y, Xt, yt, neighbours)
    np.testing.assert_allclose(found, brute_force_shapley(X, y, Xt, yt, neighbours), rtol=1e-10, atol=1e-15)


def test_threshold_closeness_is_p_times_what_is_left_plus_its_mean():
    p = [0.5, 0.9, 1.0, 0.0]
    closeness = [0.25, 0.09, 0.0, 0.0]
    smooth = sum(closeness) / 4
    expected = np.array([one + smooth for one in closeness]) / (2 * smooth)
    found = baselines.threshold_closeness(np.array(p))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.mean() == pytest.approx(1)
    assert baselines.threshold_closeness(np.array([0.0, 1.0])).tolist() == [1, 1]


def test_reweighted_rows_are_those_whose_step_lowers_the_trusted_loss():
    torch.manual_seed(0)
    Z, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
    Zt, yt = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    W = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    epsilon = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy
    (step,) = torch.autograd.grad((epsilon * loss(Z @ W, y, reduction="none")).sum(), W, create_graph=True)
    (slope,) = torch.autograd.grad(loss(Zt @ (W - 0.7 * step), yt), epsilon)  # Ren et al., eq. 7, rate 0.7
    expected = (-slope).clamp_min(0) / (-slope).clamp_min(0).sum()
    goal = torch.autograd.grad(loss(Zt @ W, yt), W)[0]
    found, _ = baselines.example_weights(Z, y, W.detach(), goal)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_reweighted_head_learns_what_the_trusted_rows_say():
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (600,), generator=draw)
    Z = torch.nn.functional.one_hot(y, 3).float() + 0.3 * torch.randn(600, 3, generator=draw)
    noisy = y.clone()
    noisy[:300] = (y[:300] + 1) % 3  # half of the labels, all in the same way: only the trusted rows can tell
    W, rate = baselines.reweighted_head(Z[:500], noisy[:500], (Z[500:], y[500:]), 3, steps=200, seed=0)
    assert rate in baselines.RATES
    assert float(((Z @ W).argmax(1) == y).float().mean()) > 0.95


def test_data_oob_is_low_for_wrong_labels_and_asks_no_tree_that_saw_the_row():
    draw = np.random.default_rng(0)
    y = np.repeat([0, 1], 40)
    X = np.c_[y + 0.1 * draw.standard_normal(80), draw.standard_normal(80)]
    given = y.copy()
    given[[3, 50]] = 1 - given[[3, 50]]
    values = baselines.data_oob(X, given, np.arange(80), trees=40, seed=0)
    assert set(np.argsort(values)[:2]) == {3, 50}
    assert ((values >= 0) & (values <= 1)).all()
    noise = baselines.data_oob(draw.standard_normal((80, 1)), given, np.arange(80), trees=40, seed=0)
    assert abs(noise.mean() - 0.5) < 0.15  # a tree that saw a row would know its label by heart
    twins = np.arange(80) % 40  # a row of either class each
    same = baselines.data_oob(np.repeat(draw.standard_normal((40, 1)), 2, 0), np.tile([0, 1], 40), np.arange(80) // 2,
                              trees=40, seed=0)  # fmt: skip
    assert same.sum() == pytest.approx(40, abs=1)  # of a pair of opposite labels every tree gets one right
    assert len(baselines.data_oob(X, given, twins, trees=2, seed=0)) == 80


def test_lower_cluster_finds_the_gap():
    assert baselines.lower_cluster(np.array([0.1, 0.9, 0.2, 0.8, 1.0])).tolist() == [True, False, True, False, False]
    assert not baselines.lower_cluster(np.ones(3)).any()
