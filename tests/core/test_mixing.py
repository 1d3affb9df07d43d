"""Mixed outputs: found where one link cannot fit, left alone elsewhere, and as likely as an independent fit says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from diva_ray.core import links, mixing, noise


def linear_outputs(rows: int, centers: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return left-out least-squares outputs of Gaussian classes times 1 - h, given labels, leverages h, and the true
    probabilities."""
    g = torch.Generator().manual_seed(seed)
    c = len(centers)
    truth = torch.randint(c, (rows,), generator=g)
    X = centers[truth] + torch.randn(rows, centers.shape[1], generator=g, dtype=torch.float64)
    wrong = torch.rand(rows, generator=g) < share
    given = torch.where(wrong, (truth + torch.randint(1, c, (rows,), generator=g)) % c, truth)
    Z = torch.cat([X, torch.ones(rows, 1, dtype=torch.float64)], 1)
    Y = torch.nn.functional.one_hot(given, c).double()
    h = (torch.linalg.qr(Z).Q ** 2).sum(1)
    F = Z @ torch.linalg.lstsq(Z, Y).solution - h[:, None] * Y
    return F, given, h, (-torch.cdist(X, centers).square() / 2).softmax(1)


OVERLAPPING = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 1.5]], dtype=torch.float64)
APART = torch.tensor([[6.0, 0.0], [-3.0, 5.2], [-3.0, -5.2]], dtype=torch.float64)


def uniform_link(F: Tensor, y: Tensor) -> tuple[links.Link, float]:
    sums = links.link_sums(F, y, torch.ones(len(y)))
    link = links.fit_link(sums, F.shape[1])
    return link, links.noise_rate_at(sums, link, F.shape[1])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_mixed_outputs_give_the_true_probabilities(share: float) -> None:
    F, y, h, true = linear_outputs(4000, OVERLAPPING, share, 0)
    link, rate = uniform_link(F, y)
    mix = mixing.fit_mix(F, y, h, link, rate)
    assert mix is not None
    mixed = links.probabilities(mix.mixed(F), links.Link(np.inf, link.sharpness))
    before = float((links.probabilities(F, link) - true).abs().mean())
    assert float((mixed - true).abs().mean()) < 0.25 * before
    assert noise.fit_flips(F, y, h, link, rate) is None  # classes that overlap are none that flip into each other


def test_outputs_of_one_unit_are_left_alone() -> None:
    F, y, h, _ = linear_outputs(4000, APART, 0.1, 1)
    assert mixing.fit_mix(F, y, h, *uniform_link(F, y)) is None


@pytest.mark.parametrize(("rows", "classes"), [(4000, 2), (400, 4), (4000, 12)])
def test_two_classes_or_few_rows_are_left_alone(rows: int, classes: int) -> None:
    centers = torch.randn(classes, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    F, y, h, _ = linear_outputs(rows, centers, 0.1, 2)
    assert mixing.fit_mix(F, y, h, *uniform_link(F, y)) is None


def test_labels_are_not_read_off_outputs_that_few_features_fix() -> None:
    """Eight classes of two features: outputs lie in a plane, but for what left-out ones tell of their own label."""
    centers = 1.5 * torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    F, y, h, true = linear_outputs(4000, centers, 0.05, 4)
    weights, bias, _, free = mixing._mixed(F, y, h, 0.05)
    assert free == 3 * 7
    p = (F @ weights + bias).softmax(1)
    assert float((p.argmax(1) == y).double().mean()) < float((true.argmax(1) == y).double().mean()) + 0.02
    assert float((p - true).abs().mean()) < 0.02
    leaking, off, _, _ = mixing._mixed(F, y, 0 * h, 0.05)  # as if outputs told nothing of it
    assert float(((F @ leaking + off).argmax(1) == y).double().mean()) > 0.9


def test_the_likelihood_is_that_of_an_independent_search() -> None:
    F, y, h, _ = linear_outputs(600, OVERLAPPING[1:], 0.1, 3)
    weights, bias, found, free = mixing._mixed(F, y, h, 0.05)
    X, at = F.numpy(), y.numpy()
    # Three outputs that add up to one, but for h, lie in a plane.
    X = (X - X.mean(0)) @ np.linalg.svd(X - X.mean(0), full_matrices=False)[2][:2].T
    assert free == 3 * 2

    def loss(x: np.ndarray) -> float:
        W, b, e = x[:6].reshape(2, 3), x[6:9], 1 / (1 + np.exp(-x[9]))
        logits = X @ W + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        own = (p / p.sum(1, keepdims=True))[np.arange(len(X)), at]
        return -np.log((1 - e) * own + e * (1 - own) / 2).sum()

    oracle = minimize(loss, np.r_[np.zeros(9), -2.0], method="BFGS", options={"maxiter": 2000})
    assert found == pytest.approx(-oracle.fun, abs=1e-3)
    p = (F @ weights + bias).softmax(1).gather(1, y[:, None])
    rates = np.linspace(0.001, 0.5, 2000)
    best = max(float(torch.log((1 - e) * p + e * (1 - p) / 2).sum()) for e in rates)
    assert best == pytest.approx(found, abs=0.05)


def test_the_likelihood_next_to_flips_is_that_of_an_independent_search() -> None:
    F, y, h, _ = linear_outputs(600, OVERLAPPING[1:], 0.0, 3)
    T = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    y[(y == 0) & (torch.rand(600, generator=torch.Generator().manual_seed(0)) < 0.3)] = 1
    found = mixing._mixed(F, y, h, 0.05, torch.from_numpy(T))[2]
    X, at = F.numpy(), y.numpy()
    X = (X - X.mean(0)) @ np.linalg.svd(X - X.mean(0), full_matrices=False)[2][:2].T

    def loss(x: np.ndarray) -> float:
        logits = X @ x[:6].reshape(2, 3) + x[6:9]
        p = np.exp(logits - logits.max(1, keepdims=True))
        return -np.log((p / p.sum(1, keepdims=True) @ T)[np.arange(len(X)), at]).sum()

    oracle = minimize(loss, np.zeros(9), method="BFGS", options={"maxiter": 2000})
    assert found == pytest.approx(-oracle.fun, abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_confusions_explain_a_masked_class_and_not_one_that_flips(share: float) -> None:
    """Outputs hardly ever say the class between two others, whose labels flip or not; T is right of the latter."""
    F, y, h, _ = linear_outputs(4000, OVERLAPPING, 0.0, 3)
    T = torch.eye(len(OVERLAPPING), dtype=torch.float64)
    T[0, 1], T[0, 0] = 0.3, 0.7
    y[(y == 0) & (torch.rand(4000, generator=torch.Generator().manual_seed(0)) < share)] = 1
    assert mixing.confusions_explain(F, y, h, 0.05, -5000.0, T, 1) == (share == 0)


def test_confusions_that_cannot_be_measured_explain_nothing() -> None:
    F, y, h, _ = linear_outputs(600, OVERLAPPING[1:], 0.1, 3)
    assert not mixing.confusions_explain(F, y, h, 0.05, -6.0, torch.eye(3, dtype=torch.float64), 2)


@pytest.mark.parametrize(("classes", "rate"), [(2, None), (2, 0.1), (3, None), (3, 0.1)])
def test_the_likelihood_of_boundaries_elsewhere_is_that_of_an_independent_search(
    classes: int, rate: float | None
) -> None:
    F, y, _, _ = linear_outputs(600, OVERLAPPING[:classes] / 2, rate or 0.0, 3)
    found = mixing.likeliest_boundaries(F, y, rate).likelihood
    at, likelihoods = y.numpy(), []
    for scale in (None, 0.3, 0.1, 0.03):
        G = F.numpy() if scale is None else np.arcsinh(F.numpy() / scale)

        def loss(x: np.ndarray, G: np.ndarray = G) -> float:
            logits = 5 * x[0] * G + np.append(0.0, x[1:classes])
            p = np.exp(logits - logits.max(1, keepdims=True))
            own = (p / p.sum(1, keepdims=True))[np.arange(len(G)), at]
            e = 0.0 if rate is None else 1 / (1 + np.exp(-x[-1]))
            return -np.log((1 - e) * own + e * (1 - own) / (classes - 1)).sum()

        start = np.r_[1.0, np.zeros(classes - 1), [-2.0] * (rate is not None)]
        likelihoods.append(-minimize(loss, start, method="BFGS", options={"maxiter": 2000}).fun)
    assert found == pytest.approx(max(likelihoods), abs=2e-3)


def outcomes(rows: int, classes: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return least-squares outputs of outcomes of chance that a few features tell a little of, given labels of which a
    share was replaced, and the true probabilities."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, 4, generator=g, dtype=torch.float64)
    slopes = torch.randn(4, classes, generator=g, dtype=torch.float64)
    p = (0.3 * X @ slopes + torch.linspace(0, 1.5, classes, dtype=torch.float64)).softmax(1)
    truth = p.multinomial(1, generator=g).squeeze(1)
    given = (truth + torch.randint(1, classes, (rows,), generator=g)) % classes
    given = torch.where(torch.rand(rows, generator=g) < share, given, truth)
    Z = torch.cat([X, torch.ones(rows, 1, dtype=torch.float64)], 1)
    Y = torch.nn.functional.one_hot(given, classes).double()
    return Z @ torch.linalg.lstsq(Z, Y).solution, given, p


@pytest.mark.parametrize("classes", [2, 5])
def test_boundaries_that_lie_elsewhere_give_the_probabilities_of_right_labels(classes: int) -> None:
    F, y, p = outcomes(4000, classes, 0.0, 3)
    found = mixing.fit_boundaries(F, y, links.Link(0.3, 8.0, near=True), 0.05)
    assert found is not None and found.near, "only what bends outputs and what is added is another"
    told, own = links.probabilities(F, found), y[:, None]
    likelihood = mixing.likeliest_boundaries(F, y, None).likelihood
    assert float(told.gather(1, own).log().sum()) == pytest.approx(likelihood, abs=1e-6)
    odds = links.log_odds(F, y, found)
    assert torch.allclose(odds.sigmoid(), told.gather(1, own).squeeze(1), atol=1e-12)
    assert torch.allclose(links.log_odds(F.float(), y, found).double(), odds, atol=1e-4)
    assert float((told - p).abs().mean()) < 0.02


def test_labels_that_wrong_ones_explain_better_have_no_boundaries_elsewhere() -> None:
    F, y, _, _ = linear_outputs(4000, APART, 0.3, 3)
    link, rate = uniform_link(F, y)
    assert rate > 0.2 and mixing.fit_boundaries(F, y, link, rate) is None
    F, y, _ = outcomes(59, 2, 0.0, 3)
    assert mixing.fit_boundaries(F, y, link, rate) is None, "fewer rows than shape a boundary"
