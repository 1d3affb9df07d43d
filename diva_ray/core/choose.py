"""Which rows of a pool to take: quotas by class, an order that no one can crowd, and an exact distributed selection.

A pool row is eligible when a coin with the probability that its label is right comes up heads (posterior sampling,
Thompson 1933): of a clean pool everything is, of a noisy one mostly what is right, and no cut has to be set. Among the
eligible the order is random within a class, and leans to rows whose class the fit is unsure of (`lean`), which say
most: choosing the largest derivatives instead crowds into what the model finds easiest, and is worse than chance on a
clean pool; the most uncertain alone (Lewis and Gale 1994) crowd too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.hashing import splitmix

OTHER_SHARES = 0.2  # of the rows, which would need another class for the shares to be alike
HEAVIEST = 2.0  # a chosen row, where rows of its class are few: one that weighs more shapes the fit alone
LEAN = 0.8  # of the rate at which rows are taken that goes by how unsure their class is
MOST_RATE = 4.0  # of a pool far less sure than the table all rows would be early
LATE = -(1 << 63)  # the sign bit: keys are compared as unsigned numbers
BYTES = 8  # of a key, most significant first


def uniform_draw(keys: Int[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """Return a number in [0, 1) for every row, a pure function of its key and the seed."""
    return ((splitmix(keys + splitmix(torch.tensor(seed))) >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def lean(uncertainty: Float[Tensor, " n"], mean: float) -> Float[Tensor, " n"]:
    """Return the rates at which rows are taken, about 1 on average: 1 - LEAN + LEAN u / mean u, at most MOST_RATE;
    float64.

    Args:
        uncertainty: 1 - sum p^2 of the class probabilities of every row (`links.uncertainty`).
        mean: of it, over rows like these; where it is 0 all rows are alike.
    """
    if mean <= 0:
        return torch.ones_like(uncertainty, dtype=torch.float64)
    return (1 - LEAN + LEAN * uncertainty.double() / mean).clamp_max(MOST_RATE)


def waits(keys: Int[Tensor, " n"], seed: int, rates: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
    """Return how long every row waits until it is taken: exponential times with these rates (None: 1), float64.

    The first rows are a weighted random sample without replacement, however many (Efraimidis and Spirakis 2006).
    """
    times = ((_random(keys, seed).double() + 0.5) / (1 << 62)).log().abs()
    return times if rates is None else times / rates.double()


def _random(keys: Tensor, seed: int) -> Tensor:
    return (splitmix(keys + splitmix(torch.tensor(seed + 1_000_003))) >> 1) & ((1 << 62) - 1)


def balanced_keys(
    keys: Int[Tensor, " n"], probability: Float[Tensor, " n"], seed: int, waits: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Tensor]:
    """Return an order of the rows as unsigned 64-bit keys, least first, and which rows are eligible.

    Eligible rows come first, by their waits; the others by falling probability that their label is right, in steps of
    1e-5, and at random within a step: rows beyond all doubt are many, and 46 bits tell a hundred million of them apart
    but for a few dozen pairs.
    """
    eligible = uniform_draw(keys, seed) < probability
    random = _random(keys, seed) & ((1 << 46) - 1)
    doubt = ((1 - probability.double().clamp(0, 1)) * ((1 << 17) - 1)).long() << 46
    early = waits.double().view(torch.int64)  # IEEE 754 numbers above 0 are in the order of these integers
    return torch.where(eligible, early, LATE + doubt + random), eligible


def rising_keys(values: Float[Tensor, " n"], keys: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return an order by rising value as unsigned 64-bit keys; rows of one value in random order."""
    bits = values.float().view(torch.int32).long() & 0xFFFFFFFF
    ordered = torch.where(bits >> 31 == 1, ~bits & 0xFFFFFFFF, bits | 0x80000000)  # IEEE 754 numbers as integers
    return (ordered << 32) | (splitmix(keys) & 0xFFFFFFFF)


def quotas(counts: Int[Tensor, " c"], budget: int, taken: Int[Tensor, " c"] | None = None) -> Int[Tensor, " c"]:
    """Return how many rows of each class to take, never more than there are, so that all that is taken by then is in
    proportion to all there was.

    What was `taken` before counts: of a class too rare for a row in every round, one is taken when its turn has come.
    """
    taken = torch.zeros_like(counts) if taken is None else taken
    total = int(counts.sum())
    if budget >= total:
        return counts.clone()
    share = (counts + taken).double() / max(total + int(taken.sum()), 1)
    short = ((budget + int(taken.sum())) * share - taken).clamp_min(0).minimum(counts.double())
    exact = short * (min(budget / float(short.sum()), 1.0) if float(short.sum()) > 0 else 0.0)
    quota = exact.floor().long()
    while int(quota.sum()) < budget:  # the largest remainders first, where rows are left
        room = quota < counts
        order = torch.argsort(torch.where(room, exact - quota, -torch.inf), descending=True, stable=True)
        quota[order[: min(budget - int(quota.sum()), int(room.sum()))]] += 1
    return quota


def shares_apart(own: Float[Tensor, " c"], other: Float[Tensor, " c"]) -> float:
    """Return which share of the rows would need another class for two sources to have the same shares of classes (the
    total variation distance), less what rows drawn from one source would show on average; both by rows of each class.
    """
    n, m = float(own.sum()), float(other.sum())
    if not n or not m:
        return 0.0
    both = (own + other) / (n + m)
    chance = (2 / math.pi * both * (1 - both) * (1 / n + 1 / m)).sqrt().sum() / 2
    return float((own / n - other / m).abs().sum() / 2 - chance)


def class_weights(own: Float[Tensor, " c"], chosen: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Return the weight of a chosen row of every class with which classes keep the shares of one's own rows; 1 for all
    where the shares are alike (`shares_apart` below OTHER_SHARES), and for a class of which one has no row.

    A fit leans towards the classes that it saw often, and what is chosen has the pool's shares. w_k = t_k / s_k, the
    correction of label shift (Saerens et al. 2002): s the shares of what is chosen, t_k = (n_k + c s_k) / (n + c) those
    of one's own n rows, drawn towards s, as few rows tell them poorly; at most HEAVIEST. All rows are kept: as good as
    a choice in one's own shares, which leaves rows of frequent classes out, or better.

    Args:
        own: one's own rows of each class.
        chosen: rows of each class that are, or will be, chosen.
    """
    weights = torch.ones_like(own)
    if shares_apart(own, chosen) < OTHER_SHARES:
        return weights
    known = own > 0
    n, s = own[known], chosen[known] / chosen[known].sum().clamp_min(1)
    t = (n + len(n) * s) / (n.sum() + len(n))
    weights[known] = (t / s.clamp_min(1e-300)).clamp_max(HEAVIEST)
    return weights


def byte_counts(
    keys: Int[Tensor, " n"], classes: Int[Tensor, " n"], prefix: Int[Tensor, " c"], level: int
) -> Int[Tensor, "c 256"]:
    """Return, per class, how many keys share the class's first `level` bytes, by their next byte: one round of a radix
    selection. A prefix of a class that takes no part is never asked for."""
    shift = 8 * (BYTES - 1 - level)
    same = torch.ones_like(keys, dtype=torch.bool)
    if level:
        same = (keys >> (shift + 8)) & _mask(level) == prefix[classes]
    at = classes[same] * 256 + ((keys[same] >> shift) & 255)
    return torch.bincount(at, minlength=256 * len(prefix)).view(-1, 256)


def next_prefix(
    counts: Int[Tensor, "c 256"], prefix: Int[Tensor, " c"], wanted: Int[Tensor, " c"]
) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]]:
    """Return the prefixes of the keys at rank `wanted` (from 1; 0: none), one byte longer, and ranks inside them."""
    below = counts.cumsum(1)
    byte = (below < wanted[:, None]).sum(1).clamp_max(255)
    before = torch.where(byte > 0, below.gather(1, (byte - 1).clamp_min(0)[:, None]).squeeze(1), 0)
    return (prefix << 8) | byte, wanted - before


def up_to(keys: Int[Tensor, " n"], classes: Int[Tensor, " n"], last: Int[Tensor, " c"], wanted: Tensor) -> Tensor:
    """Return which rows are taken: keys up to the last one of their class, where any of the class are wanted."""
    unsigned = keys.numpy().view(np.uint64) <= last.numpy().view(np.uint64)[classes.numpy()]
    return torch.from_numpy(unsigned) & (wanted > 0)[classes]


def _mask(level: int) -> int:
    return (1 << (8 * level)) - 1
