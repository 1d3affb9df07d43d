"""Tables as people have them: types that no test can compare, columns found from labels, names with signs in them."""

import logging

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_breast_cancer, load_wine

import diva_ray
from diva_ray.errors import InputError

OPTIONS = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
WINE = load_wine(as_frame=True).frame


def test_weights_that_curating_found_are_no_feature(caplog):
    generator = np.random.default_rng(0)
    rows, wrong = WINE.assign(truth=WINE["target"]), generator.choice(len(WINE), 20, replace=False)
    rows.loc[wrong, "target"] = (rows.loc[wrong, "target"] + 1) % 3
    named = {"features": "*", "label": "target", "truth": "truth", **OPTIONS}
    curated = diva_ray.curate(rows, "weight", **named)
    caplog.set_level(logging.WARNING)
    for weight in (None, "weight"):
        caplog.clear()
        found = diva_ray.score(curated, weight=weight, **named)
        assert found.summary["n_features"] == 13
        assert ("leaves out column `weight`, found from the labels" in caplog.text) == (weight is None)
    with_it = diva_ray.score(curated, **{**named, "features": ["hue", "weight"]})  # named, it is taken
    assert with_it.summary["n_features"] == 2


def test_a_column_that_parquet_cannot_hold_is_told_before_a_copy_is_made():
    rows = WINE.assign(grade=pd.cut(WINE["alcohol"], 3))
    named = {"features": ["hue", "ash"], "label": "target", **OPTIONS}
    with pytest.raises(
        InputError, match=r"curate: every column must be of a type that Parquet can hold, got .*`grade`"
    ):
        diva_ray.curate(rows, "drop", **named)
    assert diva_ray.score(rows, **named).summary["n_samples"] == len(WINE)


@pytest.mark.parametrize("option", ["group", "id", "label", "truth", "source"])
def test_periods_are_refused_where_values_are_compared(option):
    rows = WINE.assign(t=pd.period_range("2020", periods=len(WINE), freq="D"))
    named = {"features": ["hue"], "label": "target", **OPTIONS, option: "t"}
    with pytest.raises(InputError, match=rf"data\.{option}: column `t` must hold numbers, strings or dates, got exten"):
        diva_ray.score(rows, **named)


@pytest.mark.parametrize("value", [b"x", pd.Timestamp("2020-01-01"), {"a": 1}])
def test_a_truth_of_another_type_is_refused(value):
    rows = WINE.assign(t=[value] * len(WINE))
    with pytest.raises(InputError, match=r"data\.truth: column `t` must hold what the label holds, got .* for int64"):
        diva_ray.score(rows, features=["hue"], label="target", truth="t", **OPTIONS)


def test_a_column_that_is_not_there_is_told_with_those_most_like_it():
    rows = load_breast_cancer(as_frame=True).frame
    with pytest.raises(InputError, match=r"column `Target` must be in the table, got columns target, .* and 11 more\."):
        diva_ray.score(rows, features="mean *", label="Target", **OPTIONS)


def test_a_number_whose_square_is_none_is_not_called_infinite():
    rows = WINE.assign(big=np.where(np.arange(len(WINE)) == 3, 1e155, 1.0))
    with pytest.raises(InputError, match=r"column `big` must be below 1e150 in size, got 1e\+155"):
        diva_ray.score(rows, features=["hue", "big"], label="target", **OPTIONS)


def test_one_label_in_every_row_is_quoted():
    with pytest.raises(InputError, match="at least two classes, got the label 0 in every row of `target`"):
        diva_ray.score(WINE.assign(target=0), features=["hue"], label="target", **OPTIONS)


def test_a_pattern_that_is_a_list_of_names_with_signs_says_how_to_quote_them():
    with pytest.raises(
        InputError, match=r"must match `\[a \(cm\),b\]`, .* want quotes: `'data\.features=\[\"a \(cm\)\","
    ):
        diva_ray.score(WINE, features="[a (cm),b]", label="target", **OPTIONS)


def test_penalties_at_the_least_tried_are_told_and_equal_shares_are_no_gain(caplog):
    rows = load_breast_cancer(as_frame=True).frame
    bands = {
        kind: list(rows[[name for name in rows if name.startswith(kind)]].to_numpy()) for kind in ("mean", "worst")
    }
    found = diva_ray.aggregate({**bands, "label": rows["target"]}, features=["mean", "worst"], **OPTIONS)
    assert "lies at the least that was tried" in caplog.text
    better = found.summary["error"] < found.summary["error_concatenated"]
    assert better != any("one ridge for all bands does as well" in line for line in found.lines())


@pytest.mark.ray
def test_test_rows_that_a_search_also_trains_on_are_told(ray_cluster, caplog):
    rows = {"features": WINE[["hue", "ash"]].to_numpy(), "label": WINE["target"].to_numpy()}
    space = {"ridge": {"choice": [0.1, 1.0]}}
    found = diva_ray.tune(rows, space, test=rows, search="grid", folds=3, **OPTIONS)
    assert found.summary["shared"]["test"] == {"rows": 178, "known": 178}
    assert "178 of 178 test rows have the very features of rows that train" in caplog.text
    assert b"178 of 178 test rows" in found.folder.read("report.html")


def test_a_table_written_by_hand_keeps_its_weights_apart(tmp_path):
    """The mark is in the file, not in this process."""
    curated = diva_ray.curate(WINE, "weight", features=["hue", "ash"], label="target", **OPTIONS)
    pq.write_table(pq.read_table(f"{curated.path}/curated"), tmp_path / "copy.parquet")
    found = diva_ray.score(str(tmp_path / "copy.parquet"), features="*", label="target", **OPTIONS)
    assert found.summary["n_features"] == 13


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (300.0, True)])
def test_directions_that_are_but_a_sign_are_told(scale, told, caplog):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((200, 4))
    Y = X[:, :3] * [scale, 1, 1] + 0.3 * generator.standard_normal((200, 3)) * [scale, 1, 1]
    diva_ray.score({"features": X, "label": Y}, loss="cosine", **OPTIONS)
    assert (
        "number 0 of `label` has 100.0 % of the variance: by loss=cosine a label is its sign" in caplog.text
    ) == told
