"""The same bits inline and on Ray, with any number of workers, and when workers die."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import diva_ray
from diva_ray.core import reduction
from diva_ray.data.folder import Folder
from diva_ray.engine.kernels import passes
from diva_ray.engine.reduce import Tally
from diva_ray.errors import InputError
from diva_ray.tasks.setup.plan import Plan
from tests.engine.runs import begun, killing, opened, small_task

pytestmark = pytest.mark.ray


@pytest.mark.long  # one worker and three have them in `test_nodes`, two in most of the tests of jobs
def test_results_have_the_same_bits_inline_and_with_three_workers(ray_cluster, task):
    inline = diva_ray.score(task, source="source", cluster="inline", quiet=True, outputs=True, labeller_doubt="on")
    where = {"kind": "ray", "workers": 3}
    result = diva_ray.score(task, source="source", cluster=where, quiet=True, outputs=True, labeller_doubt="on")
    assert result.folder.read_table("samples").equals(inline.samples)
    for name in ("loss", "error", "ridge", "ridge_derivative", "threshold", "label_threshold"):
        assert result.summary[name] == inline.summary[name], name


@pytest.mark.long
def test_a_ridge_chosen_under_tiles_has_the_same_bits_inline_and_on_ray(ray_cluster, task, monkeypatch):
    monkeypatch.setattr(reduction, "NARROWEST", 1)  # of this process: workers are told
    monkeypatch.setattr(reduction, "ROWS", 1e9)
    monkeypatch.setattr(reduction, "WIDTH", 5)
    grids = [
        diva_ray.score(task, cluster=where, quiet=True).summary["ridge_grid"]
        for where in ("inline", {"kind": "ray", "workers": 2})
    ]
    assert len(grids[0]) == 20 and grids[0] == grids[1]


PASSES = [
    "scan", "fit_parts", "grid", "sample", "leave_one_out", "score", "estimated", "calibrate", "judge",
    "least_draws", "sample_facts", "sample_whitened", "nearest", "class_odds", "write",
]  # fmt: skip


@pytest.mark.long  # `test_nodes` kills workers in three passes
def test_killed_workers_change_no_bit(ray_cluster, task, monkeypatch):
    X, wrong = task["features"], np.random.default_rng(2).random(13_000) < 0.1
    y = np.where(wrong, X[:, 5:10].argmax(1), X[:, :5].argmax(1))  # labels whose errors show: all passes are run
    table = {**task, "label": np.array([f"class {k}" for k in y])}
    options = {"source": "source", "quiet": True, "labeller_doubt": "on"}
    undisturbed = diva_ray.score(table, cluster="inline", **options)
    killed = killing(monkeypatch)
    result = diva_ray.score(table, cluster={"kind": "ray", "workers": 2}, **options)
    assert [name for name, _ in killed] == PASSES
    assert len({pid for _, pid in killed}) == len(killed), "every kill must hit a process of its own"
    assert result.folder.read_table("samples").equals(undisturbed.samples)


@pytest.mark.long  # `jobs/test_reweight` kills workers among weight steps too
def test_weight_steps_survive_a_killed_worker_with_the_same_bits(ray_cluster, tmp_path):
    import ray

    losses = {}
    for kind in ("inline", "ray"):
        runner, setup = opened(small_task(), kind, workers=2, folder=tmp_path / kind)
        walk, sums = begun(runner, setup, 0.01, Folder(str(tmp_path / kind)))
        losses[kind] = []
        for step in range(3):
            losses[kind].append(walk.leave_out(walk.solve(sums)).tally["loss"])
            if kind == "ray":
                os.kill(ray.get(runner.engine.actors[step % 2].process.remote()), signal.SIGKILL)
            sums = walk.move(walk.solve(sums))
        runner.engine.close()
    assert losses["ray"] == losses["inline"]
    assert losses["inline"][2] < losses["inline"][1] < losses["inline"][0]


def test_a_mistake_is_all_that_is_told(ray_cluster, capfd):
    # Before the test below, whose stuck task Ray tells of when it likes.
    runner, _ = opened(small_task(n=9000), "ray", workers=1)

    def mistaken(shard, known):
        if shard.extent.index == 0:
            raise InputError("data: a mistake.")
        time.sleep(0.5)

    with pytest.raises(InputError, match="a mistake"):
        runner.run(mistaken, "mistaken")
    runner.engine.close()
    time.sleep(1.0)  # Ray tells what failed from a thread of its own
    said = capfd.readouterr()
    assert "failed" not in said.out + said.err


def test_a_stuck_pass_ends_with_a_message(ray_cluster):
    runner, _ = opened(small_task(), "ray", workers=1, pass_timeout=1.0)

    def stuck(shard, known):
        time.sleep(60)

    with pytest.raises(
        InputError, match=r"cluster: a unit of shards must be finished every 1 s, got none .* worker 0.*pass_timeout"
    ):
        runner.run(stuck, "stuck")
    runner.engine.close()


def test_nodes_that_are_lost_while_a_pass_waits_are_named(ray_cluster, monkeypatch, caplog):
    from diva_ray.engine import cluster

    monkeypatch.setattr(cluster, "LOOK", 0.3)
    runner, _ = opened(small_task(), "ray", workers=1)
    monkeypatch.setattr(cluster, "_nodes", lambda there=cluster._nodes: there() - 1)  # none is killed: others use them

    def slow(shard, known):
        time.sleep(1.5)
        return Tally(rows=1)

    runner.run(slow, "slow")
    said = [line for line in caplog.messages if "workers of those lost wait" in line]
    assert len(said) == 1
    assert re.match(r"cluster: \d of \d nodes are there, with [\d.]+ CPUs free", said[0])
    runner.engine.close()


def test_a_worker_that_does_not_answer_is_one_line(ray_cluster):
    import ray

    from diva_ray.engine.cluster import fetch

    with pytest.raises(InputError, match=r"cluster: a worker must answer within 0.1 s, got nothing.*pass_timeout"):
        fetch(ray.remote(lambda: time.sleep(2)).remote(), 0.1)


def test_workers_that_cannot_start_end_with_a_message(ray_cluster):
    import ray

    @ray.remote(num_cpus=4)
    class Hog:
        def ready(self):
            return True

    hog = Hog.remote()
    ray.get(hog.ready.remote())
    with pytest.raises(
        InputError, match=r"cluster: every worker must have started within 2 s, got 0 of 1.*start_timeout"
    ):
        opened(small_task(), "ray", workers=1, start_timeout=2.0)
    ray.kill(hog)


def test_more_workers_than_the_cluster_holds_is_an_error_before_anything_starts(ray_cluster, task):
    with pytest.raises(
        InputError, match=r"cluster.workers: the cluster must have 9 x 1 CPUs, got 4 CPUs.*to 4 or less"
    ):
        diva_ray.score(task, cluster={"kind": "ray", "workers": 9}, quiet=True)


def test_a_ray_dataset_is_scored_like_its_rows(ray_cluster, tmp_path):
    import pyarrow.parquet as pq
    import ray

    X, y = small_task()["features"], small_task()["label"]
    items = [{"id": int(k), "features": X[k], "label": int(y[k])} for k in range(1500)]
    dataset = ray.data.from_items(items, override_num_blocks=2)  # two processes read it, not one a CPU
    result = diva_ray.score(dataset, cluster={"kind": "ray", "workers": 1}, output=str(tmp_path / "run"), quiet=True)
    assert sorted(pq.read_table(tmp_path / "run" / "table")["id"].to_pylist()) == list(range(1500))
    alone = diva_ray.score(
        {"id": np.arange(1500), "features": X[:1500], "label": y[:1500]}, cluster="inline", quiet=True
    )
    got = result.samples.to_pandas().sort_values("id")
    np.testing.assert_allclose(got["derivative"], alone.samples["derivative"].to_numpy(), rtol=1e-3, atol=1e-6)
    plan = diva_ray.score(dataset, cluster="ray", output=str(tmp_path / "plan"), plan=True)
    assert isinstance(plan, Plan)
    assert any("table" in note for note in plan.notes)
    assert plan.rows == 1500  # not those few that it looked at


@pytest.mark.parametrize("options", [{}, {"plan": True}])
def test_a_ray_dataset_without_rows_is_told_by_its_name(ray_cluster, tmp_path, options):
    import ray

    data = {"features": small_task()["features"], "label": small_task()["label"]}
    empty = ray.data.from_items([{"features": [1.0], "label": 0}]).limit(0)
    where = {"cluster": {"kind": "ray", "workers": 1}, "output": str(tmp_path / "run"), "quiet": True}
    with pytest.raises(InputError, match=r"^data: the table must have rows, got 0 in the given Ray Dataset\."):
        diva_ray.score(empty, **where, **options)
    with pytest.raises(InputError, match=r"^pool\.path: the table must have rows, got 0 in the given Ray Dataset\."):
        diva_ray.extend(data, empty, **where, **options)
    assert not (tmp_path / "run").exists()


def test_kernels_see_tensors_without_a_copy_of_their_own(ray_cluster):
    """What a pass is told lies in memory that processes share; torch forgets that numpy may only read it."""
    told = torch.arange(200_000.0)

    def lies(shard, known):
        at = known["told"].data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            if start <= at < end:
                return torch.tensor([line.split()[1][3] == "s", torch.equal(known["told"], torch.arange(200_000.0))])
        raise AssertionError("an address that the process does not have")

    runner, setup = opened(small_task(), "ray", workers=1)
    runner.engine.tell(setup=setup, told=told)
    assert runner.run(lies, "lies").tolist() == [True, True]
    runner.engine.close()


@pytest.mark.parametrize("unit", [pytest.param(1, marks=pytest.mark.long), 2])
def test_sections_that_workers_share_have_the_same_bits(ray_cluster, monkeypatch, unit):
    """Tables of many shards are added in sections of units, by the workers."""
    from diva_ray.engine import reduce

    monkeypatch.setattr(reduce, "UNIT", unit)
    monkeypatch.setattr(reduce, "SECTIONS", 2)
    data, sums = small_task(n=14_000), []
    for cluster in ({"kind": "inline"}, {"kind": "ray", "workers": 2}):
        runner, setup = opened(data, **cluster)
        assert [len(section) for section in reduce.sections(runner.engine.extents)] == [6 // unit] * 2
        runner.engine.tell(setup=setup)
        seen = []
        monkeypatch.setattr("diva_ray.tasks.setup.runner.Progress.add", lambda _, rows, seen=seen: seen.append(rows))
        sums.append(runner.run(passes.fit, "fit"))
        assert sum(seen) == 14_000
        runner.engine.close()
    one, other = sums
    assert torch.equal(other.gram, one.gram) and torch.equal(other.cross, one.cross)
