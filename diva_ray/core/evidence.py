"""Whether wrong labels show: by the likelihood of the given labels, or as nearly all are clearly right or wrong."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.histogram import LIMIT, ODDS, Histogram, edges_of
from diva_ray.core.links import Link, costs_of_links, link_at, noise_rates, peak_of

FEW = 200  # rows: too few to tell wrong labels from hard rows by the likelihood alone; then
UNDECIDED = 0.05  # rows taken for the wrong kind at posterior 1/2, expected, per wrong label
CLEAR_LOSS = 0.03  # of the log likelihood, a wrong label
LEAST_TOLD = 0.2  # of the entropy of the labels must be known to the model that judges them


def noise_shows(link: Link, weight: Float[Tensor, " c"], rows: float) -> bool:
    """Return whether wrong labels explain what a link of `fit_link` does not, better than any link without them, and
    than the shares of the classes alone.

    Outcomes that depend on chance, and features that say nothing of the labels, are explained as well by probabilities
    that are less sure: then no label can be called wrong. Asked: log(rows) / 2 (BIC). Of FEW rows or less evidence is
    weak either way; there predictions that tell LEAST_TOLD of the labels' entropy are enough.

    Args:
        link: from `fit_link`.
        weight: of the rows of every class (`levels.class_sums`).
        rows: effective number.
    """
    entropy = float(torch.special.entr(weight / weight.sum().clamp_min(1e-300)).sum())
    told = entropy + link.likelihood  # 0: no more than the shares of the classes
    if min(link.evidence, rows * told) > math.log(max(rows, 2)) / 2:
        return True
    return rows <= FEW and told >= LEAST_TOLD * entropy


def fit_clear_link(sums: Histogram, weight: Float[Tensor, " c"]) -> Link | None:
    """Return the likeliest link under which nearly every label is clearly right or clearly wrong, if chance explains
    the labels hardly better; else None.

    Where classes lie far apart no row is near a boundary, and one probability for all rows, "right nine times in ten",
    is as likely as wrong labels: `noise_shows` cannot tell. But outcomes of chance come in all degrees; that all rows
    have the same is the less likely story. Asked: at most UNDECIDED errors are left per wrong label; right labels under
    the link that suits those best are likelier by no more than log(rows) / 2 and CLEAR_LOSS a wrong label (errors of
    uneven share between classes; outcomes of chance that were drawn: 0.15 and more); LEAST_TOLD is told.

    Args:
        sums: from `link_sums`.
        weight: of the rows of every class (`levels.class_sums`).
    """
    counts, classes = sums.counts.cpu().numpy(), len(weight)
    total = float(counts[0, 0].sum())
    rows = sums.rows(total)
    if classes < 2 or rows < 2:
        return None
    unit, least = rows / total, math.log(rows) / 2
    rate, some_wrong, gain = noise_rates(counts, classes)
    some_wrong, gain = unit * some_wrong - costs_of_links(sums), unit * gain
    centers, shown = edges_of(ODDS)[:-1] + LIMIT / ODDS[2], np.clip(rate, 0.5 / rows, 1 - 0.5 / rows)
    offset = np.log(shown / (1 - shown)) - math.log(classes - 1)
    wrong = 1 / (1 + np.exp(centers - offset[..., None]))
    left = (counts * np.minimum(wrong, 1 - wrong)).sum(-1)
    lead = some_wrong - max(map(peak_of, some_wrong - gain))  # of wrong labels over right ones
    clear = (
        (left <= UNDECIDED * (counts * wrong).sum(-1)) & (gain > least) & (lead >= -least - CLEAR_LOSS * rate * rows)
    )
    if not clear.any():
        return None
    s, b = np.unravel_index(int(np.where(clear, some_wrong, -np.inf).argmax()), clear.shape)
    link = link_at(int(s), int(b), float(some_wrong[s, b]) / rows, float(lead[s, b]))
    entropy = float(torch.special.entr(weight / weight.sum()).sum())
    return link if entropy + link.likelihood >= LEAST_TOLD * entropy else None
