"""What the passes promise on any engine, tested where it is cheapest."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import diva_ray
from diva_ray.engine import context
from diva_ray.engine.kernels import passes, steps
from diva_ray.tasks.fit import derive as deriving
from diva_ray.tasks.fit.derive import derive, fit_ridge
from diva_ray.tasks.setup import make_plan as planned
from tests.engine.runs import begun, opened, small_task


def scored(runner):
    return torch.cat([shard.state["scored"][:, 0] for shard in runner.engine.shards])


@pytest.mark.parametrize("n,block_rows", [(300, 1), (3000, 37), (3000, 512), (3000, 100_000)])
def test_block_size_does_not_matter_beyond_rounding(n, block_rows):
    derivatives = []
    for rows in (2048, block_rows):
        runner, setup = opened(small_task(n), block_rows=rows, precision="float64")
        derive(runner, setup, 3.0, n, "none")
        derivatives.append(scored(runner))
    torch.testing.assert_close(*derivatives, rtol=0, atol=1e-12 * float(derivatives[0].abs().max()))


def test_row_order_does_not_matter_beyond_rounding():
    data = small_task()
    order = np.random.default_rng(1).permutation(3000)
    derivatives = []
    for rows in (np.arange(3000), order):
        runner, setup = opened({name: values[rows] for name, values in data.items()}, precision="float64")
        derive(runner, setup, 3.0, 3000, "none")
        derivatives.append(scored(runner))
    one, other = derivatives[0][torch.from_numpy(order)], derivatives[1]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * float(one.abs().max()))


def test_a_plain_weight_step_reads_every_block_twice(monkeypatch):
    runner, setup = opened(small_task())
    walk, sums = begun(runner, setup, 0.01)
    reads = []
    monkeypatch.setattr(context, "prepare", lambda *a, whole=context.prepare: reads.append(a[2] - a[1]) or whole(*a))
    for _ in range(3):
        sums = walk.move(walk.solve(sums))
    assert sum(reads) == 3 * 2 * 3000


def test_weight_steps_equal_steps_from_scratch():
    data = small_task()
    alpha = torch.ones(3000, dtype=torch.float64)
    runner, setup = opened(data, precision="float64")
    walk, sums = begun(runner, setup, 5.0)
    for _ in range(3):
        sums = walk.move(walk.solve(sums))
        again, again_setup = opened({**data, "w": alpha.numpy()}, precision="float64", weight="w")
        derive(again, again_setup, 1.0, 3000, "none")
        alpha = (alpha - 5 * scored(again)).clamp_min(0)
    assert bool((alpha == 0).any()), "the case of a weight that reaches 0 belongs to this test"
    last, last_setup = opened({**data, "w": alpha.numpy()}, precision="float64", weight="w")
    expected = derive(last, last_setup, 1.0, 3000, "none")
    assert walk.leave_out(walk.solve(sums)).tally["loss"] == pytest.approx(expected.tally["loss"], rel=1e-11)


def test_products_go_to_float64_where_float32_would_lose_the_answer():
    generator = np.random.default_rng(0)
    X = (generator.standard_normal((2000, 30)) * np.logspace(0, -4, 30)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    single = diva_ray.score({"features": X, "label": y}, ridge=1e-6, cluster="inline", quiet=True)
    double = diva_ray.score({"features": X, "label": y}, ridge=1e-6, cluster="inline", precision="float64", quiet=True)
    assert single.summary["condition"] > 1e8
    assert single.summary["precision"] == "float64"
    one, other = (result.samples["derivative"].to_numpy() for result in (single, double))
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-5 * np.abs(other).max())


def test_estimated_standard_errors_agree_with_exact_ones():
    data = small_task()
    both = [diva_ray.score(data, cluster="inline", standard_errors=kind, quiet=True) for kind in ("exact", "estimate")]
    exact, estimate = (result.samples["standard_error"].to_numpy() for result in both)
    # More right-hand sides at once are rounded in another order than one.
    np.testing.assert_allclose(*(result.samples["derivative"].to_numpy() for result in both), rtol=2e-5, atol=1e-6)
    ratio = estimate / exact
    # 32 signs: the squared error has a relative spread of sqrt(2 / 32), the error half of it.
    assert 0.95 < np.median(ratio) < 1.05
    assert 0.08 < ratio.std() < 0.18
    assert both[1].summary["standard_errors"] == "32 sign vectors"
    rows = [round(k) for shard in (0, 1500) for k in np.linspace(shard, shard + 1499, 32).astype(int)]
    found = both[1].summary["standard_error_check"]
    assert found["rows"] == 64
    assert found["median_ratio"] == pytest.approx(np.median(np.sort(ratio[rows])[:63]), rel=1e-4)


@pytest.mark.parametrize("kind", ["exact", "estimate"])
def test_a_source_of_one_row_has_the_row_s_standard_error(kind):
    X = small_task()["features"]
    clear = np.where(np.arange(3000) % 20 == 3, 1, 0) ^ (X[:, 0] > 0)  # a twentieth is wrong
    data = {"features": X, "label": clear, "source": [f"s{k:04}" for k in range(3000)]}
    found = diva_ray.score(data, source="source", cluster="inline", standard_errors=kind, quiet=True)
    sources = {row["source"]: row for row in pq.read_table(f"{found.path}/sources.parquet").to_pylist()}
    assert sum(row["n_label_issues"] for row in sources.values()) == found.summary["n_label_issues"] > 0
    for k, row in enumerate(found.samples.slice(0, 50).to_pylist()):
        for name in ("derivative", "standard_error"):
            assert sources[f"s{k:04}"][name] == pytest.approx(row[name], rel=1e-6)


@pytest.mark.parametrize("groups", [False, True])
def test_fewer_rows_than_columns_use_the_dual_form_and_agree_with_the_primal(groups, monkeypatch):
    generator = np.random.default_rng(0)
    data = {
        "features": generator.standard_normal((60, 90)),
        "label": generator.integers(0, 3, 60),
        "weight": np.where(np.arange(60) % 7 == 0, 0.0, generator.random(60)),
        "source": np.array(["a", "b", "c"])[generator.integers(0, 3, 60)],
        "group": np.arange(60) // 4,
    }
    options = {"weight": "weight", "source": "source", "group": "group" if groups else None}
    options |= {"cluster": "inline", "precision": "float64", "quiet": True}
    dual = diva_ray.score(data, **options)
    monkeypatch.setattr(deriving, "takes_dual", lambda rows, width, ridge: False)
    ridge = dual.summary["ridge"]
    primal = diva_ray.score(data, ridge=ridge, **options)
    assert (dual.summary["form"], primal.summary["form"]) == ("dual", "primal")
    for name in ("derivative", "standard_error", "leverage", "loss", "label_score"):
        one, other = (result.samples[name].to_numpy() for result in (dual, primal))
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max(), err_msg=name)
    for name in ("ridge_derivative", "loss"):
        assert dual.summary[name] == pytest.approx(primal.summary[name], rel=1e-9)
    import pyarrow.parquet as pq

    tables = [pq.read_table(result.folder.location("sources.parquet")) for result in (dual, primal)]
    for name in ("derivative", "standard_error"):
        np.testing.assert_allclose(*(table[name].to_numpy() for table in tables), rtol=1e-6)


def test_ridge_is_the_one_with_the_least_left_out_squared_error():
    runner, setup = opened(small_task(300), precision="float64")
    _, ridge, _, grid = fit_ridge(runner, setup, "auto")
    X = torch.cat([shard.bands[0].double() for shard in runner.engine.shards])
    y = torch.cat([context.targets(shard, setup) for shard in runner.engine.shards])
    X = (X - setup.scale.mean[0]) * setup.scale.scale[0]
    Y = torch.nn.functional.one_hot(y, 3).double()
    errors = []
    for tried, _ in grid.tried:
        total = 0.0
        for i in range(len(X)):
            keep = torch.arange(len(X)) != i
            mean, target = X[keep].mean(0), Y[keep].mean(0)
            A = (X[keep] - mean).T @ (X[keep] - mean) + tried * torch.eye(X.shape[1], dtype=torch.float64)
            W = torch.linalg.solve(A, (X[keep] - mean).T @ (Y[keep] - target))
            total += float((Y[i] - target - (X[i] - mean) @ W).square().sum())
        errors.append(total)
    np.testing.assert_allclose([error for _, error in grid.tried], errors, rtol=1e-9)
    assert ridge == grid.tried[int(np.argmin(errors))][0]


def test_results_lost_by_a_worker_are_computed_again():
    runner, setup = opened(small_task())
    derive(runner, setup, 1.0, 3000, "exact")
    shard = runner.engine.shards[1]
    rows, kept = passes.left_out_rows(shard, runner.engine.known), shard.state["scored"]
    shard.state.clear()
    assert torch.equal(passes.scored_rows(shard, runner.engine.known), kept)
    assert torch.equal(passes.left_out_rows(shard, runner.engine.known).r, rows.r)


def test_threads_are_those_asked_for_while_a_run_lasts_and_no_longer(monkeypatch):
    def counts():
        return {
            torch.get_num_threads(),
            *(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"),
        }

    seen, before = [], torch.get_num_threads()

    def loss(F, Y):
        seen.append(counts())
        return (F - Y).square().sum(1)

    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            assert counts() == {2}
            data = {"features": np.eye(30, 4), "label": np.arange(30.0)}
            diva_ray.score(data, loss=loss, ridge=1.0, cluster={"kind": "inline", "threads": 1}, quiet=True)
            assert seen and all(found == {1} for found in seen)
            assert counts() == {2}
            # One where the work is little, or the table narrow; where it is neither, as they are.
            for least, narrow, threads in (
                (0.0, 0, 2),
                (1e12, 0, 1),
                (0.0, 7, 1),
                (0.0, 6, 2),
            ):  # 4 + 1 columns, 1 output
                seen.clear()
                monkeypatch.setattr(planned, "ONE_THREAD", least)
                monkeypatch.setattr(planned, "NARROW", narrow)
                diva_ray.score(data, loss=loss, ridge=1.0, cluster="inline", quiet=True)
                assert seen and all(found == {threads} for found in seen)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("most", [1, 40, 100, 10_000])
def test_rows_that_are_gathered_for_one_call_are_all_there_in_order(monkeypatch, most):
    monkeypatch.setattr(steps, "GATHERED", most)
    F = torch.arange(120.0).view(30, 4)
    parts = [(F[a:b], torch.arange(a, b)) for a, b in ((0, 7), (7, 8), (8, 25), (25, 30))]
    found = list(steps.gathered(iter(parts)))
    assert torch.equal(torch.cat([one for one, _ in found]), F)
    assert torch.equal(torch.cat([rows for _, rows in found]), torch.arange(30))
    assert all(one.numel() >= most for one, _ in found[:-1]) and len(found) == {1: 4, 40: 2, 100: 2, 10_000: 1}[most]
    assert list(steps.gathered(iter([]))) == []
