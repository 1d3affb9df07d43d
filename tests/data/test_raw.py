"""Units of raw data: every row once, in order, however the input is cut, packed or named."""

import gzip
import json
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diva_ray
from diva_ray.data.columns import to_matrix
from diva_ray.data.files import part_name
from diva_ray.data.raw import lines
from diva_ray.data.raw.find import find_raw
from diva_ray.data.raw.units import field_of, rechunk
from diva_ray.errors import InputError
from tests.data import raw_sets

INLINE = {"kind": "inline", "threads": 1}


def rows_of(path, columns, kind="auto", unit_rows=8, rows=5):
    """Return all rows of all units, and every unit's chunks' lengths."""
    source = find_raw(str(path), kind, id=None, label="label", unit_rows=unit_rows)
    found, lengths = [], []
    for unit in source.units:
        chunks = list(source.read(source, unit, columns, rows))
        lengths.append([chunk.table.num_rows for chunk in chunks])
        found += [row for chunk in chunks for row in chunk.table.to_pylist()]
        where = [chunk.where(k) for chunk in chunks for k in range(chunk.table.num_rows)]
        assert len(set(where)) == len(where), "every row has a place of its own"
        assert unit.rows in (None, sum(lengths[-1]))
    return found, lengths


@pytest.mark.parametrize("kind", raw_sets.FORMS)
@pytest.mark.parametrize("uri", [False, True])
def test_every_row_comes_once_and_in_order(tmp_path, kind, uri):
    raw_sets.FORMS[kind](tmp_path)
    text = {"folder": "label", "webdataset": "text"}.get(kind, "caption")
    found, lengths = rows_of(f"file://{tmp_path}" if uri else tmp_path, [text], kind)
    expected = sorted(raw_sets.labels()) if kind == "folder" else raw_sets.texts()
    assert [row[text] for row in found] == expected
    assert all(one == 5 for unit in lengths for one in unit[:-1]), "chunks have one length, whatever the file's cuts"


@pytest.mark.parametrize("size", [1, 17, 100, 1000, 10**6])
def test_byte_ranges_cut_no_line_and_lose_none(tmp_path, monkeypatch, size):
    monkeypatch.setattr(lines, "RANGE", size)
    texts = [f"line {k} " + "x" * (k % 40) for k in range(60)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    found, lengths = rows_of(tmp_path, ["text"])
    assert [row["text"] for row in found] == texts
    assert len({row["id"] for row in found}) == 60 and (size > 5000 or len(lengths) > 1)


def test_units_of_lines_have_as_many_rows_as_are_asked_for_but_are_not_too_many(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"line {k:04d}"}) + "\n" for k in range(1000)))

    def units(rows):
        return len(find_raw(str(tmp_path), "auto", id=None, label="label", unit_rows=rows).units)

    assert units(2048) == 1 and 10 <= units(100) <= 12 and 40 <= units(25) <= 48
    monkeypatch.setattr(lines, "MOST_UNITS", 20)
    assert units(25) in (20, 21)


def test_packed_files_are_read(tmp_path):
    for form in ("jsonl", "csv"):
        (tmp_path / form).mkdir()
        raw_sets.FORMS[form](tmp_path / form)
        plain = tmp_path / form / f"rows.{form}"
        expected, _ = rows_of(plain, ["caption"])
        packed = tmp_path / form / f"rows.{form}.gz"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        found, _ = rows_of(tmp_path / form, ["caption"])
        assert [row["caption"] for row in found] == [row["caption"] for row in expected]
    (tmp_path / "tar").mkdir()
    raw_sets.write_tars(tmp_path / "tar")
    for tar in list((tmp_path / "tar").glob("*.tar")):
        (tmp_path / "tar" / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    found, _ = rows_of(tmp_path / "tar", ["text", "number"])
    assert [row["text"] for row in found] == raw_sets.texts()
    assert [row["number"] for row in found] == list(range(raw_sets.N))


def test_a_glob_names_some_files(tmp_path):
    raw_sets.write_parquet(tmp_path)
    found, _ = rows_of(tmp_path / "b*.parquet", ["caption"])
    assert [row["caption"] for row in found] == raw_sets.texts()[30:]
    for k in range(2):
        shutil.copy(tmp_path / "b.parquet", tmp_path / f"c{k}.parquet")
    assert len(rows_of(tmp_path / "c?.parquet", ["caption"])[0]) == 40


@settings(deadline=None, derandomize=True, max_examples=60)
@given(cuts=st.lists(st.integers(0, 7), max_size=9), rows=st.integers(1, 9))
def test_chunks_do_not_depend_on_how_the_input_was_cut(cuts, rows):
    whole = pa.table({"a": list(range(sum(cuts)))})
    starts = np.cumsum([0, *cuts]).tolist()
    parts = [(whole.slice(a, n), a, []) for a, n in zip(starts, cuts, strict=False)]
    found = list(rechunk(iter(parts), rows, str))
    assert [value for chunk in found for value in chunk.table["a"].to_pylist()] == list(range(sum(cuts)))
    assert [chunk.table.num_rows for chunk in found[:-1]] == [rows] * (len(found) - 1)
    assert [chunk.where(k) for chunk in found for k in range(chunk.table.num_rows)] == [
        str(k) for k in range(sum(cuts))
    ]


def test_the_type_of_a_column_is_that_of_most_of_its_values():
    assert field_of("a", [1, None, 2.5]).type == pa.float64()
    assert field_of("a", [1, 2, "x"]).type == pa.int64()
    assert field_of("a", [None]).type == pa.string()
    assert field_of("a", [{"b": 1}, {"b": "x"}, {"b": 2}]).type == pa.string()


def test_a_huge_row_group_is_cut_and_ids_are_positions(tmp_path):
    pq.write_table(pa.table({"text": [f"t{k}" for k in range(1000)], "label": [0] * 1000}), tmp_path / "a.parquet")
    found, lengths = rows_of(tmp_path, ["text"], unit_rows=10, rows=7)
    assert [row["id"] for row in found] == list(range(1000)) and [row["text"] for row in found] == [
        f"t{k}" for k in range(1000)
    ]
    assert len(lengths) == 16


def test_outputs_may_be_uris_and_features_round_trip(tmp_path):
    out = f"file://{tmp_path}/out"
    result = diva_ray.embed(raw_sets.table(), encoder="edges", quiet=True, cluster=INLINE, output=out)
    again = pq.read_table(tmp_path / "out" / "features")
    assert again.schema.field("features").type == pa.fixed_shape_tensor(pa.float16(), [832])
    assert np.array_equal(
        to_matrix(again["features"], "f", "row")[0], to_matrix(result.samples["features"], "f", "row")[0]
    )
    assert not (tmp_path / "out" / "raw").exists(), "rows that were in memory do not stay"
    units = result.folder.read_json("manifest.json")["units"]
    assert units[0]["rows"] == raw_sets.N and len(units[0]["sha256"]) == 64


FEATURES = {
    "label": {"names": ["cat", "dog", "Ü"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"},
    "old": [{"num_classes": 2, "names": ["x", "y"], "_type": "ClassLabel"}],
    "number": {"dtype": "int64", "_type": "Value"},
}


def write_named(folder, form, labels):
    """Write rows as Hugging Face's libraries do: whole numbers, their names in the schema's metadata."""
    lists = [[0, 1], [], None, [1], [0]][: len(labels)]
    rows = pa.table(
        {
            "text": [f"t{k}" for k in range(len(labels))],
            "label": pa.array(labels, pa.int64()),
            "tags": lists,
            "old": lists,
            "number": list(range(len(labels))),
        }
    ).replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()})
    if form == "parquet":
        pq.write_table(rows, folder / "rows.parquet", row_group_size=2)
        return
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


@pytest.mark.parametrize("form", ["parquet", "huggingface"])
def test_classes_come_back_by_the_names_that_hugging_face_keeps(tmp_path, form):
    write_named(tmp_path, form, [2, 0, -1, None, 1])
    found, _ = rows_of(tmp_path, ["label", "tags", "old", "number"], rows=3)
    assert [row["label"] for row in found] == ["Ü", "cat", None, None, "dog"]
    assert [row["tags"] for row in found] == [["a", "b"], [], None, ["b"], ["a"]]
    assert [row["old"] for row in found] == [["x", "y"], [], None, ["y"], ["x"]]
    assert [row["number"] for row in found] == list(range(5))
    result = diva_ray.embed(tmp_path, encoder="words", quiet=True, cluster=INLINE)
    assert result.samples["label"].to_pylist() == [row["label"] for row in found]


def test_a_class_without_a_name_is_refused(tmp_path):
    write_named(tmp_path, "parquet", [0, 3])
    with pytest.raises(InputError, match=r"classes of column `label` must have one of its 3 names, got 3 at"):
        rows_of(tmp_path, ["label"])


def test_only_the_files_of_a_saved_dataset_that_its_state_lists_are_read(tmp_path):
    raw_sets.write_saved(tmp_path)
    second = tmp_path / "data-00000-of-00002.arrow"
    shutil.copy(second, tmp_path / "cache-0123.arrow")  # as `map` leaves beside them
    found, _ = rows_of(tmp_path, ["caption"])
    assert [row["caption"] for row in found] == raw_sets.texts()
    assert len(rows_of(second, ["caption"])[0]) == raw_sets.N - 30, "a file that is named is read alone"
    second.unlink()
    with pytest.raises(InputError, match=r"every file that state.json lists must be there, .*data-00000-of-00002"):
        rows_of(tmp_path, ["caption"])


@pytest.mark.parametrize("form", ["jsonl", "csv", "webdataset"])
def test_ids_differ_between_files_of_one_name_and_of_names_with_dots(tmp_path, form):
    names = ["a/rows", "b/rows", "rows.000", "rows.001"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if form == "webdataset":
            with tarfile.open(f"{tmp_path / name}.tar", "w") as tar:
                raw_sets.add(tar, "0.txt", b"a text")
        else:
            (tmp_path / f"{name}.{form}").write_text('{"text": "a"}\n' if form == "jsonl" else "text,n\na,1\n")
    ids = [row["id"] for row in rows_of(tmp_path, ["text"])[0]]
    ending = "/0" if form == "webdataset" else f".{form}:0"
    assert ids == [name + ending for name in names]


def test_a_value_of_csv_that_does_not_fit_puts_its_row_aside_and_no_more(tmp_path):
    rows = [f"row {k},{k},{k}.5,{k:03d}" for k in range(60_000)]  # more than the first megabyte, which tells the types
    rows[59_000:59_003] = ["late,3.5,1,000", "row, 7 , 1.5 ,007", "empty,,,"]
    content = "\n".join(["text,n,x,code", *rows, "too,few"]).encode() + b"\nna\xefve,1,1,001\n"
    (tmp_path / "a.csv").write_bytes(content)
    source = find_raw(str(tmp_path), "auto", id=None, label="label", unit_rows=8)
    kinds = {"text": pa.string(), "n": pa.int64(), "x": pa.float64(), "code": pa.string()}
    assert dict(zip(source.schema.names[1:], source.schema.types[1:], strict=True)) == kinds
    chunks = list(source.read(source, source.units[0], list(kinds), 10_000))
    found = pa.concat_tables([chunk.table for chunk in chunks])
    assert found["id"].to_pylist() == [f"a.csv:{k}" for k in range(60_000) if k != 59_000]
    assert found.slice(59_000, 1).drop_columns("id").to_pylist() == [{"text": "row", "n": 7, "x": 1.5, "code": "007"}]
    assert found.slice(59_001, 1).drop_columns("id").to_pylist() == [
        {"text": "empty", "n": None, "x": None, "code": None}
    ]
    assert chunks[-1].where(9_000) == "a.csv row 59001", "places are the file's, rows put aside counted"
    failures = [(one.id, one.column, one.reason) for chunk in chunks for one in chunk.failures]
    assert sorted(failures) == sorted([
        ("a.csv:59000", "n", "value does not fit: int64 must be there, got '3.5'"),
        ("a.csv", "", "4 values must be there, got 2"),
        ("a.csv:60000", "text", "value does not fit: text must be UTF-8, got 'na\ufffdve'"),
    ])  # fmt: skip


def test_a_csv_without_rows_or_with_a_name_twice_is_refused_in_a_line(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"a CSV file must have rows, got none at"):
        rows_of(tmp_path, ["text"])
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"columns must have different names, got `text` twice at"):
        rows_of(tmp_path, ["text"])


def test_columns_of_one_name_are_refused_in_a_line(tmp_path):
    twice = pa.table([["a"], [1], [2]], names=["text", "label", "label"])
    told = r"data.path: columns must have different names, got `label` twice at .*\. Rename one of them\.$"
    pq.write_table(twice, tmp_path / "a.parquet")
    for data in (tmp_path, twice):
        for call in (diva_ray.embed, diva_ray.score):
            with pytest.raises(InputError, match=told):
                call(data, quiet=True, cluster=INLINE)
    raw_sets.write_folder(tmp_path)
    with pytest.raises(InputError, match="data.label: classes must have a name of their own, got image"):
        find_raw(str(tmp_path), "folder", id=None, label="image", unit_rows=8)


@pytest.mark.parametrize("uri", ["", "file://"])
def test_a_suffix_may_be_in_capitals(tmp_path, uri):
    for name in ("parquet", "jsonl"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "parquet" / "A.PARQUET")
    (tmp_path / "jsonl" / "A.JSONL").write_text('{"text": "a"}')
    for name in ("parquet", "jsonl"):
        assert [row["text"] for row in rows_of(f"{uri}{tmp_path / name}", ["text"])[0]] == ["a"]


def test_the_id_of_a_tar_is_the_key_whatever_its_json_says(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k in range(2):
            raw_sets.add(tar, f"{k}.png", raw_sets.png(raw_sets.pictures()[k]))
            raw_sets.add(tar, f"{k}.json", json.dumps({"id": 7 + k, "uid": "u"}).encode())
    result = diva_ray.embed(tmp_path / "a.tar", encoder="edges", quiet=True, cluster=INLINE)
    assert result.samples.select(["id", "raw_id", "uid"]).to_pylist() == [
        {"id": str(k), "raw_id": 7 + k, "uid": "u"} for k in range(2)
    ]


def with_ids(path, kind, columns, metadata=None):
    """Write two texts and their ids in a form."""
    rows = pa.table({"text": ["a", "b"], **columns}).replace_schema_metadata(metadata)
    if kind == "parquet":
        pq.write_table(rows, path / "a.parquet")
    elif kind == "csv":
        pyarrow.csv.write_csv(rows, path / "a.csv")
    elif kind == "jsonl":
        (path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows.to_pylist()))
    else:
        with pa.OSFile(str(path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "huggingface"])
def test_a_column_id_that_is_not_the_id_is_kept_as_raw_id(tmp_path, kind):
    with_ids(tmp_path, kind, {"id": [7, 8], "uid": ["u", "v"]})
    result = diva_ray.embed(tmp_path, id="uid", encoder="words", quiet=True, cluster=INLINE)
    found = result.samples.drop_columns("features")
    assert found.to_pylist() == [{"id": "u", "text": "a", "raw_id": 7}, {"id": "v", "text": "b", "raw_id": 8}]
    assert result.summary["dropped_columns"] == []
    found = diva_ray.embed(tmp_path, id="none", keep=["raw_id"], encoder="words", quiet=True, cluster=INLINE).samples
    assert found.column_names == ["id", "raw_id", "features"]
    assert found["raw_id"].to_pylist() == [7, 8] != found["id"].to_pylist()


def test_raw_id_does_not_take_the_place_of_a_column_of_that_name():
    rows = {"text": ["a"], "id": [7], "raw_id": [8], "uid": [9]}
    found = diva_ray.embed(pa.table(rows), id="uid", encoder="words", quiet=True, cluster=INLINE).samples
    assert found.drop_columns("features").to_pylist() == [{"id": 9, "text": "a", "raw_raw_id": 7, "raw_id": 8}]


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_classes_of_a_column_id_come_back_by_their_names_too(tmp_path, kind):
    info = {"info": {"features": {"id": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    with_ids(tmp_path, kind, {"id": [1, 0]}, {b"huggingface": json.dumps(info).encode()})
    found = diva_ray.embed(
        tmp_path, id="text", keep=["raw_id"], encoder=dict(name="words", column="raw_id"), quiet=True, cluster=INLINE
    )
    assert found.samples["raw_id"].to_pylist() == ["dog", "cat"]


def test_files_come_in_the_order_of_their_paths_whatever_their_names(tmp_path):
    names = ["a-b/1.png", "a.png", "a/2.png", "a/1/0.png", "a/1-0.png", "a0/x.png", "Ü/b c.png", "z\n/1.png", "b.png"]
    hidden = [".git/1.png", "a/_old/1.png", "a/.1.png"]
    for name in [*names, *hidden]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = find_raw(str(tmp_path), "auto", id=None, label="label", unit_rows=4)
    chunks = [chunk for unit in source.units for chunk in source.read(source, unit, ["label"], 10)]
    rows = [row for chunk in chunks for row in chunk.table.to_pylist()]
    assert [row["id"] for row in rows] == sorted(names)
    assert [row["label"] for row in rows] == [name.split("/")[0] if "/" in name else None for name in sorted(names)]
    assert [chunk.where(k) for chunk in chunks for k in range(chunk.table.num_rows)] == sorted(names)
    assert [(unit.rows, unit.first) for unit in source.units] == [(4, 0), (4, 4), (1, 8)]


def test_names_of_files_take_a_few_bytes_each(tmp_path):
    for k in range(3):
        (tmp_path / f"n0144076{k}").mkdir()
        for i in range(1000):
            (tmp_path / f"n0144076{k}" / f"ILSVRC2012_train_{1000 * k + i:010d}.jpeg").touch()
    source = find_raw(str(tmp_path), "auto", id=None, label="label", unit_rows=1000)
    assert source.rows == 3000
    assert len(pickle.dumps(source.units)) < 10 * 3000


def test_a_file_that_is_named_is_read_whatever_it_is_called(tmp_path):
    (tmp_path / "_rows.jsonl").write_text('{"text": "a"}')
    assert [row["text"] for row in rows_of(tmp_path / "_rows.jsonl", ["text"])[0]] == ["a"]
    with pytest.raises(InputError, match="raw samples must lie there .* got an empty folder at"):
        rows_of(tmp_path, ["text"])


def test_names_of_parts_sort_as_their_numbers_do():
    numbers = [0, 9, 10, 99_999, 100_000, 100_001, 999_999, 1_000_000, 12_345_678]
    names = [part_name(k) for k in numbers]
    assert names == sorted(names) and names[0] == "part-00000"
