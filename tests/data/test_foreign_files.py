"""Files that are damaged, or somebody else's, where a run's are expected: one line, never a traceback."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.errors import InputError, unreadable
from tests.data.tables import INLINE

X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
TABLE = {"features": X, "label": (X[:, 0] > 0).astype(int)}
OPTIONS = {"cluster": INLINE, "quiet": True}
BAD = {"cut": '{"a": ', "binary": b"\xff\xfe\x00", "deep": "[" * 100_000, "list": "[1, 2]"}


def spoil(path, kind):
    content = BAD[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("kind", BAD)
def test_shares_that_are_no_json_of_a_run(tmp_path, kind):
    spoil(tmp_path / "bad.json", kind)
    data = {"a": X[:, :2], "b": X[:, 2:], "label": TABLE["label"]}
    with pytest.raises(InputError, match=r"^shares: .*bad\.json"):
        diva_ray.score(data, features=["a", "b"], shares=str(tmp_path / "bad.json"), **OPTIONS)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["state.json", "manifest.json", "summary.json"])
def test_a_run_is_not_resumed_from_what_is_damaged(tmp_path, kind, name):
    diva_ray.score(TABLE, output=str(tmp_path), **OPTIONS)
    spoil(tmp_path / name, kind)
    with pytest.raises(InputError, match=rf"^output: files of a run must be as it wrote them, got .*{name}"):
        diva_ray.score(TABLE, output=str(tmp_path), resume=True, **OPTIONS)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_weights_of_a_folder_that_is_no_runs(tmp_path, kind, name):
    run = diva_ray.score(TABLE, output=str(tmp_path), **OPTIONS)
    spoil(tmp_path / name, kind)
    with pytest.raises(InputError, match=rf"^weights: files of a run must be as it wrote them, got .*{name}"):
        diva_ray.train(TABLE, TABLE, weights=run.path, epochs=1, seeds=1, **OPTIONS)


@pytest.mark.parametrize("value", ["x", True, -1.0, [1]])
def test_a_weight_factor_that_is_none(tmp_path, value):
    run = diva_ray.score(TABLE, output=str(tmp_path), **OPTIONS)
    told = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**told, "weight_factor": value}))
    with pytest.raises(InputError, match=r"^weights: .*weight_factor: .* instead of a number >= 0"):
        diva_ray.train(TABLE, TABLE, weights=run.path, epochs=1, seeds=1, **OPTIONS)


def test_a_config_of_somebody_else_has_the_ridge_chosen_anew(tmp_path):
    run = diva_ray.score(TABLE, output=str(tmp_path), **OPTIONS)
    for text in ("a: 1\n", "data: [1]\n", "shares: 3\ndata: {features: null}\n"):
        (tmp_path / "config.yaml").write_text(text)
        result = diva_ray.train(TABLE, TABLE, weights=run.path, epochs=1, seeds=1, **OPTIONS)
        assert result.summary["ridge"] > 0


@pytest.mark.parametrize(
    "told", ['{"info": {"features": {"label": []}}}', "[" * 100_000, '{"info": {"features": 3}}', '{"info": []}']
)
def test_metadata_of_another_library_is_passed_by(tmp_path, told):
    table = pa.table({"features": list(X), "label": TABLE["label"]})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), tmp_path / "rows.parquet")
    assert diva_ray.score(str(tmp_path / "rows.parquet"), plan=True, **OPTIONS).rows == 300


def test_metadata_of_a_column_need_not_be_text(tmp_path):
    fields = [pa.field("a", pa.float64(), metadata={b"\xff": b"\xfe"}), pa.field("b", pa.float64()),
              pa.field("label", pa.int64())]  # fmt: skip
    pq.write_table(pa.table([X[:, 0], X[:, 1], TABLE["label"]], schema=pa.schema(fields)), tmp_path / "rows.parquet")
    assert diva_ray.score(str(tmp_path / "rows.parquet"), features="*", plan=True, **OPTIONS).features == 2


@pytest.mark.parametrize("told", ['{"diva_ray": 1, "command": 1, "encoders": 1, "units": "zz"}', "[" * 100_000])
def test_a_manifest_beside_a_table_may_be_somebody_elses(tmp_path, told):
    (tmp_path / "features").mkdir()
    pq.write_table(pa.table({"features": list(X), "label": TABLE["label"]}), tmp_path / "features" / "rows.parquet")
    (tmp_path / "manifest.json").write_text(told)
    assert diva_ray.score(str(tmp_path), plan=True, **OPTIONS).rows == 300


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_a_link_that_leads_back_is_refused_and_another_followed(tmp_path, raw, deep):
    kept, elsewhere = tmp_path / "kept", tmp_path / "kept" / "c"
    for folder in (kept / "a", elsewhere):
        folder.mkdir(parents=True)
    if raw:
        from PIL import Image

        for k, folder in enumerate((kept / "a", elsewhere)):
            Image.new("RGB", (32, 32), (k, 0, 0)).save(folder / f"{k}.png")
    else:
        for k, folder in enumerate((kept / "a", elsewhere)):
            pq.write_table(pa.table({"features": list(X), "label": TABLE["label"]}), folder / f"{k}.parquet")
    (kept / "b").symlink_to(elsewhere)
    run = diva_ray.embed if raw else diva_ray.score
    found = run(str(kept), **OPTIONS)
    assert found.summary["n_samples"] == (3 if raw else 900)
    (elsewhere if deep else kept).joinpath("loop").symlink_to(kept)
    with pytest.raises(InputError, match=r"data.path: no link in a folder may lead back to it, got one to .*loop"):
        run(str(kept), **OPTIONS)


def test_an_array_where_an_option_is_expected_is_one_line():
    for name in ("weights", "ridge", "loss", "precision"):
        with pytest.raises(InputError, match=name):
            diva_ray.train(TABLE, TABLE, **{name: np.array([0.1, 1.0])}, **OPTIONS)


def test_names_of_columns_may_be_an_index():
    import pandas

    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "label": TABLE["label"]})
    assert diva_ray.score(frame, features=frame.columns.drop("label"), plan=True, **OPTIONS).features == 2
    with pytest.raises(InputError, match="Names that are numbers are written as texts"):
        diva_ray.score(frame, features=[10, 20], plan=True, **OPTIONS)


def test_a_store_that_does_not_answer_is_not_a_broken_file():
    told = unreadable("data.path", OSError("When reading: AWS Error ACCESS_DENIED during HeadObject"), "s3://b/x")
    assert "storage must stay within reach" in str(told) and "resume=true" in str(told)
    assert "Replace the file" in str(unreadable("data.path", OSError("Corrupt snappy compressed data"), "x"))


def test_a_character_0_in_a_path():
    with pytest.raises(InputError, match="^output: must be a folder or URI"):
        diva_ray.score(TABLE, output="a\0b", **OPTIONS)
