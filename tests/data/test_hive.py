"""Tables whose folders are named `key=value`: what only the names hold are columns of every row."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.data.table import open_parquet
from diva_ray.errors import InputError

from .tables import INLINE, problem, score, vectors

X, Y = problem(n=300)
ROWS = pa.table({"features": vectors(X), "label": Y, "note": [f"n{k}" for k in range(300)], "id": np.arange(300)})


@pytest.fixture
def parted(tmp_path):
    folder = tmp_path / "table"
    pq.write_to_dataset(ROWS, folder, partition_cols=["label"])
    return folder


def in_order_of(path):
    """Return the rows as pyarrow reads the folders, in the order of the sorted files."""
    table = ds.dataset(path, partitioning="hive").to_table()
    return table.set_column(table.schema.get_field_index("label"), "label", table["label"].cast(pa.int64()))


def test_a_label_that_only_folders_hold_is_the_label(parted):
    flat = in_order_of(parted)
    wanted = score(flat).samples
    assert sorted(set(wanted["label"].to_pylist())) == [0, 1, 2]
    for path in (str(parted), parted.as_uri(), f"{parted}/", f"{parted}/*/*.parquet", f"{parted}/label=*"):
        found = score(path).samples
        assert found["derivative"].equals(wanted["derivative"]), path
        assert found["label"].to_pylist() == wanted["label"].to_pylist(), path


@pytest.mark.ray
def test_workers_read_them_too(ray_cluster, parted, tmp_path):
    wanted = score(str(parted)).samples
    on_ray = score(str(parted), cluster={"kind": "ray", "workers": 2}, output=str(tmp_path / "out"))
    assert on_ray.folder.read_table("samples").equals(wanted)


def test_any_column_may_lie_in_folders(tmp_path):
    kinds = [["web", "a/b c=é", None][k % 3] for k in range(300)]
    table = ROWS.append_column("kind", pa.array(kinds)).append_column("w", pa.array([1 + k % 2 for k in range(300)]))
    pq.write_to_dataset(table, tmp_path / "t", partition_cols=["kind", "w"])
    names = {folder.name for folder in (tmp_path / "t").iterdir()}
    assert "kind=__HIVE_DEFAULT_PARTITION__" in names and any("%2F" in name for name in names)
    opened = open_parquet(str(tmp_path / "t"))
    assert opened.schema.field("kind").type == pa.string() and opened.schema.field("w").type == pa.int64()
    result = score(str(tmp_path / "t"), source="kind", weight="w", show="kind")
    by_id = {row["id"]: (row["source"], row["weight"]) for row in result.samples.to_pylist()}
    assert by_id == {k: (kinds[k], 1 + k % 2) for k in range(300)}


@pytest.mark.parametrize(
    "words,kind,values",
    [
        (["1", "-20", "0"], pa.int64(), [1, -20, 0]),
        (["01", "2"], pa.string(), ["01", "2"]),
        (["1", "x"], pa.string(), ["1", "x"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64(), [1, None]),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string(), [None]),
        (["9223372036854775808", "-0"], pa.string(), ["9223372036854775808", "-0"]),
        (["\u0663", "1_0", ""], pa.string(), ["\u0663", "1_0", ""]),
    ],
)
def test_values_are_integers_where_all_are(words, kind, values, tmp_path):
    for k, word in enumerate(words):
        (tmp_path / f"n={k}" / f"key={word}").mkdir(parents=True)
        pq.write_table(ROWS.slice(k, 1), tmp_path / f"n={k}" / f"key={word}" / "a.parquet")
    table = open_parquet(str(tmp_path))
    assert table.schema.field("key").type == kind
    found = table.reader().read(0, len(words), ["key", "n"])
    assert found["key"].to_pylist() == values and found["n"].to_pylist() == list(range(len(words)))


def test_a_column_inside_the_files_wins_and_folders_above_the_table_say_nothing(tmp_path):
    (tmp_path / "label=9" / "label=7").mkdir(parents=True)
    pq.write_table(ROWS, tmp_path / "label=9" / "label=7" / "a.parquet")
    pq.write_table(ROWS.drop_columns("label"), tmp_path / "label=9" / "b.parquet")
    assert score(str(tmp_path / "label=9" / "label=7")).samples["label"].to_pylist() == Y.tolist()
    assert "label" not in open_parquet(str(tmp_path / "label=9" / "b.parquet")).schema.names


def test_a_folder_that_cannot_be_decoded_is_one_line(tmp_path):
    (tmp_path / "label=%FF").mkdir()
    pq.write_table(ROWS, tmp_path / "label=%FF" / "a.parquet")
    with pytest.raises(InputError, match="names of folders must be UTF-8 once decoded, got label=%FF at .*a.parquet"):
        open_parquet(str(tmp_path))


@pytest.mark.parametrize("curate", ["drop", "relabel", "weight"])
def test_curated_rows_keep_every_column(curate, parted):
    flat = in_order_of(parted)
    options = {"keep_sums": False, "cluster": INLINE, "ridge": 0.5, "curate": curate, "quiet": True}
    wanted = diva_ray.score(flat, **options).folder.read_table("curated")
    found = diva_ray.score(str(parted), **options).folder.read_table("curated")
    assert set(found.column_names) == set(wanted.column_names) >= {"features", "label", "note", "id"}
    for name in wanted.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name


def test_another_folder_is_another_label_to_updates_and_resumed_runs(parted, tmp_path):
    options = {"quiet": True, "cluster": INLINE, "ridge": 0.5}
    diva_ray.score(str(parted), **options, output=str(tmp_path / "one"))
    file = next((parted / "label=2").iterdir())
    shutil.move(file, parted / "label=1" / f"z-{file.name}")
    with pytest.raises(InputError, match="must have the same data and options, got another"):
        diva_ray.score(str(parted), **options, output=str(tmp_path / "one"), resume=True)
    fresh = diva_ray.score(str(parted), **options)
    updated = diva_ray.score(str(parted), **options, update=str(tmp_path / "one"))
    assert fresh.summary["n_outputs"] == updated.summary["n_outputs"] == 2
    assert updated.summary["update"]["rows_computed"] == 0
    assert updated.summary["update"]["rows_relabelled"] > 0
    np.testing.assert_allclose(updated.samples["derivative"], fresh.samples["derivative"], rtol=1e-4, atol=1e-7)


def test_embed_keeps_them(tmp_path):
    texts = pa.table({"text": [f"word{k % 3} of {k % 7}" for k in range(60)], "label": [k % 3 for k in range(60)]})
    pq.write_to_dataset(texts, tmp_path / "raw", partition_cols=["label"])
    out = tmp_path / "out"
    made = diva_ray.embed(str(tmp_path / "raw"), encoder="words", output=str(out), cluster=INLINE, quiet=True)
    rows = made.folder.read_table("features")
    assert all(row["text"].startswith(f"word{row['label']}") for row in rows.to_pylist()) and len(rows) == 60
