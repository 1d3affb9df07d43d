"""Mixing: probabilities of classes from all outputs of a row, where one curve for every class does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.links import Link, Mix, bent

ROWS = 30  # to a weight, of the sample: fewer fit themselves
MOST_STEPS = 300  # of L-BFGS; fewer leave the likelihood lower, which speaks for wrong labels
LEAST_RATE = 0.01  # of wrong labels, that the search starts with
MOST_LOGIT = 20.0  # of that rate


def fit_mix(F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, rate: float) -> Mix | None:
    """Return how outputs are mixed if that makes the given labels likelier by more than it costs; else None.

    Least-squares outputs of three classes and more have no common unit: a class between others hardly ever has the
    largest, two classes that overlap differ by little next to one that lies apart, and under one link their right
    labels look wrong. The logits of the link become p = softmax(W f + b), next to a share of labels replaced at random,
    by maximum likelihood on left-out outputs: c^2 - 1 parameters, which pay log(m) / 2 each (BIC) against a link of any
    sharpness. Asked of ROWS rows to each of c^2 weights, or the sample fits its own labels: AP of 0.63 to 0.52 with
    eight rows. Local optimum, from the link as it is; O(iterations m c^2).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        link: the calibration they have.
        rate: share of wrong labels under it.

    References:
        Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural networks (matrix scaling).
        Hastie, Tibshirani, Friedman 2009, The elements of statistical learning, 4.2 (classes masked by others).
    """
    m, c = F.shape
    if c < 3 or m < ROWS * c * c:
        return None
    G = link.sharpness * bent(F, link.scale)
    _, unmixed = _maximise(lambda x: x * G, lambda slope: (slope * G).sum(), np.ones(1), y, rate)
    weights, bias, mixed = _mixed(G, y, rate)
    if not mixed - unmixed > (c * c - 2) * math.log(m) / 2:  # or not a number
        return None
    return Mix(link.scale, weights, bias / link.sharpness)


def confusions_explain(
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, rate: float, likelihood: float, free: int
) -> bool:
    """Return whether outputs that are mixed explain the given labels as well as a model of flips with `free`
    parameters does, next to labels replaced at random.

    Outputs of a linear model on classes in order (ratings, quantiles) hardly ever say a middle class; that looks like
    labels that were flipped, until every class gets a mix of all outputs. Both sides pay log(m) / 2 a parameter (BIC).
    Sought only where the likelihood it may at most reach, 0, would do: of many classes confusions cost more than they
    can explain. O(iterations m c^2).

    Args:
        F, y, link, rate: as of `fit_mix`.
        likelihood: log likelihood of the given labels under the model of flips.
    """
    m, c = F.shape
    least = likelihood + (c * c - 1 - free) * math.log(m) / 2
    return least < 0 and _mixed(link.sharpness * bent(F, link.scale), y, rate)[2] >= least


def _mixed(G: Tensor, y: Tensor, rate: float) -> tuple[Tensor, Tensor, float]:
    """Return weights and bias of the likeliest mix G weights + bias of logits, and the log likelihood."""
    c = G.shape[1]
    mean, spread = G.mean(0), G.std(0).clamp_min(1e-300)
    X = torch.cat([(G - mean) / spread, torch.ones(len(G), 1, dtype=G.dtype)], 1)  # of one unit, for L-BFGS
    found, likelihood = _maximise(
        lambda x: G + X @ x.view(c + 1, c), lambda slope: (X.T @ slope).view(-1), np.zeros((c + 1) * c), y, rate
    )
    W, b = torch.from_numpy(found).view(c + 1, c).split((c, 1))
    weights = W / spread[:, None]
    return torch.eye(c, dtype=G.dtype) + weights, b[0] - mean @ weights, likelihood


def _maximise(
    logits: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], start: np.ndarray, y: Tensor, rate: float
) -> tuple[np.ndarray, float]:
    """Return the likeliest parameters of logits (m, c) beside labels replaced at random, and the log likelihood;
    `back` takes its gradient by the logits to that by the parameters."""
    from scipy.optimize import minimize  # takes 0.4 s, which runs without wrong labels do not pay

    at = y[:, None]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = logits(torch.from_numpy(x[1:])).softmax(1)
        others, e = p.shape[1] - 1, 1 / (1 + math.exp(-x[0]))
        own = p.gather(1, at)
        kept = 1 - e - e / others
        q = e / others + kept * own  # of the given label
        slope = kept * own / q * p
        slope.scatter_add_(1, at, -kept * own / q)
        by_rate = ((1 / others - own * (1 + 1 / others)) / q).sum() * e * (1 - e)
        return -float(q.log().sum()), np.concatenate([[-float(by_rate)], back(slope).reshape(-1).numpy()])

    first = min(max(rate, LEAST_RATE), 1 - LEAST_RATE)
    x = np.concatenate([[math.log(first / (1 - first))], start])
    bounds = [(-MOST_LOGIT, MOST_LOGIT), *[(None, None)] * len(start)]
    found = minimize(loss, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MOST_STEPS})
    return found.x[1:], -float(found.fun)
