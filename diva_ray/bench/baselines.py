"""Published baselines of reweighting and detection, as small functions of arrays; nothing here is used by the tasks.

`threshold_closeness`, `reweighted_head`: weights. `data_oob`, `knn_shapley`: values of samples, low = bad.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RATES = (0.3, 1.0, 3.0, 10.0)  # learning rates tried, for features of unit mean squared norm
NEIGHBOURS = 5


def threshold_closeness(probability: np.ndarray) -> np.ndarray:
    """Return weights p (1 - p) + mean(p (1 - p)) of the given labels' probabilities p, scaled to mean 1.

    Closeness to the decision threshold with the smoothing constant of the paper, the mean closeness. There p is the
    mean over the epochs so far; for a fit in closed form it is the left-out probability.

    References:
        Chang, Learned-Miller, McCallum, Active Bias, NeurIPS 2017, SGD-WTC.
    """
    closeness = probability * (1 - probability)
    weight = closeness + closeness.mean()
    return weight / weight.mean() if weight.any() else np.ones_like(weight)


def reweighted_head(
    Z: Tensor,
    y: Tensor,
    trusted: tuple[Tensor, Tensor],
    classes: int,
    *,
    steps: int = 1500,
    batch: int = 100,
    seed: int,
) -> tuple[Tensor, float]:
    """Return a linear softmax head (p, c) trained by SGD with online gradient reweighting, and its learning rate.

    In every step a row's weight is the positive part of how fast a step along the row's gradient lowers the loss of a
    batch of trusted rows, sum 1 over the batch; momentum 0.9, cosine decay. The learning rate is the one of `RATES`
    with the least error on the trusted rows. About 6 batch p c operations a step.

    Args:
        Z, y: features with an intercept (n, p) and class codes (n,).
        trusted: the same of rows whose labels are right.

    References:
        Ren, Zeng, Yang, Urtasun, Learning to Reweight Examples for Robust Deep Learning, ICML 2018, Algorithm 1; the
        look-ahead derivative of a linear head is exact: -<grad_i, grad_trusted>.
    """
    Zt, yt = trusted
    heads = {}
    for rate in RATES:
        W = _train_head(Z, y, Zt, yt, classes, rate, steps, batch, seed)
        heads[rate] = (float(((Zt @ W).argmax(1) != yt).double().mean()), W)
    best = min(heads, key=lambda rate: heads[rate][0])
    return heads[best][1], best


def _train_head(
    Z: Tensor, y: Tensor, Zt: Tensor, yt: Tensor, classes: int, rate: float, steps: int, batch: int, seed: int
) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    W, velocity = torch.zeros(Z.shape[1], classes, dtype=Z.dtype), torch.zeros(Z.shape[1], classes, dtype=Z.dtype)
    for k in range(steps):
        rows = torch.randint(len(Z), (batch,), generator=draw)
        picked = torch.randint(len(Zt), (batch,), generator=draw)
        goal = Zt[picked].T @ _residual(Zt[picked], yt[picked], W) / batch  # gradient of the trusted batch's loss
        weight, r = example_weights(Z[rows], y[rows], W, goal)
        velocity = 0.9 * velocity + Z[rows].T @ (weight[:, None] * r)
        W = W - rate * 0.5 * (1 + np.cos(np.pi * k / steps)) * velocity
    return W


def example_weights(Z: Tensor, y: Tensor, W: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights max(0, <grad_i, goal>) / sum of a batch (all 0 where none is positive), and residuals p - y."""
    r = _residual(Z, y, W)
    weight = ((Z @ goal) * r).sum(1).clamp_min(0)
    total = weight.sum()
    return (weight / total if total > 0 else weight), r


def _residual(Z: Tensor, y: Tensor, W: Tensor) -> Tensor:
    r = torch.softmax(Z @ W, 1)
    r[torch.arange(len(y)), y] -= 1
    return r


def data_oob(X: np.ndarray, y: np.ndarray, groups: np.ndarray, *, trees: int = 200, seed: int) -> np.ndarray:
    """Return the share of trees grown on bags without a sample that predict its label (1 where every bag had it).

    Decision trees on bootstrap bags, sqrt(p) features a split: the random forest of the paper (800 trees there).

    Args:
        groups: codes from 0; rows of a group enter a bag together. `np.arange(n)`: bags of rows, as published.

    References:
        Kwon, Zou, Data-OOB: Out-of-bag Estimate as a Simple and Efficient Data Value, ICML 2023, eq. 3.
    """
    from sklearn.tree import DecisionTreeClassifier

    draw, n, units = np.random.default_rng(seed), len(y), int(groups.max()) + 1
    right, asked = np.zeros(n), np.zeros(n)
    for k in range(trees):
        copies = np.bincount(draw.integers(0, units, units), minlength=units)[groups]
        bag, left = np.repeat(np.arange(n), copies), copies == 0
        if left.any():
            tree = DecisionTreeClassifier(max_features="sqrt", random_state=seed * trees + k).fit(X[bag], y[bag])
            right[left] += tree.predict(X[left]) == y[left]
            asked[left] += 1
    return np.where(asked > 0, right / np.maximum(asked, 1), 1.0)


def knn_shapley(
    X: np.ndarray, y: np.ndarray, X_trusted: np.ndarray, y_trusted: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Return the exact Shapley value of every training sample for a k-nearest-neighbour vote on trusted rows.

    Of a subset S the vote is worth sum over its min(k, |S|) nearest to a trusted row of [same label] / k; with samples
    sorted by distance, s_n = [y_n = y] min(k, n) / (k n) and s_i = s_{i+1} + ([y_i = y] - [y_{i+1} = y]) / k
    min(k, i) / i. O(n log n) for every trusted row.

    References:
        Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019, Theorem 1.
    """
    n, value = len(y), np.zeros(len(y))
    place = np.arange(1, n)
    share = np.minimum(neighbours, place) / (neighbours * place)
    squares = (X**2).sum(1)
    for first in range(0, len(y_trusted), 256):
        rows = slice(first, first + 256)
        order = np.argsort(squares - 2 * X_trusted[rows] @ X.T, axis=1, kind="stable")
        same = (y[order] == y_trusted[rows, None]).astype(np.float64)
        steps = (same[:, :-1] - same[:, 1:]) * share
        sorted_values = np.empty_like(same)
        sorted_values[:, -1] = same[:, -1] * min(neighbours, n) / (neighbours * n)
        sorted_values[:, :-1] = sorted_values[:, -1:] + steps[:, ::-1].cumsum(1)[:, ::-1]
        np.add.at(value, order, sorted_values)
    return value / len(y_trusted)


def lower_cluster(values: np.ndarray) -> np.ndarray:
    """Return which values lie in the lower of two clusters (2-means): OpenDataVal's cut for wrong labels.

    References:
        Jiang et al., OpenDataVal: a Unified Benchmark for Data Valuation, NeurIPS 2023, section 4.1.
    """
    low, high = float(values.min()), float(values.max())
    for _ in range(100):
        cut = (low + high) / 2
        below = values < cut
        if not below.any() or below.all():
            break
        low, high = float(values[below].mean()), float(values[~below].mean())
    return values < (low + high) / 2
