"""Doubt of the labellers: errors where the model is unsure too.

Outputs and labels cannot tell them from a model that knows too little; neighbours can: what a model misses, rows that
look alike share, slips of labellers not. `nearest_rows`, then `find_doubt`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diva_ray.core.levels import level
from diva_ray.core.links import Link, probabilities

MOST_SHARED = 0.3  # of what the model misses, with rows alike: 0.26 of human labels seen, 0.33-0.85 of true ones
FEWEST_MISSES = 100  # expected, among the reference rows
SURE = 0.9  # probability of its likeliest class that half of the rows have, or chance decides, not labellers
AT_ONCE = 1024  # reference rows in one product with a block
MOST_LEVERAGE = 0.1  # mean; ten rows to a free parameter, or misses say how few rows there were


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
    others, cosines, found = _unit(U[:, first:]).T, [], []
    for mine, own in zip(reference.split(AT_ONCE), reference_code.split(AT_ONCE), strict=True):
        cosine = _unit(mine[:, first:]) @ others
        cosine.masked_fill_(own[:, None] == code, -torch.inf)
        best, at = cosine.max(1)
        k = (mine * U[at]).sum(1, keepdim=True)
        cosines.append(best.double())
        found.append(torch.cat([k.double(), facts[at].double()], 1))
    return Nearest(torch.cat(cosines), torch.cat(found))


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
        facts: alpha, h, nearness (1 where the link is not by it), y, f of the reference rows.
        near: their neighbours.
        link: calibration under uniform noise.
        levels: of the classes.
        rate: of uniform noise.
    """
    c = len(levels)
    k, (a_i, h_i, near_i, y_i) = near.facts[:, 0], facts[:, :4].double().T
    a_j, h_j, near_j, y_j = near.facts[:, 1:5].T
    kept = near.cosine.isfinite() & ((1 - h_i) * (1 - h_j) > a_i * a_j * k.square())
    e_i, e_j = _misses(facts[:, 4:].double(), y_i), _misses(near.facts[:, 5:], y_j)
    both_i, both_j = without_both(e_i, e_j, a_i, a_j, h_i, h_j, k)
    parts, variances, sure = [], [], []
    for e, y, h, nearness in ((both_i, y_i, h_i, near_i), (both_j, y_j, h_j, near_j)):
        own = torch.nn.functional.one_hot(y.long(), c).double()
        p = probabilities(level(own - e, h, levels, nearness), link)
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
