"""The dense products that carry the cost: symmetric rank-k sums, triangular and general products.

On a CPU they go through scipy's BLAS: torch offers neither SYRK nor TRMM, which halve the work, and its own BLAS runs
at two fifths of scipy's on AMD. On another device they go through torch, in panels of columns that leave most of the
other triangle out. Matrices are row-major; a symmetric sum fills its upper triangle only until `symmetric` mirrors it.

`inputs` of a product: `full`, as they are, or the precision its inputs are rounded to first: `tf32` (10 bits of
mantissa) or `bf16` (7), with sums in float32 as on the tensor cores of a GPU. A CPU rounds to the last two, then
multiplies as ever: to see the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import blas
from threadpoolctl import threadpool_limits
from torch import Tensor

# Rows summed in float32 before they are added to the float64 total: rounding grows with the run, not with n.
ROWS_PER_FLUSH = 16_384
SUMS = 1_024  # of rows by code that run side by side, but on a CPU
ONE_THREAD = 96 << 10  # bytes of a column of a square matrix beyond which it is worked on by one thread of OpenBLAS
ADDED = 128  # rows of a triangle that are added at a time
PANEL = 1_024  # columns of a triangular or symmetric product worked on at a time, but on a CPU


class GramSum:
    """Running sum of Z' diag(w) Z, in float64 across runs of `ROWS_PER_FLUSH` rows; n p^2 operations for n rows."""

    def __init__(self, p: int, dtype: torch.dtype, device: torch.device | str = "cpu", inputs: str = "full") -> None:
        self.inputs = inputs
        self.run = torch.zeros(p, p, dtype=dtype, device=device)
        self.rows = 0
        self.total: Tensor | None = None
        self.scaled = torch.empty(0, p, dtype=dtype, device=device)

    def add(self, Z: Float[Tensor, "n p"], weight: Float[Tensor, " n"] | None = None) -> None:
        """Add Z' diag(weight) Z, any sign of weight; `weight=None` is 1 and copies nothing."""
        if self.rows and self.rows + len(Z) > ROWS_PER_FLUSH and self.run.dtype != torch.float64:
            self._flush()
        self.rows += len(Z)
        if not self.run.is_cpu:
            self._add_panels(Z, Z if weight is None else Z * weight[:, None])
        elif weight is None:
            _syrk(self.run, rounded(Z, self.inputs), 1.0)
        else:
            self._add_signed(Z, weight)

    def _add_signed(self, Z: Tensor, weight: Tensor) -> None:
        # Two SYRKs over the rows of either sign cost half of one GEMM over all of them.
        root = weight.abs().sqrt()
        for sign in (1.0, -1.0):
            rows = torch.nonzero(weight * sign > 0).squeeze(1)
            if len(rows):
                if len(self.scaled) < len(Z):
                    self.scaled = torch.empty_like(Z)
                scaled = torch.index_select(Z, 0, rows, out=self.scaled[: len(rows)])
                _syrk(self.run, rounded(scaled.mul_(root[rows, None]), self.inputs), sign)

    def _add_panels(self, Z: Tensor, weighted: Tensor) -> None:
        alike = weighted is Z
        Z = _cast(Z, self.inputs)
        weighted = Z if alike else _cast(weighted, self.inputs)
        for panel, stop in _panels(Z.shape[1]):
            into, left, right = self.run[:stop, panel], Z[:, :stop].T, weighted[:, panel]
            if self.inputs == "bf16":
                into.add_(_device_product(left, right, self.inputs))
                continue
            with float32_products(self.inputs):
                into.addmm_(left, right)

    def _flush(self) -> None:
        self.total = self.run.double() if self.total is None else add_upper_(self.total, self.run)
        self.run.zero_()
        self.rows = 0

    def value(self) -> Float[Tensor, "p p"]:
        """Return the sum, upper triangle; float32 when a single run held every row."""
        if self.total is None:
            return self.run
        self._flush()
        return self.total


def copy_double(x: Tensor) -> Tensor:
    """Return a float64 copy."""
    return x.to(torch.float64, copy=True)


def add_upper_(into: Float[Tensor, "p p"], other: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Add the upper triangle of another matrix, perhaps of lower precision, in place; what lies below is undefined.

    On a CPU by numpy, which casts a stretch at a time: torch took two to five times as long for float32 into float64.
    """
    if not into.is_cpu:
        return into.add_(other)
    total, more = into.numpy(), other.numpy()
    for i in range(0, len(total), ADDED):
        rows = total[i : i + ADDED, i:]
        np.add(rows, more[i : i + ADDED, i:], out=rows)
    return into


def symmetric(upper: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Return the full float64 matrix of a sum that holds the upper triangle."""
    return mirror_(copy_double(upper))


def _syrk(upper: Tensor, Z: Tensor, sign: float) -> None:
    # Column-major BLAS sees the transposed views: its lower triangle is our upper one, and nothing is copied.
    syrk = blas.ssyrk if Z.dtype == torch.float32 else blas.dsyrk
    with safe_threads(upper):
        syrk(sign, Z.numpy().T, beta=1.0, c=upper.numpy().T, lower=1, overwrite_c=1)


@contextmanager
def safe_threads(square: Tensor) -> Iterator[None]:
    """Let one thread work on a square matrix that is too large for several.

    Threads of OpenBLAS's SYRK, and of what is made of it (POTRF), share a buffer of 32 MiB, which two of them overflow:
    a Cholesky factor of 16,385 x 16,385 in float64 was a segmentation fault, 14,000 x 14,000 was not.
    """
    if len(square) * square.itemsize <= ONE_THREAD:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


def rounded(x: Tensor, inputs: str) -> Tensor:
    """Return float32 values as a product of such inputs sees them: the nearest bf16, or cut to the bits of TF32."""
    if inputs == "full":
        return x
    return x.bfloat16().to(x.dtype) if inputs == "bf16" else (x.view(torch.int32) & ~0x1FFF).view(x.dtype)


@contextmanager
def float32_products(inputs: str) -> Iterator[None]:
    """Set whether a GPU's float32 products may round their inputs to TF32, whatever the process has set."""
    switch, modern = torch.backends.cuda.matmul, hasattr(torch.backends, "fp32_precision")
    name = "fp32_precision" if modern else "allow_tf32"  # torch 2.9 brought the first
    before, wanted = getattr(switch, name), ("tf32" if inputs == "tf32" else "ieee") if modern else inputs == "tf32"
    setattr(switch, name, wanted)
    try:
        yield
    finally:
        setattr(switch, name, before)


def _cast(x: Tensor, inputs: str) -> Tensor:
    """Return what `_device_product` casts its inputs to, so that it does so once, not for every panel."""
    return x.bfloat16() if inputs == "bf16" and _sums_bf16_in_float32() else x


def _sums_bf16_in_float32() -> bool:
    return "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 brought it


def _device_product(a: Tensor, b: Tensor, inputs: str) -> Tensor:
    if inputs == "bf16" and _sums_bf16_in_float32():
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    if inputs == "bf16":  # TF32 holds every bf16: the same products and sums, at TF32's rate
        return _device_product(rounded(a, inputs), rounded(b, inputs), "tf32")
    with float32_products(inputs):
        return a @ b


def _panels(p: int) -> Iterator[tuple[slice, int]]:
    """Yield (columns, how many rows of an upper triangle reach them)."""
    for start in range(0, p, PANEL):
        stop = min(start + PANEL, p)
        yield slice(start, stop), stop


def multiply(a: Float[Tensor, "n p"], b: Float[Tensor, "p c"], inputs: str = "full") -> Float[Tensor, "n c"]:
    """Return a b, row-major on a CPU; 2 n p c operations. Only what lies neither by rows nor by columns is copied."""
    if not a.is_cpu:
        return _device_product(a, b, inputs)
    a, b = rounded(a, inputs), rounded(b, inputs)
    if not a.numel() or not b.numel():
        return a @ b
    gemm = blas.sgemm if a.dtype == torch.float32 else blas.dgemm
    (left, turn_left), (right, turn_right) = _by_columns(b), _by_columns(a)
    # Column-major BLAS sees the transposed views: (a b)' = b' a'.
    return torch.from_numpy(gemm(1.0, left, right, trans_a=turn_left, trans_b=turn_right).T)


def multiply_add_(into: Float[Tensor, "n c"], a: Float[Tensor, "n p"], b: Float[Tensor, "p c"]) -> None:
    """Add a b to a row-major matrix, in its memory."""
    if not into.is_cpu:
        into.addmm_(a, b)
        return
    gemm = blas.sgemm if a.dtype == torch.float32 else blas.dgemm
    (left, turn_left), (right, turn_right) = _by_columns(b), _by_columns(a)
    gemm(1.0, left, right, beta=1.0, c=into.numpy().T, trans_a=turn_left, trans_b=turn_right, overwrite_c=1)


def _by_columns(x: Tensor) -> tuple[np.ndarray, bool]:
    """Return the column-major array that BLAS takes for x', and whether it has to be transposed."""
    if not x.is_contiguous() and x.T.is_contiguous():
        return x.numpy(), True
    return x.contiguous().numpy().T, False


def multiply_triangular_(
    Z: Float[Tensor, "n p"], T: Float[Tensor, "p p"], *, upper: bool, inputs: str = "full"
) -> Float[Tensor, "n p"]:
    """Return Z T for a triangular T, in the memory of Z on a CPU; n p^2 operations.

    Raises:
        ValueError: not row-major, where BLAS would work on a copy.
    """
    if not Z.is_cpu:
        product = torch.empty_like(Z)
        Z, T = _cast(Z, inputs), _cast(T, inputs)
        for panel, stop in _panels(Z.shape[1]):
            met = slice(0, stop) if upper else slice(panel.start, None)
            product[:, panel] = _device_product(Z[:, met], T[met, panel], inputs)
        return product
    if not (Z.is_contiguous() and T.is_contiguous()):
        raise ValueError("multiply_triangular_: Z and T must be row-major, got strided views. Use `.contiguous()`.")
    if inputs in ("tf32", "bf16"):
        Z, T = Z.copy_(rounded(Z, inputs)), rounded(T, inputs)
    trmm = blas.strmm if Z.dtype == torch.float32 else blas.dtrmm
    trmm(1.0, T.numpy().T, Z.numpy().T, lower=int(upper), overwrite_b=1)
    return Z


def spare(Z: Float[Tensor, "n p"], scratch: Float[Tensor, "m p"] | None = None) -> Float[Tensor, "n p"]:
    """Return rows for `multiply_triangular_` where Z is still needed: on a CPU a copy, in `scratch` of m >= n rows."""
    if not Z.is_cpu:
        return Z
    return Z.clone() if scratch is None else scratch[: len(Z)].copy_(Z)


def add_rows_(into: Float[Tensor, "c p"], codes: Int[Tensor, " n"], rows: Float[Tensor, "n p"]) -> Float[Tensor, "c p"]:
    """Add every row to the row of `into` that its code names, in one order on every run."""
    if into.is_cpu:
        return into.index_add_(0, codes, rows)
    # In one order a GPU adds the rows of one code one after another: so that few codes keep it busy, rows are dealt to
    # as many sums of each code as give it `SUMS` in all.
    copies = max(1, min(SUMS, len(codes) // 8) // max(1, len(into)))
    dealt = codes + len(into) * (torch.arange(len(codes), device=codes.device) % copies)
    sums = into if copies == 1 else into.new_zeros(copies * len(into), into.shape[1])
    # Sorted by code, then added in order: what `index_add_` does of CUDA, but in the order in which its threads come,
    # unless the process asks torch for deterministic algorithms.
    sums.index_put_((dealt,), rows, accumulate=True)
    return into if copies == 1 else into.add_(sums.unflatten(0, (copies, len(into))).sum(0))


def row_dot(a: Float[Tensor, "n p"], b: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """Return the dot product of every row of `a` with the same row of `b`."""
    if a.is_cpu and a.dtype == b.dtype:
        return torch.from_numpy(np.einsum("ij,ij->i", a.numpy(), b.numpy()))  # one read, no product in memory
    return torch.linalg.vecdot(a, b)


def kernel(Z: Float[Tensor, "n p"], scale: Float[Tensor, " p"]) -> Float[Tensor, "n n"]:
    """Return (Z scale)(Z scale)', n^2 p operations, for n < p."""
    scaled = Z * scale
    if not Z.is_cpu:
        return scaled @ scaled.T
    K = torch.zeros(len(Z), len(Z), dtype=Z.dtype)
    syrk = blas.ssyrk if Z.dtype == torch.float32 else blas.dsyrk
    with safe_threads(K):
        syrk(1.0, scaled.numpy().T, trans=1, c=K.numpy().T, lower=1, overwrite_c=1)
    return mirror_(K)


def mirror_(upper: Float[Tensor, "n n"], tile: int = 512) -> Float[Tensor, "n n"]:
    """Copy the upper triangle onto the lower one, tile by tile, in place."""
    n = len(upper)
    for i in range(0, n, tile):
        diagonal = upper[i : i + tile, i : i + tile]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        for j in range(i + tile, n, tile):
            upper[j : j + tile, i : i + tile] = upper[i : i + tile, j : j + tile].T
    return upper
