"""Sums carried from one centre and scale to another equal sums taken there."""

import numpy as np
import pytest
import torch

from diva_ray.core.carry import Frame, carry, of_fit, pack, unpack
from diva_ray.core.ridge import FitAccumulator

N, WIDTHS = 200, (6, 4, 3)


def frame(seed, gaps, project=False):
    generator = torch.Generator().manual_seed(seed)
    means = tuple(torch.randn(d, generator=generator, dtype=torch.float64) for d in WIDTHS)
    scales = tuple(torch.rand(len(WIDTHS), generator=generator, dtype=torch.float64).add(0.5).tolist())
    R = torch.randn(WIDTHS[0], 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Frame(means, scales, (R if project else None, None, None), gaps)


def taken(one, X, there, Y, alpha):
    """Return the sums of the rows in a frame's columns, from the definition."""
    columns = [torch.ones(N, 1, dtype=torch.float64)]
    for values, present, mean, scale, R in zip(X, there, one.means, one.scales, one.project, strict=True):
        z = (values - mean) * scale * present[:, None]
        columns.append(z if R is None else z @ R)
    columns += [there[band].double()[:, None] for band in one.gaps]
    sums = FitAccumulator(one.width, 3, torch.float64)
    sums.add(torch.cat(columns, 1).contiguous(), Y, alpha)
    return sums.sums()


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(("before", "after"), [((), ()), ((1,), (1,)), ((0, 1), (1, 2)), ((1, 2), (1,)), ((1,), ())])
def test_carried_sums_are_those_taken_in_the_new_frame(before, after, project):
    generator = torch.Generator().manual_seed(0)
    X = [torch.randn(N, d, generator=generator, dtype=torch.float64) for d in WIDTHS]
    there = [torch.rand(N, generator=generator) < 0.7 for _ in WIDTHS]
    for band in range(3):
        if band not in set(before) & set(after):
            there[band][:] = True  # rows whose indicator a frame lacks have no gap
    Y, alpha = torch.randint(3, (N,), generator=generator), torch.rand(N, generator=generator, dtype=torch.float64)
    old, new = frame(1, before, project), frame(2, after, project)
    carried, direct = carry(taken(old, X, there, Y, alpha), old, new), taken(new, X, there, Y, alpha)
    scale = float(direct.gram.abs().max())
    np.testing.assert_allclose(carried.gram.triu(), direct.gram.triu(), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(carried.cross, direct.cross, rtol=0, atol=1e-13 * float(direct.cross.abs().max()))
    plain = of_fit(carried, new, intercept=False)
    assert plain.gram.shape == (new.body - 1, new.body - 1)
    assert torch.equal(plain.cross, carried.cross[1 : new.body])


def test_packing_keeps_the_upper_triangle():
    gram = torch.arange(25.0).reshape(5, 5)
    assert torch.equal(unpack(pack(gram), 5), gram.triu())
    assert pack(gram).shape == (15,)
