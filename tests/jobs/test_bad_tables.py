"""A mistake in a table is one line that says what must hold, what was found and where, and what to change."""

import datetime
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .mistakes import BIG, N, X, Y, base, refuses, score, spoilt, table

# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere.parquet", "no/*.parquet"])
def test_a_missing_file(name, tmp_path):
    refuses(
        r"data.path: a Parquet file, folder or glob must be there, got nothing at .*Change `data.path`",
        str(tmp_path / name),
    )
    refuses(r"data.path: .* got nothing at file:", f"file://{tmp_path}/nowhere.parquet")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_of_other_files(scheme, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"")
    refuses(
        r"data.path: Parquet files must be there, got a folder without any at .*photos\. Change .*jobs/embed.py",
        f"{scheme}{tmp_path}/photos",
    )
    (tmp_path / "photos" / "dataset_info.json").write_text("{}")  # as `save_to_disk` of `datasets` has it
    refuses(r"data.path: .* by `datasets.load_from_disk\(FOLDER\).to_parquet\(", f"{scheme}{tmp_path}/photos")


@pytest.mark.parametrize("uri", ["nothing://bucket/table", "s3a:/x://"])
def test_a_strange_uri(uri):
    refuses(r"data.path: must be a readable URI, got .*Change `data.path`", uri)


def test_no_rows(tmp_path):
    path = tmp_path / "none.parquet"
    pq.write_table(table().slice(0, 0), path)
    refuses(r"data.path: the table must have rows, got 0 in 1 file\(s\) at .*none.parquet", str(path))
    refuses(r"the table must have rows, got 0", {"features": X[:0], "label": Y[:0]})


@pytest.mark.parametrize("damage", ["text", "cut", "no bytes", "footer only"])
def test_what_is_not_parquet(damage, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    whole = path.read_bytes()
    spoilt = {
        "text": b"features,label\n1,2\n",
        "cut": whole[: len(whole) // 2],
        "no bytes": b"",
        "footer only": whole[-200:],
    }
    path.write_bytes(spoilt[damage])
    refuses(r"data.path: every file must be readable Parquet, got .* at .*a.parquet", str(path))


def test_pages_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, compression="zstd")
    whole = bytearray(path.read_bytes())
    whole[60:400] = os.urandom(340)
    path.write_bytes(whole)
    refuses(r"data.path: every file must be readable Parquet, got .* at .*a.parquet, row group 0", str(path))


def test_one_flipped_bit_of_a_page_with_a_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, compression="none", use_dictionary=False, write_page_checksum=True)
    whole = bytearray(path.read_bytes())
    at = whole.find(X[N // 2].tobytes())
    assert at > 0
    whole[at] ^= 1
    path.write_bytes(whole)
    refuses(r"data.path: every file must be readable Parquet, got .*CRC.* at .*a.parquet, row group 0", str(path))


@pytest.mark.parametrize(
    "option", ["features", "label", "id", "weight", "validation_weight", "group", "source", "offset", "show", "truth"]
)
def test_a_missing_column(option):
    told = rf"data.{option}: column `absent` must be in the table, got columns features, label. Change `data.{option}`"
    refuses(told, table(), **{option: "absent"})


# --- values ----------------------------------------------------------------------------------------------------------


def test_vectors_of_unequal_length(tmp_path):
    rows = X.tolist()
    rows[41] = rows[41][:3]
    ragged = {"features": pa.array(rows), "label": Y}
    refuses(r"data.features: vectors of column `features` must have equal length, got 4 and 3 at .*row 41", ragged)
    long = BIG["features"].tolist()
    long[2100] = [1.0]
    refuses(r"got 3 and 1 at row 2100", {"features": pa.array(long), "label": BIG["label"]})
    pq.write_table(table(), tmp_path / "a.parquet")
    narrow = pa.table({"features": pa.array(X[:, :2].tolist(), pa.list_(pa.float32())), "label": Y})
    pq.write_table(narrow, tmp_path / "b.parquet")
    refuses(r"data.features: .* must have equal length, got 4 and 2 at b.parquet row 0", str(tmp_path))


def test_files_with_vectors_of_unequal_length_in_different_shards(tmp_path):
    for k, width in enumerate((3, 2)):
        rows = pa.array(BIG["features"][:1300, :width].tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"features": rows, "label": Y[np.arange(1300) % 3]}), tmp_path / f"{k}.parquet")
    refuses(r"data.features: .* equal length, got \[3\] at 0.parquet row 0 and \[2\] at 1.parquet row 0", str(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_features_must_be_finite(value, kind):
    bad = X.astype(kind)
    bad[17, 2] = value
    refuses(rf"data.features: column `features` must be finite, got {value} at row 17", base(features=bad))
    far = BIG["features"].astype(kind)
    far[2222, 1] = value
    refuses(rf"must be finite, got {value} at row 2222", {**BIG, "features": far})


def test_features_too_large_to_square():
    bad = X.astype(np.float64)
    bad[17, 2] = 1e200
    refuses(r"data.features: column `features` must be below 1e150 in size, got 1e\+200 at row 17", base(features=bad))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_to_predict_must_be_finite(value):
    for label in (X[:, 0], X[:, :2]):
        bad = label.copy()
        bad[5] = value
        refuses(rf"data.label: column `label` must be finite, got {value} at row 5", base(label=bad))


@pytest.mark.parametrize("option", ["weight", "validation_weight"])
def test_weights(option):
    ones = np.ones(N)
    for value, told in (
        (np.nan, "finite, got nan"),
        (np.inf, "finite, got inf"),
        (-0.5, ">= 0, got -0.5"),
        (None, "finite, got null"),
    ):
        refuses(
            rf"data.{option}: column `w` must be {told} at row 9",
            base(w=pa.array(spoilt(ones, 9, value))),
            **{option: "w"},
        )
    told = {"weight": "weight: some weight", "validation_weight": "validation_weight: some validation weight"}[option]
    refuses(rf"data.{told} must be > 0, got all zero", base(w=0 * ones), **{option: "w"})
    refuses(rf"data.{option}: column `w` must hold numbers", base(w=["a"] * N), **{option: "w"})
    refuses(rf"data.{option}: column `w` must hold one number a row, got 4", base(w=X), **{option: "w"})


def test_nulls():
    refuses(r"data.label: column `label` must hold no null, got one at row 4", base(label=pa.array(spoilt(Y, 4, None))))
    refuses(r"data.id: column `id` must hold no null, got one at row 4", base(id=pa.array(spoilt(Y, 4, None))))
    for keys in (spoilt(Y, 4, None), [None if k == 4 else "a" for k in range(N)]):
        refuses(r"data.group: column `g` must hold no null, got one at row 4", base(g=pa.array(keys)), group="g")
    lists = [["a"], ["b", None], ["c"]] * 20
    refuses(r"data.label: column `label` must hold no null, got one inside a list at row 1", base(label=lists))
    pairs = pa.array([["a", "b"], ["b", None], ["c", "a"]] * 20, pa.list_(pa.string(), 2))
    refuses(r"data.label: column `label` must hold no null, got one inside a list at row 1", base(label=pairs))
    holes = X.tolist()
    holes[8][1] = None
    refuses(
        r"data.features: column `features` must hold no null inside a vector, got one at .*row 8", base(features=holes)
    )
    nothing = pa.array([None] * N, pa.list_(pa.float32()))
    refuses(r"data.features: some row must have the band `b`", base(b=nothing), features=["features", "b"])
    empty = pa.array([[]] * N, pa.list_(pa.float32()))
    refuses(r"data.features: vectors of column `b` must hold numbers, got length 0", base(b=empty), features="b")


def test_one_class_only():
    refuses(
        r"data.label: there must be at least two classes, got the label 'cat' in every row of `label`",
        base(label=["cat"] * N),
    )


@pytest.mark.parametrize("names", [False, True])
def test_ids_must_be_unique(names):
    def given(ids):
        return [f"key {k}" for k in ids] if names else ids

    told = "'key 3'" if names else "3"
    refuses(
        rf"data.id: ids must be unique, got {told} twice at row 3 and row 50",
        base(id=given(spoilt(np.arange(N), 50, 3))),
    )
    ids = np.arange(2600)
    ids[2500] = 3  # in another shard
    refuses(rf"data.id: ids must be unique, got {told} twice at row 3 and row 2500", {**BIG, "id": given(ids)})


def test_ids_are_named_where_they_were_before_rows_were_grouped():
    ids = np.arange(2600)
    ids[2500] = 3
    group = np.arange(2600) % 1300
    refuses(
        r"data.id: .* got 3 twice at (row 3 and row 2500|row 2500 and row 3)\.",
        {**BIG, "id": ids, "g": group},
        group="g",
    )


def test_labels_that_do_not_fit():
    dates = pa.array([datetime.date(2020, 1, 1)] * len(Y))
    refuses(r"task: labels in column `label` must be integers, strings or booleans .* got date32", base(label=dates))
    refuses(r"task: labels in column `label` must fit regression, got string. Change `task` or `data.label`",
            base(label=["a", "b", "c"] * 20), task="regression")  # fmt: skip
    refuses(
        r"task: labels in column `label` must fit classification, got float", base(label=X[:, 0]), task="classification"
    )
    refuses(r"data.label: vectors of column `label` must have equal length, got 2 and 1 at row 59",
            base(label=pa.array([[1.0, 2.0]] * 59 + [[1.0]])))  # fmt: skip


def test_offsets_must_have_one_number_for_each_output():
    for width in (1, 2):
        refuses(rf"data.offset: column `o` must hold 3 numbers, .* got {width}", base(o=X[:, :width]), offset="o")


def test_one_group_only():
    refuses(r"data.group: there must be at least two groups, got one in `g`", base(g=["me"] * N), group="g")


# --- a validation table ----------------------------------------------------------------------------------------------


def test_a_validation_table_must_match(tmp_path):
    def held_out(rows):
        pq.write_table(rows, tmp_path / "v.parquet")
        return str(tmp_path / "v.parquet")

    refuses(
        r"validation.path: .* must be there, got nothing at .*Change `validation.path`",
        table(),
        validation=str(tmp_path / "no"),
    )
    refuses(r"validation.path: the table must have the same columns, got no `label`",
            table(), validation=held_out(table().drop_columns("label")))  # fmt: skip
    named = table().set_column(1, "label", pa.array([f"{k}" for k in Y]))
    refuses(
        r"validation.path: column `label` must hold integer as in the table, got string",
        table(),
        validation=held_out(named),
    )
    narrow = pa.table({"features": X[:, 0], "label": Y})
    refuses(
        r"data.features: .* equal length, got \[4\] at row 0 and \[1\] at validation.path v.parquet row 0",
        table(),
        validation=held_out(narrow),
    )
    refuses(r"data.label: column `label` must hold no null, got one at validation.path v.parquet row 2",
            table(), validation=held_out(table().set_column(1, "label", pa.array(spoilt(Y, 2, None)))))  # fmt: skip


@pytest.mark.parametrize(
    "label,truth,told",
    [
        (Y, [None, *Y[1:].tolist()], r"data.truth: column `truth` must hold no null, got one at row 0"),
        ([f"c{k}" for k in Y], Y, r"data.truth: column `truth` must hold what the label holds, got int64 for string"),
    ],
)
def test_a_truth_that_cannot_be_compared_is_refused_before_anything_is_computed(label, truth, told):
    refuses(told, base(label=label, truth=truth), truth="truth")


def test_a_band_is_named_once_and_some_row_must_have_it():
    refuses(r"every band must be named once, got `features` twice", base(), features=["features", "features"])
    empty = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * N)), 2, mask=pa.array(np.ones(N, bool)))
    rows = table(empty=empty)  # of a fixed length, which is known though every row lacks it
    refuses(r"some row must have the band `empty`, got null in every row", rows, features=["features", "empty"])


@pytest.mark.parametrize("kind", [int, bool])
@pytest.mark.parametrize("width", [2, 3])
def test_a_matrix_of_zeros_and_ones_is_no_list_of_classes(kind, width):
    hot = np.eye(width)[Y % width].astype(kind)
    told = rf"data.label: lists must name the classes of a row, got {width} zeros and ones in every row of `label`"
    refuses(told, base(label=hot))
    refuses(told, base(label=hot.tolist()))


def test_lists_that_name_no_class():
    empty = pa.array([[]] * N, pa.list_(pa.string()))
    refuses(r"data.label: some row must have a class, got empty lists in every row of `label`", base(label=empty))


@pytest.mark.parametrize("factor,standardize", [(1e-40, "auto"), (1e40, "auto"), (1e17, "none"), (1e-17, "none")])
def test_features_that_products_cannot_hold(factor, standardize):
    told = r"data.features: rows of a band must have a root mean square norm of 1e-\d+ to 1e\+\d+, got .* in `features`"
    refuses(told, base(features=X.astype(float) * factor), standardize=standardize)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.5])
def test_features_that_are_the_same_everywhere(value):
    told = "data.features: some column must vary from row to row, got the same values in every row"
    refuses(told, base(features=np.full_like(X, value)), ridge="auto")
    for rows in (20, N):  # of whose products the spread is nothing but rounding
        few = {name: column[:rows] for name, column in base(features=np.full((N, 1), value)).items()}
        refuses(told, few, ridge="auto", standardize="none")
        refuses(told, few, ridge="auto", standardize="none", precision="float64")
    assert score(base(features=np.full_like(X, value)), ridge=1.0).summary["n_samples"] == N  # the intercept is fitted


@pytest.mark.parametrize("weight", [1e-300, 1e-20, 1e20, 1e300])
def test_weights_whose_derivatives_cannot_be_written(weight):
    told = r"data.weight: weights above 0 must have a mean of 1e-12 to 1e\+12, got .* in `w`"
    refuses(told, base(w=np.full(N, weight)), weight="w")
    assert score(base(w=np.full(N, 1e-11)), weight="w", ridge=1e-12).summary["n_samples"] == N


def test_a_truth_must_be_comparable():
    refuses(
        r"data.truth: column `t` must hold what the label holds, got string for int64", base(t=["a"] * N), truth="t"
    )
    several = base(label=[[int(y)] for y in Y], t=[[int(y)] for y in Y])
    refuses(
        r"data.truth: labels must be one value a row .* got list.* in `label`. Leave `data.truth` out",
        several,
        truth="t",
    )


@pytest.mark.parametrize("several", [False, True])
def test_classes_that_only_validate(several, tmp_path):
    names = np.array(["a", "b", "c", "d"])
    labels = [[name] for name in names[Y]] if several else names[Y].tolist()
    strange = [*labels[:-1], ["d"] if several else "d"]
    path, rows = tmp_path / "v.parquet", table()
    pq.write_table(rows.set_column(1, "label", pa.array(strange)), path)
    told = "validation.path: labels must be among the table's 3 classes, got 1 new one, such as 'd'. Fix the validation"
    refuses(told, base(label=labels), validation=str(path))
    pq.write_table(rows.set_column(1, "label", pa.array(labels)).slice(0, 2), path)
    assert score(base(label=labels), validation=str(path)).summary["n_outputs"] == 3


def test_a_csv_is_told_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_text("features,label\n1,2\n")
    refuses(
        r"data.path: every file must be readable Parquet, got .* at .*a.csv. Convert it first, by pandas",
        str(tmp_path / "a.csv"),
    )


def test_two_columns_of_one_name_in_a_dataframe():
    frame = pd.DataFrame([[1.0, 2.0, 0], [3.0, 4.0, 1]], columns=["a", "a", "label"])
    refuses(r"data: columns must have different names, got `a` twice in the DataFrame. Rename one of them.", frame)
