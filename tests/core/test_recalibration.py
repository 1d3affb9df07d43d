"""Recalibration: the classes that are counted, and the sigmoid and the share of wrong labels that are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax
from torch import Tensor

from diva_ray.core import links, recalibration, verdict
from diva_ray.core.histogram import LIMIT, ODDS


def made(rows: int, classes: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels drawn by their softmax of which a share is replaced by another class, and which."""
    g = np.random.default_rng(seed)
    logits = 3 * g.standard_normal((rows, classes))
    truth = (logits + g.gumbel(size=logits.shape)).argmax(1)
    wrong = g.random(rows) < share
    given = np.where(wrong, (truth + g.integers(1, classes, rows)) % classes, truth)
    return torch.from_numpy(logits), torch.from_numpy(given), torch.from_numpy(wrong)


def given_cells(F: Tensor, y: Tensor, weight: Tensor, link: links.Link) -> Tensor:
    odds = links.log_odds(F, y, link)
    return verdict.verdict_sums(odds, torch.zeros(len(y)), weight).counts.sum(1)


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("scale", [np.inf, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_classes_of_labelled_rows_are_counted(classes: int, scale: float, dtype: torch.dtype) -> None:
    F, y, _ = made(500, classes, 0.1, classes)
    F, weight = F.to(dtype) / 4, torch.arange(500) % 3 / 2
    y = torch.where(torch.arange(500) % 7 == 0, -1, y)
    link = links.Link(scale, 16.0)
    sums = recalibration.odds_of_classes(F, y, weight, link)
    G = F.double().numpy()
    G = 16 * (G if np.isinf(scale) else scale * np.arcsinh(G / scale))
    others = np.stack([np.logaddexp.reduce(np.delete(G, k, 1), axis=1) for k in range(classes)], 1)
    odds = np.clip(G - others, -LIMIT, LIMIT - 1e-9)
    w = np.where(y.numpy() >= 0, weight.numpy(), 0.0)
    expected = np.histogram(odds, ODDS[2], (-LIMIT, LIMIT), weights=np.repeat(w[:, None], classes, 1))[0]
    assert np.abs(sums.counts.numpy() - expected).sum() <= 2e-3 * expected.sum()  # some lie on an edge
    assert float(sums.counts.sum()) == pytest.approx(classes * w.sum())
    assert sums.squares == pytest.approx(np.square(w).sum())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("rate", "factor"), [(0.02, 1.0), (0.1, 2.0), (0.3, 0.6)])
def test_sharpness_and_share_of_wrong_labels_are_found_again(classes: int, rate: float, factor: float) -> None:
    F, y, _ = made(60_000, classes, rate, 1)
    link = links.Link(np.inf, factor)  # as sharp as it should be, or not
    ones = torch.ones(len(y))
    sums = recalibration.odds_of_classes(F, y, ones, link)
    found = recalibration.recalibrate(given_cells(F, y, ones, link), sums, classes, 0.05)
    assert found.rate == pytest.approx(rate, abs=0.006 if classes == 2 else 0.02)
    if classes == 2:  # of more, log-odds under another sharpness are no multiple
        assert found.slope == pytest.approx(1 / factor, rel=0.05) and abs(found.shift) < 0.02


def test_weights_count_as_rows_do() -> None:
    F, y, _ = made(3000, 3, 0.1, 2)
    link, many = links.Link(np.inf, 1.5), torch.arange(3000) % 4
    one = recalibration.recalibrate(
        given_cells(F, y, many.double(), link), recalibration.odds_of_classes(F, y, many.double(), link), 3, 0.1
    )
    F, y = F.repeat_interleave(many, 0), y.repeat_interleave(many)
    ones = torch.ones(len(y))
    other = recalibration.recalibrate(
        given_cells(F, y, ones, link), recalibration.odds_of_classes(F, y, ones, link), 3, 0.1
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_scores_are_the_posterior_and_precision_is_told() -> None:
    F, y, wrong = made(20_000, 2, 0.1, 3)
    link, ones = links.Link(np.inf, 2.0), torch.ones(20_000)
    odds = links.log_odds(F, y, link)
    sums = verdict.verdict_sums(odds, torch.zeros(20_000), ones)
    again = recalibration.recalibrate(sums.counts.sum(1), recalibration.odds_of_classes(F, y, ones, link), 2, 0.2)
    rule = verdict.fit_verdict(sums, 2, again=again)
    p = softmax(F.numpy(), 1)[np.arange(20_000), y.numpy()]
    expected = expit(logit(np.clip(p, 1e-12, 1 - 1e-12)) - logit(0.1))
    scores = verdict.label_scores(odds, rule).numpy()
    assert np.abs(scores - expected).max() < 0.05
    flagged = scores < rule.label.value
    assert rule.label.precision == pytest.approx(wrong.numpy()[flagged].mean(), abs=0.04)
    plain = verdict.fit_verdict(sums, 2)  # the link as it is calls more of them wrong than are
    assert plain.label.precision > rule.label.precision + 0.05


def test_no_verdict_without_wrong_labels() -> None:
    F, y, _ = made(5000, 3, 0.0, 4)
    link, ones = links.Link(np.inf, 4.0), torch.ones(5000)
    sums = verdict.verdict_sums(links.log_odds(F, y, link), torch.zeros(5000), ones)
    assert verdict.fit_verdict(sums, 3).noise_rate > 0.02  # a link too sharp
    again = recalibration.recalibrate(sums.counts.sum(1), recalibration.odds_of_classes(F, y, ones, link), 3, 0.05)
    rule = verdict.fit_verdict(sums, 3, again=again)
    assert again.rate < 0.01 and rule.label.share < 0.002


def test_labels_whose_scores_vanish_under_a_steep_recalibration_are_called_wrong():
    """Where wrong labels lie far from right ones the likeliest slope is as steep as may be: e^(-24 x 54.6) is 0."""
    odds = torch.where(torch.arange(300) < 60, -22.0, 22.0) + torch.linspace(-1.0, 1.0, 300)
    sums = verdict.verdict_sums(odds, torch.zeros(300), torch.ones(300))
    for slope in (1.0, 54.6):
        found = verdict.fit_verdict(sums, 2, again=verdict.Recalibration(0.0, slope, 0.2))
        scores = verdict.label_scores(odds, found)
        assert (scores < found.label.value).tolist() == (odds < 0).tolist()
        assert (scores.float() < found.label.value).tolist() == (odds < 0).tolist()
        suspects = scores[:60].float()
        assert bool((suspects > torch.finfo(torch.float32).tiny).all())
        assert bool((suspects.diff() > 0).all()), "the least likely to be right comes first"
