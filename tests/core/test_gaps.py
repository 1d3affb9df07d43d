"""Rows that lack bands: which are of one kind, and that their losses are measured in a unit of their own."""

import numpy as np
import pytest
import torch

from diva_ray.core import gaps
from diva_ray.core import loss_verdict as rule


def absent(n, bands, share, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=generator) < share for _ in range(bands)]


def test_codes_tell_which_bands_are_missing_and_how_many():
    missing = absent(500, 6, 0.4, seed=0)
    codes = gaps.gap_codes([missing[0], None, *missing[1:]], 500)
    patterns = torch.stack(missing, 1)
    assert codes is not None and torch.equal(codes >> gaps.SHIFT, patterns.sum(1))
    same = (patterns[:, None] == patterns).all(2)
    assert torch.equal(codes[:, None] == codes, same)
    assert gaps.gap_codes([None, torch.zeros(500, dtype=torch.bool)], 500) is None
    assert torch.equal(codes[:7], gaps.gap_codes([missing[0][:7], None, *(x[:7] for x in missing[1:])], 7))


def test_common_patterns_are_kinds_and_others_go_by_their_number():
    missing = absent(4000, 30, 0.1, seed=1)
    missing[0] = torch.rand(4000, generator=torch.Generator().manual_seed(2)) < 0.5
    codes = gaps.gap_codes(missing, 4000)
    assert codes is not None
    common = gaps.common_codes(codes)
    kinds, many = gaps.kinds_of(codes, common), torch.stack(missing).sum(0)
    alone = (many == 1) & missing[0]
    assert alone.float().mean() > gaps.COMMON and kinds[alone].unique().tolist() == codes[alone].unique().tolist()
    assert torch.equal(kinds[many == 7], torch.full_like(kinds[many == 7], 7))
    assert len(kinds.unique()) <= 64 + gaps.MANY + 1
    assert int(gaps.kinds_of(torch.tensor([29 << gaps.SHIFT]), common)) == gaps.MANY


def uneven(n=1000, wrong=0.0, seed=0, size=30):
    """Return errors, those with labels of other rows, kinds (1: the mean is predicted), and which labels are wrong."""
    draw = np.random.default_rng(seed)
    kinds, tells, bad = (draw.random(n) < 0.1).astype(int), 4.5 * draw.standard_normal(n), draw.random(n) < wrong
    f, y = np.where(kinds, 0, tells), tells + draw.standard_normal(n) + size * bad * draw.choice([-1, 1], n)
    f, y = torch.from_numpy(f), torch.from_numpy(y)
    return f - y, f[:, None] - y[:64], torch.from_numpy(kinds), torch.from_numpy(bad)


def judged(error, others, kinds, parts=1):
    """Return the rule, from rows dealt to so many parts, and the rows that it flags."""
    losses, reference, n = error * error.abs(), others * others.abs(), len(error)
    z, w, dealt = torch.zeros(n), torch.ones(n), torch.arange(n) % parts
    total = rule.LossSums()
    for part in range(parts):
        at = dealt == part
        own = None if kinds is None else kinds[at]
        total = total + rule.loss_sums(losses[at], reference[at], z[at], w[at], own)
    verdict = rule.fit_loss_verdict(total)
    return verdict, rule.loss_scores(losses, verdict, kinds) < verdict.label.value


def test_larger_errors_of_one_kind_of_rows_are_no_wrong_labels():
    error, others, kinds, _ = uneven()
    verdict, flagged = judged(error, others, kinds)
    assert not flagged.any()
    assert verdict.units[1].own / verdict.units[0].own == pytest.approx(4.5**2 + 1, rel=0.5)


def test_wrong_labels_are_found_among_rows_of_every_kind():
    error, others, kinds, wrong = uneven(wrong=0.06, size=60)
    verdict, flagged = judged(error, others, kinds)
    for kind in (0, 1):
        assert flagged[wrong & (kinds == kind)].double().mean() > (0.95, 0.6)[kind]
    precision = float((flagged & wrong).sum() / flagged.sum())
    assert precision > 0.93 and verdict.label.precision == pytest.approx(precision, abs=0.06)
    limit = rule.largest_right(verdict, kinds)
    away = (error.square() / limit).log().abs() > 1e-9
    assert torch.equal((error.square() > limit)[away], flagged[away]), "the same border, as a loss"


def test_the_rule_does_not_depend_on_how_rows_are_dealt():
    error, others, kinds, _ = uneven(wrong=0.06, seed=3)
    verdict = judged(error, others, kinds)[0]
    assert all(judged(error, others, kinds, parts)[0] == verdict for parts in (2, 5))


def test_a_kind_of_few_rows_is_never_called_wrong_and_shapes_nothing():
    error, others, _, wrong = uneven(wrong=0.06, seed=4)
    few = torch.zeros(len(error), dtype=torch.int64)
    few[: rule.FEW - 1] = 1
    verdict, flagged = judged(error, others, few)
    assert flagged[wrong & (few == 0)].double().mean() > 0.9
    assert not flagged[few == 1].any() and list(verdict.units) == [0]
    rest = few == 0
    assert judged(error[rest], others[rest], None)[0] == verdict
    scores = rule.loss_scores(error.square(), verdict, few)
    assert (scores[few == 1] == 1).all()
    assert bool(rule.largest_right(verdict, few)[few == 1].isinf().all())


def test_rows_are_judged_whichever_kind_is_commonest():
    error, others, _, _ = uneven(seed=5)
    verdict = judged(error[:40], others[:40], torch.full((40,), 3))[0]
    assert list(verdict.units) == [3] and verdict.units[3].power == 1
