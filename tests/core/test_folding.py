"""Sign vectors that see less than the derivative does: classes folded onto buckets."""

from __future__ import annotations

import pytest
import torch

from diva_ray.core import derivative as dd
from diva_ray.core.adjoint import AdjointAccumulator, solve_adjoint
from diva_ray.core.folding import folding
from diva_ray.core.leave_out import adjoint, leave_out, rows_by_group_size
from diva_ray.core.ridge import Solution
from diva_ray.core.second_order import second_order

F64 = torch.float64


def test_classes_are_folded_only_where_they_are_more_than_the_buckets():
    assert folding(8, 8, 3, 0, F64) is None and folding(9, 8, 0, 0, F64) is None
    fold = folding(20, 8, 3, 0, F64)
    X = torch.eye(20, dtype=F64)
    for copy in range(3):
        folded = fold.fold(X, copy)
        assert folded.shape == (20, 8) and bool((folded.abs().sum(1) == 1).all())  # every class in one bucket
        assert bool((folded.abs().sum(0) <= 3).all())  # and no bucket has more than one of every run
    again = folding(20, 8, 3, 0, F64)
    assert torch.equal(again.fold(X, 1), fold.fold(X, 1)) and not torch.equal(fold.fold(X, 0), fold.fold(X, 1))


def test_products_of_folded_rows_are_right_on_average_and_spread_as_stated():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 1, 40, generator=generator, dtype=F64)
    fold = folding(40, 16, 6000, 3, F64)
    found = torch.stack([(fold.fold(a, copy) * fold.fold(b, copy)).sum() for copy in range(6000)])
    dot = float((a * b).sum())
    # Runs keep their classes apart: fewer pairs meet than if every class were thrown alone.
    spread = float(a.square().sum() * b.square().sum()) + dot**2 - 2 * float((a.square() * b.square()).sum())
    for run in range(3):
        here = slice(16 * run, 16 * run + 16)
        x, y = a[0, here], b[0, here]
        spread -= float(x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x.square() @ y.square()))
    assert float(found.mean()) == pytest.approx(dot, abs=4 * (spread / 16 / 6000) ** 0.5)
    assert float(found.var()) == pytest.approx(spread / 16, rel=0.1)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("buckets", [4, 16])
def test_a_draw_is_the_signed_sum_of_the_contributions_that_it_sees(groups, buckets):
    generator = torch.Generator().manual_seed(2)
    n, p, c, vectors = 40, 6, 9, 3
    U = torch.linalg.qr(torch.randn(n, p, generator=generator, dtype=F64))[0].contiguous() * 0.9
    r, g = torch.randn(2, n, c, generator=generator, dtype=F64)
    alpha, codes = torch.rand(n, generator=generator, dtype=F64), torch.arange(n) // (3 if groups else 1)
    signs = dd.random_signs(codes, vectors, 0)
    left = leave_out(U, r, alpha, rows_by_group_size(codes))
    t, own = adjoint(left, g)
    fold = folding(c, buckets, vectors, 5, F64)
    assert (fold is None) == (buckets > c)
    second = second_order(left, alpha, t)
    sums = AdjointAccumulator(p, c, vectors, F64, folding=fold)
    sums.add(U, alpha, left, t, signs, second)
    mine = dd.OwnTerms(own, dd.own_draws(left, r, t, vectors, fold), second.reach, second.bend)
    solution = Solution(torch.zeros(p, c, dtype=F64), torch.eye(p, dtype=F64), 1.0)
    found, draws = dd.derivative(U, r, mine, signs, solve_adjoint(solution, sums.sums())[0], folding=fold)
    K, apart = U @ U.T, codes[:, None] != codes
    inner = (alpha[:, None] * left.e) @ t.T * (codes[:, None] == codes)
    S = torch.einsum("ji,ik,jk->jk", K, inner, K)  # K D e t' K' by groups, over pairs i, k of one group
    torch.testing.assert_close(found, ((K * (r @ t.T) + S) * apart).sum(1), rtol=0, atol=1e-12)
    reach = second.reach / (alpha * second.reach).sum()
    for k in range(vectors):
        seen = [x if fold is None else fold.fold(x, k) for x in (r, t)]
        # Every row of a group has the group's bend: it counts once.
        mean = reach[:, None] * (second.bend / (3 if groups else 1))[None]
        mean[:, -1] *= 1 if not groups else 3  # 40 rows: the last group is one row
        expected = ((K * (seen[0] @ seen[1].T) + mean) * apart) @ signs[:, k]
        torch.testing.assert_close(draws[:, k], expected, rtol=0, atol=1e-12)
