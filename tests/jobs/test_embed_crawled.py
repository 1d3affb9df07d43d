"""Raw samples as crawls and curators leave them: nothing unasked costs a sample, options do what they say."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import diva_ray
from diva_ray.data.decode import Form, Pictures
from diva_ray.errors import InputError
from tests.data import raw_sets

INLINE = {"kind": "inline", "threads": 1}


def embed(data, **options):
    return diva_ray.embed(data, **{"quiet": True, "cluster": INLINE, **options})


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def jpeg(side):
    grid = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def test_a_class_that_was_renamed_meanwhile_is_another_input(tmp_path):
    (tmp_path / "raw").mkdir()
    raw_sets.write_folder(tmp_path / "raw")
    whole = embed(tmp_path / "raw", output=str(tmp_path / "run"), unit_rows=4)
    first = sorted(path for path in (tmp_path / "raw").iterdir() if path.is_dir())[0]
    (tmp_path / "run" / "features" / "part-00000.parquet").unlink()
    os.rename(first, first.with_name(f"{first.name}0"))  # sizes and times of change stay
    told = r"resume: .* got another data.path \(what lies there has changed\)\. Put it back as"
    with pytest.raises(InputError, match=told):
        embed(tmp_path / "raw", output=str(tmp_path / "run"), unit_rows=4, resume=True)
    os.rename(first.with_name(f"{first.name}0"), first)
    assert embed(tmp_path / "raw", output=str(tmp_path / "run"), unit_rows=4, resume=True).samples.equals(whole.samples)


def test_an_embedding_that_was_interrupted_is_no_table(tmp_path):
    (tmp_path / "raw").mkdir()
    raw_sets.write_folder(tmp_path / "raw")
    run = tmp_path / "run"
    embed(tmp_path / "raw", output=str(run), unit_rows=4)
    assert diva_ray.score(run, cluster=INLINE, quiet=True).summary["n_samples"] > 4
    (run / "manifest.json").unlink()  # written last
    (run / "features" / "part-00001.parquet").unlink()
    for named in (run, run / "features", f"{run}/features/", f"file://{run}/features"):
        told = (
            rf"data.path: a run whose output is read must be finished, got no manifest.json at .*{run}\. Run it again"
        )
        with pytest.raises(InputError, match=told):
            diva_ray.score(named, cluster=INLINE, quiet=True)


def test_a_label_that_a_table_lacks_is_named(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na b,0\nb c,1\n")
    with pytest.raises(InputError, match=r"data.label: column `lable` must be there, got columns .*label .*\. Change"):
        embed(tmp_path / "rows.csv", label="lable")


def test_columns_of_a_csv_that_nobody_asked_for_cost_nothing(tmp_path):
    long = "a " * 400  # so that few rows are more than a block of the reader's
    rows = [f"{k},{long}{k},{k % 2},{k if k < 2000 else f'X{k}'}" for k in range(2100)]
    (tmp_path / "rows.csv").write_text("\n".join([",text,label,code", *rows]) + "\n")
    found = embed(tmp_path / "rows.csv", keep=["label"]).samples
    assert found.num_rows == len(rows) and found.column_names == ["id", "label", "features"]


def test_beside_texts_an_address_is_no_picture(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": f"words {k}", "url": f"https://x.org/{k}"} for k in range(30)])
    found = embed(path)
    assert found.summary["n_samples"] == 30 and found.samples["url"][3].as_py() == "https://x.org/3"
    with pytest.raises(InputError, match="http"):
        embed(lines(tmp_path / "b.jsonl", [{"url": f"https://x.org/{k}"} for k in range(30)]))


@pytest.mark.parametrize("empty", [None, "nothing"])
def test_a_field_that_is_empty_at_the_head_costs_no_sample(empty, tmp_path, caplog):
    caplog.set_level("WARNING", logger="diva_ray")
    head = {} if empty else {"rating": empty}
    rows = [{"text": f"words {k}", **(head if k < 1100 else {"rating": 5})} for k in range(1500)]
    found = embed(lines(tmp_path / "a.jsonl", rows))
    assert found.summary["n_samples"] == 1500 and found.summary["n_failed"] == 0
    assert "rating" in caplog.text and "data.peek" in caplog.text
    kept = embed(tmp_path / "a.jsonl", peek=1200).samples
    assert kept["rating"].to_pylist() == [None] * 1100 + [5] * 400


def test_a_value_of_another_type_names_its_column(tmp_path):
    rows = [{"text": f"words {k}", "rating": 5 if k != 1400 else "many"} for k in range(1500)]
    found = embed(lines(tmp_path / "a.jsonl", rows))
    (aside,) = found.folder.read_table("quarantine").to_pylist()
    assert aside["column"] == "rating" and "data.peek" in aside["reason"]


def test_members_that_nobody_reads_have_no_part_in_a_samples_bound(tmp_path, monkeypatch):
    from diva_ray.data.raw import tar

    monkeypatch.setattr(tar, "MOST_BYTES", 1 << 16)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for k in range(4):
            for suffix, content in (("flac", bytes(1 << 17)), ("txt", b"words %d" % k)):
                info = tarfile.TarInfo(f"{k}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    found = embed(tmp_path / "a.tar")
    assert found.summary["n_samples"] == 4
    assert found.samples["text"].to_pylist() == [f"words {k}" for k in range(4)]


def test_thumbnails_have_the_size_that_is_asked_for(tmp_path):
    found = embed(pa.table({"image": [jpeg(1024)] * 2}), thumbnail=300)
    picture = Image.open(io.BytesIO(found.samples["picture"][0].as_py()))
    assert max(picture.size) == 300


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5, 0.25, 0.1])
def test_a_small_part_of_a_jpeg_is_not_made_of_too_few_pixels(crop, tmp_path):
    data, form = jpeg(1024), Form(64, "crop", crop, "bilinear")
    whole = Pictures(str(tmp_path), 10**7).open(data)
    found, wanted = (form.of(p).astype(float) for p in (Pictures(str(tmp_path), 10**7).open(data, form.least), whole))
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.97


def test_the_plan_of_a_packed_file_counts_what_it_unpacks_to(tmp_path):
    rows = [json.dumps({"text": f"the same words again and again, number {k}", "label": k % 3}) for k in range(5000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    assert embed(tmp_path / "a.jsonl.gz", plan=True).rows == pytest.approx(5000, rel=0.1)


def test_a_plan_is_measured_with_the_threads_that_workers_have():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, pictures):
            seen.append(torch.get_num_threads())
            return pictures.flatten(1)[:, :8]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        where = {"kind": "local", "workers": 2, "threads": 1}
        embed(raw_sets.table(), encoder={"module": Net(), "size": 16}, cluster=where, plan=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen[-1] == 1


def test_pictures_to_augment_are_opened_as_hostile_ones_are():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    huge = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(huge, "PNG")
    for given, told in ((eps, "not decodable"), (huge.getvalue(), "9000 x 9000 pixels")):
        with pytest.raises(InputError, match=rf"augmented: every picture must open, got {told}.* at picture 0"):
            diva_ray.augmented([given], [0])


def test_a_csv_of_texts_and_fractions_alone_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "text,score,day\n" + "".join(f"text {k},{k / 8},2026-01-0{k}\n" for k in range(1, 9))
    )
    found = embed(tmp_path / "rows.csv").samples
    assert found["score"].to_pylist() == [k / 8 for k in range(1, 9)] and str(found["day"][0]) == "2026-01-01"
