"""Log-odds of partners against loops over plain sums, and fits that recover what was planted."""

import math

import numpy as np
import pytest
import torch

from diva_ray.core import partners


def sides(n, d, wrong=0.0, noise=0.7, seed=0):
    draw = np.random.default_rng(seed)
    first = draw.standard_normal((n, d))
    second = first + noise * draw.standard_normal((n, d))
    rows = draw.permutation(n)[: round(wrong * n)]
    second[rows] = second[np.roll(rows, 1)]
    unit = lambda x: torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))  # noqa: E731
    belongs = np.ones(n, bool)
    belongs[rows] = False
    return unit(first), unit(second), belongs


def cosines(first, second, at):
    return (first * second).sum(1), first @ second[at].T, second @ first[at].T


def test_margin_odds_are_the_plain_sums():
    first, second, _ = sides(12, 5)
    at, codes = torch.arange(0, 12, 2), torch.arange(12) // 3
    own, rows, columns = cosines(first, second, at)
    others = codes[:, None] != codes[at][None]
    found = partners.margin_odds(own, rows, columns, others, 7.0)
    for i in range(12):
        kept = [j for j in range(6) if codes[i] != codes[at[j]]]
        across = np.mean([math.exp(7 * float(own[i])), *(math.exp(7 * float(rows[i, j])) for j in kept)])
        down = np.mean([math.exp(7 * float(own[i])), *(math.exp(7 * float(columns[i, j])) for j in kept)])
        true = 7 * float(own[i]) - (math.log(across) + math.log(down)) / 2
        np.testing.assert_allclose(float(found[i]), true, rtol=1e-12)


def test_cross_odds_are_those_of_the_pairs_they_would_be():
    first, second, _ = sides(10, 4)
    at, codes = torch.tensor([0, 3, 7]), torch.arange(10)
    _, rows, columns = cosines(first, second, at)
    others, apart = codes[:, None] != codes[at][None], codes[at][:, None] != codes[at][None]
    found = partners.cross_odds(rows, columns[at], others, apart, 5.0)
    for i in range(10):
        for j, other in enumerate(at.tolist()):
            if i == other:
                assert found[i, j] == -math.inf
                continue
            cosine = lambda a, b: math.exp(5 * float(first[a] @ second[b]))  # noqa: E731
            across = np.mean([cosine(i, k) for k in at.tolist() if k != i])
            down = np.mean([cosine(i, other), *(cosine(k, other) for k in at.tolist() if k != other)])
            true = math.log(cosine(i, other)) - (math.log(across) + math.log(down)) / 2
            np.testing.assert_allclose(float(found[i, j]), true, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_likeliest_share_is_the_best_of_a_fine_grid(share):
    draw = np.random.default_rng(1)
    odds = np.where(draw.random(4000) < share, -2.0, 2.5) + draw.standard_normal(4000)
    e, value = partners.likeliest_share(torch.from_numpy(odds))
    grid = np.linspace(0, 0.98, 2001)
    likelihood = [np.log(x + (1 - x) * np.exp(odds)).mean() for x in grid]
    assert abs(e - grid[np.argmax(likelihood)]) < 1e-3
    assert value >= max(likelihood) - 1e-9


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.6])
def test_fits_find_the_share_and_prefer_what_tells_more(wrong):
    first, second, belongs = sides(1000, 24, wrong, noise=1.0)
    draw = np.random.default_rng(5)
    blurred = [x + 0.2 * torch.from_numpy(draw.standard_normal(x.shape)) for x in (first, second)]
    blurred = [x / x.norm(dim=1, keepdim=True) for x in blurred]
    at, codes = torch.arange(0, 1000, 2), torch.arange(1000)
    others = codes[:, None] != codes[at][None]
    found, own, cross = [], [], []
    for a, b in ((first, second), blurred):
        mine, rows, columns = cosines(a, b, at)
        found.append(partners.fit_sharpness(mine, rows, columns, others))
        own.append(partners.margin_odds(mine, rows, columns, others, found[-1].sharpness))
        cross.append(partners.cross_odds(rows, columns[at], others, others[at], found[-1].sharpness))
    fitted = partners.fit_weights(found, torch.stack(own), torch.stack(cross), 1000)
    assert found[0].gain > found[1].gain
    assert fitted.similarities[0].weight > 3 * fitted.similarities[1].weight
    odds = partners.log_odds(torch.stack(own), fitted)
    e, _ = partners.likeliest_share(odds)
    assert abs(e - wrong) < 0.04
    posterior = (e / (e + (1 - e) * odds.exp())).numpy()
    assert abs(posterior.mean() - (~belongs).mean()) < 0.04
    null = torch.stack(cross)[:, torch.isfinite(cross[0])]
    every = torch.cat([partners.log_odds(null, fitted), odds])
    np.testing.assert_allclose(float(every.exp().mean()), 1.0, rtol=1e-5)


def test_the_order_of_sums_moves_no_weight():
    """Threads add in another order: the search must not end elsewhere."""
    first, second, _ = (x.float() for x in map(torch.as_tensor, sides(700, 9, 0.1, noise=1.0)))
    codes, at = torch.arange(700), torch.arange(512)
    others, order = codes[:, None] != codes[at][None], torch.randperm(512, generator=torch.Generator().manual_seed(0))
    own, rows, columns = cosines(first, second, at)
    alone = partners.fit_sharpness(own, rows, columns, others)
    mine = partners.margin_odds(own, rows, columns, others, alone.sharpness)[None]
    cross = partners.cross_odds(rows, columns[at], others, others[at], alone.sharpness)[None]
    one, other = (partners.fit_weights([alone], mine, x, 700) for x in (cross, cross[:, :, order]))
    np.testing.assert_allclose(one.similarities[0].weight, other.similarities[0].weight, rtol=1e-9)


def test_what_tells_nothing_gets_no_weight():
    draw = np.random.default_rng(0)
    own, cross = torch.from_numpy(draw.standard_normal((2, 300))), torch.from_numpy(draw.standard_normal((2, 300, 50)))
    nothing = [partners.Similarity(1.0, 0.0)] * 2
    fitted = partners.fit_weights(nothing, 0.01 * own, 0.01 * cross, 300)
    assert not fitted.informed
    assert partners.log_odds(own, fitted).abs().max() == 0


def test_alignment_counts_groups_and_finds_the_slope():
    first, second, _ = sides(400, 8, noise=0.5)
    unrelated = second[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    alone = torch.arange(400)
    aligned, z, slope = partners.alignment(first, second, alone)
    assert aligned
    np.testing.assert_allclose(slope, float((first * second).sum() / (first**2).sum()))
    assert not partners.alignment(first, unrelated, alone)[0]
    assert abs(partners.alignment(first, unrelated, alone)[1]) < 3
    copied = first[:20].repeat_interleave(20, 0), second[:20].repeat_interleave(20, 0)
    grouped = partners.alignment(*copied, torch.arange(20).repeat_interleave(20))[1]
    assert grouped < z / 3, "copies are no further evidence"
    assert partners.alignment(first[:3], second[:3], torch.zeros(3).long()) == (False, 0.0, 0.0)
