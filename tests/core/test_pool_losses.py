"""Wrong numbers of a pool against a table's left-out losses: shares are found, and none are made up."""

import numpy as np
import pytest
import torch

from diva_ray.core.gaps import ByKind
from diva_ray.core.loss_verdict import fit_loss_verdict, loss_scores, loss_sums
from diva_ray.core.pool_losses import judge_against_table

SPREAD = 0.4  # standard deviation of errors, where labels have 1


def losses_of(errors):
    return torch.as_tensor(errors * np.abs(errors))


def sums_of(outputs, labels, kinds=None):
    reference = np.random.default_rng(9).standard_normal(64)
    own, other = losses_of(outputs - labels), losses_of(outputs[:, None] - reference)
    one = torch.ones(len(labels), dtype=torch.float64)
    return loss_sums(own, other, torch.zeros(len(labels)), one, kinds)


def drawn(rows, share, seed, spread=SPREAD, tails=None):
    """Return outputs, labels with a share of other rows', and which are wrong."""
    generator = np.random.default_rng(seed)
    labels = generator.standard_normal(rows)
    errors = generator.standard_t(tails, rows) if tails else generator.standard_normal(rows)
    outputs, wrong = labels + spread * errors, generator.random(rows) < share
    return outputs, np.where(wrong, generator.standard_normal(rows), labels), wrong


def judged(table, pool):
    sums = sums_of(*pool[:2])
    return judge_against_table(fit_loss_verdict(sums), sums, sums_of(*table[:2]))


@pytest.mark.parametrize(("share", "tails"), [(0.1, None), (0.3, None), (0.6, None), (0.1, 4), (0.3, 4)])
def test_shares_that_no_histogram_of_the_pool_alone_tells_are_found(share, tails):
    pool = drawn(3000, share, 1, tails=tails)
    rule = judged(drawn(500, 0.0, 0, tails=tails), pool)
    assert abs(rule.noise_rate - share) < 0.05 + 0.1 * share
    flagged = (loss_scores(losses_of(pool[0] - pool[1]), rule) < rule.label.value).numpy()
    assert abs(pool[2][flagged].mean() - rule.label.precision) < (
        0.12 if tails else 0.07
    )  # 500 rows tell tails roughly
    assert abs(flagged[pool[2]].mean() - rule.label.recall) < 0.12
    left = pool[2][~flagged].mean()  # errors of wrong labels overlap those of right ones: half of them show
    assert left < 0.8 * share and pool[2][flagged].mean() > 0.6


@pytest.mark.parametrize("tails", [None, 4])
@pytest.mark.parametrize("spread", [SPREAD, 0.6], ids=["alike", "predicted worse"])
def test_none_are_made_up_where_all_labels_are_right(spread, tails):
    for seed in range(4):
        pool = drawn(3000, 0.0, 10 + seed, spread=spread, tails=tails)
        sums = sums_of(*pool[:2])
        rule = fit_loss_verdict(sums)
        assert judge_against_table(rule, sums, sums_of(*drawn(500, 0.0, seed, tails=tails)[:2])) is rule
        assert rule.noise_rate == 0


def test_gross_ones_are_told_beside_those_of_other_rows():
    outputs, labels, wrong = drawn(3000, 0.2, 1)
    gross = np.random.default_rng(2).random(3000) < 0.03
    rule = judged(drawn(500, 0.0, 0), (outputs, np.where(gross, 50 * labels + 30, labels)))
    flagged = (
        loss_scores(losses_of(outputs - np.where(gross, 50 * labels + 30, labels)), rule) < rule.label.value
    ).numpy()
    assert flagged[gross].mean() > 0.95 and (wrong | gross)[flagged].mean() > 0.75


def test_a_table_of_few_rows_or_with_gaps_says_nothing():
    outputs, labels, _ = drawn(3000, 0.3, 1)
    sums = sums_of(outputs, labels)
    rule = fit_loss_verdict(sums)
    assert judge_against_table(rule, sums, sums_of(*drawn(99, 0.0, 0)[:2])) is rule
    kinds = torch.arange(3000) % 2
    apart = sums_of(outputs, labels, kinds)
    assert isinstance(apart, ByKind) and judge_against_table(rule, apart, sums_of(*drawn(500, 0.0, 0)[:2])) is rule
    empty = sums_of(outputs[:0], labels[:0])
    assert judge_against_table(rule, sums, empty) is rule and judge_against_table(rule, empty, sums) is rule
