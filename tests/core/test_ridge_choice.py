"""The ridge that is chosen where some rows validate: against loops over units, and what must not matter."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diva_ray.core.leave_out import rows_by_group_size
from diva_ray.core.ridge_choice import Moments, choose_ridge, pack_moments

F64 = torch.float64


def drawn(seed, n=40, ridges=7, validated=6):
    """Losses with one valley, weights of a fit, weights of few rows that validate, and groups of one to three rows."""
    generator = np.random.default_rng(seed)
    valley = 0.05 * (np.arange(ridges) - 3) ** 2
    losses = valley + generator.standard_normal((n, 1)) + 0.2 * generator.standard_normal((n, ridges)).cumsum(1)
    v = np.where(generator.permutation(n) < validated, generator.uniform(0.5, 2.0, n), 0.0)
    return losses, generator.uniform(0.2, 2.0, n), v, np.sort(generator.integers(0, n // 2, n))


def moments(losses, alpha, v, groups, blocks=1):
    """Moments of rows in some blocks, which cut no group."""
    cuts = [0, *(int(np.searchsorted(groups, k * groups.max() // blocks)) for k in range(1, blocks)), len(groups)]
    total = 0
    for a, b in pairwise(cuts):
        one, other, third = (torch.from_numpy(x[a:b]) for x in (losses, alpha, v))
        total = total + pack_moments(one, other, third, rows_by_group_size(torch.from_numpy(groups[a:b])))
    return Moments.unpack(total)


def naive(losses, alpha, v, groups, errors=1.0):
    """The rule in words: a loop over ridges, each with the standard error of a weighted mean over groups."""
    means = [np.average(losses[:, k], weights=v) for k in range(losses.shape[1])]
    best, target = int(np.argmin(means)), int(np.argmin([np.average(one, weights=alpha) for one in losses.T]))
    if (v[alpha > 0] > 0).all():
        return best
    alike = []
    for k, mean in enumerate(means):
        parts = []
        for group in np.unique(groups):
            rows = groups == group
            d = losses[rows, k] - losses[rows, best] - (mean - means[best])
            parts.append((v[rows] * d).sum())
        weights = np.array([v[groups == group].sum() for group in np.unique(groups)])
        units = v.sum() ** 2 / (weights**2).sum()
        variance = np.square(parts).sum() / v.sum() ** 2
        if units <= 1 + 1e-9 or mean - means[best] <= errors * np.sqrt(variance * units / (units - 1)):
            alike.append(k)
    return min(alike, key=lambda k: abs(k - target))


@pytest.mark.parametrize("validated", [1, 2, 6, 40])
def test_the_choice_is_that_of_a_loop_over_groups_in_any_blocks(validated):
    chosen = set()
    for seed in range(40):
        problem = drawn(seed, validated=validated)
        for errors in (1.0, 2.5):
            found = {choose_ridge(moments(*problem, blocks), errors) for blocks in (1, 3, 7)}
            assert found == {naive(*problem, errors)}, seed
            chosen |= found
    assert len(chosen) > 1, "or this says nothing"


def test_where_all_rows_validate_their_best_ridge_is_chosen():
    for seed in range(20):
        losses, alpha, _, groups = drawn(seed)
        ones = np.ones(len(losses))
        for weights in (ones, alpha, 10 * alpha**4, np.where(alpha > 1, alpha, 0)):
            assert choose_ridge(moments(losses, weights, ones, groups)) == losses.mean(0).argmin()


def test_rows_that_validate_are_followed_where_they_are_sure():
    losses, alpha, v, groups = drawn(0, n=400, validated=200)
    losses[v > 0] += 0.3 * np.arange(7)[::-1] ** 2
    assert np.average(losses, 0, alpha).argmin() < 6
    assert choose_ridge(moments(losses, alpha, v, groups)) == 6


def test_neither_the_unit_of_weights_nor_that_of_the_loss_matters():
    for seed in range(20):
        losses, alpha, v, groups = drawn(seed)
        expected = choose_ridge(moments(losses, alpha, v, groups))
        assert choose_ridge(moments(1e-3 * losses, 7 * alpha, 100 * v, groups)) == expected


def test_a_ridge_refused_in_any_block_is_not_chosen():
    losses, alpha, v, groups = drawn(3)
    best = choose_ridge(moments(losses, alpha, v, groups, 3))
    losses[:, best] -= 5
    losses[5] = np.where(np.arange(7) == best, np.inf, losses[5])
    found = moments(losses, alpha, v, groups, 3)
    assert found.validated[best] == found.fitted[best] == torch.inf and bool(found.products[0].isfinite().all())
    others = np.arange(7) != best
    assert choose_ridge(found) == np.flatnonzero(others)[naive(losses[:, others], alpha, v, groups)]
    assert not bool(moments(np.full_like(losses, np.inf), alpha, v, groups).validated[:-1].isfinite().any())


def test_products_of_float32_rows_are_summed_in_float64():
    losses, alpha, v, groups = drawn(1)
    single = [torch.from_numpy(x).float() for x in (losses, alpha, v)]
    found = pack_moments(*single, rows_by_group_size(torch.from_numpy(groups)))
    double = pack_moments(*(x.double() for x in single), rows_by_group_size(torch.from_numpy(groups)))
    assert found.dtype == F64
    torch.testing.assert_close(found, double, rtol=1e-14, atol=0)
