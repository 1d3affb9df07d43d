"""Fit sums of some columns and of projections, against sums made from those columns themselves."""

import pytest
import torch

from diva_ray.core.ridge import FitSums
from diva_ray.core.subspace import expand, gaussian_projection, projections, restrict

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(n=50, p=11, c=3):
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(n, p, generator=generator, dtype=torch.float64)
    return Z, torch.randn(n, c, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("columns", [list(range(11)), [0, 4, 5, 6], [1, 2, 3, 7, 8, 9, 10]])
def test_sums_of_some_columns_are_a_block(columns):
    Z, Y = draw()
    found = restrict(FitSums(torch.triu(Z.T @ Z), Z.T @ Y), torch.tensor(columns), [])
    part = Z[:, columns]
    torch.testing.assert_close(found.gram, part.T @ part, **EXACT)
    torch.testing.assert_close(found.cross, part.T @ Y, **EXACT)


def test_projected_blocks_and_the_solution_in_the_columns_themselves():
    """Columns 0 | 1..4 | 5..7 | 8..10, of which the second and the last block are projected."""
    Z, Y = draw()
    R, S = gaussian_projection(4, 2, "a", 0), gaussian_projection(3, 2, "b", 0)
    found = restrict(FitSums(torch.triu(Z.T @ Z), Z.T @ Y), torch.arange(11), [(slice(1, 5), R), (slice(8, 11), S)])
    small = torch.cat([Z[:, :1], Z[:, 1:5] @ R, Z[:, 5:8], Z[:, 8:] @ S], 1)
    torch.testing.assert_close(found.gram, small.T @ small, **EXACT)
    torch.testing.assert_close(found.cross, small.T @ Y, **EXACT)
    W = torch.linalg.solve(small.T @ small, small.T @ Y)
    torch.testing.assert_close(Z @ expand(W, [(slice(1, 5), R), (slice(8, 11), S)]), small @ W, **EXACT)
    torch.testing.assert_close(expand(W, []), W, **EXACT)


def test_a_projection_keeps_norms_on_average_and_belongs_to_its_band():
    R = gaussian_projection(2000, 400, "image", 3)
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float((x @ R).norm() / x.norm()) == pytest.approx(1.0, abs=0.15)
    assert float(R.mean()) == pytest.approx(0.0, abs=1e-3)
    alone, together = projections(("image",), [2000], 400, 3), projections(("text", "image"), [90, 2000], 400, 3)
    assert together[0] is None, "90 columns are not projected to 400"
    assert torch.equal(alone[0], R) and torch.equal(together[1], R)
    assert not torch.equal(gaussian_projection(2000, 400, "text", 3), R)
    assert not torch.equal(gaussian_projection(2000, 400, "image", 4), R)
    assert projections(("image",), [2000], None, 3) == ()
