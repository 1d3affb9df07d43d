"""What pages of several tasks share: the histogram of weights holds every row."""

import numpy as np
import pytest
import torch

from diva_ray.engine.kernels.samples import WEIGHT_EDGES
from diva_ray.tasks.told.page import weight_histogram

DRAW = np.random.default_rng(0)


def histogram_of(weights, mean=1.0):
    cells = torch.bucketize(torch.from_numpy(np.asarray(weights, float)), WEIGHT_EDGES, right=True) - 1
    return weight_histogram(torch.bincount(cells, minlength=len(WEIGHT_EDGES)).numpy(), mean)


@pytest.mark.parametrize(
    "weights",
    [np.ones(9), DRAW.uniform(0.85, 1.15, 500), np.r_[np.zeros(99), DRAW.exponential(3, 401)],
     np.r_[np.ones(999), 5000.0], DRAW.lognormal(3, 1, 1000), np.full(5, 9999.0)],
)  # fmt: skip
def test_every_weight_is_in_its_bin(weights):
    edges, counts = histogram_of(weights)
    assert counts == np.histogram(weights, edges)[0].tolist() and sum(counts) == len(weights)
    assert 10 <= len(counts) <= 43


def test_the_range_fits_the_weights():
    edges, _ = histogram_of(DRAW.uniform(0.85, 1.15, 500))
    assert 0.83 < edges[0] <= 0.85 and 1.15 <= edges[-1] < 1.17
    edges, _ = histogram_of(np.r_[np.zeros(9), np.ones(90)], mean=2.0)
    assert edges[0] == 0 and 2 <= edges[-1] < 2.3
