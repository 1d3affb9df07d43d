import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from diva_ray.core import factors, products
from tests.oracles import assert_close

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(3)


def normal(*shape, dtype=F64):
    return torch.randn(*shape, generator=GENERATOR, dtype=F64).to(dtype)


def positive_definite(p, condition=100.0, dtype=F64):
    basis = torch.linalg.qr(normal(p, p))[0]
    return (basis * torch.logspace(0, np.log10(condition), p, dtype=F64) @ basis.T).to(dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_gram_sum_over_blocks_is_the_weighted_gram_matrix_for_weights_of_either_sign(weighted):
    Z, weight = normal(50, 6), normal(50) if weighted else torch.ones(50, dtype=F64)
    weight[[3, 7]] = 0 if weighted else 1
    total = products.GramSum(6, F64)
    for rows in torch.arange(50).split([1, 0, 20, 29]):
        total.add(Z[rows], weight[rows] if weighted else None)
    full = sum(weight[i] * torch.outer(Z[i], Z[i]) for i in range(50))
    assert_close(products.symmetric(total.value()), full, 1e-14)
    assert bool((total.value().tril(-1) == 0).all())


def test_a_gram_sum_takes_rows_that_do_not_lie_one_after_another_in_memory():
    Z, weight = normal(6, 40).T, normal(40)
    for w in (None, weight):
        total = products.GramSum(6, F64)
        total.add(Z, w)
        expected = Z.T @ Z if w is None else Z.T @ (Z * w[:, None])
        assert_close(products.symmetric(total.value()), expected, 1e-14)


def test_a_float32_gram_sum_keeps_small_rows_after_many_large_ones():
    """2^24 + 1 is no float32: a sum that is never carried over to float64 would lose every later row."""
    total, rows = products.GramSum(2, torch.float32), products.ROWS_PER_FLUSH
    total.add(torch.full((rows, 2), (2**24 / rows) ** 0.5))
    for _ in range(100):
        total.add(torch.ones(1, 2))
    assert products.symmetric(total.value()).tolist() == [[2.0**24 + 100] * 2] * 2


def test_asking_a_float32_gram_sum_twice_gives_the_same_value():
    Z = normal(products.ROWS_PER_FLUSH, 3, dtype=torch.float32)
    total = products.GramSum(3, torch.float32)
    total.add(Z)
    total.add(Z)
    first = total.value().clone()
    assert_close(total.value(), first, 1e-6)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_triangular_product_is_the_plain_product_and_ignores_the_other_triangle(upper, dtype):
    Z, T = normal(9, 5, dtype=dtype), normal(5, 5, dtype=dtype)
    triangle = T.triu() if upper else T.tril()
    expected = Z.double() @ triangle.double()
    assert_close(products.multiply_triangular_(Z.clone(), T, upper=upper), expected, 1e-6 if dtype != F64 else 1e-14)


def test_the_triangular_product_of_no_rows_is_no_rows():
    assert products.multiply_triangular_(torch.zeros(0, 3), torch.eye(3), upper=True).shape == (0, 3)


def test_the_triangular_product_of_a_transposed_view_is_right_or_refused():
    Z, T = normal(5, 9).T, normal(5, 5).tril()
    expected = Z @ T
    try:
        result = products.multiply_triangular_(Z, T, upper=False)
    except ValueError:
        return
    assert_close(result, expected, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_row_dot_is_the_sum_of_products(dtype):
    a, b = normal(7, 11, dtype=dtype), normal(7, 11, dtype=dtype)
    expected = [sum(x * y for x, y in zip(*pair, strict=True)) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    assert_close(products.row_dot(a, b), expected, 1e-6 if dtype != F64 else 1e-14)
    assert_close(products.row_dot(a.T, b.T), (a * b).sum(0), 1e-6 if dtype != F64 else 1e-14)


def test_the_inverse_factor_takes_the_place_of_the_matrix_and_comes_with_its_condition_number():
    A = positive_definite(8, 1e4)
    given = A.clone()
    Linv, condition = factors.inverse_factor_(given)
    assert Linv.data_ptr() == given.data_ptr()
    assert_close(Linv, Linv.tril(), 1e-15)
    assert_close(Linv @ A @ Linv.T, torch.eye(8, dtype=F64), 1e-12)
    exact = float(torch.linalg.cond(A, 1))
    assert exact / 3 < condition < exact * 1.001


def test_a_matrix_that_is_not_positive_definite_names_its_column_and_the_cure():
    A = torch.diag(torch.tensor([1.0, 2.0, -1.0], dtype=F64))
    with pytest.raises(ValueError, match=r"pivot <= 0 at column 2\. Increase `ridge`"):
        factors.inverse_factor_(A)
    with pytest.raises(ValueError, match=r"pivot <= 0 at row 2\. Increase `ridge`\.$"):
        factors.inverse_(A.clone())
    with pytest.raises(ValueError, match=r"pivot <= 0 at row 2\. Increase `ridge` or use `precision=float64`\.$"):
        factors.inverse_(A.float())


def test_the_whitened_quadratic_is_the_quadratic_of_the_inverse_factor():
    Linv, S = normal(6, 6).tril(), normal(6, 6)
    S = S + S.T
    before = S.clone()
    assert_close(factors.whitened_quadratic(Linv, S), Linv.T @ S @ Linv, 1e-14)
    assert bool((before == S).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_kernel_scales_the_columns(dtype):
    Z, scale = normal(5, 9, dtype=dtype), normal(9, dtype=dtype).abs()
    expected = (Z * scale).double() @ (Z * scale).double().T
    assert_close(products.kernel(Z, scale), expected, 1e-6 if dtype != F64 else 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_inverse_is_the_inverse_with_its_condition_number(dtype):
    A = positive_definite(7, 50.0, dtype)
    inverse, condition = factors.inverse_(A.clone())
    assert_close(inverse @ A, torch.eye(7), 1e-4 if dtype != F64 else 1e-13)
    exact = float(torch.linalg.cond(A.double(), 1))
    assert exact / 3 < condition < exact * 1.01


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 7, 100])
def test_mirroring_by_tiles_of_any_size_copies_the_upper_triangle(tile):
    A = normal(7, 7)
    expected = A.triu() + A.triu(1).T
    assert bool((products.mirror_(A.clone(), tile) == expected).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_general_product_takes_views_and_no_rows(dtype):
    a, b = normal(7, 5, dtype=dtype), normal(4, 7, dtype=dtype)
    expected = (a.double()[:, :, None] * b.double().T[:, None, :]).sum(0)  # a' b'
    found = products.multiply(b, a)
    assert found.dtype == dtype and found.is_contiguous()
    assert_close(found, expected.T, 1e-5 if dtype != F64 else 1e-13)
    assert_close(products.multiply(a.T, b.T), expected, 1e-5 if dtype != F64 else 1e-13)
    assert products.multiply(b[:0], a).shape == (0, 5)


def test_eigenvalues_ascend_and_their_vectors_rebuild_the_matrix():
    A = positive_definite(6)
    before = A.clone()
    values, V = factors.eigen_(A)
    assert bool((values.diff() > 0).all()) and V.data_ptr() == A.data_ptr()
    assert_close(V * values @ V.T, before, 1e-12)


def test_the_whitened_quadratic_reads_the_upper_triangle_only_and_leaves_it_alone():
    for p in (1, 5):
        Linv, S = normal(p, p).tril(), normal(p, p)
        S = S + S.T
        upper = S.triu()
        assert_close(factors.whitened_quadratic(Linv, upper), Linv.T @ S @ Linv, 1e-13)
        assert bool((upper == S.triu()).all())


def test_large_square_matrices_are_worked_on_by_one_thread(monkeypatch):
    """Several of OpenBLAS would overflow their buffer; the next matrix has them again."""
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads():
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with products.safe_threads(torch.zeros(100, 100, dtype=torch.float64)):
            assert threads() == before
        monkeypatch.setattr(products, "ONE_THREAD", 799)
        with products.safe_threads(torch.zeros(100, 100, dtype=torch.float64)):
            assert threads() == {1}
        with products.safe_threads(torch.zeros(100, 100, dtype=torch.float32)):
            assert threads() == before
        assert threads() == before and 2 in before


@pytest.mark.long
def test_a_factor_of_16_385_columns_with_two_threads():
    """A segmentation fault of OpenBLAS 0.3 without `safe_threads`; 2.2 GB, half a minute."""
    code = (
        "import torch; from diva_ray.core.factors import inverse_factor_\n"
        "A = torch.zeros(16_385, 16_385, dtype=torch.float64); A.diagonal().fill_(4.0)\n"
        "L, condition = inverse_factor_(A)\n"
        "assert bool((L.diagonal() == 0.5).all()) and condition == 1.0"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "OPENBLAS_NUM_THREADS": "2"}, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("p", [1, 127, 128, 300])
def test_upper_triangles_are_added_in_place_to_the_bit(p, dtype):
    total, more = normal(p, p), normal(p, p, dtype=dtype)
    expected = (total + more.double()).triu()
    found = products.add_upper_(total, more)
    assert found.data_ptr() == total.data_ptr()
    assert torch.equal(found.triu(), expected)
