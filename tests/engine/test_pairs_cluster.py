"""Pairs on Ray: the same bits as inline with any number of workers, and when workers die."""

import numpy as np
import pytest

import diva_ray
from tests.engine.runs import killing
from tests.tasks.test_pairs import made, shuffled

pytestmark = pytest.mark.ray
OPTIONS = {"task": "pairs", "features": ["image", "text"], "group": "group", "quiet": True, "source": "source"}


@pytest.fixture(scope="module")
def table():
    data = shuffled(made(13_000, (8, 12), per_group=2, noise=0.6), 0.2)
    ids = [f"{k:032x}" for k in np.random.default_rng(0).permutation(13_000)]
    return {**data, "id": ids, "source": np.array(["crawl", "shop"])[np.arange(13_000) // 2 % 2]}


@pytest.mark.parametrize("errors", [pytest.param("exact", marks=pytest.mark.long), "estimate"])
def test_results_have_the_same_bits_inline_and_on_workers(ray_cluster, table, errors):
    data = {k: v[:4000] for k, v in table.items()}
    options = {**OPTIONS, "export": "datacomp", "standard_errors": errors}
    inline = diva_ray.score(data, cluster="inline", **options)
    result = diva_ray.score(data, cluster={"kind": "ray", "workers": 2}, **options)
    assert result.folder.read_table("samples").equals(inline.samples)
    assert result.summary["similarities"] == inline.summary["similarities"]
    assert result.folder.read("subset.npy") == inline.folder.read("subset.npy")
    assert result.folder.read("sources.parquet") == inline.folder.read("sources.parquet")


@pytest.mark.long
def test_the_dual_form_has_the_same_bits_on_workers(ray_cluster):
    data = {**made(1200, (1300, 6), noise=0.6), "source": np.array(["a", "b"])[np.arange(1200) % 2]}
    inline = diva_ray.score(data, cluster="inline", ridge=3.0, **OPTIONS)
    assert inline.summary["form"] == "dual"
    result = diva_ray.score(data, cluster={"kind": "ray", "workers": 1}, ridge=3.0, **OPTIONS)
    assert result.folder.read_table("samples").equals(inline.samples)


@pytest.mark.long  # `test_cluster` kills workers in every pass of another task
def test_killed_workers_change_no_bit(ray_cluster, table, monkeypatch):
    undisturbed = diva_ray.score(table, cluster="inline", **OPTIONS)
    killed = killing(monkeypatch)
    result = diva_ray.score(table, cluster={"kind": "ray", "workers": 2}, **OPTIONS)
    either = ["fit", "grid", "sample", "leave_one_out", "score", "estimated"]
    wanted = ["scan", "least_draws", *(f"{name} forward" for name in either), *(f"{name} backward" for name in either)]
    assert [name for name, _ in killed] == [*wanted, "join", "sample", "judge", "write"]
    assert len({pid for _, pid in killed}) == len(killed), "every kill must hit a process of its own"
    assert result.folder.read_table("samples").equals(undisturbed.samples)
    assert result.folder.read("sources.parquet") == undisturbed.folder.read("sources.parquet")
