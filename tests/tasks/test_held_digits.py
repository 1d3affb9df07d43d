"""Where digits could be lost or rows forgotten: leverages near 1 in every task, features and offsets far from 0, groups
with columns of their own, offsets of chosen rows, sources and classes beside a validation table."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.errors import InputError
from diva_ray.tasks.fit import dual
from tests.pages import Page

QUIET = {"quiet": True, "cluster": {"kind": "inline", "threads": 1}}


def design(X, intercept=True):
    """Return features centred and scaled as one band, and the penalty pattern."""
    Z = (X - X.mean(0)) / np.sqrt(((X - X.mean(0)) ** 2).sum(1).mean())
    return (np.c_[np.ones(len(Z)), Z], np.diag(np.r_[0.0, np.ones(X.shape[1])])) if intercept else (Z, np.eye(len(X.T)))


def fitted(Z, y, weight, penalty):
    return np.linalg.solve(Z.T @ (weight[:, None] * Z) + penalty, Z.T @ (weight * y))


def left_out_loss(Z, y, weight, penalty, group=None, offset=0.0):
    """Return the summed squared error of refits without every row's group."""
    group, total = np.arange(len(y)) if group is None else group, 0.0
    for name in np.unique(group):
        out = group == name
        W = fitted(Z[~out], (y - offset * np.ones(len(y)))[~out], weight[~out], penalty)
        total += ((Z[out] @ W + (offset * np.ones(len(y)))[out] - y[out]) ** 2).sum()
    return total


def differences(Z, y, penalty, group=None):
    """Return dL/dweight of every row by central differences of refits."""
    one, step = np.ones(len(y)), 1e-4
    return np.array([
        (left_out_loss(Z, y, one + step * e, penalty, group) - left_out_loss(Z, y, one - step * e, penalty, group))
        / (2 * step) for e in np.eye(len(y))
    ])  # fmt: skip


def close(found, expected, share):
    assert np.abs(np.asarray(found) - expected).max() < share * np.abs(expected).max()


def test_groups_with_columns_of_their_own_are_left_out_with_all_digits():
    """Every row's leverage is small, that of its group is 0.999: 1 less it is what rounding is divided by."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 20)
    X = np.c_[generator.standard_normal((120, 3)), 3.0 * np.eye(6)[group]]
    y = X[:, 0] + 0.5 * generator.standard_normal(120) + group
    result = diva_ray.score({"features": X, "label": y, "g": group}, group="g", ridge=3e-3, **QUIET)
    Z, penalty = design(X)
    assert float(np.max(result.samples["leverage"].to_numpy())) < 0.5
    assert result.summary["max_leverage"] > 0.99
    assert result.summary["precision"] == "float64"
    close(result.samples["derivative"], differences(Z, y, 3e-3 * penalty, group), 1e-5)


def lonely_column():
    generator = np.random.default_rng(1)
    X = np.c_[generator.standard_normal((90, 4)), np.eye(90)[:, 0] * 8]  # a column that only one row has
    return X, X[:, 0] + 0.5 * generator.standard_normal(90)


@pytest.mark.parametrize("job", ["paper", "safe", "extend"])
def test_a_leverage_near_1_takes_float64_in_every_task(job):
    X, y = lonely_column()
    data, ridge = {"features": X, "label": y}, 1e-4
    double = {"ridge": ridge, "precision": "float64", **QUIET}
    assert diva_ray.score(data, **double).summary["max_leverage"] > 0.999
    auto = {**double, "precision": "auto"}
    if job == "extend":
        pool = {"features": X[1:40] + 0.1, "label": y[1:40]}
        runs = [diva_ray.extend(data, pool, budget=10, rounds=1, **options) for options in (auto, double)]
    else:
        runs = [diva_ray.reweight(data, method=job, steps=1, folds=2, **options) for options in (auto, double)]
    for name in ("derivative", "z"):
        close(runs[0].samples[name], np.asarray(runs[1].samples[name]), 1e-5)


@pytest.mark.parametrize("mean", [300.0, 3000.0])
def test_features_as_given_far_from_0_choose_the_ridge_that_centred_ones_do(mean):
    generator = np.random.default_rng(2)
    X = generator.standard_normal((500, 8))
    y = X @ generator.standard_normal(8) + 0.5 * generator.standard_normal(500)
    options = {"standardize": "none", **QUIET}
    near, far = (diva_ray.score({"features": x, "label": y}, **options) for x in (X - X.mean(0), X + mean))
    assert far.summary["ridge"] == pytest.approx(near.summary["ridge"], rel=1e-3)
    assert far.summary["error"] == pytest.approx(near.summary["error"], abs=1e-6)
    close(far.samples["derivative"], np.asarray(near.samples["derivative"]), 1e-3)


def test_features_of_which_float64_holds_little_but_the_mean_are_refused():
    X, y = lonely_column()
    with pytest.raises(InputError, match=r"data\.features: with standardize=none .* in column 2 of `features`"):
        diva_ray.score({"features": X + 1e7 * np.eye(5)[2], "label": y}, standardize="none", **QUIET)
    diva_ray.score({"features": X + 1e7 * np.eye(5)[2], "label": y}, **QUIET)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_a_large_offset_takes_no_digits(shift):
    generator = np.random.default_rng(4)
    X = generator.standard_normal((60, 4))
    offset = shift + 1e4 * generator.standard_normal(60)
    rest = X[:, 0] + 0.5 * generator.standard_normal(60)
    plain = diva_ray.score({"features": X, "label": rest}, ridge=0.5, **QUIET).samples
    offered = diva_ray.score(
        {"features": X, "label": rest + offset, "o": offset}, ridge=0.5, offset="o", **QUIET
    ).samples
    for name in ("derivative", "z"):
        close(offered[name], np.asarray(plain[name]), 1e-4)


@pytest.mark.parametrize("method", ["balanced", "paper"])
def test_chosen_rows_are_fitted_with_their_offsets(method):
    generator = np.random.default_rng(5)
    X, w, scale = generator.standard_normal((100, 4)), generator.standard_normal(4), {"standardize": "none"}
    offset = 5 * generator.standard_normal(100)
    y = offset + X @ w + 0.1 * generator.standard_normal(100)
    core, pool = ({"features": X[rows], "label": y[rows], "o": offset[rows]} for rows in (slice(60), slice(60, 100)))
    result = diva_ray.extend(
        core, pool, offset="o", ridge=0.1, budget=40, rounds=2, method=method, precision="float64", **scale, **QUIET
    )
    Z, penalty = np.c_[np.ones(100), X], 0.1 * np.diag([0.0, 1, 1, 1, 1])
    rank = dict(zip(result.samples["id"].to_pylist(), result.samples["rank"].to_pylist(), strict=True))
    for step in result.summary["error_by_budget"]:
        chosen = np.r_[np.ones(60), [float(rank[k] < step["chosen"]) for k in range(40)]]
        loss = 0.0
        for row in range(60):
            weight = np.where(np.arange(100) == row, 0.0, chosen)
            loss += (Z[row] @ fitted(Z, y - offset, weight, penalty) + offset[row] - y[row]) ** 2
        assert step["loss"] == pytest.approx(loss / 60, rel=1e-9)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(30, 4), (6, 20)])
def test_sources_are_the_tables_whatever_the_validation_table_says(rows, columns, named):
    generator = np.random.default_rng(6)
    X, X_v = generator.standard_normal((rows, columns)), generator.standard_normal((6, columns))
    source = np.array(["a", "b"])[np.arange(rows) % 2]
    validation = {"features": X_v, "label": X_v[:, 0], **({"s": np.array(["a", "b"] * 3)} if named else {})}
    data = {"features": X, "label": X[:, 0] + 0.3 * generator.standard_normal(rows), "s": source}
    result = diva_ray.score(data, source="s", validation=validation, ridge=0.5, precision="float64", **QUIET)
    derivative = result.samples["derivative"].to_numpy()
    found = pq.read_table(io.BytesIO(result.folder.read("sources.parquet"))).to_pylist()
    assert [row["n"] for row in found] == [rows // 2, rows // 2]
    for row in found:
        assert row["derivative"] == pytest.approx(derivative[source == row["source"]].sum(), rel=1e-5)


@pytest.mark.parametrize("named", [True, False])
def test_sources_are_weighed_beside_a_validation_table_whether_or_not_it_has_them(named):
    generator = np.random.default_rng(9)
    X, X_v = generator.standard_normal((60, 4)), generator.standard_normal((20, 4))
    source, beside = np.array(["as it is", "b"])[np.arange(60) % 2], {"s": np.array(["b", "c"] * 10)} if named else {}
    data = {"features": X, "label": (X[:, 0] > 0).astype(int), "s": source, "g": np.arange(60) // 2}
    validation = {"features": X_v, "label": (X_v[:, 0] > 0).astype(int), **beside}
    options = {"source": "s", "folds": 2, "steps": 1, **QUIET}
    found = diva_ray.reweight(data, level="source", validation=validation, **options).summary["sources"]
    assert {row["source"]: row["n"] for row in found} == {"as it is": 30, "b": 30}
    validation["g"] = 100 + np.arange(20)
    found = diva_ray.augment(data, group="g", identity="as it is", validation=validation, **options).summary
    assert list(found["augmentations"]) == ["as it is", "b"]


def test_the_classes_on_the_page_are_of_the_samples_whatever_the_validation_table_holds():
    generator = np.random.default_rng(8)
    X, X_v = generator.standard_normal((60, 4)), generator.standard_normal((200, 4))
    data, validation = ({"features": one, "label": (one[:, 0] > 0).astype(int)} for one in (X, X_v))
    result = diva_ray.score(data, validation=validation, **QUIET)
    text = Page(result.folder.read("report.html").decode()).text
    table = text[text.index("Wrongly predicted") :]
    label, found = result.samples["label"].to_numpy(), result.samples["predicted_label"].to_numpy()
    for name in (0, 1):
        mine = label == name
        assert f" {name} {mine.sum()} {100 * (found != label)[mine].mean():.1f} % " in table


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_derivatives_that_cancel_to_rounding_have_no_z(precision):
    """Two groups of one class each: without one of them only one class is left, whatever the weights."""
    group = np.repeat([0, 1], 30)
    X = np.c_[group, np.random.default_rng(7).standard_normal((60, 3))]
    data = {"features": X, "label": group, "g": group}
    samples = diva_ray.score(data, group="g", ridge=1.0, precision=precision, **QUIET).samples
    assert not np.any(samples["derivative"].to_numpy())
    assert not np.any(samples["z"].to_numpy())
    assert not np.any(samples["is_detrimental"].to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("job", ["reweight", pytest.param("augment", marks=pytest.mark.long)])
def test_fewer_rows_than_columns_are_weighed_on_the_space_they_span(job, monkeypatch):
    generator = np.random.default_rng(8)
    X, y = generator.standard_normal((90, 400)), np.arange(90) % 3
    X[:, :3] += 4 * np.eye(3)[y]
    data = {"features": X, "label": np.where(np.arange(90) % 9 == 0, (y + 1) % 3, y), "t": np.array(["a", "b"] * 45)}
    data["g"] = np.arange(90) // 2
    runs, folded, kept = [], [], dual._on_row_spaces
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(dual, "_on_row_spaces", lambda runner, setup, rows: setup)
        else:
            monkeypatch.setattr(dual, "_on_row_spaces", lambda *a: folded.append(kept(*a)) or folded[-1])
        if job == "reweight":
            runs.append(diva_ray.reweight(data, steps=2, folds=2, ridge=1.0, **QUIET).samples["derivative"])
        else:
            found = diva_ray.augment(data, source="t", group="g", identity="a", folds=2, ridge=1.0, **QUIET)
            runs.append([one["derivative"] for one in found.summary["augmentations"].values()])
    assert folded[0].scale.width == 91
    close(runs[0], np.asarray(runs[1]), 1e-5)


def test_trusted_rows_of_fewer_rows_than_columns_take_float64():
    generator = np.random.default_rng(9)
    X, y = generator.standard_normal((90, 400)), np.arange(90) % 3
    data = {"features": X, "label": y, "v": (np.arange(90) < 9).astype(float)}
    options = {"validation_weight": "v", "method": "trusted", "ridge": 1.0, **QUIET}
    auto, double = (diva_ray.score(data, precision=one, **options) for one in ("auto", "float64"))
    assert auto.summary["precision"] == "float64" and auto.summary["n_features"] == 400
    close(auto.samples["derivative"], np.asarray(double.samples["derivative"]), 1e-9)
