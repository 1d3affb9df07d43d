"""Left-out outputs evened out, over classes and over rows, so that one calibration fits them all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

FAR = 4.0  # times the mean q = z' A^-1 z: with rows beyond it links by nearness are tried too


def class_sums(
    own: Float[Tensor, " n"], y: Int[Tensor, " n"], weight: Float[Tensor, " n"], classes: int
) -> Float[Tensor, "3 c"]:
    """Return per class the number and weight of its rows and the weighted sum of their own outputs; add to merge."""
    rows = (y >= 0) & (weight > 0)
    y, w = y[rows], weight[rows].double()
    columns = torch.stack([torch.ones_like(w), w, w * own[rows].double()])
    return torch.zeros(3, classes, dtype=torch.float64, device=w.device).index_add_(1, y, columns)


def class_levels(sums: Float[Tensor, "3 c"]) -> Float[Tensor, " c"]:
    """Return each class's divisor: the root of its mean own output over that of all classes.

    Ridge shrinks rare and hard classes most: undivided, their rows look mislabelled. Two rows of the overall mean are
    added; not below a fifth of it. The root is empirical (better than powers 0, 1/3, 2/3 and 1).
    """
    rows, weight, own = sums
    mean = own.sum() / weight.sum().clamp_min(1e-300)
    if not mean > 0:
        return torch.ones_like(weight)
    two = 2 * weight.sum() / rows.sum()
    return ((own / mean + two) / (weight + two)).clamp_min(0.2).sqrt()


def level(
    F: Float[Tensor, "n c"],
    h: Float[Tensor, " n"],
    levels: Float[Tensor, " c"],
    near: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n c"]:
    """Return (1 - h_i) f_ik / level_k, times the row's nearness if given, which `link_sums` and `log_odds` expect: a
    row far from all others says less."""
    levelled = F * (1 - h)[:, None] / levels.to(F)
    return levelled if near is None else levelled.mul_(near.to(F)[:, None])


def reach_sums(q: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, " 2"]:
    """Return the weight of the rows and the weighted sum of q_i = z_i' A^-1 z_i; add to merge."""
    w = weight.double()
    return torch.stack([w.sum(), w @ q.double()])


def nearness(q: Float[Tensor, " n"], mean: float) -> Float[Tensor, " n"]:
    """Return mean / q_i, at most a thousand: what levelled outputs are worth where features have heavy tails.

    A row far from all others has large outputs, right or wrong. Within classes that are scale mixtures of normals
    (Andrews and Mallows 1974), x = m_y + s_i e, the log-odds of two classes are linear in x over s_i^2. That is about
    proportional to the distance without the row, z_i' A_-i^-1 z_i = q_i / (1 - h_i), and levelled outputs have the
    factor 1 - h_i already. Of features without tails all q_i are alike.
    """
    return mean / q.clamp_min(1e-3 * mean)
