"""Verdicts on rows: which labels are probably wrong, which samples are detrimental, and how far to trust both.

Three rounds of fixed-size sums over rows, then a decision row by row. No truth, no number of errors is given.

0. `class_sums`: how high the left-out output of each class is on rows of that class; `level` evens classes out.
1. `link_sums`: histograms of the log-odds of the given label under a grid of calibrations of the left-out outputs;
   `fit_link` picks one by likelihood, with the share of wrong labels.
2. `verdict_sums`: histogram of those log-odds and z together; `fit_verdict` sets both cuts where the expected F1 is best.
3. `label_scores` and `z > z_cut`, row by row.

Targets that are not classes: `loss_sums`, `fit_loss_verdict`, `loss_scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression
from torch import Tensor

SCALES = (math.inf, 0.3, 0.1, 0.03)  # delta of the link: inf is the plain softmax
SHARPNESS = tuple(2.0 ** (1 + k / 2) for k in range(18))  # beta: 2 ... 724
ODDS_LIMIT, ODDS_CELLS = 24.0, 160
Z_FROM, Z_TO, Z_CELLS = -2.5, 7.5, 125  # cells of asinh(z): z from -6 to 904
LOSS_FROM, LOSS_TO, LOSS_CELLS = -30.0, 30.0, 1200  # cells of log10(loss)
LEAST_POSTERIOR = 0.2  # no label is called wrong with less than one chance in five
MOST_DETRIMENTAL = 0.05  # share of samples, where few wrong labels are expected


@dataclass(frozen=True)
class Histogram:
    """Weighted counts in fixed cells; `+` merges them. `squares` sums the squared weights of all rows."""

    counts: Tensor
    squares: float

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.squares + other.squares)

    def rows(self, total: float) -> float:
        """Return the effective number of rows behind a total weight, (sum w)^2 / sum w^2."""
        return total**2 / self.squares if self.squares > 0 else 0.0


@dataclass(frozen=True)
class Link:
    """How left-out outputs become probabilities: p_k ~ exp(beta g(f_k)), g(f) = delta asinh(f / delta)."""

    scale: float
    sharpness: float


@dataclass(frozen=True)
class Cut:
    """A cut with the figures to expect of the rows beyond it, against wrong labels as estimated."""

    value: float
    precision: float
    recall: float
    share: float


@dataclass(frozen=True)
class Verdict:
    """Cuts fitted to a data set, all floats.

    Attributes:
        prior_odds: log odds that a label is wrong, less log(c - 1): what a row's evidence is held against. For losses:
            log of the loss at which label_score is 1/2.
        noise_rate: estimated share of wrong labels; 0 when it cannot be told from none.
        label: rows with label_score < label.value are label issues.
        z: rows with z > z.value are detrimental.
    """

    prior_odds: float
    noise_rate: float
    label: Cut
    z: Cut


def class_sums(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, "2 c"]:
    """Return per class the weight of its rows and the weighted sum of their own left-out output; add to merge."""
    rows = (y >= 0) & (weight > 0)
    y, w = y[rows], weight[rows].double()
    own = F[rows].gather(1, y[:, None]).squeeze(1).double()
    return torch.stack([torch.bincount(y, weights=x, minlength=F.shape[1]) for x in (w, w * own)])


def class_levels(sums: Float[Tensor, "2 c"]) -> Float[Tensor, " c"]:
    """Return the divisor of each class's outputs: the root of its mean own output relative to that of all classes.

    Ridge shrinks rare and hard classes most; undivided, their rows would look mislabelled. The mean is taken with two
    rows of the overall mean added, and not below a fifth of it. The root is empirical: on eleven development sets it had
    the best likelihood among powers 0, 1/3, 1/2, 2/3 and 1.
    """
    weight, own = sums
    total, mean = weight.sum(), own.sum() / weight.sum().clamp_min(1e-300)
    if not total > 0 or not mean > 0:
        return torch.ones_like(weight)
    return ((own / mean + 2) / (weight + 2)).clamp_min(0.2).sqrt()


def level(
    F: Float[Tensor, "n c"], leverage: Float[Tensor, " n"], levels: Float[Tensor, " c"]
) -> Float[Tensor, "n c"]:
    """Return (1 - h_i) f_ik / level_k: outputs of rare classes raised, those of rows far from all others lowered.

    `link_sums` and `log_odds` expect outputs so levelled.
    """
    return F * (1 - leverage)[:, None] / levels.to(F)


def log_odds(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], link: Link) -> Float[Tensor, " n"]:
    """Return log p_y / (1 - p_y) of the given label under the link, within +-24; 24 for a code of -1."""
    odds = torch.full((len(F),), ODDS_LIMIT, dtype=F.dtype, device=F.device)
    known = y >= 0
    if F.shape[1] > 1:
        own, others = _against_best_other(F[known], y[known], link.scale)
        odds[known] = link.sharpness * own - others.mul_(link.sharpness).exp_().sum(1).log()
    return odds.nan_to_num(0.0).clamp_(-ODDS_LIMIT, ODDS_LIMIT)


def link_sums(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], weight: Float[Tensor, " n"]) -> Histogram:
    """Return histograms of the given label's log-odds under every link of the grid, (scales, sharpness, cells).

    n c (4 asinh + 8 exp + 64 products): the exponentials of twice a sharpness are squares.

    Args:
        F: left-out outputs.
        y: class codes; rows of -1 do not count.
        weight: how much a row counts, >= 0; 0 for rows that should not shape the rule.
    """
    counts = torch.zeros(len(SCALES), len(SHARPNESS), ODDS_CELLS, dtype=torch.float64, device=F.device)
    rows = (y >= 0) & (weight > 0)
    F, y, w = F[rows], y[rows], weight[rows].double()
    if F.shape[1] < 2:
        counts[:, :, -1] = w.sum()
        return Histogram(counts, float(w.square().sum()))
    for s, scale in enumerate(SCALES):
        own, others = _against_best_other(F, y, scale)
        for first in (0, 1):
            powers = (others * SHARPNESS[first]).exp_()
            for b in range(first, len(SHARPNESS), 2):
                odds = SHARPNESS[b] * own - powers.sum(1).log()
                counts[s, b] = torch.bincount(_odds_cell(odds), weights=w, minlength=ODDS_CELLS)
                powers.square_()
    return Histogram(counts, float(w.square().sum()))


def fit_link(sums: Histogram, classes: int) -> Link:
    """Return the calibration under which the given labels are most likely.

    Maximises sum_i log((1 - e) p_iy + e (1 - p_iy) / (c - 1)) + log(beta) / 2 over delta, beta and the share e of labels
    replaced by another class at random. Without e, a few wrong labels would flatten p for all rows. The last term only
    breaks ties: with few rows, "sharp and noisy" and "flat and clean" can be equally likely, and flat says nothing. Exact up
    to the cells (0.3).
    """
    counts = sums.counts.cpu().numpy()
    total = float(counts[0, 0].sum())
    unit = sums.rows(total) / total if total > 0 else 0.0
    likelihood = unit * np.array([[_noise_rate(cells, classes)[1] for cells in scale] for scale in counts])
    s, b = np.unravel_index(int((likelihood + np.log(SHARPNESS) / 2).argmax()), likelihood.shape)
    return Link(SCALES[s], SHARPNESS[b])


def verdict_sums(
    odds: Float[Tensor, " n"], z: Float[Tensor, " n"], weight: Float[Tensor, " n"]
) -> Histogram:
    """Return the joint histogram of the given label's log-odds and z, (160, 125). Weights as in `link_sums`."""
    rows = weight > 0
    w = weight[rows].double()
    at = _odds_cell(odds[rows]) * Z_CELLS + _z_cell(z[rows])
    counts = torch.bincount(at, weights=w, minlength=ODDS_CELLS * Z_CELLS).view(ODDS_CELLS, Z_CELLS)
    return Histogram(counts, float(w.square().sum()))


def fit_verdict(sums: Histogram, classes: int) -> Verdict:
    """Return both cuts, each where the F1 to be expected against wrong labels is best.

    A label with log-odds l is wrong with posterior 1 / (1 + exp(l - prior_odds)). The posteriors beyond a cut, summed, are
    the wrong labels to expect there: over their number, precision; over the sum of all, recall. The same posteriors,
    carried over to the cells of z, place the cut on z, never below 0.

    Assumes that wrong labels are drawn at random among the other classes. Where confusable classes are swapped more
    often, precision is still fair and noise_rate and recall are for the random part of the noise only.

    If the likelihood does not prefer e > 0 by more than log(rows) / 2 (BIC), noise_rate is 0, nothing is a label issue, and
    z has the universal threshold sqrt(2 log rows), which noise alone would rarely pass.

    Args:
        sums: merged `verdict_sums`.
        classes: c.
    """
    counts = sums.counts.cpu().numpy()
    odds_counts, z_counts = counts.sum(1), counts.sum(0)
    total = float(odds_counts.sum())
    rows = sums.rows(total)
    rate, gain = _noise_rate(odds_counts, classes, against_none=True)
    significant = total > 0 and gain * rows / total > math.log(max(rows, 2)) / 2
    shown = max(rate, 0.5 / max(rows, 1))  # the order of scores survives where no noise is found
    prior = math.log(shown / (1 - shown)) - math.log(max(classes - 1, 1))
    posterior = 1 / (1 + np.exp(_odds_centers() - prior))
    z_cut = _z_cut(z_counts, posterior @ counts)
    if not significant:
        return Verdict(prior, 0.0, _nothing(0.0), _nothing(max(z_cut.value, math.sqrt(2 * math.log(max(rows, 2))))))
    label, j = _best_cut(odds_counts, odds_counts * posterior, posterior >= LEAST_POSTERIOR)
    edge = -ODDS_LIMIT + 2 * ODDS_LIMIT * j / ODDS_CELLS
    score_cut = 1 / (1 + math.exp(prior - edge)) if j else 0.0
    return Verdict(prior, rate, Cut(score_cut, *label), z_cut)


def label_scores(odds: Float[Tensor, " n"], verdict: Verdict) -> Float[Tensor, " n"]:
    """Return the probability that each given label is right, 1 / (1 + exp(prior_odds - l)); an issue if below the cut."""
    return torch.sigmoid(odds.double() - verdict.prior_odds)


def loss_sums(
    losses: Float[Tensor, " n"], reference: Float[Tensor, "n m"], weight: Float[Tensor, " n"]
) -> Histogram:
    """Return histograms of the rows' own losses and of the losses other rows' labels would have had, (2, cells).

    Args:
        losses: left-out loss of each row, >= 0 (squared residual, 1 - cosine, sum of logistic losses).
        reference: losses of the same left-out outputs against m targets drawn from other rows, the same for all blocks.
        weight: as in `link_sums`.
    """
    rows = weight > 0
    w, m = weight[rows].double(), reference.shape[1]
    own = torch.bincount(_loss_cell(losses[rows]), weights=w, minlength=LOSS_CELLS)
    cells = _loss_cell(reference[rows]).flatten()
    other = torch.bincount(cells, weights=(w / m).repeat_interleave(m), minlength=LOSS_CELLS)
    return Histogram(torch.stack([own, other]), float(w.square().sum()))


def fit_loss_verdict(sums: Histogram) -> Verdict:
    """Return the cuts for targets that are not classes: numbers, vectors, several labels.

    A wrong label is taken for one drawn from another row, so H = (1 - e) H_right + e H_other for the histograms of losses.
    e is the least tail ratio (H(>t) + 2 sqrt(H(>t))) / H_other(>t): right labels only add to H, so it is bounded from above,
    and a model that tells nothing bounds it by 1: then the posterior e H_other / H, made monotone in the loss, is
    high everywhere and the gain over flagging by chance nil, for which nothing is flagged. Approximate.
    z has the universal threshold sqrt(2 log rows): no posterior links it to labels here.

    References:
        Efron 2004 (local false discovery rate); Storey 2002 (tail ratio).
    """
    own, other = sums.counts.cpu().numpy()
    total = float(own.sum())
    rows = sums.rows(total)
    z = _nothing(math.sqrt(2 * math.log(max(rows, 2))))
    middle = _loss_edge(int(np.searchsorted(other.cumsum(), other.sum() / 2)) + 1)
    rate, posterior = _loss_posterior(own, other, rows)
    wrong = own * posterior
    none = Verdict(math.log(middle), 0.0, _nothing(0.0), z)
    if total == 0 or wrong.sum() / total < 2 / max(rows, 2):
        return none
    figures, k = _best_cut(own[::-1], wrong[::-1], posterior[::-1] >= 0.5)
    if k == 0:
        return none
    cut = 1 / (1 + _loss_edge(LOSS_CELLS - k) / middle)
    return Verdict(math.log(middle), rate, Cut(cut, *figures), z)


def loss_scores(losses: Float[Tensor, " n"], verdict: Verdict) -> Float[Tensor, " n"]:
    """Return s / (s + loss), s the median loss of other rows' labels; an issue if below the cut."""
    scale = math.exp(verdict.prior_odds)
    return scale / (scale + losses.double().nan_to_num(0.0, posinf=1e30).clamp_min(0))


def is_detrimental(z: Float[Tensor, " n"], verdict: Verdict) -> Tensor:
    """Return z > cut; false where z is undefined."""
    return z.double().nan_to_num(0.0) > verdict.z.value


def _against_best_other(F: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return g(f_y) - max other g(f) and g(f_k) - max other g(f), -inf at k = y."""
    G = F.clone() if math.isinf(scale) else torch.asinh(F / scale).mul_(scale)
    own = G.gather(1, y[:, None])
    G.scatter_(1, y[:, None], -torch.inf)
    best = G.amax(1, keepdim=True)
    return (own - best).squeeze(1), G.sub_(best)


def _cell(x: Tensor, low: float, high: float, cells: int) -> Tensor:
    at = (x.double().nan_to_num(0.0) - low) * (cells / (high - low))
    return at.clamp_(0, cells - 1).long()


def _odds_cell(odds: Tensor) -> Tensor:
    return _cell(odds, -ODDS_LIMIT, ODDS_LIMIT, ODDS_CELLS)


def _z_cell(z: Tensor) -> Tensor:
    return _cell(torch.asinh(z.double()), Z_FROM, Z_TO, Z_CELLS)


def _loss_cell(losses: Tensor) -> Tensor:
    return _cell(losses.double().clamp_min(1e-30).log10(), LOSS_FROM, LOSS_TO, LOSS_CELLS)


def _loss_edge(cell: int) -> float:
    return 10.0 ** (LOSS_FROM + (LOSS_TO - LOSS_FROM) * cell / LOSS_CELLS)


def _odds_centers() -> np.ndarray:
    return ODDS_LIMIT * (2 * (np.arange(ODDS_CELLS) + 0.5) / ODDS_CELLS - 1)


def _nothing(value: float) -> Cut:
    return Cut(value, 0.0, 0.0, 0.0)


def _noise_rate(counts: np.ndarray, classes: int, against_none: bool = False) -> tuple[float, float]:
    """Return the most likely share e of wrong labels and its log likelihood (or its gain over e = 0).

    The likelihood is concave in e: bisection on its slope, between 0 and (c - 1) / c.
    """
    centers, others = _odds_centers(), max(classes - 1, 1)
    right, wrong = -np.logaddexp(0, -centers), -np.logaddexp(0, centers) - math.log(others)
    ratio = np.expm1(np.clip(wrong - right, -700, 700))  # q / p - 1
    low, high = 0.0, others / (others + 1.0)
    for _ in range(50):
        e = (low + high) / 2
        low, high = (e, high) if counts @ (ratio / (1 + e * ratio)) > 0 else (low, e)
    gain = float(counts @ np.log1p(low * ratio))
    return low, gain if against_none else gain + float(counts @ right)


def _best_cut(counts: np.ndarray, wrong: np.ndarray, allowed: np.ndarray) -> tuple[tuple[float, float, float], int]:
    """Return (precision, recall, share) and how many of the leading cells to flag, for the best expected F1.

    Cells come most suspect first; only leading allowed cells may be flagged.
    """
    flagged, caught, total = counts.cumsum(), wrong.cumsum(), wrong.sum()
    f1 = np.where(np.cumprod(allowed) > 0, 2 * caught / np.maximum(flagged + total, 1e-300), 0.0)
    k = int(f1.argmax())
    if f1[k] <= 0:
        return (0.0, 0.0, 0.0), 0
    return (caught[k] / flagged[k], caught[k] / total, flagged[k] / counts.sum()), k + 1


def _z_cut(counts: np.ndarray, wrong: np.ndarray) -> Cut:
    """Return the cut on z >= 0 of best expected F1 that flags at most twice the wrong labels or MOST_DETRIMENTAL."""
    most = max(2 * wrong.sum(), MOST_DETRIMENTAL * counts.sum())
    edges = np.sinh(np.linspace(Z_FROM, Z_TO, Z_CELLS + 1))
    flagged = counts[::-1].cumsum()
    figures, k = _best_cut(counts[::-1], wrong[::-1], (edges[:-1][::-1] >= 0) & (flagged <= most))
    return Cut(float(edges[Z_CELLS - k]), *figures)


def _loss_posterior(own: np.ndarray, other: np.ndarray, rows: float) -> tuple[float, np.ndarray]:
    """Return e and the posterior of a wrong label in every cell, increasing with the loss."""
    if own.sum() == 0 or other.sum() == 0:
        return 0.0, np.zeros(LOSS_CELLS)
    tail = own[::-1].cumsum()[::-1] / own.sum()
    other_tail = other[::-1].cumsum()[::-1] / other.sum()
    bound = (tail + 2 * np.sqrt(tail / rows)) / np.maximum(other_tail, 1e-300)
    rate = float(min(1.0, bound[other_tail >= 0.02].min()))
    seen = own > 0
    share = rate * other[seen] / other.sum() / (own[seen] / own.sum())
    fitted = isotonic_regression(np.minimum(share, 1.0), weights=own[seen]).x
    posterior = np.interp(np.arange(LOSS_CELLS), np.flatnonzero(seen), fitted)
    return rate, posterior
