"""What the benchmark compares with, as small functions: the bare BLAS, and what users would pick instead.

Nothing here is used by the tasks. A peer that is not installed raises ModuleNotFoundError.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import blas, lapack
from torch import Tensor


def seconds_of(function: Callable[[], Any], repeats: int = 1) -> float:
    """Return the median seconds of a call."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def gemm_rate(size: int, repeats: int = 2) -> float:
    """Return the best float32 matrix-product rate of numpy's and scipy's BLAS, in operations a second."""
    a = np.ones((size, size), np.float32)
    out = np.empty_like(a, order="F")

    def by_numpy() -> None:
        np.matmul(a, a, out=out)

    def by_scipy() -> None:
        blas.sgemm(1.0, a.T, a.T, c=out, overwrite_c=1)

    best = min(seconds_of(product) for _ in range(repeats) for product in (by_numpy, by_scipy))
    return 2.0 * size**3 / best


def sustained_rate(rows: int, p: int, seconds: float) -> float:
    """Return the rate of SSYRK on blocks (rows, p) over some seconds, counting rows p^2 operations each: what a process
    gets while others work too, where the best of a few would hide them."""
    Z, total = np.ones((rows, p), np.float32), np.zeros((p, p), np.float32, order="F")
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        blas.ssyrk(1.0, Z.T, beta=1.0, c=total, lower=1, overwrite_c=1)
        done += 1
    return done * rows * p**2 / spent


def triangular_rates(rows: int, p: int) -> tuple[float, float]:
    """Return the rates of SSYRK and STRMM on blocks (rows, p), counting rows p^2 operations each."""
    Z = np.random.default_rng(0).standard_normal((rows, p), dtype=np.float32)
    gram, T = np.zeros((p, p), np.float32), np.eye(p, dtype=np.float32)
    syrk = seconds_of(lambda: blas.ssyrk(1.0, Z.T, beta=1.0, c=gram.T, lower=1, overwrite_c=1), 5)
    trmm = seconds_of(lambda: blas.strmm(1.0, T.T, Z.T, lower=1, overwrite_b=1), 5)
    return rows * p * p / syrk, rows * p * p / trmm


def dual_floor(n: int, p: int) -> tuple[float, float]:
    """Return the seconds of SSYRK (n^2 p operations) and of SPOTRF + SPOTRI (n^3) alone."""
    Z = np.random.default_rng(0).standard_normal((n, p), dtype=np.float32)
    K = np.zeros((n, n), np.float32)
    syrk = seconds_of(lambda: blas.ssyrk(1.0, Z.T, trans=1, c=K.T, lower=1, overwrite_c=1))
    K[np.diag_indices(n)] += p

    def invert() -> None:
        factor, _ = lapack.spotrf(K.T, lower=1, clean=0, overwrite_a=1)
        lapack.spotri(factor, lower=1, overwrite_c=1)

    return syrk, seconds_of(invert)


def with_intercept(X: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return the features with a leading column of 1."""
    Z = torch.ones(len(X), X.shape[1] + 1, dtype=dtype)
    Z[:, 1:] = torch.from_numpy(X)
    return Z


def autograd_primal(Z: Tensor, y: Tensor, c: int, penalty: Tensor, alpha: Tensor) -> Tensor:
    """Return dL/dalpha by torch autograd through the p x p formula with Cholesky factor and triangular solves."""
    alpha = alpha.clone().requires_grad_()
    Y = torch.nn.functional.one_hot(y, c).to(Z.dtype)
    weighted = alpha[:, None] * Z
    L = torch.linalg.cholesky(Z.T @ weighted + torch.diag(penalty))
    W = torch.cholesky_solve(weighted.T @ Y, L)
    U = torch.linalg.solve_triangular(L, Z.T, upper=False)
    left_out = Y - (Y - Z @ W) / (1 - alpha * U.square().sum(0))[:, None]
    torch.nn.functional.cross_entropy(left_out, y, reduction="sum").backward()
    assert alpha.grad is not None
    return alpha.grad


def autograd_hat(Z: Tensor, y: Tensor, c: int, penalty: Tensor, alpha: Tensor) -> Tensor:
    """Return dL/dalpha by torch autograd through the n x n hat matrix Z A^-1 Z' D: O(n^2 p) operations."""
    alpha = alpha.clone().requires_grad_()
    A = Z.T @ (alpha[:, None] * Z) + torch.diag(penalty)
    return _from_hat(Z @ torch.linalg.solve(A, Z.T) * alpha, y, c, alpha)


def autograd_kernel(Z: Tensor, y: Tensor, c: int, ridge: float, alpha: Tensor) -> Tensor:
    """Return dL/dalpha by torch autograd through K D (K D + ridge I)^-1, K = Z Z': O(n^3), no intercept."""
    alpha = alpha.clone().requires_grad_()
    KD = Z @ Z.T * alpha
    shifted = KD + ridge * torch.eye(len(Z), dtype=Z.dtype)
    return _from_hat(torch.linalg.solve(shifted, KD, left=False), y, c, alpha)


def _from_hat(hat: Tensor, y: Tensor, c: int, alpha: Tensor) -> Tensor:
    Y = torch.nn.functional.one_hot(y, c).to(hat.dtype)
    left_out = Y - (Y - hat @ Y) / (1 - hat.diagonal())[:, None]
    torch.nn.functional.cross_entropy(left_out, y, reduction="sum").backward()
    assert alpha.grad is not None
    return alpha.grad


def ridge_cv(X: np.ndarray, y: np.ndarray, c: int, ridge: float) -> Any:
    """Return scikit-learn's RidgeCV fitted by leave-one-out with one penalty: losses of the left-out rows only."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=[ridge], store_cv_results=True).fit(X, np.eye(c, dtype=X.dtype)[y])


@dataclass(frozen=True)
class Found:
    """How well wrong labels were found, and in how many seconds; figures by name (AUC or F1)."""

    figures: dict[str, float]
    seconds: float


def cleanlab(X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return cleanlab's label quality and its default cut, from 5-fold LogisticRegression on standardised features;
    rows of a group are in one fold."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = 5 if groups is None else StratifiedGroupKFold(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer rows than folds
        probabilities = np.asarray(cross_val_predict(model, X, y, groups=groups, cv=folds, method="predict_proba"))
    issues = find_label_issues(y, probabilities, n_jobs=1)
    return get_label_quality_scores(y, probabilities), issues


def cleanlab_found(X: np.ndarray, y: np.ndarray, wrong: np.ndarray) -> Found:
    """Return how well cleanlab's 5-fold route finds the wrong labels."""
    from sklearn.metrics import f1_score, roc_auc_score

    start = time.perf_counter()
    quality, issues = cleanlab(X, y)
    seconds = time.perf_counter() - start
    return Found({"AUC": float(roc_auc_score(wrong, -quality)), "F1": float(f1_score(wrong, issues))}, seconds)


def ours_found(table: Any, truth: str, wrong: np.ndarray) -> Found:
    """Return how well `diva_ray.score` finds the wrong labels, everything included: reading, report, writing."""
    import tempfile

    from sklearn.metrics import roc_auc_score

    import diva_ray
    from diva_ray.tasks.setup.result import Result

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        where = {"kind": "inline", "threads": 1}
        result = diva_ray.score(table, truth=truth, cluster=where, output=f"{folder}/out", quiet=True)
        seconds = time.perf_counter() - start
        assert isinstance(result, Result)
        derivative = result.samples["derivative"].to_numpy()
        planted = result.summary["planted"]
    figures = {
        "AUC z": planted["auc_z"],
        "AUC margin": planted["auc_margin"],
        "AUC label_score": planted["auc_label_score"],
        "AUC derivative": float(roc_auc_score(wrong, derivative)),
        "F1 is_label_issue": planted["f1"],
        "F1 is_detrimental": planted["f1_detrimental"],
    }
    return Found(figures, seconds)


def plant(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the labels with a seeded share of them replaced by another class, drawn uniformly."""
    classes, codes = np.unique(label, return_inverse=True)
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(codes))[: round(share * len(codes))]
    codes[rows] = (codes[rows] + generator.integers(1, len(classes), len(rows))) % len(classes)
    return classes[codes]


def reset_memory() -> int:
    """Set this process's memory high-water mark to its present level, and return that level in bytes (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the mark stays where it was: what is then measured is an upper bound
    return _memory("VmRSS")


def memory_above(level: int) -> int:
    """Return the bytes by which the memory high-water mark lies above a level."""
    return max(0, _memory("VmHWM") - level)  # the kernel adds up pages in batches: its figures are off by some of them


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def conditioned(n: int, p: int, condition: float) -> np.ndarray:
    """Return dense float32 features whose Gram matrix has about this condition number in the 1-norm."""
    generator = np.random.default_rng(0)
    G, (turn, _) = generator.standard_normal((n, p)), np.linalg.qr(generator.standard_normal((p, p)))
    spread = condition
    for _ in range(4):
        X = (G * np.logspace(0, -np.log10(spread) / 2, p)) @ turn
        spread *= condition / np.linalg.cond(X.T @ X, 1)
    return X.astype(np.float32)


def largest_error(found: Tensor, true: Tensor) -> float:
    """Return the largest difference relative to the largest entry."""
    return float((found.double() - true.double()).abs().max() / true.double().abs().max())


def auc(wrong: np.ndarray, suspicion: np.ndarray) -> float:
    """Return how often a wrong row is more suspect than a right one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, suspicion))


def f1(wrong: np.ndarray, found: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * float((wrong & found).sum()) / max(float(wrong.sum() + found.sum()), 1.0)
