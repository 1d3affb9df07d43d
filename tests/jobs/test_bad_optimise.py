"""Mistakes around reweighting, pools, copies and trusted rows: one line each, before anything is written."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.errors import InputError
from tests.forks import run_job

ROOT = Path(__file__).resolve().parent.parent.parent
QUIET = {"quiet": True, "cluster": {"kind": "inline", "threads": 1}, "ridge": 0.1}
N = 60
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
Y = np.arange(N) % 3


def table(start=0, **columns):
    return {"features": X, "label": Y, "id": start + np.arange(N), **columns}


def refused(told, call, *data, **options):
    with pytest.raises(InputError, match=told) as caught:
        call(*data, **{**QUIET, **options})
    line = str(caught.value)
    assert "\n" not in line and ", got " in line and line.endswith("."), line


POOL = table(1000)


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        ({"features": X, "id": np.arange(N)}, r"pool.path: the table must have the same columns, got no `label`"),
        (
            {**POOL, "features": X[:, :3]},
            r"data.features: .* got \[4\] at the table and \[3\] at the pool",
        ),
        (
            {**POOL, "label": np.arange(N) % 5},
            r"pool: labels must be among the table's 3 classes, got 2 new ones",
        ),
        ({**POOL, "label": Y.astype(str)}, r"pool.path: column `label` must hold integer as in the table, got string"),
        (table(30), r"data.id: ids must be unique, got \d+ twice at row \d+ and pool.path row \d+"),
        (
            {**POOL, "features": np.where(np.arange(N)[:, None] == 7, np.nan, X)},
            r"must be finite, got nan at pool.path row 7",
        ),
        ({"features": X[:0], "label": Y[:0], "id": Y[:0]}, r"pool.path: the table must have rows, got 0"),
    ],
    ids=["columns", "width", "classes", "type", "ids", "nan", "empty"],
)
def test_a_pool_must_match_the_table(pool, told):
    refused(told, diva_ray.extend, table(), pool)


def test_files_of_one_name_are_told_apart_by_their_table(tmp_path):
    paths = [str(tmp_path / name / "part-0.parquet") for name in ("core", "pool")]
    for path, start in zip(paths, (0, 30), strict=True):
        Path(path).parent.mkdir()
        pq.write_table(pa.table({**table(start), "features": X.tolist()}), path)
    told = r"ids must be unique, got \d+ twice at part-0.parquet row \d+ and pool.path part-0.parquet row \d+"
    refused(told, diva_ray.extend, *paths)


def test_labels_of_a_pool_may_need_a_wider_type():
    given = table()
    core = {**given, "label": np.asarray(given["label"]).astype(np.int8)}
    pool = {**given, "id": np.arange(N) + N, "label": np.asarray(given["label"]).astype(np.int64)}
    pool["label"][0] = 300
    with pytest.raises(InputError, match="pool: labels must be among .* got 1 new one, such as 300. Fix the pool"):
        diva_ray.extend(core, pool, **QUIET)
    assert diva_ray.extend(core, pool, new_classes="allow", budget=N, **QUIET).summary["n_selected"] == N


def test_new_classes_of_a_pool_can_be_allowed():
    pool = {**POOL, "label": np.arange(N) % 5}
    result = diva_ray.extend(table(), pool, new_classes="allow", budget=N, **QUIET)
    assert result.summary["n_outputs"] == 5
    assert set(result.samples["label"].to_pylist()) == set(range(5))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": 61}, r"budget: must be at most the pool's 60 rows, got 61"),
        ({"budget": 0}, r"budget: must be at least 1, got 0"),
        ({"rounds": 0}, r"rounds: must be 1 to 1000, got 0"),
        ({"method": "best"}, r"method: must be balanced or paper, got best"),
        ({"new_classes": "maybe"}, r"pool.new_classes: must be error or allow, got maybe"),
        ({"newclasses": "allow"}, r"extend: options must be columns or fields of ExtendConfig, got 'newclasses'"),
    ],
)
def test_options_of_an_extension(options, told):
    refused(told, diva_ray.extend, table(), POOL, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "bold"}, r"method: must be safe, paper, trusted, got bold"),
        ({"level": "class"}, r"level: must be sample or source, got class"),
        ({"steps": 0}, r"steps: must be 1 to 10, got 0"),
        ({"folds": 1}, r"folds: must be 2 to 50, got 1"),
        ({"eta": 0.0, "method": "paper"}, r"eta: must be a number > 0, got 0"),
        ({"eta": math.inf, "method": "paper"}, r"eta: must be a number > 0, got inf"),
        ({"level": "source"}, r"data.source: must name the column of sources with level=source, got none"),
        ({"method": "trusted"}, r"method: trusted must be told which rows to trust, got neither"),
        ({"step": 2}, r"reweight: options must be columns or fields of ReweightConfig, got 'step'"),
    ],
)
def test_options_of_reweighting(options, told):
    refused(told, diva_ray.reweight, table(), **options)


@pytest.mark.parametrize("call", [diva_ray.score, diva_ray.reweight])
def test_trusted_rows_must_show_every_class_and_not_be_all(call):
    some = table(v=((Y != 2) & (np.arange(N) < 12)).astype(float))
    refused(r"trusted rows must show every class, got none for 1 of 3, such as '2'", call, some,
            method="trusted", validation_weight="v")  # fmt: skip
    refused(r"data.validation_weight: must be 0 on rows that are not trusted, got v > 0 everywhere", call,
            table(v=np.ones(N)), method="trusted", validation_weight="v")  # fmt: skip


def test_scoring_with_an_unknown_method_or_copy():
    refused(r"method: must be plain or trusted, got safe", diva_ray.score, table(), method="safe")
    refused(r"curate: must be none, drop, weight, relabel, got delete", diva_ray.curate, table(), action="delete")


def test_a_group_must_not_be_split_between_training_and_validation(tmp_path):
    held_out = table(1000, g=np.arange(N) // 2)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)
    pq.write_table(pa.table({**held_out, "features": lists}), tmp_path / "v.parquet")
    refused(r"data.group: every group must lie together in one table .* or split between both",
            diva_ray.score, table(g=np.arange(N) // 2), group="g", validation=str(tmp_path / "v.parquet"))  # fmt: skip


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("job", "options", "told"),
    [
        ("reweight", ["method=bold"], "method: must be safe, paper, trusted, got bold. Change `method`."),
        (
            "extend",
            ["data.path=/no/where", "pool.path=/no"],
            "data.path: a Parquet file, folder or glob must be",
        ),
        ("augment", ["identity=plain"], "identity: some row's transform must be `plain`, got hflip, identity,"),
    ],
)
def test_jobs_say_it_in_one_line_and_leave_with_code_2(job, options, told, tmp_path):
    done = run_job(f"jobs/{job}.py", *options, f"output={tmp_path / 'run'}", "cluster=inline")
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(told)
    assert "Traceback" not in done.stderr
