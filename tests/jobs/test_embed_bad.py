"""Mistakes in raw data, encoders and options: one line each, before any cluster is started where possible."""

import gzip
import json
import re
import sys
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.errors import InputError
from tests.data import raw_sets

INLINE = {"kind": "inline", "threads": 1}
TABLE = raw_sets.table(6)
NET = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3))


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def refuses(told, data, **options):
    """Expect one line: what must hold, `got`, and an option to change."""
    with pytest.raises(InputError, match=told) as caught:
        embed(data, **options)
    line = str(caught.value)
    assert "\n" not in line and ", got " in line and line.rstrip().endswith("."), line


@pytest.mark.parametrize(
    "options,told",
    [
        ({"encoder": "efficientnet_lit0"}, r"encoder: must be one of auto, .*, got efficientnet_lit0. .*, to eff"),
        ({"encoder": {"name": "x", "kind": "tim"}}, r"encoder.kind: must be edges, .* got tim. .*, to timm"),
        ({"encoder": {"name": "edges", "szie": 3}}, r"encoder: options must be fields of EncoderConfig, got 'szie'"),
        ({"encoder": 3}, r"encoder: must be a name, fields of EncoderConfig or a torch module, got int"),
        ({"encoder": {"name": "edges", "size": 0}}, r"encoder.size: must be at least 1 .* got 0"),
        ({"encoder": {"name": "edges", "size": "big"}}, r"encoder.size: must be int or None, got 'big'"),
        ({"encoder": {"name": "edges", "fit": "stretch"}}, r"encoder.fit: must be crop, squash or pad, got stretch"),
        ({"encoder": {"name": "edges", "batch": 0}}, r"encoder.batch: must be at least 1, got 0"),
        ({"encoder": {"name": "edges", "column": "photo"}}, r"column `photo` must be there, got columns"),
        ({"encoder": {"name": "words", "column": "image"}}, r"column `image` must hold strings .* binary"),
        ({"encoder": {"name": "edges", "layer": "4"}}, r"encoder.layer: edges is a fixed function, got layer=4"),
        ({"encoder": {"name": "words", "weights": "a.pt"}}, r"words is a fixed function, .* weights=a.pt"),
        ({"encoder": {"name": "clip_text", "layer": "ln"}}, r"encoder.layer: the text tower of open_clip .* layer=ln"),
        ({"encoder": {"module": len, "tower": "text", "layer": "a"}}, r"encoder.layer: a function of texts .* layer=a"),
        ({"encoder": {"module": NET, "pool": "sum"}}, r"encoder.pool: must be mean, .* got sum"),
        ({"encoder": {"module": NET, "std": [1, 1, 0]}}, r"encoder.std: must be > 0"),
        ({"encoder": {"module": NET, "mean": [1]}}, r"encoder.mean: must be three numbers for R, G, B, got \[1\]"),
        ({"encoder": {"module": NET, "jacobian": -1}}, r"encoder.jacobian: must be at least 0, got -1"),
        ({"encoder": {"module": NET, "jacobian": 1.5}}, r"encoder.jacobian: must be int, got 1.5"),
        ({"encoder": {"module": NET, "parameters": "2.*"}}, r"encoder.parameters: must go with encoder.jacobian"),
        ({"encoder": {"module": NET, "jacobian": 8, "parameters": "3.*"}}, r"the whole name .* got 3.\*.* are 2."),
        ({"encoder": {"module": NET, "jacobian": 8, "layer": "2"}}, r"encoder.layer: must be left out .* layer=2"),
        ({"encoder": {"module": NET, "jacobian": 8, "tap": "input"}}, r"encoder.layer: must be left out .* tap=input"),
        ({"encoder": {"name": "edges", "jacobian": 8}}, r"encoder.jacobian: must be 0 for edges, .* got 8"),
        ({"encoder": {"name": "auto", "jacobian": 8}}, r"encoder.jacobian: must be 0 for edges, .* got 8"),
        ({"encoder": {"name": "words", "jacobian": 8}}, r"encoder.jacobian: must be 0 for words, .* got 8"),
        ({"encoder": {"name": "minilm", "jacobian": 8}}, r"must be 0 for texts by sentence_tr.*kind=transformers"),
        ({"encoder": {"name": "clip_text", "jacobian": 8}}, r"encoder.jacobian: must be 0 for texts by open_clip"),
        ({"encoder": {"module": len, "tower": "text", "jacobian": 8}}, r"a function of texts is taken .* jacobian=8"),
        ({"encoder": {"module": lambda: 3}}, r"encoder.model: must be .* got int"),
        ({"encoder": {"module": torch.nn.Linear(4, 2)}}, r"encoder: the model must take samples of side 224"),
        ({"encoder": {"name": "m", "kind": "module", "model": "os:getcwd"}}, r"encoder.model: code may run only with"),
        ({"encoder": "resnet50"}, r"encoder.kind: timm must be installed, .* `pip install -e \"\.\[timm\]\"`"),
        ({"encoder": "torchvision"}, r"encoder.kind: torchvision must be installed"),
        ({"encoder": "clip_image"}, r"encoder.kind: open_clip must be installed"),
        ({"encoder": {"name": "efficientnet_lite0", "model": "efficientnet-lite9"}}, r"lite0 to .* got .*lite9"),
        ({"encoder": "sentence_transformers"}, r"encoder.model: must be named for sentence_transformers, got none"),
        ({"encoder": "timm"}, r"encoder.model: must be named for timm, got none"),
        ({"encoder": {"name": "m", "kind": "module"}}, r"encoder.model: must be named for module, got none"),
        ({"keep": 3}, r"data.keep: columns must be there, got 3"),
        ({"encoders": [{"name": "edges", "band": "a"}, {"name": "edges", "band": "a"}]}, r"encoder.band: .* got a, a"),
        ({"encoder": {"name": "edges", "band": "id"}}, r"encoder.band: .* got id"),
        ({"keep": ["nothing"]}, r"data.keep: columns must be there, got 'nothing'"),
        ({"id": "key"}, r"data.id: column `key` must be there, got columns image, caption, label"),
        ({"lable": "x"}, r"embed: options must be columns or fields of EmbedConfig, got 'lable'"),
        ({"dtype": "int8"}, r"dtype: must be float16 or float32, got int8"),
        ({"device": "tpu"}, r"device: must be auto, cpu or cuda, got tpu"),
        ({"device": "cuda"}, r"device: a GPU must be there for cuda, got none"),
        ({"precision": "half"}, r"precision: must be auto or float32, got half"),
        ({"most_failed": 2.0}, r"most_failed: must be a share from 0 to 1, got 2.0"),
        ({"unit_rows": 0}, r"unit_rows: must be at least 1, got 0"),
        ({"thumbnail": -1}, r"thumbnail: must be at least 0, got -1"),
        ({"cluster": {"kind": "slurm"}}, r"cluster: must be auto, inline, local or ray, got slurm"),
        ({"cluster": {"wrokers": 3}}, r"cluster: options must be fields of ClusterConfig, got 'wrokers'"),
    ],
    ids=lambda one: re.sub(" at 0x[0-9a-f]+", "", str(one)),
)  # fmt: skip
def test_options(options, told, monkeypatch):
    for name in ("timm", "torchvision", "open_clip"):  # as where they are not installed
        monkeypatch.setitem(sys.modules, name, None)
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refuses(told, TABLE, **options)


def test_a_name_that_is_there_twice_gets_the_encoders():
    result = embed(TABLE, encoders=["edges", {"name": "edges", "size": 32}])
    assert [band["band"] for band in result.summary["bands"]] == ["image", "image_edges"]


# --- raw data --------------------------------------------------------------------------------------------------------


def test_what_lies_at_the_path(tmp_path):
    refuses(r"data.path: a file, or a folder, glob or URI with some, must be there, got nothing at /no", "/no/such")
    refuses(r"data.path: a file, or a folder, .* must be there, got an empty folder at", tmp_path)
    (tmp_path / "a.docx").write_text("x")
    refuses(r"data.path: raw samples must lie there .* got a.docx at", tmp_path)
    refuses(r"data.kind: must be auto, parquet, .* got zip", tmp_path, kind="zip")
    (tmp_path / "a.csv").write_text("text,label\nhello,1\n")
    refuses(r"data.path: files of kind folder .* must lie there, got a.csv", tmp_path, kind="folder")
    (tmp_path / "a.parquet").write_text("no parquet")
    refuses(r"data.kind: files of one kind must lie there, got a.csv \(csv\) and a.parquet \(parquet\)", tmp_path)
    refuses(r"data.path: every file must be readable Parquet, got ", tmp_path, kind="parquet")
    refuses(r"data.path: must be within reach|data.path: must be", "nothing://there")
    refuses(
        r"encoder.column: a picture column, or one called text, .* must be there, got columns .*label",
        pa.table({"label": [1, 2]}),
    )
    refuses(r"encoder.column: a column of pictures .* must be there for edges, got columns", pa.table({"text": ["a"]}),
            encoder="edges")  # fmt: skip


def test_separators_other_than_commas_are_told_with_decimal_commas_too(tmp_path):
    for text in ("a;text;label\n1,5;nice good;pos\n2,5;bad ugly;neg\n", "a;text\n1;x\n"):
        (tmp_path / "a.csv").write_text(text)
        refuses(r"data.path: values must be separated by commas .* got one column 'a;text", tmp_path)
    (tmp_path / "a.csv").write_text("a,text\n")
    refuses(r"data.path: a CSV file must have rows, got none at", tmp_path)


def test_the_columns_that_could_be_meant_come_first(tmp_path):
    names = [*(f"x{k}" for k in range(14)), "note"]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(["1"] * 14 + ["nice"]) + "\n")
    refuses(r"encoder.column: .* got columns id \(string\), note \(string\), x0 .* and 4 more\.", tmp_path)


def test_splits_with_folders_of_their_own_are_no_classes(tmp_path):
    for place in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/4.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"picture")
    refuses(r"data.path: a folder of pictures must hold one folder a class, got test, train, with", tmp_path)


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            raw_sets.add(file, name, content)


def test_tars(tmp_path):
    png = raw_sets.png(raw_sets.pictures(1)[0])
    tar(tmp_path / "good.tar", {"1.png": png, "1.cls": b"3", "2.png": png, "2.cls": b"4"})
    refuses(r"encoder.column: a column of texts must be there for words, got columns id \(string\), image \(binary\)",
            tmp_path, encoder="words")  # fmt: skip
    refuses(
        r"encoder.column: column `depth` must be there, got columns",
        tmp_path,
        encoder={"name": "edges", "column": "depth"},
    )
    refuses(r"data.id: samples of a tar have their key as id, got label", tmp_path, id="label")
    tar(tmp_path / "hostile.tar", {"1.png": png, "../../../tmp/evil.png": png})
    refuses(
        r"data.path: members of a tar must stay in its folder, got '../../../tmp/evil.png' at .*hostile.tar", tmp_path
    )
    tar(tmp_path / "hostile.tar", {"/etc/evil.png": png})
    refuses(r"data.path: members of a tar must stay in its folder, got '/etc/evil.png'", tmp_path / "hostile.tar")
    (tmp_path / "hostile.tar").write_bytes(b"no tar at all, but long enough to be looked at" * 50)
    refuses(r"data.path: every file must be a whole tar, got ReadError", tmp_path)
    tar(tmp_path / "hostile.tar", {})
    refuses(r"data.path: a tar must hold samples, got none in", tmp_path / "hostile.tar")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_packed_lines_that_are_cut_off_or_damaged(tmp_path, name):
    rows = [{"text": f"text {k}", "label": k % 2} for k in range(4000)]
    lines = (
        [json.dumps(row) for row in rows] if "json" in name else ["text,label", *(f"text {k},1" for k in range(4000))]
    )
    packed = gzip.compress("\n".join(lines).encode(), 0)
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    refuses(rf"data.path: (every )?files? must be .*, got Truncated compressed stream at .*{name}", tmp_path)
    (tmp_path / name).write_bytes(packed.replace(b"text 3999", b"text 3998"))
    refuses(rf"data.path: (every )?files? must be .*, got .*incorrect data check at .*{name}", tmp_path)
    (tmp_path / name).write_bytes(b"no gzip at all")
    refuses(rf"data.path: every file must be whole, got .*incorrect header check at .*{name}", tmp_path)


def saved_dataset(folder, rows=100):
    """Write texts as `datasets` does, ten in a batch; return where batches end in the file."""
    file, ends = folder / "data-00000-of-00001.arrow", []
    table = pa.table({"text": [f"text {k:02d}" for k in range(rows)]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=10):
            stream.write_batch(batch)
            ends.append(sink.tell())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file.name}]}))
    return file, ends


def test_a_saved_dataset_that_is_cut_off(tmp_path):
    file, ends = saved_dataset(tmp_path)
    whole = file.read_bytes()
    assert len(embed(tmp_path).samples) == 100
    for size, told in ((ends[4] + 50, "Expected to"), (ends[4], "one without an end mark"), (20, "Expected to read")):
        file.write_bytes(whole[:size])
        refuses(rf"data.path: every file must be a whole Arrow stream, got {told}.* at .*00001.arrow", tmp_path)


def test_a_saved_dataset_whose_bits_are_flipped(tmp_path):
    file, _ = saved_dataset(tmp_path)
    content = bytearray(file.read_bytes())
    offsets = np.arange(0, 7 * 11, 7, dtype=np.int32).tobytes()  # of ten texts of seven letters
    content[content.index(offsets) + 4 * 5 + 3] ^= 0x40  # far beyond the file
    file.write_bytes(content)
    refuses(r"every file must be a whole Arrow stream, got .*Offset invariant failure.* at .*00001.arrow", tmp_path)


def test_a_module_whose_vectors_grow_with_the_batch():
    letters = torch.nn.Embedding(256, 4)

    class Texts(torch.nn.Module):
        def forward(self, texts):
            longest = max(map(len, texts))
            return letters(torch.tensor([list(text.ljust(longest).encode()) for text in texts])).flatten(1)

    told = r"encoder.layer: must give every batch one vector a sample, all of \d+ numbers, got \(1, 36\) for 1 samples"
    refuses(told, {"text": ["some text"], "label": [0]}, encoder={"module": Texts(), "tower": "text"})


def test_a_sample_without_the_member_is_put_aside(tmp_path):
    png = raw_sets.png(raw_sets.pictures(1)[0])
    members = {f"{k}.png": png for k in range(5)} | {"5.txt": b"no picture"} | {"6.png": png, "6.json": b"{broken"}
    tar(tmp_path / "a.tar", dict(sorted(members.items())))
    result = embed(tmp_path, encoder="edges", most_failed=0.5)
    found = {row["id"]: row["reason"] for row in result.folder.read_table("quarantine").to_pylist()}
    assert found.keys() == {"5", "6"} and found["5"] == "no value" and found["6"].startswith("members do not fit")
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        file.addfile(link)
    assert embed(tmp_path, encoder="edges", most_failed=0.5).summary["n_samples"] == 5, "links are not followed"


def test_lines_that_do_not_fit_are_put_aside(tmp_path):
    rows = [json.dumps({"text": f"line {k}", "label": k % 2}) for k in range(8)]
    rows[3], rows[5], rows[6] = "{broken", '["no object"]', json.dumps({"text": "a", "label": "a word"})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    result = embed(tmp_path, most_failed=0.5)
    assert result.samples["text"].to_pylist() == [f"line {k}" for k in (0, 1, 2, 4, 7)]
    assert result.summary["n_failed"] == 3
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.csv").write_text('text,label\n"one, two",0\nthree,1,too many\nfour,1\n')
    result = embed(tmp_path, most_failed=0.5)
    assert result.samples["text"].to_pylist() == ["one, two", "four"]
    (row,) = result.folder.read_table("quarantine").to_pylist()
    assert row["reason"] == "2 values must be there, got 3"
    (tmp_path / "a.csv").write_text("")
    refuses(r"data.path: files must be CSV with a first line of names, got", tmp_path)


def test_saved_splits_must_be_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        raw_sets.write_saved(tmp_path / split)
    refuses(r"data.path: one split must be named, got test, train at .*Use `data.path=.*/train`", tmp_path)


# --- weights ---------------------------------------------------------------------------------------------------------


def small():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3))


def test_weights_files(tmp_path):
    other = small()
    torch.save({"state_dict": other.state_dict()}, tmp_path / "good.pt")
    given = {"module": NET, "size": 8, "weights": str(tmp_path / "good.pt")}
    loaded = embed(TABLE, encoder={**given, "module": small}, dtype="float32").samples["features"]
    trained = embed(TABLE, encoder={"module": other, "size": 8}, dtype="float32").samples["features"]
    assert loaded.equals(trained)
    torch.save({**other.state_dict(), "2.weight": torch.zeros(3, 13)}, tmp_path / "shape.pt")
    refuses(r"encoder.weights: the file must fit Sequential, got tensors 1 of another shape \(such as 2.weight "
            r"\(3, 13\) for \(3, 12\)\) in .*shape.pt", TABLE,
            encoder={**given, "weights": str(tmp_path / "shape.pt")})  # fmt: skip
    torch.save({"3.weight": torch.zeros(3)}, tmp_path / "names.pt")
    refuses(r"got tensors 2 missing \(such as 2.weight\), 1 unknown \(such as 3.weight\)", TABLE,
            encoder={**given, "weights": str(tmp_path / "names.pt")})  # fmt: skip
    torch.save(other, tmp_path / "pickled.pt")  # a whole module: loading it would run code
    refuses(r"encoder.weights: must be safetensors or a plain torch state_dict, got UnpicklingError", TABLE,
            encoder={**given, "weights": str(tmp_path / "pickled.pt")})  # fmt: skip
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    refuses(r"encoder.weights: must be safetensors or a plain .*|encoder.kind: safetensors must be installed", TABLE,
            encoder={**given, "weights": str(tmp_path / "bad.safetensors")})  # fmt: skip
    refuses(r"encoder.weights: a local weights file must be there, got none at /no/such.pt", TABLE,
            encoder={**given, "weights": "/no/such.pt"})  # fmt: skip


def test_features_that_float16_cannot_hold_are_put_aside():
    class Huge(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 1e6 * (x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > 0.5)

    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (0, 0, 0, 255)]
    data = pa.table({"image": [raw_sets.png(p) for p in pictures]})
    given = {"module": Huge(), "size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}
    result = embed(data, encoder=given, most_failed=0.3)
    (row,) = result.folder.read_table("quarantine").to_pylist()
    assert row["id"] == "3" and row["reason"] == "features are not finite as float16"
    assert embed(data, encoder=given, dtype="float32").summary["n_failed"] == 0


def test_texts_in_a_column_of_paths_and_pictures_that_are_no_paths(tmp_path):
    pq.write_table(pa.table({"image": ["not a path", "nor this"], "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="embed: at most a share of 0.01 .* got 2 of 2 .*no file at not a"):
        embed(tmp_path, encoder="edges")


def test_more_workers_than_this_machine_has_is_said_before_ray_is_started():
    start = time.perf_counter()
    refuses(r"cluster.workers: (this machine|the cluster) must have 5000 x 1 CPUs, got \d+.* Lower `cluster.workers`",
            TABLE, cluster={"kind": "local", "workers": 5000})  # fmt: skip
    refuses(r"encoder.layer: must be one of", TABLE, cluster={"kind": "local"}, encoder={"module": NET, "layer": "7"})
    assert time.perf_counter() - start < 5


def test_a_network_that_is_drawn_is_the_same_in_every_process(tmp_path):
    given = {"module": lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), "size": 8}
    torch.manual_seed(7)
    one = embed(TABLE, encoder=given, output=str(tmp_path / "out"))
    torch.manual_seed(8)
    again = embed(TABLE, encoder=given, output=str(tmp_path / "out"), resume=True)
    assert again.summary["n_reused"] == 1 and again.samples.equals(one.samples)


def test_a_package_that_does_not_import_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    refuses(r"^encoder.kind: open_clip must import, got RuntimeError \(operator torchvision::nms .*belong together",
            TABLE, encoder="clip_image")  # fmt: skip


def test_what_a_network_raises_in_the_middle_of_a_run_is_told_in_one_line():
    class Once(torch.nn.Module):
        def forward(self, texts):
            if max(map(len, texts)) > 100:
                raise IndexError("index out of range in self")
            return torch.ones(len(texts), 2)

    given = {"module": Once(), "tower": "text"}
    refuses(r"^encoder: the model must take every sample, got IndexError \(index out of range in self\) .* `text`",
            {"text": ["a", "b" * 200], "label": [0, 1]}, encoder=given)  # fmt: skip
