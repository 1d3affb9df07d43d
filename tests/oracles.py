"""Naive references from the definitions: brute-force refits and autograd. No code is shared with diva_ray.core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import mpmath  # torch brings it
import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One table in the letters of method.md.

    Attributes:
        Y: class codes (n,) of int64 with -1 for unknown, or values (n, c).
        groups: code of the rows that leave together, (n,); all different for plain leave-one-out.
        kind: the loss, a name in LOSSES.
    """

    Z: Tensor
    Y: Tensor
    alpha: Tensor
    v: Tensor
    Lambda: Tensor
    offset: Tensor
    groups: Tensor
    kind: str = "squared"

    def but(self, **changes) -> Problem:
        """Return the problem with some fields changed."""
        return replace(self, **changes)

    def rows(self, index: Tensor) -> Problem:
        """Return the problem of some rows, in the order of the index."""
        fields = ("Z", "Y", "alpha", "v", "offset", "groups")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})

    @cached_property
    def targets(self) -> Tensor:
        """Y as values: one-hot rows, zeros for an unknown class."""
        if self.Y.ndim == 2:
            return self.Y
        hot = torch.zeros(len(self.Y), self.offset.shape[1], dtype=self.Z.dtype)
        for i, code in enumerate(self.Y.tolist()):
            if code >= 0:
                hot[i, code] = 1
        return hot


def huber(F: Tensor, Y: Tensor) -> Tensor:
    """A loss that a user may bring: Huber's, per row."""
    return torch.nn.functional.huber_loss(F, Y, reduction="none", delta=0.7).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda F, Y: torch.logsumexp(F, 1) - F[torch.arange(len(F)), Y],
    "squared": lambda F, T: ((F - T) ** 2).sum(1),
    "logistic": lambda F, Y: torch.log(1 + torch.exp(-(2 * Y - 1) * (2 * F - 1))).sum(1),
    "cosine": lambda F, Y: (
        1 - torch.nn.functional.cosine_similarity(F - CENTER[: F.shape[1]], Y - CENTER[: F.shape[1]])
    ),
    "huber": huber,
}
CENTER = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)


def row_losses(problem: Problem, F: Tensor, rows: Tensor) -> Tensor:
    """Return l(f_i, y_i) of some rows."""
    Y = problem.Y[rows] if problem.kind == "cross_entropy" else problem.targets[rows]
    return LOSSES[problem.kind](F, Y)


def refit(problem: Problem, keep: Tensor, alpha: Tensor, Lambda: Tensor, form: str) -> Tensor:
    """Return the ridge solution of the kept rows.

    `normal` solves (Z'DZ + Lambda) W = Z'DY. `stationary` solves residual + Z W = Y, Lambda W = Z'D residual jointly,
    whose condition number is the root of the other's: for wide tables and tiny penalties.
    """
    Z, a, T = problem.Z[keep], alpha[keep], (problem.targets - problem.offset)[keep]
    weighted = Z.T * a
    if form == "normal":
        return torch.linalg.solve(weighted @ Z + torch.diag(Lambda), weighted @ T)
    k, p = Z.shape
    s = Lambda.detach().mean().sqrt().clamp_min(1e-8)
    top = torch.cat([s * torch.eye(k, dtype=Z.dtype), Z], 1)
    bottom = torch.cat([-weighted, torch.diag(Lambda) / s], 1)
    right = torch.cat([T, torch.zeros(p, T.shape[1], dtype=Z.dtype)])
    return torch.linalg.solve(torch.cat([top, bottom]), right)[k:]


def left_out_outputs(
    problem: Problem, alpha: Tensor | None = None, Lambda: Tensor | None = None, form: str = "stationary"
) -> Tensor:
    """Return f (n, c), every group predicted by a model refitted without it."""
    alpha = problem.alpha if alpha is None else alpha
    Lambda = problem.Lambda if Lambda is None else Lambda
    F: list[Tensor] = [torch.empty(0)] * len(problem.Z)
    for group in torch.unique(problem.groups).tolist():
        keep = torch.nonzero(problem.groups != group).squeeze(1)
        W = refit(problem, keep, alpha, Lambda, form)
        for i in torch.nonzero(problem.groups == group).squeeze(1).tolist():
            F[i] = problem.Z[i] @ W + problem.offset[i]
    return torch.stack(F)


def group_losses(
    problem: Problem, alpha: Tensor | None = None, Lambda: Tensor | None = None, form: str = "stationary"
) -> Tensor:
    """Return sum_(i in G) v_i l(f_i, y_i) of every group, in ascending order of its code; one refit a group."""
    losses = problem.v * row_losses(
        problem, left_out_outputs(problem, alpha, Lambda, form), torch.arange(len(problem.Z))
    )
    codes = torch.unique(problem.groups).tolist()
    return torch.stack([losses[problem.groups == group].sum() for group in codes])


def refit_loss(
    problem: Problem, alpha: Tensor | None = None, Lambda: Tensor | None = None, form: str = "stationary"
) -> Tensor:
    """Return L, the total validation loss by brute-force refits; differentiable in alpha and Lambda."""
    return group_losses(problem, alpha, Lambda, form).sum()


def gradients(problem: Problem, form: str = "stationary") -> tuple[Tensor, Tensor]:
    """Return dL/dalpha (n,) and dL/dLambda (p,) by autograd through the refits."""
    alpha, Lambda = (x.clone().requires_grad_() for x in (problem.alpha, problem.Lambda))
    found = torch.autograd.grad(refit_loss(problem, alpha, Lambda, form), (alpha, Lambda))
    return found[0], found[1]


def finite_difference(problem: Problem, field: str, index: int, step: float) -> float:
    """Return dL/dalpha_j or dL/dLambda_k by a central difference of refits, error of order step^4."""

    def loss(change: float) -> float:
        moved = getattr(problem, field).clone()
        moved[index] += change
        return float(refit_loss(problem, **{field: moved}))

    near, far = (loss(step) - loss(-step)) / (2 * step), (loss(2 * step) - loss(-2 * step)) / (4 * step)
    return (4 * near - far) / 3


def fifty_digit_derivative(problem: Problem, row: int) -> float:
    """Return dL/dalpha_row of the squared loss from refits in 50-digit arithmetic: where float64 refits lose digits."""
    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -15
        losses = []
        for sign in (1, -1):
            alpha = [mpmath.mpf(a) for a in problem.alpha.tolist()]
            alpha[row] += sign * step
            losses.append(_fifty_digit_loss(problem, alpha))
        return float((losses[0] - losses[1]) / (2 * step))


def _fifty_digit_loss(problem: Problem, alpha: list) -> mpmath.mpf:
    Z, T = problem.Z.tolist(), (problem.targets - problem.offset).tolist()
    total = mpmath.mpf(0)
    for group in torch.unique(problem.groups).tolist():
        keep = [i for i, code in enumerate(problem.groups.tolist()) if code != group]
        kept = mpmath.matrix([Z[i] for i in keep])
        weighted = kept.T * mpmath.diag([alpha[i] for i in keep])
        A = weighted * kept + mpmath.diag(problem.Lambda.tolist())
        W = mpmath.inverse(A) * (weighted * mpmath.matrix([T[i] for i in keep]))
        for i in set(range(len(Z))) - set(keep):
            errors = mpmath.matrix([Z[i]]) * W - mpmath.matrix([T[i]])
            total += problem.v[i].item() * sum(x**2 for x in errors)
    return total


def contributions(problem: Problem) -> Tensor:
    """Return C (n, groups): the derivative of every validation group's own loss, by autograd of each."""
    return gradients_and_contributions(problem)[2]


def gradients_and_contributions(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return dL/dalpha (n,), dL/dLambda (p,) and C (n, groups), by autograd through the same refits."""
    alpha, Lambda = (x.clone().requires_grad_() for x in (problem.alpha, problem.Lambda))
    losses = group_losses(problem, alpha, Lambda)
    found = torch.autograd.grad(losses.sum(), (alpha, Lambda), retain_graph=True)
    each = torch.eye(len(losses), dtype=losses.dtype)
    (C,) = torch.autograd.grad(losses, alpha, each, is_grads_batched=True)
    return found[0], found[1], C.T


def standard_errors(problem: Problem) -> Tensor:
    """Return sqrt(sum_G C_jG^2) of every row."""
    return contributions(problem).square().sum(1).sqrt()


def drawn_contributions(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return what every validation group adds to a draw of every row, (n, groups), and the variance added to the mean
    square of the draws, (n,): the first order K t . r, and of K B K' the mean and the variance under a normal K."""
    Z, D = problem.Z, torch.diag(problem.alpha)
    K = Z @ torch.linalg.inv(Z.T @ D @ Z + torch.diag(problem.Lambda)) @ Z.T
    every = torch.arange(len(Z))
    W = refit(problem, every, problem.alpha, problem.Lambda, "stationary")
    r = problem.targets - problem.offset - Z @ W
    f = left_out_outputs(problem, problem.alpha, problem.Lambda, "stationary").detach().requires_grad_()
    (g,) = torch.autograd.grad((problem.v * row_losses(problem, f, every)).sum(), f)
    e = problem.targets - f.detach()
    codes = torch.unique(problem.groups).tolist()
    R, found, square = torch.zeros(len(Z), dtype=Z.dtype), [], 0.0
    for code in codes:
        G = torch.nonzero(problem.groups == code).squeeze(1)
        Q, DG = K[G][:, G], D[G][:, G]
        t = torch.linalg.solve((torch.eye(len(G), dtype=Z.dtype) - Q @ DG).T, g[G])
        B, RG = (DG @ e[G] @ t.T + t @ e[G].T @ DG) / 2, Q - Q @ DG @ Q
        R[G] = RG.diagonal()
        square += float(torch.trace(B @ RG @ B @ RG))
        found.append(((K[:, G] @ t * r).sum(1), float(torch.trace(B @ RG)), problem.groups == code))
    a = R / (problem.alpha * R).sum()
    columns = [torch.where(own, torch.zeros_like(a), first + a * mean) for first, mean, own in found]
    return torch.stack(columns, 1), 2 * a.square() * square


def held_out_loss(train: Problem, held_out: Problem, alpha: Tensor | None = None) -> Tensor:
    """Return the loss of separate validation rows under one model fitted to the training rows (paper Prop. 2)."""
    alpha = train.alpha if alpha is None else alpha
    W = refit(train, torch.arange(len(train.Z)), alpha, train.Lambda, "stationary")
    rows = torch.arange(len(held_out.Z))
    return (held_out.v * row_losses(held_out, held_out.Z @ W + held_out.offset, rows)).sum()


def held_out_gradient(train: Problem, held_out: Problem) -> Tensor:
    """Return dL/dalpha of the training rows for separate validation rows, by autograd."""
    alpha = train.alpha.clone().requires_grad_()
    return torch.autograd.grad(held_out_loss(train, held_out, alpha), alpha)[0]


def grid_loss(problem: Problem, pattern: Tensor, ridges: list[float]) -> Tensor:
    """Return L at Lambda = ridge * pattern, by refits at every ridge."""
    return torch.stack([refit_loss(problem, Lambda=ridge * pattern) for ridge in ridges])


def sklearn_grid(problem: Problem, ridges: list[float], intercept: bool) -> Tensor:
    """Return the squared left-out errors (n, c, ridges) of scikit-learn's RidgeCV: one penalty, positive weights."""
    body = problem.Z[:, int(intercept) :].numpy()
    model = RidgeCV(alphas=ridges, fit_intercept=intercept, store_cv_results=True)
    targets = (problem.targets - problem.offset).numpy()
    model.fit(body, targets, sample_weight=problem.alpha.numpy())
    # scikit-learn weights the errors; here a row's weight and what it counts in validation are two things.
    errors = np.asarray(model.cv_results_).reshape(len(body), targets.shape[1], len(ridges))
    return torch.from_numpy(errors) / problem.alpha[:, None, None]


def assert_close(actual, expected, rtol: float, what: str = "values") -> None:
    """Fail if an entry is off by more than rtol times the largest expected entry; atol is 0."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    same = torch.isinf(expected) & (actual == expected)
    finite = expected[torch.isfinite(expected)]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    error = torch.where(same, 0.0, (actual - expected).abs())
    bad = ~(error <= rtol * scale)  # NaN is bad
    if bool(bad.any()):
        at = int(torch.where(bad, error.nan_to_num(torch.inf, torch.inf), -1.0).argmax())
        index = tuple(int(k) for k in np.unravel_index(at, tuple(error.shape))) if error.ndim else ()
        got, want = float(actual.flatten()[at]), float(expected.flatten()[at])
        ratio = got / want if want else float("nan")
        raise AssertionError(
            f"{what}{list(index)}: got {got:.17g}, expected {want:.17g}, ratio {ratio:.12g}; off by "
            f"{abs(got - want) / scale if scale else float('inf'):.3g} of the largest, tolerance {rtol:.3g}; "
            f"{int(bad.sum())} of {bad.numel()} entries are off"
        )
