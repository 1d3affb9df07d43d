"""Corners of reweighting and extending: validation tables, rows set apart, pools with less, resumed runs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.engine import context, shelf
from diva_ray.errors import InputError
from tests.jobs.problems import digits_split, flipped

INLINE = {"kind": "inline", "threads": 1}
QUIET = {"cluster": INLINE, "quiet": True}


@pytest.fixture
def held_out(tmp_path):
    X, _, _, X_test, y_test = digits_split(0.0)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X_test[:300].reshape(-1)), 64)
    pq.write_table(pa.table({"features": lists, "label": y_test[:300], "source": ["a", "b", "c"] * 100}),
                   tmp_path / "v.parquet")  # fmt: skip
    return str(tmp_path / "v.parquet")


def table(share=0.3, **columns):
    X, y, _, _, _ = digits_split(share)
    return {"features": X, "label": y, **columns}


def test_a_trusted_table_is_heard_and_its_rows_are_not_the_tables(held_out):
    plain = diva_ray.score(table(), validation=held_out, ridge=1.0, **QUIET).samples
    trusted = diva_ray.score(table(), validation=held_out, method="trusted", ridge=1.0, **QUIET).samples
    scaled = diva_ray.score(table(), validation=held_out, ridge=0.2, **QUIET).samples
    assert not np.allclose(trusted["loss"], plain["loss"], rtol=1e-3)
    assert not np.allclose(trusted["loss"], scaled["loss"], rtol=1e-3), "all weights times five"


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("method", ["paper", "safe"])
def test_rows_set_apart_and_validation_rows_never_get_weight(validation, method, held_out, monkeypatch):
    seen = []
    keep = context.keep_weights

    def spy(shard, known, alpha, step):
        seen.append(step)
        if shard.extent.held_out:
            assert not bool((alpha > 0).any()), step
        elif "fold" in known and not validation:
            assert not bool((alpha[known["fold"](shard, known)] > 0).any()), step
        keep(shard, known, alpha, step)

    for module in ("steps", "passes"):
        monkeypatch.setattr(f"diva_ray.engine.kernels.{module}.keep_weights", spy)
    more = {"validation": held_out} if validation else {}
    diva_ray.reweight(table(), method=method, steps=2, folds=2, ridge=1.0, **more, **QUIET)
    assert len(seen) >= 4


def test_a_validation_table_adds_nothing_to_the_sums_by_source(held_out):
    data = table(source=np.array(["a", "b", "c"])[np.arange(900) % 3])
    result = diva_ray.score(data, source="source", validation=held_out, ridge=1.0, **QUIET)
    found = pq.read_table(f"{result.path}/sources.parquet")
    derivative = np.array(result.samples["derivative"])
    for name, total in zip(found["source"].to_pylist(), found["derivative"].to_pylist(), strict=True):
        assert total == pytest.approx(derivative[data["source"] == name].sum(), rel=1e-3, abs=1e-3)


def test_a_pool_may_lack_what_it_does_not_need_and_be_read_once_a_round(monkeypatch):
    X, y, _, _, _ = digits_split(0.0)
    core = {"features": X[:300], "label": y[:300], "id": np.arange(300), "v": np.ones(300)}
    big = np.tile(np.arange(300, 900), 6)
    pool = {"features": X[big], "label": flipped(y[big], 10, 0.4, 3)}
    reads = []
    again = shelf.read_again
    monkeypatch.setattr(shelf, "read_again", lambda one, *rest: reads.append(one.extent.index) or again(one, *rest))
    result = diva_ray.extend(core, pool, validation_weight="v", budget=1200, rounds=4, **QUIET)
    assert result.summary["n_selected"] == 1200
    assert sorted(result.samples["rank"].to_pylist()) == list(range(1200))
    shards = len(set(reads))
    assert shards >= 3
    assert len(reads) <= 5 * shards, "one read a round after the scan, seldom another"


def test_uniform_choice_never_takes_a_row_twice():
    X, y, _, _, _ = digits_split(0.0)
    core, pool = {"features": X[:300], "label": y[:300]}, {"features": X[300:], "label": flipped(y[300:], 10, 0.6, 3)}
    steps = diva_ray.extend(core, pool, **QUIET).summary["error_by_budget"]
    assert max(step["uniform_chosen"] for step in steps) <= 600


def test_new_classes_can_be_chosen_before_anything_is_known_of_them():
    X, y, _, _, _ = digits_split(0.0)
    seen = y[:300] != 9
    core = {"features": X[:300][seen], "label": y[:300][seen]}
    result = diva_ray.extend(core, {"features": X[300:], "label": y[300:]}, new_classes="allow", rounds=5, **QUIET)
    assert (np.array(result.samples["label"]) == 9).sum() > 30


def test_a_group_split_between_table_and_pool_is_refused():
    X, y, _, _, _ = digits_split(0.0)
    core = {"features": X[:300], "label": y[:300], "g": np.arange(300)}
    pool = {"features": X[300:], "label": y[300:], "g": np.arange(250, 850)}
    with pytest.raises(InputError, match="data.group: a group must lie in the table or in the pool, got one"):
        diva_ray.extend(core, pool, group="g", **QUIET)


def scattered_pool(**cluster):
    X, y, _, _, _ = digits_split(0.0)
    core = {"features": X[:300], "label": y[:300], "g": np.arange(300)}
    pool = {"features": np.tile(X[300:900], (5, 1)), "label": np.tile(y[300:900], 5)}
    options = {"group": "g", "cluster": cluster, "quiet": True}
    result = diva_ray.extend(core, {**pool, "g": np.tile(np.arange(300, 900), 5)}, budget=100, rounds=1, **options)
    assert result.summary["n_selected"] == 100
    with pytest.raises(InputError, match="a copy in the pool would vouch for its original"):
        diva_ray.extend(core, {**pool, "g": np.tile(np.arange(299, 899), 5)}, **options)


def test_a_group_may_be_scattered_in_the_pool_but_not_reach_into_the_table():
    scattered_pool(**INLINE)


@pytest.mark.ray
@pytest.mark.long
def test_scattered_groups_of_a_pool_are_told_apart_on_ray_too(ray_cluster):
    scattered_pool(kind="ray", workers=2)


def test_folds_that_hear_nothing_are_refused():
    data = table(v=(np.arange(900) == 5).astype(float))
    with pytest.raises(InputError, match="folds: most outer folds must have rows that validate and leave some"):
        diva_ray.reweight(data, validation_weight="v", **QUIET)


def test_a_fold_without_any_of_a_few_trusted_rows_says_nothing_and_their_error_says_little():
    asked = set()
    for seed in range(6):  # ten rows leave one of five folds empty every other time
        v = np.isin(np.arange(900), np.random.default_rng(seed).permutation(900)[:10]).astype(float)
        found = diva_ray.reweight(table(v=v), validation_weight="v", steps=1, **QUIET)
        assert found.summary["n_judged"] == 10
        asked.add(found.summary["folds"])
        (note,) = [line for line in found.told if line.startswith("note: The error on folds that took no part is that")]
        assert "of 10 rows alone, and says little: of others up to" in note
    assert asked > {"5 of 5"}


def test_a_mistake_leaves_the_output_free_for_the_next_try(tmp_path):
    X, y, _, _, _ = digits_split(0.0)
    core, pool = {"features": X[:300], "label": y[:300]}, {"features": X[300:], "label": y[300:]}
    with pytest.raises(InputError, match="budget: must be at most the pool's 600 rows, got 601"):
        diva_ray.extend(core, pool, budget=601, output=str(tmp_path / "run"), **QUIET)
    diva_ray.extend(core, pool, budget=60, rounds=2, output=str(tmp_path / "run"), **QUIET)


def test_another_table_in_memory_is_no_run_to_resume(tmp_path):
    first, other = table(), table(0.1)
    diva_ray.reweight(first, folds=2, steps=1, output=str(tmp_path / "run"), **QUIET)
    with pytest.raises(InputError, match="resume: the run in .* must have the same data .* another data.path"):
        diva_ray.reweight(other, folds=2, steps=1, output=str(tmp_path / "run"), resume=True, **QUIET)
    with pytest.raises(InputError, match="resume: the run in .* must be one of this job, got another job's"):
        diva_ray.score(first, output=str(tmp_path / "run"), resume=True, **QUIET)
    again = diva_ray.reweight(first, folds=2, steps=1, output=str(tmp_path / "run"), resume=True, **QUIET)
    assert again.samples.num_rows == 900
