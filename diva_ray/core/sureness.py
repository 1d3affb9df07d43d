"""How sure outputs are of rows that lack bands, so that one calibration fits them and the others."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.gaps import ByKind, by_kind
from diva_ray.core.histogram import LIMIT, ODDS, Histogram, edges_of
from diva_ray.core.links import SCALES, SHARPNESS, link_sums
from diva_ray.core.multilabel import CELLS, FINE, fit_slips, most_told, output_sums

FACTORS = tuple(2.0 ** (k / 2) for k in range(-10, 7))  # of the sharpness of several labels
SLIPS = tuple(0.5 ** (1 + k / 2) for k in range(18))  # shares of labels left out or given
RATES = 60  # shares of wrong labels that are tried, from 1 / 10,000 to the most, and none


def kind_sums(
    F: Float[Tensor, "n c"],
    y: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    kinds: Int[Tensor, " n"] | None = None,
) -> ByKind[Histogram]:
    """Return the histograms of `links.link_sums` for plain softmaxes, by kind of rows; 0 where none are given."""
    return by_kind(kinds, lambda at: link_sums(F[at], y[at], weight[at], scales=SCALES[:1]))


def slip_sums(
    x: Float[Tensor, "n c"],
    Y: Float[Tensor, "n c"],
    weight: Float[Tensor, " n"],
    shares: Float[Tensor, "2 c"],
    kinds: Int[Tensor, " n"] | None = None,
) -> ByKind[Histogram]:
    """Return the histograms of `multilabel.output_sums` by kind of rows, of the classes that `multilabel.most_told`
    names by their shares: of all, kinds would take gigabytes."""
    judged = most_told(torch.stack([shares[0] - shares[1], shares[1]], 1))
    return by_kind(kinds, lambda at: output_sums(x[at][:, judged], Y[at][:, judged], weight[at]))


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
    rows, units = _rows(sums, {kind: float(one.counts[0, 0].sum()) for kind, one in sums.items()})
    centers, others = edges_of(ODDS)[:-1] + LIMIT / ODDS[2], max(classes - 1, 1)
    rates = np.append(0.0, np.geomspace(1e-4, others / (others + 1.0), RATES))[:, None]
    told = np.log1p(rates * np.expm1(-centers - math.log(others))) - np.logaddexp(0, -centers)  # (rates, cells)
    likely = {kind: units[kind] * told @ one.counts[0].cpu().numpy().T for kind, one in sums.items()}
    return _likeliest(likely, rows, np.array(SHARPNESS))


def fit_slip_factors(
    whole: Histogram, sums: ByKind[Histogram], shares: Float[Tensor, "2 c"]
) -> tuple[dict[int, float], Float[Tensor, " c"]]:
    """Return, of several labels, by what the distance of a row's unit outputs from the thresholds of their classes is
    multiplied, by kind as in `fit_factors`; and these thresholds, which kinds have in common, as a row that lacks a
    band is as likely of a class half way.

    Beside them stand shares of classes wrongly left out, wrongly given, or as many of either, one for all kinds.

    Args:
        whole: from `multilabel.output_sums`, of all classes.
        sums: from `slip_sums`.
        shares: of the classes, as given there.
    """
    slips = fit_slips(whole)
    judged = most_told(torch.stack([shares[0] - shares[1], shares[1]], 1))
    known = slips.sharpness[judged] > 0
    judged = judged[known]
    x = torch.from_numpy(np.sinh((edges_of(CELLS)[1:] + edges_of(CELLS)[:-1]) / 2) / FINE)
    away = (x - slips.threshold[judged, None]) * slips.sharpness[judged, None]  # (classes, cells)
    slipping = torch.tensor([(0.0, 0.0), *(pair for e in SLIPS for pair in ((e, e), (e, 0.0), (0.0, e)))]).double()
    likely = np.zeros((len(sums), len(slipping), len(FACTORS)))
    rows, units = _rows(sums, {kind: float(one.counts[:1].sum()) for kind, one in sums.items()})
    counts = torch.stack([units[kind] * one.counts.cpu()[known] for kind, one in sums.items()]).flatten(1)
    for f, factor in enumerate(FACTORS):
        u = slips.bent(factor * away)
        odds = torch.stack([-u, u], 1)  # of a class as it is, not given or given: (classes, 2, cells)
        right, wrong = (torch.nn.functional.logsigmoid(one) for one in (odds, -odds))
        for s, (missing, added) in enumerate(slipping):
            kept, slipped = (torch.stack(pair)[:, None].log() for pair in ((1 - added, 1 - missing), (missing, added)))
            likely[:, s, f] = (counts @ torch.logaddexp(right + kept, wrong + slipped).flatten()).numpy()
    return _likeliest(dict(zip(sums, likely, strict=True)), rows, np.array(FACTORS)), slips.threshold


def _rows(sums: ByKind[Histogram], totals: dict[int, float]) -> tuple[dict[int, float], dict[int, float]]:
    """Return the effective number of rows of every kind, and how many a unit of weight is."""
    rows = {kind: one.rows(totals[kind]) for kind, one in sums.items()}
    return rows, {kind: n / totals[kind] if totals[kind] > 0 else 0.0 for kind, n in rows.items()}


def _likeliest(likely: dict[int, np.ndarray], rows: dict[int, float], sharpness: np.ndarray) -> dict[int, float]:
    """Return the factors of kinds whose log likelihoods are (shares of wrong labels, none first; sharpness)."""
    common = max(rows, key=lambda kind: (rows[kind], -kind))
    steps = np.log2(sharpness)
    away = np.subtract.outer(steps, steps) ** 2 / 2  # (of the commonest, own)
    costs = {kind: math.inf if kind == common else math.log(max(n, 1)) / 2 for kind, n in rows.items()}
    told = {kind: one[:, None] - np.where(away > 0, away + costs[kind], 0.0) for kind, one in likely.items()}
    whole = np.sum([one.max(2) for one in told.values()], 0)
    preferred = whole + np.log(sharpness) / 2  # as in `links.fit_link`
    rate, at = np.unravel_index(int(preferred.argmax()), whole.shape)
    if whole[rate, at] - whole[0].max() <= math.log(max(sum(rows.values()), 2)) / 2:
        rate, at = 0, int(whole[0].argmax())
    factors = {kind: float(sharpness[int(one[rate, at].argmax())] / sharpness[at]) for kind, one in told.items()}
    return factors if any(factor != 1 for factor in factors.values()) else {}
