"""Which losses are of wrong labels: the likeliest of a few stories of where right and wrong ones lie.

Losses are histograms in cells of their logarithm, (2, cells): those of errors above and below 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diva_ray.core.histogram import LOSS, edges_of

UNDECIDED = 0.45  # rows taken for the wrong kind at posterior 1/2, expected, per wrong label
WORTH = 0.25  # of log likelihood, a wrong label
FEWEST = 1.5  # wrong labels expected
NARROW = 4  # cells, a factor of 1.6, where they are all of one size
STARTS = 12  # of gross losses that are tried
SCALES = (2, 2.5, 3, 3.5, 4, 5, 6.5)  # times larger, as errors of some right labels are, but for the last
GROSS = 20  # cells, a factor of ten, that gross losses take up at least


def wrong_losses(
    own: np.ndarray, other: np.ndarray, rows: float, *, known: bool, beyond: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the posteriors of a wrong label in every cell, rising with the loss, by the likeliest story that is
    believed and by the likeliest of all; None if none is believed. Histograms (2, cells) add to 1; `known`: whether
    wrong labels like those of `other` are thought of; `beyond`: cell from which there may be gross ones."""
    from scipy.optimize import isotonic_regression  # 0.4 s to load, which no other run pays

    whole = own.sum(0)
    seen, sides = np.flatnonzero(whole), np.flatnonzero(own.sum(1)).tolist()
    spread = np.stack([np.convolve(side, np.full(5, 0.2), "same") for side in other]) + 1e-12  # few of them leave gaps
    first = max(int(np.searchsorted(other.sum(0).cumsum(), 0.5)), beyond)
    last = max(int(seen[-1]), first + GROSS)
    likely = [np.log(spread)] * known
    right, (shape,), start = fit_losses(own, [])
    best, believed = _Story(0.0, np.zeros(len(whole)), 0.0, 0.0, 0.0), []
    contested: list[_Story] = []  # by that of louder right ones
    large = [side for side in sides if rows * own[side, first:].sum() >= FEWEST]
    gross = [[side] for side in large] + [large] * (len(large) > 1)
    told = 3 * len(gross) + (3 if large else 1) * known  # stories

    def worth(gain: float, free: int) -> float:
        """Return what a story with `free` parameters and a gain in mean log likelihood is better by than none."""
        return rows * gain - free * math.log(max(rows, 2)) / 2 - math.log(told)

    def tell(kinds: list[np.ndarray], free: int) -> None:
        """Hear a story with `free` parameters."""
        nonlocal best
        likelihood, parts, _ = fit_losses(own, kinds)
        posterior = np.exp(parts - np.logaddexp.reduce(parts))
        wrong = (own * (1 - posterior[0])).sum(0)[seen] / whole[seen]
        wrong = np.interp(np.arange(len(whole)), seen, isotonic_regression(wrong, weights=whole[seen]).x)
        gain, left = likelihood - right, float(whole @ np.minimum(wrong, 1 - wrong))
        better = worth(gain, free)
        story = _Story(better, wrong, float(whole @ wrong), left, gain)
        best = max(best, story, key=lambda one: one.better)
        # More is known of losses like those of `other` than a scale, by which others compete with louder right ones.
        other_losses = known and kinds[0] is likely[0] and rows * float((own * posterior[1]).sum()) >= FEWEST
        if better > 0 and rows * story.expected >= FEWEST and story.stands_apart():
            (believed if other_losses else contested).append(story)

    for side in gross:
        wide, narrow = [_flat(own.shape, one, first, last) for one in side], _narrow(own, side, first, last, start)
        tell(wide, len(side))
        tell(narrow, len(side) + 1)
        tell(wide + narrow, 2 * len(side) + 1)
    if known:
        tell(likely, 1)
    if known and gross:
        tell(likely + wide, 1 + len(large))  # gross ones of every side there is, the last that were tried
        tell(likely + wide + narrow, 2 + 2 * len(large))
    if contested:
        louder = worth(_louder(own, shape) - right, 2)
        believed += [story for story in contested if story.better > louder]
    chosen = max(believed, key=lambda one: one.better, default=None)
    return None if chosen is None else (chosen.wrong, best.wrong)


def _flat(shape: tuple[int, ...], side: int, first: int, last: int) -> np.ndarray:
    """Return log probabilities of losses of one side that are as likely in any cell from the first to the last."""
    flat = np.full(shape, -690.0)
    flat[side, first : last + 1] = -math.log(last + 1 - first)
    return flat


def _narrow(own: np.ndarray, sides: list[int], first: int, last: int, start: np.ndarray) -> list[np.ndarray]:
    """Return gross losses from the cell on that explains best what is there: they may all be of one size, and a story
    that spreads them further calls right ones wrong. For every start right losses are fitted anew: those beside wide
    ones lack the tail that these have taken from them, and would make any start look too high."""
    cells = np.unique(np.linspace(first, last + 1 - NARROW, STARTS).round().astype(int))
    tried = [[_flat(own.shape, side, cell, last) for side in sides] for cell in cells.tolist()]
    found: list[float] = []
    for kinds in tried:  # each from where the one before ended
        likelihood, _, start = fit_losses(own, kinds, start)
        found.append(likelihood)
    return tried[int(np.argmax(found))]


def _louder(own: np.ndarray, right: np.ndarray) -> float:
    """Return the mean log likelihood of the best story in which all labels are right, but errors of some rows are of
    larger scale, up to five times that of the rest; -inf where a still larger one fits better, which no right ones
    have. `right` are log probabilities of losses of one scale."""
    width = (edges_of(LOSS)[1] - edges_of(LOSS)[0]) / 2  # of a cell, in decades of errors, not of their squares
    found = []
    for cells in np.round(np.log10(SCALES) / width).astype(int).tolist():
        shape, start, likelihoods = right, None, []
        for _ in range(3):  # that of the louder ones is the others', once these are freed of them
            moved = np.full(shape.shape, -690.0)
            moved[:, cells:] = shape[:, :-cells]
            likelihood, (shape, _), start = fit_losses(own, [moved], start)
            shape -= np.logaddexp.reduce(shape, None)
            likelihoods.append(likelihood)
        found.append(max(likelihoods))
    return -math.inf if found[-1] == max(found) else max(found)


@dataclass(frozen=True)
class _Story:
    """Which losses are of wrong labels, if some kinds of those are thought of.

    Attributes:
        better: log likelihood above that of right labels alone, less what its parameters cost.
        wrong: posterior of a wrong label in every cell.
        expected, left: share of wrong labels, and of errors where every row is taken for what it probably is.
        gain: of the mean log likelihood.
    """

    better: float
    wrong: np.ndarray
    expected: float
    left: float
    gain: float

    def stands_apart(self) -> bool:
        """Return whether wrong labels are told from right ones."""
        return self.left <= UNDECIDED * self.expected and self.gain >= WORTH * self.expected


def fit_losses(
    own: np.ndarray, kinds: list[np.ndarray], start: np.ndarray | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean log likelihood of the losses (2, cells), and log probabilities of cells: right ones, every kind.

    Right ones: s F(d1, d2) in logarithms, for either sign; wrong ones: log probabilities of every kind. `start`: what a
    like fit returned third, for what is fitted again or only compared; else the best from three.
    """
    from scipy.optimize import minimize
    from scipy.special import betaln, digamma, expit

    edges = edges_of(LOSS) * math.log(10)
    middles, width, sides = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0], np.flatnonzero(own.sum(1))
    seen, n, wrong = np.flatnonzero(own.sum(0)), len(sides), len(kinds)
    counts, kinds = own[sides][:, seen], [kind[sides] for kind in kinds]

    def log_parts(x: np.ndarray, at: np.ndarray | slice) -> tuple[np.ndarray, ...]:
        place, log_a, log_b = x[: 3 * n].reshape(3, n, 1)
        (a, b), u = np.exp([log_a, log_b]), middles[at] - place + log_a - log_b
        bent = np.logaddexp(0, u)
        shares = np.concatenate([[0.0], x[3 * n :]])  # of right ones of the first sign, every kind, the other sign
        shares -= np.logaddexp.reduce(shares)
        right = a * u - (a + b) * bent - betaln(a, b) + math.log(width)
        right += np.concatenate([shares[:1], shares[wrong + 1 :]])[:, None]
        parts = np.stack([right, *(kind[:, at] + share for kind, share in zip(kinds, shares[1:], strict=False))])
        return parts, shares, a, b, u, bent

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        parts, shares, a, b, u, bent = log_parts(x, seen)
        whole = np.logaddexp.reduce(parts)
        mass = counts * np.exp(parts - whole)  # of every part
        by_u = a - (a + b) * expit(u)
        by_a = a * (u - bent - digamma(a) + digamma(a + b)) + by_u
        by_b = b * (digamma(a + b) - bent - digamma(b)) - by_u
        held = np.concatenate([mass[0, :1].sum(1), mass[1:].sum((1, 2)), mass[0, 1:].sum(1)]) - np.exp(shares)
        slopes = [*((mass[0] * one).sum(1) for one in (-by_u, by_a, by_b)), held[1:]]
        return -float((counts * whole).sum()), -np.concatenate(slopes)

    bounds = [(None, None)] * n + [(-3, 5)] * n + [(-2, 6)] * n
    bounds += [(-15, 0)] * wrong + [(-15, 15)] * (n - 1)  # a kind of wrong ones is no more than the right
    low, middle = np.transpose([np.interp([0.25, 0.5], side.cumsum() / side.sum(), middles) for side in own[sides]])
    starts = [(middle, -0.7, 0.7), (low + 0.5, -0.7, 3.0), (low, 1.8, 3.0)]  # one number, long or short tails; several
    rest = [-3.0] * wrong + [0.0] * (n - 1)
    begun = [[*place, *[a] * n, *[b] * n, *rest] for place, a, b in starts]
    if start is not None:
        begun = [[*start[: 3 * n], *(start[3 * n :] if len(start) == len(bounds) else rest)]]
    found = [minimize(loss, x, jac=True, method="L-BFGS-B", bounds=bounds) for x in begun]
    best = min(found, key=lambda one: one.fun)
    found_parts = np.full((1 + wrong, *own.shape), -1e300)
    found_parts[:, sides] = log_parts(best.x, slice(None))[0]
    return -float(best.fun), found_parts, best.x
