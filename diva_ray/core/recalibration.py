"""Recalibration: how often classes of every log-odds are given, down to those that only wrong labels can be."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.histogram import LIMIT, ODDS, Histogram, cell_of, count_cells, edges_of
from diva_ray.core.links import Link, probabilities
from diva_ray.core.verdict import Recalibration

ENTRIES = 2_000_000  # of rows x classes that are judged at a time


def odds_of_classes(
    F: Float[Tensor, "n c"], y: Int[Tensor, " n"], weight: Float[Tensor, " n"], link: Link
) -> Histogram:
    """Return the histogram of the log-odds of all classes of every labelled row, given or not, (cells,).

    Of levelled outputs of at least two classes, codes (-1 does not count) and weights >= 0, as `links.link_sums`.
    """
    rows = torch.nonzero((y >= 0) & (weight > 0)).squeeze(1)
    counts = torch.zeros(ODDS[2], dtype=torch.float64, device=F.device)
    for part in rows.split(max(1, ENTRIES // F.shape[1])):
        p = probabilities(F[part], link)
        top = p.argmax(1, keepdim=True)
        others = p.scatter(1, top, 0.0).sum(1, keepdim=True)  # 1 - p loses the digits of the likeliest
        rest = (1 - p).scatter_(1, top, others)
        cells = cell_of(p.log_().sub_(rest.log_()), ODDS).view(-1)
        counts += count_cells(cells, weight[part].double().repeat_interleave(F.shape[1]), ODDS[2])
    return Histogram(counts, float(weight[rows].double().square().sum()))


def recalibrate(given: Float[Tensor, " cells"], sums: Histogram, classes: int, rate: float) -> Recalibration:
    """Return the likeliest log-odds of right labels, and share of wrong ones, by how often classes are given.

    A link gives every margin its odds by one curve and one sharpness. Where neither fits (two classes of four that the
    features cannot tell apart, next to two that they can), a sharp link whose misses are called wrong labels is the
    likelier one, although rows that are surely predicted hardly ever miss. So all log-odds l of a link are judged
    against what they predict: a class is the right one with p = sigmoid(shift + slope l), and given at the rate
    (1 - e) p + e (1 - p) / (c - 1), which no l can fall below. Every class of a row counts as one trial (a composite
    likelihood). Sought by L-BFGS from the link as it is; O(iterations cells).

    Args:
        given: weight of the given labels in every cell of log-odds.
        sums: from `odds_of_classes`, under the same link.
        classes: number of them, at least two.
        rate: the share of wrong labels under the link as it is, in (0, 1).

    References:
        Platt 1999, Probabilistic outputs for support vector machines (the sigmoid).
        Varin, Reid, Firth 2011, An overview of composite likelihood methods.
    """
    from scipy.optimize import minimize  # takes 0.4 s, which runs without wrong labels do not pay

    N, M = given.cpu().numpy(), sums.counts.cpu().numpy()
    centers, others = edges_of(ODDS)[:-1] + LIMIT / ODDS[2], classes - 1
    rest = np.maximum(M - N, 0.0)  # a label whose log-odds round into another cell than its class's

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        e, slope = 1 / (1 + math.exp(-x[0])), math.exp(x[2])
        p = 1 / (1 + np.exp(-np.clip(x[1] + slope * centers, -2 * LIMIT, 2 * LIMIT)))
        seen = (1 - e) * p + e * (1 - p) / others
        unseen = e * p + (1 - e / others) * (1 - p)  # 1 - seen, with all its digits
        value = N @ np.log(seen) + rest @ np.log(unseen)
        by_seen = N / seen - rest / unseen
        by_p = by_seen * (1 - e - e / others) * p * (1 - p)
        by_e = by_seen @ ((1 - p) / others - p)
        slopes = np.array([by_e * e * (1 - e), by_p.sum(), by_p @ centers * slope])
        return -value / N.sum(), -slopes / N.sum()

    start = np.array([math.log(rate / (1 - rate)), 0.0, 0.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=((-LIMIT, LIMIT), (-LIMIT, LIMIT), (-4, 4)))
    e, shift, slope = found.x
    return Recalibration(float(shift), math.exp(slope), 1 / (1 + math.exp(-e)))
