"""Extension from a pool, on real digits with a clean and a noisy pool."""

import json
import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.engine.inline import Inline
from diva_ray.engine.reduce import Rows
from diva_ray.tasks.fit import gauge, rank
from tests.forks import run_job
from tests.jobs.problems import digits_split, flipped, weighted_error

INLINE = {"kind": "inline", "threads": 1}
CORE = 300


def tables(share):
    """Return core, pool, the pool's true labels, and the test set."""
    X, y, _, X_test, y_test = digits_split(0.0)
    pool_y = flipped(y[CORE:], 10, share, 5)
    core = {"features": X[:CORE], "label": y[:CORE], "id": np.arange(CORE)}
    pool = {"features": X[CORE:], "label": pool_y, "id": np.arange(CORE, 900)}
    return core, pool, y[CORE:], (X_test, y_test)


def run(core, pool, **options):
    return diva_ray.extend(core, pool, **{"cluster": INLINE, "quiet": True, **options})


def error_with(core, pool, ids, ridge, test):
    rows = np.asarray(ids) - CORE
    X, y = np.r_[core["features"], pool["features"][rows]], np.r_[core["label"], pool["label"][rows]]
    return weighted_error(X, y, np.ones(len(y)), ridge, *test)


def test_a_noisy_pool_is_left_when_what_remains_is_mostly_wrong():
    core, pool, truth, test = tables(0.4)
    result = run(core, pool)
    s, ids = result.summary, np.array(result.samples["id"])
    wrong = pool["label"] != truth
    assert s["stopped"] == "no remaining label is likely right"
    assert s["pool_noise_estimate"] == pytest.approx(wrong.mean(), abs=0.05)
    assert wrong[ids - CORE].mean() < 0.06
    assert len(ids) > 0.85 * (~wrong).sum()
    ours = error_with(core, pool, ids, s["ridge"], test)
    assert ours < error_with(core, pool, pool["id"], s["ridge"], test), "better than the whole pool"


def test_estimated_standard_errors_of_chosen_rows_are_near_exact_ones():
    core, pool, _, _ = tables(0.4)
    exact, estimate = (
        run(core, pool, budget=200, rounds=1, standard_errors=kind).samples for kind in ("exact", "estimate")
    )
    assert exact["id"].equals(estimate["id"]), "errors have no say in what is chosen"
    ratio = exact["z"].to_numpy() / estimate["z"].to_numpy()
    assert 0.85 < np.median(ratio) < 1.15 and np.quantile(ratio, 0.02) > 0.4 and np.quantile(ratio, 0.98) < 2


def test_the_manifest_tells_table_and_pool_apart(tmp_path):
    core, pool, _, _ = tables(0.4)
    run(core, pool, budget=50, rounds=1, output=str(tmp_path / "run"))
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert list(data) == ["train", "pool"]
    assert data["train"]["name"] == data["pool"]["name"], "both in memory"
    assert data["train"]["fingerprint"] != data["pool"]["fingerprint"]


def test_a_clean_pool_is_used_up_and_no_budget_is_much_worse_than_chance():
    core, pool, _, test = tables(0.0)
    assert run(core, pool).summary["stopped"] in ("the pool is used up", "no remaining label is likely right")
    ours, chance = [], []
    for budget in (60, 120, 240):
        result = run(core, pool, budget=budget)
        ours.append(error_with(core, pool, result.samples["id"], result.summary["ridge"], test))
        for seed in range(5):
            ids = CORE + np.random.default_rng(seed).permutation(600)[:budget]
            chance.append(error_with(core, pool, ids, result.summary["ridge"], test))
    assert np.mean(ours) < np.mean(chance) + 0.005


@pytest.mark.parametrize(("seed", "strength"), [(0, 0.5), (3, 0.5), (1, 1.0)])
def test_outcomes_of_chance_that_are_rare_are_taken_as_often_as_others(seed, strength):
    """Left-out outputs fitted to squares say too little of a rare class: its right labels looked wrong."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(6000, 10))
    y = (rng.random(6000) < 1 / (1 + np.exp(1.4 - strength * X[:, 0] - strength / 2 * X[:, 1]))).astype(int)
    core, pool = np.arange(1500), np.arange(1500, 6000)
    result = run(
        {"features": X[core], "label": y[core], "id": core}, {"features": X[pool], "label": y[pool], "id": pool}
    )
    chosen = y[np.array(result.samples["id"])]
    assert len(chosen) > 0.98 * len(pool)
    assert chosen.mean() == pytest.approx(y[pool].mean(), rel=0.04)
    g = y.copy()
    wrong = (rng.random(6000) < 0.3) & (np.arange(6000) >= 1500)
    g[wrong] = 1 - g[wrong]
    result = run(
        {"features": X[core], "label": g[core], "id": core}, {"features": X[pool], "label": g[pool], "id": pool}
    )
    ids = np.array(result.samples["id"])
    assert wrong[ids].mean() < 0.8 * wrong[pool].mean(), "replaced labels are less likely than the table's"


def test_a_budget_is_spent_exactly_and_ranked_without_gaps():
    core, pool, _, _ = tables(0.4)
    result = run(core, pool, budget=500, rounds=7)
    rows = result.samples.sort_by("rank")
    assert rows["rank"].to_pylist() == list(range(500))
    assert rows["round"].to_pylist() == sorted(rows["round"].to_pylist())
    assert len(set(rows["id"].to_pylist())) == 500
    assert result.summary["n_helpful"] < 500, "the last rows only fill the budget"
    steps = result.summary["error_by_budget"]
    assert [step["chosen"] for step in steps] == [0, *(round(500 * k / 7) for k in range(1, 8))]
    assert steps[-1]["uniform_chosen"] == pytest.approx(500, abs=45)


def test_the_error_by_budget_is_that_of_a_refit_to_table_and_chosen_rows():
    core, pool, _, _ = tables(0.4)
    result = run(core, pool, budget=100, rounds=2, ridge=1.0, standardize="none", precision="float64")
    chosen = np.array(result.samples["id"]) - CORE
    X, y = np.r_[core["features"], pool["features"][chosen]], np.r_[core["label"], pool["label"][chosen]]
    wrong = 0.0
    for row in range(CORE):
        keep = np.arange(len(y)) != row
        wrong += weighted_error(X[keep], y[keep], np.ones(keep.sum()), 1.0, X[[row]], y[[row]])
    assert result.summary["error_by_budget"][-1]["error"] == pytest.approx(wrong / CORE, abs=1e-12)


def few_of_most_classes(pool):
    """Return a pool in which three classes are ten times as frequent as the others."""
    stays = (pool["label"] < 3) | (np.arange(len(pool["label"])) % 10 == 0)
    return {name: values[stays] for name, values in pool.items()}


@pytest.mark.parametrize("precision", ["float64", "float32 first"])
def test_chosen_rows_weigh_by_class_in_the_fit_that_the_error_is_of(precision, monkeypatch):
    if precision != "float64":  # as if the fit to table and chosen rows were lost: the pool is summed again
        whole, lost = gauge.solve_in_range, []

        def solve(runner, setup, sums, penalty):
            lost.append(setup.dtype)
            return None if lost[-1] == torch.float32 else whole(runner, setup, sums, penalty)

        monkeypatch.setattr(gauge, "solve_in_range", solve)
    core, pool, _, _ = tables(0.0)
    options = {"precision": "float64"} if precision == "float64" else {}
    result = run(core, few_of_most_classes(pool), budget=60, rounds=2, ridge=1.0, standardize="none", **options)
    chosen, weight = np.array(result.samples["id"]) - CORE, result.samples["weight"].to_numpy()
    assert weight.min() < 0.5 < 1 < weight.max()
    X, y = np.r_[core["features"], pool["features"][chosen]], np.r_[core["label"], pool["label"][chosen]]
    weights, wrong = np.r_[np.ones(CORE), weight], 0.0
    for row in range(CORE):
        keep = np.arange(len(y)) != row
        wrong += weighted_error(X[keep], y[keep], weights[keep], 1.0, X[[row]], y[[row]])
    assert result.summary["error_by_budget"][-1]["error"] == pytest.approx(wrong / CORE, abs=1e-12)
    assert precision == "float64" or torch.float32 in lost


def test_the_papers_choice_is_the_most_negative_derivatives():
    core, pool, _, _ = tables(0.4)
    result = run(core, pool, method="paper", budget=40, rounds=1, ridge=1.0)
    both = {name: np.r_[core[name], pool[name]] for name in core}
    both["w"], both["v"] = np.r_[np.ones(CORE), np.zeros(600)], np.r_[np.ones(CORE), np.zeros(600)]
    # The scale of the features is the core's in both.
    mean = core["features"].mean(0)
    scale = 1 / np.sqrt(((core["features"] - mean) ** 2).sum(1).mean())
    both["features"] = (both["features"] - mean) * scale
    scored = diva_ray.score(
        both, weight="w", validation_weight="v", ridge=1.0, standardize="none", cluster=INLINE, quiet=True
    ).samples
    order = np.argsort(np.array(scored["derivative"])[CORE:], kind="stable")[:40]
    assert np.array(result.samples.sort_by("rank")["id"]).tolist() == (CORE + order).tolist()
    z = dict(zip(result.samples["id"].to_pylist(), result.samples["z"].to_pylist(), strict=True))
    expected = dict(zip(scored["id"].to_pylist(), scored["z"].to_pylist(), strict=True))
    for key, value in z.items():
        assert value == pytest.approx(expected[key], rel=2e-3)


@pytest.mark.parametrize("seed", [*(pytest.param(k, marks=pytest.mark.long) for k in (0, 4)), 1])
def test_numbers_can_be_extended_too_until_wrong_ones_are_left(seed):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((500, 8)).astype(np.float32)
    y = X[:, 0] + 0.1 * generator.standard_normal(500)
    y[200::3] = generator.permutation(y)[200::3] * 5
    core, pool = {"features": X[:100], "label": y[:100]}, {"features": X[100:], "label": y[100:]}
    result = run(core, pool)
    chosen = np.isin(np.arange(100, 500), 100 + result.samples["id"].to_numpy())
    wrong = np.isin(np.arange(100, 500), np.arange(200, 500, 3))
    assert chosen[~wrong].mean() > 0.95 and chosen[wrong].mean() < 0.15  # some lie near others' values
    steps = result.summary["error_by_budget"]
    assert steps[-1]["chosen"] == result.summary["n_selected"], "no round is given back"
    assert all(one["error"] < 0.2 * one["error_uniform"] for one in steps[1:])


@pytest.mark.long  # a right pool of classes is chosen from above
def test_right_numbers_are_chosen_about_as_well_as_at_random():
    """Those alone whose derivative is below 0 fit the errors of the table, at several times the squared error."""
    chosen, drawn = [], []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        X = generator.standard_normal((1460, 8))
        truth = X @ generator.standard_normal(8)
        y = truth + 3 * generator.standard_normal(1460)

        def error(ids, X=X, y=y, truth=truth):
            at = np.r_[np.arange(60), ids]
            w = np.linalg.solve(X[at].T @ X[at] + np.eye(8), X[at].T @ y[at])
            return ((X[460:] @ w - truth[460:]) ** 2).mean()

        tables = [{"features": X[at], "label": y[at], "id": at} for at in (np.arange(60), np.arange(60, 460))]
        found = run(*tables, budget=150, rounds=5, ridge=1.0, intercept=False, standardize="none")
        chosen.append(error(found.samples["id"].to_numpy()))
        drawn += [error(60 + generator.permutation(400)[:150]) for _ in range(10)]
    assert np.mean(chosen) < 1.3 * np.mean(drawn)


def many(pool, copies, path):
    """Return the path of a table of so many copies of the pool's rows, large enough for several shards."""
    features = np.tile(pool["features"], (copies, 1)).reshape(-1)
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(features), 64),
                      "label": np.tile(pool["label"], copies),
                      "id": 1000 + np.arange(len(pool["label"]) * copies)})  # fmt: skip
    pq.write_table(table, path, row_group_size=700)
    return str(path)


@pytest.mark.parametrize("method", ["balanced", "paper"])
def test_ranks_are_found_from_a_few_keys_at_a_time(method, tmp_path, monkeypatch):
    core, pool, _, _ = tables(0.4)
    path, options = many(pool, 4, tmp_path / "pool.parquet"), {"method": method, "budget": 500, "rounds": 3}
    whole = run(core, path, **options).samples
    assert sorted(whole["rank"].to_pylist()) == list(range(500))
    assert whole["rank"].to_pylist() != list(range(500)), "two shards, whose ranks interleave"
    each, most = Inline.each, []

    def watched(self, kernel, extents, done=int, features=True):
        for partial in each(self, kernel, extents, done, features):
            rows = getattr(partial, "rows", partial)
            if isinstance(rows, Rows) and any(extent.pool for extent in extents):
                most.append(len(rows.joined()[0]))
            yield partial

    monkeypatch.setattr(Inline, "each", watched)
    monkeypatch.setattr(rank, "STRETCH", 23)
    assert run(core, path, **options).samples.equals(whole)
    assert max(most) == 23, "of the pool this process sees the keys of one stretch at most"


@pytest.mark.ray
@pytest.mark.long  # `test_cluster` and the chaos run kill workers in every other task's passes
def test_a_pool_on_ray_gives_the_same_choice_also_when_workers_die(ray_cluster, tmp_path, monkeypatch):
    import ray

    from diva_ray.engine.cluster import Cluster

    core, pool, _, _ = tables(0.4)
    path, options = many(few_of_most_classes(pool), 8, tmp_path / "pool.parquet"), {"budget": 900, "rounds": 3}
    monkeypatch.setattr(rank, "STRETCH", 130)
    inline = run(core, path, **options)
    whole, killed = Cluster.each, []

    def each_with_a_death(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ not in killed:
                os.kill(ray.get(self.actors[len(killed) % 2].process.remote()), signal.SIGKILL)
                killed.append(kernel.__name__)
            yield partial

    monkeypatch.setattr(Cluster, "each", each_with_a_death)
    result = run(core, path, cluster={"kind": "ray", "workers": 2}, **options)
    assert {"score_pool", "count_choices", "count_bytes", "take", "core_error", "write_selected"} <= set(killed)
    assert {"count_ranked", "stretch_keys", "rank_stretch"} <= set(killed)
    assert result.summary["other_class_shares"]
    assert result.folder.read_table("selected").equals(inline.samples)
    assert result.summary["error_by_budget"] == inline.summary["error_by_budget"]


@pytest.mark.jobs
def test_the_job_runs_by_itself_and_asks_for_a_pool_of_ones_own(tmp_path):
    done = run_job("jobs/extend.py", f"output={tmp_path / 'run'}", "cluster=inline", "rounds=3")
    assert done.returncode == 0, done.stderr
    assert "no remaining label is likely right" in done.stdout
    assert {"selected", "summary.json", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}
    pq.write_table(pa.table({"features": [[0.0]], "label": [0]}), tmp_path / "table.parquet")
    done = run_job("jobs/extend.py", f"data.path={tmp_path / 'table.parquet'}", f"output={tmp_path / 'other'}")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pool.path: a table must be named, got none. Set `pool.path`.")


@pytest.mark.ray
@pytest.mark.long  # `test_cluster` scores one, by the same way into a table
def test_a_ray_dataset_may_be_the_pool(ray_cluster, tmp_path):
    import ray

    core, pool, _, _ = tables(0.4)
    rows = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(pool["features"].reshape(-1)), 64),
                     "label": pool["label"], "id": pool["id"]})  # fmt: skip
    where = {"kind": "ray", "workers": 1}
    options = {"budget": 60, "rounds": 2, "cluster": where}
    result = run(core, ray.data.from_arrow(rows), output=str(tmp_path / "run"), **options)
    assert set(result.folder.read_table("selected")["id"].to_pylist()) == set(
        run(core, pool, **options).folder.read_table("selected")["id"].to_pylist()
    )


@pytest.mark.parametrize("method", ["balanced", "paper"])
def test_a_table_of_one_row_a_class_is_extended(method):
    X, y, _, X_test, y_test = digits_split(0.0)
    core_rows = np.array([np.flatnonzero(y == c)[0] for c in range(10)])
    rest = np.setdiff1d(np.arange(400), core_rows)
    core = {"features": X[core_rows], "label": y[core_rows], "id": core_rows}
    pool = {"features": X[rest], "label": y[rest], "id": rest}
    result = run(core, pool, method=method)
    s, ids = result.summary, np.array(result.samples["id"])
    assert s["single_shot"]
    assert len(ids) > 0.4 * len(rest)
    rows = np.r_[core_rows, ids]
    extended = weighted_error(X[rows], y[rows], np.ones(len(rows)), 1.0, X_test, y_test)
    assert extended < 0.5 * weighted_error(X[core_rows], y[core_rows], np.ones(10), 1.0, X_test, y_test)
    page = result.folder.read("report.html").decode()
    assert ("only ones of their class" in page) == (method == "balanced")


def test_of_one_row_a_class_and_a_small_pool_the_derivative_is_all_that_is_known():
    X, y, _, _, _ = digits_split(0.0)
    core_rows = np.array([np.flatnonzero(y == c)[0] for c in range(10)])
    rest = np.setdiff1d(np.arange(200), core_rows)
    tables = [{"features": X[at], "label": y[at], "id": at} for at in (core_rows, rest)]
    result = run(*tables, budget=40, rounds=1)
    assert result.summary["single_shot"] and result.summary["led_by_derivative"]
    assert "the most negative first" in result.summary["rule"]
    assert (result.samples["derivative"].to_numpy() < 0).all() and (result.samples["label_score"].to_numpy() == 1).all()
    assert "by their derivative alone" in result.folder.read("report.html").decode()
    assert "that help" in result.lines()[0]


def test_from_one_row_a_class_a_right_pool_is_chosen_from_as_well_as_at_random():
    """Rows nearest to the only one of their class, which the derivative names first, stand for no class."""
    test, chosen, drawn, stopped = blobs(2000, 9), [], [], []
    for seed in range(4):
        rows = blobs(400, seed)
        first = np.array([np.flatnonzero(rows["label"] == c)[0] for c in range(4)])
        rest = np.setdiff1d(np.arange(400), first)
        core, pool = ({**{k: v[at] for k, v in rows.items()}, "id": at} for at in (first, rest))
        options = {"cluster": INLINE, "quiet": True, "id": "id", "seed": seed}

        def error(ids, first=first, rows=rows):
            at = np.r_[first, ids]
            return weighted_error(rows["features"][at], rows["label"][at], np.ones(len(at)), 1.0, *test.values())

        chosen.append(error(diva_ray.extend(core, pool, budget=60, **options).samples["id"].to_numpy()))
        drawn += [error(np.random.default_rng([seed, k]).permutation(rest)[:60]) for k in range(5)]
        stopped.append(diva_ray.extend(core, pool, rounds=5, **options).summary["n_selected"])
    assert np.mean(chosen) < np.mean(drawn) + 0.02
    assert min(stopped) > 0.95 * len(rest)  # a fit to what it chose itself doubts what it did not choose


@pytest.mark.parametrize("numbers", [False, True])
def test_rows_without_a_weight_say_nothing_of_the_labels_of_others(numbers):
    core, pool, out = blobs(200, 1), blobs(400, 2), blobs(600, 3, 0.9)
    if numbers:
        for part, wrong in ((core, 1), (pool, 1), (out, 1 + 4 * (np.arange(600) % 2))):
            part["label"] = wrong * part["features"].sum(1) + 0.01 * part["features"][:, 0] ** 2
    both = {name: np.concatenate([pool[name], out[name]]) for name in pool}
    both["weight"], core["weight"] = np.r_[np.ones(400), np.zeros(600)], np.ones(200)
    pool["weight"] = np.ones(400)
    options = {"weight": "weight", "cluster": INLINE, "quiet": True}
    alone, beside = (diva_ray.extend(core, rows, **options).summary for rows in (pool, both))
    assert beside["pool_noise_estimate"] == pytest.approx(alone["pool_noise_estimate"], abs=1e-6)


def test_a_table_of_several_rows_a_class_is_no_single_shot():
    core, pool, _, _ = tables(0.0)
    assert not run(core, pool, budget=20).summary["single_shot"]


def test_nothing_chosen_is_a_table_without_rows():
    generator = np.random.default_rng(0)
    core, pool = ({"features": generator.standard_normal((n, 3)), "label": np.arange(n) % 2} for n in (40, 30))
    inline = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    some = diva_ray.extend(core, pool, budget=3, **inline).samples
    none = diva_ray.extend(core | {"w": np.ones(40)}, pool | {"w": np.zeros(30)}, weight="w", **inline).samples
    assert len(some) == 3 and len(none) == 0 and none.schema == some.schema


def test_a_pool_on_another_scale_is_told_and_summed_in_float64(caplog):
    generator = np.random.default_rng(0)
    w, G = generator.standard_normal(20), np.random.default_rng(5)
    X = generator.standard_normal((300, 20))
    y = X @ w + 0.5 * generator.standard_normal(300)
    P = 1000 * np.outer(G.standard_normal(3000), np.ones(20)) + G.standard_normal((3000, 20))
    pool = {"features": P, "label": P @ w + 0.5 * G.standard_normal(3000)}
    found = [
        diva_ray.extend({"features": X, "label": y}, pool, budget=1000, rounds=3, ridge=1e-3, precision=precision,
                        cluster=INLINE, quiet=True)
        for precision in ("auto", "float64")
    ]  # fmt: skip
    auto, double = (run.summary["error_by_budget"] for run in found)
    assert [row["error"] for row in auto] == pytest.approx([row["error"] for row in double], rel=1e-9)
    assert auto[-1]["error"] < 0.4  # in float32 1.5
    assert any("further from the table's mean" in record.message for record in caplog.records)


def test_where_features_say_nothing_no_label_of_the_pool_is_called_wrong():
    generator = np.random.default_rng(0)
    core, pool = (
        {"features": generator.standard_normal((n, 6)), "label": generator.integers(0, 3, n)} for n in (200, 1000)
    )
    result = diva_ray.extend(core, pool, rounds=3, cluster=INLINE, quiet=True)
    assert result.summary["pool_noise_estimate"] == 0


def blobs(rows, seed, wrong=0.0):
    """Return rows around four means, of which some have a wrong label."""
    generator, mean = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((4, 8)) * 1.3
    truth = generator.integers(0, 4, rows)
    given = np.where(generator.random(rows) < wrong, generator.integers(0, 4, rows), truth)
    return {"features": mean[truth] + generator.standard_normal((rows, 8)), "label": given}


def test_the_choice_does_not_depend_on_workers_where_few_features_are_kept(monkeypatch):
    monkeypatch.setattr("diva_ray.tasks.fit.extension.NEAR_BYTES", int(0.11 * 36 * 1500))
    chosen = []
    for workers in (1, 2):
        monkeypatch.setattr("diva_ray.engine.inline.Inline.workers", workers)
        run = diva_ray.extend(blobs(200, 1), blobs(1500, 2, 0.3), budget=300, rounds=3, cluster=INLINE, quiet=True)
        chosen.append(run.samples["id"].to_pylist())
    assert chosen[0] == chosen[1] and len(chosen[0]) == 300


def test_a_pool_of_few_rows_with_weight_is_used_up():
    core, pool = blobs(200, 1), blobs(1500, 2, 0.3)
    core["w"], pool["w"] = np.ones(200), 1.0 * (np.arange(1500) < 100)
    run = diva_ray.extend(core, pool, weight="w", budget=200, cluster=INLINE, quiet=True)
    assert run.summary["n_selected"] == 100 and run.summary["stopped"] == "the pool is used up"


def test_ids_of_a_pool_that_are_not_read_are_told(caplog):
    pool = blobs(300, 2) | {"id": np.arange(9000, 9300)}
    run = diva_ray.extend(blobs(100, 1), pool, budget=5, cluster=INLINE, quiet=True)
    assert max(run.samples["id"].to_pylist()) < 300
    assert any("column `id` of the pool is not read" in record.message for record in caplog.records)


def shifted(rows, seed):
    """Return rows around other means than those of `blobs`, further off."""
    table = blobs(rows, seed)
    return table | {"features": table["features"][:, ::-1] + 4.0 * np.eye(8)[0]}


def test_rounds_that_raise_the_left_out_error_are_given_back():
    core = blobs(300, 1)
    bad = shifted(2000, 3)
    for pool in (bad, {name: np.r_[bad[name], blobs(300, 2)[name]] for name in core}):
        s = (result := run(core, pool)).summary
        steps = s["error_by_budget"]
        assert s["stopped"] == "more rows raise the left-out error"
        assert len(result.samples) == s["n_selected"] == s["best_budget"] < steps[-1]["chosen"]
        kept = next(step for step in steps if step["chosen"] == s["n_selected"])
        assert (kept["error"], kept["helpful"]) == (s["error_after"], s["n_helpful"])
        assert s["error_after"] <= s["error_before"] + 0.01
        assert sum(row["n"] for row in s["selected_by_class"]) == s["n_selected"]
        assert sorted(result.samples["rank"].to_pylist()) == list(range(s["n_selected"]))
    page = result.folder.read("report.html").decode()
    assert "more rows raise the left-out error" in page and "300 rows of the table, each predicted without" in page
    asked = run(core, bad, budget=500).summary
    assert asked["n_selected"] == 500, "a budget is spent all the same"
    assert asked["best_budget"] == 0


def test_a_rise_is_judged_row_by_row_as_refits_say(monkeypatch):
    n = 150
    core, pool = blobs(n, 1) | {"id": np.arange(n)}, shifted(900, 3) | {"id": n + np.arange(900)}
    options = {"rounds": 1, "ridge": 1.0, "standardize": "none", "intercept": False, "class_weights": "none"}

    def chosen(beyond):
        monkeypatch.setattr("diva_ray.tasks.fit.gauge.BEYOND_CHANCE", beyond)
        return run(core, pool, precision="float64", **options).samples["id"].to_numpy()

    def left_out(rows):
        X, y = np.r_[core["features"], pool["features"][rows]], np.r_[core["label"], pool["label"][rows]]
        Y, found = np.eye(4)[y], []
        for row in range(n):
            keep = np.arange(len(y)) != row
            W = np.linalg.solve(X[keep].T @ X[keep] + np.eye(8), X[keep].T @ Y[keep])
            found.append((X[row] @ W).argmax() != y[row])
        return np.array(found, float)

    rows = chosen(np.inf) - n
    rise = left_out(rows) - left_out(rows[:0])
    z = rise.sum() / np.sqrt(n * rise.var())
    assert len(rows) and z > 1
    assert len(chosen(z * (1 - 1e-6))) == 0 and len(chosen(z * (1 + 1e-6))) == len(rows)


def test_rows_of_a_group_are_one_witness_of_a_rise(monkeypatch):
    core, pool = blobs(150, 1), shifted(900, 3)
    copies = {name: np.repeat(values, 4, 0) for name, values in core.items()} | {"g": np.repeat(np.arange(150), 4)}
    options = {"rounds": 1, "ridge": 1.0, "standardize": "none", "intercept": False, "precision": "float64"}
    options["class_weights"] = "none"
    monkeypatch.setattr("diva_ray.core.mixing.ROWS", 100)  # the copies are enough to mix outputs, the rows are not
    found = []
    single = core | {"g": np.arange(150), "w": np.ones(150)}
    for table in (single, copies | {"w": np.full(600, 0.25)}):
        for beyond in (1.7, 1.9):  # the rise of single rows is 1.8 standard errors
            monkeypatch.setattr("diva_ray.tasks.fit.gauge.BEYOND_CHANCE", beyond)
            others = pool | {"g": 1000 + np.arange(900), "w": np.ones(900)}
            found.append(run(table, others, group="g", weight="w", **options).summary["n_selected"] > 0)
    assert found == [False, True, False, True]


def test_a_fit_that_float32_loses_with_the_chosen_rows_is_summed_again(caplog):
    caplog.set_level("INFO")
    generator = np.random.default_rng(0)
    w, X = generator.standard_normal(20), generator.standard_normal((300, 20))
    core = {"features": X, "label": X @ w + 0.5 * generator.standard_normal(300)}
    P = 15 * np.outer(generator.standard_normal(2000), np.ones(20) / 20**0.5)
    P += 1e-3 * generator.standard_normal(P.shape)
    pool = {"features": P, "label": P @ w + 0.5 * generator.standard_normal(len(P)), "w": np.full(2000, 1e4)}
    found = [
        run(core | {"w": np.ones(300)}, pool, budget=900, rounds=3, ridge=1e-6, precision=precision, weight="w")
        for precision in ("auto", "float64")
    ]
    for auto, double in zip(*(one.summary["error_by_budget"] for one in found), strict=True):
        rel = 1e-9 if auto["rounds"] else 1e-5
        assert auto["error"] == pytest.approx(double["error"], rel=rel)
        assert auto["error_uniform"] == pytest.approx(double["error_uniform"], rel=rel)
    assert any("products in float64 from here" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("method", "task", "said"),
    [("paper", "classification", "derivative"), ("balanced", "classification", "coin"),
     ("balanced", "regression", "its derivative is not above 2.0 root mean squares")],
)  # fmt: skip
def test_the_rule_says_what_counts_as_helpful(method, task, said):
    core, pool = blobs(80, 1), blobs(200, 2)
    if task == "regression":
        core, pool = (table | {"label": table["features"][:, 0] * 1.0} for table in (core, pool))
    assert said in run(core, pool, method=method, rounds=2).summary["rule"]


def test_wrong_numbers_among_right_ones_are_told_by_the_tables_own_losses():
    """Their losses overlap, so that the pool's alone tell nothing of them."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((1600, 10))
    truth = X @ generator.standard_normal(10)
    truth += 0.37 * truth.std() * generator.standard_normal(1600)
    wrong = (np.arange(1600) >= 400) & (generator.random(1600) < 0.31)
    y = np.where(wrong, generator.permutation(truth), truth)
    rows = [{"features": X[at], "label": y[at], "id": at} for at in (np.arange(400), np.arange(400, 1600))]
    found = run(*rows, budget=300, rounds=3)
    assert abs(found.summary["pool_noise_estimate"] - wrong[400:].mean()) < 0.05
    assert wrong[found.samples["id"].to_numpy()].mean() < 0.75 * wrong[400:].mean()
