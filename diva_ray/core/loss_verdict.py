"""Verdicts on rows whose targets are not single classes: numbers, vectors, several labels.

`loss_sums`, `fit_loss_verdict`, then row by row `loss_scores` and `verdict.is_detrimental`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.verdict import LOSS, Cut, Histogram, Verdict, Z, _best_cut, _cell, _count, _edges, _universal_cut


def loss_sums(
    losses: Float[Tensor, " n"], reference: Float[Tensor, "n m"], z: Float[Tensor, " n"], weight: Float[Tensor, " n"]
) -> Histogram:
    """Return histograms of the rows' own losses, of losses against other rows' labels, and of z, one after another.

    Losses are of left-out outputs, >= 0; `reference` against m targets drawn from all rows, the same m for every block.
    """
    rows, m = weight > 0, reference.shape[1]
    w = weight[rows].double()
    cells, others = (_cell(x[rows].double().clamp_min(1e-30).log10(), LOSS) for x in (losses, reference))
    own, other = _count(cells, w, LOSS[2]), _count(others.flatten(), (w / m).repeat_interleave(m), LOSS[2])
    beside = _count(_cell(z[rows].double().asinh(), Z), w, Z[2])
    return Histogram(torch.cat([own, other, beside]), float(w.square().sum()))


def fit_loss_verdict(sums: Histogram) -> Verdict:
    """Return the cuts for targets that are not classes: numbers, vectors, several labels.

    A wrong label is taken for one drawn from another row: H = (1 - e) H_right + e H_other for the histograms of losses.
    Right labels only add to H, so e is at most the least tail ratio H(>t) / H_other(>t), two standard errors added
    (Storey 2002); the posterior e H_other / H (Efron 2004) is made monotone in the loss. Approximate: e and precision
    are upper estimates, fair where right and wrong losses overlap little. Nothing is an issue where a row's own label
    fits better than another's less than 60 % of the time. The cut on z is the universal one of `fit_verdict`.
    """
    own, other, beside = np.split(sums.counts.cpu().numpy(), [LOSS[2], 2 * LOSS[2]])
    total, reference = float(own.sum()), float(other.sum())
    rows = sums.rows(total)
    z = _universal_cut(beside, rows)
    if total == 0 or reference == 0:
        return Verdict(0.0, 0.0, Cut(0.0), z)
    edges = 10.0 ** _edges(LOSS)
    middle = float(edges[np.searchsorted(other.cumsum(), reference / 2) + 1])
    rate, posterior = _loss_posterior(own / total, other / reference, rows)
    k, figures = _best_cut(own[::-1], (own * posterior)[::-1], posterior[::-1] >= 0.5)
    fits_better = float((own.cumsum() - own / 2) @ other) / (total * reference)  # half of those that fit alike
    if k == 0 or fits_better < 0.6 or posterior @ own / total * rows < 2:
        return Verdict(math.log(middle), 0.0, Cut(0.0), z)
    return Verdict(math.log(middle), rate, Cut(float(middle / (middle + edges[LOSS[2] - k])), *figures), z)


def loss_scores(losses: Float[Tensor, " n"], verdict: Verdict) -> Float[Tensor, " n"]:
    """Return s / (s + loss), s the median loss against other rows' labels; an issue if below the cut."""
    s = math.exp(verdict.offset)
    return s / (s + losses.double().nan_to_num(0.0, posinf=1e30).clamp_min(0))


def _loss_posterior(own: np.ndarray, other: np.ndarray, rows: float) -> tuple[float, np.ndarray]:
    """Return e and the posterior of a wrong label in every cell, increasing with the loss; both histograms add to 1."""
    from scipy.optimize import isotonic_regression  # takes 0.4 s, which no other run pays

    tail, other_tail = own[::-1].cumsum()[::-1], other[::-1].cumsum()[::-1]
    bound = (tail + 2 * np.sqrt(tail / rows)) / np.maximum(other_tail, 1e-300)
    rate = float(min(1.0, bound[other_tail >= 0.02].min()))
    seen = own > 0
    fitted = isotonic_regression(np.minimum(rate * other[seen] / own[seen], 1.0), weights=own[seen]).x
    return rate, np.interp(np.arange(LOSS[2]), np.flatnonzero(seen), fitted)
