"""Raw samples that are odd but right, and mistakes in them that people make: taken as they should, or one line."""

import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

import diva_ray
from diva_ray.data.columns import to_matrix
from diva_ray.data.decode import NOT_READABLE, Pictures, RefusedError
from diva_ray.errors import InputError
from tests.data import raw_sets

INLINE = {"kind": "inline", "threads": 1}
LINES = 400  # of a packed file
GREY = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def refuses(told, data, **options):
    with pytest.raises(InputError, match=told) as caught:
        embed(data, **options)
    assert "\n" not in str(caught.value)


def features(result):
    return to_matrix(result.samples["features"], "features", "row")[0]


def encoded(picture, form, **options):
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def held_sideways():
    exif = Image.Exif()
    exif[0x112] = 6  # turn right by 90 degrees to look at it
    return exif


def test_a_picture_of_16_bits_that_was_held_sideways_is_turned(tmp_path):
    data = encoded(Image.fromarray(GREY), "PNG", exif=held_sideways())
    found = np.asarray(Pictures(str(tmp_path), 10**6).open(data))[:, :, 0]
    stretched = (255 * (GREY.astype(float) / GREY.max())).astype(np.uint8)
    np.testing.assert_array_equal(found, np.rot90(stretched, -1))


@pytest.mark.parametrize("what", ["sideways", "transparent", "16 bits", "cmyk"])
def test_opened_pictures_are_taken_as_their_files_are(what):
    pixels = raw_sets.pictures(1)[0]
    data = {
        "sideways": lambda: encoded(Image.fromarray(pixels), "JPEG", exif=held_sideways()),
        "transparent": lambda: encoded(Image.fromarray(np.dstack([pixels, pixels[:, :, :1]])), "PNG"),
        "16 bits": lambda: encoded(Image.fromarray(GREY), "PNG"),
        "cmyk": lambda: encoded(Image.fromarray(pixels).convert("CMYK"), "TIFF"),
    }[what]()
    opened = embed({"image": [Image.open(io.BytesIO(data))]})
    np.testing.assert_array_equal(features(opened), features(embed({"image": [data]})))


def test_arrays_that_are_no_pictures_are_one_line_and_a_missing_one_is_put_aside():
    refuses(r"pictures: arrays must be uint8 of shape .* got uint8 of shape \(3, 8, 9\)",
            {"image": np.zeros((2, 3, 8, 9), np.uint8)})  # fmt: skip
    refuses(r"pictures: arrays must be uint8 of shape .* got float32", {"image": np.zeros((2, 8, 8, 3), np.float32)})
    result = embed({"image": [None, raw_sets.pictures(1)[0]]}, most_failed=0.5)
    assert result.samples["id"].to_pylist() == [1]


@pytest.mark.parametrize("form", ["jsonl", "webdataset"])
def test_objects_without_keys_are_left_out(tmp_path, form):
    rows = [{"text": f"text {k}", "meta": {}, "more": {"inner": {}, "none": [], "n": k}} for k in range(3)]
    if form == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for k, row in enumerate(rows):
                raw_sets.add(tar, f"{k}.json", json.dumps(row).encode())
    result = embed(tmp_path)
    assert result.samples.column_names == ["id", "text", "more", "features"]
    assert result.samples["more"].to_pylist() == [{"none": [], "n": k} for k in range(3)]
    assert result.summary["dropped_columns"] == []  # nothing is lost


def test_objects_without_keys_in_a_frame_are_one_line():
    refuses("data: every column must be one that Parquet can hold, got .*'meta'",
            pd.DataFrame({"text": ["a", "b"], "meta": [{}, {}]}))  # fmt: skip


def test_members_of_a_sample_that_lie_apart_are_put_aside(tmp_path):
    png = raw_sets.png(raw_sets.pictures(1)[0])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.png", png), ("1.png", png), ("0.txt", b"a"), ("1.txt", b"b")):
            raw_sets.add(tar, name, content)
    refuses(r"got 2 of 4 .*its key came before: members of a sample must lie side by side", tmp_path)


def test_names_of_columns_that_would_meet_are_told_apart(tmp_path):
    table = pa.table({"raw_features": ["a", "b"], "features": [1.0, 2.0], "text": ["x y", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    samples = embed(tmp_path).samples
    assert samples["raw_features"].to_pylist() == ["a", "b"] and samples["raw_raw_features"].to_pylist() == [1.0, 2.0]


def test_ids_of_bytes_are_no_pictures(tmp_path):
    pq.write_table(pa.table({"id": [b"1", b"2"], "text": ["a", "b"]}), tmp_path / "a.parquet")
    result = embed(tmp_path)
    assert [band["encoder"] for band in result.summary["bands"]] == ["words"]
    assert result.samples["id"].to_pylist() == [b"1", b"2"]


def test_a_csv_of_another_separator_or_encoding_is_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id;text;label\n1;hello, world;a\n2;foo;b\n")
    refuses(r"data.path: values must be separated by commas .* got one column 'id;text;label' at .*a.csv", path)
    path.write_bytes("id,text\n1,café\n2,foo\n".encode("utf-16"))
    refuses(r"data.path: a CSV file must be UTF-8, got UTF-16 at .*a.csv", path)
    path.write_bytes("id,caf\xe9,text\n1,a,b\n".encode("latin-1"))
    refuses(r"data.path: the names in a CSV file must be UTF-8, got other bytes at .*a.csv", path)


def test_a_row_of_a_csv_in_another_encoding_is_set_aside_as_such(tmp_path):
    rows = [f"{k},text {k}" for k in range(500)]
    rows[300] = "300,caf\xe9"
    (tmp_path / "a.csv").write_bytes("\n".join(["id,text", *rows]).encode("latin-1"))
    (aside,) = embed(tmp_path / "a.csv").folder.read_table("quarantine").to_pylist()
    assert aside["reason"] == "value does not fit: text must be UTF-8, got 'caf\N{REPLACEMENT CHARACTER}'"


def test_in_a_csv_words_such_as_na_are_texts_and_classes_but_no_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,label,n\n1,NA,NA,1\n2,null,FR,NA\n3,foo,,3\n4,bar,nan,4\n")
    found = embed(tmp_path / "a.csv").samples
    assert found["text"].to_pylist() == ["NA", "null", "foo", "bar"]
    assert found["label"].to_pylist() == ["NA", "FR", None, "nan"]
    assert found["n"].to_pylist() == [1, None, 3, 4]


def test_the_index_that_pandas_writes_is_left_out(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label\n0,foo,a\n1,bar,b\n")
    found = embed(tmp_path / "a.csv").samples
    assert found["label"].to_pylist() == ["a", "b"] and "" not in found.column_names


def test_folders_of_splits_are_no_classes(tmp_path):
    for number, place in enumerate(("train/cat", "train/dog", "val/cat")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{number}.png").write_bytes(raw_sets.png(raw_sets.pictures(1)[0]))
    refuses(rf"one folder a class, got train, val, with .* Name one of them: data.path={tmp_path}/train", tmp_path)
    assert embed(tmp_path / "train").samples["label"].to_pylist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": ["a", "b"], "label": ["x", "y"]}, "next: python jobs/score.py 'data.path={}/features'"),
        (
            {"text": ["a", "b"], "label": ["x", None]},
            "null of 2 samples: `label` in 1\nfirst: python -c .*\nnext: .*score.py 'data.path={}/features-whole'",
        ),
        (
            {"Text": ["a", "b"], "mood": ["x", "y"], "n": [1, 2]},
            "next: python jobs/score.py 'data.path={}/features' data.label=mood\ndata.label may also be n",
        ),
        ({"text": ["a", "b"]}, ""),
        (
            {"image": raw_sets.table(2)["image"], "caption": ["a", None]},
            "null of 2 samples: `caption` in 1\nfirst: python -c .*\nnext: .*=pairs 'data.features=.image,caption.'",
        ),
        (
            {"image": raw_sets.table(2)["image"], "caption": ["a", "b"]},
            "next: python jobs/score.py 'data.path={}/features' task=pairs 'data.features=.image,caption.'",
        ),
    ],
)
def test_the_next_command_is_one_that_works_or_says_what_is_in_its_way(columns, told, tmp_path):
    result = embed(pa.table(columns), output=tmp_path / "a run")
    lines = result.lines()[1:-1]
    assert re.fullmatch(told.format(tmp_path / "a run"), "\n".join(lines))


def test_two_encoders_of_one_text_are_no_pair():
    text = pa.table({"text": ["a", "b"]})
    result = embed(text, encoders=[{"name": "words", "band": "a"}, {"name": "words", "band": "b"}])
    assert "next" not in repr(result)


def test_missing_values_are_counted_and_stay_known_to_a_resumed_run(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": ["x", None, None]}), tmp_path / "a.parquet")
    first = embed(tmp_path / "a.parquet", output=tmp_path / "run")
    assert first.summary["missing"] == {"label": 2}
    assert embed(tmp_path / "a.parquet", output=tmp_path / "run", resume=True).summary["missing"] == {"label": 2}


def test_a_name_of_a_file_that_is_no_text_is_one_line(tmp_path):
    with open(os.fsencode(tmp_path) + b"/a\xff.png", "wb") as file:
        file.write(raw_sets.png(raw_sets.pictures(1)[0]))
    refuses(r"data.path: names of files must be UTF-8, got b'.*a\\xff.png' below", tmp_path)


def test_a_root_that_is_not_there_is_one_line(tmp_path):
    pq.write_table(pa.table({"image": ["a.png", "b.png"]}), tmp_path / "a.parquet")
    refuses(r"data.root: a folder or URI must be there, got nothing at /no/such", tmp_path, root="/no/such")
    refuses(rf"got 2 of 2 .*no file at a.png below data.root, {tmp_path}", tmp_path)


def test_options_of_the_encoder_count_also_where_none_is_named():
    table = raw_sets.table(4)
    for more, column in (({"size": 32}, "image"), ({"fit": "pad"}, "image")):
        named = embed(table, encoder={"name": "edges", "column": column, **more})
        np.testing.assert_array_equal(features(embed(table, encoder={"name": "auto", "column": column, **more})),
                                      features(named))  # fmt: skip
    refuses(r"encoder.layer: edges is a fixed function, got layer=None, model='microsoft/resnet-50'", table,
            encoder={"name": "auto", "model": "microsoft/resnet-50"})  # fmt: skip


def test_options_that_an_image_folder_cannot_follow_are_one_line(tmp_path):
    raw_sets.write_folder(tmp_path, 3)
    refuses("data.id: pictures of a folder have their path as id, got name. Leave", tmp_path, id="name")
    refuses("data.label: classes must have a name of their own, got image. Change", tmp_path, label="image")


@pytest.mark.parametrize("job", ["embed", "score"])
def test_a_path_that_was_left_empty_is_one_line(job, tmp_path, monkeypatch):
    pq.write_table(raw_sets.table(3), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)  # what lies here must not be read
    with pytest.raises(InputError, match="data.path: must not be empty, got ''. Leave `data.path` out"):
        getattr(diva_ray, job)("", quiet=True, cluster=INLINE)


@pytest.mark.parametrize("first", [True, False])
def test_a_column_that_only_some_files_have_is_told_not_lost_in_silence(first, tmp_path, caplog):
    rows = pa.table({"text": ["one two", "two three"] * 5, "label": [0, 1] * 5})
    more = rows.append_column("note", pa.array(["n"] * 10))
    for name, table in zip("ab", (more, rows) if first else (rows, more), strict=True):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with caplog.at_level("WARNING", "diva_ray"):
        made = diva_ray.embed(str(tmp_path), encoder="words", cluster=INLINE, quiet=True)
    assert len(made.samples) == 20 and "note" not in made.samples.column_names
    assert f"are left out: `note` (not in {tmp_path}/{'b' if first else 'a'}.parquet)" in caplog.text


def pack(path, members):
    """Write a tar of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            raw_sets.add(tar, name, content)


@pytest.mark.parametrize(
    "more,reason",
    [
        (("3.png", b"p"), ".jpg and .png are both column `image`: keep one of them"),
        (("3.JPG", b"p"), "two members end with .jpg: keep one of them"),
        (("3.jpg", b"p"), "two members end with .jpg: keep one of them"),
        (("3.cls2", b"9"), ".cls and .cls2 are both column `label`: keep one of them"),
    ],
)
def test_a_member_does_not_replace_another_of_its_sample(more, reason, tmp_path):
    pictures = [raw_sets.png(pixels) for pixels in raw_sets.pictures(5)]
    good = [one for k, p in enumerate(pictures) for one in ((f"{k}.jpg", p), (f"{k}.cls", b"1"))]
    good[8:8] = [more]  # after those of sample 3
    pack(tmp_path / "a.tar", good)
    made = diva_ray.embed(str(tmp_path / "a.tar"), cluster=INLINE, quiet=True, most_failed=0.5)
    assert made.samples["id"].to_pylist() == ["0", "1", "2", "4"]
    aside = made.folder.read_table("quarantine").to_pylist()
    assert [(row["id"], row["reason"]) for row in aside] == [("3", f"members do not fit: {reason}")]


def test_a_tar_none_of_whose_samples_fits_is_one_line(tmp_path):
    png = raw_sets.png(raw_sets.pictures(1)[0])
    pack(tmp_path / "a.tar", [(f"{k}.{kind}", png) for k in range(70) for kind in ("jpg", "png")])
    told = (
        r"data.path: members of a sample must fit, got .jpg and .png are both column `image`.* in each of the first 64"
    )
    with pytest.raises(InputError, match=told):
        diva_ray.embed(str(tmp_path / "a.tar"), cluster=INLINE, quiet=True)


def write_packed(folder, empty):
    """Write ten packed files of lines, some texts of the first ones null: nothing tells how many lines there are."""
    folder.mkdir()
    for f in range(10):
        with gzip.open(folder / f"part-{f}.jsonl.gz", "wt") as file:
            for k in range(LINES):
                text = None if k < empty(f) else "the quick brown fox jumps over the lazy dog " * 6
                file.write(json.dumps({"id": f"{f}-{k}", "text": text}) + "\n")


def test_a_run_ends_early_only_where_too_many_are_refused_whatever_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("diva_ray.tasks.embed.EARLY", 10)
    write_packed(tmp_path / "few", lambda f: 2)
    result = embed(tmp_path / "few", encoder="words")
    assert result.summary["n_failed"] == 20 and result.summary["n_samples"] == 10 * LINES - 20
    write_packed(tmp_path / "first", lambda f: 3 * (f < 3))  # 0.2 % in all
    assert embed(tmp_path / "first", encoder="words").summary["n_units"] == 10
    write_packed(tmp_path / "many", lambda f: 40)
    told = r"embed: at most a share of 0.01 of the samples may be refused, got 120 of 1,200 before the last 7 units"
    refuses(told, tmp_path / "many", encoder="words", output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_files_that_could_not_be_read_are_tried_again_by_a_resumed_run(tmp_path):
    for k in range(3):
        Image.new("RGB", (9, 9), (k, 0, 0)).save(tmp_path / f"{k}.png")
    os.rename(tmp_path / "1.png", tmp_path / "moved.png")
    pq.write_table(pa.table({"image": [f"{k}.png" for k in range(3)]}), tmp_path / "rows.parquet")
    options = {"encoder": "edges", "output": str(tmp_path / "out")}
    refuses("got 1 of 3 .*no file at 1.png.*also reads files again", tmp_path / "rows.parquet", **options)
    os.rename(tmp_path / "moved.png", tmp_path / "1.png")
    result = embed(tmp_path / "rows.parquet", **options, resume=True)
    assert result.samples["id"].to_pylist() == [0, 1, 2] and result.summary["n_failed"] == 0
    assert not any((tmp_path / "out" / "quarantine").iterdir())
    assert embed(tmp_path / "rows.parquet", **options, resume=True).summary["n_reused"] == 1


@pytest.mark.parametrize("form", ["path", "uri", "struct", "some bytes"])
def test_pictures_that_rows_name_and_that_were_replaced_are_encoded_again(form, tmp_path, caplog):
    def write(k, shade):
        picture = np.zeros((9, 9, 3), np.uint8)
        picture[: 2 + k, :, 0] = shade
        Image.fromarray(picture).save(tmp_path / f"{k}.bmp")  # of the same size, whatever it shows
        os.utime(tmp_path / f"{k}.bmp", ns=(0, 10**9 * shade))

    for k in range(6):
        write(k, 200)
    values = [f"file://{tmp_path}/{k}.bmp" if form == "uri" else f"{k}.bmp" for k in range(6)]
    if form in ("struct", "some bytes"):
        data = [(tmp_path / f"{k}.bmp").read_bytes() if form == "some bytes" and k < 4 else None for k in range(6)]
        values = [{"bytes": bytes_, "path": path} for bytes_, path in zip(data, values, strict=True)]
    pq.write_table(pa.table({"image": values}), tmp_path / "rows.parquet")
    options = {"encoder": "edges", "unit_rows": 2, "output": str(tmp_path / "out")}
    embed(tmp_path / "rows.parquet", **options)
    assert embed(tmp_path / "rows.parquet", **options, resume=True).summary["n_reused"] == 3
    write(3, 90)  # of the second unit
    write(4, 50)  # of the third
    with caplog.at_level("WARNING", "diva_ray"):
        result = embed(tmp_path / "rows.parquet", **options, resume=True)
    watched = 1 if form == "some bytes" else 2
    assert f"pictures of {watched} unit{'s' * (watched > 1)} have changed since: made again" in caplog.text
    assert result.summary["n_reused"] == 3 - watched
    fresh = embed(tmp_path / "rows.parquet", **options | {"output": str(tmp_path / "fresh")})
    assert (features(result) == features(fresh)).all()
    assert embed(tmp_path / "rows.parquet", **options, resume=True).summary["n_reused"] == 3


def test_rows_of_a_dataset_that_were_written_in_part_are_written_again(tmp_path):
    class Dataset:
        def __init__(self, whole):
            self.whole = whole

        def schema(self, fetch_if_missing=True):
            return None  # nothing is known before it is read

        def map_batches(self, *_, **__):
            return self

        def write_parquet(self, where):
            os.makedirs(where, exist_ok=True)
            for k in range(4):
                if k == 2 and not self.whole:
                    raise KeyboardInterrupt
                rows = [f"text {25 * k + i}" for i in range(25)]
                pq.write_table(pa.table({"text": rows}), f"{where}/{k}.parquet")

    Dataset.__module__ = "ray.data.dataset"  # by which it is known
    options = {"encoder": "words", "output": str(tmp_path / "out")}
    with pytest.raises(KeyboardInterrupt):
        embed(Dataset(False), **options)
    assert embed(Dataset(True), **options, resume=True).summary["n_samples"] == 100


@pytest.mark.parametrize("column", ["label", "caption"])
def test_the_rows_without_nulls_are_copied_by_the_first_command_and_scored_by_the_next(column, tmp_path):
    table = raw_sets.table(60).drop_columns("image" if column == "label" else "label")
    at = table.column_names.index(column)
    table = table.set_column(at, column, pa.array([None, None, *table[column].to_pylist()[2:]]))
    lines = embed(table, output=tmp_path / "it's a run").lines()
    first, following = (next(line for line in lines if line.startswith(word)) for word in ("first: ", "next: "))
    assert f"`{column}` in 2" in lines[1]
    command = [sys.executable, *shlex.split(first)[2:]]
    subprocess.run(command, check=True, timeout=60)
    words = shlex.split(following)[3:]
    given = dict(word.removeprefix("data.").split("=") for word in words)
    features = given.get("features", "features").strip("[]").split(",")
    result = diva_ray.score(given["path"], task=given.get("task", "auto"), features=features, cluster=INLINE)
    assert result.summary["n_samples"] == 58


def test_the_next_command_takes_names_of_any_kind():
    from diva_ray.command_line import quoted
    from diva_ray.tasks.told.embed_done import _value

    for name in ("plain", "front image", "back (2)", "a,b", "true", "7", "größe", "x=1", "[y]"):
        lex = OverridesParser.create()
        for word, wanted in ((f"data.label={_value(name)}", name), (f"data.features=[{_value(name)},b]", [name, "b"])):
            value = lex.parse_override(quoted(word)).value()
            found = [str(getattr(one, "text", one)) for one in value] if isinstance(value, list) else value
            assert (found if isinstance(found, list) else str(getattr(found, "text", found))) == wanted


def test_a_fraction_is_not_cut_off_where_the_head_has_whole_numbers(tmp_path):
    rows: list = [{"text": f"word {k}", "n": 1, "in": {"m": [k if k < 1300 else 0.5]}} for k in range(1400)]
    rows[1200:] = [{**row, "n": 1.5} for row in rows[1200:]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"cluster": INLINE, "quiet": True, "most_failed": 1.0}
    result = diva_ray.embed(str(tmp_path / "rows.jsonl"), **options)
    assert result.summary["n_failed"] == 200 and result.summary["n_samples"] == 1200
    reasons = set(result.folder.read_table("quarantine")["reason"].to_pylist())
    assert reasons == {"value does not fit: int64 must be there, got 1.5; `data.peek` looks at more samples"}
    rows[1200:1400] = [{**row, "n": 2.0} for row in rows[1200:1400]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diva_ray.embed(str(tmp_path / "rows.jsonl"), **options).summary["n_failed"] == 100  # those of `in.m`


def test_a_quote_that_is_not_closed_is_no_single_row(tmp_path):
    lines = [f"word {k},{k}" for k in range(400)]
    (tmp_path / "good.csv").write_text("text,n\n" + "\n".join([*lines, '"two\nlines",3']) + "\n")
    options = {"cluster": INLINE, "quiet": True}
    assert diva_ray.embed(str(tmp_path / "good.csv"), **options).summary["n_samples"] == 401
    lines[100] = '"oops,100'
    (tmp_path / "bad.csv").write_text("text,n\n" + "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"every quote in a CSV file must be closed, got one .* in '\"oops,100"):
        diva_ray.embed(str(tmp_path / "bad.csv"), **options)


def test_a_store_that_is_gone_ends_a_run_and_not_every_picture(tmp_path, monkeypatch):
    for k in range(900):
        Image.new("RGB", (32, 32), (k % 256, 0, 0)).save(tmp_path / f"{k}.png")
    read, opened = Pictures._file, []

    def gone(self, named):
        self.local = False
        opened.append(named)
        if len(opened) > 100:
            raise RefusedError(f"{NOT_READABLE}AWS Error SLOW_DOWN")
        return read(self, named)

    monkeypatch.setattr(Pictures, "_file", gone)
    options = {"cluster": INLINE, "quiet": True, "most_failed": 1.0, "output": str(tmp_path / "out")}
    data = {"image": [f"{k}.png" for k in range(900)], "label": [0, 1] * 450}
    with pytest.raises(InputError, match=r"data.root: storage must stay within reach, got \d+ pictures in a row"):
        diva_ray.embed(data, root=str(tmp_path), **options)
    assert len(opened) < 600
    monkeypatch.setattr(Pictures, "_file", read)
    assert diva_ray.embed(data, root=str(tmp_path), resume=True, **options).summary["n_samples"] == 900


def test_lines_in_another_encoding_say_so(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"text": "gr\u00f6\u00dfer"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"lines must be JSON objects in UTF-8, got none in .* \('utf-8' codec can't"):
        diva_ray.embed(str(tmp_path / "rows.jsonl"), cluster=INLINE, quiet=True)


def test_workers_tell_their_processor_time(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (200, 32, 32, 3)).astype(np.uint8)
    workers = diva_ray.embed({"image": list(pictures)}, cluster=INLINE, quiet=True).summary["workers"]
    (one,) = workers["each"]
    assert 0 < one["cpu_seconds"] < 2 * one["seconds"] + 1
