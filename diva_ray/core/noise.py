"""Wrong labels that are not drawn at random: classes that flip into each other.

Two extensions of the uniform model of `links.fit_link` are tried in this order on a sample of fixed size: by
`fit_flips`, labels of class k become class j with probability T_kj far from every boundary as well as near one; then
`labellers.find_doubt`. Each needs evidence that the features' own errors do not leave, or the uniform model stands.
`class_dependence`: whether the suspected labels keep to few pairs of classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.histogram import LIMIT
from diva_ray.core.links import SCALES, SHARPNESS, Link, bent, log_odds, probabilities
from diva_ray.core.mixing import confusions_explain
from diva_ray.core.verdict import Verdict, label_scores

LEAST_FLIPPED = 0.1  # of a class, into one other class: fewer look like similar classes
MOSTLY_RIGHT = 0.5  # share of the labels of a class that flips: what else would name it?
SURE = 0.75  # of the labels that flips between two classes call wrong, so many must be: classes that overlap reach 0.72
MOST_CLASSES = 500  # a (c, c) matrix is fitted up to here
SUREST = 0.25  # of the rows of a class; of classes that overlap half of them still mix as often as all
FEWEST_SUSPECTS = 20
CACHED = 100_000  # probabilities of a block of EM, which stay in the cache
LINKS = 6  # fitted side by side at most


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
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], h: Float[Tensor, " m"], link: Link, rate: float
) -> tuple[Link, Float[Tensor, "c c"]] | None:
    """Return a calibration and flip rates T (given j where the truth is k) if classes flip into each other, else None.

    Model: p(y | x) = sum_k T_ky p_k(x), p sharp; T is one rate for most pairs, and free for the pairs that pay. EM
    under a grid of links starts with all pairs free. A pair stays free if T_kj exceeds the common rate by LEAST_FLIPPED
    and the likelihood by log(c - 1) + log(m) / 2, the cost of naming and measuring it (MDL); then all is fitted again.
    Accepted if the classes that flip, with T_kk >= MOSTLY_RIGHT, hold at least half of the rows: two classes of many
    that mix at a constant rate are as likely two that the features cannot tell apart. Noise in few classes is therefore
    left to the uniform model. Of two classes one may flip alone, but SURE is asked: those with uneven tails mix at a
    constant rate on one side, too, but there most rows are near the other class. And if the free pairs pay log(m) / 2
    each (BIC) against right labels under the link that suits those best: features that say little explain as much; if
    right labels that the outputs confuse (`mixing.confusions_explain`) are less likely; and if the surest rows of these
    classes flip as often as others (SUREST). Local optimum; O(links iterations m c).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        h: their leverages.
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
        held = float(rows[sound].sum())
        if held < (0.5 * m if c > 2 else 1) or float(N[pays].sum()) < FEWEST_SUSPECTS:
            return None
        if torch.equal(pays, free):
            break
        free, common = pays, float(T[off].median()) if c > 2 else uniform
        uniform = max(common, 1e-5)
        T = _with_diagonal(torch.where(free, T, torch.full_like(T, uniform)))
    flipped = int(free.sum())
    if likelihood - _likelihood_if_right(F, y) <= flipped * math.log(m) / 2:
        return None
    if not _surest_flip(F, y, link, T, free) or confusions_explain(F, y, h, rate, likelihood, flipped):
        return None
    return None if c == 2 and _precision(F, y, link, T) < SURE else (link, T)


def _surest_flip(F: Tensor, y: Tensor, link: Link, T: Tensor, free: Tensor) -> bool:
    """Return whether the free pairs flip as often, less one standard deviation, among the rows that are surest of a
    class: classes that overlap mix near the boundary only."""
    p = probabilities(F, link)
    sure, likeliest = p.max(1)
    more = variance = 0.0
    for k in torch.nonzero(free.any(1)).flatten().tolist():
        rows = torch.nonzero(likeliest == k).squeeze(1)
        rows = rows[sure[rows].topk(math.ceil(SUREST * len(rows))).indices]
        q = (p[rows] @ T)[:, free[k]].sum(1)
        more += float(free[k][y[rows]].sum() - q.sum())
        variance += float((q * (1 - q)).sum())
    return more >= -math.sqrt(variance)


def _precision(F: Tensor, y: Tensor, link: Link, T: Tensor) -> float:
    """Return which share of the labels that are likelier wrong than right is wrong, to be expected; 0 if none is."""
    wrong = torch.sigmoid(-flip_log_odds(F, y, link, T))
    suspects = wrong[wrong > 0.5]
    return float(suspects.mean()) if len(suspects) else 0.0


def _likelihood_if_right(F: Tensor, y: Tensor) -> float:
    """Return the log likelihood of the given labels, all right, under the link that suits them best."""
    best, at = -math.inf, y[:, None]
    for scale in SCALES:
        G = bent(F, scale)
        own = G.gather(1, at).squeeze(1)
        best = max(best, *(float((beta * own - (beta * G).logsumexp(1)).sum()) for beta in SHARPNESS))
    return best


def _search(F: Tensor, y: Tensor, free: Tensor, T: Tensor, least: Link) -> tuple[Link, Tensor, Tensor, float]:
    """Return the likeliest link, its flip rates, their expected counts and the log likelihood; ever sharper links until
    three were worse."""
    best, found = -math.inf, (least, T)
    tried = [s for s in SHARPNESS if s >= least.sharpness / 3]
    together = min(LINKS, max(1, CACHED // F.numel()))  # small samples cost calls, not operations
    for scale in SCALES:
        top, worse, G = -math.inf, 0, bent(F, scale)
        for first in range(0, len(tried), together):
            sharp = tried[first : first + together]
            p = (G * torch.tensor(sharp, dtype=G.dtype)[:, None, None]).softmax(2)
            fitted, _, likelihoods = _expectation_maximisation(p, y, free, T, 6)
            for k, sharpness in enumerate(sharp):
                likelihood = float(likelihoods[k]) + math.log(sharpness) / 2
                if likelihood > best:
                    best, found = likelihood, (Link(scale, sharpness), fitted[k])
                top, worse = (likelihood, 0) if likelihood > top else (top, worse + 1)
                if worse == 3:
                    break
            if worse == 3:
                break
    link, T = found
    fitted, N, likelihoods = _expectation_maximisation(probabilities(F, link)[None], y, free, T, 40)
    return link, fitted[0], N[0], float(likelihoods[0])


def _expectation_maximisation(
    p: Float[Tensor, "links m c"], y: Tensor, free: Tensor, T: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return T of every link, the expected counts (truth, given) under it, and the log likelihood; a step reads p once.

    T (c, c) is where each begins.
    """
    links, _, c = p.shape
    T = T.expand(links, c, c)
    shared = ~torch.eye(c, dtype=torch.bool) & ~free
    size = max(16, CACHED // (c * links))
    at = y + c * torch.arange(links)[:, None]  # (links, m): rows of all links' matrices one below the other
    blocks = list(zip(p.split(size, 1), at.split(size, 1), strict=True))
    for step in range(steps + 1):
        given, likelihood = T.transpose(1, 2).reshape(-1, c), torch.zeros(links, dtype=torch.float64)
        shares = torch.zeros(links * c, c, dtype=torch.float64)
        for part, rows in blocks:
            q = torch.linalg.vecdot(part, given[rows]).clamp_min(1e-300)
            shares.index_add_(0, rows.reshape(-1), (part * q.reciprocal()[..., None]).view(-1, c))
            likelihood += q.log().sum(1)
        N = T * shares.view(links, c, c).transpose(1, 2)
        if step < steps:
            rows = N.sum(2).clamp_min(1e-12)
            common = N[:, shared].sum(1) / (rows * shared.sum(1)).sum(1).clamp_min(1e-12)
            T = _with_diagonal(torch.where(free, N / rows[..., None], common.clamp_min(1e-6 / c)[:, None, None]))
    return T, N, likelihood


def _with_diagonal(T: Tensor) -> Tensor:
    """Return T, one matrix or several, with a diagonal that makes rows add up to 1."""
    T = T * ~torch.eye(T.shape[-1], dtype=torch.bool)
    return T + torch.diag_embed((1 - T.sum(-1)).clamp_min(1e-3))


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
