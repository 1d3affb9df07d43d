"""Links: how left-out outputs become probabilities of classes, under a model in which some labels are wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.histogram import LIMIT, ODDS, Histogram, cell_of, edges_of

SCALES = (math.inf, 0.3, 0.1, 0.03)  # delta of the link: inf is the plain softmax
TOGETHER = 1 << 18  # outputs that are worked on at a time: of more, what is found leaves the cache
SHARPNESS = tuple(2.0 ** (1 + k / 2) for k in range(18))  # beta: 2 ... 724


class Mix(NamedTuple):
    """Levelled outputs f become f weights + bias (`core.mixing`)."""

    weights: Float[Tensor, "c c"]
    bias: Float[Tensor, " c"]

    def mixed(self, F: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return levelled outputs mixed, in the type of F; 2 n c^2 operations."""
        return (F.double() @ self.weights.to(F.device) + self.bias.to(F.device)).to(F)


@dataclass(frozen=True)
class Link:
    """Outputs to probabilities: p_k ~ exp(beta g(f_k) + shift_k), g(f) = delta asinh(f / delta); `near`: of outputs
    times the row's nearness; `mix`: then mixed, before all else here."""

    scale: float  # delta
    sharpness: float  # beta
    near: bool = field(default=False, kw_only=True)
    mix: Mix | None = field(default=None, kw_only=True)
    shift: Float[Tensor, " c"] | None = field(default=None, kw_only=True)  # float64; None: none
    likelihood: float = 0.0  # log, mean over rows, of given labels some of which are wrong
    evidence: float = 0.0  # how much larger its sum is than that of right labels under the link that suits those best


def bent(F: Float[Tensor, "n c"], scale: float) -> Float[Tensor, "n c"]:
    """Return g(f) in float64."""
    G = F.double()
    return G if math.isinf(scale) else scale * torch.asinh(G / scale)


def probabilities(F: Float[Tensor, "n c"], link: Link) -> Float[Tensor, "n c"]:
    """Return the probability of every class, from levelled outputs."""
    logits = link.sharpness * bent(F, link.scale)
    return (logits if link.shift is None else logits + link.shift.to(logits)).softmax(1)


def uncertainty(F: Float[Tensor, "n c"], link: Link) -> Float[Tensor, " n"]:
    """Return 1 - sum_k p_k^2 of levelled outputs: the chance that two classes drawn from p differ (Gini impurity)."""
    return 1 - probabilities(F, link).square().sum(1)


def log_odds(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], link: Link) -> Float[Tensor, " n"]:
    """Return log p_y / (1 - p_y) of the given label, from levelled outputs, within +-24; 24 for a code of -1."""
    odds = torch.full((len(F),), LIMIT, dtype=F.dtype, device=F.device)
    known = y >= 0
    if F.shape[1] > 1:
        G, scale = F[known], link.scale
        if link.shift is not None:
            G, scale = bent(G, scale) + link.shift.to(F.device) / link.sharpness, math.inf
        own, others = _against_best_other(G.T.contiguous(), y[known], scale)
        odds[known] = (link.sharpness * own - others.mul_(link.sharpness).exp_().sum(0).log()).to(odds)
    return odds.nan_to_num(0.0).clamp_(-LIMIT, LIMIT)


def link_sums(
    F: Float[Tensor, "n c"],
    y: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    near: Float[Tensor, " n"] | None = None,
    scales: tuple[float, ...] = SCALES,
) -> Histogram:
    """Return histograms of the given label's log-odds under every link, (scales, sharpness, cells); about 72 n c.

    Of levelled outputs, class codes (-1 does not count) and weights >= 0 (0 for rows that are only to be judged). With
    the rows' nearness links by it follow the others, (2 scales, sharpness, cells).
    """
    if near is not None:
        plain, by_nearness = (link_sums(x, y, weight) for x in (F, F * near.to(F)[:, None]))
        return Histogram(torch.cat([plain.counts, by_nearness.counts]), plain.squares)
    return link_sums_by_model(F[:, None], y, weight, scales)[0]


def link_sums_by_model(
    F: Float[Tensor, "n models c"],
    y: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    scales: tuple[float, ...] = SCALES,
) -> list[Histogram]:
    """Return the histograms of `link_sums` for each of some models of the same rows: of few rows calls are what costs,
    so that all models share them."""
    models, c = F.shape[1:]
    counts = torch.zeros(models, len(scales), len(SHARPNESS), ODDS[2], dtype=torch.float64, device=F.device)
    rows = (y >= 0) & (weight > 0)
    F, y, w = F[rows], y[rows], weight[rows].double()
    if c < 2:
        counts[..., -1] = w.sum()
    # Classes first, so that sums over them are of whole rows.
    outputs, model = F.permute(2, 1, 0).reshape(c, -1), torch.arange(models, device=F.device).repeat_interleave(len(y))
    most = max(1, TOGETHER // c)
    parts = zip(
        outputs.split(most, 1),
        y.repeat(models).split(most),
        w.repeat(models).split(most),
        model.split(most),
        strict=True,
    )
    for G, label, share, of in parts if c > 1 else ():
        for s, scale in enumerate(scales):
            odds = _odds_by_sharpness(G, label, scale)
            place = (of * len(scales) + s) * len(SHARPNESS) + torch.arange(len(SHARPNESS), device=F.device)[:, None]
            cells = cell_of(odds, ODDS) + ODDS[2] * place
            counts.view(-1).index_add_(0, cells.view(-1), share.repeat(len(SHARPNESS)))
    squares = float(w.square().sum())
    return [Histogram(one, squares) for one in counts]


def _odds_by_sharpness(F: Float[Tensor, "c n"], y: Int[Tensor, " n"], scale: float) -> Float[Tensor, "sharpness n"]:
    """Return the log-odds of the given label under every sharpness."""
    own, others = _against_best_other(F, y, scale)
    rest = own.new_empty(len(SHARPNESS), len(own))
    for first in (0, 1):
        powers = (others * SHARPNESS[first]).exp_()
        for b in range(first, len(SHARPNESS), 2):
            torch.sum(powers, 0, out=rest[b])
            powers.square_()  # the exponentials of twice the sharpness
    return own.new_tensor(SHARPNESS)[:, None] * own - rest.log_()


def fit_link(sums: Histogram, classes: int, *, right: bool = False) -> Link:
    """Return the calibration under which the given labels are most likely; `right`: without e, if all are right.

    Maximises sum_i log((1 - e) p_iy + e (1 - p_iy) / (c - 1)) + log(beta) / 2 over delta, beta and the share e of
    labels replaced by another class at random; without e, few wrong labels flatten all p. Exact up to the cells (0.3).
    The last term breaks ties: with few rows "sharp and noisy" and "flat and clean" can be equally likely. A link by
    nearness must be likelier by log(rows) / 2 (BIC).
    """
    counts = sums.counts.cpu().numpy()
    total = float(counts[0, 0].sum())
    unit = sums.rows(total) / total if total > 0 else 0.0
    _, told, gain = (unit * found for found in noise_rates(counts, classes))
    some_wrong = told - costs_of_links(sums)
    none_wrong = some_wrong - gain
    likelihood = none_wrong if right else some_wrong + np.log(SHARPNESS) / 2
    s, b = np.unravel_index(int(likelihood.argmax()), likelihood.shape)
    mean = float(told[s, b]) / max(sums.rows(total), 1e-300)
    return link_at(int(s), int(b), mean, float(some_wrong[s, b]) - max(map(peak_of, none_wrong)))


def costs_of_links(sums: Histogram) -> np.ndarray:
    """Return by how much the links of every scale must be likelier than those first tried, (scales, 1): BIC."""
    total, scales = float(sums.counts[0, 0].sum()), len(sums.counts)
    return np.where(np.arange(scales) < len(SCALES), 0.0, math.log(max(sums.rows(total), 1)) / 2)[:, None]


def link_at(s: int, b: int, likelihood: float, evidence: float) -> Link:
    """Return the link whose histogram lies at [s, b] of those of `link_sums`."""
    return Link(SCALES[s % len(SCALES)], SHARPNESS[b], likelihood, evidence, near=s >= len(SCALES))


def peak_of(values: np.ndarray) -> float:
    """Return the maximum of the parabola through the largest of evenly spaced values and its neighbours: wrong labels
    must not be made out of a sharpness between two that are tried."""
    k = int(values.argmax())
    if not 0 < k < len(values) - 1:
        return float(values[k])
    before, top, after = values[k - 1 : k + 2]
    bend = before - 2 * top + after
    return float(top - (after - before) ** 2 / (8 * bend)) if bend < 0 else float(top)


def noise_rate_at(sums: Histogram, link: Link, classes: int) -> float:
    """Return the likeliest share of wrong labels under one of the links of `link_sums`."""
    cells = sums.counts[SCALES.index(link.scale) + len(SCALES) * link.near, SHARPNESS.index(link.sharpness)]
    return float(noise_rates(cells.cpu().numpy(), classes)[0])


def _against_best_other(F: Float[Tensor, "c n"], y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return g(f_y) - max other g(f), (n,), and g(f_k) - max other g(f), (c, n), -inf at k = y."""
    G = F.clone() if math.isinf(scale) else torch.asinh(F / scale).mul_(scale)
    own = G.gather(0, y[None])
    G.scatter_(0, y[None], -torch.inf)
    best = G.amax(0, keepdim=True)
    return (own - best).squeeze(0), G.sub_(best)


def noise_rates(
    counts: np.ndarray, classes: int, most: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the likeliest share e <= (c - 1) / c or `most` of wrong labels, the log likelihood, its gain over none:
    each (...,) of histograms (..., cells)."""
    centers, others = edges_of(ODDS)[:-1] + LIMIT / ODDS[2], max(classes - 1, 1)
    ratio = np.expm1(-centers - math.log(others))  # (1 - p) / (c - 1) / p - 1
    low = np.zeros((*counts.shape[:-1], 1))
    high = np.full_like(low, others / (others + 1.0) if most is None else most)
    for _ in range(50):
        e = (low + high) / 2
        rises = (counts * (ratio / (1 + e * ratio))).sum(-1, keepdims=True) > 0
        low, high = np.where(rises, e, low), np.where(rises, high, e)
    gain = (counts * np.log1p(low * ratio)).sum(-1)
    return np.asarray(low[..., 0]), np.asarray(gain - counts @ np.logaddexp(0, -centers)), np.asarray(gain)
