"""Verdicts on rows whose targets are no classes: numbers and vectors.

`loss_sums`, `fit_loss_verdict`, then row by row `loss_scores` and `verdict.is_detrimental`. Rows that lack the same
bands (`core.gaps`) are of one kind, and their losses are measured in a unit of their own: see `_even_out`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.evidence import LEAST_TOLD
from diva_ray.core.gaps import ByKind, by_kind
from diva_ray.core.histogram import LOSS, Histogram, Z, cell_of, count_cells, edges_of
from diva_ray.core.loss_mixtures import wrong_losses
from diva_ray.core.verdict import Cut, Unit, Verdict, best_cut, universal_cut

FEW = 50  # rows of a kind: fewer, and its median loss is too rough a unit (a third off at 50, by its standard error)
SPREAD = (0.5, 0.75, 0.9)  # quantiles
FEWEST_ROWS = 20
COMMON, SHARED = 0.01, 5  # share of the rows, and rows, that have the same number
CODE = 3.0  # times the distance between all others, from which on a number is none of them
PULLED = 1.5  # times the distance between the quartiles of the errors


LossSums = ByKind[Histogram]


def loss_sums(
    losses: Float[Tensor, " n"],
    reference: Float[Tensor, "n m"],
    z: Float[Tensor, " n"],
    weight: Float[Tensor, " n"],
    kinds: Int[Tensor, " n"] | None = None,
) -> LossSums:
    """Return histograms of the rows' own losses, of losses with wrong labels, and of z, one after another, by kind.

    Losses are of left-out outputs; of one number with the sign of its error, as errors may be skewed, else >= 0.
    `reference`: with m wrong labels, such as those of other rows, the same m for every block. `kinds`: 0 where none
    are given.
    """
    return by_kind(kinds, lambda at: _sums(losses[at], reference[at], z[at], weight[at]))


def _sums(losses: Tensor, reference: Tensor, z: Tensor, weight: Tensor) -> Histogram:
    rows, m = weight > 0, reference.shape[1]
    w = weight[rows].double()
    own = count_cells(_cells(losses[rows]), w, 2 * LOSS[2])
    other = count_cells(_cells(reference[rows]).flatten(), (w / m).repeat_interleave(m), 2 * LOSS[2])
    beside = count_cells(cell_of(z[rows].double().asinh(), Z), w, Z[2])
    return Histogram(torch.cat([own, other, beside]), float(w.square().sum()))


def _cells(losses: Tensor) -> Tensor:
    """Return the cells of log10 |loss|; those of negative ones come second."""
    cells = cell_of(losses.double().abs().clamp_min(1e-30).log10(), LOSS)
    return cells + LOSS[2] * (losses < 0)


def _even_out(sums: LossSums) -> tuple[Histogram, dict[int, Unit]]:
    """Return the histograms of all kinds of rows with their losses in units of their own, and these units.

    A row that lacks a band is predicted worse, and in one histogram with the rest its right label looks wrong. Every
    kind's losses are made to have the median of the commonest kind's, and where they spread further (their errors may
    have fewer dimensions, or be of uneven size) no larger ratio of upper quantiles to it; quantiles, as wrong labels
    are a minority of every kind. A kind of fewer than FEW rows has no unit, which would have to be guessed: its rows
    shape nothing, and none is called wrong.
    """
    totals = {kind: float(one.counts[: 2 * LOSS[2]].sum()) for kind, one in sums.items()}
    common = max(totals, key=lambda kind: (totals[kind], -kind))
    kinds = [kind for kind in sorted(sums) if kind == common or sums[kind].rows(totals[kind]) >= FEW]
    middle, *reach = _quantiles(sums[common])
    even, units = Histogram(torch.zeros(len(sums[common].counts), dtype=torch.float64), 0.0), {}
    for kind in kinds:
        own, *beyond = _quantiles(sums[kind])
        power = min([1.0, *((a - middle) / (b - own) for a, b in zip(reach, beyond, strict=True) if b > own)])
        both, beside = sums[kind].counts.cpu().split([4 * LOSS[2], Z[2]])
        at = (middle + (torch.arange(LOSS[2]) + 0.5 - own) * power).long().clamp(0, LOSS[2] - 1)  # as in `cell_of`
        both = torch.zeros(4, LOSS[2], dtype=both.dtype).index_add_(1, at, both.view(4, -1)).flatten()
        even = even + Histogram(torch.cat([both, beside]), sums[kind].squares)
        units[kind] = Unit(_loss_at(own), _loss_at(middle), power)
    return even, units


def _quantiles(sums: Histogram) -> list[float]:
    """Return the median of the rows' own losses and the quantiles that tell how far they spread, in cells; of no rows
    the cell of a loss of 1."""
    own = sums.counts[: 2 * LOSS[2]].view(2, -1).sum(0).cpu().numpy()
    if not own.sum():
        return [LOSS[2] / 2] * len(SPREAD)
    return np.interp(np.array(SPREAD) * own.sum(), np.append(0.0, own.cumsum()), np.arange(LOSS[2] + 1.0)).tolist()


def _loss_at(cell: float) -> float:
    return 10.0 ** (LOSS[0] + cell * (LOSS[1] - LOSS[0]) / LOSS[2])


def pulled(sums: LossSums) -> bool:
    """Return whether a few gross numbers have pulled the fit off all the others, by errors of one number: their median
    is far from 0 beside the distance between their quartiles.

    Left out by squared error, errors add up to about 0, so what is gross in a few labels all others bear. Their errors
    then have one sign, and cannot be told from those of a narrow hump until they are counted from their median.
    """
    above, below = torch.stack([one.counts[: 2 * LOSS[2]] for one in sums.values()]).sum(0).view(2, -1).cpu().numpy()
    sizes = np.sqrt(10.0 ** ((edges_of(LOSS)[1:] + edges_of(LOSS)[:-1]) / 2))
    errors, mass = np.append(-sizes[::-1], sizes), np.append(below[::-1], above)
    if not mass.sum():
        return False
    low, middle, high = errors[np.searchsorted(mass.cumsum() / mass.sum(), (0.25, 0.5, 0.75))]
    return bool(abs(middle) >= PULLED * (high - low))


def directions(targets: Float[Tensor, "m c"], center: Float[Tensor, " c"], near: float) -> float:
    """Return along how many directions vectors lie from their center: the participation ratio (tr C)^2 / tr C^2 of the
    second moments C of their unit vectors, without bias from m rows: one over the mean squared cosine of two of them.

    1 on a line, c where all directions are as common; of vectors no further than `near` from the center nothing counts.
    """
    y = targets.double() - center.to(targets).double()
    size = y.norm(dim=1, keepdim=True)
    unit = (y / size)[size.squeeze(1) > near]
    m = len(unit)
    if m < 2:
        return 1.0
    squares = (unit @ unit.T).square()
    return m * (m - 1) / max(float(squares.sum() - squares.diagonal().sum()), 1e-12)


def largest_of_common(errors: Float[Tensor, " m"], numbers: Float[Tensor, " m"]) -> float:
    """Return the largest squared error of a sample of rows whose number many others have too; 0 if none has, or where
    left-out predictions tell LEAST_TOLD of the variance.

    Ratings, and counts that are mostly 0, take a few values. Where predictions tell little, errors come in as many
    lumps, and the largest looks like gross errors of one size. But a number that COMMON of the rows have, and SHARED at
    least, is no slip. Beyond the others by more than CODE times as much as these lie apart it may be a code, such as
    -999, and does not count.
    """
    if errors.square().sum() <= (1 - LEAST_TOLD) * (numbers - numbers.mean()).square().sum():
        return 0.0
    values, at, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
    common = torch.nonzero(counts >= max(SHARED, COMMON * len(numbers))).squeeze(1).tolist()
    while len(common) > 2:
        low, below, above, high = (float(values[common[k]]) for k in (0, 1, -2, -1))
        if below - low > CODE * (high - below):
            del common[0]
        elif high - above > CODE * (above - low):
            del common[-1]
        else:
            break
    rows = torch.isin(at, torch.tensor(common, dtype=at.dtype))
    return float(errors[rows].square().max()) if rows.any() else 0.0


def fit_loss_verdict(sums: LossSums, common: float = 0.0) -> Verdict:
    """Return the cuts for targets that are not classes: numbers and vectors.

    Losses of right labels are taken for s F(d1, d2), any s, d1 and d2, for errors of either sign: one hump on the
    scale of logarithms, whose tails may be long (errors of uneven size; a model that is not quite linear). Of wrong
    labels some are like those of `reference`, whose losses are known, and some gross, of either sign: as likely
    anywhere from the median of those to the largest loss there is; or mostly from a larger one, as they may
    all be of one size. The likeliest shares of all, of some or of none are taken, less log(rows) / 2 for each and for
    where gross ones begin, and the log of how many stories are told (BIC). They are believed if they stand
    apart: at most UNDECIDED errors a wrong label are left where every row is taken for what it probably is, and each
    wrong label makes the losses likelier by WORTH. Long tails alone, which nothing tells from wrong labels, do
    neither. A likelier story that is not believed, but finds those that are flagged no less wrong, tells precision,
    recall and share: it knows of wrong labels among right ones, which cannot be flagged. Where a row's own label fits
    better than a wrong one less than 60 % of the time only gross ones are thought of. The cut on z is the universal one
    of `fit_verdict`. Of fewer than FEWEST_ROWS nothing is told: their losses have no shape yet.

    `common`: up to which losses are no gross ones (`largest_of_common`).
    """
    even, units = _even_out(sums)
    both, others, beside = np.split(even.counts.numpy(), [2 * LOSS[2], 4 * LOSS[2]])
    both, others = both.reshape(2, -1), others.reshape(2, -1)
    own, other = both.sum(0), others.sum(0)
    total, reference = float(own.sum()), float(other.sum())
    rows = even.rows(total)
    z = universal_cut(beside, rows)
    if total == 0 or reference == 0 or rows < FEWEST_ROWS:
        return Verdict(0.0, 0.0, Cut(0.0), z, units=units)
    edges = 10.0 ** edges_of(LOSS)
    middle = float(edges[np.searchsorted(other.cumsum(), reference / 2) + 1])
    fits_better = float((own.cumsum() - own / 2) @ other) / (total * reference)  # half of those that fit alike
    beyond = int(np.searchsorted(edges, common)) if common > 0 else 0
    found = wrong_losses(both / total, others / reference, rows, known=fits_better >= 0.6, beyond=beyond)
    if found is None:
        return Verdict(math.log(middle), 0.0, Cut(0.0), z, units=units)
    believed, likeliest = (own * posterior for posterior in found)
    k, _ = best_cut(own[::-1], believed[::-1], found[0][::-1] >= 0.5)
    if k == 0:
        return Verdict(math.log(middle), 0.0, Cut(0.0), z, units=units)
    # A likelier story that knows of more wrong labels, but not which, says how many of them are not flagged.
    wrong = max(believed, likeliest, key=lambda one: one[-k:].sum())
    flagged, caught, whole = (float(x.sum()) for x in (own[-k:], wrong[-k:], wrong))
    label = Cut(float(middle / (middle + edges[LOSS[2] - k])), caught / flagged, caught / whole, flagged / total)
    return Verdict(math.log(middle), whole / total, label, z, units=units)


def largest_right(verdict: Verdict, kinds: Int[Tensor, " n"] | None = None) -> Tensor:
    """Return the loss from which a label looks wrong (`loss_scores` below the cut), for every row; infinite where none
    does."""
    value, (own, middle, power) = verdict.label.value, _units(verdict, kinds)
    limit = math.exp(verdict.offset) * (1 / value - 1) if value > 0 else math.inf
    return own * (limit / middle) ** (1 / power)


def loss_scores(
    losses: Float[Tensor, " n"], verdict: Verdict, kinds: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """Return s / (s + |loss|), s the median loss with wrong labels; an issue if below the cut. Losses are in the
    unit of the row's kind; 1 for a kind without one, of which nothing is known."""
    s, (own, middle, power) = math.exp(verdict.offset), _units(verdict, kinds)
    even = middle * (losses.double().nan_to_num(0.0, posinf=1e30, neginf=-1e30).abs() / own) ** power
    return s / (s + even)


def _units(verdict: Verdict, kinds: Tensor | None) -> Tensor:
    """Return the unit of every row's loss, (3, n), or of all; of a kind without one such that all are as good as 0."""
    at = torch.zeros(1, dtype=torch.int64) if kinds is None else kinds
    none = Unit(math.inf if verdict.units else 1.0, 1.0, 1.0)  # a rule without units takes losses as they are
    found = torch.tensor(none, dtype=torch.float64)[:, None].repeat(1, len(at))
    for kind, unit in verdict.units.items():
        found[:, at == kind] = torch.tensor(unit, dtype=torch.float64)[:, None]
    return found
