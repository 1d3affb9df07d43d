"""A bad condition makes the fit float64; products after it stay in float32 as far as that is enough."""

import numpy as np
import pytest

import diva_ray


def ill_conditioned(least, n=6000, p=60):
    """Classes by a few columns, among columns of scales from 1 down."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, p)) * np.logspace(0, least, p)
    y = (X[:, :3] + 0.3 * generator.standard_normal((n, 3))).argmax(1)
    return {"features": X.astype(np.float32), "label": y, "group": np.arange(n) // 2}


@pytest.mark.parametrize(
    ("least", "condition", "precision"),
    [(-1, (1e3, 1e5), "float32"), (-2.5, (3e5, 1e7), "float32; float64 in the fit"), (-5, (1e7, 1e9), "float64")],
)
@pytest.mark.parametrize("group", [None, "group"])
@pytest.mark.parametrize("errors", ["estimate", "exact"])
def test_derivatives_are_those_of_float64_at_any_condition(least, condition, precision, group, errors):
    options = {"ridge": 1e-4, "standard_errors": errors, "group": group, "cluster": "inline", "quiet": True}
    whole = diva_ray.score(ill_conditioned(least), precision="float64", **options)
    found = diva_ray.score(ill_conditioned(least), **options)
    assert condition[0] < whole.summary["condition"] < condition[1]
    assert (whole.summary["precision"], found.summary["precision"]) == ("float64", precision)
    for name, most in (("derivative", 2e-5), ("standard_error", 2e-5), ("leverage", 1e-5)):
        one, other = (np.asarray(run.samples[name], np.float64) for run in (found, whole))
        assert np.linalg.norm(one - other) <= most * np.linalg.norm(other), name
