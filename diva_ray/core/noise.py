"""Wrong labels that are not drawn at random: classes that flip into each other, and rows whose labellers doubted.

Two extensions of the uniform model of `verdict.fit_link`, tried in this order on a sample of fixed size. Each needs
evidence that the features' own errors do not leave; without it the uniform model stands.

1. `fit_flips`: labels of class k become class j with probability T_kj far from every boundary as well as near one.
2. `nearest_rows`, `find_doubt`: errors where the model is unsure too. Outputs and labels cannot tell them from a model
   that knows too little; neighbours can: what a model misses, rows that look alike share, slips of labellers not.
`class_dependence`: whether the suspected labels keep to few pairs of classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.evidence import confusions_explain
from diva_ray.core.verdict import LIMIT, SCALES, SHARPNESS, Link, Verdict, label_scores, level, log_odds

LEAST_FLIPPED = 0.1  # of a class, into one other class: fewer look like similar classes
MOSTLY_RIGHT = 0.5  # share of the labels of a class that flips: what else would name it?
MOST_CLASSES = 500  # a (c, c) matrix is fitted up to here
MOST_SHARED = 0.3  # of what the model misses, with rows alike: 0.26 of human labels seen, 0.33-0.85 of true ones
FEWEST_MISSES = 100  # expected, among the reference rows
SURE = 0.9  # probability of its likeliest class that half of the rows have, or chance decides, not labellers
MOST_LEVERAGE = 0.1  # mean; ten rows to a free parameter, or misses say how few rows there were
FEWEST_SUSPECTS = 20


def probabilities(F: Float[Tensor, "n c"], link: Link) -> Float[Tensor, "n c"]:
    """Return the probability of every class, from levelled outputs."""
    G = F.double()
    G = G if math.isinf(link.scale) else link.scale * torch.asinh(G / link.scale)
    return (link.sharpness * G).softmax(1)


def flip_log_odds(
    F: Float[Tensor, "n c"], y: Int[Tensor, " n"], link: Link, flips: Float[Tensor, "c c"]
) -> Float[Tensor, " n"]:
    """Return log P(right) / P(wrong) of the given label, p_y T_yy / sum_k!=y p_k T_ky, within +-24; 24 for -1."""
    odds = torch.full((len(F),), LIMIT, dtype=torch.float64)
    known = torch.nonzero(y >= 0).squeeze(1)
    for rows in known.split(max(16, 4_000_000 // len(flips))):
        joint = probabilities(F[rows], link) * flips.T[y[rows]]
        own = joint.gather(1, y[rows, None]).squeeze(1)
        wrong = joint.scatter(1, y[rows, None], 0.0).sum(1)
        odds[rows] = own.clamp_min(1e-300).log() - wrong.clamp_min(1e-300).log()
    return odds.clamp_(-LIMIT, LIMIT)


def fit_flips(
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, rate: float
) -> tuple[Link, Float[Tensor, "c c"]] | None:
    """Return a calibration and flip rates T (given j where the truth is k) if classes flip into each other, else None.

    Model: p(y | x) = sum_k T_ky p_k(x), p sharp; T is one rate for most pairs, and free for the pairs that pay. EM
    under a grid of links starts with all pairs free. A pair stays free if T_kj exceeds the common rate by LEAST_FLIPPED
    and the likelihood by log(c - 1) + log(m) / 2, the cost of naming and measuring it (MDL); then all is fitted again.
    Accepted if the classes that flip, with T_kk >= MOSTLY_RIGHT, hold at least half of the rows: two classes of many
    that mix at a constant rate are as likely two that the features cannot tell apart. Noise in few classes is therefore
    left to the uniform model. And if the free pairs pay log(m) / 2 each (BIC) against right labels under the link that
    suits those best: features that say little explain as much; and if right labels that the outputs confuse
    (`evidence.confusions_explain`) are less likely. Local optimum; O(links iterations m c).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        link: the calibration under uniform noise; no link less than a third as sharp is tried.
        rate: the share of wrong labels under uniform noise.
    """
    m, c = F.shape
    if not 2 <= c <= MOST_CLASSES or m < 2:
        return None
    off, uniform = ~torch.eye(c, dtype=torch.bool), max(rate, 1e-4) / (c - 1)
    free, T = off, _with_diagonal(torch.full((c, c), uniform + 0.05 / c, dtype=torch.float64))
    cost = math.log(c - 1) + math.log(m) / 2
    for _ in range(4):
        link, T, N, likelihood = _search(F, y, free, T, link)
        rows = N.sum(1, keepdim=True)
        gain = N * (T.clamp_min(1e-300) / uniform).log() - rows * ((1 - uniform) / (1 - T).clamp_min(1e-9)).log()
        pays = off & (T - uniform >= LEAST_FLIPPED) & (gain > cost)
        sound = pays.any(1) & (T.diagonal() >= MOSTLY_RIGHT)
        if float(rows[sound].sum()) < 0.5 * m or float(N[pays].sum()) < FEWEST_SUSPECTS:
            return None
        if torch.equal(pays, free):
            break
        free, common = pays, float(T[off].median()) if c > 2 else uniform
        uniform = max(common, 1e-5)
        T = _with_diagonal(torch.where(free, T, torch.full_like(T, uniform)))
    flipped = int(free.sum())
    if likelihood - _likelihood_if_right(F, y) <= flipped * math.log(m) / 2:
        return None
    if confusions_explain(F, y, likelihood, flipped):
        return None
    return link, T


def _likelihood_if_right(F: Tensor, y: Tensor) -> float:
    """Return the log likelihood of the given labels, all right, under the link that suits them best."""
    links = (Link(scale, sharpness) for scale in SCALES for sharpness in SHARPNESS)
    return max(float(probabilities(F, link).gather(1, y[:, None]).clamp_min(1e-300).log().sum()) for link in links)


def _search(F: Tensor, y: Tensor, free: Tensor, T: Tensor, least: Link) -> tuple[Link, Tensor, Tensor, float]:
    """Return the likeliest link, its flip rates, their expected counts and the log likelihood; ever sharper links until
    three were worse."""
    best, found = -math.inf, (least, T)
    for scale in SCALES:
        top, worse = -math.inf, 0
        for sharpness in (s for s in SHARPNESS if s >= least.sharpness / 3):
            link = Link(scale, sharpness)
            fitted, _, likelihood = _expectation_maximisation(probabilities(F, link), y, free, T, 6)
            likelihood += math.log(sharpness) / 2
            if likelihood > best:
                best, found = likelihood, (link, fitted)
            top, worse = (likelihood, 0) if likelihood > top else (top, worse + 1)
            if worse == 3:
                break
    link, fitted = found
    fitted, N, likelihood = _expectation_maximisation(probabilities(F, link), y, free, fitted, 40)
    return link, fitted, N, likelihood


def _expectation_maximisation(
    p: Tensor, y: Tensor, free: Tensor, T: Tensor, steps: int
) -> tuple[Tensor, Tensor, float]:
    """Return T, the expected counts (truth, given) under it, and the log likelihood."""
    c = len(T)
    shared = ~torch.eye(c, dtype=torch.bool) & ~free
    for step in range(steps + 1):
        joint = p * T.T[y]
        q = joint.sum(1, keepdim=True).clamp_min(1e-300)
        N = torch.zeros(c, c, dtype=torch.float64).index_add_(0, y, joint / q).T
        if step < steps:
            rows = N.sum(1).clamp_min(1e-12)
            common = float(N[shared].sum() / (rows * shared.sum(1)).sum().clamp_min(1e-12))
            T = torch.where(free, N / rows[:, None], torch.full_like(N, max(common, 1e-6 / c)))
            T = _with_diagonal(T)
    return T, N, float(q.log().sum())


def _with_diagonal(T: Tensor) -> Tensor:
    """Return T with a diagonal that makes rows add up to 1."""
    T = T.clone().fill_diagonal_(0)
    return T + torch.diag((1 - T.sum(1)).clamp_min(1e-3))


@dataclass(frozen=True)
class Nearest:
    """For each of m reference rows, the nearest row seen so far: cosine (m,) and facts of that row; `+` keeps nearer.

    Facts are k = u_i . u_j, alpha_j, h_j, y_j, f_j, side by side (m, 4 + c).
    """

    cosine: Tensor
    facts: Tensor

    def __add__(self, other: Nearest) -> Nearest:
        nearer = other.cosine > self.cosine
        return Nearest(
            torch.where(nearer, other.cosine, self.cosine), torch.where(nearer[:, None], other.facts, self.facts)
        )


def nearest_rows(
    reference: Float[Tensor, "m p"],
    reference_code: Int[Tensor, " m"],
    U: Float[Tensor, "n p"],
    code: Int[Tensor, " n"],
    facts: Float[Tensor, "n k"],
    first: int,
) -> Nearest:
    """Return the nearest of n rows for each reference row, by the cosine of whitened features; 2 n m p operations.

    Args:
        reference: whitened features of the reference rows.
        reference_code: leave-out group; rows of the same group are not neighbours.
        U: whitened features of rows that may be neighbours.
        code: their groups.
        facts: alpha, h, y, f of every row.
        first: number of leading columns (the intercept) that the cosine leaves out.
    """
    if not len(U):
        return Nearest(
            torch.full((len(reference),), -torch.inf), reference.new_zeros(len(reference), 1 + facts.shape[1])
        )
    cosine = _unit(reference[:, first:]) @ _unit(U[:, first:]).T
    cosine.masked_fill_(reference_code[:, None] == code, -torch.inf)
    best, at = cosine.max(1)
    k = (reference * U[at]).sum(1, keepdim=True)
    return Nearest(best.double(), torch.cat([k.double(), facts[at].double()], 1))


def _unit(U: Tensor) -> Tensor:
    return U / U.norm(dim=1, keepdim=True).clamp_min(1e-30)


def find_doubt(
    facts: Float[Tensor, "m k"],
    near: Nearest,
    link: Link,
    levels: Float[Tensor, " c"],
    rate: float,
) -> float:
    """Return which share of the model's uncertainty is the labellers' doubt; 0 where it may be the model's own.

    Left-out predictions of a row and its nearest, without both, leave y_i - p_i and y_j - p_j. What the features tell
    but the model misses, the two share: rho = sum_ij (y_i - p_i).(y_j - p_j) / sum_ij sqrt(V_i V_j), V = 1 - |p|^2, is
    the share of the variance that is the model's. Labellers' slips are not shared. But the nearest row may be far: how
    sure the model is, which it knows of both, has a correlation between the two, and what it misses can hardly have a
    higher one. rho over that correlation is at most MOST_SHARED, two standard errors added, or nothing is claimed; then
    the doubt is 1 less that.
    Assumed, and not to be known from labels and features: every row has one class that can be told, not one drawn by
    chance (half of the rows must be sure, but a sharp outcome of chance passes); slips of labellers that are
    independent from row to row. Features that lose the class altogether look like doubt; labellers who err alike on
    rows that look alike, or copies of a row, look like none. Rows that leave in
    groups: pairs approximate.

    Args:
        facts: alpha, h, y, f of the reference rows.
        near: their neighbours.
        link: calibration under uniform noise.
        levels: of the classes.
        rate: of uniform noise.
    """
    c = len(levels)
    k, (a_i, h_i, y_i), (a_j, h_j, y_j) = near.facts[:, 0], facts[:, :3].double().T, near.facts[:, 1:4].T
    kept = near.cosine.isfinite() & ((1 - h_i) * (1 - h_j) > a_i * a_j * k.square())
    e_i, e_j = _misses(facts[:, 3:].double(), y_i), _misses(near.facts[:, 4:], y_j)
    both_i, both_j = without_both(e_i, e_j, a_i, a_j, h_i, h_j, k)
    parts, variances, sure = [], [], []
    for e, y, h in ((both_i, y_i, h_i), (both_j, y_j, h_j)):
        own = torch.nn.functional.one_hot(y.long(), c).double()
        p = probabilities(level(own - e, h, levels), link)
        parts.append(own - (1 - rate) * p - rate * (1 - p) / max(c - 1, 1))
        variances.append((1 - p.square().sum(1)).clamp_min(0)[kept])
        sure.append(p.amax(1)[kept])
    shared = (parts[0] * parts[1]).sum(1)[kept]
    variance = (1 - rate * c / max(c - 1, 1)) ** 2 * (variances[0] * variances[1]).sqrt()
    total = float(variance.sum())
    if total < FEWEST_MISSES or float(torch.cat(sure).median()) < SURE:
        return 0.0
    rho = float(shared.sum()) / total
    upper = max(rho, 0.0) + 2 * float((shared - rho * variance).norm()) / total
    alike = float(torch.corrcoef(torch.stack(variances))[0, 1])
    return 1 - upper / alike if upper <= MOST_SHARED * alike else 0.0


def without_both(
    e_i: Tensor, e_j: Tensor, a_i: Tensor, a_j: Tensor, h_i: Tensor, h_j: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    """Return residuals (m, c) left out in pairs from those left out alone: (I - Q D)^-1 r of two rows; exact."""
    room_i, room_j = 1 - h_i, 1 - h_j
    scale = (room_i * room_j / (room_i * room_j - a_i * a_j * k.square()))[:, None]
    return scale * (e_i + (a_j * k / room_i)[:, None] * e_j), scale * (e_j + (a_i * k / room_j)[:, None] * e_i)


def _misses(f: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y.long(), f.shape[1]).double() - f


def class_dependence(given: Int[Tensor, " s"], likely: Int[Tensor, " s"], shares: Float[Tensor, " c"]) -> float:
    """Return about which share of the suspected labels keeps to one wrong class per true class, in [0, 1].

    From how often two suspects have the same (likely, given) pair, sum n (n - 1) / N (N - 1), against all wrong classes
    alike (0) and one each (1), given classes of these shares; the root, as two of a share q meet with q^2. Unbiased
    before the root. 0 for fewer than FEWEST_SUSPECTS, or within three standard deviations of chance. Of two classes: 1
    if all errors go one way.
    """
    c, total = len(shares), len(given)
    if total < FEWEST_SUSPECTS or c < 2:
        return 0.0
    _, counts = torch.unique(likely * c + given, return_counts=True)
    pairs = total * (total - 1)
    met = float((counts * (counts - 1)).sum()) / pairs
    same = float(shares.square().sum())
    chance = same / (c - 1)
    uneven = float(shares.pow(3).sum()) / (c - 1) ** 2 - chance**2  # 0 where all pairs are as likely
    variance = (4 * (total - 2) * uneven + 2 * (chance - chance**2)) / pairs  # of a U-statistic (Hoeffding 1948)
    if met <= chance + 3 * math.sqrt(variance):
        return 0.0
    return math.sqrt(min(1.0, (met - chance) / (same - chance if c > 2 else 1 - chance)))


def dependence_of_suspects(
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, flips: Float[Tensor, "c c"] | None, verdict: Verdict
) -> float:
    """Return the class dependence of the labels of a sample that are more likely wrong than right; 0 without noise."""
    if verdict.noise_rate == 0 or F.shape[1] < 2:
        return 0.0
    odds = log_odds(F, y, link) if flips is None else flip_log_odds(F, y, link, flips)
    at = torch.nonzero(label_scores(odds, verdict) < 0.5).squeeze(1)
    joint = probabilities(F[at], link) * (1.0 if flips is None else flips.T[y[at]])
    likely = joint.scatter(1, y[at, None], -1.0).argmax(1)
    shares = torch.bincount(y[y >= 0], minlength=F.shape[1]).double()
    return class_dependence(y[at], likely, shares / shares.sum().clamp_min(1))
