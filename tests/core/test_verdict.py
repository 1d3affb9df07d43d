"""Verdicts: sums merge, estimates are near the truth, scores are monotone, nothing breaks on degenerate data."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diva_ray.core import evidence, levels, links
from diva_ray.core import loss_verdict as loss_rule
from diva_ray.core import verdict as rule
from diva_ray.core.gaps import ByKind


def class_sums(F, y, weight):
    own = F.gather(1, y.clamp_min(0)[:, None]).squeeze(1)
    return levels.class_sums(own, y, weight, F.shape[1])


def test_directions_are_counted_as_the_eye_counts_them():
    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    center = torch.full((6,), 3.0)
    for c in (1, 2, 6):
        flat = Y * (torch.arange(6) < c) * 10.0 ** torch.randn(4000, 1, generator=generator) + center
        assert abs(loss_rule.directions(flat, center, 0.0) - c) < 0.05 * c
    few = [loss_rule.directions(Y[k : k + 8], torch.zeros(6), 0.0) for k in range(0, 4000, 8)]
    assert abs(1 / np.mean(1 / np.array(few)) - 6) < 0.2  # of few rows the mean squared cosine has no bias
    assert loss_rule.directions(Y[:1], center, 0.0) == 1.0 == loss_rule.directions(Y, torch.zeros(6), 99.0)


def planted(rows: int, classes: int, noise: float, seed: int, spread: float = 0.12) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs that point at a class, labels drawn from them, and labels of which a share is another class at random."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    F = spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    F[torch.arange(rows), truth] += 0.7
    shift = torch.randint(1, classes, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < noise
    return F, torch.where(wrong, (truth + shift) % classes, truth), wrong


@pytest.mark.parametrize("together", [1, 40, 1 << 18])
@pytest.mark.parametrize(("rows", "models", "classes"), [(50, 3, 4), (7, 1, 2), (30, 4, 1), (0, 2, 3)])
def test_the_sums_of_links_are_of_every_model_by_itself(monkeypatch, together, rows, models, classes):
    monkeypatch.setattr(links, "TOGETHER", together)
    draw = np.random.default_rng(rows)
    F, y = draw.standard_normal((rows, models, classes)), draw.integers(-1, classes, rows)
    weight = draw.random(rows) * (draw.random(rows) > 0.2)
    found = links.link_sums_by_model(*map(torch.from_numpy, (F, y, weight)))
    for m, sums in enumerate(found):
        assert sums.squares == pytest.approx(float((weight[y >= 0] ** 2).sum()))
        for s, scale in enumerate(links.SCALES):
            g = F[:, m] if math.isinf(scale) else scale * np.arcsinh(F[:, m] / scale)
            for b, beta in enumerate(links.SHARPNESS):
                expected = np.zeros(160)
                for i in range(rows):
                    rest = [beta * g[i, k] for k in range(classes) if k != y[i]]
                    odds = beta * g[i, y[i]] - np.logaddexp.reduce(rest) if rest else 24.0
                    expected[min(max(int((odds + 24) / 0.3), 0), 159)] += weight[i] * (y[i] >= 0)
                np.testing.assert_allclose(sums.counts[s, b].numpy(), expected, rtol=1e-12, atol=1e-12)


def judge(F: Tensor, y: Tensor, z: Tensor, weight: Tensor) -> tuple[rule.Verdict, Tensor, Tensor, Tensor]:
    classes = F.shape[1]
    F = levels.level(F, torch.zeros(len(F), dtype=F.dtype), levels.class_levels(class_sums(F, y, weight)))
    link = links.fit_link(links.link_sums(F, y, weight), classes)
    odds = links.log_odds(F, y, link)
    verdict = rule.fit_verdict(rule.verdict_sums(odds, z, weight), classes)
    scores = rule.label_scores(odds, verdict)
    return verdict, scores, scores < verdict.label.value, rule.is_detrimental(z, verdict)


def z_of(F: Tensor, y: Tensor, seed: int) -> Tensor:
    """A z that sees what the outputs see, less clearly."""
    noise = torch.randn(len(y), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    given = y.clamp_min(0)[:, None]
    return -4 * (F.gather(1, given) - F.scatter(1, given, -torch.inf).amax(1, keepdim=True)).squeeze(1) + 0.3 * noise


def precision_and_recall(flagged: Tensor, wrong: Tensor) -> tuple[float, float]:
    both = float((flagged & wrong).sum())
    return both / float(flagged.sum()), both / float(wrong.sum())


@pytest.mark.parametrize("classes", [2, 5, 60])
@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("spread", [0.12, 0.3])
def test_noise_rate_precision_and_recall_are_near_the_truth(classes: int, noise: float, spread: float) -> None:
    F, y, wrong = planted(6000, classes, noise, seed=classes, spread=spread)
    verdict, _, issue, detrimental = judge(F, y, z_of(F, y, 1), torch.ones(len(y)))
    assert verdict.noise_rate == pytest.approx(float(wrong.double().mean()), abs=0.03)
    for flagged, cut in ((issue, verdict.label), (detrimental, verdict.z)):
        precision, recall = precision_and_recall(flagged, wrong)
        assert cut.precision == pytest.approx(precision, abs=0.08)
        assert cut.recall == pytest.approx(recall, abs=0.08)
        assert cut.share == pytest.approx(float(flagged.double().mean()), abs=1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_both_cuts_are_almost_as_good_as_the_best_cut_that_knows_the_truth(noise: float) -> None:
    F, y, wrong = planted(4000, 10, noise, seed=3, spread=0.3)
    z = z_of(F, y, 2)
    _, scores, issue, detrimental = judge(F, y, z, torch.ones(len(y)))
    for suspicion, flagged in ((-scores, issue), (z, detrimental)):
        caught = wrong[suspicion.argsort(descending=True)].double().cumsum(0)
        best = float((2 * caught / (torch.arange(1, len(y) + 1) + wrong.sum())).max())
        precision, recall = precision_and_recall(flagged, wrong)
        assert 2 * precision * recall / (precision + recall) > best - 0.02


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_clean_labels_are_left_alone(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    F = 0.25 * torch.randn(5000, classes, generator=generator, dtype=torch.float64)
    y = torch.multinomial((12 * F).softmax(1), 1, generator=generator).squeeze(1)  # hard and calibrated, none wrong
    z = 3 * torch.randn(5000, generator=generator, dtype=torch.float64)
    verdict, _, issue, detrimental = judge(F, y, z, torch.ones(5000))
    assert verdict.noise_rate < 0.01
    assert float(issue.double().mean()) < 0.01
    assert float(detrimental.double().mean()) <= 0.05
    assert verdict.z.value >= math.sqrt(2 * math.log(5000)) or verdict.noise_rate > 0


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_outputs_that_say_nothing_call_no_label_wrong(classes: int, share: float) -> None:
    """Constant outputs with a little noise, under classes of unequal size: sure of the largest, or wrong as often."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor([share, *[(1 - share) / (classes - 1)] * (classes - 1)], dtype=torch.float64)
    y = torch.multinomial(shares, 3000, replacement=True, generator=generator)
    F = shares + 0.02 * torch.randn(3000, classes, generator=generator, dtype=torch.float64)
    sums, weight = links.link_sums(F, y, torch.ones(3000)), torch.bincount(y, minlength=classes).double()
    assert not evidence.noise_shows(links.fit_link(sums, classes), weight, 3000.0)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_outcomes_of_chance_are_not_called_wrong(slope: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4000, generator=generator, dtype=torch.float64)
    y = (torch.rand(4000, generator=generator, dtype=torch.float64) < torch.sigmoid(slope * x)).long()
    F = torch.stack([0.5 - 0.2 * x * slope / (1 + slope), 0.5 + 0.2 * x * slope / (1 + slope)], 1)
    link = links.fit_link(links.link_sums(F, y, torch.ones(4000)), 2)
    assert not evidence.noise_shows(link, torch.bincount(y).double(), 4000.0)


@pytest.mark.parametrize("rows", [90, 300, 3000])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_planted_errors_show(rows: int, noise: float) -> None:
    F, y, _ = planted(rows, 4, noise, seed=rows, spread=0.2)
    link = links.fit_link(links.link_sums(F, y, torch.ones(rows)), 4)
    assert evidence.noise_shows(link, torch.bincount(y).double(), float(rows))


def blobs(rows: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of classes that lie far apart: no row is near a boundary."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < noise
    y = torch.where(wrong, (truth + torch.randint(1, classes, (rows,), generator=generator)) % classes, truth)
    F = torch.nn.functional.one_hot(truth, classes).double() * (1 - noise)
    return F + noise / classes + 0.03 * torch.randn(rows, classes, generator=generator, dtype=torch.float64), y, wrong


@pytest.mark.parametrize("rows", [300, 3000])
@pytest.mark.parametrize(("classes", "noise"), [(2, 0.05), (2, 0.2), (3, 0.07), (3, 0.25), (8, 0.03), (8, 0.4)])
def test_wrong_labels_of_classes_far_apart_are_told_from_chance(rows: int, classes: int, noise: float) -> None:
    F, y, wrong = blobs(rows, classes, noise, seed=rows + classes)
    sums, weight = links.link_sums(F, y, torch.ones(rows)), torch.bincount(y, minlength=classes).double()
    link = evidence.fit_clear_link(sums, weight)
    assert link is not None
    odds = links.log_odds(F, y, link)
    verdict = rule.fit_verdict(rule.verdict_sums(odds, torch.zeros(rows), torch.ones(rows)), classes)
    assert torch.equal(rule.label_scores(odds, verdict) < verdict.label.value, wrong)
    assert verdict.noise_rate == pytest.approx(float(wrong.double().mean()), abs=0.01)


@pytest.mark.parametrize("slope", [1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("rows", [300, 4000])
def test_outcomes_of_chance_and_right_labels_are_not_clearly_wrong(rows: int, slope: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, generator=generator, dtype=torch.float64)
    y = (torch.rand(rows, generator=generator, dtype=torch.float64) < torch.sigmoid(slope * x)).long()
    F = torch.stack([0.5 - 0.3 * x, 0.5 + 0.3 * x], 1)
    assert evidence.fit_clear_link(links.link_sums(F, y, torch.ones(rows)), torch.bincount(y).double()) is None
    right, truth, _ = blobs(rows, 3, 0.0, seed=rows)
    assert (
        evidence.fit_clear_link(links.link_sums(right, truth, torch.ones(rows)), torch.bincount(truth).double()) is None
    )


def test_a_rare_class_is_not_taken_for_mislabelled() -> None:
    F, y, wrong = planted(4000, 4, 0.1, seed=5)
    F[:, 3] *= 0.4  # a class that ridge has shrunk
    rare = (y == 3) & ~wrong
    divisors = levels.class_levels(class_sums(F, y, torch.ones(len(y))))
    assert divisors[3] < divisors[:3].min()
    _, _, issue, _ = judge(F, y, torch.zeros(len(y)), torch.ones(len(y)))
    assert float(issue[rare].double().mean()) < 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=5), st.integers(0, 10))
def test_cutting_into_blocks_changes_nothing(cuts: list[int], seed: int) -> None:
    F, y, _ = planted(300, 6, 0.2, seed)
    y[::17] = -1
    weight = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(seed)).double()
    z, reference = z_of(F, y, seed), F.square()
    edges = [0, *sorted(cuts), 300]
    blocks = [slice(a, b) for a, b in pairwise(edges)]
    whole = class_sums(F, y, weight)
    torch.testing.assert_close(sum(class_sums(F[b], y[b], weight[b]) for b in blocks), whole, rtol=1e-12, atol=0)
    odds = links.log_odds(F, y, links.Link(0.1, 32.0))
    for kernel, columns in (
        (links.link_sums, (F, y, weight)),
        (links.link_sums, (F, y, weight, reference[:, 0])),
        (rule.verdict_sums, (odds, z, weight)),
        (loss_rule.loss_sums, (F.square().sum(1), reference, z, weight)),
        (loss_rule.loss_sums, (F.square().sum(1), reference, z, weight, y % 2)),
    ):
        expected = kernel(*columns)
        merged = kernel(*(x[blocks[0]] for x in columns))
        for block in blocks[1:]:
            merged = merged + kernel(*(x[block] for x in columns))
        found, wanted = (dict(x) if isinstance(x, ByKind) else {0: x} for x in (merged, expected))
        assert {kind for kind, one in found.items() if one.squares} == {k for k, one in wanted.items() if one.squares}
        for kind, one in wanted.items():
            torch.testing.assert_close(found[kind].counts, one.counts, rtol=1e-12, atol=0)
            assert found[kind].squares == pytest.approx(one.squares, rel=1e-12)


def test_log_odds_are_those_of_the_softmax() -> None:
    F, y, _ = planted(200, 7, 0.3, seed=1)
    p = (8 * F).softmax(1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(
        links.log_odds(F, y, links.Link(math.inf, 8.0)), (p / (1 - p)).log(), rtol=1e-9, atol=1e-12
    )
    curved = links.log_odds(F, y, links.Link(0.1, 8.0))
    torch.testing.assert_close(curved, links.log_odds(0.1 * (F / 0.1).asinh(), y, links.Link(math.inf, 8.0)))


def test_the_histogram_of_every_link_holds_its_log_odds() -> None:
    F, y, _ = planted(500, 5, 0.2, seed=2)
    sums = links.link_sums(F, y, torch.ones(500))
    edges = np.linspace(-24, 24, 161)
    for s, scale in enumerate(links.SCALES):
        for b, sharpness in enumerate(links.SHARPNESS):
            odds = links.log_odds(F, y, links.Link(scale, sharpness)).clamp(-23.99, 23.99)
            expected, _ = np.histogram(odds.numpy(), edges)
            assert np.abs(sums.counts[s, b].numpy() - expected).sum() <= 2  # rounding at an edge


def mixture(rows: int, classes: int, tails: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Discriminants of classes x = m_y + s e, s heavy-tailed or 1, their classes, 1 / s^2, and the posteriors."""
    generator = torch.Generator().manual_seed(seed)
    M = 1.5 * torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator)
    s = torch.exp(tails * torch.randn(rows, generator=generator, dtype=torch.float64))
    X = M[y] + s[:, None] * torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    F = X @ M.T - M.square().sum(1) / 2
    return 0.05 * F, y, s**-2, (F / s[:, None] ** 2).softmax(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("tails", [0.0, 0.8])
def test_links_by_nearness_find_the_posteriors_of_scale_mixtures(tails: float, noise: float, seed: int) -> None:
    F, truth, near, posterior = mixture(4000, 4, tails, seed)
    generator = torch.Generator().manual_seed(seed + 50)
    wrong = torch.rand(4000, generator=generator) < noise
    y = torch.where(wrong, (truth + torch.randint(1, 4, (4000,), generator=generator)) % 4, truth)
    plain, both = (links.link_sums(F, y, torch.ones(4000), x) for x in (None, near))
    link, without = (links.fit_link(sums, 4) for sums in (both, plain))
    assert link.near == (tails > 0) and not without.near
    told = F * near[:, None] if link.near else F
    p, q = ((link_.sharpness * g(x, link_)).softmax(1) for x, link_ in ((told, link), (F, without)))
    assert float((p - posterior).abs().mean()) < 0.03
    assert tails == 0 or float((p - posterior).abs().mean()) < 0.5 * float((q - posterior).abs().mean())
    assert link.likelihood >= without.likelihood - 1e-12
    assert links.noise_rate_at(both, link, 4) == pytest.approx(noise, abs=0.03)
    weight = torch.bincount(y).double()
    assert evidence.noise_shows(link, weight, 4000.0) == (noise > 0)


def g(F: Tensor, link: links.Link) -> Tensor:
    return F if math.isinf(link.scale) else link.scale * (F / link.scale).asinh()


def test_shapes_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        levels.level(torch.zeros(3, 2), torch.zeros(4), torch.ones(2))


def test_nearness_is_what_a_row_is_worth_beside_one_at_the_mean() -> None:
    q, weight = torch.tensor([0.0, 1e-9, 0.5, 1.0, 8.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    rows, total = levels.reach_sums(q, weight).tolist()
    assert (rows, total) == (4.0, pytest.approx(1.5))
    assert levels.nearness(q, 1.0).tolist() == pytest.approx([1000.0, 1000.0, 2.0, 1.0, 0.125])


def test_label_score_rises_with_the_output_of_the_given_label() -> None:
    F, y, _ = planted(2000, 5, 0.2, seed=4)
    verdict, *_ = judge(F, y, z_of(F, y, 0), torch.ones(2000))
    path = torch.zeros(50, 5, dtype=torch.float64)
    path[:, 2] = torch.linspace(-0.3, 0.3, 50)
    odds = links.log_odds(path, torch.full((50,), 2), links.Link(0.3, 16.0))
    assert (rule.label_scores(odds, verdict).diff() > 0).all()
    assert (loss_rule.loss_scores(torch.linspace(0, 10, 50), verdict).diff() < 0).all()


def test_scaling_weights_changes_nothing_and_weight_0_does_not_count() -> None:
    F, y, _ = planted(3000, 8, 0.2, seed=6, spread=0.25)
    z = z_of(F, y, 6)
    reference, *_ = judge(F, y, z, torch.ones(3000))
    scaled, *_ = judge(F, y, z, torch.full((3000,), 7.0))
    assert astuple(scaled)[:2] == pytest.approx(astuple(reference)[:2])
    assert (scaled.label.value, scaled.z.value) == pytest.approx((reference.label.value, reference.z.value))
    more = torch.cat([torch.ones(3000), torch.zeros(500)])
    extended = torch.cat([F, torch.rand(500, 8, dtype=torch.float64)]), torch.cat([y, y[:500]])
    pooled, *_ = judge(*extended, torch.cat([z, torch.full((500,), 50.0, dtype=torch.float64)]), more)
    assert pooled == reference


def test_doubt_flags_more_and_keeps_the_order_of_scores() -> None:
    F, y, _ = planted(3000, 5, 0.1, seed=11, spread=0.3)
    link = links.Link(0.3, 16.0)
    odds = links.log_odds(F, y, link)
    sums = rule.verdict_sums(odds, z_of(F, y, 3), torch.ones(3000))
    plain, doubted = rule.fit_verdict(sums, 5), rule.fit_verdict(sums, 5, doubt=0.8)
    scores = rule.label_scores(odds, doubted)
    assert doubted.noise_rate > plain.noise_rate
    assert doubted.z == plain.z
    assert (rule.label_scores(odds, plain) >= scores).all()
    order = odds.argsort()
    assert (scores[order].diff() >= -1e-12).all()
    flagged = scores < doubted.label.value
    assert float(flagged.double().mean()) == pytest.approx(doubted.label.share, abs=1e-9)
    assert float((1 - scores)[flagged].mean()) == pytest.approx(doubted.label.precision, abs=0.02)


DEGENERATE = {
    "three rows": (torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), torch.tensor([0, 1, 0])),
    "all perfect": (torch.eye(3).repeat(20, 1), torch.arange(3).repeat(20)),
    "all the same": (torch.zeros(40, 4), torch.arange(4).repeat(10)),
    "one class": (torch.ones(10, 1), torch.zeros(10, dtype=torch.int64)),
    "a class of one row": (
        torch.cat([torch.eye(3)[[0, 1]].repeat(20, 1), torch.zeros(1, 3)]),
        torch.tensor([0, 1] * 20 + [2]),
    ),
    "no labels": (torch.rand(10, 3), torch.full((10,), -1)),
    "all wrong": (torch.eye(2).repeat(20, 1), torch.tensor([1, 0] * 20)),
    "huge outputs": (1e6 * torch.eye(3).repeat(5, 1), torch.arange(3).repeat(5)),
    "no rows": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("z", [0.0, math.nan, math.inf])
def test_degenerate_data_give_finite_verdicts(name: str, weight: float, z: float) -> None:
    F, y = DEGENERATE[name]
    z_column = torch.full((len(y),), z)
    verdict, scores, _, detrimental = judge(F, y, z_column, torch.full((len(y),), weight))
    flat = [verdict.offset, verdict.noise_rate, *astuple(verdict.label), *astuple(verdict.z)]
    assert np.isfinite(flat).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert z == math.inf or not detrimental.any()
    losses = (1 - F).square().sum(1)
    other = loss_rule.fit_loss_verdict(loss_rule.loss_sums(losses, F.square(), z_column, torch.full((len(y),), weight)))
    assert np.isfinite([other.offset, other.noise_rate, *astuple(other.label), *astuple(other.z)]).all()
    assert loss_rule.loss_scores(losses, other).isfinite().all()


def test_no_label_is_no_issue() -> None:
    F, y, _ = planted(1000, 4, 0.3, seed=8)
    y[:100] = -1
    _, scores, issue, _ = judge(F, y, z_of(F, y, 8), (y >= 0).double())
    assert not issue[:100].any()
    assert scores[:100].min() > 0.99


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_losses_of_vectors_find_swapped_targets(noise: float) -> None:
    generator = torch.Generator().manual_seed(9)
    F = torch.randn(4000, 12, generator=generator, dtype=torch.float64)
    Y = F + 0.5 * torch.randn(4000, 12, generator=generator, dtype=torch.float64)
    wrong = torch.rand(4000, generator=generator) < noise
    Y[wrong] = Y[wrong].roll(1, 0)
    losses = (F - Y).square().sum(1)
    reference = torch.cdist(F, Y[~wrong][:32]).square()
    verdict = loss_rule.fit_loss_verdict(loss_rule.loss_sums(losses, reference, torch.zeros(4000), torch.ones(4000)))
    issue = loss_rule.loss_scores(losses, verdict) < verdict.label.value
    precision, recall = precision_and_recall(issue, wrong)
    assert min(precision, recall) > 0.9
    assert verdict.noise_rate == pytest.approx(noise, abs=0.03)
    assert (verdict.label.precision, verdict.label.recall) == pytest.approx((precision, recall), abs=0.08)


def residuals(kind: str, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictions, and noisy numbers that are all right."""
    generator = torch.Generator().manual_seed(seed)
    x, e = (torch.randn(rows, generator=generator, dtype=torch.float64) for _ in range(2))
    e = {"even": e, "uneven": e * (0.7 * torch.randn(rows, generator=generator, dtype=torch.float64)).exp(),
         "tails": e / (torch.randn(3, rows, generator=generator, dtype=torch.float64).square().mean(0)).sqrt(),
         "skewed": e.exp() - math.exp(0.5)}[kind]  # fmt: skip
    return x, x + 0.3 * e


def judged(f: Tensor, y: Tensor) -> tuple[rule.Verdict, Tensor]:
    """Return the rule for numbers y that were predicted as f, and which it calls wrong."""
    error, others = f - y, f[:, None] - y[:64]
    losses, n = error * error.abs(), len(f)
    sums = loss_rule.loss_sums(losses, others * others.abs(), torch.zeros(n), torch.ones(n))
    verdict = loss_rule.fit_loss_verdict(sums)
    return verdict, loss_rule.loss_scores(losses, verdict) < verdict.label.value


BRIEF = (("even", 100), ("uneven", 5000), ("tails", 5000), ("skewed", 100))


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param(kind, rows, marks=[pytest.mark.long] * ((kind, rows) not in BRIEF))
        for kind in ("even", "uneven", "tails", "skewed")
        for rows in (100, 300, 5000)
    ],
)
def test_right_numbers_are_left_alone_whatever_their_errors(kind: str, rows: int) -> None:
    flagged = [int(judged(*residuals(kind, rows, seed))[1].sum()) for seed in range(8)]
    assert sum(found > 0 for found in flagged) <= 1 and sum(flagged) <= 0.01 * rows * len(flagged)


@pytest.mark.parametrize(("kind", "error"), [
    ("even", "swapped"), ("tails", "swapped"), ("even", "unit"), ("uneven", "unit"), ("tails", "unit"),
    ("even", "shifted"), ("uneven", "shifted"), ("tails", "shifted"),
])  # fmt: skip
def test_wrong_numbers_that_stand_apart_are_found(kind: str, error: str) -> None:
    f, y = residuals(kind, 3000, 4)
    f, y = 5 * f, y + 4 * f
    wrong = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.05
    given = torch.where(wrong, {"swapped": y.roll(7), "unit": 25.4 * y, "shifted": y + 20}[error], y)
    verdict, flagged = judged(f, given)
    precision, recall = precision_and_recall(flagged, wrong)
    assert precision > 0.85 and recall > (0.5 if error == "swapped" else 0.85)
    assert verdict.label.precision == pytest.approx(precision, abs=0.15)


def test_no_error_is_called_chance_where_none_is_large() -> None:
    """The standard error of a count of none is not 0: with it, no wrong label was found of a table in some orders."""
    found = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        f = 3.2 * generator.standard_normal(400)
        y = f + 0.5 * generator.standard_normal(400)
        wrong = np.arange(400) < 40
        y[wrong] = y[generator.permutation(40)]
        flagged = judged(torch.tensor(f), torch.tensor(y))[1].numpy()
        found.append((flagged & wrong).sum() / 40)
        assert not flagged.any() or (flagged & wrong).sum() > 0.85 * flagged.sum()
    assert np.mean(found) > 0.5


def test_losses_of_a_model_that_tells_nothing_flag_nothing() -> None:
    generator = torch.Generator().manual_seed(10)
    F, Y = torch.zeros(1000, 1), torch.randn(1000, 1, generator=generator)
    reference = torch.cdist(F, Y[:32]).square()
    losses = (F - Y).square().sum(1)
    verdict = loss_rule.fit_loss_verdict(loss_rule.loss_sums(losses, reference, torch.zeros(1000), torch.ones(1000)))
    assert verdict.noise_rate == 0
    assert not (loss_rule.loss_scores(losses, verdict) < verdict.label.value).any()
