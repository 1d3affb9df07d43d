"""How sure outputs are of rows that lack bands, so that one calibration fits them and the others."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.gaps import ByKind
from diva_ray.core.verdict import LIMIT, ODDS, SCALES, SHARPNESS, Histogram, _edges, link_sums

RATES = 60  # shares of wrong labels that are tried, from 1 / 10,000 to the most, and none


def kind_sums(
    F: Float[Tensor, "n c"],
    y: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    kinds: Int[Tensor, " n"] | None = None,
) -> ByKind[Histogram]:
    """Return the histograms of `verdict.link_sums` for plain softmaxes, by kind of rows; 0 where none are given."""
    plain = SCALES[:1]
    if kinds is None or not len(kinds):
        return ByKind({0: link_sums(F, y, weight, scales=plain)})
    each = ((kind, kinds == kind) for kind in kinds.unique().tolist())
    return ByKind({kind: link_sums(F[at], y[at], weight[at], scales=plain) for kind, at in each})


def fit_factors(sums: ByKind[Histogram], classes: int) -> dict[int, float]:
    """Return by what levelled outputs of every kind of rows are multiplied, 1 for the commonest; {} where that is 1 for
    all.

    A row that lacks a band that tells is less surely predicted than its outputs say under the calibration of the rest:
    its right label looks wrong. Every kind has a sharpness of its own, while the share of wrong labels is one for all:
    of rows about which features say little it could not be told from their own errors. The likeliest of all these,
    less what a sharpness costs that is not the commonest kind's: log(rows of the kind) / 2 (BIC), and that of a factor
    of two either way as one standard deviation, or a few rows that are all predicted right are infinitely sure. Wrong
    labels must pay log(rows) / 2 too, else all are taken for right. Exact up to the cells and the tried shares and
    sharpnesses; O(kinds shares sharpnesses (sharpnesses + cells)).

    Args:
        sums: from `kind_sums`.
        classes: number of them.
    """
    totals = {kind: float(one.counts[0, 0].sum()) for kind, one in sums.items()}
    common = max(totals, key=lambda kind: (totals[kind], -kind))
    rows = {kind: one.rows(totals[kind]) for kind, one in sums.items()}
    centers, others = _edges(ODDS)[:-1] + LIMIT / ODDS[2], max(classes - 1, 1)
    rates = np.append(0.0, np.geomspace(1e-4, others / (others + 1.0), RATES))[:, None]
    told = np.log1p(rates * np.expm1(-centers - math.log(others))) - np.logaddexp(0, -centers)  # (rates, cells)
    steps = np.log2(SHARPNESS)
    away = np.subtract.outer(steps, steps) ** 2 / 2  # (of the commonest, own)
    likely = {}  # of every kind: (rates, sharpness of the commonest, own)
    for kind, one in sums.items():
        unit = rows[kind] / totals[kind] if totals[kind] > 0 else 0.0
        cost = math.inf if kind == common else math.log(max(rows[kind], 1)) / 2
        own = unit * told @ one.counts[0].cpu().numpy().T
        likely[kind] = own[:, None] - np.where(away > 0, away + cost, 0.0)
    whole = np.sum([one.max(2) for one in likely.values()], 0)
    preferred = whole + np.log(SHARPNESS) / 2  # as in `verdict.fit_link`
    rate, at = np.unravel_index(int(preferred.argmax()), whole.shape)
    if whole[rate, at] - whole[0].max() <= math.log(max(sum(rows.values()), 2)) / 2:
        rate, at = 0, int(whole[0].argmax())
    factors = {kind: SHARPNESS[int(one[rate, at].argmax())] / SHARPNESS[at] for kind, one in likely.items()}
    return factors if any(factor != 1 for factor in factors.values()) else {}
