"""Whatever a user has: arrays, tensors, frames, tables and files of the same rows give the same bits."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diva_ray.config import DataConfig
from diva_ray.data.sources import digits, find_columns, open_data, task_of
from diva_ray.errors import InputError

from .tables import derivatives, problem, score, vectors

X, Y = problem()
TABLE = pa.table({"features": vectors(X), "label": Y})
WANTED = derivatives(TABLE)
GIVEN = {
    "numpy": {"features": X, "label": Y},
    "numpy, other strides": {"features": np.asfortranarray(X), "label": np.repeat(Y, 2)[::2]},
    "torch": {"features": torch.from_numpy(X), "label": torch.from_numpy(Y)},
    "torch with gradients, float32": {
        "features": torch.from_numpy(X).float().requires_grad_(),
        "label": torch.from_numpy(Y),
    },
    "torch, bfloat16": {"features": torch.from_numpy(X).bfloat16(), "label": torch.from_numpy(Y)},
    "lists": {"features": X.tolist(), "label": Y.tolist()},
    "pandas": pd.DataFrame({"features": list(X), "label": Y}, index=np.arange(len(Y))[::-1]),
    "pandas with an odd index": pd.DataFrame({"features": X.tolist(), "label": Y}, index=list("ab") * 45),
    "arrow": TABLE,
    "arrow in chunks": pa.concat_tables([TABLE.slice(0, 13), TABLE.slice(13, 50), TABLE.slice(63)]),
}


@pytest.mark.parametrize("given", GIVEN)
def test_the_same_rows_give_the_same_bits(given):
    assert np.array_equal(derivatives(GIVEN[given]), WANTED)


def test_a_path_may_be_a_path(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    result = score(tmp_path / "a.parquet", output=tmp_path / "out")
    assert np.array_equal(result.samples["derivative"].to_numpy(), WANTED)
    assert result.path == str(tmp_path / "out")


def test_numbers_of_numpy_are_options():
    result = score(TABLE, ridge=np.float64(0.5), seed=np.int64(3), cluster={"kind": "inline", "threads": np.int32(1)})
    assert np.array_equal(result.samples["derivative"].to_numpy(), WANTED)


def test_strings_of_numpy_and_pandas_are_classes():
    names = np.array(["a", "b", "c"])[Y]
    frame = pd.DataFrame({"features": list(X), "label": pd.Categorical(names)})
    for data in ({"features": X, "label": names}, {"features": X, "label": names.astype(object)}, frame):
        result = score(data)
        assert np.array_equal(result.samples["derivative"].to_numpy(), WANTED)
        assert result.samples["label"].to_pylist() == names.tolist()


@pytest.mark.parametrize(
    "data,told",
    [
        ({"features": X, "label": Y[:-1]}, "arrays must have one length"),
        (
            {"features": X.reshape(-1, 2, 2), "label": Y},
            r"`features` must be an array of one or two .* shape \(90, 2, 2\)",
        ),
        ({"features": X + 1j, "label": Y}, "`features` must be an array .* complex128"),
        ({"features": X, "label": ["a", 1] * 45}, "`label` must be an array"),
        (pd.DataFrame({"features": list(X), "label": ["a", 1] * 45}), "data: every column must hold one type"),
        (5, "data: must be a path, a Ray Dataset, an Arrow table, .* got builtins.int"),
        ({"features": X[:0], "label": Y[:0]}, "the table must have rows, got 0"),
        (None, "data.path: a table must be named"),
    ],
)
def test_other_things_are_told_apart(data, told):
    with pytest.raises(InputError, match=told):
        open_data(data, None, 0.2, 0)


def test_digits_are_seeded_and_know_the_truth():
    table, again, other = digits(0.2, 0), digits(0.2, 0), digits(0.2, 1)
    assert table.equals(again) and not table.equals(other)
    wrong = np.array(table["label"]) != np.array(table["true_label"])
    assert table.num_rows == 1797 and wrong.sum() == round(0.2 * 1797)
    assert not (np.array(digits(0, 0)["label"]) != np.array(table["true_label"])).any()


@pytest.mark.parametrize("noise", [-0.1, 1.0, 2])
def test_noise_is_a_share(noise):
    with pytest.raises(InputError, match=r"data.noise: must be at least 0 and below 1"):
        digits(noise, 0)


@pytest.mark.parametrize(
    "kind,task",
    [
        (pa.int8(), "classification"), (pa.string(), "classification"), (pa.bool_(), "classification"),
        (pa.dictionary(pa.int8(), pa.string()), "classification"), (pa.float32(), "regression"),
        (pa.list_(pa.string()), "multilabel"), (pa.list_(pa.int32()), "multilabel"),
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), "multilabel"), (pa.list_(pa.float32()), "vector"),
        (pa.fixed_shape_tensor(pa.float64(), (3,)), "vector"), (pa.large_list(pa.float16()), "vector"),
    ],
)  # fmt: skip
def test_the_type_of_a_label_is_its_task(kind, task):
    assert task_of(pa.schema([("label", kind)]), "label", "auto") == task


@pytest.mark.parametrize(
    "kind,task",
    [
        (pa.string(), "regression"), (pa.float32(), "classification"), (pa.int32(), "multilabel"),
        (pa.string(), "vector"),
        (pa.list_(pa.string()), "vector"), (pa.list_(pa.float32()), "multilabel"), (pa.date32(), "auto"),
        (pa.null(), "auto"), (pa.struct([("a", pa.int8())]), "auto"), (pa.bool_(), "regression"),
    ],
)  # fmt: skip
def test_a_label_must_fit_its_task(kind, task):
    with pytest.raises(InputError, match=r"task: labels in column `label` must fit .* Change `task` or `data.label`"):
        task_of(pa.schema([("label", kind)]), "label", task)


def test_columns_are_found_and_checked():
    schema = pa.schema(
        [("features", pa.list_(pa.float32())), ("label", pa.int8()), ("id", pa.int8()), ("text", pa.string())]
    )
    columns, shown = find_columns(schema, DataConfig(), builtin=False)
    assert (columns.features, columns.label, columns.id, shown) == (("features",), "label", "id", ("text",))
    assert find_columns(schema, DataConfig(show=["text", "id"]), builtin=False)[1] == ("text", "id")
    both = schema.append(pa.field("image", pa.binary())).append(pa.field("words", pa.list_(pa.float32())))
    assert find_columns(both, DataConfig(), builtin=False)[1] == ("image",)
    options = DataConfig(features=["features", "words"])
    columns, shown = find_columns(both, options, builtin=False, labelled=False)
    assert (columns.label, shown, "label" in columns.names()) == ("", ("image", "text"), False)
    for options, told in (
        ({"features": "x"}, r"data.features: column `x` must be in the table, got columns features, label, id, text"),
        ({"features": ["features", "text"]}, r"data.features: column `text` must hold numbers .* got string"),
        ({"features": []}, "data.features: at least one column"),
        ({"label": "y"}, "data.label: column `y` must be in the table"),
        ({"id": "key"}, "data.id: column `key`"),
        ({"weight": "w"}, "data.weight: column `w`"),
        ({"group": "features"}, "data.group: column `features` must hold numbers or strings"),
        ({"show": "image"}, "data.show: column `image`"),
    ):
        with pytest.raises(InputError, match=told):
            find_columns(schema, DataConfig(**options), builtin=False)
    twice = pa.schema([("features", pa.float32()), ("label", pa.int8()), ("label", pa.int8())])
    with pytest.raises(InputError, match=r"data.label: column `label` must be there once, got 2"):
        find_columns(twice, DataConfig(), builtin=False)
