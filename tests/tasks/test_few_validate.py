"""The ridge where few rows validate: that of refits under the rule, in every form, and what is said of it."""

import numpy as np
import pytest

import diva_ray
from diva_ray.tasks.fit import few_validate
from tests.core.test_ridge_choice import naive
from tests.data.tables import INLINE

OPTIONS = {"cluster": INLINE, "quiet": True, "precision": "float64", "standardize": "none", "features": "features"}


def noisy(seed, n=70, p=12, heard=9):
    """Two classes, a third of the labels wrong but for the few rows that validate."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p))
    y = (X[:, 0] + 0.5 * generator.standard_normal(n) > 0).astype(int)
    v = (generator.permutation(n) < heard).astype(float)
    wrong = (v == 0) & (generator.random(n) < 0.35)
    return {"features": X, "label": np.where(wrong, 1 - y, y), "v": v, "group": np.arange(n) // 2}


def left_out(X, y, rows, ridge, group):
    """Squared errors of the rows, each predicted by a fit without its group; the intercept bears no penalty."""
    Y, found = np.eye(2)[y], []
    for i in rows:
        kept = group != group[i]
        mean, target = X[kept].mean(0), Y[kept].mean(0)
        Z = X[kept] - mean
        W = np.linalg.solve(Z.T @ Z + ridge * np.eye(X.shape[1]), Z.T @ (Y[kept] - target))
        found.append((((X[i] - mean) @ W + target - Y[i]) ** 2).sum())
    return np.array(found)


def check(result, data, group):
    """Hold the chosen ridge against refits; return whether the rows that validate alone would take another."""
    ridges = np.array([one["ridge"] for one in result.summary["ridge_grid"]])
    n = len(group)
    losses = np.stack([left_out(data["features"], data["label"], range(n), ridge, group) for ridge in ridges], 1)
    v = data["v"]
    heard = np.average(losses, 0, v)
    np.testing.assert_allclose([one["squared_error"] for one in result.summary["ridge_grid"]], heard, rtol=1e-7)
    assert result.summary["ridge"] == pytest.approx(ridges[naive(losses, np.ones(n), v, group)], rel=1e-12)
    return result.summary["ridge"] != ridges[heard.argmin()]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("p", [12, 90])  # the p x p form, and that of fewer rows than columns
def test_the_ridge_is_that_of_refits_under_the_rule(p, grouped):
    leans = []
    for seed in range(3):
        data = noisy(seed, p=p)
        more = {"group": "group"} if grouped else {}
        result = diva_ray.score(data, validation_weight="v", **more, **OPTIONS)
        leans.append(check(result, data, data["group"] if grouped else np.arange(70)))
        said = "nearest to" in result.folder.read("report.html").decode()
        assert said == leans[-1]
    assert any(leans), "or this says little"


def test_weights_alone_leave_the_choice_to_the_least_left_out_error():
    for seed in range(8):
        data = noisy(seed) | {"w": np.where(np.arange(70) < 10, 5.0, 0.5)}
        result = diva_ray.score(data, weight="w", **OPTIONS)
        best = min(result.summary["ridge_grid"], key=lambda one: one["squared_error"])
        assert result.summary["ridge"] == best["ridge"], seed
        assert "nearest to" not in result.folder.read("report.html").decode()


def test_rows_of_a_validation_table_are_few_too(caplog):
    data, apart = noisy(0, heard=0), noisy(1, n=8, heard=8)
    caplog.set_level("INFO", logger="diva_ray")
    result = diva_ray.score(data, validation=apart, **{**OPTIONS, "quiet": False})
    both = {name: np.concatenate([data[name], apart[name]]) for name in data}
    ridges = np.array([one["ridge"] for one in result.summary["ridge_grid"]])
    X, Y, n = both["features"], np.eye(2)[both["label"]], len(data["label"])
    losses = []
    for ridge in ridges:
        inside = left_out(data["features"], data["label"], range(n), ridge, np.arange(n))
        mean, target = X[:n].mean(0), Y[:n].mean(0)
        Z = X[:n] - mean
        W = np.linalg.solve(Z.T @ Z + ridge * np.eye(X.shape[1]), Z.T @ (Y[:n] - target))
        losses.append(np.concatenate([inside, (((X[n:] - mean) @ W + target - Y[n:]) ** 2).sum(1)]))
    losses, fitted = np.stack(losses, 1), (np.arange(n + 8) < n).astype(float)
    chosen = naive(losses, fitted, 1 - fitted, np.arange(n + 8))
    assert result.summary["ridge"] == pytest.approx(ridges[chosen], rel=1e-12)
    leans = chosen != losses[n:].mean(0).argmin()
    assert leans == any("under which all rows lose least" in record.message for record in caplog.records)


def two_bands(seed, heard=8, n=80):
    """A band that tells two classes, one of noise, and a third of the labels wrong but for those that validate."""
    data = noisy(seed, n=n, p=6, heard=heard)
    noise = np.random.default_rng(seed + 50).standard_normal((n, 9))
    return {"told": data["features"], "noise": noise, **{k: data[k] for k in ("label", "v", "group")}}


def left_out_under(X, y, penalties, group):
    """Squared errors of all rows under a penalty of every column, each predicted by a fit without its group."""
    roots = np.sqrt(penalties)
    return left_out(X / roots, y, range(len(y)), 1.0, group)


@pytest.mark.parametrize("grouped", [False, True])
def test_shares_go_as_far_towards_those_of_all_rows_as_refits_say(grouped, monkeypatch):
    seen, whole = [], few_validate._moments

    def moments(search, candidates):
        seen.append(np.stack([one.numpy() for one in candidates]))
        return whole(search, candidates)

    monkeypatch.setattr(few_validate, "_moments", moments)
    toward = set()
    for seed in range(4):
        data = two_bands(seed)
        X, n = np.concatenate([data["told"], data["noise"]], 1), len(data["label"])
        group = data["group"] if grouped else np.arange(n)
        options = {**OPTIONS, "features": ["told", "noise"], **({"group": "group"} if grouped else {})}
        result = diva_ray.aggregate(data, validation_weight="v", **options)
        columns = np.repeat(seen[-1], [6, 9], axis=1)
        losses = np.stack([left_out_under(X, data["label"], one, group) for one in columns], 1)
        chosen = naive(losses, np.ones(n), data["v"], group, errors=2**0.5)
        s = result.summary
        assert s["toward_all_rows"] == chosen / 4
        np.testing.assert_allclose([band["penalty"] for band in s["bands"].values()], seen[-1][chosen], rtol=1e-9)
        unmultiplied = np.repeat(seen[-1][chosen] / s["ridge_multiple"], [6, 9])
        loss = np.average(left_out_under(X, data["label"], unmultiplied, group), weights=data["v"])
        assert s["squared_error"] == pytest.approx(loss, rel=1e-7)
        page = result.folder.read("report.html").decode()
        assert (f"the shares lie {25 * chosen}" in page.replace("\N{NO-BREAK SPACE}", " ")) == (chosen > 0)
        toward.add(chosen)
    assert max(toward) > 0 and len(seen) == 4, "or this says little"


def test_the_shares_of_all_rows_are_those_of_a_run_in_which_all_validate():
    data = two_bands(0, heard=1)  # which says nothing
    options = {**OPTIONS, "features": ["told", "noise"]}
    few, all_rows = diva_ray.aggregate(data, validation_weight="v", **options), diva_ray.aggregate(data, **options)
    assert few.summary["toward_all_rows"] == 1 and all_rows.summary["toward_all_rows"] == 0
    for name in ("told", "noise"):
        one, other = (run.summary["bands"][name]["penalty"] for run in (few, all_rows))
        assert one == pytest.approx(other, rel=1e-6)


def test_a_validation_table_leans_towards_the_table_too_also_with_weights():
    data, options = two_bands(2, heard=0, n=200), {**OPTIONS, "features": ["told", "noise"], "weights": "joint"}
    toward = []
    for seed in range(3, 6):
        apart = two_bands(seed, heard=12, n=12)
        s = diva_ray.aggregate(data, validation=apart, folds=2, steps=1, **options).summary
        assert s["validation"] == "separate table" and s["error_together"] < 0.5
        toward.append(s["toward_all_rows"])
    assert max(toward) > 0, toward
