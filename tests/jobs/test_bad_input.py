"""A mistake in options, model, output or cluster: one line that says what to change; nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.command_line import checked, quoted, register
from diva_ray.config import ClusterConfig, DataConfig, ScoreConfig
from diva_ray.errors import InputError
from diva_ray.jobs import plain
from diva_ray.tasks.score import run
from tests.forks import run_job

from .mistakes import INLINE, N, X, base, refuses, score, table

ROOT = Path(__file__).resolve().parents[2]

# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,told",
    [
        ({"stadardize": "none"}, r"options must be columns or fields of ScoreConfig, got 'stadardize'. Did you mean `"),
        ({"cluster": {"wrokers": 2}}, r"cluster: options must be fields of ClusterConfig, got 'wrokers'"),
        ({"loss": "hinge"}, r"loss: must fit classification \(cross_entropy, squared, module:function\), got hinge"),
        ({"loss": "cross-entropy"}, r"loss: must .* got cross-entropy. Did you mean `cross_entropy`\? Change `loss`."),
        ({"loss": "cosine"}, r"loss: must fit classification .* got cosine"),
        ({"loss": 3}, r"loss: must be a function .* got 3"),
        ({"task": "clustering"}, r"task: must be auto, classification, .* got clustering"),
        ({"standardize": "zscore"}, r"standardize: must be auto or none, got zscore"),
        ({"precision": "half"}, r"precision: must be auto, float32, float64, tf32, bf16, got half"),
        ({"standard_errors": "none"}, r"standard_errors: must be auto, exact, estimate, got none"),
        ({"cluster": "slurm"}, r"cluster: must be auto, inline, local, ray, got slurm|cluster: .* got slurm"),
        ({"ridge": -1}, r"ridge: must be auto or a number >= 0, got -1"),
        ({"ridge": "small"}, r"ridge: must be auto or a number >= 0, got 'small'"),
        ({"ridge": float("nan")}, r"ridge: .* got nan"),
        ({"ridge": True}, r"ridge: .* got True"),
        ({"block_rows": 0}, r"block_rows: must be at least 1, got 0"),
        ({"block_rows": "many"}, r"block_rows: must be int or None, got 'many' \(str\)"),
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
        ({"cluster": {**INLINE, "memory": "10kB"}}, r"cluster.memory: a worker's rows and sums must fit .*, got about"),
        ({"loss": "os:system"}, r"loss: code may run only with trust_code=true, .* Add `trust_code=true`"),
        (
            {"loss": "no.such:thing", "trust_code": True},
            r"loss: must be importable as module:function, got no.such.* PYTHONPATH=FOLDER, the one with `no` in it",
        ),
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
    with pytest.raises(InputError) as caught:
        run(config, quiet=True)
    assert str(caught.value) == f"data.noise: must be at least 0 and below 1, got {noise}. Change `data.noise`."


@pytest.mark.parametrize(
    "option", ["data.weight", "data.validation_weight", "data.group", "data.label", "validation.path", "update", "task"]
)
def test_an_option_without_a_value_is_refused(option, tmp_path):
    """As of a variable that a shell does not know."""
    done = run_job("jobs/score.py", f"{option}=", f"output={tmp_path / 'run'}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.strip().splitlines()[-1].startswith(f"{option}: must ")


def test_sizes_a_person_writes():
    for memory in ("2GiB", "500 MB", "1.5g", "3000000000", "2 gib"):
        assert score(base(), cluster={**INLINE, "memory": memory}).summary["n_samples"] == N


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_leverage_reaching_one(precision):
    """Nothing else tells about the seventh row's own column."""
    own = np.c_[X, np.eye(N, dtype=np.float32)[6]]
    refuses(r"ridge: leverage must be below 1, got (1|0.9999)\S* at row 6. Increase `ridge`",
            base(features=own), ridge=0, precision=precision, standardize="none")  # fmt: skip
    refuses(r"leverage must be below 1, got (1|0.9999)\S* at id key 6 \(row 6\)",
            base(features=own, id=[f"key {k}" for k in range(N)]), ridge=0, precision=precision)  # fmt: skip


@pytest.mark.parametrize("features", [np.c_[X, X], np.random.default_rng(0).standard_normal((N, 90))])
def test_no_ridge_for_columns_that_depend_on_each_other(features):
    refuses(
        r"ridge: the normal matrix must be positive definite, got .*Increase `ridge`", base(features=features), ridge=0
    )


def test_a_ridge_that_float64_cannot_tell_from_none_for_fewer_rows_than_columns():
    features = np.random.default_rng(0).standard_normal((N // 2, 90)).repeat(2, 0)
    told = r"ridge: the kernel matrix must be positive definite, got a pivot <= 0 at row \d+. Increase `ridge`.$"
    refuses(told, base(features=features[:N]), ridge=1e-300)


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
    refuses(r"output: the folder must be new or empty, got \d+ entries .* at .*out. Change `output`\.$",
            base(), output=str(out))  # fmt: skip
    for last in ("summary.json", "manifest.json"):
        begun = tmp_path / f"without {last}"
        shutil.copytree(out, begun)
        (begun / last).unlink()
        refuses(
            r"output: .* at .*without.*. Change `output`, or use `resume=true` to finish", base(), output=str(begun)
        )
    (tmp_path / "early" / "steps" / "0004-left").mkdir(parents=True)  # all that a run killed in its first pass leaves
    refuses(r"or use `resume=true` to finish", base(), output=str(tmp_path / "early"))
    (tmp_path / "foreign" / "samples").mkdir(parents=True)
    refuses(r"resume: the folder must hold a run that was begun there, got samples without state.json at .*foreign. Ch",
            base(), output=str(tmp_path / "foreign"), resume=True)  # fmt: skip
    refuses(r"resume: the run in .*out must have the same data and options, got another ridge", base(), output=str(out),
            resume=True, ridge=7.0)  # fmt: skip
    refuses(r"resume: .* got another data\.show, data\.truth, ridge\. Use the same options, or a new `output`",
            base(), output=str(out), resume=True, show="label", truth="label", ridge=7.0)  # fmt: skip
    state = Path(shutil.copytree(out, tmp_path / "old")) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 1}))
    refuses("resume: the run in .*old must have been begun by this version of diva_ray, got another one's. Use a new",
            base(), output=str(state.parent), resume=True)  # fmt: skip
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


@pytest.mark.parametrize("task", ["score", "reweight", "extend", "augment", "aggregate", "train", "tune", "embed"])
def test_a_mistake_leaves_no_unnamed_folder_behind(task, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rest = {"extend": [base()], "tune": [{"ridge": [0.1]}]}.get(task, [])
    bad = str(tmp_path / "nowhere") if task == "embed" else base(label=[*range(N - 1)])
    with pytest.raises(InputError):
        getattr(diva_ray, task)(bad, *rest, quiet=True, cluster=INLINE)
    assert os.listdir(tmp_path) == []


def test_a_mistake_that_is_found_late_leaves_no_unnamed_folder_but_what_was_written_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    numbers = {"features": X, "label": np.arange(N) / 7.0}
    refuses("curate: relabel is for classes", numbers, curate="relabel")
    assert os.listdir(tmp_path) == []
    (tmp_path / "named").mkdir()
    refuses("curate: relabel is for classes", numbers, curate="relabel", output=str(tmp_path / "named"))
    assert os.listdir(tmp_path) == ["named"], "a folder that the user named is the user's"
    (tmp_path / "named").rmdir()
    with pytest.raises(InputError, match="samples may be refused"):
        diva_ray.embed({"text": ["", "a"]}, encoder="words", quiet=True, cluster=INLINE)
    (made,) = os.listdir(tmp_path)
    assert "quarantine" in os.listdir(tmp_path / made), "the reasons are there"
    assert score(base()).path.startswith(str(tmp_path / "diva_ray-"))


def test_a_mistake_leaves_no_empty_folder_that_was_not_there(tmp_path):
    numbers = {"features": X, "label": np.arange(N) / 7.0}
    late, out = "curate: relabel is for classes", tmp_path / "outputs/score/today"
    refuses(late, numbers, curate="relabel", output=str(out))
    assert os.listdir(tmp_path) == []
    (tmp_path / "outputs/score/yesterday").mkdir(parents=True)
    refuses(late, numbers, curate="relabel", output=str(out))
    assert os.listdir(tmp_path / "outputs/score") == ["yesterday"]
    out.mkdir()
    refuses(late, numbers, curate="relabel", output=str(out))
    assert out.is_dir(), "it was there before"
    with pytest.raises(InputError, match="edges"):
        diva_ray.embed({"text": ["a"]}, encoder="edges", quiet=True, cluster=INLINE, output=str(tmp_path / "emb"))
    assert os.listdir(tmp_path) == ["outputs"]


def test_more_workers_than_this_machine_has_cpus():
    start = time.perf_counter()
    refuses(r"cluster.workers: (this machine|the cluster) must have 5000 x 1 CPUs, got \d+.* Lower `cluster.workers`",
            base(), cluster={"kind": "local", "workers": 5000})  # fmt: skip
    assert time.perf_counter() - start < 5  # before any cluster is started


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_cpus(ray_cluster):
    refuses(r"cluster.workers: the cluster must have 5 x 1 CPUs, got 4 CPUs .* Lower `cluster.workers` to 4",
            base(), cluster={"kind": "ray", "workers": 5})  # fmt: skip
    refuses(
        r"cluster.gpus_per_worker: must be at most 1, because a worker uses one GPU, got 99",
        base(),
        cluster={"kind": "ray", "workers": 1, "gpus_per_worker": 99.0},
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


job = partial(run_job, "jobs/score.py")


@pytest.mark.parametrize(
    "words,told",
    [
        (["data=my/table"], "score: options must be .* got: .*'data/my/table'.* table. Set `data.path`. List them .*"),
        (["data=digts"], "score: options must be .* Did you mean `data=digits`[?] List them .*"),
        (["validation=x.parquet"], "score: options must be .*, got: .* Set `validation.path`. List them .*"),
        (["path=x"], "score: options must be .* 'path'.* Did you mean `data.path` or `validation.path`[?] List .*"),
        (["data/x.parquet"], "score: options must be .* KEY=VALUE, got data/x.* Write `data.path=data/x.parquet`."),
        (
            ["+ridg=3"],
            "score: options must be .* got: Key 'ridg' not in 'ScoreConfig'. Did you mean `ridge`[?] List .*",
        ),
        (
            ["seed=1", "data.lable=y"],
            "score: options must be .*'lable'.* 'DataConfig'. Did you mean `data.label`[?] List .*",
        ),
        (
            ["rigde=1"],
            r"score: options must be known and of the right type, got: .*rigde.*`python jobs/score.py --cfg job`.",
        ),
        (
            ["block_rows=many"],
            r"score: options must be .* got: .*block_rows=many.*'many'.* converted to Integer. List them .*",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_words_that_no_config_has_are_one_line(words, told):
    register()
    with pytest.raises(InputError) as caught:
        checked("score", [*map(quoted, words), "output=out"])
    assert re.fullmatch(told, plain(str(caught.value)))


@pytest.mark.jobs
@pytest.mark.parametrize(
    "words,told",
    [
        (["ridg=3"], "score: options must be .* got: .*'ridg'.* Did you mean `ridge`[?] List them .*"),
        (["data.path=no/x.parquet"], rf"data.path: .* nothing at no/x.parquet in {ROOT}. Change `data.path`."),
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
    (line,) = found.stderr.splitlines()
    assert re.fullmatch(told, line), found.stderr


@pytest.mark.jobs
def test_what_only_rows_can_tell_is_one_line_too(tmp_path):
    rows = np.eye(30)
    rows[7, 2] = np.nan
    pq.write_table(pa.table({"features": rows.tolist(), "label": [0, 1] * 15}), tmp_path / "rows.parquet")
    found = job(f"data.path={tmp_path}/rows.parquet", "cluster=inline", f"output={tmp_path / 'out'}")
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2 and line.startswith("data.features: column `features` must be finite, got nan at ")
    assert re.search("rows +30 in 1 shard;", found.stdout), "the plan is no mistake"
    assert not (tmp_path / "out").exists()


@pytest.mark.jobs
def test_a_run_to_which_nobody_listens_ends_well(tmp_path):
    pq.write_table(table(), tmp_path / "table.parquet")
    options = f"data.path={tmp_path}/table.parquet ridge=0.1 cluster=inline output={tmp_path}/out"
    command = f"{sys.executable} jobs/score.py {options} | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0 and found.stderr == "" and found.stdout.count("\n") == 1
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.jobs
@pytest.mark.parametrize("number,exit", [("SIGINT", 130), ("SIGTERM", 143)])  # Ctrl-C; a batch system's, a cluster's
def test_an_interrupted_run_says_in_one_line_how_to_go_on(number, exit, tmp_path):
    code = (
        "import os, signal, sys, time, diva_ray.tasks.score as score; from diva_ray.jobs import job\n"
        "from diva_ray import signals\n"
        "def run(config):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library may\n"
        "    signals.hear_again()\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    time.sleep(60)\n"
        f"score.run = run; sys.argv[1:] = ['output={tmp_path}/out']; job('diva_ray.tasks.score')"
    )
    (tmp_path / "interrupted.py").write_text(code)
    found = run_job(str(tmp_path / "interrupted.py"))
    assert found.returncode == exit, found.stderr
    assert found.stderr == "score: interrupted.\n"
    (tmp_path / "out").mkdir()
    assert run_job(str(tmp_path / "interrupted.py")).stderr == "score: interrupted.\n"  # nothing is there yet
    (tmp_path / "out" / "config.yaml").touch()
    found = run_job(str(tmp_path / "interrupted.py"))
    assert found.stderr == f"score: interrupted. `output={tmp_path}/out resume=true` goes on from what is there.\n"


@pytest.mark.jobs
@pytest.mark.parametrize("number,exit", [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_while_a_class_is_made_is_one_too(number, exit, tmp_path):
    """As where torch imports a part of its own in the middle of a run: Python 3.11 makes a RuntimeError of it."""
    code = (
        "import os, signal, sys, time, diva_ray.tasks.score as score; from diva_ray.jobs import job\n"
        "class Part:\n"
        "    def __set_name__(self, owner, name):\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "        time.sleep(60)\n"
        "def run(config):\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        "    class Whole:\n"
        "        part = Part()\n"
        f"score.run = run; sys.argv[1:] = ['output={tmp_path}/out']; job('diva_ray.tasks.score')"
    )
    (tmp_path / "interrupted.py").write_text(code)
    found = run_job(str(tmp_path / "interrupted.py"))
    assert (found.returncode, found.stderr) == (exit, "score: interrupted.\n"), found.stderr


@pytest.mark.jobs
@pytest.mark.parametrize("number,exit", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_job_that_is_interrupted_while_its_options_are_read_says_so_in_one_line(number, exit, tmp_path):
    code = (
        "import os, signal, sys, time, diva_ray.jobs as jobs\n"
        "def checked(name, words):\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    time.sleep(60)\n"
        "jobs.checked = checked; sys.argv[1:] = []; jobs.job('diva_ray.tasks.score')"
    )
    (tmp_path / "early.py").write_text(code)
    found = run_job(str(tmp_path / "early.py"))
    assert (found.returncode, found.stderr) == (exit, "score: interrupted.\n")


@pytest.mark.jobs
def test_a_config_of_ones_own_is_checked_as_the_jobs_is(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [score_schema, _self_, {cluster: inline}]\nridge: 2\ndata: {builtin: digits}\n"
    )
    (tmp_path / "other.yaml").write_text("defaults: [tune_schema, _self_]\n")
    (tmp_path / "bare.yaml").write_text("ridge: 2\n")
    mine = [f"--config-dir={tmp_path}", "--config-name=mine"]
    for words, told in (
        ([*mine, "rigde=1"], "score: options must be known and of the right type, got: .*'rigde'.*"),
        ([*mine[:1], "--config-name", "nine"], "score: options must be .* Cannot find primary config 'nine'.*"),
        ([f"--config-dir={tmp_path}/no", mine[1]], "--config-dir: a folder must be there, got nothing at .*/no.*"),
        ([mine[0], "-cn", "other"], "--config-name: a config of jobs/score.py .* got one of jobs/tune.py. Run that."),
        (["-m", "ridge=1,2", f"output={tmp_path}/x"], "output: every run of --multirun .*/x for all.*"),
        ([mine[0], "-cn", "bare"], "--config-name: .* got one without `score_schema` in its `defaults`."),
    ):
        found = job(*words)
        assert found.returncode == 2 and re.fullmatch(told, found.stderr.strip()), found.stderr
    found = job(*mine, "cluster=local", "cluster.workers=1", "plan=true")
    assert found.returncode == 0 and "cluster=local" in found.stdout, found.stderr


@pytest.mark.jobs
def test_the_job_ends_quickly_when_no_cluster_answers(tmp_path):
    found = job("cluster=ray", f"output={tmp_path / 'out'}", RAY_ADDRESS="127.0.0.1:1")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert line.startswith("cluster: a Ray cluster must answer, got ConnectionRefusedError"), found.stderr
    assert line.endswith("at 127.0.0.1:1. Start it, fix RAY_ADDRESS, or use `cluster=local`.")


@pytest.mark.jobs
def test_a_cluster_of_this_machine_that_has_died_is_told_at_once(tmp_path):
    """Ray leaves a note where it is; itself it would wait there for 100 s."""
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:1")
    code = (
        f"import os, sys, psutil; os.environ['RAY_TMPDIR'] = {str(tmp_path)!r}\n"
        "psutil.process_iter = lambda *given: iter(())  # other tests' clusters, which Ray would find\n"
        "from diva_ray.jobs import job\n"
        f"sys.argv[1:] = ['cluster=ray', 'output={tmp_path}/out']; job('diva_ray.tasks.score')"
    )
    (tmp_path / "asking.py").write_text(code)
    start = time.monotonic()
    found = run_job(str(tmp_path / "asking.py"))
    assert found.returncode == 2 and "Traceback" not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert re.search(r"must answer, got ConnectionRefusedError .* at 127.0.0.1:1\. Start it, fix RAY_ADDRESS", line), (
        line
    )
    assert time.monotonic() - start < 60, "Ray waits longer"


def test_arrays_in_place_of_names():
    refuses(
        r"data.features: must be a column's name or a list of names, got a ndarray. Put the array into the mapping",
        base(),
        features=X,
    )
    refuses(r"data.show: must be a column's name or a list of names, got a ndarray", base(), show=X)
    refuses(
        r'data.weight: must be a column.s name, got a ndarray. Put the array .*, "weight": array}, weight="weight".',
        base(),
        weight=np.ones(N),
    )
    refuses(r"data.label: must be a column's name, got a list. Put the array into the mapping", X, label=[0] * N)
    refuses(
        r"validation.path: must be a path, a Ray or Hugging Face Dataset, .*, a DataFrame or .*, got builtins.list",
        base(),
        validation=[1, 2],
    )
    refuses(
        r"validation.path: the table must have the same columns, got no `label`", base(), validation={"features": X}
    )
    refuses(r"cluster: must be auto, inline, local, ray or fields of ClusterConfig, got None", base(), cluster=None)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_is_a_small_number(seed):
    refuses(rf"seed: must be 0 to 4294967295, got {seed}. Change `seed`", base(), seed=seed)


def test_a_number_given_as_a_word():
    with pytest.raises(InputError, match=r"folds: must be int, got '5' \(str\). Change `folds`"):
        diva_ray.reweight(base(), folds="5", cluster=INLINE, quiet=True)


def test_a_loss_that_has_no_gradient():
    refuses(
        r"loss: the callable must be differentiable by autograd, got values that do not",
        base(),
        loss=lambda F, Y: 0 * F.sum(1).detach(),
    )


def test_curate_does_something():
    with pytest.raises(InputError, match=r"curate: must be drop, weight or relabel, got none"):
        diva_ray.curate(base(), "none", cluster=INLINE, quiet=True)


class Broken(torch.autograd.Function):
    """A function that breaks when it is differentiated."""

    @staticmethod
    def forward(ctx, F):
        return F.sum(1)

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back")


def raises(F, Y):
    return {}["temperature"]


def complains(F, Y):
    raise ValueError("outputs must be\npositive")


@pytest.mark.parametrize(
    "loss,kind,told",
    [
        (raises, KeyError, r"KeyError \('temperature'\)"),
        (complains, ValueError, r"ValueError \(outputs must be positive\)"),
        (lambda F, Y: Broken.apply(F), RuntimeError, r"RuntimeError \(no way back.*\)"),
        (lambda F: F.sum(1), TypeError, r"TypeError \(.*takes 1 positional argument but 2 were given\)"),
    ],
)
@pytest.mark.parametrize("n", [N, 3])  # by sums over rows, and by the n x n form
def test_a_loss_that_raises(loss, kind, told, n):
    data = {"features": np.random.default_rng(0).standard_normal((n, 4)), "label": np.arange(n) % 2}
    with pytest.raises(InputError, match=f"^loss: the callable must work on .*, got {told}. Change `loss`.$") as caught:
        diva_ray.score(data, loss=loss, quiet=True, cluster=INLINE, ridge=1.0)
    assert type(caught.value.__cause__) is kind


def test_a_loss_that_returns_no_tensor():
    refuses(
        r"loss: the callable must return a tensor of one value per row, got NoneType", base(), loss=lambda F, Y: None
    )


@pytest.mark.jobs
@pytest.mark.parametrize(
    "verb,told",
    [
        ("aggregate", "data.features: must name at least two bands, got features. Change `data.features`."),
        ("augment", "data.source: must name the column of transforms, got none. Set `data.source`."),
    ],
)
def test_a_table_of_ones_own_has_not_the_columns_of_the_built_in_one(verb, told, tmp_path):
    pq.write_table(pa.table({"features": list(X), "label": np.arange(len(X)) % 2}), tmp_path / "t.parquet")
    words = [f"jobs/{verb}.py", f"data.path={tmp_path / 't.parquet'}", f"output={tmp_path / 'out'}", "cluster=inline"]
    found = run_job(*words)
    assert found.returncode == 2 and found.stderr.strip() == told, found.stderr


def test_a_mistake_ends_the_process_without_waiting_for_threads_of_readers():
    code = (
        "import atexit, threading; from diva_ray.jobs import _leave; from diva_ray.errors import InputError; "
        "atexit.register(print, 'ended'); threading.Thread(target=threading.Event().wait, args=(60,)).start(); "
        "_leave(InputError('told'))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (2, "ended\n", "told\n")


@pytest.mark.parametrize("stays", [False, True])
def test_a_submitted_job_is_told_where_its_output_does_not_stay(stays, tmp_path):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    script = tmp_path / "submitted.py"
    script.write_text(f"import os; os.chdir({str(copy)!r})\nfrom diva_ray.jobs import job; job('diva_ray.tasks.score')")
    output = f"{tmp_path}/out" if stays else "out"
    found = run_job(str(script), "cluster=inline", "cluster.threads=1", "keep_sums=false", f"output={output}")
    assert found.returncode == 0, found.stderr
    assert ("output: `out` lies in the folder that Ray made for this job" in found.stderr) is not stays
