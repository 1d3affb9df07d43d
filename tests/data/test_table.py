"""Files, however they are cut: the same table gives the same rows, in the same order, with the same bits."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import from_arrays, open_parquet
from diva_ray.errors import InputError

from ..oracles import assert_close
from .tables import INLINE, in_float64, problem, score, vectors, write

X, Y = problem(n=2600)  # two shards of 1,300
IDS = np.random.default_rng(3).permutation(2600)
TABLE = pa.table({"features": vectors(X), "label": Y, "id": IDS})
CUTS = {
    "one file, one huge row group": ((), None),
    "one file, many row groups": ((), 97),
    "three files": ((700, 1301), 1000),
    "many files, one of no rows": (tuple(sorted([*range(37, 2600, 211), 248])), 50),
}


@pytest.fixture(scope="module")
def wanted():
    return in_float64(TABLE, block_rows=300)


@pytest.mark.parametrize("cut", CUTS)
def test_bits_do_not_depend_on_how_files_are_cut(cut, wanted, tmp_path):
    cuts, row_group_size = CUTS[cut]
    path = write(tmp_path, TABLE, cuts, row_group_size)
    assert open_parquet(path).rows == 2600
    assert bool((in_float64(path, block_rows=300) == wanted).all())


def test_rows_come_out_in_the_order_of_the_input(tmp_path):
    rows = score(write(tmp_path, TABLE, (700, 1301), 333)).samples
    assert rows["id"].to_pylist() == IDS.tolist() and rows["label"].to_pylist() == Y.tolist()


@pytest.mark.parametrize("block_rows", [7, 64, 5000])
def test_blocks_change_only_the_rounding(block_rows, wanted):
    found = in_float64(TABLE, block_rows=block_rows)
    assert_close(found[:, 0], wanted[:, 0], 1e-12, "derivative")
    assert_close(found[:, 1], wanted[:, 1], 1e-12, "standard error")


def test_the_order_of_rows_changes_only_the_rounding(wanted):
    order = np.random.default_rng(0).permutation(2600)
    found = in_float64(TABLE.take(pa.array(order)), block_rows=300)
    assert_close(found[:, 0], wanted[order, 0], 1e-12, "derivative")
    assert_close(found[:, 1], wanted[order, 1], 1e-12, "standard error")


def test_folder_glob_file_and_uri_name_the_same_table(tmp_path, monkeypatch):
    folder = tmp_path / "a [1] table" / "deep"
    folder.mkdir(parents=True)
    small = TABLE.slice(0, 90)
    write(folder, small)
    (folder.parent / "_SUCCESS").touch()
    (folder.parent / "notes.txt").write_text("no table")
    file = folder / "part-000.parquet"
    monkeypatch.chdir(tmp_path)
    names = [str(folder.parent), str(folder), str(file), str(tmp_path / "a*" / "**" / "*.parquet"), "a [1] table"]
    uris = [
        f"file://{str(path).replace(' ', '%20').replace('[', '%5B').replace(']', '%5D')}"
        for path in (file, folder.parent)
    ]
    wanted = score(small).samples["derivative"]
    for name in [*names, *uris]:
        assert score(name).samples["derivative"].equals(wanted), name


def test_files_are_sorted_by_name(tmp_path):
    for k in (2, 0, 1):
        pq.write_table(TABLE.slice(30 * k, 30), tmp_path / f"{k}.parquet")
    assert score(str(tmp_path)).samples["id"].to_pylist() == IDS[:90].tolist()


def test_ids_may_be_integers_strings_or_absent(tmp_path):
    names = pa.array([f"row {k}" for k in IDS[:90]])
    for ids in (pa.array(IDS[:90]), names, names.dictionary_encode(), names.cast(pa.large_string())):
        table = pa.table({"features": vectors(X[:90]), "label": Y[:90], "key": ids})
        assert score(table, id="key").samples["id"].to_pylist() == ids.to_pylist()
    pq.write_table(TABLE.drop_columns("id"), tmp_path / "a.parquet", row_group_size=411)
    assert score(str(tmp_path)).samples["id"].to_pylist() == list(range(2600))


def test_classes_of_one_file_may_be_strange_to_another(tmp_path):
    names = pa.array([f"{'low' if k < 1300 else 'high'} {label}" for k, label in enumerate(Y)])
    path = write(tmp_path, TABLE.set_column(1, "label", names), (1300,))
    result = score(path)
    assert result.summary["n_outputs"] == 6
    assert result.samples["label"].to_pylist() == names.to_pylist()
    in_memory = score({"features": X, "label": names}).samples["derivative"]
    assert result.samples["derivative"].equals(in_memory)


@pytest.mark.parametrize(
    "one,other",
    [
        (pa.int8(), pa.int64()), (pa.string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int32(), pa.string())),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string())),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cut", [1300, 800])  # between the shards, and inside one
def test_files_may_differ_in_the_width_of_a_type(one, other, cut, tmp_path):
    label = pa.array(Y) if pa.types.is_integer(one) else pa.array([f"class {k}" for k in Y])
    for k, (part, kind) in enumerate(((slice(0, cut), one), (slice(cut, None), other))):
        forms = vectors(X[part]), vectors(X[part], pa.list_(pa.float64()))
        rows = label[part].dictionary_encode() if pa.types.is_dictionary(kind) else label[part]
        table = pa.table({"features": forms[k], "label": rows.cast(kind), "id": IDS[part]})
        pq.write_table(table, tmp_path / f"{k}.parquet")
    rows = score(str(tmp_path)).samples
    assert rows["label"].to_pylist() == label.to_pylist()
    assert rows["derivative"].equals(score(TABLE).samples["derivative"])


def test_only_named_columns_are_read(tmp_path):
    table = TABLE.slice(0, 90).append_column("junk", pa.array([{"a": [k]} for k in range(90)]))
    assert score(write(tmp_path, table)).summary["n_samples"] == 90


@pytest.mark.parametrize("rows,count", [(1, 1), (1023, 1), (2048, 2), (12_288, 12), (393_216, 12), (393_217, 24)])
def test_shards_depend_on_the_rows_alone(rows, count):
    table = from_arrays({"label": np.zeros(rows)})
    extents = split(table, Columns((), "label"))
    assert len(extents) == count and extents[0].start == 0 and extents[-1].stop == rows
    assert all(a.stop == b.start for a, b in pairwise(extents))


def test_a_row_is_named_by_its_file_and_place(tmp_path):
    table = open_parquet(write(tmp_path, TABLE, (700, 1301), 333))
    assert [table.where(row) for row in (0, 699, 700, 1300, 1301)] == [
        "part-000.parquet row 0", "part-000.parquet row 699", "part-001.parquet row 0", "part-001.parquet row 600",
        "part-002.parquet row 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change,told",
    [
        (lambda t: t.drop_columns("label"), "data.label: every file must have column `label`, got none at .*b.parquet"),
        (
            lambda t: t.set_column(1, "label", t["label"].cast(pa.string())),
            "got integer in .*a.parquet and string in .*b.parquet",
        ),
        (
            lambda t: t.set_column(0, "features", vectors(X[:90, 0:1])[:90].flatten()),
            "list of double in .*a.parquet and double",
        ),
    ],
)
def test_files_must_have_the_same_columns(change, told, tmp_path):
    pq.write_table(TABLE.slice(0, 90), tmp_path / "a.parquet")
    pq.write_table(change(TABLE.slice(0, 90)), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=told):
        score(str(tmp_path))


def test_what_writers_set_aside_is_not_read(tmp_path):
    names = ["part-0.parquet", "kind=_a/part-1.parquet"]
    aside = ["_temporary/0/part-2.parquet", ".ipynb_checkpoints/part-0.parquet", "_part-0.parquet", ".part-0.parquet"]
    for name in [*names, *aside]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(TABLE.slice(0, 10), tmp_path / name)
    for path in (str(tmp_path), tmp_path.as_uri()):
        assert {piece.file for piece in open_parquet(path).pieces} == {f"{tmp_path}/{name}" for name in names}
    with pytest.raises(InputError, match="a URI must name a Parquet file or folder, got a pattern at file:"):
        open_parquet(f"{tmp_path.as_uri()}/*.parquet")


@pytest.mark.parametrize("first", [True, False])
def test_files_without_rows_have_no_say_in_types(first, tmp_path):
    pq.write_table(pa.table({"features": pa.nulls(0)}), tmp_path / f"{'a' if first else 'z'}.parquet")
    pq.write_table(TABLE, tmp_path / "m.parquet")
    assert open_parquet(str(tmp_path)).schema.names == TABLE.column_names
    assert len(score(str(tmp_path)).samples) == len(TABLE)


@pytest.mark.parametrize("first", [True, False])
def test_a_column_that_is_null_in_a_whole_file_takes_the_type_of_the_others(first, tmp_path):
    half = TABLE.slice(0, 90)
    names = [[["a"], ["b"], ["a", "b"]][k % 3] for k in range(90)]
    full = half.append_column("text", pa.array(["t"] * 90)).set_column(1, "label", pa.array(names))
    bare = half.append_column("text", pa.nulls(90)).set_column(1, "label", pa.array([[]] * 90))
    for name, rows in zip("ab", (bare, full) if first else (full, bare), strict=True):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    samples = score(str(tmp_path), id="none", show="text").samples
    assert samples["label"].to_pylist() == ([[]] * 90 + names if first else names + [[]] * 90)


def test_many_row_groups_are_read_from_one_open_file(tmp_path, monkeypatch):
    rows = pa.table({"x": np.arange(3000.0), "label": np.arange(3000) % 2})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=5)
    pq.write_table(rows, tmp_path / "b.parquet", row_group_size=7)
    table, opened = open_parquet(str(tmp_path)), []
    whole = pq.ParquetFile

    def counted(*words, **options):
        opened.append(words[0])
        return whole(*words, **options)

    monkeypatch.setattr(pq, "ParquetFile", counted)
    reader = table.reader()
    found = pa.concat_tables([reader.read(a, min(a + 700, 6000), ["x"]) for a in range(0, 6000, 700)])
    assert found["x"].to_pylist() == 2 * rows["x"].to_pylist() and len(opened) == 2


def test_a_file_that_changes_under_a_reader_is_told(tmp_path):
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": np.arange(10.0)}), tmp_path / f"{name}.parquet")
    table = open_parquet(str(tmp_path))
    assert table.reader().read(5, 15, ["x"]).num_rows == 10
    pq.write_table(pa.table({"x": np.arange(10.0) + 1, "y": np.arange(10.0)}), tmp_path / "b.parquet")
    assert table.reader().read(5, 10, ["x"]).num_rows == 5
    with pytest.raises(InputError, match=r"data.path: files must stay as they are .* change at .*b.parquet. Run again"):
        table.reader().read(5, 15, ["x"])


def test_folders_whose_names_end_like_files_are_folders(tmp_path):
    for name in ("train.parquet", "more.parquet"):
        (tmp_path / "data" / name).mkdir(parents=True)
        pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "data" / name / "part-0.parquet")
    for path in (tmp_path / "data", f"file://{tmp_path}/data"):
        assert open_parquet(str(path)).rows == 4


def test_categories_of_many_files_may_be_more_than_one_files_numbers_count(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    parts = [pa.array([f"{part}{k}" for k in range(100)]).dictionary_encode().cast(kind) for part in "ab"]
    X = np.random.default_rng(0).standard_normal((200, 3))
    for k, part in enumerate(parts):
        rows = {"features": X[100 * k : 100 * k + 100].tolist(), "label": np.arange(100) % 2, "key": part}
        pq.write_table(pa.table(rows), tmp_path / f"{k}.parquet")
    whole = {"features": X.tolist(), "label": np.arange(200) % 2, "key": pa.chunked_array(parts)}
    for data in (str(tmp_path), pa.table(whole)):
        found = diva_ray.score(data, group="key", source="key", id="key", cluster=INLINE, quiet=True).samples
        assert found["id"].to_pylist() == [f"{part}{k}" for part in "ab" for k in range(100)]


def test_a_column_that_may_not_be_null_beside_one_that_may(tmp_path):
    kind = pa.list_(pa.float32(), 2)
    strict = pa.schema([pa.field("features", kind, nullable=False), ("text", kind), ("label", pa.int32())])
    rows = {"features": [[1, 2]] * 9 + [[3, 1]], "text": [[k, 1] for k in range(10)], "label": [0, 1] * 5}
    pq.write_table(pa.table(rows, strict), tmp_path / "a.parquet")
    loose = pa.schema([("features", kind), ("text", kind), ("label", pa.int64())])
    pq.write_table(pa.table({**rows, "features": [None] * 10}, loose), tmp_path / "b.parquet")
    result = diva_ray.score(str(tmp_path), features=["features", "text"], cluster=INLINE, quiet=True)
    assert result.summary["missing"] == {"features": 10}


def test_a_band_that_is_missing_at_first_is_planned_for(tmp_path):
    picture = pa.array([None] * 200 + [[1.0, 2.0, float(k)] for k in range(200)], pa.list_(pa.float32()))
    rows = pa.table({"text": np.eye(400, 5).tolist(), "image": picture, "label": np.arange(400) % 2})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=50)
    for data in (str(tmp_path / "a.parquet"), rows):
        result = diva_ray.aggregate(data, features=["text", "image"], cluster=INLINE, quiet=True)
        assert result.summary["n_features"] == 8
        plan = diva_ray.score(data, features=["text", "image"], cluster=INLINE, plan=True)
        assert plan.features == 8
