"""Every type a column may have: the same numbers give the same derivatives, bit by bit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diva_ray.data.columns import row_keys, to_matrix
from diva_ray.errors import InputError

from .tables import derivatives, problem, score, vectors

X, Y = problem()
WANTED = derivatives({"features": X, "label": Y})

VECTORS = {
    "list": lambda X, kind: vectors(X, pa.list_(kind)),
    "large_list": lambda X, kind: vectors(X, pa.large_list(kind)),
    "fixed_size_list": lambda X, kind: vectors(X, pa.list_(kind, X.shape[1])),
    "fixed_shape_tensor": lambda X, kind: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(kind, (2, X.shape[1] // 2)), vectors(X, pa.list_(kind, X.shape[1]))
    ),
}
NUMBERS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("form", VECTORS)
def test_every_vector_type_gives_the_same_derivatives(form, number, tmp_path):
    rows = X.astype(number)
    table = pa.table({"features": VECTORS[form](rows, NUMBERS[number]), "label": Y})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=31)
    assert np.array_equal(derivatives(str(tmp_path)), WANTED)
    assert np.array_equal(derivatives(table), WANTED)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_integers_are_features_too(kind):
    whole = np.random.default_rng(1).integers(0, 200, X.shape)
    wanted = derivatives({"features": whole.astype(np.float32), "label": Y})
    assert np.array_equal(derivatives({"features": whole.astype(kind), "label": Y}), wanted)


def test_plain_number_columns_are_bands_of_one():
    names = [f"x{k}" for k in range(X.shape[1])]
    plain = derivatives({**{name: X[:, k] for k, name in enumerate(names)}, "label": Y}, features=names)
    lists = derivatives({**{name: X[:, [k]] for k, name in enumerate(names)}, "label": Y}, features=names)
    assert np.array_equal(plain, lists)


def test_number_columns_as_given_are_one_vector():
    names = [f"x{k}" for k in range(X.shape[1])]
    data = {**{name: X[:, k].astype("float32") for k, name in enumerate(names)}, "label": Y, "features": X}
    assert np.array_equal(derivatives(data, features=names, standardize="none"), derivatives(data, standardize="none"))


@pytest.mark.parametrize("form", VECTORS)
def test_a_null_is_a_missing_band_and_enters_as_zeros(form):
    gone = np.arange(len(X)) % 7 == 3
    full = VECTORS[form](X, pa.float64())
    holed = full.storage if form == "fixed_shape_tensor" else full
    holed = pa.array([None if g else v for g, v in zip(gone, holed.to_pylist(), strict=True)], holed.type)
    if form == "fixed_shape_tensor":
        holed = pa.ExtensionArray.from_storage(full.type, holed)
    other = {"b": X[:, 0], "label": Y}
    found = derivatives({"a": holed, **other}, features=["a", "b"], standardize="none")
    wanted = derivatives({"a": np.where(gone[:, None], 0, X), **other}, features=["a", "b"], standardize="none")
    assert np.array_equal(found, wanted)
    # standardised: mean and scale are those of the rows that have the band
    mean = X[~gone].mean(0)
    scale = 1 / np.sqrt(((X[~gone] - mean) ** 2).sum(1).mean())
    prepared = np.where(gone[:, None], 0, (X - mean) * scale)
    b = (X[:, :1] - X[:, :1].mean()) / X[:, :1].std()
    found = derivatives({"a": holed, **other}, features=["a", "b"], precision="float64")
    wanted = derivatives({"features": np.c_[prepared, b], "label": Y}, standardize="none", precision="float64")
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_null_number_is_a_missing_band(number):
    holed = pa.array([None if k % 5 == 0 else v for k, v in enumerate(X[:, 0].astype(number))], NUMBERS[number])
    zeros = np.where(np.arange(len(X)) % 5 == 0, 0, X[:, 0])
    data = {"a": holed, "z": zeros, "b": X, "label": Y}
    found = derivatives(data, features=["a", "b"], standardize="none")
    assert np.array_equal(found, derivatives(data, features=["z", "b"], standardize="none"))


def test_a_band_may_be_missing_in_whole_shards():
    X, y = problem(n=3000)
    gone = np.arange(3000) < 1200  # all of the first of two shards
    holed = pa.array([None if g else row for g, row in zip(gone, X.tolist(), strict=True)], pa.list_(pa.float64()))
    data = {"a": holed, "z": np.where(gone[:, None], 0, X), "b": X[:, 0], "label": y}
    found = derivatives(data, features=["a", "b"], standardize="none")
    assert np.array_equal(found, derivatives(data, features=["z", "b"], standardize="none"))
    assert np.isfinite(derivatives(data, features=["a", "b"])).all()


LABELS = {
    **{kind: Y.astype(kind) for kind in ("int8", "int16", "int32", "int64", "uint8", "uint64")},
    "string": pa.array([f"class {k}" for k in Y]),
    "large_string": pa.array([f"class {k}" for k in Y], pa.large_string()),
    "dictionary": pa.array([f"class {k}" for k in Y]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_every_type_of_class(kind, tmp_path):
    table = pa.table({"features": vectors(X), "label": LABELS[kind]})
    pq.write_table(table, tmp_path / "a.parquet")
    result = score(str(tmp_path))
    rows = result.samples
    assert np.array_equal(rows["derivative"].to_numpy(), WANTED)
    given = rows["label"].to_pylist()
    assert given == table["label"].to_pylist()
    assert rows.schema.field("predicted_label").type == rows.schema.field("label").type
    assert set(rows["predicted_label"].to_pylist()) <= set(given)
    assert result.summary["n_outputs"] == 3 and result.summary["task"] == "classification"


def test_booleans_are_two_classes():
    found = score({"features": X, "label": Y > 0})
    assert np.array_equal(found.samples["derivative"].to_numpy(), derivatives({"features": X, "label": (Y > 0) * 1}))
    assert set(found.samples["predicted_label"].to_pylist()) <= {True, False}


def test_floats_are_regression_and_integers_can_be():
    whole = derivatives({"features": X, "label": Y}, task="regression")
    for kind in ("float16", "float32", "float64", "uint16"):
        task = "regression" if kind.startswith("u") else "auto"
        found = score({"features": X, "label": Y.astype(kind)}, task=task)
        assert found.summary["task"] == "regression" and found.summary["n_outputs"] == 1
        assert np.array_equal(found.samples["derivative"].to_numpy(), whole)


MANY = [[], ["sky"], ["sea", "sky"], ["sea", "sand", "sky"], ["sand"], ["sand", "sea"]]


@pytest.mark.parametrize("number", [None, np.arange(3000)])
def test_lists_of_classes_are_multilabel(number):
    """The second case has two shards: the slices of an in-memory list column have an offset."""
    rows = X if number is None else problem(n=3000)[0]
    lists = [MANY[(k * 7 + int(row[0] > 0)) % 6] for k, row in enumerate(rows)]
    flat, ends = [name for row in lists for name in row], np.cumsum([0, *map(len, lists)])
    code = {"sand": 3, "sea": 5, "sky": 9}
    forms = {
        "list": pa.array(lists, pa.list_(pa.string())),
        "large_list": pa.array(lists, pa.large_list(pa.string())),
        "dictionary": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat).dictionary_encode()),
        "integers": pa.array([[code[name] for name in row] for row in lists], pa.list_(pa.int16())),
    }
    found = {name: score({"features": rows, "label": label}) for name, label in forms.items()}
    wanted = found["list"].samples["derivative"].to_numpy()
    for result in found.values():
        assert result.summary["task"] == "multilabel" and result.summary["n_outputs"] == 3
        assert np.array_equal(result.samples["derivative"].to_numpy(), wanted)
    assert {name for row in found["list"].samples["predicted_label"].to_pylist() for name in row} <= set(code)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("form", VECTORS)
def test_lists_of_floats_are_vector_targets(form, kind):
    target = (X @ np.array([[1, 0], [0.5, 1], [0, 2], [1, 1]])).astype(kind)
    label = VECTORS[form](target, NUMBERS[kind])
    found = score({"features": X, "label": label})
    assert found.summary["task"] == "vector" and found.summary["n_outputs"] == 2
    assert np.array_equal(found.samples["derivative"].to_numpy(), derivatives({"features": X, "label": target}))


def test_a_slice_is_read_where_it_lies():
    whole = pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float64(), 2))
    for column in (whole, whole.cast(pa.list_(pa.float64()))):
        values, missing = to_matrix(column.slice(1, 2), "x", "here")
        assert values.tolist() == [[0, 0], [3, 4]] and missing.tolist() == [True, False]


def test_fixed_size_lists_and_tensors_are_not_copied():
    flat = np.arange(6, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
    values, missing = to_matrix(column, "x", "here")
    assert missing is None and np.shares_memory(values, column.values.to_numpy())


def test_a_null_inside_a_vector_is_no_missing_band():
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)):
        column = pa.array([None, [1.0, 2.0], [3.0, None]], kind)
        with pytest.raises(InputError, match=r"no null inside a vector, got one at here, row 2"):
            to_matrix(column, "x", "here")


def test_keys_depend_on_the_value_alone():
    whole = pa.array([5, 6, 7, 2**40])
    assert row_keys(whole)[1:3].tolist() == row_keys(whole.slice(1, 2)).tolist()
    assert row_keys(whole.cast(pa.int64())).tolist() == row_keys(whole).tolist()
    names = pa.array(["a", "b", "a"])
    assert row_keys(names)[0] == row_keys(names)[2] != row_keys(names)[1]
    # another seed gives keys that meet none of the first
    first, second = row_keys(pa.array(np.arange(1000))), row_keys(pa.array(np.arange(1000)), seed=1)
    assert not set(first.tolist()) & set(second.tolist())


def test_a_null_among_columns_of_true_and_false_is_a_missing_modality():
    column = pa.chunked_array([[True, None, False, True]])
    values, missing = to_matrix(column, "x", "here")
    assert values.ravel().tolist() == [1, 0, 0, 1] and missing.tolist() == [False, True, False, False]
