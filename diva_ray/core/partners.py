"""Do the two sides of a pair belong together? Log-odds against other partners, without any label.

A similarity of sides i and j is a cosine C_ij: of the prediction of j's side from i's, left out, with what is there.
Its likelihood ratio of "observed together" to "two at random" is exp(beta C_ij) with both margins taken out,

    l_ij = beta C_ij - (log mean_k exp(beta C_ik) + log mean_k exp(beta C_kj)) / 2,

k over the pair's own partner and a few hundred others of other groups (`margin_odds`); a partner that suits everyone
says little. With a share e of pairs that do not belong together, an observed pair has likelihood (1 - e) exp(l) + e
relative to two at random, and beta and e are the likeliest (`fit_sharpness`): the contrastive loss of van den Oord et
al. 2018 with a share of wrong positives. Several similarities (two directions, the cosine of aligned towers) enter as
l = sum_s w_s l_s + level, the level such that exp(l) has mean 1 over pairs, observed and at random, and w the likeliest
again (`fit_weights`). The probability of not belonging together is e / (e + (1 - e) exp(l)).
Approximate: exponential tilts of cosines, and margins from a sample of partners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diva_ray.core.histogram import Histogram
from diva_ray.core.verdict import Cut, Verdict, fit_verdict, universal_cut

SHARPNESS = (0.1, 400.0)  # beta
WEIGHTS = (0.005, 5.0)
MOST_WRONG = 0.98  # e
# nats above chance that a pair which belongs must have for a share of wrong ones to be told: four times likelier. Below
# that, the tilt's own misfit looks like wrong pairs (tests/tasks/test_pairs.py: half of clean pairs would be flagged)
CLEAR = math.log(4)
ALIGNED = 4.0  # standard errors by which one's own partner must rank above others


@dataclass(frozen=True)
class Similarity:
    """How sharply a cosine tells partners: beta, its weight in the sum, and what it gained.

    Attributes:
        gain: mean log likelihood of an observed pair above chance, in nats.
    """

    sharpness: float
    gain: float
    weight: float = 0.0


@dataclass(frozen=True)
class Partners:
    """What `log_odds` needs beside the cosines: similarities in their order, and the level of the sum."""

    similarities: tuple[Similarity, ...]
    level: float
    informed: bool = True  # whether anything tells partners; if not, every pair has odds 0
    information: float = math.inf  # mean log likelihood above chance of a pair, over the share that belongs, in nats

    @property
    def clear(self) -> bool:
        """Whether it is enough to say which share of the pairs does not belong together."""
        return self.information >= CLEAR


def margin_odds(
    own: Float[Tensor, " n"],
    rows: Float[Tensor, "n m"],
    columns: Float[Tensor, "n m"],
    others: Bool[Tensor, "n m"],
    sharpness: float,
) -> Float[Tensor, " n"]:
    """Return l of every pair.

    Args:
        own: cosine of the pair.
        rows: cosines of the pair's first side with the second sides of m reference pairs.
        columns: of the reference pairs' first sides with the pair's second side.
        others: which reference pairs are of another group.
        sharpness: beta.
    """
    own = sharpness * own.double()
    margins = [_margin(own, cosines.masked_fill(~others, -torch.inf), sharpness) for cosines in (rows, columns)]
    return own - (margins[0] + margins[1]) / 2


def _margin(own: Tensor, cosines: Tensor, sharpness: float) -> Tensor:
    """Return log mean exp over the pair's own partner and the others; a cosine of -inf is none of these.

    Sums in the precision of the cosines: float32 costs 5e-5 at the largest sharpness.
    """
    total = torch.logaddexp(own, (sharpness * cosines).logsumexp(1).double())
    return total - torch.log1p(torch.isfinite(cosines).sum(1).to(own))


def cross_odds(
    rows: Float[Tensor, "s m"],
    reference: Float[Tensor, "m m"],
    others: Bool[Tensor, "s m"],
    apart: Bool[Tensor, "m m"],
    sharpness: float,
) -> Float[Tensor, "s m"]:
    """Return l of the first sides of s pairs with the second sides of m reference pairs; -inf within a group.

    Args:
        reference: cosines of the reference pairs' first sides (columns) with their second sides (rows).
        others, apart: which reference pairs are of another group than the pair, than the reference pair.
    """
    logits = sharpness * rows.masked_fill(~others, -torch.inf)
    first = logits.logsumexp(1, keepdim=True) - others.sum(1, keepdim=True).clamp_min(1).to(logits).log()
    second = (sharpness * reference.masked_fill(~apart, -torch.inf)).logsumexp(1)
    second = torch.logaddexp(second, logits) - torch.log1p(apart.sum(1).to(logits))
    return torch.where(others, logits - (first + second) / 2, -torch.inf)


def fit_sharpness(
    own: Float[Tensor, " s"], rows: Float[Tensor, "s m"], columns: Float[Tensor, "s m"], others: Bool[Tensor, "s m"]
) -> Similarity:
    """Return the likeliest beta: each side must tell its partner from the others, a share e of the pairs excepted."""

    from scipy.optimize import minimize_scalar  # takes 0.4 s, which runs without pairs do not pay

    known = [cosines.masked_fill(~others, -torch.inf) for cosines in (rows, columns)]

    def gain(log_beta: float) -> float:
        beta = math.exp(log_beta)
        scaled = beta * own.double()
        return likeliest_share(torch.cat([scaled - _margin(scaled, cosines, beta) for cosines in known]))[1]

    low, high = map(math.log, SHARPNESS)
    grid = np.linspace(low, high, 12)
    start = int(np.argmax([gain(x) for x in grid]))
    around = (float(grid[max(start - 1, 0)]), float(grid[min(start + 1, len(grid) - 1)]))
    found = minimize_scalar(lambda x: -gain(x), bounds=around, method="bounded", options={"xatol": 0.01})
    return Similarity(math.exp(float(found.x)), -float(found.fun))


def fit_weights(
    similarities: list[Similarity], own: Float[Tensor, "k s"], cross: Float[Tensor, "k s m"], groups: int
) -> Partners:
    """Return the weights of several similarities, and the level, under which the observed pairs are likeliest.

    Where that likelihood is above chance by less than half the parameters times the log of the groups (BIC), nothing is
    known: all weights are 0.

    Args:
        own: l of every similarity (`margin_odds`) of s observed pairs.
        cross: l of every similarity (`cross_odds`) of their first sides with other partners, at random.
        groups: leave-out groups among the s pairs.
    """
    others = torch.isfinite(cross[0])
    from scipy.optimize import minimize

    # In float64: rounding of float32 sums ends the search early, where the number of threads says.
    null = cross.masked_fill(~others, 0.0).flatten(1)[:, others.flatten()].double()
    count = null.shape[1] + own.shape[1]

    def odds(weights: Tensor) -> tuple[Tensor, Tensor]:
        mine = weights @ own
        rest = (weights @ null).logsumexp(0)
        level = math.log(count) - torch.logaddexp(rest, mine.logsumexp(0))
        return mine + level, level

    def loss(log_weights: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            at = torch.from_numpy(log_weights).requires_grad_()
            mine = odds(at.exp())[0]
            e = likeliest_share(mine.detach())[0]  # at its best: the gradient through it is 0
            value = -torch.logaddexp(math.log1p(-e) + mine, torch.full_like(mine, math.log(max(e, 1e-300)))).mean()
            (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy()

    bounds = [(math.log(WEIGHTS[0]), math.log(WEIGHTS[1]))] * len(own)
    # Two starts: even shares, and the best similarity alone (where the towers are aligned, the others add little).
    best = max(range(len(own)), key=lambda k: similarities[k].gain)
    starts = [np.full(len(own), -math.log(len(own))), np.where(np.arange(len(own)) == best, 0.0, -3.0)]
    options = {"maxiter": 40, "ftol": 1e-7}
    runs = [minimize(loss, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in starts]
    found = min(runs, key=lambda one: one.fun)
    weights = torch.from_numpy(np.exp(found.x))
    informed = -found.fun * groups > (2 * len(own) + 1) * math.log(max(groups, 2)) / 2
    mine, level = odds(weights)
    information = -found.fun / (1 - likeliest_share(mine)[0]) if informed else 0.0
    known = tuple(replace(one, weight=float(w) * informed) for one, w in zip(similarities, weights, strict=True))
    return Partners(known, float(level) if informed else 0.0, informed, information)


def log_odds(own: Float[Tensor, "k n"], partners: Partners) -> Float[Tensor, " n"]:
    """Return the log likelihood ratio of belonging together, from l of every similarity."""
    weights = torch.tensor([one.weight for one in partners.similarities], dtype=torch.float64)
    return weights @ own.double() + partners.level


def likeliest_share(odds: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the likeliest e in 0 ... 0.98 of the mixture (1 - e) exp(l) + e, and the mean log likelihood there."""
    ratio = odds.clamp(-500, 500).exp()
    low, high = 0.0, MOST_WRONG
    for _ in range(40):
        e = (low + high) / 2
        slope = float(((1 - ratio) / (e + (1 - e) * ratio)).sum())
        low, high = (e, high) if slope > 0 else (low, e)
    return low, float(torch.log(low + (1 - low) * ratio.clamp_min(1e-300)).mean())


def fit_pair_verdict(sums: Histogram, clear: bool = True) -> Verdict:
    """Return the cut on the probability of belonging together where the F1 to be expected is best, and that on z.

    As of two classes, e up to 0.98; but z, which says little of mismatch where rows are many for the columns, has the
    universal threshold sqrt(2 log rows), raised until at most 5 % pass. Unless `clear` (`Partners`), no share is told
    from none and nothing is cut: label_score only ranks.
    """
    z = sums.counts.sum(0).cpu().numpy()
    rows = sums.rows(float(z.sum()))
    if not clear:
        return Verdict(-math.log(max(2 * rows - 1, 1)), 0.0, Cut(0.0), universal_cut(z, rows))
    return replace(fit_verdict(sums, 2, most=MOST_WRONG), z=universal_cut(z, rows))


def alignment(
    first: Float[Tensor, "s d"], second: Float[Tensor, "s d"], codes: Int[Tensor, " s"]
) -> tuple[bool, float, float]:
    """Return whether two towers share a space, how many standard errors speak for it, and the slope of second on first.

    They do where one's own partner has a larger cosine than other pairs' partners, beyond chance: under independence
    its rank among them is uniform, with variance 1/12 a group. Sides are centred and scaled to mean squared norm 1.

    Args:
        codes: group of every pair; pairs of one group are not each other's others.
    """
    units = [side / side.norm(dim=1, keepdim=True).clamp_min(torch.finfo(side.dtype).tiny) for side in (first, second)]
    cosines = units[0] @ units[1].T
    others = codes[:, None] != codes[None]
    below = (cosines < cosines.diagonal()[:, None]).double() + 0.5 * (cosines == cosines.diagonal()[:, None])
    ranked = others.any(1)
    if not bool(ranked.any()):
        return False, 0.0, 0.0
    rank = (below * others).sum(1)[ranked] / others.sum(1)[ranked]
    groups = len(torch.unique(codes[ranked]))
    z = float((rank.mean() - 0.5) * math.sqrt(12 * groups))
    return z > ALIGNED, z, float((first * second).sum() / first.square().sum().clamp_min(1e-300))
