"""What a pool lacks, holds too much of, or says in other words than the table."""

import logging

import numpy as np
import pytest

import diva_ray
from diva_ray.errors import InputError

INLINE = {"kind": "inline", "threads": 1}
CENTERS = 1.5 * np.random.default_rng(0).standard_normal((4, 8))


def blobs(n, seed, wrong=0.0):
    """Return rows of four classes, some with a random label."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, n)
    label = np.where(draw.random(n) < wrong, draw.integers(0, 4, n), truth)
    return {"features": CENTERS[truth] + draw.standard_normal((n, 8)), "label": label}


def numbers(n, seed, factor=1.0):
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, 8))
    return {"features": X, "label": factor * (X @ CENTERS[0] + 0.3 * draw.standard_normal(n) + 5)}


def run(core, pool, **options):
    return diva_ray.extend(core, pool, **{"cluster": INLINE, "quiet": True, **options})


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_class_of_few_rows_in_the_table_is_chosen_as_often_as_the_others(rows):
    """Under a fit and a calibration that hardly know it, all of its labels would look wrong."""
    core, pool = blobs(300, 1), blobs(1000, 2)
    others, own = np.flatnonzero(core["label"] != 1), np.flatnonzero(core["label"] == 1)[:rows]
    core = {name: values[np.r_[others, own]] for name, values in core.items()}
    more = {} if rows else {"new_classes": "allow"}
    summary = run(core, pool, **more).summary
    shares = [one["n"] / one["of"] for one in summary["selected_by_class"]]
    assert min(shares) > 0.9
    budget = run(core, pool, budget=200, **more).summary
    assert min(one["n"] for one in budget["selected_by_class"]) > 30


def test_random_choice_beside_it_is_of_as_many_rows_where_most_weigh_nothing():
    core, pool = blobs(200, 1), blobs(2000, 2, 0.3)
    core["w"], pool["w"] = np.ones(200), (np.arange(2000) % 10 == 0) * 1.0
    summary = run(core, pool, weight="w", budget=100).summary
    assert summary["n_pool"] == 200
    last = summary["error_by_budget"][-1]
    assert last["chosen"] == 100 and 80 <= last["uniform_chosen"] <= 120


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (100.0, True), (-1.0, True)])
def test_numbers_of_another_unit_are_told(factor, told, caplog):
    with caplog.at_level(logging.WARNING, logger="diva_ray"):
        run(numbers(200, 1), numbers(800, 2, factor), budget=100)
    assert any("another unit, or sign?" in record.message for record in caplog.records) == told


def test_offsets_far_from_zero_in_the_pool_alone_keep_their_digits():
    core, pool = numbers(200, 1), numbers(800, 2)
    core["o"], pool["o"] = np.zeros(200), np.full(800, 1e7)
    one, other = (run(core, pool, offset="o", budget=100, precision=p).samples for p in ("auto", "float64"))
    assert one["id"].to_pylist() == other["id"].to_pylist()
    np.testing.assert_allclose(one["derivative"].to_numpy(), other["derivative"].to_numpy(), rtol=1e-4)


def test_nothing_is_said_of_noise_where_nothing_is_known_of_labels():
    core = {"features": CENTERS, "label": np.arange(4)}
    result = run(core, blobs(400, 2, 0.4), budget=50)
    assert result.summary["single_shot"] and result.summary["pool_noise_estimate"] is None
    assert "labels wrong" not in result.folder.read("report.html").decode()


def test_what_the_pool_lacks_is_told(caplog):
    core, pool = blobs(200, 1), blobs(300, 2)
    core["key"] = [f"row {k}" for k in range(200)]
    pool["features"] = [None if k % 2 else row for k, row in enumerate(pool["features"])]
    with caplog.at_level(logging.INFO, logger="diva_ray"):
        run(core, pool, id="key", budget=20, quiet=False)
    said = [record.message for record in caplog.records]
    assert any("the pool's column `features`: 150 of 300 missing" in line for line in said)
    assert any("column `key` is not in the pool" in line for line in said)
    two = {**blobs(200, 1), "more": CENTERS[0] * np.ones((200, 1)) + np.arange(200)[:, None]}
    nothing = {**blobs(30, 2), "more": [None] * 29 + [[1.0] * 8]}
    assert run(two, nothing, features=["features", "more"], budget=5).summary["n_selected"] == 5
    nothing["more"][-1] = None
    import pyarrow as pa

    nothing["more"] = pa.array(nothing["more"], pa.list_(pa.float64()))
    with pytest.raises(InputError, match=r"pool: some row must have the band `more`, got null in every row"):
        run(two, nothing, features=["features", "more"], budget=5)


@pytest.mark.parametrize("budget", [None, 5])
def test_of_a_pool_without_weight_nothing_is_chosen(budget):
    core, pool = blobs(50, 1), blobs(50, 2)
    core["w"], pool["w"] = np.ones(50), np.zeros(50)
    summary = run(core, pool, weight="w", budget=budget).summary
    assert summary["n_selected"] == 0 and summary["stopped"] == "the pool is used up"


@pytest.mark.parametrize("method", ["balanced", "paper"])
def test_rows_of_the_pool_without_any_band_are_not_chosen_and_counted(method, caplog):
    core, pool = blobs(300, 1), blobs(1000, 2)
    tables = [{"a": list(one["features"][:, :5]), "b": list(one["features"][:, 5:]), "label": one["label"]}
              for one in (core, pool)]  # fmt: skip
    for k in range(1000):
        if k % 10 == 0:
            tables[1]["a"][k] = None
        if k % 5 == 0:
            tables[1]["b"][k] = None
    with caplog.at_level(logging.WARNING, logger="diva_ray"):
        result = run(*tables, features=["a", "b"], method=method, budget=850)
    chosen = set(result.samples["id"].to_pylist())
    assert not chosen & set(range(0, 1000, 10)) and chosen & set(range(5, 1000, 10))
    assert result.summary["n_pool_without_features"] == 100 and result.summary["n_pool"] == 900
    assert any("100 of 1,000 rows of the pool have no features" in record.message for record in caplog.records)
