"""Whatever a user has: arrays, tensors, frames, tables and files of the same rows give the same bits."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.config import DataConfig
from diva_ray.data.roles import find_columns, task_of
from diva_ray.data.sources import digits, open_data
from diva_ray.errors import InputError

from .tables import INLINE, derivatives, problem, score, vectors


class Frame:
    """A DataFrame that is known by the Arrow protocol alone, such as polars'."""

    def __init__(self, table):
        self.table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Split:
    """A dataset as the library `datasets` has them, which is as large as all other test tools: what is asked of it."""

    def __init__(self, table, form=None):
        self.table, self.form = table, form

    def __len__(self):
        return len(self.table)

    def with_format(self, form):
        return Split(self.table, form)

    def __getitem__(self, rows):
        assert (self.form, rows) == ("arrow", slice(None))
        return self.table


class Splits(dict):
    """Several splits."""


Split.__module__ = Splits.__module__ = "datasets.arrow_dataset"
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
    "torch, a view of negatives": {"features": torch._neg_view(-torch.from_numpy(X)), "label": torch.from_numpy(Y)},
    "numpy, bytes swapped": {"features": X.astype(">f4"), "label": Y.astype(">i8")},
    "numpy, nothing masked": {"features": np.ma.masked_array(X), "label": np.ma.masked_array(Y, mask=Y < 0)},
    "a column vector of labels": {"features": X, "label": Y[:, None]},
    "pandas in a mapping": {"features": pd.DataFrame(X), "label": pd.Series(Y, index=np.arange(len(Y))[::-1])},
    "lists": {"features": X.tolist(), "label": Y.tolist()},
    "pandas": pd.DataFrame({"features": list(X), "label": Y}, index=np.arange(len(Y))[::-1]),
    "pandas with an odd index": pd.DataFrame({"features": X.tolist(), "label": Y}, index=list("ab") * 45),
    "arrow": TABLE,
    "a record batch": TABLE.to_batches()[0],
    "a frame of another library": Frame(TABLE),
    "a Hugging Face dataset": Split(TABLE),
    "arrow, run-end encoded": TABLE.set_column(1, "label", pc.run_end_encode(TABLE["label"])),
    "a tensor": {"features": X.reshape(len(X), 2, 2), "label": Y},
    "arrow in chunks": pa.concat_tables([TABLE.slice(0, 13), TABLE.slice(13, 50), TABLE.slice(63)]),
}


@pytest.mark.parametrize("given", GIVEN)
def test_the_same_rows_give_the_same_bits(given):
    assert np.array_equal(derivatives(GIVEN[given]), WANTED)


def test_decimals_are_numbers():
    columns = {f"x{k}": [Decimal(f"{value:.4f}") for value in X[:, k]] for k in range(2)}
    label = [Decimal(f"{value:.3f}") for value in X[:, 2]]
    exact = pa.table({**columns, "label": label})
    near = pa.table({name: pa.array(map(float, values), pa.float64()) for name, values in exact.to_pydict().items()})
    found = [score(table, features=["x0", "x1"]).samples for table in (exact, near)]
    assert found[0]["derivative"].equals(found[1]["derivative"])
    assert found[0].schema.field("label").type == exact.schema.field("label").type


def test_an_index_with_a_name_is_a_column():
    frame = pd.DataFrame({"features": list(X), "label": Y}, index=pd.Index([f"r{k}" for k in range(len(Y))], name="id"))
    assert score(frame).samples["id"].to_pylist() == list(frame.index)
    counted = frame.set_index(pd.RangeIndex(1000, 1000 + len(Y), name="id"))
    assert score(counted).samples["id"].to_pylist() == list(range(1000, 1000 + len(Y)))
    several = frame.set_index(pd.MultiIndex.from_arrays([counted.index, ["x"] * len(Y)], names=["key", None]))
    assert score(several, id="key").samples["id"].to_pylist() == list(range(1000, 1000 + len(Y)))
    twice = frame.assign(id=np.arange(len(Y)))
    assert score(twice).samples["id"].to_pylist() == list(range(len(Y)))


def test_what_is_masked_is_missing():
    rows = np.zeros((len(Y), 2), bool)
    rows[:7] = True
    extra = X[:, :2] + 1
    masked = {"features": X, "extra": np.ma.masked_array(extra, mask=rows), "label": Y}
    null = {**masked, "extra": pa.array([None] * 7 + extra[7:].tolist(), pa.list_(pa.float64()))}
    both = [derivatives(data, features=["features", "extra"]) for data in (masked, null)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5, atol=1e-6)
    rows[20, 1] = True
    with pytest.raises(InputError, match=r"column `extra` must hold no null inside a vector, got one at row 20"):
        score({"extra": np.ma.masked_array(extra, mask=rows), "label": Y}, features="extra")
    with pytest.raises(InputError, match=r"column `label` must hold no null, got one at row 0"):
        score({"features": X, "label": np.ma.masked_array(Y, mask=np.arange(len(Y)) < 1)})


WHOLE, FEW = "labels are whole numbers of type", "classes of 1.0 rows each on average"


@pytest.mark.parametrize(
    ("label", "options", "task", "told"),
    [
        (Y.astype(np.int16), {}, "classification, 3 classes", None),
        (Y.astype(np.float64), {}, "regression, one number", WHOLE),
        (Y.astype(np.float16), {}, "regression, one number", WHOLE),
        (pa.array(Y).cast(pa.decimal128(19, 0)), {}, "regression, one number", WHOLE),
        (Y.astype(np.float64), {"task": "regression"}, "regression, one number", None),
        (Y + 0.5, {}, "regression, one number", None),
        (np.arange(len(Y)) + 0.0, {}, "regression, one number", None),
        (np.arange(len(Y)), {}, f"classification, {len(Y)} classes", FEW),
        ([f"class {k}" for k in Y], {}, "classification, 3 classes", None),
        ([[int(k)] for k in Y], {}, "multilabel, 3 classes", None),
        (X[:, :2], {}, "vector, 2 numbers", None),
    ],
)
def test_the_task_is_told_and_what_speaks_against_it(label, options, task, told, caplog):
    data = {"features": X, "label": label}
    lines = score(data, plan=True, **options).lines()
    assert f"task       {task}" in lines
    found = [line for line in lines if line.startswith("warning")]
    assert (told is None and not found) or (len(found) == 1 and told in found[0])
    if told == WHOLE:
        with caplog.at_level("WARNING", "diva_ray"):
            score(data, quiet=False)
        assert told in caplog.text and "cast them to integers" in caplog.text


def test_a_plain_frame_is_told_how_its_features_are_named():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=Y)
    told = "got columns a, b, c, d, label. Change `data.features`, one name, a list (`[a,b]`) or a pattern (`*`: all"
    with pytest.raises(InputError, match=re.escape(told)):
        score(frame)
    assert score(frame, features=list("abcd")).summary["n_features"] == 4


def test_classes_that_are_floats_are_told_to_be_cast():
    with pytest.raises(
        InputError, match="must fit classification, got double. Cast them to integers, or change `task`"
    ):
        score({"features": X, "label": Y.astype(float)}, task="classification")


def test_missing_numbers_are_told_and_counted(caplog):
    names = [f"f{k}" for k in range(8)]
    frame = pd.DataFrame(np.hstack([X, X**2])[:, :8], columns=names).assign(label=Y)
    frame.loc[4, "f1"] = np.nan
    with caplog.at_level("WARNING", "diva_ray"):
        result = score(frame, features=names, quiet=False)
    assert result.summary["missing"] == {"f1": 1} and "column `f1`: 1 of 90 missing" in caplog.text
    assert "f1 in 1 row<" in result.folder.read("report.html").decode()
    frame.iloc[:3, :7] = np.nan
    with caplog.at_level("WARNING", "diva_ray"):
        assert score(frame, features=names, quiet=False).summary["missing"]["f1"] == 4
    assert "column `f1`: 4 of 90 missing" in caplog.text and "2 more columns have missing rows" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "diva_ray"):
        assert score(TABLE, quiet=False).summary["missing"] == {}
    assert "missing" not in caplog.text


def test_a_number_that_is_none_is_found_inside_its_vector():
    bad = X.copy()
    bad[3, 2] = np.nan
    with pytest.raises(InputError, match=rf"got nan at row 3, number 2 of 0 to {X.shape[1] - 1} there"):
        score({"features": bad, "label": Y})


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.binary(), pa.binary(2), pa.uuid()])
def test_sources_groups_and_ids_of_every_kind(kind, tmp_path):
    values = [k.to_bytes(16 if kind == pa.uuid() else 2, "big") for k in range(128, 128 + len(Y))]
    keys = pa.array([f"{k:03d}" for k in range(len(Y))] if kind == pa.string_view() else values)
    keys = pa.ExtensionArray.from_storage(kind, keys.cast(pa.binary(16))) if kind == pa.uuid() else keys.cast(kind)
    blocks = pa.concat_arrays([keys.slice(0, 1)] * 45 + [keys.slice(1, 1)] * 45)
    table = TABLE.append_column("id", keys).append_column("group", keys).append_column("source", blocks)
    pq.write_table(table, tmp_path / "a.parquet")
    for data in (table, tmp_path / "a.parquet"):
        result = score(data, group="group", source="source")
        assert np.array_equal(result.samples["derivative"].to_numpy(), WANTED)
        assert result.samples["id"].to_pylist() == result.samples["group"].to_pylist() == table["id"].to_pylist()
        sources = pq.read_table(f"{result.path}/sources.parquet")
        assert sources["n"].to_pylist() == [45, 45] and len(set(sources["source"].to_pylist())) == 2


@pytest.mark.parametrize("option", ["id", "group", "source", "label"])
def test_categories_of_polars_are_strings(option):
    """A dictionary of string views, in chunks whose dictionaries differ."""
    given = pa.array([f"{k:03d}" for k in range(len(Y))] if option == "id" else [f"k{k}" for k in Y])
    parts = [
        pa.DictionaryArray.from_arrays(part.indices.cast(pa.uint32()), part.dictionary.cast(pa.string_view()))
        for part in (given[:40].dictionary_encode(), given[40:].dictionary_encode())
    ]
    name = "label" if option == "label" else "key"
    rows = TABLE.drop_columns("label") if option == "label" else TABLE
    plain, categories = rows.append_column(name, given), rows.append_column(name, pa.chunked_array(parts))
    wanted, found = (score(data, **{option: name}).samples for data in (plain, categories))
    assert found["derivative"].equals(wanted["derivative"])
    assert found[option].to_pylist() == wanted[option].to_pylist()


@pytest.mark.parametrize("option", ["group", "truth", "id"])
def test_a_number_that_is_none_is_no_value_of_its_own(option):
    """As NumPy writes what is missing: one group of all such rows would leave together."""
    keys = np.arange(len(Y), dtype=float)
    keys[3] = np.nan
    with pytest.raises(InputError, match=rf"data.{option}: column `key` must hold no null, got nan at row 3"):
        score({"features": X, "label": Y, "key": keys}, **{option: "key"})


def test_a_source_that_is_no_number_is_none():
    sources = np.where(np.arange(len(Y)) < 10, np.nan, 1.0)
    result = score({"features": X, "label": Y, "key": sources}, source="key")
    found = pq.read_table(f"{result.path}/sources.parquet")
    assert found["source"].to_pylist() == ["1", "(none)"] and found["n"].to_pylist() == [len(Y) - 10, 10]
    assert result.samples["source"].null_count == 10


def test_labels_may_be_true_and_false_in_bytes(tmp_path):
    given = Y > 0
    in_bytes = pa.ExtensionArray.from_storage(pa.bool8(), pa.array(given.astype(np.int8)))
    rows = TABLE.drop_columns("label")
    pq.write_table(rows.append_column("label", in_bytes), tmp_path / "a.parquet")
    wanted = score(rows.append_column("label", pa.array(given))).samples
    for data in (rows.append_column("label", in_bytes), tmp_path / "a.parquet"):
        assert score(data).samples.select(["label", "derivative"]).equals(wanted.select(["label", "derivative"]))


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
            {"features": X.reshape(-1, 2, 2) + 1j, "label": Y},
            r"`features` must be an array of numbers, .* shape \(90, 2, 2\)",
        ),
        ({"features": X + 1j, "label": Y}, "`features` must be an array .* complex128"),
        ({"features": X, "label": ["a", 1] * 45}, "`label` must be an array"),
        (
            pd.DataFrame({"features": list(X), "label": ["a", 1] * 45}),
            r"data: every column must hold one type that Arrow has, got object \(.*\) in column `label` of the D",
        ),
        (
            pd.DataFrame({"features": list(X), "label": Y, "z": np.full(90, 1j)}),
            r"got complex128 \(.*\) in column `z` of .*\. Leave it out .*`df.drop\(columns=\['z'\]\)`\), or convert it",
        ),
        (
            pd.DataFrame({"x": pd.arrays.SparseArray(Y), "label": Y}),
            r"got Sparse\[int64, 0\] in column `x` of the DataFrame\. .* or make it dense \(`\.sparse\.to_dense\(\)`",
        ),
        (Splits(train=5, test=6), r"data: must be one split of a Hugging Face dataset, got train, test\. .*'train'"),
        (5, "data: must be a path, a Ray or Hugging Face Dataset, an Arrow table, .* got builtins.int"),
        ({"features": X[:0], "label": Y[:0]}, "the table must have rows, got 0"),
        (None, "data.path: a table must be named"),
    ],
)
def test_other_things_are_told_apart(data, told):
    with pytest.raises(InputError, match=told):
        open_data(data, None, 0.2, 0)


ARRAYS, HERE = 'Arrays go in as {"features": X, "label": y}.', {"features": X, "label": Y}


class LazyFrame:
    """As polars' own, which warns whoever asks it for its columns."""

    @property
    def columns(self):
        raise AssertionError("asked for its columns")


@pytest.mark.parametrize("call", ["score", "reweight", "extend", "augment", "aggregate", "train", "tune", "curate"])
def test_every_call_says_how_arrays_go_in(call):
    for given in ((X, Y), (X, Y, X, Y), (HERE, Y, X, Y), (None, Y), ()):
        with pytest.raises(InputError, match=f"{re.escape(ARRAYS)}$") as caught:
            getattr(diva_ray, call)(*given)
        assert str(caught.value).count("\n") == 0 and ", got " in str(caught.value)


@pytest.mark.parametrize(
    "call,data,told",
    [
        ("curate", (HERE, Y), "curate: must be drop, weight or relabel, got ndarray."),
        ("extend", (HERE,), "extend: a pool must be given too, got none."),
        ("score", (None,), "score: a table must be given first, got none."),
        ("score", ([{"features": [1.0], "label": 0}],), "pandas.DataFrame(rows) or pyarrow.Table.from_pylist(rows)."),
        ("score", (LazyFrame(),), "Call `.collect()` first."),
        ("embed", (["a text", "another"],), 'Texts go in as {"text": [...]}.'),
        ("embed", (np.array(["a text"]),), 'Texts go in as {"text": [...]}.'),
        ("embed", (np.zeros((2, 8, 8)),), 'Pictures go in as {"image": [...]}'),
        ("embed", (X, Y), "embed: one table must be given"),
    ],
)
def test_what_is_no_table_is_told_how_it_becomes_one(call, data, told):
    with pytest.raises(InputError, match=re.escape(told)):
        getattr(diva_ray, call)(*data)


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
    told = "be integers, .* or change `data.label`" if task == "auto" else "fit .*hange `task` or `data.label`"
    with pytest.raises(InputError, match=f"task: labels in column `label` must {told}"):
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
        (
            {"features": ["features", "text"]},
            r"data.features: column `text` must hold numbers .* got string.*get_dummies",
        ),
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


def held_out_forms(tmp_path):
    """Return a table and another one to validate on, in every form a call takes."""
    X, y = problem(n=260)
    rows = pa.table({"features": vectors(X), "label": y})
    table, held = rows.slice(0, 200), rows.slice(200)
    pq.write_table(held, tmp_path / "held.parquet")
    arrays = {"features": X[200:], "label": y[200:]}
    forms = [str(tmp_path / "held.parquet"), {"path": str(tmp_path / "held.parquet")}, tmp_path / "held.parquet"]
    return table, [*forms, held, arrays, held.to_pandas()]


def test_a_validation_table_may_be_what_data_may_be(tmp_path):
    table, forms = held_out_forms(tmp_path)
    wanted = score(table, validation=forms[0])
    assert wanted.summary["n_validation"] == 60 and wanted.summary["error"] != score(table).summary["error"]
    for form in forms[1:]:
        found = score(table, validation=form)
        assert found.samples.equals(wanted.samples), type(form)
        assert found.summary["n_validation"] == 60
    with pytest.raises(InputError, match="must have the same data and options, got another validation.path"):
        changed = forms[3].set_column(1, "label", pa.array(np.zeros(60, int)))
        again = {"output": str(tmp_path / "run"), "cluster": INLINE, "quiet": True}
        diva_ray.score(table, validation=forms[3], **again)
        diva_ray.score(table, validation=changed, resume=True, **again)


def test_other_methods_and_tasks_take_validation_rows(tmp_path):
    table, forms = held_out_forms(tmp_path)
    options = {"cluster": INLINE, "quiet": True}
    pool = table.slice(150)
    more = [diva_ray.extend(table.slice(0, 150), pool, validation=form, budget=9, **options) for form in forms[2:5]]
    assert more[0].samples.equals(more[1].samples) and more[0].samples.equals(more[2].samples)
    trusted = [diva_ray.score(table, validation=form, method="trusted", **options) for form in (forms[0], forms[3])]
    assert trusted[0].samples.equals(trusted[1].samples)


@pytest.mark.long
@pytest.mark.ray
def test_a_ray_dataset_validates(ray_cluster, tmp_path):
    import ray

    table, forms = held_out_forms(tmp_path)
    on_ray = {"cluster": {"kind": "ray", "workers": 2}, "output": str(tmp_path / "out")}
    found = score(table, validation=ray.data.from_arrow(forms[3]), **on_ray)
    assert found.folder.read_table("samples").equals(score(table, validation=forms[3]).samples)
