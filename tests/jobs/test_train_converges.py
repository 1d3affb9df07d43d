"""Training that ends where it should: the step by default, what is said where it did not, like held against like."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

import diva_ray
from tests.jobs.problems import digits_split
from tests.jobs.test_train import INLINE, QUICK, by_name, noisy, run_of


def diabetes(moved=20):
    """Return rows of ten columns, of whose targets some are moved far away, and test rows."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    draw = np.random.default_rng(0)
    order = draw.permutation(len(y))
    X, y = X[order], y[order].copy()
    y[:moved] += 250 * np.where(draw.random(moved) < 0.5, 1, -1)
    rows = [{f"x{j}": X[part, j] for j in range(10)} | {"label": y[part]} for part in (slice(342), slice(342, None))]
    return rows[0], rows[1]


def trained(data, test, **options):
    return diva_ray.train(data, test, **{"cluster": INLINE, "seeds": 2, "quiet": True, **options})


# --- the step --------------------------------------------------------------------------------------------------------


def test_numbers_are_learned_with_the_rate_by_default():
    result = trained(*diabetes(), features="*")
    arms, s = by_name(result), result.summary
    assert arms["uniform"]["error"] < 1.1 * arms["closed_form"]["error"] < 0.8 * s["learns_nothing"]
    assert 0.02 < s["learning_rate"] < 0.5 and s["warnings"] == [] == s["diverged"]
    assert f"learning_rate {s['learning_rate']:g}" in result.lines()[0]
    assert f"rate {s['learning_rate']:g} (auto)" in result.folder.read("report.html").decode()


@pytest.mark.parametrize("weights", [None, "some"])
def test_a_rate_that_is_too_large_is_told_on_terminal_page_and_summary(tmp_path, weights):
    data, test = diabetes()
    some = run_of(tmp_path / "run", np.where(np.arange(342) < 20, 0.1, 1.0))
    result = trained(data, test, features="*", learning_rate=1.0, weights=weights and some)
    s, page = result.summary, result.folder.read("report.html").decode()
    (said,) = s["warnings"]
    assert "worse than always predicting the mean (" in said and "Lower `learning_rate` (1 now)" in said
    assert f"warning: {said}" in result.lines() and "worse than always predicting the mean" in page
    assert s["diverged"] == [name for name in ("weighted", "uniform") if name in by_name(result)]
    if weights:
        assert by_name(result)["weighted"]["verdict"] == "did not converge" and "Training did not converge" in page


@pytest.mark.parametrize("task", ["regression", "classification", "multilabel"])
@pytest.mark.parametrize("unit", [0.01, 1.0, 300.0])
def test_the_rate_follows_the_scale_of_features_as_they_are(task, unit):
    draw = np.random.default_rng(0)
    X = draw.standard_normal((1500, 5))
    score = X[:, 0] - X[:, 1]
    label = {
        "regression": 1000 * score + draw.standard_normal(1500), "classification": (score > 0).astype(int),
        "multilabel": [["a"] * int(s > 0) + ["b"] * int(x > 0) for s, x in zip(score, X[:, 2], strict=True)],
    }[task]  # fmt: skip
    rows = {"features": unit * X, "label": label}
    data, test = ({name: values[part] for name, values in rows.items()} for part in (slice(1000), slice(1000, 1500)))
    result = trained(data, test, standardize="none")
    s, error = result.summary, by_name(result)["uniform"]["error"]
    assert error < 0.2 * s["learns_nothing"] or s["warnings"], "a column of 1 may be far larger, or smaller"
    assert s["diverged"] == [] and (unit != 1.0 or error < 0.1 * s["learns_nothing"]), result.lines()


def test_a_module_of_ones_own_takes_a_tenth_or_less():
    data, test = noisy(300)[:2]

    def deep(p, c):
        return torch.nn.Sequential(torch.nn.Linear(p, 16), torch.nn.ReLU(), torch.nn.Linear(16, c))

    assert trained(data, test, **QUICK).summary["learning_rate"] == 1.0
    assert trained(data, test, module=deep, **QUICK).summary["learning_rate"] == 0.1
    numbers = [{**rows, "label": 1e4 * rows["features"][:, 0]} for rows in (data, test)]
    result = trained(*numbers, module=deep, epochs=20)
    assert result.summary["diverged"] == [] and by_name(result)["uniform"]["error"] < result.summary["learns_nothing"]
    heavy = [{**rows, "features": rows["features"] ** 5} for rows in numbers]
    assert trained(*heavy, module=deep, batch_size=8, **QUICK).summary["learning_rate"] < 0.1


# --- what is said ----------------------------------------------------------------------------------------------------


def test_training_that_was_cut_short_is_told():
    X, y, _, X_test, y_test = digits_split(0.2)
    data, test = {"features": X, "label": y}, {"features": X_test, "label": y_test}
    (said,) = trained(data, test, epochs=3, learning_rate=0.04).summary["warnings"]
    assert said.startswith("`uniform`: behind the closed form of the same weights, beyond chance (0.")
    assert "the training loss was still falling (" in said and "more `epochs` (3 now) may tell more" in said
    result = trained(data, test, epochs=30)
    assert result.summary["warnings"] == [], "the loss of classes falls on for ever: that is no warning"
    (note,) = result.summary["notes"]
    assert "what weights are worth hangs on `epochs` (30 now)" in note and f"note: {note}" in result.lines()
    assert "what weights are worth hangs on" in result.folder.read("report.html").decode()


def test_features_that_tell_nothing_are_no_training_that_went_wrong():
    draw = np.random.default_rng(0)
    rows = {"features": draw.standard_normal((600, 5)), "label": draw.standard_normal(600)}
    data, test = ({name: values[part] for name, values in rows.items()} for part in (slice(400), slice(400, 600)))
    summary = trained(data, test).summary
    assert summary["diverged"] == []
    assert any("no better than always predicting the mean (" in said for said in summary["warnings"])


@pytest.mark.parametrize("task", ["classification", "multilabel", "offset"])
def test_what_learns_nothing_is_the_commonest_class_or_the_offset(task):
    data, test = noisy(300)[:2]
    labels, counts = test["label"], np.bincount(test["label"])
    expected = 1 - counts.max() / 1000
    if task == "multilabel":
        data, test = ({**rows, "label": [[str(k)] for k in rows["label"]]} for rows in (data, test))
        share = counts / 1000  # the only label of a row has as many above it as are commoner
        expected = 1 - (share / (share[:, None] <= share).sum(1)).sum()
    options = {}
    if task == "offset":
        own = np.eye(4)[np.random.default_rng(0).permutation(labels)]
        data, test = {**data, "own": np.zeros((300, 4))}, {**test, "own": own}
        expected, options = (own.argmax(1) != labels).mean(), {"offset": "own"}
    assert trained(data, test, **options, **QUICK).summary["learns_nothing"] == pytest.approx(expected, abs=1e-12)


def test_errors_have_the_digits_that_their_rows_can_tell():
    data, test = noisy(300)[:2]
    test = {name: values[:400] for name, values in test.items()}
    result = trained(data, test, epochs=10)
    page, lines = result.folder.read("report.html").decode(), result.lines()
    bars = page[page.index("Test error by arm") : page.index("Training loss")]
    assert not any(f".{digits}" in bars.replace("%", " ") for digits in ("0000", "5000")), "of 400 rows"
    (line,) = (line for line in lines if line.startswith("uniform"))
    error, spread = (part.split()[-1] for part in line.split(" +- "))
    assert len(error) == len(spread) == len("0.195")
    assert any(
        line.startswith("+- is one standard error over seeds; one standard error over the 400") for line in lines
    )
    assert "Over the 400 test rows one standard error is" in page


# --- like with like --------------------------------------------------------------------------------------------------


def test_the_closed_form_is_held_against_the_closed_form_with_every_row_alike(tmp_path):
    data, test, wrong = noisy(600)
    folder = run_of(tmp_path / "run", 1.0 - 0.9 * wrong, wrong, ridge=0.5, ridge_compared=2.0)
    result = trained(data, test, weights=folder, **QUICK)
    arms, X = by_name(result), data["features"].astype(np.float64)
    centred = X - X.mean(0)
    Z = np.c_[np.ones(600), centred * (centred**2).sum(1).mean() ** -0.5]
    W = np.linalg.solve(Z.T @ Z + np.diag([0.0] + [2.0] * 12), Z.T @ np.eye(4)[data["label"]])
    found = result.folder.read_arrays("model/closed_form_uniform.npz")
    np.testing.assert_allclose(found["weight"], W[1:].T, rtol=1e-4, atol=1e-6)
    assert result.summary["ridge"] == 0.5 and result.summary["ridge_uniform"] == 2.0
    assert arms["closed_form"]["compared_to"] == "closed_form_uniform" and arms["weighted"]["compared_to"] == "uniform"
    gap = arms["closed_form"]["error"] - arms["closed_form_uniform"]["error"]
    assert arms["closed_form"]["difference_to_uniform"]["mean"] == pytest.approx(gap, abs=1e-12)
    assert any("; to closed_form_uniform " in line for line in result.lines())


@pytest.mark.parametrize("weight", [None, np.full(300, 2.0)])
def test_nothing_is_compared_where_weights_are_alike(tmp_path, weight):
    data, test = noisy(300)[:2]
    options = {"weights": run_of(tmp_path / "run", np.ones(300), np.zeros(300, bool))}
    if weight is not None:
        data, options = {**data, "w": weight}, {"weight": "w"}
    result = trained(data, test, **options, **QUICK)
    assert "closed_form_uniform" not in by_name(result) and result.summary["weights_alike"]
    assert all(arm["difference_to_uniform"] is None and arm["verdict"] is None for arm in result.summary["arms"])
    assert not any("; to " in line for line in result.lines())


def test_weights_that_differ_are_compared_though_no_run_gave_them():
    data, test, wrong = noisy(300)
    arms = by_name(trained({**data, "w": 1.0 - 0.5 * wrong}, test, weight="w", **QUICK))
    assert arms["closed_form"]["verdict"] is not None and "closed_form_uniform" in arms


def test_rows_of_weight_0_take_no_part_in_what_training_is_held_against(tmp_path):
    data, test, wrong = noisy(400)
    own = (~wrong).astype(float)
    lowered = own * np.where(np.arange(400) % 2, 1.0, 0.5)
    folder = run_of(tmp_path / "run", lowered, np.zeros(400, bool), ridge=0.5, ridge_compared=0.5)
    options = {"weights": folder, "weight": "w", "standardize": "none", **QUICK}
    result, right = trained({**data, "w": own}, test, **options), {name: x[~wrong] for name, x in data.items()}
    alone = run_of(tmp_path / "alone", lowered[~wrong], np.zeros(int((~wrong).sum()), bool), ridge=0.5)
    expected = trained({**right, "w": own[~wrong]}, test, **{**options, "weights": alone})
    for name in ("closed_form", "closed_form_uniform"):
        found, wanted = (one.folder.read_arrays(f"model/{name}.npz")["weight"] for one in (result, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    errors = [by_name(one)["uniform"]["error"] for one in (result, expected)]
    assert errors[0] == pytest.approx(errors[1], abs=0.03)
    assert (result.summary["n_zero"], result.summary["n_lowered"]) == (0, int((own > lowered).sum()))
    same = trained({**data, "w": own}, test, **{**options, "weights": "none"})
    assert same.summary["weights_alike"] and "closed_form_uniform" not in by_name(same)


def test_weights_are_counted_as_the_run_that_gave_them_counts_them():
    X, y, _, X_test, y_test = digits_split(0.2)
    data = {"features": X, "label": y}
    run = diva_ray.reweight(data, cluster=INLINE, quiet=True)
    told = run.summary
    result = trained(data, {"features": X_test, "label": y_test}, weights=run, epochs=1, seeds=1)
    s = result.summary
    assert told["accepted"] and told["weight_factor"] > 1.001 and told["n_lowered"] > 0 < told["n_raised"]
    assert [s[name] for name in ("n_lowered", "n_raised", "n_zero")] == [
        told[name] for name in ("n_lowered", "n_raised", "n_zero")
    ]
    assert s["n_changed"] == told["n_lowered"] + told["n_raised"] and s["weight_factor"] == told["weight_factor"]
    line = (
        f"{told['n_lowered']:,} of {len(y):,} weights lowered, {told['n_zero']:,} to zero, {told['n_raised']:,} raised"
    )
    assert any(line in said and "; each times 1." in said for said in result.lines())


def test_outputs_that_blew_up_are_told_though_the_classes_are_right():
    """The largest of ten outputs is the largest at any scale, so the error does not tell."""
    data, test = noisy(300)[:2]
    s = trained(data, test, learning_rate=1e30, **QUICK).summary
    assert "uniform" in s["diverged"]
    (said,) = s["warnings"]
    assert "outputs which blew up: lower `learning_rate` (1e+30 now)" in said or "training did not converge" in said
