"""Modules of a user's own: what a run is resumed with, parameters that take no part, rows that are too few."""

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
