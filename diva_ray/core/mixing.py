"""Mixing: probabilities of classes from all outputs of a row, where one curve for every class does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.links import SCALES, Link, Mix, bent

ROWS = 30  # to a weight, of the sample: fewer fit themselves
SPREAD = 3.0  # of outputs, in what they tell of their own label; of classes in order, ten loses what tells them
MOST_STEPS = 300  # of L-BFGS; fewer leave the likelihood lower, which speaks for wrong labels
START = 8.0  # sharpness that the search starts with
LEAST_RATE = 0.01  # of wrong labels, that the search starts with
MOST_LOGIT = 20.0  # of that rate


def fit_mix(
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], h: Float[Tensor, " m"], link: Link, rate: float
) -> Mix | None:
    """Return how outputs are mixed if that makes the given labels likelier by more than it costs; else None.

    Least-squares outputs of three classes and more have no common unit: a class between others hardly ever has the
    largest, two classes that overlap differ by little next to one that lies apart, and under one link their right
    labels look wrong. Levelled outputs become p = softmax(W f + b), next to a share of labels replaced at random, by
    maximum likelihood on left-out outputs (`_mixed`): up to c^2 - 1 parameters, which pay log(m) / 2 each (BIC) against
    the link under any sharpness. Asked of ROWS rows to each of c^2 weights, or the sample fits its own labels: AP of
    0.63 to 0.52 with eight rows. Local optimum, from a softmax of F; O(iterations m c^2).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        h: their leverages.
        link: the calibration they have.
        rate: share of wrong labels under it.

    References:
        Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural networks (matrix scaling).
        Hastie, Tibshirani, Friedman 2009, The elements of statistical learning, 4.2 (classes masked by others).
    """
    m, c = F.shape
    if c < 3 or m < ROWS * c * c:
        return None
    _, unmixed = _sharpened(link.sharpness * bent(F, link.scale), y, rate)
    weights, bias, mixed, free = _mixed(F.double(), y, h, rate)
    if not mixed - unmixed > (free - 1) * math.log(m) / 2:  # or not a number
        return None
    return Mix(weights / link.sharpness, bias / link.sharpness)


def confusions_explain(
    F: Float[Tensor, "m c"],
    y: Int[Tensor, " m"],
    h: Float[Tensor, " m"],
    rate: float,
    likelihood: float,
    T: Float[Tensor, "c c"],
    free: int,
) -> bool:
    """Return whether outputs that are mixed explain the given labels as well, next to labels replaced at random, as
    mixed outputs do next to flips.

    Outputs of a linear model on classes in order (ratings, quantiles) hardly ever say a middle class; that looks like
    labels that were flipped, until every class gets a mix of all outputs. Flips pay log(m) / 2 a rate (BIC). Sought
    only where confusions can be measured: not of many classes, where their c^2 - 1 parameters are more than rows, or,
    at 1 each (AIC), cost more than they may explain. O(iterations m c^2), twice.

    Args:
        F, y, h, rate: as of `fit_mix`.
        likelihood: log likelihood of the given labels under flips of outputs that are not mixed.
        T: rates (truth, given) of flips, of which `free` were fitted.
    """
    parameters = F.shape[1] ** 2 - 1
    if parameters > len(F) or likelihood + parameters - free >= 0:
        return False
    right, flipped = (_mixed(F.double(), y, h, rate, flips)[2] for flips in (None, T))
    return flipped - right <= free * math.log(len(F)) / 2


def fit_boundaries(F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, rate: float) -> Link | None:
    """Return the link of right labels of classes whose boundaries lie elsewhere, if it explains the given labels as
    well as wrong ones next to such boundaries do (`likeliest_boundaries`); else None, as of fewer than ROWS rows to a
    class, which fit themselves.

    Args:
        F, y: as of `likeliest_boundaries`.
        link: the calibration they have.
        rate: share of wrong labels under it.
    """
    if len(F) < ROWS * F.shape[1]:
        return None
    some_wrong, right = (likeliest_boundaries(F, y, e) for e in (rate, None))
    if some_wrong.likelihood - right.likelihood > math.log(len(F)) / 2 or not right.sharpness > 0:
        return None
    return replace(link, scale=right.scale, sharpness=right.sharpness, shift=right.shift)


class Boundaries(NamedTuple):
    """Log likelihood of the given labels under p ~ exp(sharpness g(f) + shift), as of `links.Link`."""

    likelihood: float
    scale: float
    sharpness: float
    shift: Float[Tensor, " c"]


def likeliest_boundaries(F: Float[Tensor, "m c"], y: Int[Tensor, " m"], rate: float | None) -> Boundaries:
    """Return the likeliest probabilities of the given labels where classes may have their boundaries elsewhere.

    Outputs of a linear model are fitted to squares: where a class is rare, or little is told of any, its probability
    has another boundary and a softer curve than the links of `links.link_sums`. Wrong labels flatten a curve at its
    ends, and take the place of both. So p = softmax(b g(F) + a), any b and a of every class, under the scale that suits
    best. O(scales iterations m c).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        rate: share of labels replaced at random, that the search starts with; None: all are right.

    References:
        Platt 1999, Probabilistic outputs for support vector machines.
    """
    T = torch.eye(F.shape[1], dtype=torch.float64) if rate is None else None
    start = np.append(START, np.zeros(F.shape[1]))
    found = []
    for scale in SCALES:
        unit = 1.0 if math.isinf(scale) else scale
        G = bent(F, scale) / unit
        at, likelihood = _maximise(
            lambda x, G=G: x[0] * G + x[1:],
            lambda slope, G=G: torch.cat([(slope * G).sum()[None], slope.sum(0)]),
            start, y, rate or 0.0, T,
        )  # fmt: skip
        found.append(Boundaries(likelihood, scale, float(at[0]) / unit, torch.from_numpy(at[1:])))
    return max(found, key=lambda one: one.likelihood)


def _sharpened(G: Tensor, y: Tensor, rate: float) -> tuple[float, float]:
    """Return the factor under which logits are likeliest, and the log likelihood."""
    found, likelihood = _maximise(lambda x: x * G, lambda slope: (slope * G).sum(), np.ones(1), y, rate)
    return float(found[0]), likelihood


def _mixed(F: Tensor, y: Tensor, h: Tensor, rate: float, T: Tensor | None = None) -> tuple[Tensor, Tensor, float, int]:
    """Return weights and bias of the likeliest logits F weights + bias, the log likelihood, and the number of
    parameters; beside labels replaced at random, or flipped with rates T.

    Left-out outputs tell their own label: times 1 - h they are those of the fit, which are linear in the features, less
    h times the label. Where directions of outputs are fixed by few features, or hardly differ, nothing but that is left
    in them, and any label could be read off; those that do not spread SPREAD times as far as h are sharpened alone.
    """
    c, first = F.shape[1], START
    first *= _sharpened(first * F, y, rate)[0]
    G, mean = first * F, first * F.mean(0)
    spread, V = torch.linalg.eigh((G - mean).T @ (G - mean) / len(G))
    spread = spread.clamp_min(0).sqrt()
    kept = spread > SPREAD * first * float(h.square().mean().sqrt())
    to = V[:, kept] / spread[kept]
    X = torch.cat([(G - mean) @ to, torch.ones(len(G), 1, dtype=G.dtype)], 1)
    shape = (X.shape[1], c)
    found, likelihood = _maximise(
        lambda x: G + X @ x.view(shape), lambda slope: (X.T @ slope).view(-1), np.zeros(shape[0] * c), y, rate, T
    )
    W, b = torch.from_numpy(found).view(shape).split((shape[0] - 1, 1))
    weights = to @ W
    return first * (torch.eye(c, dtype=G.dtype) + weights), b[0] - mean @ weights, likelihood, shape[0] * (c - 1)


def _maximise(
    logits: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    start: np.ndarray,
    y: Tensor,
    rate: float,
    T: Tensor | None = None,
) -> tuple[np.ndarray, float]:
    """Return the likeliest parameters of logits (m, c) beside labels replaced at random, or flipped with rates T, and
    the log likelihood; `back` takes its gradient by the logits to that by the parameters."""
    from scipy.optimize import minimize  # takes 0.4 s, which runs without wrong labels do not pay

    at = y[:, None]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = logits(torch.from_numpy(x[1:])).softmax(1)
        if T is not None:
            given = p * T.T[y]
            q = given.sum(1).clamp_min(1e-300)
            return -float(q.log().sum()), np.concatenate([[0.0], -back(given / q[:, None] - p).reshape(-1).numpy()])
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
