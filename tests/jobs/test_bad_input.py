"""A user's mistake is one line that says what must hold, what was found and where, and what to change; nothing is lost."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.config import ClusterConfig, DataConfig, ScoreConfig
from diva_ray.errors import InputError
from diva_ray.tasks.score import run

ROOT = Path(__file__).resolve().parents[2]
INLINE = {"kind": "inline", "threads": 1}
N = 60
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
Y = np.arange(N) % 3
BIG = {"features": np.random.default_rng(0).standard_normal((2600, 3)).astype(np.float32), "label": np.arange(2600) % 3}


def score(data, **options):
    return diva_ray.score(data, **{"quiet": True, "cluster": INLINE, "ridge": 0.1, **options})


def refuses(told, data, **options):
    """Expect one line: what must hold, `got`, where, and an option to change."""
    with pytest.raises(InputError, match=told) as caught:
        score(data, **options)
    line = str(caught.value)
    assert "\n" not in line and ", got " in line
    assert line.rstrip().endswith("."), line


def base(**columns):
    return {"features": X, "label": Y, **columns}


def table(**columns):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)
    return pa.table({"features": lists, "label": Y, **columns})


def spoilt(values, row, value):
    """Return a copy with one entry changed."""
    result = np.array(values, dtype=object if value is None else None)
    result[row] = value
    return result.tolist() if value is None else result


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere.parquet", "no/*.parquet", "empty"])
def test_a_missing_file(name, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses(
        r"data.path: a Parquet file, folder or glob must be there, got nothing at .*Change `data.path`",
        str(tmp_path / name),
    )
    refuses(r"data.path: .* got nothing at file:", f"file://{tmp_path}/nowhere.parquet")


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
    refuses(r"data.features: column `features` must be finite, got 1e\+200 at row 17", base(features=bad))


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
    refuses(r"data.label: there must be at least two classes, got only 'cat' in `label`", base(label=["cat"] * N))


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
    refuses(r"task: labels in column `label` must fit regression, got string. Change `task` or `data.label`",
            base(label=["a", "b", "c"] * 20), task="regression")  # fmt: skip
    refuses(
        r"task: labels in column `label` must fit classification, got float", base(label=X[:, 0]), task="classification"
    )
    refuses(r"data.label: vector targets must have equal length|data.label: vectors of column `label` must have equal length",
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
    refuses(r"validation.path: the validation table must have the same columns, got no `label`",
            table(), validation=held_out(table().drop_columns("label")))  # fmt: skip
    named = table().set_column(1, "label", pa.array([f"{k}" for k in Y]))
    refuses(
        r"validation.path: column `label` must hold integer as in the table, got string",
        table(),
        validation=held_out(named),
    )
    narrow = pa.table({"features": X[:, 0], "label": Y})
    refuses(
        r"data.features: .* equal length, got \[4\] at row 0 and \[1\] at v.parquet row 0",
        table(),
        validation=held_out(narrow),
    )
    refuses(r"data.label: column `label` must hold no null, got one at v.parquet row 2",
            table(), validation=held_out(table().set_column(1, "label", pa.array(spoilt(Y, 2, None)))))  # fmt: skip


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,told",
    [
        ({"stadardize": "none"}, r"options must be fields of ScoreConfig, got 'stadardize'"),
        ({"cluster": {"wrokers": 2}}, r"cluster: options must be fields of ClusterConfig, got 'wrokers'"),
        ({"loss": "hinge"}, r"loss: must fit classification \(cross_entropy, squared, module:function\), got hinge"),
        ({"loss": "cosine"}, r"loss: must fit classification .* got cosine"),
        ({"loss": 3}, r"loss: must be a function .* got 3"),
        ({"task": "clustering"}, r"task: must be auto, classification, .* got clustering"),
        ({"standardize": "zscore"}, r"standardize: must be auto, none, got zscore"),
        ({"precision": "half"}, r"precision: must be auto, float32, float64, got half"),
        ({"standard_errors": "none"}, r"standard_errors: must be auto, exact, estimate, got none"),
        ({"cluster": "slurm"}, r"cluster: must be auto, inline, local, ray, got slurm|cluster: .* got slurm"),
        ({"ridge": -1}, r"ridge: must be auto or a number >= 0, got -1"),
        ({"ridge": "small"}, r"ridge: must be auto or a number >= 0, got 'small'"),
        ({"ridge": float("nan")}, r"ridge: .* got nan"),
        ({"ridge": True}, r"ridge: .* got True"),
        ({"block_rows": 0}, r"block_rows: must be at least 1, got 0"),
        ({"block_rows": "many"}, r"block_rows: must be int, got 'many' \(str\)"),
        ({"seed": "lucky"}, r"seed: must be int, got 'lucky'"),
        ({"seed": 1.5}, r"seed: must be int, got 1.5"),
        ({"intercept": "yes"}, r"intercept: must be bool, got 'yes'"),
        ({"output": 5}, r"output: must be str, got 5"),
        ({"cluster": {**INLINE, "workers": 0}}, r"cluster.workers: must be at least 1, got 0"),
        ({"cluster": {**INLINE, "threads": "two"}}, r"cluster.threads: must be int or None, got 'two'"),
        ({"cluster": {**INLINE, "gpus_per_worker": -1}}, r"cluster.gpus_per_worker: must be at least 0, got -1"),
        ({"cluster": {**INLINE, "pass_timeout": 0}}, r"cluster.pass_timeout: must be at least"),
        ({"cluster": {**INLINE, "memory": "lots"}}, r"cluster.memory: must be a size such as 2GiB, got lots"),
        ({"cluster": {**INLINE, "memory": "1.2.3GiB"}}, r"cluster.memory: must be a size such as 2GiB, got 1.2.3GiB"),
        ({"cluster": {**INLINE, "memory": "0"}}, r"cluster.memory: must be a size"),
        ({"cluster": {**INLINE, "memory": "-2GiB"}}, r"cluster.memory: must be a size"),
        ({"cluster": {**INLINE, "memory": "10kB"}}, r"cluster.memory: a worker's rows and sums must fit .* GiB, got about"),
        ({"loss": "os:system"}, r"loss: code may run only with trust_code=true, got loss=os:system. Add `trust_code=true`"),
        ({"loss": "no.such:thing", "trust_code": True}, r"loss: must be importable as module:function, got no.such:thing"),
        ({"loss": "math:", "trust_code": True}, r"loss: must be importable as module:function, got math:"),
        ({"loss": ":f", "trust_code": True}, r"loss: must be importable"),
        ({"loss": "math:pi", "trust_code": True}, r"loss: must be a function .* got math:pi"),
        ({"output": "nothing://there"}, r"output: must be a folder or URI that can be written, got nothing://there"),
    ],
    ids=str,
)  # fmt: skip
def test_options(options, told):
    refuses(told, base(), **options)


@pytest.mark.parametrize("noise", [-0.1, 1.0])
def test_noise_out_of_range(noise, tmp_path):
    config = ScoreConfig(
        DataConfig(builtin="digits", noise=noise), cluster=ClusterConfig(**INLINE), output=str(tmp_path)
    )
    with pytest.raises(InputError, match=r"data.noise: must be at least 0 and below 1, got .*Change `data.noise`"):
        run(config, quiet=True)


def test_sizes_a_person_writes():
    for memory in ("2GiB", "500 MB", "1.5g", "3000000000", "2 gib"):
        assert score(base(), cluster={**INLINE, "memory": memory}).summary["n_samples"] == N


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_leverage_reaching_one(precision):
    """Nothing else tells about the seventh row's own column."""
    own = np.c_[X, np.eye(N, dtype=np.float32)[6]]
    refuses(r"score: leverage must be below 1, got (1|0.9999)\S* at row 6. Increase `ridge`",
            base(features=own), ridge=0, precision=precision, standardize="none")  # fmt: skip
    refuses(r"leverage must be below 1, got (1|0.9999)\S* at id key 6 \(row 6\)",
            base(features=own, id=[f"key {k}" for k in range(N)]), ridge=0, precision=precision)  # fmt: skip


@pytest.mark.parametrize("features", [np.c_[X, X], np.random.default_rng(0).standard_normal((N, 90))])
def test_no_ridge_for_columns_that_depend_on_each_other(features):
    refuses(
        r"solve: the normal matrix must be positive definite, got .*Increase `ridge`", base(features=features), ridge=0
    )


def test_a_single_row():
    refuses(r"leverage must be below 1, got 1", {"features": X[:1], "label": X[:1, 0]})


# --- the output ------------------------------------------------------------------------------------------------------


def contents(folder):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_an_output_in_use_is_left_as_it_is(tmp_path):
    out = tmp_path / "out"
    score(base(), output=str(out))
    before = contents(out)
    refuses(r"output: the folder must be new or empty, got \d+ entries .* at .*out. Change `output`, or use `resume=true`",
            base(), output=str(out))  # fmt: skip
    refuses(r"resume: the run in .*out must have the same data and options, got another ridge", base(), output=str(out),
            resume=True, ridge=7.0)  # fmt: skip
    refuses("output: the folder|data.features: column", base(), output=str(out), features="absent")
    with pytest.raises(InputError, match="output: the folder must be new or empty"):
        score(base()).write(str(out))
    assert contents(out) == before


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    refuses(r"output: must be a folder, got a file at .*out. Change `output`", base(), output=str(tmp_path / "out"))
    refuses(
        r"output: the folder must be writable, got .* at .*Change `output`",
        base(),
        output=str(tmp_path / "out" / "deeper"),
    )
    assert (tmp_path / "out").read_text() == "mine"


def test_a_mistake_in_the_table_leaves_the_folder_usable(tmp_path):
    out = tmp_path / "out"
    bad = X.copy()
    bad[3, 1] = np.nan
    refuses("must be finite", base(features=bad), output=str(out))
    assert contents(out) == {}
    assert score(base(), output=str(out)).summary["n_samples"] == N


# --- clusters --------------------------------------------------------------------------------------------------------


def test_more_workers_than_this_machine_has_cpus():
    start = time.perf_counter()
    refuses(r"cluster.workers: this machine must have 5000 x 1 CPUs, got \d+. Lower `cluster.workers`",
            base(), cluster={"kind": "local", "workers": 5000})  # fmt: skip
    assert time.perf_counter() - start < 5  # before any cluster is started


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_cpus(ray_cluster):
    refuses(r"cluster.workers: the cluster must have 5 x 1 CPUs, got 4 CPUs .* Lower `cluster.workers` to 4",
            base(), cluster={"kind": "ray", "workers": 5})  # fmt: skip
    refuses(
        r"cluster.workers: .* and 1 x 99 GPUs", base(), cluster={"kind": "ray", "workers": 1, "gpus_per_worker": 99.0}
    )


@pytest.mark.ray
def test_mistakes_found_on_workers_are_the_same_line(ray_cluster):
    bad = X.copy()
    bad[3, 1] = np.nan
    refuses(r"data.features: column `features` must be finite, got nan at part-00000.parquet row 3", base(features=bad),
            cluster={"kind": "ray", "workers": 1})  # fmt: skip


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nohost.invalid:6379", "127.0.0.1:port"])
def test_an_unreachable_cluster_fails_quickly(address, monkeypatch):
    from diva_ray.engine.connect import check_address

    start = time.perf_counter()
    with pytest.raises(
        InputError, match=rf"cluster: a Ray cluster must answer, got .* at {re.escape(address)}. Start it, fix RAY"
    ):
        check_address(address)
    assert time.perf_counter() - start < 12


# --- the job ---------------------------------------------------------------------------------------------------------


def job(*words, **environment):
    return subprocess.run(
        [sys.executable, "jobs/score.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.jobs
@pytest.mark.parametrize(
    "words,told",
    [
        (
            ["data.path=/no/such.parquet"],
            r"data.path: a Parquet file, .* got nothing at /no/such.parquet. Change `data.path`.",
        ),
        (
            ["rigde=1"],
            r"score: options must be known and of the right type, got: .*rigde.*`python jobs/score.py --cfg job`.",
        ),
        (
            ["block_rows=many"],
            r"score: options must be .* got: .*block_rows=many.*'many'.* converted to Integer. List them .*",
        ),
        (
            ["data.noise=2", "cluster=inline"],
            r"data.noise: must be at least 0 and below 1, got 2.0. Change `data.noise`.",
        ),
        (
            ["cluster=local", "cluster.workers=5000"],
            r"cluster.workers: this machine must have 5000 x 1 CPUs, got \d+. Lower .*",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_job_says_it_in_one_line(words, told, tmp_path):
    found = job(*words, f"output={tmp_path / 'out'}")
    assert found.returncode == 2 and found.stdout == ""
    line = found.stderr.splitlines()[-1]
    assert re.fullmatch(told, line), found.stderr
    assert "Traceback" not in found.stderr
    if "workers" not in told:  # the plan was printed before
        assert len(found.stderr.splitlines()) == 1, found.stderr


@pytest.mark.jobs
def test_the_job_ends_quickly_when_no_cluster_answers(tmp_path):
    found = job("cluster=ray", f"output={tmp_path / 'out'}", RAY_ADDRESS="127.0.0.1:1")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert line.startswith("cluster: a Ray cluster must answer, got ConnectionRefusedError"), found.stderr
    assert line.endswith("at 127.0.0.1:1. Start it, fix RAY_ADDRESS, or use `cluster=local`.")
