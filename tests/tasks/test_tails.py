"""Features with heavy tails: rows far from all others are not taken for wrong labels, nor for sure ones."""

import numpy as np
import pytest
from scipy.special import expit, logit

import diva_ray

QUIET = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}


def tailed(rows, columns, classes, freedom, noise, seed):
    """Classes whose features scatter by Student's t, with a share of other labels."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    X = 1.5 * generator.normal(size=(classes, columns))[truth] + generator.standard_t(freedom, size=(rows, columns))
    wrong = generator.random(rows) < noise
    given = np.where(wrong, (truth + generator.integers(1, classes, rows)) % classes, truth)
    return {"features": X, "label": given}, truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("freedom", [2.5, 3])
@pytest.mark.parametrize(("rows", "columns", "classes"), [(1000, 10, 4), (2000, 40, 10)])
def test_right_labels_are_right_however_far_their_rows_lie(rows, columns, classes, freedom, seed):
    data, _ = tailed(rows, columns, classes, freedom, 0.0, seed)
    found = diva_ray.score(data, **QUIET).summary
    assert found["n_label_issues"] == 0 and found["error"] > 0.001


@pytest.mark.parametrize(("rows", "columns", "classes", "least"), [(1000, 10, 4, 0.72), (2000, 40, 10, 0.95)])
def test_wrong_labels_are_found_and_their_number_is_not_overstated(rows, columns, classes, least):
    for seed in range(2):
        data, truth = tailed(rows, columns, classes, 2.5, 0.1, seed)
        found = diva_ray.score({**data, "truth": truth}, truth="truth", **QUIET).summary
        assert found["calibration"]["by_nearness"]
        assert found["planted"]["f1"] > least
        assert found["label_issue_precision"] < found["planted"]["precision"] + 0.05
        assert abs(found["noise_estimate"] - 0.1) < 0.03


@pytest.mark.parametrize(("columns", "ridge"), [(10, 1.0), (700, 1000.0)])  # the second in the dual form
def test_what_is_written_says_how_scores_came_about(columns, ridge):
    data, _ = tailed(600, columns, 4, 2.5, 0.2, 0)
    generator = np.random.default_rng(1)
    weight = generator.choice([0.0, 1.0, 2.0], 600, p=[0.1, 0.6, 0.3])
    data["features"] *= np.exp(generator.normal(size=(600, 1)))  # far or near as a whole
    options = {"weight": "w", "ridge": ridge, "precision": "float64", "outputs": True, **QUIET}
    result = diva_ray.score({**data, "w": weight}, **options)
    rows = result.samples
    assert (result.summary["form"] == "dual") == (columns > 600) and result.summary["calibration"]["by_nearness"]
    heard, near = weight > 0, rows["nearness"].to_numpy()
    q = np.divide(rows["leverage"].to_numpy(), weight, where=heard, out=np.zeros(600))
    np.testing.assert_allclose(near[heard], q[heard].mean() / q[heard], rtol=1e-4)
    twin = {name: np.r_[values, values[heard][:1]] for name, values in {**data, "w": weight}.items()}
    twin["w"][-1] = 0.0  # a row without weight lies where its features lie
    again = diva_ray.score(twin, **options).samples["nearness"].to_numpy()
    assert again[-1] == pytest.approx(again[:-1][heard][0], rel=1e-4)
    given = result.pred_probs()[np.arange(600), np.unique(data["label"], return_inverse=True)[1]]
    e, c, known = result.summary["noise_estimate"], 4, result.summary["calibration"]
    if columns == 10:  # where noise shows, and is uniform
        odds = known["shift"] + known["slope"] * logit(np.clip(given, 1e-10, 1 - 1e-10))
        expected = expit(odds - np.log(e / (1 - e) / (c - 1)))
        np.testing.assert_allclose(rows["label_score"].to_numpy(), expected, atol=1e-3)


def test_features_without_tails_have_no_such_column():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(500, 8)), generator.integers(0, 3, 500)
    result = diva_ray.score({"features": X, "label": y}, **QUIET)
    assert not result.summary["calibration"]["by_nearness"] and "nearness" not in result.samples.column_names


@pytest.mark.parametrize(("tails", "rough"), [(0.2, False), (1.0, True)])
def test_estimated_standard_errors_far_from_exact_ones_are_told(tails, rough):
    """A group of heavy rows has most of the second order that is spread over all others."""
    generator = np.random.default_rng(1)
    X = generator.normal(size=(600, 12)) * np.exp(tails * generator.normal(size=(600, 1)))
    y = X @ generator.normal(size=12) + generator.normal(size=600)
    data = {"features": X, "label": y, "group": np.sort(generator.integers(0, 150, 600))}
    options = {"group": "group", "ridge": 1.0, "precision": "float64", **QUIET}
    estimate, exact = (diva_ray.score(data, standard_errors=kind, **options) for kind in ("estimate", "exact"))
    ratio = estimate.samples["standard_error"].to_numpy() / exact.samples["standard_error"].to_numpy()
    assert (np.quantile(ratio, 0.99) > 2) == rough
    told = [line for line in estimate.lines() if "z is rough. `standard_errors=exact` is not" in line]
    assert len(told) == rough and "z is rough" not in "".join(exact.lines())
