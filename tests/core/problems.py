"""Random problems, and diva_ray.core run over blocks of them as an engine would."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from diva_ray.core import derivative as dd
from diva_ray.core import dual, leave_out, losses, ridge
from diva_ray.core.adjoint import AdjointAccumulator, solve_adjoint
from diva_ray.core.folding import Folding
from diva_ray.core.products import multiply_triangular_
from diva_ray.core.second_order import second_order
from tests.oracles import CENTER, Problem, huber

RIDGES = (1e-6, 1.0, 1e6)
KINDS = ("cross_entropy", "squared", "squared_codes", "logistic", "cosine", "huber")
SIZES = {
    "tall": (1, 1, 5, 2, 3, 5, 1, 2, 3, 2, 1), "wide": (1, 1, 5, 2, 3, 2), "crowded": (1, 1, 5, 2, 9, 7, 9, 3, 3, 2, 1),
}  # fmt: skip
COLUMNS = {"tall": 7, "wide": 30, "crowded": 4}  # groups of more rows than columns


def make_problem(
    shape: str = "tall",
    scale: float = 1.0,
    intercept: bool = True,
    kind: str = "squared",
    grouped: bool = True,
    *,
    seed: int = 0,
) -> Problem:
    """Return a problem with weights and validation weights of 0, an offset, a penalty for every column, and, if
    grouped, interleaved groups of `SIZES` rows, the last of weight 0. A class has no training row."""
    generator = torch.Generator().manual_seed(1000 * seed + 17)
    sizes, p, c = SIZES[shape], COLUMNS[shape], 3
    n = sum(sizes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    mixed = torch.randperm(n, generator=generator)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[mixed]
    Z, alpha, v = normal(n, p), 0.2 + 2 * uniform(n), 0.5 + uniform(n)
    alpha[groups == len(sizes) - 1] = 0
    alpha[torch.nonzero(groups == 2)[0]] = 0
    v[torch.nonzero(groups == 3)[0]] = 0
    v[torch.nonzero(groups == 4)[:, 0]] = 0
    Lambda = scale * (0.5 + uniform(p))
    if intercept:
        Z[:, 0], Lambda[0] = 1, 0
    Y = {
        "cross_entropy": torch.randint(0, c - 1, (n,), generator=generator),
        "squared_codes": torch.randint(-1, c - 1, (n,), generator=generator),
        "logistic": (uniform(n, c) > 0.5).double(),
    }.get(kind, normal(n, c))
    if kind == "cross_entropy":
        Y[groups == len(sizes) - 1] = c - 1  # the class missing from the training rows
    groups = groups if grouped else torch.arange(n)
    return Problem(Z, Y, alpha, v, Lambda, 0.3 * normal(n, c), groups, kind.removesuffix("_codes"))


def loss_of(problem: Problem) -> losses.Loss:
    """Return core's loss for the problem's kind."""
    if problem.kind == "cosine":
        return losses.cosine(CENTER)
    if problem.kind == "huber":
        return losses.from_torch(huber)
    return {"cross_entropy": losses.cross_entropy, "squared": losses.squared, "logistic": losses.logistic}[problem.kind]


@dataclass(frozen=True)
class Found:
    """What core says of a problem, rows in the problem's order.

    Attributes:
        loss: L.
        outputs: left-out outputs f, (n, c).
        derivative: dL/dalpha, (n, 1).
        draws, rest: under every sign vector, (n, vectors), and what is added to their mean square, (n,).
        penalty: dL/dLambda, (p,).
        C: pairwise contributions, (n, groups).
        leverage: h, (n,).
        W: ridge solution, (p, c).
        condition: of the inverted matrix.
    """

    loss: float
    outputs: Tensor
    derivative: Tensor
    penalty: Tensor
    C: Tensor
    leverage: Tensor
    W: Tensor
    condition: float
    draws: Tensor | None = None
    rest: Tensor | None = None


def rows_of(problem: Problem, trained: bool) -> Tensor:
    """Return the rows of positive weight, or those of weight 0, whose derivatives may differ by orders of magnitude."""
    return torch.nonzero((problem.alpha > 0) == trained).squeeze(1)


def cut(problem: Problem, blocks: int) -> list[Tensor]:
    """Return row indices of `blocks` blocks of whole groups (some may be small)."""
    codes, sorted_rows = torch.unique(problem.groups), torch.argsort(problem.groups, stable=True)
    parts = codes.tensor_split(min(blocks, len(codes)))
    return (
        [sorted_rows[torch.isin(problem.groups[sorted_rows], part)] for part in parts]
        if blocks > 1
        else [torch.arange(len(problem.Z))]
    )


def fit(problem: Problem, blocks: list[Tensor]) -> ridge.FitSums:
    """Return merged fit sums, one accumulator a block."""
    sums = []
    for rows in blocks:
        b = problem.rows(rows)
        accumulator = ridge.FitAccumulator(b.Z.shape[1], b.offset.shape[1], b.Z.dtype)
        accumulator.add(b.Z, b.Y, b.alpha, b.offset)
        sums.append(accumulator.sums())
    return reduce(add, sums)


def validation(problem: Problem, t: Tensor, e: Tensor, rows: Tensor) -> tuple[dd.Validation, Tensor]:
    """Return the rows sorted by group as contributions see them, and their order."""
    order = rows[torch.argsort(problem.groups[rows], stable=True)]
    group = torch.unique(problem.groups[order], return_inverse=True)[1]
    return dd.Validation(t[order], problem.alpha[order, None] * e[order], group), order


def primal(problem: Problem, blocks: int = 1, signs: Tensor | None = None, folding: Folding | None = None) -> Found:
    """Return what the three passes find."""
    n, (p, c), dtype = len(problem.Z), (problem.Z.shape[1], problem.offset.shape[1]), problem.Z.dtype
    signs = torch.ones(n, 0, dtype=dtype) if signs is None else signs.to(dtype)
    vectors = signs.shape[1]
    parts = cut(problem, blocks)
    solution = ridge.solve(fit(problem, parts), problem.Lambda.double())
    whiten = solution.Linv.T.contiguous().to(dtype)
    r, f, e, t = (torch.empty(n, c, dtype=dtype) for _ in range(4))
    own, h, U, total, sums = (
        [],
        torch.empty(n, dtype=dtype),
        torch.empty(n, p, dtype=dtype),
        0.0,
        [],
    )
    for rows in parts:
        b = problem.rows(rows)
        r[rows] = losses.subtract_from_targets(b.Y, b.Z @ solution.W.to(dtype) + b.offset)
        U[rows] = multiply_triangular_(b.Z.clone(), whiten, upper=True)
        left = leave_out.leave_out(U[rows], r[rows], b.alpha, leave_out.rows_by_group_size(b.groups))
        e[rows], h[rows] = left.e, 1 - left.room
        f[rows] = losses.subtract_from_targets(b.Y, left.e)
        values, g = loss_of(problem)(f[rows], b.Y)
        t[rows], mine = leave_out.adjoint(left, b.v[:, None] * g)
        total += float(b.v.double() @ values.double())
        second = second_order(left, b.alpha, t[rows]) if vectors else None
        more = () if second is None else (
            dd.own_draws(left, r[rows], t[rows], vectors, folding), second.reach, second.bend
        )  # fmt: skip
        own.append(dd.OwnTerms(mine, *more))
        accumulator = AdjointAccumulator(p, c, vectors, dtype, folding=folding)
        accumulator.add(U[rows], b.alpha, left, t[rows], signs[rows], second)
        sums.append(accumulator.sums())
    found, penalty = solve_adjoint(solution, reduce(add, sums))
    d, draws, rest = torch.empty(n, 1, dtype=dtype), torch.empty(n, vectors, dtype=dtype), torch.zeros(n).double()
    for rows, mine in zip(parts, own, strict=True):
        d[rows, 0], draws[rows] = dd.derivative(
            problem.Z[rows], r[rows], mine, signs[rows], found.to(dtype), folding=folding
        )
        if found.moments is not None:
            rest[rows] = dd.drawn_variance(mine.reach, found.moments)
    heard, order = validation(problem, t, e, torch.arange(n))
    code = torch.unique(problem.groups, return_inverse=True)[1]
    C = dd.pairwise_contributions(U @ U[order].T, r, code, heard)
    return Found(total, f, d, penalty, C, h, solution.W, solution.condition, draws, rest)


def dual_form(problem: Problem) -> Found:
    """Return what the n x n form finds."""
    fitted = dual.fit_dual(problem.Z, problem.Y, problem.alpha, problem.Lambda, problem.offset, spread=True)
    groups = leave_out.rows_by_group_size(problem.groups)
    q = (1 - fitted.room) / problem.alpha.clamp_min(torch.finfo(problem.Z.dtype).tiny)
    Q = [(rows, fitted.K[rows[:, :, None], rows[:, None, :]]) for rows in groups]
    left = leave_out.solve_left_out(fitted.r, problem.alpha, q, fitted.room, Q)
    f = losses.subtract_from_targets(problem.Y, left.e)
    values, g = loss_of(problem)(f, problem.Y)
    t, _ = leave_out.adjoint(left, problem.v[:, None] * g)
    penalty = dual.penalty_derivative(fitted, left, problem.alpha, t, problem.Lambda)
    heard, order = validation(problem, t, left.e, torch.arange(len(f)))
    code = torch.unique(problem.groups, return_inverse=True)[1]
    C = dd.pairwise_contributions(fitted.K[:, order].contiguous(), fitted.r, code, heard)
    total = float(problem.v.double() @ values.double())
    return Found(total, f, C.sum(1, keepdim=True), penalty, C, 1 - fitted.room, fitted.W, fitted.condition)
