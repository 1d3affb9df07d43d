"""Raw pictures and texts to features, in every form, whole or resumed, in this process and on Ray."""

import json
import os
import shlex
import signal
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

import diva_ray
from diva_ray.data.columns import to_matrix
from diva_ray.data.decode import Form
from diva_ray.data.encoders.plain import edges
from diva_ray.data.folder import Folder
from diva_ray.engine.encoder_pool import PoolEncoder, device_of_worker, there
from diva_ray.errors import InputError
from diva_ray.tasks.told.embed_plan import EmbedPlan
from tests.data import raw_sets
from tests.forks import run_job

ROOT = Path(__file__).resolve().parents[2]
INLINE = {"kind": "inline", "threads": 1}


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def features(result, band="features"):
    return to_matrix(result.samples[band], band, "row")[0]


def by_hand(pictures):
    """Return the default encoder's features of pictures, one at a time, without the job."""
    from PIL import Image

    form = Form(64, "squash", 1.0, "bilinear")
    return np.stack([edges([form.of(Image.fromarray(p))])[0].numpy() for p in pictures])


@pytest.mark.parametrize("kind", raw_sets.FORMS)
def test_every_form_gives_the_same_features_in_the_order_of_the_input(tmp_path, kind):
    (tmp_path / "raw").mkdir()
    raw_sets.FORMS[kind](tmp_path / "raw")
    result = embed(tmp_path / "raw", unit_rows=8, encoder="edges", output=str(tmp_path / "out"))
    order = list(range(raw_sets.N))
    if kind == "folder":  # sorted by class, then by name
        order = sorted(order, key=lambda k: (raw_sets.labels()[k], k))
    expected = by_hand([raw_sets.pictures()[k] for k in order])
    np.testing.assert_allclose(features(result), expected, rtol=2e-3, atol=2e-4)
    assert result.summary["n_units"] > 1 or kind == "csv"  # a unit is a file there
    want = [k % 3 for k in order] if kind == "webdataset" else [raw_sets.labels()[k] for k in order]
    assert result.samples["label"].to_pylist() == want
    kinds = {"parquet": pa.int64(), "huggingface": pa.int64()}
    assert result.samples.schema.field("id").type == kinds.get(kind, pa.string())
    assert len(set(result.samples["id"].to_pylist())) == raw_sets.N
    band = result.samples.schema.field("features").type
    assert isinstance(band, pa.FixedShapeTensorType) and band.value_type == pa.float16() and band.shape == [832]
    assert not [name for name in os.listdir(tmp_path / "out" / "features") if not name.startswith("part-")]


def test_a_path_may_be_given_as_everywhere_else(tmp_path):
    raw_sets.FORMS["parquet"](tmp_path)
    first, second = (embed(data, encoder="edges").samples for data in (str(tmp_path), {"path": tmp_path}))
    assert first.equals(second) and len(first) == raw_sets.N


def test_pairs_become_two_bands_and_a_missing_side_is_null():
    rows = raw_sets.table().to_pydict()
    rows["image"][3] = rows["caption"][5] = None
    rows["caption"][9] = "  "
    result = embed(pa.table(rows), most_failed=0.1)
    assert result.samples.num_rows == raw_sets.N - 1 and result.summary["n_failed"] == 1
    assert [b["band"] for b in result.summary["bands"]] == ["image", "caption"]
    for band, row in (("image", 3), ("caption", 5)):
        column = result.samples[band].combine_chunks()
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        assert np.flatnonzero(nulls).tolist() == [row]
    assert result.samples["raw_caption"].to_pylist()[0] == raw_sets.texts()[0]
    put_aside = result.folder.read_table("quarantine").to_pylist()
    assert put_aside == [
        {"id": "9", "where": "part-00000.parquet row 9 of row group 0", "column": "caption", "reason": "empty text"}
    ]
    assert "quarantine/" in Path(result.path, "report.html").read_text(encoding="utf-8")
    scored = diva_ray.score(result.samples, features=["image", "caption"], quiet=True, cluster=INLINE)
    assert scored.summary["n_samples"] == raw_sets.N - 1


def test_the_page_names_no_quarantine_where_nothing_was_put_aside():
    result = embed(raw_sets.table())
    page = Path(result.path, "report.html").read_text(encoding="utf-8")
    assert not Path(result.path, "quarantine").exists() and "quarantine/" not in page


def test_what_cannot_be_decoded_is_put_aside_with_the_reason(tmp_path):
    rows = raw_sets.table().to_pydict()
    whole = rows["image"][0]
    rows["image"][1:6] = [
        b"no picture",
        whole[: len(whole) // 2],
        b"",
        None,
        raw_sets.png(np.zeros((300, 400), np.uint8)),
    ]
    with pytest.raises(
        InputError, match=r"embed: at most a share of 0.01 of the samples may be refused, got 5 of 50 \(the first: 1 at"
    ):
        embed(pa.table(rows), encoder="edges", most_pixels=100_000, output=str(tmp_path / "out"))
    result = embed(
        pa.table(rows), encoder="edges", most_pixels=100_000, output=str(tmp_path / "out"), most_failed=0.1, resume=True
    )
    assert result.summary["n_reused"] == 1 and result.summary["n_failed"] == 5
    reasons = {row["id"]: row["reason"] for row in result.folder.read_table("quarantine").to_pylist()}
    assert reasons["1"].startswith("not decodable: cannot identify") and reasons["2"].startswith("not decodable: ")
    assert "0x" not in reasons["1"], "the same bits again: no address of an object"
    assert reasons["3"] == "no bytes" and reasons["4"] == "no value"
    assert reasons["5"] == "400 x 300 pixels, more than most_pixels=100000"
    assert result.samples["id"].to_pylist() == [0, *range(6, raw_sets.N)]
    page = result.folder.read("report.html").decode()
    assert "not decodable" in page and "more than most_pixels" in page.replace(
        "<wbr>", ""
    )  # names break at underscores


def test_a_sample_without_an_id_is_put_aside():
    rows = raw_sets.table(4).append_column("id", pa.array(["a", None, "c", "d"]))
    result = embed(rows, encoder="words", most_failed=0.5)
    assert result.samples["id"].to_pylist() == ["a", "c", "d"]
    (put_aside,) = result.folder.read_table("quarantine").to_pylist()
    assert " encoded; 1 was put aside." in result.folder.read("report.html").decode()
    assert (put_aside["id"], put_aside["column"], put_aside["reason"]) == ("", "id", "no id")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    import zlib

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = (60_000).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    start = time.perf_counter()
    result = embed({"image": [raw_sets.png(raw_sets.pictures()[0]), bomb], "label": [0, 1]}, most_failed=0.5)
    assert time.perf_counter() - start < 5
    (row,) = result.folder.read_table("quarantine").to_pylist()
    assert row["id"] == "1" and "pixels" in row["reason"]


def test_only_what_is_missing_is_computed_again_and_gives_the_same_bits(tmp_path):
    (tmp_path / "raw").mkdir()
    raw_sets.write_parquet(tmp_path / "raw")
    options = {"unit_rows": 8, "output": str(tmp_path / "out"), "encoder": "edges"}
    embed(tmp_path / "raw", **options)
    files = sorted((tmp_path / "out" / "features").iterdir())
    before = {file.name: file.read_bytes() for file in files}
    assert len(files) == 6  # four row groups, and one in two parts
    times = {file.name: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    files[2].write_bytes(before[files[2].name][:-100])  # cut off
    files[3].write_bytes(before[files[0].name])  # whole, but another unit's
    result = embed(tmp_path / "raw", **options, resume=True)
    assert result.summary["n_reused"] == 3
    for file in files:
        assert file.read_bytes() == before[file.name]
    assert files[0].stat().st_mtime_ns == times[files[0].name]
    with pytest.raises(
        InputError, match="resume: the run in .* must have the same data and options, got another dtype"
    ):
        embed(tmp_path / "raw", **options, resume=True, dtype="float32")
    with pytest.raises(InputError, match=r"resume: .* got another data\.keep, seed\. Use"):
        embed(tmp_path / "raw", **options, resume=True, keep=["label"], seed=1)
    with pytest.raises(InputError, match="resume: .* got another encoder"):
        embed(tmp_path / "raw", **{**options, "encoder": {"name": "edges", "normalize": True}}, resume=True)
    raw_sets.write_parquet(tmp_path / "raw")
    os.utime(tmp_path / "raw" / "a.parquet", (1, 1))
    with pytest.raises(InputError, match="resume: .* got another data.path"):
        embed(tmp_path / "raw", **options, resume=True)


def write_rows(folder, kind, files):
    """Write rows as JSON lines or tars: one file for each list of them."""
    folder.mkdir()
    for name, rows in zip("abc", files, strict=False):
        if kind == "jsonl":
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            continue
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for k, row in enumerate(rows):
                raw_sets.add(tar, f"{k}.json", json.dumps(row).encode())


@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
def test_columns_that_show_up_late_are_told_counted_and_to_be_had(tmp_path, caplog, kind):
    first = [{"text": f"row {k}", "meta": {"size": k}} for k in range(4)]
    first[3] |= {"late": None, "list": [{"a": 1}]}
    second = [{"text": f"row {k}", "late": k, "meta": {"size": k, "by": "me"}} for k in range(5)]
    second[0] = {"text": "no value", "late": None}
    write_rows(tmp_path / "raw", kind, [first, second])
    options = {"encoder": "words", "output": str(tmp_path / "out"), "peek": 3}
    result = embed(tmp_path / "raw", **options)
    where = {"jsonl": ("a.jsonl byte 117", "b.jsonl byte 35"), "webdataset": ("a.tar 3", "b.tar 1")}[kind]
    expected = [
        {"column": "list", "rows": 1, "first": where[0], "sample": 4},
        {"column": "late", "rows": 4, "first": where[1], "sample": 6},
        {"column": "meta.by", "rows": 4, "first": where[1], "sample": 6},
    ]
    assert result.summary["dropped_columns"] == expected
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"data.peek: columns are those of the first 3 {'lines' if kind == 'jsonl' else 'samples'}; ")
    assert f"`late` (4 row(s), first at {where[1]})" in line and "`data.peek=6` with a new `output`" in line
    os.unlink(tmp_path / "out" / "features" / "part-00000.parquet")
    again = embed(tmp_path / "raw", **options, resume=True)
    assert again.summary["n_reused"] == 1 and again.summary["dropped_columns"] == expected
    whole = embed(tmp_path / "raw", encoder="words", peek=6)
    assert whole.summary["dropped_columns"] == []
    assert whole.samples["late"].to_pylist() == [None] * 5 + [1, 2, 3, 4]
    assert whole.samples["meta"][6].as_py() == {"size": 2, "by": "me"}
    assert embed(tmp_path / "raw", encoder="words", peek=3, keep=["meta"]).summary["dropped_columns"] == []
    with pytest.raises(InputError, match="data.peek: must be at least 1, got 0"):
        embed(tmp_path / "raw", encoder="words", peek=0)


@pytest.mark.parametrize(("kind", "head"), [("jsonl", 1000), ("webdataset", 64)])
def test_unasked_so_many_samples_tell_the_columns_also_of_several_files(tmp_path, kind, head):
    rows = [{"text": f"row {k}"} for k in range(head + 1)]
    rows[head - 1]["last"] = rows[head]["late"] = 1
    write_rows(tmp_path / "raw", kind, [rows[:10], rows[10:]])
    result = embed(tmp_path / "raw", encoder="words")
    assert result.samples["last"].to_pylist().count(1) == 1
    (late,) = result.summary["dropped_columns"]
    assert (late["column"], late["rows"], late["sample"]) == ("late", 1, head + 1)


def test_names_without_end_are_counted_together(tmp_path):
    rows = [{"text": "a"}, *({"text": "a", f"key {k}": 1} for k in range(150))]
    write_rows(tmp_path / "raw", "jsonl", [rows])
    dropped = embed(tmp_path / "raw", encoder="words", peek=1).summary["dropped_columns"]
    assert len(dropped) == 101 and dropped[-1]["column"] == "(others)" and dropped[-1]["rows"] == 50


def test_default_features_do_not_depend_on_the_batch_size():
    data = raw_sets.table()
    for encoder, column in (("edges", "image"), ("words", "caption")):
        found = [
            features(embed(data, encoder={"name": encoder, "column": column, "batch": batch}, dtype="float16"))
            for batch in (1, 7, 64)
        ]
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_default_pictures_are_told_apart_by_a_linear_probe():
    result = embed(None)
    summary = diva_ray.score(result.samples, truth="true_label", quiet=True, cluster=INLINE).summary
    assert summary["planted"]["auc_label_score"] > 0.99 and summary["planted"]["f1"] > 0.95


def test_default_texts_are_told_apart_by_a_linear_probe():
    from sklearn.linear_model import RidgeClassifier

    generator = np.random.default_rng(0)
    topics = [["river", "mountain", "forest", "valley"], ["invoice", "payment", "customer", "account"]]
    label = generator.integers(0, 2, 400)
    text = [" ".join(generator.choice([*topics[k], "today", "the", "some", "very"], 6)) for k in label]
    X = features(embed({"text": text, "label": label}))
    assert RidgeClassifier().fit(X[:200], label[:200]).score(X[200:], label[200:]) > 0.95


def test_a_module_of_the_users_with_a_layer_to_hook(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(7))
    net(torch.zeros(1, 3, 16, 16))
    given = {"module": net, "size": 16, "fit": "squash", "mean": [0, 0, 0], "std": [1, 1, 1]}
    data = raw_sets.table()
    result = embed(data, encoder={**given, "layer": "1"}, dtype="float32")
    form = Form(16, "squash", 1.0, "bicubic")
    from PIL import Image

    x = np.stack([form.of(Image.fromarray(p)) for p in raw_sets.pictures()]).transpose(0, 3, 1, 2) / np.float32(255)
    with torch.no_grad():
        expected = net[:2](torch.from_numpy(x)).mean((2, 3)).numpy()
    np.testing.assert_allclose(features(result), expected, rtol=1e-4, atol=1e-5)
    whole = embed(data, encoder=given, dtype="float32")
    with torch.no_grad():
        np.testing.assert_allclose(features(whole), net(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"encoder.layer: must be one of the model's 4 layers, got 11. .* to 1"):
        embed(data, encoder={**given, "layer": "11"})


def test_decoded_pictures_are_taken_as_encoded_ones_are():
    from PIL import Image

    pictures = raw_sets.pictures(6)
    encoded = features(embed({"image": [raw_sets.png(p) for p in pictures], "label": range(6)}))
    for given in (pictures, np.stack(pictures), [Image.fromarray(p) for p in pictures]):
        assert np.array_equal(features(embed({"image": given, "label": range(6)})), encoded)


def test_a_plan_writes_nothing_and_tells_what_would_be_done(tmp_path):
    (tmp_path / "raw").mkdir()
    raw_sets.write_tars(tmp_path / "raw")
    plan = embed(tmp_path / "raw", plan=True, output=str(tmp_path / "out"))
    assert isinstance(plan, EmbedPlan) and not (tmp_path / "out").exists()
    told = "\n".join(plan.lines())
    assert "(estimate)" in told and "in 2 units" in told and "samples/s a worker" in told
    assert abs(plan.rows - raw_sets.N) < 0.5 * raw_sets.N
    assert "`text` as `raw_text`" in told
    assert embed(raw_sets.table(), plan=True, output=str(tmp_path / "out")).rows == raw_sets.N
    assert not (tmp_path / "out").exists()


def test_a_plan_starts_no_cluster_for_gpus_either(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("diva_ray.tasks.setup.embed_prepare.ray_is_running", lambda: False)
    asked = {"kind": "local", "gpus_per_worker": 1, "threads": 1, "workers": 1}
    told = "\n".join(embed(raw_sets.table(), plan=True, cluster=asked, output=str(tmp_path / "out")).lines())
    assert "1 with 1 thread(s) and 1 GPU" in told and "the GPU was not tried" in told


def test_a_worker_whose_torch_sees_no_gpu_says_so_in_one_line(monkeypatch):
    """And is not started again and again by Ray: its first unit tells."""
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = SimpleNamespace(threads=1, device="auto", bands=(), precision="auto", folder=Folder("."))
    found = PoolEncoder((job, {}, {}))(pa.table({"unit": [3]}))
    assert found["done"] == ['{"unit": 3}'] and "torch must see the GPU, got torch" in found["mistake"][0]
    assert device_of_worker("cpu") == "cpu"


def test_modules_go_to_workers_on_the_cpu():
    net, other = torch.nn.Linear(2, 2), object()
    sent = there([net, other, None])
    assert sent[0] is not net and torch.equal(sent[0].weight, net.weight) and sent[1:] == [other, None]


def test_paths_are_read_under_the_root_and_nowhere_else(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = raw_sets.write_paths(tmp_path / "raw")
    secret = tmp_path / "secret.png"
    secret.write_bytes(raw_sets.png(raw_sets.pictures()[0]))
    os.symlink(secret, tmp_path / "raw" / "pictures" / "link.png")
    rows[1]["image"], rows[2]["image"], rows[3]["image"] = "../secret.png", str(secret), "pictures/link.png"
    rows[4]["image"], rows[5]["image"] = "pictures/none.png", "http://example.com/a.png"
    rows[6]["image"] = str(tmp_path / "raw" / "pictures" / "6.png")
    rows[7]["image"] = f"file://{tmp_path}/raw/pictures/7.png"
    rows[8]["image"] = f"file://{secret}"
    rows[9]["image"] = "s3://bucket?endpoint_override=127.0.0.1:9&scheme=http"  # would call the host it names
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "rows.parquet")
    result = embed(tmp_path / "raw" / "rows.parquet", encoder="edges", most_failed=0.3)
    reasons = {row["id"]: row["reason"] for row in result.folder.read_table("quarantine").to_pylist()}
    left = f"leaves data.root, {tmp_path}/raw: set that to the folder or URI below which all pictures lie"
    assert all(reasons[k] == f"the path {left}" for k in "1238"), reasons
    assert reasons["4"].startswith("no file at") and reasons["5"].startswith("http is not read")
    assert reasons["9"] == f"the URI {left}"
    assert set(reasons) == set("1234589")
    by_uri = embed(f"file://{tmp_path}/raw/rows.parquet", encoder="edges", most_failed=0.3)
    assert by_uri.samples.equals(result.samples)
    wider = embed(tmp_path / "raw" / "rows.parquet", encoder="edges", most_failed=1.0, root=str(tmp_path))
    assert wider.samples["id"].to_pylist() == [2, 6, 7, 8], (
        "relative paths start at the root, and all of it may be read"
    )


# --- on Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_same_bits_on_ray_with_two_workers_of_which_one_dies(ray_cluster, tmp_path):
    (tmp_path / "raw").mkdir()
    many = pa.concat_tables([raw_sets.table()] * 60)
    pq.write_table(many, tmp_path / "raw" / "rows.parquet", row_group_size=100)

    def run(name, **cluster):
        options = {"unit_rows": 100, "encoders": ["edges", {"name": "words", "column": "caption"}]}
        return embed(tmp_path / "raw", output=str(tmp_path / name), cluster=cluster, **options)

    def hashes(result):
        return [(unit["file"], unit["sha256"]) for unit in result.folder.read_json("manifest.json")["units"]]

    inline = run("inline", **INLINE)
    assert len(hashes(inline)) == 30
    killed = []
    killer = threading.Thread(target=kill_an_actor, args=(tmp_path / "two" / "features", killed))
    killer.start()
    two = run("two", kind="ray", workers=2)
    killer.join()
    assert killed, "a worker died in the middle"
    assert hashes(two) == hashes(inline)
    assert not [name for name in os.listdir(tmp_path / "two" / "features") if name.startswith(".")]
    assert two.samples.count() == 3000


def kill_an_actor(folder, killed):
    """Kill one of the encoders' processes as soon as a few files are there."""
    import psutil

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not killed:
        if folder.is_dir() and len([name for name in os.listdir(folder) if name.startswith("part-")]) >= 3:
            for process in psutil.Process().children(recursive=True):
                if "MapWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append((process.pid, len(os.listdir(folder))))
                    return
        time.sleep(0.005)


@pytest.mark.ray
def test_a_module_and_a_mistake_cross_to_workers(ray_cluster, tmp_path):
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    given = {"module": net, "size": 16}
    where = {"kind": "ray", "workers": 1}
    one, other = (embed(raw_sets.table(), encoder=given, cluster=cluster) for cluster in (where, INLINE))
    assert one.folder.read_table("features").equals(other.samples)
    (tmp_path / "raw").mkdir()
    raw_sets.write_tars(tmp_path / "raw")
    whole = (tmp_path / "raw" / "shard-1.tar").read_bytes()
    (tmp_path / "raw" / "shard-1.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="data.path: every file must be a whole tar, got ReadError .*shard-1.tar"):
        embed(tmp_path / "raw", encoder="edges", cluster=where, output=str(tmp_path / "out"))
    (tmp_path / "raw" / "shard-1.tar").write_bytes(whole)


@pytest.mark.ray
def test_a_ray_dataset_is_embedded(ray_cluster):
    import ray

    rows = raw_sets.table()
    dataset = ray.data.from_arrow(rows.append_column("id", pa.array(range(raw_sets.N))))
    result = embed(dataset, encoder="edges", cluster={"kind": "ray", "workers": 1})
    found = result.folder.read_table("features").sort_by("id")
    assert (
        found["features"]
        .combine_chunks()
        .storage.equals(embed(rows, encoder="edges").samples["features"].combine_chunks().storage)
    )


@pytest.mark.ray
def test_a_cluster_without_room_ends_with_a_message(ray_cluster):
    import ray

    @ray.remote(num_cpus=4)
    class Hog:
        def ready(self):
            return True

    hog = Hog.remote()
    ray.get(hog.ready.remote())
    where = {"kind": "ray", "workers": 1, "start_timeout": 2.0, "pass_timeout": 2.0}
    with pytest.raises(
        InputError, match=r"cluster: the workers must have started .* the cluster has 4 CPUs.*start_timeout"
    ):
        embed(raw_sets.table(), encoder="edges", cluster=where)
    ray.kill(hog)
    with pytest.raises(InputError, match=r"cluster.workers: the cluster must have 9 x 1 CPUs, got 4 CPUs"):
        embed(raw_sets.table(), encoder="edges", cluster={"kind": "ray", "workers": 9})


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.mark.jobs
def test_the_job_runs_by_itself_and_its_features_are_scored(tmp_path):
    done = run_job("jobs/embed.py", f"output={tmp_path / 'run'}", "cluster.threads=1")
    assert done.returncode == 0, done.stderr
    following = next(line for line in done.stdout.splitlines() if line.startswith("next: python "))
    assert "rows_per_second=" in done.stdout and f"data.path={tmp_path}/run/features" in following
    scored = run_job(
        *following.removeprefix("next: python ").split(), f"output={tmp_path / 'scores'}", "cluster.threads=1"
    )
    assert scored.returncode == 0 and "359 labels differ from `true_label`, found" in scored.stdout, scored.stderr
    bad = run_job("jobs/embed.py", "encoder=eges", f"output={tmp_path / 'bad'}")
    assert bad.returncode == 2 and "eges" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.jobs
def test_pairs_without_labels_are_told_the_command_that_scores_them(tmp_path):
    pq.write_table(raw_sets.table(200).drop_columns("label"), tmp_path / "pairs.parquet")
    words = [f"data.path={tmp_path / 'pairs.parquet'}", "encoders=[edges,{name: words, column: caption}]"]
    done = run_job("jobs/embed.py", *words, f"output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    following = next(line for line in done.stdout.splitlines() if line.startswith("next: "))
    command = [*shlex.split(following.removeprefix("next: python ")), f"output={tmp_path / 'scores'}"]
    scored = run_job(*command)
    assert scored.returncode == 0 and "task=pairs" in command, scored.stderr
