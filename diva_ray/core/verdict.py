"""Verdicts on rows: which labels are probably wrong, which samples are detrimental, and how far to trust both.

Rounds of fixed-size sums over rows, then a decision row by row; neither the truth nor the number of errors is given.

0. `core/levels.py` evens the left-out outputs of classes and rows out.
1. `core/links.py`: the calibration of the outputs, under a model in which some labels are wrong. Whether wrong labels
   show at all: `core/evidence.py`. Outputs without a common unit: `core/mixing.py`.
2. `verdict_sums`, `fit_verdict`: both cuts, each where the expected F1 is best, with its precision and recall.
   Log-odds that no link gives: `core/recalibration.py`.
3. `label_scores`, `is_detrimental`, row by row.
Wrong labels that are not drawn at random: `core/noise.py`, between 1 and 2.
Several labels a row: `core.multilabel`; numbers and vectors: `core.loss_verdict`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diva_ray.core.histogram import LIMIT, ODDS, Histogram, Z, cell_of, count_cells, edges_of
from diva_ray.core.links import noise_rates

LEAST_POSTERIOR = 0.2  # no label is an issue with less than one chance in five
DRAWN = 60.0  # log-odds beyond -DRAWN are divided by it: e^-1300 is 0, and its rows would have no order, nor a cut
FEWEST_WRONG = 0.5  # rows: fewer are none
MOST_DETRIMENTAL = 0.05  # share of samples, where few wrong labels are expected


@dataclass(frozen=True)
class Cut:
    """A cut, and the precision, recall and share of all rows to expect of those beyond it, against wrong labels."""

    value: float
    precision: float = 0.0
    recall: float = 0.0
    share: float = 0.0


class Unit(NamedTuple):
    """How losses of one kind of rows compare with those of the commonest: as middle (loss / own)^power."""

    own: float  # median loss of the kind
    middle: float  # of the commonest
    power: float  # at most 1


class Recalibration(NamedTuple):
    """Log-odds l become shift + slope l, and `rate` of the labels are wrong (`core.recalibration`)."""

    shift: float
    slope: float
    rate: float


@dataclass(frozen=True)
class Verdict:
    """Cuts fitted to a data set: a label_score below `label.value` is an issue, a z above `z.value` detrimental."""

    offset: float  # log-odds (or log loss) where label_score is 1/2, without doubt
    noise_rate: float  # estimated share of wrong labels; 0 when it cannot be told from none
    label: Cut
    z: Cut
    class_dependence: float = 0.0  # of the suspected labels, 0 ... 1 (`noise.class_dependence`)
    flips: bool = False  # whether classes flip into each other (`noise.fit_flips`)
    doubt: float = 0.0  # share of the model's uncertainty that is the labellers' (`labellers.find_doubt`)
    units: dict[int, Unit] = field(default_factory=dict)  # of the losses of every kind of rows (`core.loss_verdict`)
    shift: float = 0.0  # log-odds l are judged as shift + slope l
    slope: float = 1.0
    loss: str = ""  # by which labels that are no classes are judged


def verdict_sums(odds: Float[Tensor, " n"], z: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Histogram:
    """Return the joint histogram of the given label's log-odds and z, (160, 125); rows of no label: weight 0."""
    rows = weight > 0
    w = weight[rows].double()
    at = cell_of(odds[rows], ODDS) * Z[2] + cell_of(z[rows].double().asinh(), Z)
    return Histogram(count_cells(at, w, ODDS[2] * Z[2]).view(ODDS[2], Z[2]), float(w.square().sum()))


def fit_verdict(
    sums: Histogram,
    classes: int,
    *,
    shows: bool = True,
    flips: bool = False,
    doubt: float = 0.0,
    again: Recalibration | None = None,
    most: float | None = None,
) -> Verdict:
    """Return both cuts, each where the F1 to be expected against wrong labels is best.

    With log-odds l, a label is wrong with posterior 1 / (1 + exp(l - offset)), offset = log(e / (1 - e) / (c - 1)).
    The posteriors beyond a cut add up to the wrong labels there: over their number, precision; over the sum of all,
    recall. Added up by cells of z they place the cut on z, >= 0, flagging at most twice the wrong labels or 5 %.
    Where noise does not show (`core/evidence.py`), or the likelihood prefers e > 0 by less than log(rows) / 2 (BIC)
    under this link too, noise_rate is 0, nothing is an issue, and z has the universal threshold sqrt(2 log rows),
    raised until at most 5 % pass.
    Assumes wrong labels drawn at random among the other classes, and a z that adds nothing to the log-odds. Errors
    between classes that look alike are mostly not found, as the rows a label is judged by have them too, unless
    `flips`: log-odds that include how often labels are wrong (`noise.fit_flips`, `core.multilabel`); or `doubt` > 0
    (`labellers.find_doubt`): that share of 1 - p_y is added to the posterior, as if truth and label were two draws
    from p. The likelihood is then not asked here.
    Doubt is an assumption about labels, not about harm: the cut on z stays that of the uniform model.
    `again`: log-odds are recalibrated, and e is known, once the likelihood says that there are wrong labels.
    `most` is the largest e, by default (c - 1) / c. Pairs (`core.partners`) are judged as two classes are.
    """
    counts = sums.counts.cpu().numpy()
    odds_counts, z_counts = counts.sum(1), counts.sum(0)
    total = float(odds_counts.sum())
    rows = sums.rows(total)
    rate, _, gain = map(float, noise_rates(odds_counts, classes, most))
    shows = shows and (flips or doubt > 0 or gain * rows > total * math.log(max(rows, 2)) / 2)
    shift, slope, rate = again if again and shows else (0.0, 1.0, rate)
    offset = 0.0 if flips else offset_of(rate, classes, rows)
    none = Verdict(offset, 0.0, Cut(0.0), universal_cut(z_counts, rows), doubt=doubt, shift=shift, slope=slope)
    if total == 0 or not shows or not (flips or doubt or rate * rows > FEWEST_WRONG):
        return replace(none, doubt=0.0)
    edges = torch.from_numpy(edges_of(ODDS))
    posterior = 1 - label_scores(edges[:-1] + LIMIT / ODDS[2], none).numpy()
    k, figures = best_cut(odds_counts, odds_counts * posterior, posterior >= LEAST_POSTERIOR)
    label = Cut(float(label_scores(edges[k : k + 1], none)) if k else 0.0, *figures)
    wrong = posterior @ counts
    rate = float(wrong.sum() / total) if flips or doubt else rate
    found = replace(none, noise_rate=rate, label=label)
    if doubt:
        return replace(found, z=fit_verdict(sums, classes, flips=flips).z)
    allowed = z_counts[::-1].cumsum() <= max(2 * wrong.sum(), MOST_DETRIMENTAL * total)
    k, figures = best_cut(z_counts[::-1], wrong[::-1], allowed & (edges_of(Z)[-2::-1] >= 0))
    return replace(found, z=Cut(math.sinh(edges_of(Z)[Z[2] - k]), *figures))


def offset_of(rate: float, classes: int, rows: float) -> float:
    """Return the log-odds at which a label is as likely wrong as right, if a share of labels is wrong: at least half a
    row, which keeps the scores in order where none is found."""
    shown = max(rate, FEWEST_WRONG / max(rows, 1))
    return math.log(shown / (1 - shown)) - math.log(max(classes - 1, 1))


def label_scores(odds: Float[Tensor, " n"], verdict: Verdict) -> Float[Tensor, " n"]:
    """Return the probability that each given label is right; an issue if below the cut.

    1 / (1 + exp(offset - shift - slope l)), times 1 - doubt / (1 + exp(l)) where labellers doubted. Below e^-DRAWN only
    the order counts: it is kept, in float32 too.
    """
    odds = odds.double()
    given = verdict.shift + verdict.slope * odds - verdict.offset
    right = torch.sigmoid(torch.where(given < -DRAWN, (given + DRAWN) / DRAWN - DRAWN, given))
    return right * (1 - verdict.doubt * torch.sigmoid(-odds))


def is_detrimental(z: Float[Tensor, " n"], verdict: Verdict) -> Tensor:
    """Return z > cut; false where z is undefined."""
    return z.double().nan_to_num(0.0) > verdict.z.value


def best_cut(counts: np.ndarray, wrong: np.ndarray, allowed: np.ndarray) -> tuple[int, tuple[float, ...]]:
    """Return how many of the leading cells, most suspect first, to flag for the best expected F1, and its figures."""
    flagged, caught, total = counts.cumsum(), wrong.cumsum(), wrong.sum()
    f1 = np.where(np.cumprod(allowed) > 0, 2 * caught / np.maximum(flagged + total, 1e-300), 0.0)
    k = int(f1.argmax())
    if f1[k] <= 0:
        return 0, ()
    return k + 1, (float(caught[k] / flagged[k]), float(caught[k] / total), float(flagged[k] / counts.sum()))


def universal_cut(counts: np.ndarray, rows: float) -> Cut:
    """Return the least cut on z from sqrt(2 log rows) on that at most MOST_DETRIMENTAL of the samples pass."""
    passing = counts[::-1].cumsum()[::-1] / max(counts.sum(), 1e-300)
    k = int(np.argmax(np.append(passing <= MOST_DETRIMENTAL, True)))
    return Cut(max(math.sqrt(2 * math.log(max(rows, 2))), math.sinh(edges_of(Z)[k])))
