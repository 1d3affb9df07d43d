"""Rates at which labels of one class are given as another, and the link under which they are likeliest."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diva_ray.core.links import SCALES, SHARPNESS, Link, bent, probabilities

CACHED = 100_000  # probabilities of a block of EM, which stay in the cache
ROUNDS = 5  # of taking flips out of outputs: two are mostly enough
DOMINANT = 0.5  # share of right labels of every class, so that T has an inverse (its diagonal dominates)
LEAST_GAIN = 0.5  # of the log likelihood, from a round
LINKS = 6  # fitted side by side at most


class Flips(NamedTuple):
    """Rates (truth, given) at which labels flip, (c, c); `taken`: those taken out of outputs first, where that pays."""

    rates: Tensor
    taken: Tensor | None = None

    def true_outputs(self, F: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """Return the outputs of a fit to the true labels: outputs F are linear in the labels, and of labels that flip
        with rates T the mean is that of true ones times T, so F T^-1 (backward correction: Natarajan, Dhillon,
        Ravikumar, Tewari 2013, Learning with noisy labels; Patrini, Rozza, Menon, Nock, Qu 2017)."""
        return F if self.taken is None else torch.linalg.solve(self.taken.to(F).T, F.T).T


def search_flips(
    F: Float[Tensor, "m c"],
    y: Int[Tensor, " m"],
    free: Bool[Tensor, "c c"],
    T: Float[Tensor, "c c"],
    least: Link,
    *,
    common: bool = True,
) -> tuple[Link, Tensor, Tensor, float]:
    """Return the likeliest link, its flip rates, their expected counts and the log likelihood; ever sharper links until
    three were worse.

    Args:
        F: levelled outputs of a sample of rows.
        y: their given labels.
        free: pairs (truth, given) with a rate of their own.
        T: rates that the search begins with.
        least: no link less than a third as sharp is tried.
        common: whether all other pairs have one rate, which is fitted too; else none of them ever flips.
    """
    best, found = -math.inf, (least, T)
    tried = [s for s in SHARPNESS if s >= least.sharpness / 3]
    together = min(LINKS, max(1, CACHED // F.numel()))  # small samples cost calls, not operations
    for scale in SCALES:
        top, worse, G = -math.inf, 0, bent(F, scale)
        for first in range(0, len(tried), together):
            sharp = tried[first : first + together]
            p = (G * torch.tensor(sharp, dtype=G.dtype)[:, None, None]).softmax(2)
            fitted, _, likelihoods = _expectation_maximisation(p, y, free, T, 6, common)
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
    fitted, N, likelihoods = _expectation_maximisation(probabilities(F, link)[None], y, free, T, 40, common)
    return link, fitted[0], N[0], float(likelihoods[0])


def _expectation_maximisation(
    p: Float[Tensor, "links m c"], y: Tensor, free: Tensor, T: Tensor, steps: int, shares_rate: bool
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
            common = shares_rate * N[:, shared].sum(1) / (rows * shared.sum(1)).sum(1).clamp_min(1e-12)
            T = with_diagonal(torch.where(free, N / rows[..., None], common.clamp_min(1e-6 / c)[:, None, None]))
    return T, N, likelihood


def settle_flips(
    F: Float[Tensor, "m c"],
    y: Int[Tensor, " m"],
    free: Bool[Tensor, "c c"],
    T: Float[Tensor, "c c"],
    least: Link,
    *,
    common: bool = True,
) -> tuple[Link, Flips, Tensor, float]:
    """Return what `search_flips` finds, and goes on to find on outputs that the flips are taken out of, in rounds until
    that makes the labels no likelier.

    With four in ten of a class called another its outputs are 0.6 and 0.4, next to the boundary, and a fourth of the
    flips is seen; without them they are 1 and 0, far from it. Not where a class is mostly called others, as T may have
    no inverse then.
    """
    link, T, N, likelihood = search_flips(F, y, free, T, least, common=common)
    best = (link, Flips(T), N, likelihood)
    for _ in range(ROUNDS):
        if not bool((T.diagonal() > DOMINANT).all()):
            break
        taken = Flips(T, T)
        link, T, N, likelihood = search_flips(taken.true_outputs(F), y, free, T, best[0], common=common)
        if likelihood <= best[3] + LEAST_GAIN:
            break
        best = (link, Flips(T, taken.taken), N, likelihood)
    return best


def with_diagonal(T: Tensor) -> Tensor:
    """Return T, one matrix or several, with a diagonal that makes rows add up to 1."""
    T = T * ~torch.eye(T.shape[-1], dtype=torch.bool)
    return T + torch.diag_embed((1 - T.sum(-1)).clamp_min(1e-3))
