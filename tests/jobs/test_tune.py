"""Searches with Ray Tune: what they find, same bits, early stopping, a killed driver, and the config they leave."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

import diva_ray
from diva_ray.config import ClusterConfig, DataConfig, TuneConfig
from diva_ray.tasks import tune
from diva_ray.tasks.fit.study import Study
from diva_ray.tasks.fit.trials import Trials
from tests.forks import run_job
from tests.jobs.problems import digits_split, weighted_error

ROOT = Path(__file__).resolve().parent.parent.parent
INLINE = {"kind": "inline", "threads": 1}
BANDS = [["image"], ["text"], ["image", "text"]]
RIDGES = {"loguniform": [0.1, 100.0]}
SPACE = {
    "bands": {"choice": BANDS}, "ridge": {"loguniform": [0.01, 100.0]}, "rule": {"choice": ["none", "shrink"]},
}  # fmt: skip


def two_bands(n=3000, seed=0):
    """Return a band that tells two classes apart, one that tells the third, and noise in both."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    image, text = generator.standard_normal((n, 10)), generator.standard_normal((n, 6))
    image[:, 0] += 2.0 * (y == 1)
    text[:, 0] += 2.0 * (y == 2)
    return {"image": image.astype(np.float32), "text": text.astype(np.float32), "label": y, "id": np.arange(n)}


def run(table=None, space=SPACE, **options):
    options = {"cluster": INLINE, "quiet": True, "trials": 6, "folds": 3, **options}
    return diva_ray.tune(two_bands() if table is None else table, space, features=["image", "text"], **options)


def told(result):
    """Return what must not depend on where a search ran: the trials without their seconds."""
    return result.trials.drop_columns(["seconds"])


@pytest.mark.ray
def test_the_best_bands_win_and_are_told_with_what_they_are_worth(ray_cluster, tmp_path):
    table, test = two_bands(1500), two_bands(2000, seed=1)
    inline = run(table, test=test, output=str(tmp_path / "inline"))
    s, trials = inline.summary, inline.trials.to_pandas()
    assert s["best"]["bands"] == ("image", "text")
    assert s["n_trials"] == s["n_complete"] == len(trials) == 6
    assert s["error"] == trials["error"].min()
    assert s["low"] < s["error"] < s["high"] and s["error_of_choosing"] >= s["error"]
    apart = s["test_error"]["error"] - s["error"]
    assert abs(apart) < 3 * np.hypot(s["test_error"]["standard_error"], s["standard_error"]), "drawn as the others"
    assert s["shared"]["passes"]["fit"] == 1
    assert s["shared"]["folds_judged"] == 18
    # The winner's options, as the other calls take them.
    target = getattr(diva_ray, s["target"])(two_bands(), cluster=INLINE, quiet=True, **inline.best)
    assert target.summary["ridge"] == pytest.approx(s["best"]["ridge"]) or s["target"] == "reweight"
    assert target.summary["n_features"] == 16


@pytest.mark.long  # below a driver is killed, and elsewhere workers are
@pytest.mark.ray
def test_a_dead_worker_and_a_dead_trial_change_no_bit(ray_cluster, monkeypatch, tmp_path):
    import ray

    from diva_ray.engine.cluster import Cluster

    space = {"rule": {"choice": ["none", "shrink"]}, "ridge": {"loguniform": [0.1, 10.0]}}
    calm = run(space=space, trials=3, folds=2)
    whole, killed = Cluster.each, []

    def each_with_a_death(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ == "propose" and "propose" not in killed:
                os.kill(ray.get(self.actors[0].process.remote()), signal.SIGKILL)
                killed.append("propose")
            elif k == 0 and kernel.__name__ == "model_errors" and "trial" not in killed:
                (trial,) = [one for one in psutil.Process().children(recursive=True) if "ImplicitFunc" in one.name()]
                trial.kill()
                killed.append("trial")
            yield partial

    monkeypatch.setattr(Cluster, "each", each_with_a_death)
    result = run(space=space, trials=3, folds=2, cluster={"kind": "ray", "workers": 2}, output=str(tmp_path / "out"))
    assert sorted(killed) == ["propose", "trial"]
    assert told(result).equals(told(calm))
    assert "weights" not in result.folder.names(""), "what only a restart needs is gone in the end"


@pytest.mark.ray
def test_a_trial_whose_process_dies_between_two_trials_is_asked_again(ray_cluster, monkeypatch, tmp_path):
    space, grid = {"ridge": {"choice": [0.1 * 1.5**k for k in range(12)]}}, {"search": "grid", "folds": 2}
    calm = run(space=space, **grid)
    evaluate, killed = Trials.evaluate, []

    def kill_at_reset():
        """Kill the trials' process as it is handed the next trial, which Tune gives up then."""
        (process,) = [one for one in psutil.Process().children(recursive=True) if "ImplicitFunc" in one.name()]
        title = Path(f"/proc/{process.pid}/cmdline")
        try:
            while b".reset" not in title.read_bytes():  # for a few milliseconds; if it is missed, before the next trial
                pass
        except OSError:  # the search has ended
            return
        process.kill()
        killed.append(process.pid)

    def evaluate_with_a_death(self, name, point, fold):
        found = evaluate(self, name, point, fold)
        if fold == 1 and len(self.records) == 2:
            threading.Thread(target=kill_at_reset, daemon=True).start()
            time.sleep(0.3)
        return found

    monkeypatch.setattr(Trials, "evaluate", evaluate_with_a_death)
    result = run(space=space, **grid, output=str(tmp_path / "out"))
    assert len(killed) == 1
    assert told(result).equals(told(calm))
    assert told(result)["trial"].to_pylist() == list(range(12))


@pytest.mark.ray
def test_a_grid_tries_every_combination_once_and_holds_the_best_refit(ray_cluster):
    X, y, _, X_test, y_test = digits_split(0.2)
    space = {"ridge": {"choice": [0.1, 1.0, 10.0]}, "projection": {"choice": [8, "none"]}, "standardize": "none"}
    result = diva_ray.tune(
        {"features": X, "label": y}, space, search="grid", folds=2, cluster=INLINE, quiet=True,
        test={"features": X_test, "label": y_test},
    )  # fmt: skip
    trials = result.trials.to_pandas()
    assert sorted(zip(trials["ridge"], trials["projection"].fillna(0), strict=True)) == [
        (ridge, projection) for ridge in (0.1, 1.0, 10.0) for projection in (0, 8)
    ]
    s = result.summary
    assert s["best"]["projection"] is None, "eight columns are too few"
    ours = weighted_error(X, y, np.ones(len(y)), s["best"]["ridge"], X_test, y_test)
    assert s["test_error"]["error"] == pytest.approx(ours, abs=1e-9)
    page = result.folder.read("report.html").decode()
    assert "of the best features (64 columns)" in page and "(of the best), on 2 outer folds" in page
    assert "leave-one-out" not in page.partition("The run")[2].partition("Search")[0]


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["inline", pytest.param("ray", marks=pytest.mark.long)])
def test_asha_stops_trials_that_are_behind_and_the_others_have_the_same_bits(ray_cluster, kind):
    table, test = two_bands(1200), two_bands(600, seed=1)
    whole = run(table, test=test, trials=8, folds=4)
    where = {"kind": "ray", "workers": 2} if kind == "ray" else INLINE
    halved = run(table, test=test, trials=8, folds=4, scheduler="asha", cluster=where)
    trials = halved.trials.to_pandas()
    assert halved.summary["n_stopped"] >= 2
    assert halved.summary["n_stopped"] + halved.summary["n_complete"] == 8
    assert halved.summary["shared"]["folds_judged"] == trials["folds"].sum() < 28
    assert (trials["folds"][trials["stopped"]] < 4).all()
    kept = told(whole).to_pandas()[~trials["stopped"]]
    pd.testing.assert_frame_equal(kept, told(halved).to_pandas()[~trials["stopped"]], check_exact=True)
    assert halved.summary["best"] == whole.summary["best"]
    assert halved.summary["test_error"] == whole.summary["test_error"]
    assert trials["error"][trials["stopped"]].mean() > kept["error"].mean()


@pytest.mark.ray
@pytest.mark.long
def test_optuna_searches_too_and_the_seed_decides(ray_cluster):
    pytest.importorskip("optuna")
    one, same = (run(search="optuna", trials=12) for _ in range(2))
    assert told(one).equals(told(same))
    assert not told(one)[:2].equals(told(run(search="optuna", trials=2, seed=1)))
    assert one.summary["best"]["bands"] == ("image", "text")


@pytest.mark.ray
def test_a_dead_desk_between_trials_and_driver_changes_no_bit(ray_cluster, monkeypatch):
    space, judge, killed = {"ridge": {"choice": [1.0]}}, Study.judge, []
    calm = run(two_bands(300), space, trials=1)

    def judged(self, choice, fold):
        if fold == 1 and not killed:
            (desk,) = [one for one in psutil.Process().children(recursive=True) if "ray::Desk" in one.name()]
            desk.kill()
            killed.append(desk.pid)
        return judge(self, choice, fold)

    monkeypatch.setattr(Study, "judge", judged)
    result = run(two_bands(300), space, trials=1)
    assert killed and told(result).equals(told(calm))


@pytest.mark.ray
def test_a_loss_of_the_space_may_be_code(ray_cluster):
    space = {"loss": {"choice": ["tests.jobs.problems:squared", "squared", "cross_entropy"]}, "rule": "paper"}
    found = run(two_bands(400), {**space, "eta": 1.0}, search="grid", trust_code=True, ridge=1.0)
    ours, squared, entropy = found.trials["fold_errors"].to_pylist()
    assert found.summary["n_failed"] == 0
    assert ours == squared != entropy


@pytest.mark.ray
@pytest.mark.long  # `test_the_best_bands` has a test table too
def test_every_row_of_a_test_table_a_ray_dataset_too_counts_whatever_it_weighs_in_validation(ray_cluster, tmp_path):
    table, test, space = two_bands(200), two_bands(100, seed=1), {"ridge": 1.0}
    v = np.random.default_rng(2).choice([0.0, 1.0], 100)
    table, test = {**table, "v": np.ones(200)}, {**test, "v": v}
    lists = {name: list(test[name]) for name in ("image", "text")}
    rows = ray.data.from_arrow(pa.table({**test, **lists}))
    options = {"validation_weight": "v", "trials": 1, "folds": 2}
    found = run(table, space, test=rows, output=str(tmp_path / "run"), **options)
    assert found.summary["test_error"]["rows"] == 100
    assert found.summary["test_error"] == run(table, space, test=test, **options).summary["test_error"]


@pytest.mark.ray
def test_a_trial_that_fails_is_told_and_the_others_go_on(ray_cluster):
    table = two_bands(60)
    table["image"] = np.tile(table["image"], (1, 8))  # the same columns again: no ridge, no solution
    space = {"ridge": {"choice": [0.0, 1.0]}, "standardize": "none"}
    result = run(table, space, search="grid", precision="float64")
    (failed,) = [row for row in result.trials.to_pylist() if row["failed"]]
    assert "positive definite" in failed["failed"] and failed["ridge"] == 0 and failed["error"] is None
    assert result.summary["n_failed"] == 1 and result.summary["n_complete"] == 1
    with pytest.raises(
        diva_ray.InputError, match=r"tune: some trial must succeed, got 1 that failed: ridge: .*Change `space`"
    ):
        run(table, {"ridge": 0.0, "standardize": "none"}, trials=1, precision="float64")


@pytest.mark.ray
def test_what_is_no_trials_fault_ends_the_search_and_a_resumed_one_goes_on(ray_cluster, tmp_path, monkeypatch):
    judge, judged = Study.judge, []
    gone = "data.path: every file must be readable Parquet, got OSError (timeout) at s3://b/x. Replace the file."

    def once_gone(self, choice, fold):
        judged.append(choice)
        if len(judged) == 5:
            raise diva_ray.InputError(gone)
        return judge(self, choice, fold)

    options = {"space": {"ridge": RIDGES}, "trials": 3, "output": str(tmp_path / "out")}
    monkeypatch.setattr(Study, "judge", once_gone)
    with pytest.raises(diva_ray.InputError, match=re.escape(gone)):
        run(two_bands(300), **options)
    assert not (tmp_path / "out" / "summary.json").exists()
    result = run(two_bands(300), **options, resume=True)
    assert result.summary["n_complete"] == 3 and len(judged) == 5 + 9 - 4, "four folds were judged before"
    monkeypatch.undo()
    assert told(result).equals(told(run(two_bands(300), space={"ridge": RIDGES}, trials=3)))


def job(*words):
    command = [sys.executable, "jobs/tune.py", "cluster=inline", "cluster.threads=1", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long  # above a search goes on in one process
@pytest.mark.ray
@pytest.mark.jobs
def test_a_killed_driver_goes_on_where_it_was_and_its_config_feeds_score(ray_cluster, tmp_path):
    words = [
        "trials=5",
        "folds=3",
        "space=none",
        "+space.ridge.loguniform=[0.1,10]",
        "+space.projection.choice=[24,none]",
    ]
    space = {"ridge": {"loguniform": [0.1, 10]}, "projection": {"choice": [24, "none"]}}
    here = {"data": DataConfig(builtin="digits"), "cluster": ClusterConfig(**INLINE), "output": str(tmp_path / "whole")}
    whole = tune.run(TuneConfig(space=space, trials=5, folds=3, **here), quiet=True)
    broken = tmp_path / "broken"
    first = job(*words, f"output={broken}")
    deadline = time.monotonic() + 120
    while len(list(broken.glob("folds/*.json"))) < 4 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in broken.glob("folds/*.json")}
    assert 4 <= len(before) < 15 and not (broken / "trials.parquet").exists()
    again = job(*words, f"output={broken}", "resume=true")
    said, complaint = again.communicate(timeout=300)
    assert again.returncode == 0, complaint
    assert "5 trials (5 whole" in said
    summary = json.loads((broken / "summary.json").read_text())
    assert summary["shared"]["folds_known_before"] == len(before)
    assert summary["shared"]["folds_judged"] == 15 - len(before)
    assert all((broken / "folds" / name).stat().st_mtime_ns == at for name, at in before.items())
    assert pq.read_table(broken / "trials.parquet").drop_columns(["seconds"]).equals(told(whole))
    written = {path.name for path in broken.iterdir()}
    assert {"trials.parquet", "best.yaml", "report.html", "summary.json", "config.yaml", "manifest.json"} <= written
    page = (broken / "report.html").read_text()
    assert "Error by projection" in page and "http" not in page.replace("http-equiv", "")
    score_with_best(broken, tmp_path / "scored", summary)


def score_with_best(folder, output, summary):
    """Run the target job with the config that the search has left."""
    best = yaml.safe_load((folder / "best.yaml").read_text())
    done = run_job("jobs/score.py", f"--config-dir={folder}", "--config-name=best", f"output={output}")
    assert done.returncode == 0, done.stderr
    scored = json.loads((output / "summary.json").read_text())
    assert scored["ridge"] == best["ridge"] == summary["best"]["ridge"]
    assert scored["n_features"] == (summary["best"]["projection"] or 64)
    used = yaml.safe_load((output / "config.yaml").read_text())
    assert used["projection"] == summary["best"]["projection"] and used["data"]["builtin"] == "digits"
