"""The step of SGD: the largest eigenvalue by NumPy, and rates that hold where twice the bound does not."""

import numpy as np
import pytest
import torch

from diva_ray.core.curvature import largest_eigenvalue, stable_rate


@pytest.mark.parametrize("p", [1, 2, 60])
def test_the_largest_eigenvalue_is_found_from_the_upper_triangle(p):
    X = np.random.default_rng(p).standard_normal((200, p)) * np.linspace(1, 3, p)
    gram = torch.from_numpy(np.triu(X.T @ X))
    found, exact = largest_eigenvalue(gram), float(np.linalg.eigvalsh(X.T @ X)[-1])
    assert 0.9 * exact < found <= exact * (1 + 1e-12)
    assert largest_eigenvalue(torch.zeros(p, p, dtype=torch.float64)) == 0.0


def loss_after(rate, Z, batch, momentum, seed, steps=800):
    """Return the squared length of weights that should be 0 after SGD on rows drawn with replacement."""
    draw = np.random.default_rng(seed)
    w, velocity = np.ones(Z.shape[1]), np.zeros(Z.shape[1])
    for _ in range(steps):
        rows = Z[draw.integers(0, len(Z), batch)]
        velocity = momentum * velocity + rows.T @ (rows @ w) / batch
        w = w - rate * velocity
        if not w @ w < 1e12:
            return np.inf
    return float(w @ w)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch", [1, 8, 2000])
def test_the_rate_is_stable_and_a_few_times_as_much_is_not(momentum, batch):
    Z = np.random.default_rng(0).standard_normal((2000, 6)) * np.array([3, 1, 1, 1, 1, 0.5])
    sizes = (Z**2).sum(1)
    largest = float(np.linalg.eigvalsh(Z.T @ Z / len(Z))[-1])
    rate = stable_rate(largest, float((sizes**2).mean() / sizes.mean()), float(batch), momentum, 1.0, 0.0)
    assert loss_after(rate, Z, batch, momentum, 1) < 1e-2
    assert loss_after(rate * 8 * (1 + momentum), Z, batch, momentum, 1) > 1e6


def test_flatter_losses_take_more_and_decay_less():
    one = stable_rate(2.0, 8.0, 16.0, 0.5, 1.0, 0.0)
    assert one == pytest.approx(1 / (2 + 3 * 8 / 16))
    assert stable_rate(2.0, 8.0, 16.0, 0.5, 0.5, 0.0) == pytest.approx(2 * one)
    assert stable_rate(2.0, 8.0, 16.0, 0.5, 1.0, 1.0) == pytest.approx(1 / (1 / one + 1))
    assert stable_rate(0.0, 0.0, 16.0, 0.5, 1.0, 0.0) == float("inf")
