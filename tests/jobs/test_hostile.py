"""Hostile data: code that must not run, bombs that must stay small, paths that must not be read, words that stay words.

More of it lies where the readers are tested: `test_embed.py` (a PNG bomb, paths that leave the root),
`test_embed_bad.py` (tars that leave their folder, links, pickled weights), `tests/report` (every part of a page).
"""

import gzip
import io
import json
import os
import pickle
import stat
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import diva_ray
from diva_ray.bench.peers import memory_above, reset_memory
from diva_ray.data.decode import Form, Pictures, RefusedError
from diva_ray.data.folder import Folder
from diva_ray.data.raw import lines, tar, units
from diva_ray.data.raw.find import find_raw
from diva_ray.errors import InputError
from diva_ray.jobs import plain
from tests.data import raw_sets
from tests.forks import run_job
from tests.pages import EVIL, Page, fetches

ROOT = Path(__file__).resolve().parents[2]
INLINE = {"kind": "inline", "threads": 1}
PNG = raw_sets.png(raw_sets.pictures(1)[0])


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def reasons(result):
    return {row["id"]: row["reason"] for row in result.folder.read_table("quarantine").to_pylist()}


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(size, kind="PNG", **options):
    out = io.BytesIO()
    Image.new("L", size, 128).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_long_and_narrow_pictures_do_not_grow(fit):
    long = picture((1, 2_000_000))  # its shorter side at 64 pixels, the other has 128 million
    data = pa.table({"image": [PNG, long, picture((2_000_000, 1)), picture((30, 1))]})
    level = reset_memory()
    result = embed(data, encoder={"name": "edges", "fit": fit}, most_failed=0.9)
    assert memory_above(level) < 1 << 30
    refused = [] if fit == "squash" else [1, 2]
    assert result.samples["id"].to_pylist() == [k for k in range(4) if k not in refused]
    if refused:
        assert reasons(result)["1"] == "1 x 2000000 pixels, too long and narrow"


def test_only_the_first_of_many_frames_is_decoded(tmp_path):
    frames = [Image.new("P", (300, 300), k % 256) for k in range(400)]
    for kind in ("GIF", "TIFF", "WEBP"):
        out = io.BytesIO()
        some = [frame.convert("RGB") for frame in frames[: 400 if kind == "GIF" else 20]]
        some[0].save(out, kind, save_all=True, append_images=some[1:])
        found = Pictures(str(tmp_path), 100_000).open(out.getvalue())
        assert found.size == (300, 300)


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.4"]
)
def test_formats_that_run_programs_or_fetch_are_refused(data, tmp_path):
    with pytest.raises(RefusedError, match="not decodable"):
        Pictures(str(tmp_path), 100).open(data)


def test_a_square_of_a_picture_is_what_it_was():
    form = Form(16, "crop", 0.875)
    assert form.of(Image.new("RGB", (40, 3000), "red")).shape == (16, 16, 3)


# --- tars, lines -----------------------------------------------------------------------------------------------------


def packed_tar(path, members, **options):
    """Write a gzipped tar; a member is bytes, or a number of zeros."""
    with tarfile.open(path, "w:gz", compresslevel=1, **options) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = content if isinstance(content, int) else len(content)
            file.addfile(info, io.BytesIO(bytes(info.size) if isinstance(content, int) else content))


def test_members_of_a_sample_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_BYTES", 1 << 20)
    packed_tar(tmp_path / "a.tgz", [("1.png", PNG), *((f"2.{k}.png", 1 << 19) for k in range(9)), ("3.png", PNG)])
    found = {key: members for key, members, _ in tar.samples(pa.fs.LocalFileSystem(), str(tmp_path / "a.tgz"))}
    assert list(found) == ["1", "2", "3"] and found["1"]["png"] == found["3"]["png"] == PNG
    assert sum(len(content or b"") for content in found["2"].values()) <= 1 << 20
    packed_tar(tmp_path / "a.tgz", [(f"1.{k}", b"") for k in range(tar.MOST_MEMBERS + 1)])
    with pytest.raises(InputError, match="a whole tar, got ReadError .more than 1000 members of sample 1"):
        embed(tmp_path / "a.tgz")


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        file.write(header.tobuf())
        file.write(bytes(8 << 20))
    with pytest.raises(InputError, match="got ReadError .a header of 4294967296 bytes, more than 1048576"):
        embed(tmp_path)


@pytest.mark.parametrize("size", [-1, -512])
def test_a_member_of_negative_size_ends_the_tar(tmp_path, size):
    header = bytearray(tarfile.TarInfo("1.png").tobuf())
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % sum([*header[:148], *b" " * 8, *header[156:512]])
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(InputError, match="every file must be a whole tar|a tar must hold samples|no bytes"):
        embed(tmp_path)


def pictures_tar(path, mode="w", headers=()):
    """Write a tar of five pictures with texts."""
    with tarfile.open(path, mode) as file:
        for header in headers:
            file.fileobj.write(header)
        for k in range(5):
            for name, content in ((f"{k}.png", PNG), (f"{k}.txt", b"a text of no meaning")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


def test_a_flipped_bit_in_a_header_is_not_the_end_of_a_tar(tmp_path):
    pictures_tar(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as file:
        offset = file.getmembers()[4].offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[offset] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=rf"a whole tar, got ReadError .bad checksum at byte {offset}.* at .*a.tar"):
        embed(tmp_path)


def test_a_packed_tar_is_held_against_its_checksum(tmp_path):
    pictures_tar(tmp_path / "a.tar")
    content = bytearray(gzip.compress((tmp_path / "a.tar").read_bytes(), 0))
    at = content.index(b"no meaning")
    content[at : at + 2] = b"NO"
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(InputError, match="a whole tar, got BadGzipFile .CRC check failed .* at .*a.tgz"):
        embed(tmp_path)


def test_a_member_of_a_size_that_is_a_lie_ends_the_tar(tmp_path):
    header = tarfile.TarInfo("1.png")
    header.size = 1 << 60
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    with pytest.raises(InputError, match="a whole tar, got ReadError .unexpected end of data. at .*a.tar"):
        embed(tmp_path)


def global_header(k, size):
    """Return a header that all members to come inherit."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XGLTYPE, size
    start = b"%d k%d=" % (size, k)
    return header.tobuf(tarfile.USTAR_FORMAT) + start + b"x" * (size - len(start) - 1) + b"\n" + bytes(-size % 512)


def test_headers_one_after_the_other_are_bounded(tmp_path):
    pictures_tar(tmp_path / "a.tgz", "w:gz", [global_header(k, 20) for k in range(2000)])
    with pytest.raises(InputError, match="a whole tar, got ReadError .more than 16 headers of one member. at"):
        embed(tmp_path)


def test_headers_and_members_are_not_kept(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz", compresslevel=1) as file:
        for k in range(100):
            file.fileobj.write(global_header(k, 1_000_000))
            file.addfile(tarfile.TarInfo(f"{k}.txt"), io.BytesIO(b""))
    tracemalloc.start()
    found = sum(1 for _ in tar.samples(pa.fs.LocalFileSystem(), str(tmp_path / "a.tgz")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 100 and peak < 20e6


def test_chunks_of_long_lines_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "MOST_HELD", 1 << 20)
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 18)
    rows = [{"id": k, "text": f"{k} " * (50_000 if k >= 40 else 1)} for k in range(120)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    source = find_raw(str(tmp_path / "a.jsonl.gz"), "auto", id=None, label="label", unit_rows=2048)
    chunks = [rows.table for rows in source.read(source, source.units[0], ["id", "text"], 64)]
    assert [k for table in chunks for k in table["id"].to_pylist()] == list(range(120))
    assert max(table.nbytes for table in chunks) < 2 << 20 < sum(table.nbytes for table in chunks)
    result = embed(tmp_path / "a.jsonl.gz")
    assert result.samples["id"].to_pylist() == list(range(120)) and result.samples["text"].to_pylist()[7] == "7 "


DEEP, HUGE = b"[" * 200_000, b'{"text": "a", "label": ' + b"9" * 30 + b"}"


def test_deep_json_and_numbers_without_end_are_put_aside(tmp_path):
    rows = [json.dumps({"text": f"line {k}", "label": k % 2}).encode() for k in range(8)]
    rows[2:2] = [DEEP, b'{"text": ' + DEEP + b"}", HUGE, b'{"text": "a", "label": ' + b"9" * 5000 + b"}"]
    rows[7:7] = [b'{"text": "\\ud800", "label": 1}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    result = embed(tmp_path, most_failed=0.9)
    assert result.samples["text"].to_pylist() == [f"line {k}" for k in range(8)]
    assert sum("nested too deep" in reason for reason in reasons(result).values()) == 2 and len(reasons(result)) == 5
    (tmp_path / "a.jsonl").unlink()
    packed_tar(
        tmp_path / "a.tgz", [("1.png", PNG), ("2.png", PNG), ("2.json", DEEP), ("3.png", PNG), ("3.json", b"{}")]
    )
    result = embed(tmp_path, encoder="edges", most_failed=0.9)
    assert result.samples["id"].to_pylist() == ["1", "3"] and "nested too deep" in reasons(result)["2"]


def test_a_line_without_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 20)
    kept = [json.dumps({"text": f"line {k}"}).encode() for k in range(2)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(kept[0] + b"\n")
        for _ in range(300):
            file.write(b" " * (1 << 20))
        file.write(b"{}\n" + kept[1])
    assert (tmp_path / "a.jsonl.gz").stat().st_size < 3 << 20
    level = reset_memory()
    result = embed(tmp_path, most_failed=0.9)
    assert memory_above(level) < 100 << 20, "300 MiB unpacked"
    assert result.samples["text"].to_pylist() == ["line 0", "line 1"]
    assert list(reasons(result).values()) == ["line does not fit: longer than 1048576 bytes"]
    found = units.Unit(0, str(tmp_path / "a.jsonl.gz"))
    offsets = [offset for offset, _ in lines._lines(pa.fs.LocalFileSystem(), found)]
    assert offsets[2] == len(kept[0]) + 1 + (300 << 20) + 3, "what is dropped is counted"


# --- code that must not run ------------------------------------------------------------------------------------------


def test_pickles_are_not_read(tmp_path):
    ran = tmp_path / "ran"
    np.save(tmp_path / "a.npy", np.array([Bomb(ran)], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", given=np.array([Bomb(ran)], object))
    folder = Folder(str(tmp_path))
    for read, name in ((folder.read_arrays, "a.npz"), (folder.read_array, "a.npy")):
        with pytest.raises(ValueError, match="allow_pickle=False|OBJECT array"):
            read(name)
    assert not ran.exists()


def test_code_in_the_types_of_a_table_does_not_run(tmp_path):
    import ray.data  # noqa: F401 - registers types that Ray 2.49 to 2.54 read with pickle

    ran = tmp_path / "ran"
    rows = np.random.default_rng(0).standard_normal((600, 4)).astype(np.float32)
    features = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 4)
    label = pa.array((rows[:, 0] > 0).astype(int))
    for k, name in enumerate(("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type")):
        told = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": pickle.dumps(Bomb(ran))}
        field = pa.field("features", features.type, metadata=told)
        table = pa.Table.from_arrays([features, label], schema=pa.schema([field, pa.field("label", pa.int64())]))
        pq.write_table(table, tmp_path / f"{k}.parquet")
        if name.startswith("ray."):
            with pytest.raises(InputError, match="data.path: every file must be readable Parquet, .* deserialize"):
                diva_ray.score(str(tmp_path / f"{k}.parquet"), cluster=INLINE, quiet=True)
        else:  # Arrow takes the plain type below
            assert (
                diva_ray.score(str(tmp_path / f"{k}.parquet"), cluster=INLINE, quiet=True).summary["n_samples"] == 600
            )
        assert not ran.exists(), name


def test_targets_where_any_value_may_stand_are_values():
    target = {"_target_": "os.mkdir", "path": "ran"}
    rows = {"features": np.eye(20), "label": np.arange(20) % 2}
    with pytest.raises(InputError, match="ridge"):
        diva_ray.tune(rows, space={"ridge": target}, cluster=INLINE, quiet=True)
    with pytest.raises(InputError, match="shares: every band"):
        diva_ray.score(rows, shares=target, cluster=INLINE, quiet=True)
    with pytest.raises(InputError, match="encoder: (options must be fields|must be one of)"):
        embed(pa.table({"image": [PNG]}), encoders=[target])
    assert not os.path.exists("ran")


@pytest.mark.jobs
@pytest.mark.parametrize(
    "told,words",
    [("output: !!python/object/apply:os.mkdir [{ran}]\n", "could not determine a constructor"),
     ("defaults: [score, _self_]\n_target_: os.mkdir\npath: {ran}\nplan: true\n", "Key '_target_' not in")],
    ids=["tag", "target"],
)  # fmt: skip
def test_code_in_a_config_file_does_not_run(tmp_path, told, words):
    ran = tmp_path / "ran"
    (tmp_path / "evil.yaml").write_text(told.format(ran=ran))
    done = run_job("jobs/score.py", f"--config-dir={tmp_path}", "--config-name=evil")
    assert done.returncode and words in done.stderr and not ran.exists(), done.stderr


# --- what people see -------------------------------------------------------------------------------------------------


def test_hostile_words_of_a_table_stay_words_on_its_page(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((400, 6)).astype(np.float32)
    y = X[:, 0] > 0
    y[:40] = ~y[:40]
    name = EVIL.replace("/", "\N{FRACTION SLASH}")
    table = pa.table({
        f"x{EVIL}": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 6),
        f"y{EVIL}": [f"{EVIL} {int(k)}" for k in y], f"i{EVIL}": [f"{EVIL} {k}" for k in range(400)],
        f"s{EVIL}": [f"{EVIL} {k % 2}" for k in range(400)], f"t{EVIL}": [EVIL] * 400,
    })  # fmt: skip
    pq.write_table(table, tmp_path / f"{name}.parquet")
    columns = {"features": f"x{EVIL}", "label": f"y{EVIL}", "id": f"i{EVIL}", "source": f"s{EVIL}", "show": f"t{EVIL}"}
    for run in (diva_ray.score, diva_ray.reweight):
        result = run(str(tmp_path / f"{name}.parquet"), **columns, cluster=INLINE, quiet=True)
        page = Page(result.folder.read("report.html").decode())
        assert not page.open and len(page.all("script")) == 1 and not page.all("img") and not fetches(page)
        assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
        assert page.text.count("<script>alert(1)</script>") > 20
        assert yaml.safe_load(result.folder.read("config.yaml"))["data"]["label"] == f"y{EVIL}"


def test_words_of_the_data_do_not_steer_a_terminal():
    assert (
        plain("id \x1b]0;owned\x07 \x1b[2J twice\nat row 3\x9b1m")
        == "id \ufffd]0;owned\ufffd \ufffd[2J twice at row 3\ufffd1m"
    )
    assert plain("rows       3 in 1 shard \t\r\n of  two") == "rows       3 in 1 shard of  two"
    assert plain("Straße, 学, λ = 1 é") == "Straße, 学, λ = 1 é"


def test_names_of_columns_do_not_steer_it_either(tmp_path):
    columns = {name: np.random.default_rng(0).random(60) for name in ("x\x1b[31m\x1b]0;owned\x07", "y\x1b[2J")}
    gaps = pa.array([None if k % 9 == 0 else k / 60 for k in range(60)])
    rows = pa.table({**columns, "z\x1b[2J": gaps, "label": np.arange(60) % 2})
    pq.write_table(rows, tmp_path / "rows.parquet")
    path, output = tmp_path / "rows.parquet", tmp_path / "run"
    done = run_job("jobs/score.py", f"data.path={path}", "data.features=*", "cluster=inline", f"output={output}")
    assert done.returncode == 0, done.stderr
    assert "\N{REPLACEMENT CHARACTER}" in done.stdout and "\N{REPLACEMENT CHARACTER}" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr


def test_a_run_without_an_output_is_for_its_owner_alone():
    rows = {"features": np.random.default_rng(0).standard_normal((60, 3)), "label": np.arange(60) % 2}
    result = diva_ray.score(rows, cluster=INLINE, quiet=True)
    assert stat.S_IMODE(os.stat(result.path).st_mode) == 0o700
