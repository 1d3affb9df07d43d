"""How sure outputs of rows that lack bands are: one sharpness for each kind of rows, one share of wrong labels."""

import math

import numpy as np
import pytest
import torch

from diva_ray.core import sureness
from diva_ray.core.links import SHARPNESS
from diva_ray.core.multilabel import class_shares, output_sums, sharpened


def drawn(seed, sharpness, rows, wrong=0.0, classes=4):
    """Return outputs, labels and kinds of rows whose true class has the probability softmax(sharpness F)."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.cat([torch.full((n,), kind) for kind, n in enumerate(rows)])
    F = torch.randn(len(kinds), classes, generator=draw, dtype=torch.float64) / 3
    p = (torch.tensor(sharpness, dtype=torch.float64)[kinds, None] * F).softmax(1)
    y = torch.multinomial(p, 1, generator=draw).squeeze(1)
    bad = torch.rand(len(y), generator=draw) < wrong
    other = torch.randint(1, classes, (len(y),), generator=draw)
    return F, torch.where(bad, (y + other) % classes, y), kinds


def factors(F, y, kinds, parts=1, weight=None, classes=4):
    weight = torch.ones(len(y), dtype=torch.float64) if weight is None else weight
    sums = [sureness.kind_sums(F[at], y[at], weight[at], kinds[at]) for at in torch.arange(len(y)).tensor_split(parts)]
    return sureness.fit_factors(sum(sums[1:], sums[0]), classes)


@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("ratio", [0.125, 0.5, 4.0])
def test_every_kind_has_its_own_sharpness_and_all_one_share_of_wrong_labels(wrong, ratio):
    found = factors(*drawn(1, [16.0, 16.0 * ratio], [4000, 2000], wrong))
    assert found[0] == 1 and found[1] == pytest.approx(ratio, rel=0.5)


@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_kinds_that_are_alike_are_taken_to_be(wrong):
    found = [factors(*drawn(seed, [16.0] * 3, [2000, 500, 60], wrong)) for seed in range(20)]
    for kind in (1, 2):
        assert sum(one.get(kind, 1.0) != 1 for one in found) <= 3, "BIC errs now and then"


def test_a_few_rows_that_are_all_predicted_right_are_no_surer_than_the_rest():
    F, y, kinds = drawn(3, [8.0, 8.0], [1000, 6])
    y[kinds == 1] = F[kinds == 1].argmax(1)
    assert factors(F, y, kinds) == {}


def test_no_other_sharpness_of_a_kind_is_likelier_given_the_rest():
    F, y, kinds = drawn(4, [16.0, 4.0], [3000, 1500], 0.1)
    found = factors(F, y, kinds)

    def likelihood(first, second, e):
        p = (torch.tensor([first, second], dtype=torch.float64)[kinds, None] * F).softmax(1)
        p = p.gather(1, y[:, None]).squeeze(1)
        return float(((1 - e) * p + e * (1 - p) / 3).log().sum())

    tried = SHARPNESS[4:11]
    rates = np.linspace(0.01, 0.3, 30)
    best = max((likelihood(a, b, e), a, b) for a in tried for b in (*SHARPNESS[:8],) for e in rates)
    mine = max(likelihood(a, a * found[1], e) for a in tried for e in rates)
    assert best[0] - mine < 3, "within the cells, of thousands of rows"


def test_factors_do_not_depend_on_how_rows_are_dealt_nor_on_the_unit_of_weights():
    F, y, kinds = drawn(5, [16.0, 2.0], [900, 300], 0.1)
    found = factors(F, y, kinds)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    assert found[1] < 0.5
    assert factors(F[order], y[order], kinds[order], parts=7) == found
    assert factors(F, y, kinds, weight=torch.full((len(y),), 3.0, dtype=torch.float64)) == found


@pytest.mark.parametrize("rows", [[0, 0], [1, 0]])
def test_hardly_any_rows_have_no_factors(rows):
    assert factors(*drawn(6, [8.0, 1.0], rows)) == {}


def test_of_one_class_nothing_is_surer():
    F, y, kinds = torch.ones(40, 1), torch.zeros(40, dtype=torch.int64), torch.arange(40) % 2
    assert factors(F, y, kinds, classes=1) == {}


def test_rows_without_weight_shape_nothing():
    F, y, kinds = drawn(7, [16.0, 16.0], [800, 400])
    weight = torch.ones(len(y), dtype=torch.float64)
    weight[-200:] = 0
    y[-200:] = F[-200:].argmin(1)
    assert factors(F, y, kinds, weight=weight) == {} and math.isfinite(sum(factors(F, y, kinds).values()))


def tagged(seed, sharpness, rows, missing=0.0, classes=5):
    """Return outputs, labels and kinds of rows that have a class with probability sigma(sharpness (x - threshold))."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.cat([torch.full((n,), kind) for kind, n in enumerate(rows)])
    threshold = torch.linspace(-0.5, 1.0, classes, dtype=torch.float64)
    x = torch.randn(len(kinds), classes, generator=draw, dtype=torch.float64)
    p = (torch.tensor(sharpness, dtype=torch.float64)[kinds, None] * (x - threshold)).sigmoid()
    Y = (torch.rand(p.shape, generator=draw) < p) & (torch.rand(p.shape, generator=draw) >= missing)
    return x, Y.double(), kinds, threshold


def slip_factors(x, Y, kinds, parts=1):
    weight = torch.ones(len(x), dtype=torch.float64)
    shares = class_shares(Y, weight)
    rows = torch.arange(len(x)).tensor_split(parts)
    sums = [sureness.slip_sums(x[at], Y[at], weight[at], shares, kinds[at]) for at in rows]
    return sureness.fit_slip_factors(output_sums(x, Y, weight), sum(sums[1:], sums[0]), shares)


@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize("ratio", [0.125, 0.5])
def test_of_several_labels_kinds_share_thresholds_and_have_their_own_sharpness(missing, ratio):
    x, Y, kinds, threshold = tagged(1, [8.0, 8.0 * ratio], [3000, 1000], missing)
    found, thresholds = slip_factors(x, Y, kinds)
    assert found[0] == 1 and found[1] == pytest.approx(ratio, rel=0.5)
    torch.testing.assert_close(thresholds, threshold, atol=0.25, rtol=0)
    assert slip_factors(x, Y, kinds, parts=5)[0] == found


def test_of_several_labels_kinds_that_are_alike_or_hold_hardly_a_row_have_no_factors():
    assert slip_factors(*tagged(2, [8.0, 8.0], [2000, 400], 0.1)[:3])[0] == {}
    x, Y, kinds, _ = tagged(3, [8.0, 8.0], [500, 3])
    Y[:, 0], Y[:, 1] = 0, 1  # classes that no row has, and every row
    found, thresholds = slip_factors(x, Y, kinds)
    assert found == {} and thresholds[:2].isinf().all() and thresholds[2:].isfinite().all()


def test_outputs_are_sharpened_about_the_thresholds():
    x, factors = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.5, 4.0]]).double(), torch.tensor([0.5, 1.0]).double()
    found = sharpened(x, torch.tensor([0.0, torch.inf, 1.0]).double(), factors)
    torch.testing.assert_close(found, torch.tensor([[0.5, 2.0, 2.0], [0.0, 0.5, 4.0]]).double())
