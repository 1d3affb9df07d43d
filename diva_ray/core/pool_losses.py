"""Wrong numbers and vectors of a pool, told by the losses that a trusted table's own rows have when left out.

A histogram of the pool's losses alone says little of where right ones end unless wrong ones stand apart
(`core.loss_verdict`). The table's rows, left out, show how large right losses are.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from diva_ray.core.histogram import LOSS, edges_of
from diva_ray.core.loss_mixtures import fit_losses
from diva_ray.core.loss_verdict import LossSums
from diva_ray.core.verdict import Cut, Verdict

FEW = 100  # rows: fewer of the table, and how long the tails of right losses are is not known
WORTH = 0.1  # of log likelihood, a wrong label
SHARES = np.linspace(0, 0.95, 96)  # of wrong labels, that are tried
SHIFTS = range(25)  # cells by which the pool's right losses may be larger: another domain is predicted worse
GROSS = 0.05  # of wrong labels, that may be of any size: their losses are not those of other rows' labels


def judge_against_table(rule: Verdict, pool: LossSums, table: LossSums) -> Verdict:
    """Return the rule for a pool's labels with the share of wrong ones, and the loss from which more are wrong than
    right, by the table's losses; the rule as it is where all labels may be right, or where rows lack bands.

    The pool's losses are (1 - e) R_k + e W: R the losses of the table's rows left out, fitted by s F(d1, d2) of either
    sign, k cells larger; W those of other rows' labels, and a few of any size. The likeliest e and k, each worth
    log(m) / 2 (BIC), m the rows of the smaller table: R is known from few rows as W is not. Wrong ones of the table are
    in R, so that e counts those beyond its own share. Less than WORTH a wrong label is not believed: of 40 real tables
    whose pool was all right, one was then said to have wrong ones (4 without FEW, 6 without both).

    Args:
        rule: of `fit_loss_verdict`.
        pool, table: as `loss_sums` returns them, of the pool's rows and of the table's left out.
    """
    own, others = _sides(pool)
    right, _ = _sides(table)
    m = min(sum(one.rows(float(one.counts[: 2 * LOSS[2]].sum())) for one in sums.values()) for sums in (pool, table))
    if m < FEW or not others.sum() or len(pool) > 1:
        return rule
    own, others = own / own.sum(), others / others.sum()
    seen = np.flatnonzero(own.sum(0))
    wrong = (1 - GROSS) * np.stack([np.convolve(side, np.full(5, 0.2), "same") for side in others])
    first = int(np.searchsorted(others.sum(0).cumsum(), 0.5))
    reach = own.any(1)[:, None] & (np.arange(LOSS[2]) >= first) & (np.arange(LOSS[2]) <= max(seen[-1], first))
    wrong = wrong + GROSS * reach / reach.sum() + 1e-12
    shape = np.exp(fit_losses(right / right.sum(), [])[1][0])
    none, some = -math.inf, (-math.inf, 0.0, shape)
    for shift in SHIFTS:
        moved = np.full_like(shape, 1e-30)
        moved[:, shift:] += shape[:, : LOSS[2] - shift]
        moved /= moved.sum()
        likelihood = [float((own * np.log((1 - e) * moved + e * wrong)).sum()) for e in SHARES]
        k, cost = int(np.argmax(likelihood)), math.log(m) / 2
        none = max(none, m * likelihood[0] - (shift > 0) * cost)
        if k:
            better = m * likelihood[k] - (1 + (shift > 0)) * cost
            some = max(some, (better, float(SHARES[k]), moved), key=lambda one: one[0])
    better, share, moved = some
    if better - none < WORTH * share * m:
        return rule
    return _cut(rule, own, share * wrong / ((1 - share) * moved + share * wrong), share)


def _sides(sums: LossSums) -> tuple[np.ndarray, np.ndarray]:
    """Return histograms (2, cells) of own losses and of those with other rows' labels, of all kinds of rows."""
    own, others = (
        torch.stack([one.counts[: 4 * LOSS[2]] for one in sums.values()]).sum(0).cpu().numpy().reshape(2, 2, -1)
    )
    return own, others


def _cut(rule: Verdict, own: np.ndarray, wrong: np.ndarray, share: float) -> Verdict:
    """Return the rule with a cut at the loss from which labels are more likely wrong than right."""
    from scipy.optimize import isotonic_regression  # 0.4 s to load, which no other run pays

    whole = own.sum(0)
    seen = np.flatnonzero(whole)
    posterior = isotonic_regression((own * wrong).sum(0)[seen] / whole[seen], weights=whole[seen]).x
    flagged = posterior >= 0.5
    if not flagged.any():
        return replace(rule, noise_rate=share)
    caught, mass = float(whole[seen][flagged] @ posterior[flagged]), float(whole[seen][flagged].sum())
    edge, middle = 10.0 ** edges_of(LOSS)[seen[int(flagged.argmax())]], math.exp(rule.offset)
    value = float(middle / (middle + edge))
    label = Cut(value, caught / mass, caught / float(whole[seen] @ posterior), mass)
    return replace(rule, noise_rate=share, label=label, units={})
