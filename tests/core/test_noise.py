"""Noise that is not drawn at random: flips are found and nothing else is, neighbours merge, doubt needs evidence."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diva_ray.core import labellers, links, noise
from diva_ray.core import verdict as rule
from diva_ray.core.flip_rates import Flips, settle_flips
from diva_ray.core.histogram import LIMIT


def outputs(rows: int, classes: int, seed: int, spread: float = 0.2) -> tuple[Tensor, Tensor, torch.Generator]:
    """Outputs that point at a class, the class, and the generator."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    F = spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    F[torch.arange(rows), truth] += 0.7
    return F, truth, generator


def flipped(rows: int, classes: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every class flips into the next; outputs are those of a model of the given labels."""
    F, truth, generator = outputs(rows, classes, seed)
    F = (1 - share) * F + share * F.roll(1, 1)
    wrong = torch.rand(rows, generator=generator) < share
    return F, torch.where(wrong, (truth + 1) % classes, truth), wrong


def fit(F: Tensor, y: Tensor, right: float = -math.inf) -> tuple[links.Link, Flips] | None:
    link = links.fit_link(links.link_sums(F, y, torch.ones(len(y))), F.shape[1])
    odds = links.log_odds(F, y, link)
    uniform = rule.fit_verdict(rule.verdict_sums(odds, torch.zeros(len(y)), torch.ones(len(y))), F.shape[1])
    return noise.fit_flips(F, y, torch.zeros(len(y)), link, uniform.noise_rate, right)


@pytest.mark.parametrize(("classes", "share"), [(3, 0.3), (10, 0.2), (40, 0.3)])
def test_flips_between_classes_are_measured_and_found(classes: int, share: float) -> None:
    F, y, wrong = flipped(4000, classes, share, seed=classes)
    found = fit(F, y)
    assert found is not None
    link, flips = found
    following = flips.rates[torch.arange(classes), (torch.arange(classes) + 1) % classes]
    torch.testing.assert_close(flips.rates.sum(1), torch.ones(classes, dtype=torch.float64))
    assert float(following.mean()) == pytest.approx(share, abs=0.06)
    odds = noise.flip_log_odds(F, y, link, flips)
    verdict = rule.fit_verdict(rule.verdict_sums(odds, torch.zeros(4000), torch.ones(4000)), classes, flips=True)
    issue = rule.label_scores(odds, verdict) < verdict.label.value
    precision = float((issue & wrong).sum() / issue.sum())
    assert 2 * float((issue & wrong).sum()) / float(issue.sum() + wrong.sum()) > 0.85
    assert verdict.label.precision == pytest.approx(precision, abs=0.1)
    assert noise.dependence_of_suspects(F, y, link, flips, verdict) > 0.8


@pytest.mark.parametrize(("classes", "share"), [(2, 0.2), (2, 0.4), (3, 0.2), (10, 0.4)])
def test_one_class_that_flips_into_another_is_found_and_its_rate_measured(classes: int, share: float) -> None:
    F, truth, generator = outputs(3000, classes, seed=classes)
    T = torch.eye(classes, dtype=torch.float64)
    T[1, 0], T[1, 1] = share, 1 - share
    wrong = (truth == 1) & (torch.rand(3000, generator=generator) < share)
    F, y = F @ T, torch.where(wrong, 0, truth)  # as of a fit to the given labels
    found = fit(F, y)
    assert found is not None
    link, flips = found
    assert float(flips.rates[1, 0]) == pytest.approx(share, abs=0.06)
    suspects = noise.flip_log_odds(F, y, link, flips) < 0
    assert int((suspects & wrong).sum()) > 0.85 * int(wrong.sum())
    assert int((suspects & ~wrong).sum()) < 0.15 * int(suspects.sum())
    q = noise.probabilities(flips.true_outputs(F), link) @ flips.rates
    as_likely = float(q.gather(1, y[:, None]).log().sum())
    assert fit(F, y, right=as_likely - 1) is None, "right labels of classes with boundaries elsewhere, say"
    assert fit(F, y, right=as_likely - 100) is not None
    assert fit(F, truth) is None and fit(outputs(3000, classes, seed=classes)[0], truth) is None


def test_two_classes_that_mix_both_ways_among_many_are_two_that_look_alike() -> None:
    F, truth, generator = outputs(3000, 10, seed=0)
    T = torch.eye(10, dtype=torch.float64)
    T[:2, :2] = torch.tensor([[0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    swapped = (truth < 2) & (torch.rand(3000, generator=generator) < 0.4)
    assert fit(F @ T, torch.where(swapped, 1 - truth, truth)) is None


def test_flips_are_taken_out_of_outputs_as_they_came_in() -> None:
    T = torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.1, 0.0, 0.9]], dtype=torch.float64)
    F = outputs(50, 3, seed=0)[0]
    torch.testing.assert_close(Flips(T, T).true_outputs(F @ T), F)
    assert Flips(T).true_outputs(F) is F


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_rates_without_an_inverse_are_not_taken_out(share: float) -> None:
    """Of a class half is called another and of that half the first: no outputs of true labels can be had."""
    F, truth, generator = outputs(2000, 2, seed=0)
    T = torch.tensor([[1 - share, share], [share, 1 - share]], dtype=torch.float64)
    y = torch.where(torch.rand(2000, generator=generator) < share, 1 - truth, truth)
    free = ~torch.eye(2, dtype=torch.bool)
    _, flips, _, likelihood = settle_flips(F @ T, y, free, T, links.Link(0.3, 1.0))
    assert flips.taken is None and torch.isfinite(torch.tensor(likelihood))


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_clean_labels_and_labels_replaced_at_random_are_no_flips(classes: int, share: float) -> None:
    F, truth, generator = outputs(4000, classes, seed=classes, spread=0.3)
    wrong = torch.rand(4000, generator=generator) < share
    y = torch.where(wrong, (truth + torch.randint(1, classes, (4000,), generator=generator)) % classes, truth)
    assert fit(F, y) is None


@pytest.mark.parametrize("classes", [3, 20])
def test_hard_classes_are_no_flips(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    F = 0.25 * torch.randn(4000, classes, generator=generator, dtype=torch.float64)
    assert fit(F, torch.multinomial((12 * F).softmax(1), 1, generator=generator).squeeze(1)) is None


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_outputs_that_say_nothing_have_no_flips(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(2000, generator=generator) > share).long()
    F = torch.tensor([share, 1 - share], dtype=torch.float64) + 0.02 * torch.randn(2000, 2, generator=generator)
    assert fit(F.double(), y) is None


@pytest.mark.parametrize(
    ("F", "y"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.ones(10, 1), torch.zeros(10, dtype=torch.int64)),
        (torch.zeros(40, 4), torch.arange(4).repeat(10)),
        (torch.eye(2).repeat(20, 1), torch.tensor([1, 0] * 20)),
        (torch.rand(9, noise.MOST_CLASSES + 1), torch.arange(9)),
    ],
)
def test_degenerate_data_have_no_flips(F: Tensor, y: Tensor) -> None:
    assert noise.fit_flips(F, y, torch.zeros(len(y)), links.Link(0.3, 8.0), 0.1) is None


def test_uniform_flip_rates_give_the_log_odds_of_the_uniform_model() -> None:
    F, y, _ = outputs(200, 5, seed=1)
    e, link = 0.2, links.Link(0.3, 12.0)
    flips = Flips(torch.full((5, 5), e / 4, dtype=torch.float64).fill_diagonal_(1 - e))
    p = links.probabilities(F, link).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(
        noise.flip_log_odds(F, y, link, flips), (p * (1 - e) / ((1 - p) * e / 4)).log(), rtol=1e-9, atol=1e-12
    )
    y[0] = -1
    assert noise.flip_log_odds(F, y, link, flips)[0] == LIMIT


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 80), max_size=4), st.integers(0, 10))
def test_the_nearest_row_does_not_depend_on_the_cut_into_blocks(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    U = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    code, facts = torch.arange(80) // 2, torch.rand(80, 4, generator=generator, dtype=torch.float64)
    at = torch.arange(0, 80, 7)
    edges = [0, *sorted(cuts), 80]
    parts = [
        labellers.nearest_rows(U[at], code[at], U[a:b], code[a:b], facts[a:b], 1)
        for a, b in pairwise(edges)
        if b > a or len(edges) > 2
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    for k, row in enumerate(at.tolist()):
        others = [j for j in range(80) if code[j] != code[row]]
        cosines = [float(torch.cosine_similarity(U[row, 1:], U[j, 1:], dim=0)) for j in others]
        best = others[max(range(len(others)), key=cosines.__getitem__)]
        assert float(merged.cosine[k]) == pytest.approx(max(cosines), rel=1e-9)
        assert float(merged.facts[k, 0]) == pytest.approx(float(U[row] @ U[best]), rel=1e-9)
        torch.testing.assert_close(merged.facts[k, 1:], facts[best], rtol=0, atol=0)


def doubted(slips: float, misses: float, seed: int) -> float:
    """The doubt found where labels slip from row to row, and where whole neighbourhoods differ from the outputs."""
    rows, classes = 4000, 4
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(rows // 4, (rows,), generator=generator)  # about four rows in each place
    U = torch.randn(rows // 4, 8, generator=generator, dtype=torch.float64)[place]
    U = U + 1e-3 * torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    seen = torch.randint(classes, (rows // 4,), generator=generator)
    other = (seen + torch.randint(1, classes, (rows // 4,), generator=generator)) % classes
    unsure = torch.rand(rows // 4, generator=generator) < 0.35
    F = torch.zeros(rows // 4, classes, dtype=torch.float64)
    F[torch.arange(rows // 4), seen] = 1.0
    F[torch.arange(rows // 4)[unsure], other[unsure]] = 0.8
    local = torch.rand(rows // 4, generator=generator)[place] < misses
    single = torch.rand(rows, generator=generator) < slips
    y = torch.where(unsure[place] & (local | single), other[place], seen[place])
    facts = torch.cat([torch.tensor([[1.0, 0.02, 1.0]]).double().expand(rows, 3), y[:, None], F[place]], 1)
    near = labellers.nearest_rows(1e-3 * U, torch.arange(rows), 1e-3 * U, torch.arange(rows), facts, 0)
    return labellers.find_doubt(facts, near, links.Link(float("inf"), 6.0), torch.ones(classes).double(), 0.0)


def test_doubt_is_what_neighbours_do_not_share() -> None:
    assert doubted(slips=0.23, misses=0.0, seed=0) > 0.8
    assert doubted(slips=0.0, misses=0.23, seed=1) == 0


def test_leaving_a_pair_out_is_the_refit_without_both() -> None:
    generator = torch.Generator().manual_seed(3)
    Z = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    y, alpha = torch.arange(30) % 3, torch.rand(30, generator=generator, dtype=torch.float64) + 0.5
    Y = torch.nn.functional.one_hot(y, 3).double()
    A = Z.T @ (alpha[:, None] * Z) + torch.eye(5, dtype=torch.float64)
    h = alpha * (Z @ torch.linalg.inv(A) * Z).sum(1)
    e = (Y - Z @ torch.linalg.solve(A, Z.T @ (alpha[:, None] * Y))) / (1 - h)[:, None]
    k = Z[0] @ torch.linalg.solve(A, Z[1])
    found, _ = labellers.without_both(e[:1], e[1:2], alpha[:1], alpha[1:2], h[:1], h[1:2], k[None])
    kept = slice(2, None)
    B = Z[kept].T @ (alpha[kept, None] * Z[kept]) + torch.eye(5, dtype=torch.float64)
    W = torch.linalg.solve(B, Z[kept].T @ (alpha[kept, None] * Y[kept]))
    torch.testing.assert_close(found[0], Y[0] - Z[0] @ W, rtol=1e-9, atol=0)


@pytest.mark.parametrize("classes", [3, 20])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_class_dependence_is_the_share_that_keeps_to_one_pair(classes: int, share: float) -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(classes, (3000,), generator=generator)
    anything = (truth + torch.randint(1, classes, (3000,), generator=generator)) % classes
    kept = torch.rand(3000, generator=generator) < share
    shares = torch.full((classes,), 1 / classes, dtype=torch.float64)
    found = noise.class_dependence(torch.where(kept, (truth + 1) % classes, anything), truth, shares)
    assert found == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("share", [0.5, 0.63, 0.9])
@pytest.mark.parametrize("suspects", [30, 200])
def test_uneven_classes_that_flip_at_random_are_not_class_dependent(suspects: int, share: float) -> None:
    generator = torch.Generator().manual_seed(6)
    shares = torch.tensor([share, 1 - share], dtype=torch.float64)
    draws = (torch.rand(400, suspects, generator=generator) >= share).long()
    alarms = sum(noise.class_dependence(1 - truth, truth, shares) > 0 for truth in draws)
    assert alarms <= 12


def test_few_suspects_say_nothing_of_classes() -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(3, (3000,), generator=generator)
    anything = (truth + torch.randint(1, 3, (3000,), generator=generator)) % 3
    shares = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert noise.class_dependence(anything[:10], truth[:10], shares) == 0
