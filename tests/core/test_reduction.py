import pytest
import torch

from diva_ray.core import reduction
from tests.oracles import assert_close

F64 = torch.float64


def symmetric(k, rank=None, seed=0):
    """A random positive semi-definite matrix."""
    Z = torch.randn(2 * k if rank is None else rank, k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return Z.T @ Z


def dense(tiles, k):
    """The matrix that tiles are of."""
    count, b, _ = tiles.diagonal.shape
    B = torch.zeros((count + 1) * b, (count + 1) * b, dtype=F64)
    for j in range(count):
        here, below = slice(j * b, j * b + b), slice(j * b + b, j * b + 2 * b)
        B[here, here] = tiles.diagonal[j]
        B[below, here], B[here, below] = tiles.below[j], tiles.below[j].T
    assert int(B[k:].count_nonzero() + B[:, k:].count_nonzero()) == 0  # the padding
    return B[:k, :k]


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("k", [1, 3, 4, 5, 8, 9, 12, 13, 63, 64, 65, 100])
def test_tiles_and_basis_are_an_orthogonal_reduction_in_the_memory_of_the_matrix(k, rank, monkeypatch):
    monkeypatch.setattr(reduction, "WIDTH", 4)  # and slabs of 32 rows
    Q = symmetric(k, rank)
    before, at = Q.clone(), Q.data_ptr()
    tiles = reduction.block_tridiagonal_(Q)
    assert Q.data_ptr() == at
    assert_close(Q.T @ Q, torch.eye(k, dtype=F64), 1e-14)
    assert_close(Q @ dense(tiles, k) @ Q.T, before, 1e-14)


def test_columns_of_zeros_and_columns_alike_are_reduced_too(monkeypatch):
    monkeypatch.setattr(reduction, "WIDTH", 3)
    A = symmetric(25)
    A[4:9], A[:, 4:9] = 0, 0
    A[11:14], A[:, 11:14] = A[10], A[:, 10:11]
    A = (A + A.T) / 2
    Q = A.clone()
    tiles = reduction.block_tridiagonal_(Q)
    assert_close(Q @ dense(tiles, 25) @ Q.T, A, 1e-14)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_matrix_that_is_not_finite_is_one_line(bad, monkeypatch):
    monkeypatch.setattr(reduction, "WIDTH", 4)
    A = symmetric(21)
    A[9, 9] = bad
    with pytest.raises(ValueError, match=r"rotate: sums must be finite, got NaN or infinity\. Scale the features"):
        reduction.block_tridiagonal_(A)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("k", [3, 8, 22])
def test_whitened_columns_have_the_products_of_the_inverse_under_every_ridge(k, dtype, monkeypatch):
    monkeypatch.setattr(reduction, "WIDTH", 4)
    A, ridges = symmetric(k), torch.tensor([1e-2, 1.0, 1e3], dtype=F64)
    tiles = reduction.block_tridiagonal_(A)
    B, chain = dense(tiles, k), reduction.factor(tiles, ridges, dtype)
    X = torch.randn(k, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    for r, ridge in enumerate(ridges):
        panels = list(chain.whitened(r, X.to(dtype)))
        assert all(panel.dtype == dtype for panel in panels)
        U = torch.cat(panels).double()
        expected = X.T @ torch.linalg.solve(B + ridge * torch.eye(k, dtype=F64), X)
        assert_close(U.T @ U, expected, 1e-12 if dtype == F64 else 1e-5)


def test_a_ridge_at_which_the_matrix_is_not_positive_definite_whitens_to_nan_and_others_do_not(monkeypatch):
    monkeypatch.setattr(reduction, "WIDTH", 4)
    tiles = reduction.block_tridiagonal_(symmetric(14, rank=5) - 3 * torch.eye(14, dtype=F64))
    chain = reduction.factor(tiles, torch.tensor([1e-9, 10.0], dtype=F64), F64)
    lost, kept = (torch.cat(list(chain.whitened(r, torch.ones(14, 2, dtype=F64)))) for r in (0, 1))
    assert bool(lost.isnan().any(0).all()) and bool(kept.isfinite().all())


def test_tiles_are_for_many_columns_unless_rows_are_far_more():
    k = reduction.NARROWEST
    assert reduction.takes_tiles(k, 2 * k) and reduction.takes_tiles(4 * k, 8 * k)
    assert not reduction.takes_tiles(k - 1, 2 * k)
    assert not reduction.takes_tiles(k, k * k)
