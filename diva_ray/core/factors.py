"""Work of p^3 on square matrices, in their own memory: inverse factors, eigenvectors, inverses.

On a CPU by scipy's LAPACK, on another device by torch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.linalg import eigh, lapack
from torch import Tensor

from diva_ray.core.products import copy_double, mirror_, safe_threads, symmetric
from diva_ray.errors import NotDefiniteError


def inverse_factor_(A: Float[Tensor, "p p"]) -> tuple[Float[Tensor, "p p"], float]:
    """Return L^-1 (A = L L'), in the memory of A on a CPU, and the estimated condition number of A in the 1-norm;
    2 p^3 / 3 operations.

    Raises:
        NotDefiniteError: A is not positive definite in float64.
    """
    norm = max(float(rows.abs().sum(1).max()) for rows in A.split(512))  # A is symmetric
    if not A.is_cpu:
        L, info = torch.linalg.cholesky_ex(A)
        # LAPACK takes a NaN for a pivot <= 0; of a GPU's solver that is not known.
        lost = torch.nonzero(~torch.isfinite(L.diagonal())).squeeze(1)
        _check_pivots(int(info) or (int(lost[0]) + 1 if len(lost) else 0))
        inverse = torch.eye(len(A), dtype=A.dtype, device=A.device).T  # by columns: solved in its own memory
        torch.linalg.solve_triangular(L, inverse, upper=False, out=inverse)
        del L
        return inverse, norm * max(float((inverse.T @ part).abs().sum(0).max()) for part in inverse.split(512, 1))
    # LAPACK sees A' = A, and its upper factor R (A = R'R) in column-major order is our row-major L.
    with safe_threads(A):
        factor, info = lapack.dpotrf(A.numpy().T, lower=0, clean=1, overwrite_a=1)
        _check_pivots(info)
        reciprocal, _ = lapack.dpocon(factor, anorm=norm, uplo="U")
        inverse, _ = lapack.dtrtri(factor, lower=0, overwrite_c=1)
    return torch.from_numpy(inverse.T), 1.0 / reciprocal if reciprocal > 0 else float("inf")


def _check_pivots(info: int) -> None:
    if info:
        raise NotDefiniteError(
            f"ridge: the normal matrix must be positive definite, got a pivot <= 0 at column {info - 1}. "
            "Increase `ridge`."
        )


def eigen_(A: Float[Tensor, "p p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p p"]]:
    """Return the eigenvalues, ascending, and eigenvectors (columns) of a symmetric A, in its memory on a CPU.

    About 9 p^3 operations; LAPACK's divide and conquer wants two more p x p for itself.

    Raises:
        ValueError: they were not found; SciPy's error on a CPU is one, too.
    """
    if not A.is_cpu:
        if not all(bool(part.isfinite().all()) for part in A.split(512)):  # a GPU's solver may fail for good on these
            raise ValueError("rotate: sums must be finite, got NaN or infinity. Scale the features, or give `ridge`.")
        try:
            values, V = torch.linalg.eigh(A)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage] documented
            raise ValueError(
                f"rotate: sums must be finite, got `{error}`. Scale the features, or give `ridge`."
            ) from error
        if not bool(values.isfinite().all()):  # a GPU's solver need not say so
            raise ValueError(
                "rotate: sums must be finite, got eigenvalues that are not. Scale the features, or give `ridge`."
            )
        return values, V
    for i in range(0, len(A), 512):  # column-major: A may be symmetric up to rounding only
        for j in range(i, len(A), 512):
            here, there = A[i : i + 512, j : j + 512], A[j : j + 512, i : i + 512]
            turned = here.T.clone()
            here.copy_(there.T.clone())
            there.copy_(turned)
    with safe_threads(A):
        values, V = eigh(A.numpy().T, driver="evd", check_finite=False, overwrite_a=True)
    return torch.from_numpy(values), torch.from_numpy(V)


def whitened_quadratic(Linv: Float[Tensor, "p p"], S: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return L'^-1 S L^-1, float64, from the upper triangle of S; p^3 operations, no memory but the result's."""
    if not S.is_cpu:
        return Linv.T @ symmetric(S) @ Linv
    # LAPACK sees L^-1 as the upper factor of its transposed view, and reads and fills the upper triangle of S'.
    whole = mirror_(copy_double(S))
    with safe_threads(whole):
        Q, _ = lapack.dsygst(whole.numpy().T, Linv.numpy().T, itype=2, lower=0, overwrite_a=1)
    return mirror_(torch.from_numpy(Q)).T


def inverse_(A: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], float]:
    """Return the inverse of a positive definite A on a CPU, in its memory, and its condition number; n^3 operations.

    Raises:
        ValueError: A is not positive definite in this precision.
    """
    single = A.dtype == torch.float32
    potrf, potri, pocon = (
        (lapack.spotrf, lapack.spotri, lapack.spocon) if single else (lapack.dpotrf, lapack.dpotri, lapack.dpocon)
    )
    norm = float(A.abs().sum(0).max())
    with safe_threads(A):
        factor, info = potrf(A.numpy().T, lower=1, clean=0, overwrite_a=1)
    if info:
        raise ValueError(
            f"ridge: the kernel matrix must be positive definite, got a pivot <= 0 at row {info - 1}. "
            f"Increase `ridge`{' or use `precision=float64`' if single else ''}."
        )
    reciprocal, _ = pocon(factor, anorm=norm, uplo="L")
    with safe_threads(A):
        inverse, _ = potri(factor, lower=1, overwrite_c=1)
    upper = torch.from_numpy(inverse.T)
    return mirror_(upper), 1.0 / float(reciprocal) if reciprocal > 0 else float("inf")
