"""Verdicts on rows of several labels: whether each class is rightly given or left out, by calibrated left-out outputs.

`class_shares`, `unit_outputs`, `output_sums`, `fit_slips`, then row by row `rows_log_odds`, of which
`verdict.fit_verdict` makes the cuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.histogram import LIMIT, Histogram, cell_of, count_cells, edges_of

CELLS = (-8.0, 8.0, 200)  # of asinh(FINE x): 0.005 of a class's standard deviation wide at its share
FINE = 16.0
BENDS = (math.inf, 4.0, 2.0)  # log-odds from which on, on either side, they grow with the logarithm of the output
SPREAD = 0.5  # of the logarithms of the sharpness of classes
SHARPEST = (0.01, 1e4)  # bounds of sharpness: classes that lie apart have no likeliest one
MOST = 0.5  # share of slips of a kind that is sought,
BELIEVED = 1 / 3  # and believed: more, and what else would name the class?
UNDECIDED = 0.85  # classes taken for the wrong kind at posterior 1/2, expected, per wrong label
CLEAR, CLEAR_LOSS = 0.05, 0.03  # the same, and log likelihood a wrong label, where all are clear
LEAST_TOLD = 0.5  # of the entropy of the classes must be known to the model that judges them
MOST_JUDGED = 48  # classes by which bends are chosen and slips believed
SHARPER = math.log(4)
MOST_STEPS = 300  # of L-BFGS


@dataclass(frozen=True)
class Slips:
    """Outputs to probabilities, and how many classes of a row are wrongly left out or given.

    P(class k belongs to the row) = sigma(g(sharpness_k (x_k - threshold_k))), g(u) = b asinh(u / b) with a bend b for
    u < 0 and one for u >= 0.

    Attributes:
        threshold, sharpness: of every class, (c,); where no row has the class, or every row, inf or -inf, and 0.
        missing: share of classes that belong to a row but are not given.
        added: share of classes that do not belong to a row but are given.
        shows: whether there are such slips; else the shares are those of half a row.
        entropy: of a row's labels, by the shares of the classes, in nats; `information`: what a left-out prediction
            tells of them.
    """

    threshold: Float[Tensor, " c"]
    sharpness: Float[Tensor, " c"]
    bends: tuple[float, float]
    missing: float
    added: float
    shows: bool
    entropy: float = 0.0
    information: float = 0.0

    def bent(self, u: Tensor) -> Tensor:
        """Return g(u), the log-odds of outputs at a distance u from the threshold."""
        below, above = (u if math.isinf(b) else b * torch.asinh(u / b) for b in self.bends)
        return torch.where(u < 0, below, above)


def most_told(either: Float[Tensor, "c 2"]) -> Int[Tensor, " k"]:
    """Return the classes, at most MOST_JUDGED, with most rows of the rarer kind, without the label or with it, and
    some of both; in order."""
    rarer = either.amin(1).cpu()
    told = rarer.argsort(stable=True)[-MOST_JUDGED:].sort().values
    return told[rarer[told] > 0]


def class_shares(Y: Float[Tensor, "n c"], weight: Float[Tensor, " n"]) -> Float[Tensor, "2 c"]:
    """Return per class the weight of all rows and that of its own; add to merge."""
    w = weight.double()
    return torch.stack([w.sum().expand(Y.shape[1]), w @ Y.double()])


def unit_outputs(F: Float[Tensor, "n c"], h: Float[Tensor, " n"], shares: Float[Tensor, "2 c"]) -> Float[Tensor, "n c"]:
    """Return (1 - h_i) (f_ik - s_k) / sqrt(s_k (1 - s_k)), s the class's share: a row far from all others says less."""
    share = shares[1] / shares[0].clamp_min(1e-300)
    deviation = (share * (1 - share)).clamp_min(1e-12).sqrt()
    return (F.double() - share) * (1 - h.double())[:, None] / deviation


def sharpened(
    x: Float[Tensor, "n c"], threshold: Float[Tensor, " c"], factors: Float[Tensor, " n"]
) -> Float[Tensor, "n c"]:
    """Return unit outputs whose distance from the threshold is multiplied row by row; as they are where there is none
    (`core.sureness`)."""
    return torch.where(threshold.isfinite(), torch.lerp(threshold.nan_to_num(0.0, 0.0, 0.0), x, factors[:, None]), x)


def output_sums(x: Float[Tensor, "n c"], Y: Float[Tensor, "n c"], weight: Float[Tensor, " n"]) -> Histogram:
    """Return histograms of every class's unit outputs where it is not given and where it is, (c, 2, cells); rows that
    are only to be judged have weight 0."""
    rows, c = weight > 0, x.shape[1]
    w = weight[rows].double()
    place = 2 * torch.arange(c) + (Y[rows] > 0.5).long()
    at = place * CELLS[2] + cell_of((x[rows] * FINE).asinh(), CELLS)
    counts = count_cells(at.flatten(), w.repeat_interleave(c), c * 2 * CELLS[2])
    return Histogram(counts.view(c, 2, CELLS[2]), float(w.square().sum()))


def fit_slips(sums: Histogram) -> Slips:
    """Return the calibration and shares of slips under which the given labels are most likely, if slips show.

    A class that belongs to a row is left out with probability `missing`, one that does not is given with probability
    `added`, both the same for all classes and far from every threshold as well as near one (a lapse rate, as
    psychometric functions have). Sharpness varies between classes by SPREAD (a normal prior on its logarithm), or those
    of few rows would all be called certain. Slips show if they make the labels likelier by more than log(rows c) (BIC,
    two parameters) than right labels under whichever `bends` suit those best: tails as long as a power, on one side
    or both, are a model that does not quite fit. And if some are clear (at most UNDECIDED errors a wrong label are left
    where every class is taken for what it probably is), they are no more than BELIEVED, and the model tells LEAST_TOLD
    of the entropy: what a linear model lacks (the exclusive or of two halves) looks like slips far from its thresholds.
    Where classes lie so far apart that no row is near a threshold, long tails explain slips as well; there it is enough
    that all are clear (CLEAR), straight tails do not explain them, and long ones hardly better (`fit_clear_link`).
    Of more classes than MOST_JUDGED all this is asked of those with most labels of either kind, which the rest follow.
    Local optimum by L-BFGS; O(c cells) a step.
    """
    counts = sums.counts.cpu().numpy()
    c, total = len(counts), float(counts[0].sum()) if len(counts) else 0.0
    rows = sums.rows(total)
    usable = np.flatnonzero((counts.sum(2) > 0).all(1))
    none = 0.5 / max(rows * c, 1.0)
    threshold, sharpness = torch.zeros(2, c, dtype=torch.float64)
    threshold[:] = torch.where(sums.counts[:, 1].sum(1) > 0, -torch.inf, torch.inf)
    if not len(usable):
        return Slips(threshold, sharpness, (math.inf, math.inf), none, none, shows=False)
    judged = most_told(sums.counts.sum(2)).numpy()
    model = _Outputs(counts[judged] * (rows / total))
    right = model.fit_any(model.start())
    plain, least = max(right), math.log(max(rows * len(judged), 2))
    sharper = np.repeat([0.0, SHARPER], len(judged))  # as slips flatten what is fitted
    wrong = [one for more in (0, sharper) for one in model.fit_any(plain.parameters + more, slips=True)]

    def believed(found: _Found) -> bool:
        over, over_straight = (found.likelihood - one.likelihood for one in (plain, right[0]))
        clear = found.undecided <= CLEAR and over >= -least - CLEAR_LOSS * found.expected and over_straight > least
        told = 1 + found.likelihood / model.entropy()
        return (clear or (over > least and found.undecided <= UNDECIDED)) and (
            told >= LEAST_TOLD and max(found.shares) <= BELIEVED
        )

    best = max(filter(believed, wrong), default=None)
    shows, chosen = best is not None, best or plain
    if len(judged) < len(usable):
        model = _Outputs(counts[usable] * (rows / total))
        start = np.concatenate([model.start(), chosen.parameters[2 * len(judged) :]])
        chosen = model.fit(chosen.bends, start, slips=shows)
    places, logs = chosen.parameters[: 2 * len(usable)].reshape(2, -1)
    threshold[usable], sharpness[usable] = torch.from_numpy(places), torch.from_numpy(np.exp(logs))
    missing, added = chosen.shares if shows else (none, none)
    entropy = model.entropy() / rows
    information = entropy + chosen.likelihood / rows
    return Slips(threshold, sharpness, chosen.bends, missing, added, shows, entropy, information)


def even_slips(slips: Slips) -> Slips:
    """Return the calibration with slips in half of the rows: other rows, of which nothing is known yet, are as likely
    one of those as not, until `verdict.fit_verdict` says how many are."""
    share = -math.expm1(-math.log(2) / max(len(slips.threshold), 1))
    return replace(slips, missing=share, added=share, shows=True)


def likely(x: Float[Tensor, "n c"], slips: Slips) -> Tensor:
    """Return which classes belong to a row more likely than not, (n, c), whatever was given."""
    return x > slips.threshold


def corrected(x: Float[Tensor, "n c"], Y: Float[Tensor, "n c"], slips: Slips) -> Tensor:
    """Return which classes belong to a row more likely than not, (n, c), given that most are rightly given."""
    return (Y > 0.5) ^ (_slip_log_odds(x, Y, slips) > 0)


def rows_log_odds(x: Float[Tensor, "n c"], Y: Float[Tensor, "n c"], slips: Slips) -> Float[Tensor, " n"]:
    """Return log P(all labels of the row are right) / P(one is wrong), within +-24."""
    right = -torch.nn.functional.softplus(_slip_log_odds(x, Y, slips)).sum(1)  # log P(all right)
    wrong = (-torch.expm1(right)).clamp_min(1e-300).log()
    return (right - wrong).clamp_(-LIMIT, LIMIT)


def _slip_log_odds(x: Tensor, Y: Tensor, slips: Slips) -> Tensor:
    """Return the log-odds that a class is wrongly given or left out, (n, c); -inf for classes that no row has, or every
    row: they count as right."""
    u = slips.bent(slips.sharpness * (x - slips.threshold))
    given = Y > 0.5
    own = torch.where(given, u, -u)  # log-odds of the class as given
    shares = torch.tensor([slips.missing, slips.added], dtype=torch.float64).clamp_min(1e-300)
    kept, slipped = (-shares).log1p(), shares.log()
    ratio = torch.where(given, slipped[1] - kept[0], slipped[0] - kept[1])  # P(given | it is wrong) / P(given | right)
    return (ratio - own).masked_fill(slips.sharpness == 0, -torch.inf)


@dataclass(frozen=True)
class _Found:
    likelihood: float
    parameters: np.ndarray  # thresholds, logarithms of sharpness, and of slips the log-odds of their shares of MOST
    bends: tuple[float, float]
    shares: tuple[float, float]
    expected: float  # wrong labels
    undecided: float  # errors left, a wrong label

    def __lt__(self, other: _Found) -> bool:
        return self.likelihood < other.likelihood


class _Outputs:
    """The cells of `output_sums` that hold rows, side by side, and fits to them."""

    def __init__(self, counts: np.ndarray) -> None:
        self.classes = len(counts)
        self.code, given, cell = np.nonzero(counts)
        self.given = given.astype(bool)
        edges = edges_of(CELLS)
        self.x = np.sinh((edges[1:] + edges[:-1]) / 2)[cell] / FINE
        self.weight = counts[self.code, given, cell]
        self.sign = np.where(self.given, 1.0, -1.0)

    def _by_class(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.code, self.weight * values, self.classes)

    def start(self) -> np.ndarray:
        """Return thresholds and logs of sharpness as if outputs were normal, of the same width with and without the
        class (linear discriminant analysis)."""
        own = self.given.astype(float)
        n, of_class = self._by_class(np.ones_like(own)), self._by_class(own)
        high, low = self._by_class(own * self.x) / of_class, self._by_class((1 - own) * self.x) / (n - of_class)
        within = self._by_class((self.x - np.where(self.given, high[self.code], low[self.code])) ** 2) / n
        sharpness = np.clip((high - low) / np.maximum(within, 1e-12), 0.1, 1e3)
        threshold = (high + low) / 2 - np.log(of_class / (n - of_class)) / sharpness
        return np.concatenate([threshold, np.log(sharpness)])

    def entropy(self) -> float:
        """Return the entropy of all labels, by the shares of their classes."""
        n, of_class = self._by_class(np.ones_like(self.x)), self._by_class(self.given.astype(float))
        return -float((of_class * np.log(of_class / n) + (n - of_class) * np.log1p(-of_class / n)).sum())

    def fit_any(self, start: np.ndarray, *, slips: bool = False) -> list[_Found]:
        """Return the likeliest fits under all pairs of bends, that without first; all others start from it."""
        straight = self.fit((math.inf, math.inf), start[: 2 * self.classes], slips=slips)
        pairs = [(below, above) for below in BENDS for above in BENDS][1:]
        return [straight, *(self.fit(bends, straight.parameters, slips=slips) for bends in pairs)]

    def fit(self, bends: tuple[float, float], start: np.ndarray, *, slips: bool) -> _Found:
        """Return the likeliest parameters; slips are shares of at most MOST."""
        from scipy.optimize import minimize  # takes 0.4 s, which runs without several labels do not pay
        from scipy.special import expit

        c, x, sign = self.classes, self.x, self.sign

        def parts(parameters: np.ndarray) -> tuple[np.ndarray, ...]:
            threshold, log_sharpness = parameters[: 2 * c].reshape(2, c)
            b = np.exp(log_sharpness)[self.code]
            u = b * (x - threshold[self.code])
            limit = np.where(u < 0, *bends)
            finite = np.where(np.isinf(limit), 1.0, limit)
            odds = sign * np.where(np.isinf(limit), u, finite * np.arcsinh(u / finite))
            missing, added = MOST * expit(parameters[2 * c :]) if slips else (0.0, 0.0)
            kept, slipped = np.where(self.given, 1 - missing, 1 - added), np.where(self.given, added, missing)
            right, wrong = kept * expit(odds), slipped * expit(-odds)
            return b, u, odds, right, wrong, np.maximum(right + wrong, 1e-300)

        def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = first + scaled * unit
            b, u, odds, right, wrong, whole = parts(parameters)
            slope = sign * (right * expit(-odds) - wrong * expit(odds)) / whole
            slope = slope / np.sqrt(1 + (u / np.where(u < 0, *bends)) ** 2)
            away = parameters[c : 2 * c] - parameters[c : 2 * c].mean()
            slopes = [self._by_class(slope * b), away / SPREAD**2 - self._by_class(slope * u)]
            if slips:
                risen = (
                    self.weight * sign * expit(odds * sign) / whole,
                    self.weight * -sign * expit(-odds * sign) / whole,
                )
                e = expit(parameters[2 * c :])
                slopes.append(np.array([risen[0].sum(), risen[1].sum()]) * MOST * e * (1 - e))
            value = away @ away / (2 * SPREAD**2) - self.weight @ np.log(whole)
            return float(value), np.concatenate(slopes) * unit

        first = np.concatenate([start, [-4.0, -4.0]]) if slips and len(start) == 2 * c else start
        b, u, odds, _, _, _ = parts(first)
        bent = expit(odds) * expit(-odds)
        n = max(float(self.weight.sum()), 1.0)
        unit = [self._by_class(bent * b * b) + 1e-6 * n / c, self._by_class(bent * u * u) + 1 / SPREAD**2]
        unit = 1 / np.sqrt(np.concatenate([*unit, [0.02 * n] * (2 if slips else 0)]))  # all slopes alike
        logs = slice(c, 2 * c)
        low, high = (np.full(len(first), side) for side in (-np.inf, np.inf))
        low[logs], high[logs] = ((math.log(side) - first[logs]) / unit[logs] for side in SHARPEST)
        options = {"maxiter": MOST_STEPS, "ftol": 1e-8}
        found = minimize(
            loss, np.zeros_like(first), jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)),
            options=options,
        )  # fmt: skip
        parameters = first + found.x * unit
        _, _, _, _, wrong, whole = parts(parameters)
        wrong = wrong / whole
        expected = float(self.weight @ wrong)
        undecided = float(self.weight @ np.minimum(wrong, 1 - wrong)) / max(expected, 1e-300)
        missing, added = MOST * expit(parameters[2 * c :]) if slips else (0.0, 0.0)
        return _Found(-float(found.fun), parameters, bends, (float(missing), float(added)), expected, undecided)
