"""The main job, run as a user runs it."""

import io
import json
import os
import re
import stat
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import diva_ray
from diva_ray.data.table import open_parquet
from diva_ray.errors import InputError
from tests.forks import run_job

ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = {
    "id": pa.int64(), "label": pa.int64(), "weight": pa.float32(), "derivative": pa.float32(),
    "standard_error": pa.float32(), "z": pa.float32(), "is_detrimental": pa.bool_(), "leverage": pa.float32(),
    "loss": pa.float32(), "margin": pa.float32(), "predicted_label": pa.int64(), "label_score": pa.float32(),
    "is_label_issue": pa.bool_(),
}  # fmt: skip


job = partial(run_job, "jobs/score.py")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return what the main job writes and says, from a Python that was started for it."""
    output = tmp_path_factory.mktemp("runs") / "digits"
    command = [sys.executable, "jobs/score.py", f"output={output}", "cluster=inline", "outputs=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.mark.jobs
def test_the_default_finds_most_planted_labels_and_says_so(digits):
    output, done = digits
    summary = json.loads((output / "summary.json").read_text())
    planted = summary["planted"]
    assert planted["n_planted"] == 359
    assert planted["auc_margin"] >= 0.996
    assert planted["f1"] >= 0.93
    assert abs(summary["label_issue_precision"] - planted["precision"]) < 0.06
    assert abs(summary["label_issue_recall"] - planted["recall"]) < 0.06
    assert f"found {planted['n_found']}" in done.stdout
    assert "leave-out" in done.stdout, "progress goes to the log"
    assert "rows_per_second=" in done.stdout


@pytest.mark.jobs
def test_it_writes_what_the_contract_promises(digits):
    output, _ = digits
    samples = pq.read_table(output / "samples")
    for name, kind in COLUMNS.items():
        assert samples.schema.field(name).type == kind, name
    assert samples.schema.field("loo_output").type == pa.list_(pa.float32())
    assert samples["id"].to_pylist() == list(range(1797))
    assert {path.name for path in output.iterdir()} >= {
        "samples", "summary.json", "manifest.json", "config.yaml", "report.html",
    }  # fmt: skip
    summary = json.loads((output / "summary.json").read_text())
    for name in (
        "n_samples", "n_features", "n_outputs", "ridge", "loss", "error", "threshold", "n_detrimental",
        "n_label_issues", "seconds", "peak_memory_bytes", "label_issue_precision", "label_issue_recall",
    ):  # fmt: skip
        assert name in summary
    z = samples["derivative"].to_numpy() / samples["standard_error"].to_numpy()
    np.testing.assert_allclose(samples["z"].to_numpy(), z, rtol=1e-6)
    assert np.array_equal(samples["is_detrimental"].to_numpy(), samples["z"].to_numpy() > summary["threshold"])
    assert np.array_equal(
        samples["is_label_issue"].to_numpy(), samples["label_score"].to_numpy() < summary["label_threshold"]
    )
    assert summary["n_detrimental"] == samples["is_detrimental"].to_numpy().sum()
    assert summary["loss"] == pytest.approx(samples["loss"].to_numpy().mean(), rel=1e-5)
    wrong = samples["predicted_label"].to_numpy() != samples["label"].to_numpy()
    assert summary["error"] == pytest.approx(wrong.mean())
    manifest = json.loads((output / "manifest.json").read_text())
    assert {"diva_ray", "ray", "torch", "data", "start", "end", "cluster"} <= manifest.keys()


@pytest.mark.jobs
def test_the_page_shows_pictures_and_needs_no_network(digits):
    output, _ = digits
    page = (output / "report.html").read_text()
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend((tag, name, value) for name, value in attrs)

    Parser().feed(page)
    pictures = [value for tag, name, value in found if tag == "img" and name == "src"]
    assert len(pictures) >= 20
    assert all(value.startswith("data:image/") for value in pictures)
    assert not [v for _, name, v in found if name in ("src", "href") and str(v).startswith(("http", "//"))]
    assert ("table", "aria-label", "time and memory") in found


@pytest.mark.jobs
def test_plan_prints_and_writes_nothing(tmp_path):
    done = job(f"output={tmp_path / 'run'}", "plan=true")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    for word in ("rows", "1,797", "memory", "passes", "time", "inline"):
        assert word in done.stdout


@pytest.mark.jobs
@pytest.mark.ray
def test_the_job_on_a_ray_of_its_own_gives_the_same_rows(digits, tmp_path):
    output, _ = digits
    token = tmp_path / "ray" / "token"
    words = (f"output={tmp_path / 'run'}", "cluster=local", "cluster.workers=2", "outputs=true")
    done = job(*words, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(token.stat().st_mode) == 0o600, "what Ray asks of whoever connects is its owner's alone"
    assert pq.read_table(tmp_path / "run" / "samples").equals(pq.read_table(output / "samples"))


def test_left_out_outputs_go_into_cleanlab():
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    from diva_ray.data.sources import digits as table

    rows = table(0.2, 0)
    result = diva_ray.score(rows, truth="true_label", cluster="inline", outputs=True, quiet=True)
    probabilities = result.pred_probs()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-9)
    labels = rows["label"].to_numpy()
    wrong = labels != rows["true_label"].to_numpy()
    issues = find_label_issues(labels, probabilities)
    assert (issues & wrong).sum() / wrong.sum() > 0.85
    assert (issues & wrong).sum() / issues.sum() > 0.85
    quality = get_label_quality_scores(labels, probabilities)
    assert quality[wrong].mean() < 0.2
    assert quality[~wrong].mean() > 0.5


def test_resume_keeps_finished_parts_and_refuses_another_run(tmp_path, task, caplog):
    output = str(tmp_path / "run")
    whole = diva_ray.score(task, cluster="inline", output=output, quiet=True)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "samples").iterdir()}
    gone = sorted(before)[3]
    (tmp_path / "run" / "samples" / gone).unlink()
    with pytest.raises(InputError, match="output: the folder must be new or empty"):
        diva_ray.score(task, cluster="inline", output=output, quiet=True)
    with pytest.raises(InputError, match=r"resume: .* same data and options, got another ridge"):
        diva_ray.score(task, cluster="inline", output=output, resume=True, ridge=3.0, quiet=True)
    with caplog.at_level("INFO", "diva_ray"):
        again = diva_ray.score(task, cluster="inline", output=output, resume=True, quiet=True)
    assert any("had finished, but not all of samples is there" in line for line in caplog.messages)
    assert again.folder.read_table("samples").equals(whole.samples)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "samples").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {gone}


def test_a_finished_run_that_is_resumed_is_not_computed_again(tmp_path, monkeypatch, caplog):
    output, options = str(tmp_path / "run"), {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    data = {"features": np.random.default_rng(0).standard_normal((60, 3)), "label": np.arange(60) % 2}
    first = diva_ray.score(data, output=output, **options)
    (tmp_path / "run" / "steps").mkdir()  # killed while it cleared away what only an unfinished run needs
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("diva_ray.tasks.setup.begin.open_session", None)  # no table is read, no cluster asked
    with caplog.at_level("INFO", "diva_ray"):
        again = diva_ray.score(data, output=output, resume=True, **options)
    assert any("had finished: nothing is left to do" in line for line in caplog.messages)
    assert again.samples.equals(first.samples)
    assert (again.told, json.dumps(again.summary)) == (first.told, json.dumps(first.summary))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == times
    assert not (tmp_path / "run" / "steps").exists()
    with pytest.raises(InputError, match="same data and options, got another seed"):
        diva_ray.score(data, output=output, resume=True, seed=3, **options)
    data["features"][0, 0] += 1.0
    with pytest.raises(InputError, match="same data and options, got another data.path"):
        diva_ray.score(data, output=output, resume=True, **options)


def test_a_table_is_the_same_however_its_path_is_written(tmp_path, monkeypatch):
    X = np.random.default_rng(0).standard_normal((60, 3))
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"features": list(X), "label": np.arange(60) % 2}), tmp_path / "table" / "a.parquet")
    options = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True, "output": tmp_path / "run"}
    monkeypatch.chdir(tmp_path)
    first = diva_ray.score("table", **options)
    for path in ("table/", "./table", str(tmp_path / "table"), "../" + tmp_path.name + "/table"):
        assert diva_ray.score(path, resume=True, **options).samples.equals(first.samples)


def test_a_run_whose_output_lies_in_the_folder_of_its_table_is_resumed(tmp_path):
    X = np.random.default_rng(0).standard_normal((60, 3))
    pq.write_table(pa.table({"features": list(X), "label": (X[:, 0] > 0).astype(int)}), tmp_path / "table.parquet")
    options = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    first = diva_ray.score(tmp_path, output=tmp_path / "runs" / "one", **options)
    for path in (tmp_path, tmp_path.as_uri()):  # nor does another run read what the first one wrote
        assert diva_ray.score(path, **options).samples.equals(first.samples)
    assert diva_ray.score(tmp_path, output=tmp_path / "runs" / "one", resume=True, curate="drop", **options).told
    assert open_parquet(str(tmp_path / "runs" / "one")).rows == 60  # the curated copy, where it is asked for


def test_a_notebook_shows_results_and_plans_as_a_terminal_does():
    data = {"features": np.random.default_rng(0).standard_normal((30, 2)), "label": np.arange(30) % 2}
    options = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    result, plan = diva_ray.score(data, **options), diva_ray.score(data, plan=True, **options)
    assert repr(result).startswith("30 samples, leave-one-out error ") and repr(result).endswith("report.html")
    assert repr(plan).splitlines() == plan.lines()


def test_numbers_to_show_are_short_and_have_their_names():
    X = np.random.default_rng(0).standard_normal((40, 3))
    rows = {"features": X, "label": np.arange(40) % 2, "age": np.full(40, 100 / 3), "name": ["Ann"] * 40}
    result = diva_ray.score(
        rows, show=["age", "name", "features"], cluster={"kind": "inline", "threads": 1}, quiet=True
    )
    assert '">age 33.33 | Ann | features ' in result.folder.read("report.html").decode()


@pytest.mark.parametrize("show", ["auto", "image"])
def test_pictures_of_hugging_face_are_shown(show):
    out = io.BytesIO()
    Image.new("RGB", (12, 12), "red").save(out, "png")
    pictures = pa.array([{"bytes": out.getvalue(), "path": f"{k}.png"} for k in range(30)])
    rows = {
        "features": np.random.default_rng(0).standard_normal((30, 2)),
        "label": np.arange(30) % 2,
        "image": pictures,
    }
    result = diva_ray.score(rows, show=show, cluster={"kind": "inline", "threads": 1}, quiet=True)
    assert result.folder.read("report.html").count(b'src="data:image/png;base64,') > 5


@pytest.mark.jobs
def test_a_run_is_run_again_from_its_config(digits, tmp_path):
    output, _ = digits
    # in any order, flags between overrides too
    words = ["cluster=inline", f"--config-dir={output}", f"output={tmp_path / 'again'}", "--config-name", "config"]
    done = job(*words)
    assert done.returncode == 0, done.stderr
    first, again = (pq.read_table(folder / "samples") for folder in (output, tmp_path / "again"))
    assert again.equals(first)
    used = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (output, tmp_path / "again")]
    assert {**used[0], "output": str(tmp_path / "again")} == used[1]


def test_what_hurts_though_it_is_predicted_right_is_counted_and_told():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    options = {"quiet": True, "cluster": {"kind": "inline", "threads": 1}, "ridge": 0.5}
    result = diva_ray.score({"features": X[:600], "label": y[:600]}, **options)
    rows = result.samples.to_pandas()
    right = rows["is_detrimental"] & (rows["predicted_label"] == rows["label"]) & (rows["label_score"] > 0.5)
    n, hurt = result.summary["n_detrimental_right"], result.summary["n_detrimental"]
    assert n == right.sum() > hurt / 2
    told = (
        f"{n} of {hurt} that hurt are predicted right without themselves: they raise the loss, not the count of errors"
    )
    assert f"note: {told}; deleting them is unlikely to help." in result.lines()
    page = result.folder.read("report.html").decode()
    assert told in page and "raises the error" not in page
    assert "most of them by the loss alone: they are predicted right." in page
    assert result.summary["n_label_issues"] == 0 and "Most doubtful labels (none is called wrong)" in page
    noisy = np.where(np.arange(600) % 5 == 0, (y[:600] + 1 + np.arange(600) % 9) % 10, y[:600])
    other = diva_ray.score({"features": X[:600], "label": noisy}, **options)
    assert not any("deleting them" in line for line in other.lines())
    page = other.folder.read("report.html").decode()
    assert "by the loss alone" not in page and "The labels that look most wrong" in page and "Most doubtful" not in page


def test_the_first_command_of_the_readme_has_no_options(tmp_path):
    command = [sys.executable, ROOT / "jobs" / "score.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()[-5:]
    assert told[0].startswith("1,797 samples, leave-one-out error 0.2571") and told[2].startswith("planted 359 wrong")
    (folder,) = (tmp_path / "outputs" / "score").iterdir()
    words = re.findall(r"\w+=\S+", told[4])
    assert words == [f"output={folder}", "resume=true", "curate=drop"]
    again = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout.splitlines()[-2].startswith("curated copy: 1,436 rows, 361 dropped") and "next" not in again.stdout
    )
    assert told[3] == f"report: {folder / 'report.html'}" and (folder / "report.html").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's own")
@pytest.mark.parametrize("words", [["--help"], ["cluster=inline", "data.noise=0.1"]])
def test_output_that_cannot_be_written_is_one_line_and_no_success(words, tmp_path):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "score.py"), *words], stdout=full, stderr=subprocess.PIPE, text=True,
            cwd=tmp_path, check=False,
        )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.count("standard output could not be written") == 1 and "Traceback" not in run.stderr
    assert words == ["--help"] or len(list(tmp_path.rglob("manifest.json"))) == 1
