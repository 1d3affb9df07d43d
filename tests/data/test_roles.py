"""Patterns of `data.features`: which columns they stand for, and what a run does with them."""

import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.config import DataConfig
from diva_ray.data.roles import find_columns
from diva_ray.errors import InputError

INLINE = {"kind": "inline", "threads": 1}
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("x_1", pa.float64()),
        ("name", pa.string()),
        ("x_2", pa.int32()),
        ("vector", pa.list_(pa.float32())),
        ("texts", pa.list_(pa.string())),
        ("x_flag", pa.bool_()),
        ("masks", pa.list_(pa.bool_())),
        ("w", pa.float64()),
        ("[odd]", pa.float64()),
        ("label", pa.int64()),
        ("true_label", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("*", ("x_1", "x_2", "vector", "[odd]", "true_label")),
        ("x_?", ("x_1", "x_2")),
        (["vector", "x_*"], ("vector", "x_1", "x_2")),
        (["x_*", "*"], ("x_1", "x_2", "vector", "[odd]", "true_label")),
        (["*", "x_1"], ("x_2", "vector", "[odd]", "true_label", "x_1")),
        (["x_*", "x_flag"], ("x_1", "x_2", "x_flag")),  # of true and false only those that are named
        ("[odd]", ("[odd]",)),  # a column of that very name, though it reads as a pattern of letters
    ],
)
def test_pattern_is_all_free_columns_of_numbers_in_order(given, expected):
    columns, _ = find_columns(SCHEMA, DataConfig(features=given, weight="w"), builtin=False)
    assert columns.features == expected


def test_id_and_planted_truth_are_never_features():
    columns, _ = find_columns(SCHEMA, DataConfig(features="*", id="none"), builtin=True)
    assert columns.features == ("x_1", "x_2", "vector", "w", "[odd]")


def test_pattern_that_nothing_matches_is_one_line():
    with pytest.raises(InputError, match=r"data\.features: some column of numbers .* must match `y_\*`"):
        find_columns(SCHEMA, DataConfig(features="y_*"), builtin=False)


@pytest.mark.parametrize("kind", [pa.list_(pa.list_(pa.float64())), pa.list_(pa.list_(pa.int8(), 4), 4)])
def test_a_matrix_in_every_row_is_told_how_it_becomes_a_list(kind):
    told = r"got lists of lists of (double|int8)\. Make each .*`df\['x'\] = df\['x'\]\.map\(numpy\.concatenate\)`\."
    with pytest.raises(InputError, match=told):
        find_columns(pa.schema([("x", kind), ("label", pa.int64())]), DataConfig(features="x"), builtin=False)


def test_what_is_told_of_a_matrix_is_a_way(tmp_path):
    rng = np.random.default_rng(0)
    X, file = rng.normal(size=(40, 2, 3)), tmp_path / "nested.parquet"
    pq.write_table(pa.table({"features": X.tolist(), "label": np.arange(40) % 2}), file)
    rows = pd.read_parquet(file)
    rows["features"] = rows["features"].map(np.concatenate)
    given = {"features": X, "label": np.arange(40) % 2}
    one, other = (diva_ray.score(data, cluster=INLINE, quiet=True).samples for data in (rows, given))
    assert one.equals(other)


def test_columns_of_true_and_false_are_told_to_be_left_out(caplog):
    with caplog.at_level(logging.INFO, "diva_ray"):
        find_columns(SCHEMA, DataConfig(features="x_*"), builtin=False)
    assert caplog.messages == [
        "data.features: `x_*` is 2 of 13 columns: x_1, x_2; true or false is no number unless named: x_flag"
    ]
    with pytest.raises(InputError, match=r"must match `m\*`, .*; true or false is no number unless named: masks\."):
        find_columns(SCHEMA, DataConfig(features="m*"), builtin=False)


def test_column_that_some_files_lack_is_not_matched():
    kept = pa.schema([field for field in SCHEMA if field.name != "x_2"])
    columns, _ = find_columns(kept, DataConfig(features="x_*"), builtin=False, partly={"x_2": "b.parquet"})
    assert columns.features == ("x_1",)


def test_run_on_a_pattern_is_the_run_on_its_columns(tmp_path, caplog):
    rng = np.random.default_rng(0)
    table = pa.table({"name": [f"p{i}" for i in range(60)]} | {f"x{k}": rng.normal(size=60) * 10**k for k in range(4)})
    table = table.append_column("label", pa.array(rng.integers(0, 2, 60)))
    with caplog.at_level(logging.INFO, "diva_ray"):
        some = diva_ray.score(table, cluster=INLINE, features="x*", output=str(tmp_path / "a"))
    assert "data.features: `x*` is 4 of 6 columns: x0, x1, x2, x3" in caplog.text
    every = diva_ray.score(table, cluster=INLINE, features=["x0", "x1", "x2", "x3"], output=str(tmp_path / "b"))
    assert some.samples.equals(every.samples)


def test_search_names_its_columns(tmp_path):
    table = {"a": np.arange(8.0), "b": np.arange(8.0) ** 2, "label": np.arange(8) % 2}
    with pytest.raises(InputError, match=r"data\.features: a search must name its columns one by one, got \*"):
        diva_ray.tune(
            table, cluster=INLINE, features="*", space={"ridge": {"choice": [0.1, 1.0]}}, output=str(tmp_path / "t")
        )
    with pytest.raises(InputError, match=r"data\.features: must name at least two bands, got a\*"):
        diva_ray.aggregate(table, cluster=INLINE, features="a*", output=str(tmp_path / "g"))
