"""A bad condition makes the fit and the whitening float64; products of whitened rows stay in float32."""

import numpy as np
import pytest

import diva_ray
from diva_ray.tasks.derived import MOST_ERROR

PRECISIONS = {5e-5: "float32 of whitened rows, else float64", 0.0: "float64"}


def ill_conditioned(n=6000, p=60):
    """Classes by a few columns, among columns of scales from 1 to 1e-3."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, p)) * np.logspace(0, -3, p)
    y = (X[:, :3] + 0.3 * generator.standard_normal((n, 3))).argmax(1)
    return {"features": X.astype(np.float32), "label": y, "group": np.arange(n) // 2}


@pytest.mark.parametrize("limit", PRECISIONS)
@pytest.mark.parametrize("group", [None, "group"])
def test_derivatives_are_those_of_float64_and_the_checked_rows_decide(limit, group, monkeypatch):
    monkeypatch.setitem(MOST_ERROR, "float32", limit)
    options = {"ridge": 1e-3, "standard_errors": "estimate", "group": group, "cluster": "inline", "quiet": True}
    whole = diva_ray.score(ill_conditioned(), precision="float64", **options)
    spared = diva_ray.score(ill_conditioned(), **options)
    assert whole.summary["condition"] > 3e4
    assert (whole.summary["precision"], spared.summary["precision"]) == ("float64", PRECISIONS[limit])
    for name, most in (("derivative", 5e-6), ("standard_error", 5e-6), ("leverage", 1e-6)):
        one, other = (np.asarray(run.samples[name], np.float64) for run in (spared, whole))
        assert np.linalg.norm(one - other) <= most * np.linalg.norm(other), name
