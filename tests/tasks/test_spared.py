"""A bad condition makes the fit and its residuals float64; products after them stay in float32 where that is enough."""

import numpy as np
import pytest

import diva_ray

FITTED = "float32; float64 in the fit"


def ill_conditioned(least, n=3000, p=60, numbers=False):
    """Columns of scales from 1 down, turned so that every one shares in all; classes or numbers by the largest."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, p)) * np.logspace(0, least, p)
    noise = 0.3 * generator.standard_normal((n, 3))
    y = (X[:, :3] @ [1.0, -2.0, 1.0] + noise[:, 0]) if numbers else (X[:, :3] + noise).argmax(1)
    turned = X @ np.linalg.qr(generator.standard_normal((p, p)))[0]
    return {"features": turned.astype(np.float32), "label": y, "group": np.arange(n) // 2}


@pytest.mark.parametrize(
    ("least", "condition", "precision"),
    [(-1, (1e3, 1e5), "float32"), (-2.3, (3e5, 3e6), FITTED), (-5, (3e6, 1e9), "float64")],
)
@pytest.mark.parametrize(
    ("group", "errors"),
    [
        pytest.param(group, errors, marks=[pytest.mark.long] * ((group is None) == (errors == "exact")))
        for group in (None, "group")
        for errors in ("estimate", "exact")
    ],
)
def test_derivatives_are_those_of_float64_at_any_condition(least, condition, precision, group, errors):
    options = {"ridge": 1e-4, "standard_errors": errors, "group": group, "cluster": "inline", "quiet": True}
    whole = diva_ray.score(ill_conditioned(least), precision="float64", **options)
    found = diva_ray.score(ill_conditioned(least), **options)
    assert condition[0] < whole.summary["condition"] < condition[1]
    assert (whole.summary["precision"], found.summary["precision"]) == ("float64", precision)
    for name, most in (("derivative", 3e-5), ("standard_error", 3e-5), ("leverage", 1e-5)):
        one, other = (np.asarray(run.samples[name], np.float64) for run in (found, whole))
        assert np.linalg.norm(one - other) <= most * np.linalg.norm(other), name


@pytest.mark.parametrize(("p", "least"), [(60, -2.2), (10, -2.5), (40, -2.4)])
def test_derivatives_that_nearly_cancel_lose_little_of_a_standard_error(p, least):
    """Of numbers that are fitted well: differences count against what else is not known of them."""
    options = {"ridge": 1e-4, "standardize": "none", "cluster": "inline", "quiet": True}
    rows = ill_conditioned(least, p=p, numbers=True)
    whole, found = (diva_ray.score(rows, precision=precision, **options) for precision in ("float64", "auto"))
    assert found.summary["precision"] == FITTED
    d, exact = (np.asarray(run.samples["derivative"], np.float64) for run in (found, whole))
    assert np.abs((d - exact) / np.asarray(whole.samples["standard_error"], np.float64)).max() < 0.01


def test_columns_that_only_float64_tells_apart_are_fitted_in_it():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((3000, 20))
    twins = np.concatenate([X, X + 1e-6 * generator.standard_normal(X.shape)], 1)
    rows = {"features": twins.astype(np.float64), "label": (X[:, :3] + generator.standard_normal((3000, 3))).argmax(1)}
    options = {"ridge": 1e-9, "cluster": "inline", "quiet": True}
    whole, found = (diva_ray.score(rows, precision=precision, **options) for precision in ("float64", "auto"))
    assert found.summary["precision"] == "float64" and found.summary["condition"] > 1e9
    assert found.samples.equals(whole.samples)
