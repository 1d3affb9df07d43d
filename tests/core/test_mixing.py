"""Mixed outputs: found where one link cannot fit, left alone elsewhere, and as likely as an independent fit says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from diva_ray.core import links, mixing, noise


def linear_outputs(rows: int, centers: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return least-squares outputs of Gaussian classes, given labels, which are wrong, and the true probabilities."""
    g = torch.Generator().manual_seed(seed)
    c = len(centers)
    truth = torch.randint(c, (rows,), generator=g)
    X = centers[truth] + torch.randn(rows, centers.shape[1], generator=g, dtype=torch.float64)
    wrong = torch.rand(rows, generator=g) < share
    given = torch.where(wrong, (truth + torch.randint(1, c, (rows,), generator=g)) % c, truth)
    Z = torch.cat([X, torch.ones(rows, 1, dtype=torch.float64)], 1)
    F = Z @ torch.linalg.lstsq(Z, torch.nn.functional.one_hot(given, c).double()).solution
    return F, given, wrong, (-torch.cdist(X, centers).square() / 2).softmax(1)


OVERLAPPING = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 1.5]], dtype=torch.float64)
APART = torch.tensor([[6.0, 0.0], [-3.0, 5.2], [-3.0, -5.2]], dtype=torch.float64)


def uniform_link(F: Tensor, y: Tensor) -> tuple[links.Link, float]:
    sums = links.link_sums(F, y, torch.ones(len(y)))
    link = links.fit_link(sums, F.shape[1])
    return link, links.noise_rate_at(sums, link, F.shape[1])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_mixed_outputs_give_the_true_probabilities(share: float) -> None:
    F, y, _, true = linear_outputs(4000, OVERLAPPING, share, 0)
    link, rate = uniform_link(F, y)
    mix = mixing.fit_mix(F, y, link, rate)
    assert mix is not None
    mixed = links.probabilities(mix.mixed(F), links.Link(np.inf, link.sharpness))
    before = float((links.probabilities(F, link) - true).abs().mean())
    assert float((mixed - true).abs().mean()) < 0.25 * before
    assert noise.fit_flips(F, y, link, rate) is None  # classes that overlap are none that flip into each other


def test_outputs_of_one_unit_are_left_alone() -> None:
    F, y, _, _ = linear_outputs(4000, APART, 0.1, 1)
    assert mixing.fit_mix(F, y, *uniform_link(F, y)) is None


@pytest.mark.parametrize(("rows", "classes"), [(4000, 2), (400, 4), (4000, 12)])
def test_two_classes_or_few_rows_are_left_alone(rows: int, classes: int) -> None:
    centers = torch.randn(classes, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    F, y, _, _ = linear_outputs(rows, centers, 0.1, 2)
    assert mixing.fit_mix(F, y, *uniform_link(F, y)) is None


def test_the_likelihood_is_that_of_an_independent_search() -> None:
    F, y, _, _ = linear_outputs(600, OVERLAPPING[1:], 0.1, 3)
    link = links.Link(np.inf, 8.0)
    weights, bias, found = mixing._mixed(8 * F, y, 0.05)
    X, at = F.numpy(), y.numpy()

    def loss(x: np.ndarray) -> float:
        W, b, e = x[:9].reshape(3, 3), x[9:12], 1 / (1 + np.exp(-x[12]))
        logits = X @ W + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        own = (p / p.sum(1, keepdims=True))[np.arange(len(X)), at]
        return -np.log((1 - e) * own + e * (1 - own) / 2).sum()

    oracle = minimize(loss, np.r_[8 * np.eye(3).ravel(), np.zeros(3), -2.0], method="BFGS", options={"maxiter": 2000})
    assert found == pytest.approx(-oracle.fun, abs=0.05)
    p = (8 * F @ weights + bias).softmax(1).gather(1, y[:, None])
    rates = np.linspace(0.001, 0.5, 2000)
    best = max(float(torch.log((1 - e) * p + e * (1 - p) / 2).sum()) for e in rates)
    assert best == pytest.approx(found, abs=0.05)
    even = found - 6 * float(np.log(600)) / 2  # of 8 parameters, for flips of 2
    assert mixing.confusions_explain(F, y, link, 0.05, even - 1, 2)
    assert not mixing.confusions_explain(F, y, link, 0.05, even + 1, 2)
