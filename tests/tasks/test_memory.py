"""What a plan says a process needs: the rows that training shuffles, and the sums that weight steps change."""

import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.core.ridge import FitSums
from diva_ray.engine import course
from diva_ray.engine.course import Course, Share
from diva_ray.engine.kernels.steps import Each
from diva_ray.engine.reduce import add_in_order
from diva_ray.errors import InputError
from diva_ray.tasks.setup import make_plan, sight
from diva_ray.tasks.setup.memory import Sizes, check_fit

INLINE = {"kind": "inline", "threads": 1}


def table(n, p=64, seed=0):
    """Return rows of three classes."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)).astype(np.float16)
    return {"features": X, "label": (X[:, :3] + generator.standard_normal((n, 3))).argmax(1)}


def test_rows_that_training_shuffles_count_in_what_a_worker_needs():
    options = {"cluster": INLINE, "plan": True, "quiet": True}
    data, test = table(400_000), table(100)
    few, many = (diva_ray.train(data, test, window=window, **options).sizes for window in (1000, 400_000))
    assert many.need("cache", 1) - few.need("cache", 1) > 150_000 * 64 * 4
    assert diva_ray.score(data, **options).sizes.training(1) == 0


def test_a_window_that_does_not_fit_is_told_with_one_that_does():
    sizes = Sizes(rows=10**6, features=1024, rest=100, sums=0, shard=4096, group=0, window=400_000, trained=2064)
    budget = sizes.training(1) - (100 << 20)
    with pytest.raises(InputError, match=r"window: the rows .* with 400,000 rows\. Use `window=\d+` or less"):
        check_fit(sizes, "cache", 1, budget)
    most = sizes.most_window(1, budget)
    assert 300_000 < most < 400_000
    check_fit(Sizes(**{**vars(sizes), "window": most}), "cache", 1, budget)


def test_a_training_worker_holds_one_window_and_one_part_of_the_next(monkeypatch):
    windows, parts = [], []

    def gone(kept, most):
        kept[:] = [one for one in kept if one() is not None]
        return len(kept) <= most

    def window(self, start, stop, whole=Share.window):
        assert gone(windows, 0), "the last window is still there"
        found = whole(self, start, stop)
        windows.append(weakref.ref(found.Z))
        return found

    def read(self, rows, reader, start, stop, whole=Course.read):
        assert gone(parts, 0), "the last part is still there"
        found = whole(self, rows, reader, start, stop)
        parts.append(weakref.ref(found.Z))
        return found

    monkeypatch.setattr(course, "PIECE", 50)
    monkeypatch.setattr(Share, "window", window)
    monkeypatch.setattr(Course, "read", read)
    diva_ray.train(table(600, 5), table(40, 5), window=200, epochs=2, seeds=1, cluster=INLINE, quiet=True)
    assert parts or windows


def test_sums_of_several_weight_steps_are_added_in_place():
    parts = [
        Each(FitSums(torch.full((3, 3), float(k)), torch.full((3, 2), float(k))) for _ in range(3)) for k in range(4)
    ]
    first = parts[0] + parts[1]
    where = [one.gram.data_ptr() for one in first]
    total = add_in_order([first, parts[2], parts[3]])
    assert all(torch.equal(one.gram.triu(), torch.full((3, 3), 6.0, dtype=torch.float64).triu()) for one in total)
    added = first
    added += parts[2]
    assert [one.gram.data_ptr() for one in added] == where


@pytest.mark.parametrize("job", ["reweight", "joint", "augment"])
def test_sums_that_weight_steps_change_count_in_what_a_worker_needs(job):
    data = {**table(3000, 256), "other": table(3000, 4, 1)["features"]}
    options = {"features": ["features", "other"], "cluster": INLINE, "plan": True, "quiet": True}
    bare = diva_ray.aggregate(data, **options).sizes
    if job == "joint":
        found = diva_ray.aggregate(data, weights="joint", **options).sizes
    elif job == "augment":
        copies = {"source": np.array(["identity", "flip"] * 1500), "group": np.arange(3000) // 2}
        found = diva_ray.augment(data | copies, source="source", group="group", **options).sizes
    else:
        found = diva_ray.reweight(data, **options).sizes
    assert found.sums - bare.sums > 4 * 8 * 261**2


def test_fits_without_each_of_many_bands_count_in_what_a_worker_needs():
    parts = {f"x{k}": table(2000, 40, k)["features"] for k in range(8)}
    options = {"features": list(parts), "cluster": INLINE, "plan": True, "quiet": True}
    data = {**parts, "label": table(2000)["label"]}
    found, bare = (job(data, **options).sizes.sums for job in (diva_ray.aggregate, diva_ray.score))
    assert found - bare > 8 * 4 * 280**2


@pytest.fixture
def few_seen(monkeypatch):
    """600 rows in the order of their 300 classes, of which a plan sees 12."""
    monkeypatch.setattr(sight, "SEEN", 24)
    monkeypatch.setattr(sight, "STRETCHES", 3)
    X = np.random.default_rng(0).normal(size=(600, 200)).astype(np.float32)
    return {"features": X, "label": np.repeat(np.arange(300), 2)}


def test_classes_that_a_plan_did_not_see_count_when_the_scan_has_counted_them(few_seen, caplog):
    options = {"ridge": 1.0, "cluster": {"kind": "inline", "threads": 1}}
    plan = diva_ray.score(few_seen, plan=True, **options)
    assert 3 <= plan.outputs <= 15 and "at least" in plan.task
    caplog.set_level("INFO", "diva_ray")
    result = diva_ray.score(few_seen, **options)
    (told,) = [record.message for record in caplog.records if "classes where some rows showed" in record.message]
    assert (
        told.startswith(f"300 classes where some rows showed {plan.outputs}: ") and result.summary["n_samples"] == 600
    )

    room = plan.sizes.need("cache", 1) + (1 << 20)  # more than a plan with few classes needs
    tight = {**options, "cluster": {**options["cluster"], "memory": f"{room}"}}
    assert diva_ray.score(few_seen, plan=True, **tight).outputs == plan.outputs
    with pytest.raises(
        InputError, match=r"cluster.memory: a worker's rows and sums must fit .* Raise `cluster.memory`"
    ):
        diva_ray.score(few_seen, quiet=True, **tight)


@pytest.mark.parametrize("seen", [60, 600])
def test_sources_count_in_what_a_run_needs(seen, few_seen, caplog, monkeypatch):
    monkeypatch.setattr(sight, "SEEN", seen)
    monkeypatch.setattr(make_plan, "TOLD", 1 << 18)
    options = {"ridge": 1.0, "cluster": INLINE}
    own = {"label": np.arange(600) % 3, "source": np.arange(600).astype(str)}
    data = few_seen | own
    bare = diva_ray.score(few_seen | {"label": own["label"]}, plan=True, **options)
    plan = diva_ray.score(data, source="source", plan=True, **options)
    assert plan.sizes.sources == round(np.sqrt(600 * seen)) and plan.outputs == 3 and bare.sizes.sources == 0
    assert f"about {plan.sizes.sources:,} sources" in repr(plan)
    held = 16 * plan.sizes.sources * 8  # at least as many sums as sign vectors
    for need in (lambda sizes: sizes.need("memory", 1), lambda sizes: sizes.need("cache", 1), Sizes.driver):
        assert need(plan.sizes) - need(bare.sizes) > held

    caplog.set_level("INFO", "diva_ray")
    result = diva_ray.score(data, source="source", **options)
    told = [record.message for record in caplog.records if "600 sources where some rows showed" in record.message]
    assert len(told) == (seen < 600) and pq.read_table(f"{result.path}/sources.parquet").num_rows == 600


def test_few_sources_are_counted_as_they_are(monkeypatch):
    monkeypatch.setattr(sight, "SEEN", 1000)
    data = table(20_000) | {"source": np.arange(20_000) % 5}
    assert diva_ray.score(data, source="source", plan=True, cluster=INLINE).sizes.sources == 5


def test_few_rows_in_wide_bands_count_as_the_space_they_span():
    X = np.random.default_rng(0).normal(size=(200, 3, 2000)).astype(np.float32)
    data = {name: X[:, k] for k, name in enumerate("abc")} | {"label": (X[:, 0, 0] > 0).astype(int)}
    options = {"features": ["a", "b", "c"], "plan": True, "cluster": INLINE}
    for call in (diva_ray.reweight, diva_ray.aggregate):
        plan = call(data, **options)
        assert plan.features == 6000 and plan.sizes.sums < 8 * 6000**2
        assert plan.sizes.sums > 3 * 8 * 200 * 6000 + 24 * 600**2
    longer = {name: np.tile(value.T, 12).T for name, value in data.items()}  # of more rows than a band has columns
    assert diva_ray.reweight(longer, **options).sizes.sums > 24 * 6000**2
