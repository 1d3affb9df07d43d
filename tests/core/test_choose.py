"""The choice from a pool, against sorting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diva_ray.core import choose


def keys_of(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n))


@given(n=st.integers(1, 60), classes=st.integers(1, 4), seed=st.integers(0, 20), parts=st.integers(1, 4))
@settings(deadline=None, derandomize=True)
def test_the_radix_selection_takes_the_least_keys_of_every_class_however_rows_are_dealt(n, classes, seed, parts):
    generator = np.random.default_rng(seed)
    keys, code = keys_of(n, seed), torch.from_numpy(generator.integers(0, classes, n))
    counts = torch.bincount(code, minlength=classes)
    wanted = torch.from_numpy(generator.integers(0, counts.numpy() + 1))
    prefix, left = torch.zeros(classes, dtype=torch.int64), wanted.clone()
    dealt = torch.arange(n) % parts
    for level in range(choose.BYTES):
        found = sum(
            choose.byte_counts(keys[dealt == part], code[dealt == part], prefix, level) for part in range(parts)
        )
        prefix, left = choose.next_prefix(found, prefix, left)
    taken = choose.up_to(keys, code, prefix, wanted)
    unsigned = keys.numpy().view(np.uint64)
    for k in range(classes):
        mine = np.flatnonzero(code.numpy() == k)
        least = set(mine[np.argsort(unsigned[mine])][: int(wanted[k])].tolist())
        assert set(torch.nonzero(taken & (code == k)).squeeze(1).tolist()) == least


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=8), budget=st.integers(0, 250))
@settings(deadline=None, derandomize=True)
def test_quotas_spend_the_budget_in_proportion_and_never_exceed_what_is_there(counts, budget):
    have = torch.tensor(counts)
    quota = choose.quotas(have, budget)
    assert int(quota.sum()) == min(budget, sum(counts))
    assert bool((quota <= have).all())
    if 0 < budget < sum(counts):
        assert bool(((quota - have * budget / sum(counts)).abs() < 1).all())


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=9), rounds=st.integers(1, 12), share=st.floats(0.1, 1))
@settings(deadline=None, derandomize=True)
def test_many_small_rounds_take_every_class_in_proportion(counts, rounds, share):
    have, taken = torch.tensor(counts), torch.zeros(len(counts), dtype=torch.int64)
    budget = round(share * sum(counts))
    for k in range(rounds):
        batch = round(budget * (k + 1) / rounds) - int(taken.sum())
        taken = taken + choose.quotas(have - taken, batch, taken)
    assert int(taken.sum()) == budget
    assert bool(((taken - have * budget / sum(counts)).abs() <= 1 + 1e-9).all())


def test_rising_keys_sort_like_the_values():
    values = torch.tensor([3.0, -1.0, 0.0, -0.0, 1e-30, -1e30, 7.5, -2.5, float("inf")])
    order = np.argsort(choose.rising_keys(values, keys_of(9)).numpy().view(np.uint64))
    assert values[torch.from_numpy(order)].tolist() == sorted(values.tolist())


def test_eligible_rows_come_first_in_random_order_and_the_rest_by_doubt():
    n = 20_000
    probability = torch.linspace(0, 1, n).double()
    keys, eligible = choose.balanced_keys(keys_of(n), probability, 3, choose.waits(keys_of(n), 3))
    assert float(eligible.double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(eligible[: n // 10].double().mean()) < 0.07
    assert float(eligible[-n // 10 :].double().mean()) > 0.93
    unsigned = keys.numpy().view(np.uint64)
    assert unsigned[eligible.numpy()].max() < unsigned[~eligible.numpy()].min()
    rest = probability[~eligible][torch.from_numpy(np.argsort(unsigned[~eligible.numpy()]))]
    assert bool((rest.diff() <= 1e-5).all()), "the least doubtful first"
    rank = torch.from_numpy(np.argsort(np.argsort(unsigned[eligible.numpy()]))).double()
    assert abs(float(torch.corrcoef(torch.stack([rank, probability[eligible]]))[0, 1])) < 0.03


def test_rows_beyond_all_doubt_do_not_tie():
    """An order of 32 bits has about n^2 / 2^33 = 29 pairs of equal keys here."""
    n = 500_000
    keys, eligible = choose.balanced_keys(keys_of(n), torch.zeros(n).double(), 3, choose.waits(keys_of(n), 3))
    assert not bool(eligible.any())
    assert len(keys.unique()) == n


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.2, 1.0), (0.5, 4.0)])
def test_of_two_rows_one_comes_first_in_proportion_to_its_rate(rates):
    n = 40_000
    keys, both = keys_of(2 * n), torch.tensor(rates, dtype=torch.float64).repeat_interleave(n)
    order = choose.balanced_keys(keys, torch.ones(2 * n).double(), 4, choose.waits(keys, 4, both))[0].view(2, n)
    assert int(order.min()) >= 0 and len(order.unique()) == 2 * n
    first = float((order[0] < order[1]).double().mean())  # eligible rows' keys are not negative
    assert first == pytest.approx(rates[0] / sum(rates), abs=0.012)


def test_rates_are_1_on_average_and_bounded_and_equal_where_nothing_is_unsure():
    u = torch.linspace(0, 0.5, 1001).float()
    rates = choose.lean(u, float(u.double().mean()))
    assert float(rates.mean()) == pytest.approx(1)
    assert float(rates[0]) == pytest.approx(1 - choose.LEAN) and bool((rates.diff() > 0).all())
    assert float(choose.lean(u, 1e-9).max()) == choose.MOST_RATE
    assert torch.equal(choose.lean(torch.zeros(5), 0.0), torch.ones(5).double())


def test_draws_depend_on_the_key_alone_and_are_uniform():
    keys = keys_of(50_000)
    draw = choose.uniform_draw(keys, 5)
    assert torch.equal(choose.uniform_draw(keys.flip(0), 5), draw.flip(0))
    assert not torch.equal(choose.uniform_draw(keys, 6), draw)
    counts = torch.histc(draw, 10, 0, 1)
    assert bool((counts - 5000).abs().max() < 350)
    assert float(draw.min()) >= 0 and float(draw.max()) < 1


def test_rows_of_one_source_show_no_other_shares_on_average_and_those_of_two_do():
    draw, truth = np.random.default_rng(0), [0.5, 0.3, 0.15, 0.05]
    two = [torch.from_numpy(draw.multinomial(n, truth, 4000)).double() for n in (60, 200)]
    found = [choose.shares_apart(own, other) for own, other in zip(*two, strict=True)]
    assert abs(np.mean(found)) < 0.005
    own, other = torch.tensor([500.0, 500.0]), torch.tensor([9000.0, 1000.0])
    assert choose.shares_apart(own, other) == pytest.approx(0.4, abs=0.02)
    assert choose.shares_apart(own, torch.zeros(2)) == 0.0


@pytest.mark.parametrize("n", [40, 400, 40_000])
def test_weights_give_classes_the_tables_shares_more_closely_the_more_rows_tell_them(n):
    own = n * torch.tensor([0.4, 0.4, 0.2, 0.0]).double()
    chosen = torch.tensor([100.0, 100.0, 700.0, 50.0]).double()
    weights = choose.class_weights(own, chosen)
    assert weights[3] == 1, "of a class that the table lacks nothing is known"
    assert float(weights.max()) <= choose.HEAVIEST
    shares = torch.tensor([1 / 9, 1 / 9, 7 / 9]).double()
    told = (n * torch.tensor([0.4, 0.4, 0.2]) + 3 * shares) / (n + 3)  # three rows of the pool's own shares among them
    assert torch.allclose(weights[2], told[2] / shares[2])
    totals = (weights * chosen)[:3]
    assert float(totals[0]) == float(totals[1]) > 100


def test_rows_in_the_tables_shares_keep_their_weight():
    own = torch.tensor([20.0, 30.0, 50.0]).double()
    assert torch.equal(choose.class_weights(own, 7 * own), torch.ones(3).double())
    assert torch.equal(choose.class_weights(own, torch.tensor([3.0, 2.0, 2.0]).double()), torch.ones(3).double())
