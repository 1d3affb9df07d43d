"""Standard errors and intervals, beside SciPy and plain sums."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from diva_ray.core.compare import NORMAL, ratio_error, wilson


@pytest.mark.parametrize("wrong", [0, 1, 40, 99, 100])
def test_wilsons_interval_is_that_of_scipy(wrong):
    expected = binomtest(wrong, 100).proportion_ci(0.95, method="wilson")
    assert wilson(wrong / 100, 100.0) == pytest.approx((expected.low, expected.high), abs=1e-7)
    low, high = wilson(wrong / 100, 100.0, 1.0)
    assert low > expected.low or wrong == 0
    assert high < expected.high or wrong == 100
    assert pytest.approx(1.959963985, abs=1e-6) == NORMAL


def test_the_error_of_a_ratio_is_that_of_its_residuals_and_of_a_mean_where_weights_are_one():
    draw = np.random.default_rng(0)
    w, s = 0.1 + draw.random((2, 500))
    mean = s.sum() / w.sum()
    found = ratio_error(mean, (s * s).sum(), (s * w).sum(), float((w * w).sum()), float(w.sum()))
    assert float(found) == pytest.approx(np.sqrt(((s - mean * w) ** 2).sum()) / w.sum(), rel=1e-12)
    plain = ratio_error(s.mean(), (s * s).sum(), s.sum(), 500.0, 500.0)
    assert float(plain) == pytest.approx(s.std() / 500**0.5, rel=1e-10)
    several = ratio_error(torch.tensor([mean, mean]), torch.tensor([(s * s).sum()] * 2), float((s * w).sum()),
                          float((w * w).sum()), float(w.sum()))  # fmt: skip
    assert several.tolist() == pytest.approx([float(found)] * 2, rel=1e-5)
    assert float(ratio_error(1.0, 4.0, 4.0, 4.0, 4.0)) == 0.0  # nothing varies, and rounding makes no NaN
