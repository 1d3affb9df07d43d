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

UNDECIDED = 0.45  # errors per wrong label that are left where every row is taken for what it probably is
WORTH = 0.25  # of log likelihood, a wrong label
GROSS = 20  # cells, a factor of ten, that gross losses take up at least


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

    Losses of right labels are taken for s F(d1, d2), any s, d1 and d2: one hump on the scale of logarithms, whose tails
    may be long (errors of uneven size; a model that is not quite linear). Of wrong labels some are another row's, whose
    losses are known, and some gross: as likely anywhere from the median of those to the largest loss there is. The
    likeliest shares of both, of either or of none, less log(rows) / 2 for each (BIC). They are believed if they stand
    apart: at most UNDECIDED errors a wrong label are left where every row is taken for what it probably is, and each
    wrong label makes the losses likelier by WORTH. Long tails alone, which nothing tells from wrong labels, do neither
    (of four kinds drawn, the nearest left 0.49 and was worth 0.26). Where a row's own label fits better than another's
    less than 60 % of the time only gross ones are. The cut on z is the universal one of `fit_verdict`.
    """
    own, other, beside = np.split(sums.counts.cpu().numpy(), [LOSS[2], 2 * LOSS[2]])
    total, reference = float(own.sum()), float(other.sum())
    rows = sums.rows(total)
    z = _universal_cut(beside, rows)
    if total == 0 or reference == 0:
        return Verdict(0.0, 0.0, Cut(0.0), z)
    edges = 10.0 ** _edges(LOSS)
    middle = float(edges[np.searchsorted(other.cumsum(), reference / 2) + 1])
    fits_better = float((own.cumsum() - own / 2) @ other) / (total * reference)  # half of those that fit alike
    found = _wrong_losses(own / total, other / reference, rows, swapped=fits_better >= 0.6)
    if found is None:
        return Verdict(math.log(middle), 0.0, Cut(0.0), z)
    rate, posterior = found
    k, figures = _best_cut(own[::-1], (own * posterior)[::-1], posterior[::-1] >= 0.5)
    if k == 0:
        return Verdict(math.log(middle), 0.0, Cut(0.0), z)
    return Verdict(math.log(middle), rate, Cut(float(middle / (middle + edges[LOSS[2] - k])), *figures), z)


def loss_scores(losses: Float[Tensor, " n"], verdict: Verdict) -> Float[Tensor, " n"]:
    """Return s / (s + loss), s the median loss against other rows' labels; an issue if below the cut."""
    s = math.exp(verdict.offset)
    return s / (s + losses.double().nan_to_num(0.0, posinf=1e30).clamp_min(0))


def _wrong_losses(own: np.ndarray, other: np.ndarray, rows: float, *, swapped: bool) -> tuple[float, np.ndarray] | None:
    """Return the share of wrong labels and the posterior of one in every cell, rising with the loss; None if none are
    believed. Both histograms add to 1; `swapped`: whether labels of other rows are thought of."""
    from scipy.optimize import isotonic_regression  # 0.4 s to load, which no other run pays

    seen = np.flatnonzero(own)
    spread = np.convolve(other, np.full(5, 0.2), "same") + 1e-12  # few other labels leave gaps
    first = int(np.searchsorted(other.cumsum(), 0.5))
    gross = np.zeros_like(own)
    gross[first : max(int(seen[-1]), first + GROSS) + 1] = 1
    kinds = [np.log(spread)] * swapped + [np.log(np.maximum(gross / gross.sum(), 1e-300))]
    right, _ = _fit_losses(own, [])
    best = None
    for chosen in [[kind] for kind in kinds] + [kinds] * swapped:
        likelihood, logs = _fit_losses(own, chosen)
        parts = np.exp(logs - logs.max(0))
        fitted = isotonic_regression(1 - (parts[0] / parts.sum(0))[seen], weights=own[seen]).x
        wrong = np.interp(np.arange(len(own)), seen, fitted)
        expected = float(own @ wrong)
        gain = likelihood - right
        better = rows * gain - len(chosen) * math.log(max(rows, 2)) / 2
        apart = own @ np.minimum(wrong, 1 - wrong) <= UNDECIDED * expected and gain >= WORTH * expected
        if apart and better > (best[0] if best else 0.0) and rows * expected >= 2:
            best = better, expected, wrong
    return None if best is None else best[1:]


def _fit_losses(own: np.ndarray, kinds: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the mean log likelihood of the losses, and the log of what right labels, and of each kind of wrong ones,
    have in every cell, shares included: right ones as s F(d1, d2) in logarithms."""
    from scipy.optimize import minimize
    from scipy.special import betaln

    edges = _edges(LOSS) * math.log(10)
    middles, width, seen = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0], np.flatnonzero(own)

    def logs(x: np.ndarray, at: np.ndarray | slice) -> np.ndarray:
        place, (a, b) = x[0], np.exp(x[1:3])
        u = middles[at] - place + x[1] - x[2]
        shares = np.append(0.0, x[3:])
        shares -= np.logaddexp.reduce(shares)
        right = a * u - (a + b) * np.logaddexp(0, u) - betaln(a, b) + math.log(width)
        return np.stack([right, *(kind[at] for kind in kinds)]) + shares[:, None]

    def loss(x: np.ndarray) -> float:
        return -float(own[seen] @ np.logaddexp.reduce(logs(x, seen)))

    low, middle = np.interp([0.25, 0.5], own.cumsum(), middles)
    bounds = [
        (None, None),
        (-3, 5),
        (-2, 6),
        *[(-15, 0)] * len(kinds),
    ]  # a kind of wrong ones is no more than the right
    starts = [(middle, -0.7, 0.7), (low + 0.5, -0.7, 3.0), (low, 1.8, 3.0)]  # one number, long or short tails; several
    found = [minimize(loss, [*start, *[-3.0] * len(kinds)], method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(found, key=lambda one: one.fun)
    return -float(best.fun), logs(best.x, slice(None))
