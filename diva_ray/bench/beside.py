"""Ours beside what computes the same otherwise: torch autograd, scikit-learn, cleanlab."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from diva_ray.bench import peers
from diva_ray.bench.speed import Figure, Sizes, derivative_of, draw, loaded, ours, scored, setup_of
from diva_ray.tasks.fit.derive import derive, penalty_pattern


def accuracy(s: Sizes) -> Iterator[Figure]:
    """Both modes against torch autograd in float64."""
    n, p = s.accuracy_n, 200
    y = draw(n, 2, s.c)[1]
    for condition, goal in ((1e3, 1e-5), (2.5e4, 5e-5), (1e8, 5e-5)):
        X, ridge = peers.conditioned(n, p, condition), 1e-3 * n / condition
        runner, setup = loaded(X, y), setup_of(p, s.c)
        found = derive(runner, setup, ridge, n, "estimate")
        Z, penalty = peers.with_intercept(X, torch.float64), ridge * penalty_pattern(setup)
        true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty, torch.ones(n, dtype=torch.float64))
        products = str(found.setup.dtype).removeprefix("torch.")
        note = f"n={n:,} p={p}; measured condition {found.condition:.1e}, products chosen: {products}"
        error = peers.largest_error(scored(runner)[:, 0], true)
        yield Figure(f"float32 mode, condition {condition:.1e}", error, "", goal, note=note)
    n, p = 400, 30
    X, y = draw(n, p, s.c)
    weight = np.random.default_rng(1).uniform(0, 2, n)
    runner, setup = loaded(X, y, weight), setup_of(p, s.c, torch.float64)
    derivative_of(runner, setup)
    Z = peers.with_intercept(X, torch.float64)
    true = peers.autograd_primal(Z, torch.from_numpy(y), s.c, penalty_pattern(setup), torch.from_numpy(weight))
    error = peers.largest_error(scored(runner)[:, 0], true)
    yield Figure("float64 mode against torch autograd", error, "", 1e-10, note=f"n={n} p={p}, random weights")


def ridge_cv(s: Sizes) -> Iterator[Figure]:
    """Scikit-learn's RidgeCV, one penalty."""
    X, y = draw(s.n, s.p, s.c)
    one, level = ours(s, X, y), peers.reset_memory()
    seconds = peers.seconds_of(lambda: peers.ridge_cv(X, y, s.c, 1.0))
    note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB; losses only, no derivative"
    yield Figure("RidgeCV leave-one-out / ours", seconds / one, "x", 3.5, True, note)


def autograd(s: Sizes) -> Iterator[Figure]:
    """Torch autograd through the careful p x p formula."""
    X, y = draw(s.n, s.p, s.c)
    one = ours(s, X, y)
    Z, labels = peers.with_intercept(X, torch.float32), torch.from_numpy(y)
    penalty = penalty_pattern(setup_of(s.p, s.c)).float()
    del X
    level = peers.reset_memory()
    seconds = peers.seconds_of(lambda: peers.autograd_primal(Z, labels, s.c, penalty, torch.ones(s.n)))
    note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB"
    yield Figure("torch autograd, primal formula / ours", seconds / one, "x", 4.5, True, note)


def textbook(s: Sizes) -> Iterator[Figure]:
    """Torch autograd through the n x n formula, at a size where that fits."""
    m = s.textbook_n
    X, y = draw(s.n, s.p, s.c)
    one, small = ours(s, X, y), ours(s, X[:m], y[:m])
    Z, labels = peers.with_intercept(X[:m], torch.float32), torch.from_numpy(y[:m])
    penalty, alpha = penalty_pattern(setup_of(s.p, s.c)).float(), torch.ones(m)
    del X
    forms: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "hat matrix": (2, lambda: peers.autograd_hat(Z, labels, s.c, penalty, alpha)),
        "kernel": (3, lambda: peers.autograd_kernel(Z[:, 1:], labels, s.c, 1.0, alpha)),
    }
    for name, (power, run_form) in forms.items():
        level = peers.reset_memory()
        seconds = peers.seconds_of(run_form)
        note = f"{seconds:.2f} s, {peers.memory_above(level) / 1e9:.2f} GB; ours {small:.2f} s"
        yield Figure(f"torch autograd, n x n {name}, n={m:,} / ours", seconds / small, "x", note=note)
        scaled = seconds * (s.n / m) ** power
        yield Figure(f"  scaled by n^{power} to n={s.n:,}, NOT RUN", scaled / one, "x", note=f"{scaled:,.0f} s")


def cleanlab(s: Sizes) -> Iterator[Figure]:
    """Cleanlab with 5-fold logistic regression."""
    X, y = draw(s.n, s.p, s.c)
    m = round(s.n * s.cleanlab_share)
    one, small = ours(s, X, y), ours(s, X[:m], y[:m])
    seconds = peers.seconds_of(lambda: peers.cleanlab(X[:m], y[:m]))
    note = f"measured: {seconds:.1f} s, ours {small:.2f} s"
    yield Figure(f"cleanlab 5-fold, n={m:,} / ours there", seconds / small, "x", note=note)
    scaled, label = seconds * s.n / m, "measured" if m == s.n else "EXTRAPOLATED linearly"
    yield Figure(f"cleanlab 5-fold, n={s.n:,} / ours", scaled / one, "x", 15, True, f"{label}: {scaled:.0f} s")
