"""Modules of a user's own: what a run is resumed with, parameters that take no part, rows that are too few."""

import copy
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.engine import training
from diva_ray.errors import InputError
from tests.jobs.problems import Halves
from tests.jobs.test_train import INLINE, QUICK, noisy


def deep(p, c, width=8, act=torch.nn.ReLU):
    return torch.nn.Sequential(torch.nn.Linear(p, width), act(), torch.nn.Linear(width, c))


class Frozen(Halves):
    def __init__(self, p, c):
        super().__init__(p, c)
        self.requires_grad_(False)


@pytest.mark.parametrize("other", [{"width": 9}, {"act": torch.nn.Tanh}])
def test_a_run_goes_on_with_the_module_it_was_begun_with(tmp_path, monkeypatch, other):
    data, test, _ = noisy(200)
    options = {"cluster": INLINE, "output": str(tmp_path / "run"), **QUICK}
    save = training.save

    def dies(*given):
        save(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "save", dies)
        diva_ray.train(data, test, module=deep, **options)
    with pytest.raises(InputError, match=r"resume: .* must train the module that it was begun with, .* Use the same `"):
        diva_ray.train(data, test, module=lambda p, c: deep(p, c, **other), resume=True, **options)
    again = diva_ray.train(data, test, module=deep, resume=True, **options).summary["arms"]
    fresh = diva_ray.train(data, test, module=deep, cluster=INLINE, **QUICK).summary["arms"]
    assert [arm["per_seed"] for arm in again] == [arm["per_seed"] for arm in fresh]


def test_batch_normalisation_needs_two_rows():
    data, test, _ = noisy(100)

    def build(p, c):
        return torch.nn.Sequential(torch.nn.BatchNorm1d(p), torch.nn.Linear(p, c))

    with pytest.raises(
        InputError, match=r"batch_size: must give every worker 2 rows .* got 1 rows a step for 1 worker"
    ):
        diva_ray.train(data, test, module=build, batch_size=1, cluster=INLINE, **QUICK)
    assert diva_ray.train(data, test, module=build, batch_size=2, cluster=INLINE, epochs=1, seeds=1, quiet=True).summary
    assert diva_ray.train(data, test, batch_size=1, cluster=INLINE, epochs=1, seeds=1, quiet=True).summary


def test_batch_normalisation_needs_two_rows_of_positive_weight():
    data, test, _ = noisy(300)
    weight = (np.arange(300) < 3).astype(float)

    def build(p, c):
        return torch.nn.Sequential(torch.nn.BatchNorm1d(p), torch.nn.Linear(p, c))

    message = r"batch_size: must give every worker 2 rows .* one at most of a worker's, in arm \w+: rows of weight 0"
    for module, error in ((build, message), (None, None)):
        options = {"module": module, "weight": "w", "weights": None, "batch_size": 2, "cluster": INLINE, **QUICK}
        if error is None:
            assert diva_ray.train({**data, "w": weight}, test, **options).summary
            continue
        with pytest.raises(InputError, match=error):
            diva_ray.train({**data, "w": weight}, test, **options)


def test_a_module_that_is_always_the_same_net_is_refused():
    data, test, _ = noisy(300)
    net, body = torch.nn.Linear(12, 4), torch.nn.Linear(12, 12)
    shared = {
        "whole": lambda p, c: net,
        "body": lambda p, c: torch.nn.Sequential(body, torch.nn.Linear(p, c)),
    }
    for build in shared.values():
        with pytest.raises(InputError, match=r"module: must build new parameters every time, got 2 of the same"):
            diva_ray.train(data, test, module=build, cluster=INLINE, **QUICK)
    before = net.weight.clone()
    fresh = diva_ray.train(data, test, module=lambda p, c: copy.deepcopy(net), cluster=INLINE, **QUICK).summary["arms"]
    assert torch.equal(net.weight, before) and fresh[0]["per_seed"]
    for one in body.parameters():  # frozen, it may be shared
        one.requires_grad_(False)
    assert diva_ray.train(data, test, module=shared["body"], cluster=INLINE, **QUICK).summary


def test_the_callers_random_numbers_go_on_as_they_were():
    data, test, _ = noisy(300)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    diva_ray.train(data, test, cluster=INLINE, **QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_trainings_in_several_threads_are_those_of_one():
    data, test, _ = noisy(300)

    def errors(seed):
        return diva_ray.train(data, test, seed=seed, cluster=INLINE, **QUICK).summary["arms"][0]["per_seed"]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(errors, range(3)))
    assert together == [errors(seed) for seed in range(3)]


def test_a_module_without_anything_to_train_is_one_line():
    data, test, _ = noisy(100)
    with pytest.raises(InputError, match="module: must have parameters to train .* got 0 parameters"):
        diva_ray.train(data, test, module=Frozen, cluster=INLINE, **QUICK)


def test_parameters_without_a_gradient_are_left_alone():
    """On workers too: `test_train.test_a_killed_worker_is_replaced_and_training_goes_on`."""
    data, test, _ = noisy(300)
    result = diva_ray.train(data, test, cluster=INLINE, module=Halves, epochs=2, seeds=1, quiet=True)
    found = result.folder.read_arrays("model/model.npz")
    torch.manual_seed(0)
    new = Halves(12, 4).state_dict()
    for name in ("unused.weight", "frozen.weight"):
        np.testing.assert_array_equal(found[name], new[name])
    assert np.abs(found["used.weight"] - new["used.weight"].numpy()).max() > 0.01


def test_a_mended_test_table_costs_no_reweighting(tmp_path, monkeypatch):
    """Rows of the test table are looked at after the table is reweighted: what that found is not lost."""
    data, test, _ = noisy(400)
    bad = {**test, "features": np.where(np.arange(1000)[:, None] == 7, np.nan, test["features"])}
    for name, rows in (("train", data), ("test", bad), ("other", noisy(400, seed=1)[0])):
        write(tmp_path / f"{name}.parquet", rows)
    where = {"output": str(tmp_path / "run"), "weights": "auto", "cluster": INLINE, **QUICK}
    paths = [str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet")]
    with pytest.raises(InputError, match="test.parquet"):
        diva_ray.train(*paths, **where)
    before = (tmp_path / "run" / "reweight" / "summary.json").stat().st_mtime_ns
    write(tmp_path / "test.parquet", test)
    result = diva_ray.train(*paths, resume=True, **where)
    assert (tmp_path / "run" / "reweight" / "summary.json").stat().st_mtime_ns == before
    assert {arm["name"] for arm in result.summary["arms"]} >= {"weighted", "uniform"}
    write(tmp_path / "train.parquet", noisy(400, seed=1)[0])  # other rows under the same name
    with pytest.raises(InputError, match=r"resume: the weights in .* same data and options, got another data\.path"):
        diva_ray.train(*paths, resume=True, **where)
    write(tmp_path / "train.parquet", data)


def test_a_changed_test_table_is_named(tmp_path):
    data, test, _ = noisy(200)
    write(tmp_path / "test.parquet", test)
    options = {"cluster": INLINE, "output": str(tmp_path / "run"), **QUICK}
    diva_ray.train(data, str(tmp_path / "test.parquet"), **options)
    write(tmp_path / "test.parquet", noisy(200, seed=3)[1])
    with pytest.raises(InputError, match=r"must have the same data and options, got another test\.path"):
        diva_ray.train(data, str(tmp_path / "test.parquet"), resume=True, **options)


def test_a_ridge_relative_to_shares_is_taken_with_them_only():
    data, test, _ = noisy(600)
    columns = {"a": data["features"][:, :6], "b": 5 * data["features"][:, 6:], "label": data["label"]}
    probe = {"a": test["features"][:, :6], "b": 5 * test["features"][:, 6:], "label": test["label"]}
    options = {"features": ["a", "b"], "cluster": INLINE, "quiet": True}
    found = diva_ray.aggregate(columns, **options)
    short = {**options, "epochs": 1, "seeds": 1, "weights": found}
    alone = diva_ray.train(columns, probe, **{**short, "weights": None}).summary["ridge"]
    with_shares = diva_ray.train(columns, probe, shares=found, **short).summary["ridge"]
    assert with_shares == pytest.approx(found.summary["ridge"]) and alone != pytest.approx(with_shares, rel=0.05)
    assert diva_ray.train(columns, probe, **short).summary["ridge"] == pytest.approx(alone, rel=1e-6)


def write(path, rows):
    """Write columns of arrays as Parquet."""
    features = pa.array(list(rows["features"].astype(np.float32)))
    pq.write_table(pa.table({"features": features, "label": rows["label"]}), path)


@pytest.mark.ray
@pytest.mark.parametrize(
    "number,code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_training_on_ray_that_is_interrupted_ends_as_other_runs_do(tmp_path, number, code):
    data, test, _ = noisy(400)
    flat = pa.FixedSizeListArray.from_arrays
    for name, rows in (("data", data), ("test", test)):
        features = flat(pa.array(rows["features"].ravel()), 12)
        pq.write_table(pa.table({"features": features, "label": rows["label"]}), tmp_path / f"{name}.parquet")
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # no shell's background job
    (tmp_path / "start.py").write_text(start + "from diva_ray.jobs import job; job('diva_ray.tasks.train')")
    options = [f"data.path={tmp_path}/data.parquet", f"test.path={tmp_path}/test.parquet", f"output={tmp_path}/out",
               "cluster=local", "cluster.workers=1", "epochs=100000", "seeds=1", "weights=null"]  # fmt: skip
    command = [sys.executable, str(tmp_path / "start.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as job:
        until = time.monotonic() + 120
        while not (tmp_path / "out" / training.PROGRESS).exists():
            assert job.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        job.send_signal(number)
        _, said = job.communicate(timeout=60)
    assert job.returncode == code
    assert said.endswith(f"train: interrupted. `output={tmp_path}/out resume=true` goes on from what is there.\n")
    assert "Traceback" not in said
