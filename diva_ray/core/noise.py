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

from diva_ray.core.flip_rates import Flips, search_flips, settle_flips, with_diagonal
from diva_ray.core.histogram import LIMIT
from diva_ray.core.links import SCALES, SHARPNESS, Link, bent, log_odds, probabilities
from diva_ray.core.mixing import confusions_explain
from diva_ray.core.verdict import Verdict, label_scores

LEAST_FLIPPED = 0.1  # of a class, into one other class: fewer look like similar classes
MOSTLY_RIGHT = 0.5  # share of the labels of a class that flips: what else would name it?
SURE = 0.75  # mean posterior of the labels called wrong between two classes, at least: overlapping classes reach 0.72
SURE_OF_FEW = 0.6  # the same where few classes of many flip; clean tables reached 0.54
MOST_CLASSES = 500  # a (c, c) matrix is fitted up to here
MORE = 3.0  # standard deviations by which the surest rows may flip more often than others, where few classes flip
SUREST = 0.25  # of the rows of a class; of classes that overlap half of them still mix as often as all
FEWEST_SUSPECTS = 20  # of all pairs
FEWEST_OF_FEW = 10  # of a pair that flips alone


def flip_log_odds(F: Float[Tensor, "n c"], y: Int[Tensor, " n"], link: Link, flips: Flips) -> Float[Tensor, " n"]:
    """Return log P(right) / P(wrong) of the given label, p_y T_yy / sum_k!=y p_k T_ky, within +-24; 24 for -1; p of
    outputs without the flips (`Flips.true_outputs`)."""
    odds = torch.full((len(F),), LIMIT, dtype=torch.float64)
    known = torch.nonzero(y >= 0).squeeze(1)
    for rows in known.split(max(16, 4_000_000 // F.shape[1])):
        joint = probabilities(flips.true_outputs(F[rows]), link) * flips.rates.T[y[rows]]
        own = joint.gather(1, y[rows, None]).squeeze(1)
        wrong = joint.scatter(1, y[rows, None], 0.0).sum(1)
        odds[rows] = own.clamp_min(1e-300).log() - wrong.clamp_min(1e-300).log()
    return odds.clamp_(-LIMIT, LIMIT)


def fit_flips(
    F: Float[Tensor, "m c"],
    y: Int[Tensor, " m"],
    h: Float[Tensor, " m"],
    link: Link,
    rate: float,
    right: float = -math.inf,
) -> tuple[Link, Flips] | None:
    """Return a calibration and flip rates T (given j where the truth is k) if classes flip into each other, else None.

    Model: p(y | x) = sum_k T_ky p_k(x), p sharp; T is one rate for most pairs, and free for the pairs that pay. EM
    under a grid of links starts with all pairs free. A pair stays free if T_kj exceeds the common rate by LEAST_FLIPPED
    and the likelihood by log(c - 1) + log(m) / 2, the cost of naming and measuring it (MDL); then all is fitted again.
    Accepted if the classes that flip, with T_kk >= MOSTLY_RIGHT, hold at least half of the rows: two classes of many
    that mix at a constant rate are as likely two that the features cannot tell apart. Of two classes one may flip
    alone, but SURE is asked: those with uneven tails mix at a constant rate on one side, too, but there most rows are
    near the other class. And if the free pairs pay log(m) / 2 each (BIC) against right labels under the link that suits
    those best: features that say little explain as much; if right labels that the outputs confuse
    (`mixing.confusions_explain`) are less likely; and if the surest rows of these classes flip as often as others
    (SUREST). Else `_fit_few_flips`. Local optimum; O(links iterations m c).

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        h: their leverages.
        link: the calibration under uniform noise; no link less than a third as sharp is tried.
        rate: the share of wrong labels under uniform noise.
        right: log likelihood of right labels under what explains them better than any link, if something does.
    """
    m, c = F.shape
    if not 2 <= c <= MOST_CLASSES or m < 2:
        return None
    off, uniform = ~torch.eye(c, dtype=torch.bool), max(rate, 1e-4) / (c - 1)
    free, T = off, with_diagonal(torch.full((c, c), uniform + 0.05 / c, dtype=torch.float64))
    cost, few = math.log(c - 1) + math.log(m) / 2, (T, ~off)
    for attempt in range(4):
        link, T, N, likelihood = search_flips(F, y, free, T, link)
        rows = N.sum(1, keepdim=True)
        gain = N * (T.clamp_min(1e-300) / uniform).log() - rows * ((1 - uniform) / (1 - T).clamp_min(1e-9)).log()
        pays = off & (T - uniform >= LEAST_FLIPPED) & (gain > cost)
        few = few if attempt else (T, off & (T - uniform >= LEAST_FLIPPED / 2) & (gain > cost) & (N > N.T))
        sound = pays.any(1) & (T.diagonal() >= MOSTLY_RIGHT)
        held = float(rows[sound].sum())
        if held < (0.5 * m if c > 2 else 1) or float(N[pays].sum()) < FEWEST_SUSPECTS:
            return _fit_few_flips(F, y, h, rate, right, *few)
        if torch.equal(pays, free):
            break
        free, common = pays, float(T[off].median()) if c > 2 else uniform
        uniform = max(common, 1e-5)
        T = with_diagonal(torch.where(free, T, torch.full_like(T, uniform)))
    link, flips, _, likelihood = settle_flips(F, y, free, T, link)
    flipped = int(free.sum())
    if (
        likelihood - max(right, _likelihood_if_right(F, y)) <= flipped * math.log(m) / 2
        or bool((flips.rates.diagonal() < MOSTLY_RIGHT)[free.any(1)].all())
        or not _surest_flip(F, y, link, flips, free, MORE if c == 2 else math.inf)
        or confusions_explain(F, y, h, rate, likelihood, flips.rates, flipped)
        or (c == 2 and _precision(F, y, link, flips) < SURE)
    ):
        return _fit_few_flips(F, y, h, rate, right, *few)
    return link, flips


def _fit_few_flips(
    F: Tensor, y: Tensor, h: Tensor, rate: float, right: float, T: Tensor, pairs: Tensor
) -> tuple[Link, Flips] | None:
    """Return a calibration and flip rates if few classes flip, each into another that does not flip back; else None.

    As `fit_flips`, but no other label is wrong (a common rate takes rows near every boundary for wrong ones), unless
    uniform noise showed and a common rate pays. A pair stays if FEWEST_OF_FEW labels flip, LEAST_FLIPPED of the class,
    and its surest rows as often as others: the features do tell the two classes apart, as the labels of one lie where
    they should. Accepted if that is likelier than right labels by what naming and measuring the pairs costs, if
    confusions explain less, and if SURE_OF_FEW of the suspects are wrong (SURE, of two classes). Links of any sharpness
    are tried: right labels that outputs hardly tell must not look wrong for want of a soft one.

    Args:
        F, y, h, rate, right: as of `fit_flips`.
        T: rates that the search begins with.
        pairs: which may be free.
    """
    c, any_link = F.shape[1], Link(SCALES[0], 0.0)
    link, flips, likelihood = any_link, Flips(T), 0.0
    while pairs.any():
        begin = with_diagonal(torch.where(pairs, T, 0.0))
        link, flips, counts, likelihood = settle_flips(F, y, pairs, begin, any_link, common=False)
        rates = flips.rates
        kept = (
            pairs & (counts >= FEWEST_OF_FEW) & (rates >= LEAST_FLIPPED) & (rates.diagonal() >= MOSTLY_RIGHT)[:, None]
        )
        for k, j in torch.nonzero(kept).tolist():
            one = torch.zeros_like(pairs)
            one[k, j] = True
            kept[k, j] = _surest_flip(F, y, link, flips, one, MORE)
        if torch.equal(kept, pairs):
            break
        pairs = kept
    flipped, cost = int(pairs.sum()), math.log(len(F)) / 2
    right = max(right, _likelihood_if_right(F, y))
    if not flipped or likelihood - right <= flipped * (2 * cost + math.log(c * (c - 1))):
        return None
    if _precision(F, y, link, flips) < (SURE_OF_FEW if c > 2 else SURE):
        return None
    if confusions_explain(F, y, h, rate, likelihood, flips.rates, flipped):
        return None
    if rate > 0:
        begin = with_diagonal(torch.where(pairs, flips.rates, 1e-3 / c))
        also, also_flips, _, more = settle_flips(F, y, pairs, begin, link)
        link, flips = (also, also_flips) if more - likelihood > cost else (link, flips)
    return link, flips


def _surest_flip(F: Tensor, y: Tensor, link: Link, flips: Flips, free: Tensor, most: float = math.inf) -> bool:
    """Return whether the free pairs flip as often, less one standard deviation, among the rows that are surest of a
    class: classes that overlap mix near the boundary only. Nor, by `most` of them, may they flip more often there: a
    class around another, whose spread a linear model cannot see, has rows on the other's far side too."""
    p = probabilities(flips.true_outputs(F), link)
    sure, likeliest = p.max(1)
    more = variance = 0.0
    for k in torch.nonzero(free.any(1)).flatten().tolist():
        rows = torch.nonzero(likeliest == k).squeeze(1)
        rows = rows[sure[rows].topk(math.ceil(SUREST * len(rows))).indices]
        q = (p[rows] @ flips.rates)[:, free[k]].sum(1)
        more += float(free[k][y[rows]].sum() - q.sum())
        variance += float((q * (1 - q)).sum())
    return -math.sqrt(variance) <= more <= most * math.sqrt(variance)


def _precision(F: Tensor, y: Tensor, link: Link, flips: Flips) -> float:
    """Return which share of the labels that are likelier wrong than right is wrong, to be expected; 0 if none is."""
    wrong = torch.sigmoid(-flip_log_odds(F, y, link, flips))
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
    F: Float[Tensor, "m c"], y: Int[Tensor, " m"], link: Link, flips: Flips | None, verdict: Verdict
) -> float:
    """Return the class dependence of the labels of a sample that are more likely wrong than right; 0 without noise."""
    if verdict.noise_rate == 0 or F.shape[1] < 2:
        return 0.0
    odds = log_odds(F, y, link) if flips is None else flip_log_odds(F, y, link, flips)
    at = torch.nonzero(label_scores(odds, verdict) < 0.5).squeeze(1)
    joint = probabilities(F[at], link)
    joint = joint if flips is None else probabilities(flips.true_outputs(F[at]), link) * flips.rates.T[y[at]]
    likely = joint.scatter(1, y[at, None], -1.0).argmax(1)
    shares = torch.bincount(y[y >= 0], minlength=F.shape[1]).double()
    return class_dependence(y[at], likely, shares / shares.sum().clamp_min(1))
