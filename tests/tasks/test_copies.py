"""Rows that are there twice: what they cost when each is left out alone, that it is told, and that groups mend it."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits

import diva_ray
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import from_arrays
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels.scan import scan

INLINE = {"kind": "inline", "threads": 1}


def copied(k, rows=600):
    """Return digits as random features, 15 % of the labels wrong, of which the first k rows are there twice."""
    X, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(y))[:rows]
    X = np.tanh(X[chosen] @ generator.normal(size=(64, 1500)) / 40)
    wrong = generator.random(rows) < 0.15
    given = np.where(wrong, (y[chosen] + generator.integers(1, 10, rows)) % 10, y[chosen])
    at = np.r_[np.arange(rows), np.arange(k)]
    return {"features": X[at], "label": given[at], "who": at}, wrong[at]


@pytest.mark.parametrize("k", [60, 300])
def test_copies_hide_wrong_labels_which_is_told_and_groups_find_them(k):
    table, wrong = copied(k)
    found = {}
    for group in (None, "who"):
        result = diva_ray.score(table, group=group, quiet=True, cluster=INLINE)
        flagged = result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
        found[group] = (flagged & wrong).sum() / wrong.sum()
        assert result.summary["n_alike"] == (0 if group else 2 * k)
        assert ("the very features of another row" in repr(result)) == (group is None)
        if group:
            assert abs(result.summary["label_issue_recall"] - found[group]) < 0.1
    assert found["who"] > 0.88 and found[None] < 0.75


def rows_of(table, at):
    return {name: values[at] for name, values in table.items()}


def test_rows_of_other_tables_that_are_in_this_one_are_told(caplog):
    table, _ = copied(0)
    table["features"] = table["features"][:, :60]
    core, apart = rows_of(table, slice(0, 300)), rows_of(table, slice(300, 500))
    mixed = rows_of(table, np.r_[0:40, 300:460])  # 40 of the table's
    options = {"quiet": True, "cluster": INLINE, "ridge": 1.0}
    found = diva_ray.score(core, validation=mixed, **options)
    assert found.summary["shared"] == {"validation": {"rows": 200, "known": 40}}
    told = "warning: 40 of 200 rows of the validation table have the very features of rows that train"
    assert any(line.startswith(told) for line in found.told)
    assert b"40 of 200 rows of the validation table" in found.folder.read("report.html")
    assert diva_ray.score(core, validation=apart, **options).summary["shared"]["validation"]["known"] == 0
    assert diva_ray.score(core, **options).summary["shared"] == {}
    wide = {**mixed, "features": mixed["features"].astype(np.float64)}  # as lists and pandas have the same numbers
    assert diva_ray.score(core, validation=wide, **options).summary["shared"] == found.summary["shared"]
    runs = {
        "pool": diva_ray.extend(core, mixed, budget=20, rounds=1, **options),
        "test": diva_ray.train(core, mixed, epochs=1, seeds=1, **options),
    }
    for role, run in runs.items():
        assert run.summary["shared"] == {role: {"rows": 200, "known": 40}}
        assert b"40 of 200 " in run.folder.read("report.html")
    said = [record.message for record in caplog.records if "very features" in record.message]
    caplog.clear()
    assert [line.split(" have ")[0] for line in said] == ["40 of 200 rows of the pool", "40 of 200 test rows"]
    few = diva_ray.extend(core, rows_of(table, np.r_[0:1, 300:460]), budget=20, rounds=1, **options)
    assert few.summary["shared"]["pool"]["known"] == 1 and not caplog.records, "a note, no warning"


def test_the_driver_keeps_no_hashes_of_a_pool():
    generator = np.random.default_rng(0)
    table = from_arrays({"features": generator.standard_normal((500, 3)), "label": generator.integers(0, 2, 500)})
    columns = Columns(("features",), "label")
    for pool, kept in ((False, 500), (True, 0)):
        engine = Inline([table], columns, split(table, columns, first=0, pool=pool), 1)
        engine.tell(features=("features",), label="label", numbers=False, held_out=False, cut_bits=None, looked=1.0)
        engine.tell(validation_source=None, trained=np.zeros(0, np.uint64), validated=np.zeros(0, np.uint64))
        found = engine.total(engine.each(scan, engine.extents))
        assert sum(len(part[0]) for part in found.looked.parts) == kept
        assert found.counts["rows"] == 500


def test_copies_of_validation_rows_in_a_pool_or_a_test_table_are_told(caplog):
    table, _ = copied(0)
    table["features"] = table["features"][:, :60]
    core, validates, rest = (rows_of(table, slice(*ends)) for ends in ((0, 200), (200, 260), (260, 600)))
    mixed = rows_of(table, np.r_[230:600])  # 30 of those that validate
    options = {"quiet": True, "cluster": INLINE, "ridge": 1.0, "validation": validates}
    runs = {
        "pool": diva_ray.extend(core, mixed, budget=20, rounds=1, **options),
        "test": diva_ray.train(core, mixed, epochs=1, seeds=1, **options),
    }
    for role, run in runs.items():
        assert run.summary["shared"] == {
            "validation": {"rows": 60, "known": 0},
            role: {"rows": 370, "known": 0},
            f"{role}_validation": {"rows": 370, "known": 30},
        }
        assert b"30 of 370 " in run.folder.read("report.html")
    said = [record.message for record in caplog.records if "very features" in record.message]
    assert [line.split(" have ")[0] for line in said] == ["30 of 370 rows of the pool", "30 of 370 test rows"]
    caplog.clear()
    clean = diva_ray.extend(core, rest, budget=20, rounds=1, **options)
    assert clean.summary["shared"]["pool_validation"]["known"] == 0
    assert not [record for record in caplog.records if "very features" in record.message]


def test_rows_without_any_modality_are_no_copies_of_each_other():
    table, _ = copied(0, rows=200)
    features = table["features"][:, :20]
    gone = np.arange(200) % 4 == 0
    band = [None if absent else row.tolist() for row, absent in zip(features, gone, strict=True)]
    rows = pa.table({"a": pa.array(band), "b": pa.array(band), "label": table["label"]})
    found = diva_ray.score(rows, features=["a", "b"], quiet=True, cluster=INLINE)
    assert found.summary["n_alike"] == 0
    one = pa.table({"a": pa.array(band), "b": pa.array([row.tolist() for row in features * 2]), "label": rows["label"]})
    assert diva_ray.score(one, features=["a", "b"], quiet=True, cluster=INLINE).summary["n_alike"] == 0
