"""Rows kept on disk or left in the table: the same bits as in memory, within the budget."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.data.reader import BATCH_BYTES
from diva_ray.errors import InputError
from diva_ray.tasks.setup.memory import Sizes

GENERATOR = np.random.default_rng(2)
N = 15_000
X = GENERATOR.standard_normal((N, 16)).astype(np.float16)
B = [None if k % 7 == 3 else row for k, row in enumerate(GENERATOR.standard_normal((N, 5)).astype(np.float32))]
Y = np.array([f"class {k}" for k in (X[:, :4].astype(np.float32) + GENERATOR.standard_normal((N, 4))).argmax(1)])
ROWS = {
    "x": X, "b": B, "label": Y, "id": np.array([f"row {k}" for k in GENERATOR.permutation(N)]),
    "group": np.sort(GENERATOR.integers(0, N // 2, N)), "weight": GENERATOR.random(N), "source": Y,
    "offset": list(GENERATOR.standard_normal((N, 4)) / 3), "v": GENERATOR.random(N),
}  # fmt: skip
COLUMNS = {"features": ["x", "b"], "group": "group", "weight": "weight", "source": "source", "offset": "offset"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The rows in files, the rows of a group side by side."""
    path = tmp_path_factory.mktemp("rows")
    columns = {k: list(v) if getattr(v, "ndim", 1) == 2 else v for k, v in ROWS.items()}
    table = pa.table(columns)
    for k in range(3):
        pq.write_table(table.slice(k * N // 3, N // 3), path / f"{k}.parquet", row_group_size=1700)
    return str(path)


def tight(path, place="cache", workers=1, **options):
    """Return a budget under which a worker keeps nothing in memory, from the plan's own figures."""
    options = {name: value for name, value in options.items() if name in ("features", "task", "source")}
    sizes = diva_ray.score(path, cluster="inline", plan=True, quiet=True, **{"features": "x", **options}).sizes
    assert sizes.need(place, workers) < sizes.need("memory", workers)
    return str(sizes.need(place, workers))


def where(path, place, **options):
    """Return the cluster options of one place."""
    if place == "memory":
        return {"kind": "inline", "threads": 1}
    cache = "none" if place == "storage" else "auto"
    return {"kind": "inline", "threads": 1, "memory": tight(path, place, **options), "cache": cache}


def same(one, two):
    """Assert that two results say the same, bit for bit."""
    assert one.samples.equals(two.samples)
    changing = ("seconds", "memory", "output", "workers")
    names = [name for name in one.summary if not any(word in name for word in changing)]
    assert {name: one.summary[name] for name in names} == {name: two.summary[name] for name in names}


@pytest.mark.parametrize(
    ("place", "columns"),
    [
        pytest.param("storage", {**COLUMNS, "validation_weight": "v"}, id="storage-all"),
        pytest.param("cache", {**COLUMNS, "validation_weight": "v"}, id="cache-all", marks=pytest.mark.long),
        pytest.param("cache", {"features": "x"}, id="cache-plain", marks=pytest.mark.long),
        pytest.param("storage", {"features": "x"}, id="storage-plain", marks=pytest.mark.long),
    ],
)
def test_scores_have_the_same_bits_wherever_rows_are_kept(folder, tmp_path, place, columns):
    first = diva_ray.score(folder, cluster=where(folder, "memory"), quiet=True, outputs=True, **columns)
    cluster = where(folder, place, **columns)
    plan = diva_ray.score(folder, cluster=cluster, plan=True, quiet=True, **columns)
    assert plan.keeping.place == place
    same(first, diva_ray.score(folder, cluster=cluster, quiet=True, outputs=True, **columns))


def test_scattered_groups_are_not_sorted_in_memory_that_is_too_small(folder, tmp_path):
    rows = pq.read_table(folder)
    pq.write_table(rows.take(pa.array(GENERATOR.permutation(N))), tmp_path / "scattered.parquet")
    path = str(tmp_path / "scattered.parquet")
    with pytest.raises(InputError, match=r"data.group: rows of a group must lie together .* Sort the table by `group`"):
        diva_ray.score(path, cluster=where(path, "cache"), features="x", group="group", quiet=True)


def test_an_update_has_the_same_bits_wherever_rows_are_kept(folder, tmp_path):
    rows = pq.read_table(folder)
    labels = rows["label"].to_pylist()
    labels[77] = next(label for label in labels if label != labels[77])
    at = rows.schema.get_field_index("label")
    pq.write_table(rows.set_column(at, "label", pa.array(labels)), tmp_path / "changed.parquet")
    path, results = str(tmp_path / "changed.parquet"), []
    for place in ("memory", "cache"):
        diva_ray.score(folder, cluster=where(folder, place), features="x", quiet=True, output=str(tmp_path / place))
        options = {"features": "x", "quiet": True, "update": str(tmp_path / place)}
        results.append(diva_ray.score(path, cluster=where(path, place), **options))
        assert results[-1].summary["update"]["rows_unchanged"] > N // 2
    assert results[0].samples.equals(results[1].samples)


@pytest.mark.long
@pytest.mark.parametrize("place", ["cache", "storage"])
def test_weight_steps_have_the_same_bits_wherever_rows_are_kept(folder, place):
    options = {"features": "x", "folds": 2, "steps": 1, "quiet": True}
    first = diva_ray.reweight(folder, cluster=where(folder, "memory"), **options)
    same(first, diva_ray.reweight(folder, cluster=where(folder, place), **options))


def test_a_pool_in_the_cache_is_chosen_from_like_one_in_storage(folder, tmp_path):
    core = {name: values[:400] for name, values in ROWS.items() if name in ("x", "label")}
    core["id"] = np.array([f"core {k}" for k in range(400)])
    found = []
    for cluster in (where(folder, "memory"), where(folder, "cache")):
        pq.write_table(pa.table({**core, "x": list(core["x"])}), tmp_path / "core.parquet")
        options = {"features": "x", "budget": 900, "rounds": 3, "quiet": True}
        found.append(diva_ray.extend(str(tmp_path / "core.parquet"), folder, cluster=cluster, **options))
    same(*found)


@pytest.mark.long  # the passes of an aggregation are those of scores
def test_shares_have_the_same_bits_wherever_rows_are_kept(folder):
    options = {"features": ["x", "b"], "starts": 1, "evaluations": 3, "quiet": True}
    first = diva_ray.aggregate(folder, cluster=where(folder, "memory"), **options)
    same(first, diva_ray.aggregate(folder, cluster=where(folder, "cache", **options), **options))


@pytest.mark.long  # the passes of pairs read rows as those of scores
def test_pairs_have_the_same_bits_wherever_rows_are_kept(tmp_path):
    A = GENERATOR.standard_normal((N, 6)).astype(np.float32)
    C = (A @ GENERATOR.standard_normal((6, 5)) + 0.3 * GENERATOR.standard_normal((N, 5))).astype(np.float32)
    pq.write_table(pa.table({"x": list(A), "b": list(C)}), tmp_path / "pairs.parquet")
    path, options = str(tmp_path / "pairs.parquet"), {"features": ["x", "b"], "task": "pairs", "quiet": True}
    first = diva_ray.score(path, cluster=where(path, "memory"), **options)
    same(first, diva_ray.score(path, cluster=where(path, "cache", **options), **options))


@pytest.mark.ray
def test_workers_keep_rows_on_disk_with_the_same_bits_and_one_may_be_killed(folder, ray_cluster):
    import signal

    import ray

    from diva_ray.engine.cluster import Cluster

    first = diva_ray.score(folder, cluster=where(folder, "memory"), quiet=True, **COLUMNS)
    memory = tight(folder, workers=1, **COLUMNS)
    whole, killed = Cluster.each, []

    def each_with_a_kill(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ == "score" and not killed:
                killed.append(ray.get(self.actors[0].process.remote()))
                os.kill(killed[0], signal.SIGKILL)
            yield partial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cluster, "each", each_with_a_kill)
        cluster = {"kind": "local", "workers": 1, "memory": memory}
        assert diva_ray.score(folder, cluster=cluster, plan=True, **COLUMNS).keeping.place == "cache"
        second = diva_ray.score(folder, cluster=cluster, quiet=True, **COLUMNS)
    assert killed
    assert first.samples.equals(second.folder.read_table("samples"))


def test_a_pool_that_passes_through_a_small_table_counts_in_what_a_worker_needs(folder, tmp_path):
    few = Sizes(1000, 1024, 100, 0, 4096, 0)
    assert replace(few, passing=10**6).need("memory", 1) - few.need("memory", 1) > 4 * BATCH_BYTES
    core = {name: values[:400] for name, values in ROWS.items() if name in ("x", "label")}
    pq.write_table(pa.table({**core, "x": list(core["x"])}), tmp_path / "core.parquet")
    options = {"features": "x", "id": "none", "cluster": {"kind": "inline", "threads": 1}, "plan": True}
    plan = diva_ray.extend(str(tmp_path / "core.parquet"), folder, **options)
    assert plan.sizes.passing == N
