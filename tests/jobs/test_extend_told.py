"""What a pool lacks, holds too much of, or says in other words than the table."""

import logging
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

import diva_ray
from diva_ray.errors import InputError
from diva_ray.tasks.setup.alike import few_shared_in_words
from diva_ray.tasks.told import extended, extended_words
from tests.forks import run_job
from tests.jobs.problems import weighted_error

INLINE = {"kind": "inline", "threads": 1}
CENTERS = 1.5 * np.random.default_rng(0).standard_normal((4, 8))


def blobs(n, seed, wrong=0.0):
    """Return rows of four classes, some with a random label."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, n)
    label = np.where(draw.random(n) < wrong, draw.integers(0, 4, n), truth)
    return {"features": CENTERS[truth] + draw.standard_normal((n, 8)), "label": label}


def mostly_of_class_2(rows, kept):
    """Return the rows of one class, and a share of the others'."""
    stays = (rows["label"] == 2) | (np.random.default_rng(3).random(len(rows["label"])) < kept)
    return {name: values[stays] for name, values in rows.items()}


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


def test_rows_between_classes_are_chosen_more_often_and_classes_in_proportion():
    """By the true probabilities of the classes; wrong labels near boundaries are not chosen more often for it."""
    core, pool = blobs(300, 1), blobs(3000, 2, wrong=0.3)
    truth = blobs(3000, 2)["label"]
    chosen = run(core, pool, budget=300).samples["id"].to_numpy()
    distance = ((pool["features"][:, None] - CENTERS) ** 2).sum(2)
    unsure = 1 - (softmax(-distance / 2, axis=1) ** 2).sum(1)
    right = pool["label"] == truth
    assert unsure[chosen].mean() > 1.25 * unsure[right].mean()
    assert right[chosen].mean() > 0.95
    shares = [np.bincount(pool["label"][rows], minlength=4) / len(rows) for rows in (np.flatnonzero(right), chosen)]
    np.testing.assert_allclose(*shares, atol=0.02)


@pytest.mark.parametrize(("rows", "kept", "told"), [(400, 0.1, True), (400, 1.0, False), (24, 1.0, False)])
def test_other_shares_of_classes_in_the_pool_are_told(rows, kept, told):
    pool = mostly_of_class_2(blobs(2000, 2), kept)
    result = run(blobs(rows, 1), pool)
    assert result.summary["other_class_shares"] == told == ("other shares of classes" in " ".join(result.lines()))
    assert told == ("Weight of a row" in result.folder.read("report.html").decode())
    by_class = {int(one["label"]): one["weight"] for one in result.summary["selected_by_class"]}
    assert result.samples["weight"].to_pylist() == [by_class[label] for label in result.samples["label"].to_pylist()]
    if not told:
        assert set(by_class.values()) == {1.0}
        return
    assert by_class[2] == min(by_class.values()) < 0.5
    assert max(by_class.values()) == 2.0
    (line,) = (one for one in result.lines() if "other shares of classes" in one)
    assert f"from {by_class[2]:.2g} (class 2) to 2 (class " in line
    assert "so that classes keep the shares of the table" in line


@pytest.mark.parametrize("options", [{"class_weights": "none"}, {"method": "paper"}])
def test_rows_keep_their_own_weight_where_asked_to(options):
    pool = mostly_of_class_2(blobs(2000, 2), 0.1)
    core, pool = blobs(400, 1) | {"w": np.ones(400)}, pool | {"w": np.full(len(pool["label"]), 3.0)}
    result = run(core, pool, budget=200, weight="w", **options)
    assert set(result.samples["weight"].to_pylist()) == {3.0}
    assert any("chosen rows keep them" in line for line in result.lines())


def test_the_rows_that_validate_say_which_shares_classes_are_to_have():
    pool, core = mostly_of_class_2(blobs(2000, 2), 0.1), blobs(400, 1)
    like_the_pool = run(core, pool, validation=mostly_of_class_2(blobs(2000, 4), 0.1))
    assert not like_the_pool.summary["other_class_shares"]
    other = run(core, pool, validation=blobs(300, 5))
    assert any("keep the shares of the rows that validate" in line for line in other.lines())
    heard = core | {"v": np.where(core["label"] == 2, 8.0, 0.5)}
    assert not run(heard, pool, validation_weight="v").summary["other_class_shares"]


def test_wrong_labels_in_the_pool_do_not_count_as_its_shares():
    """A fifth of the labels replaced at random make frequent classes of a pool look rarer than they are."""
    rows = mostly_of_class_2(blobs(6000, 2), 0.1)
    core, pool = ({name: values[part] for name, values in rows.items()} for part in (slice(500), slice(500, None)))
    wrong = np.random.default_rng(0).random(len(pool["label"])) < 0.6
    label = np.where(wrong, np.random.default_rng(1).integers(0, 4, len(wrong)), pool["label"])
    given = abs(np.bincount(label) / len(label) - np.bincount(core["label"]) / 500).sum() / 2
    assert given > 0.25
    assert not run(core, pool | {"label": label}).summary["other_class_shares"]


@pytest.mark.parametrize("wrong", [pytest.param(0.0, marks=pytest.mark.long), 0.3])
def test_weights_by_class_lower_the_error_under_the_tables_shares(wrong):
    errors = np.zeros((3, 2))
    test = blobs(4000, 99)
    for seed, row in enumerate(errors):
        core, pool = blobs(60, 10 + seed), mostly_of_class_2(blobs(4000, 20 + seed, wrong), 0.05)
        for k, how in enumerate(("none", "auto")):
            found = run(core, pool, class_weights=how, budget=600)
            at, weight = found.samples["id"].to_numpy(), found.samples["weight"].to_numpy()
            X, y = np.r_[core["features"], pool["features"][at]], np.r_[core["label"], pool["label"][at]]
            weights = np.r_[np.ones(60), weight]
            row[k] = weighted_error(X, y, weights, found.summary["ridge"], test["features"], test["label"])
    assert errors[:, 1].mean() < 0.85 * errors[:, 0].mean()


def test_classes_of_the_table_are_counted_also_where_another_validates():
    core = blobs(400, 1)
    result = run(core, blobs(1000, 2), validation=blobs(300, 5))
    counted = {one["label"]: one["in_table"] for one in result.summary["selected_by_class"]}
    assert list(counted.values()) == np.bincount(core["label"]).tolist()


def test_random_choice_beside_it_is_of_as_many_rows_where_most_weigh_nothing():
    core, pool = blobs(200, 1), blobs(2000, 2, 0.3)
    core["w"], pool["w"] = np.ones(200), (np.arange(2000) % 10 == 0) * 1.0
    summary = run(core, pool, weight="w", budget=100).summary
    assert summary["n_pool"] == 200
    last = summary["error_by_budget"][-1]
    assert last["chosen"] == 100 and 80 <= last["uniform_chosen"] <= 120


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, False), pytest.param(100.0, True, marks=pytest.mark.long), (-1.0, True)]
)
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
    result = run(core, pool, weight="w", budget=budget)
    summary = result.summary
    assert summary["n_selected"] == 0 and summary["stopped"] == "the pool is used up"
    assert summary["n_pool_without_weight"] == 50
    assert not any(line.startswith("chosen rows:") for line in result.lines())


def test_rows_of_the_pool_of_weight_0_are_counted_and_told():
    core, pool = blobs(100, 1), blobs(300, 2)
    core["w"], pool["w"] = np.ones(100), (np.arange(300) >= 56) * 1.0
    pool["features"] = [None if k in (0, 299) else row for k, row in enumerate(pool["features"])]  # one of weight 0 too
    result = run(core, pool, weight="w", budget=20)
    s = result.summary
    assert (s["n_pool"], s["n_pool_without_features"], s["n_pool_without_weight"]) == (243, 2, 55)
    assert "pool of 243 (and 55 of weight 0, 2 without features); chose 20" in result.lines()[0]
    assert "of 243 in the pool (and 55 of weight 0, 2 without features)" in result.folder.read("report.html").decode()
    assert "(and" not in run(blobs(100, 1), blobs(300, 2), budget=20).lines()[0]


def test_the_error_is_that_of_the_validation_table_where_there_is_one():
    result = run(blobs(100, 1), blobs(300, 2), validation=blobs(80, 3), budget=50)
    said = " ".join(result.lines())
    assert result.lines()[1].startswith("error on the validation table: ")
    assert "left-out" not in said and "validation error changed by" in said
    page = result.folder.read("report.html").decode()
    assert "Validation error by rows added" in page and "left-out" not in page and "Left-out" not in page
    own = run(blobs(100, 1), blobs(300, 2), budget=50).lines()
    assert own[1].startswith("left-out error on the table: ")
    assert own[-2].startswith("chosen rows: ") and "/selected (ids, without features); docs/extend.md" in own[-2]


@pytest.mark.parametrize(
    ("budget", "told"), [(300, "; a smaller `budget` would"), (None, "; `budget` would take fewer")]
)
def test_advice_on_the_budget_fits_a_run_that_has_one(budget, told):
    s = {"best_budget": 300, "n_selected": 300, "error_before": 0.2, "error_after": 0.21, "budget": budget}
    more = {"validation": "leave-one-out", "task": "classification", "n_validation": 500}
    assert told in extended_words.notes_on_error(s | more)[0]


def test_an_error_of_few_rows_comes_with_what_it_may_be_of_others():
    few, many = (run(blobs(n, 1), blobs(300, 2), budget=50) for n in (20, 150))
    (note,) = [line for line in few.lines() if "20 rows alone" in line]
    wrong, z = few.summary["error_after"], 1.96
    high = (wrong + z * z / 40 + z * (wrong * (1 - wrong) / 20 + z * z / 1600) ** 0.5) / (1 + z * z / 20)  # Wilson's
    assert f"{100 * high:.1f} %" in note
    assert "rows alone" not in " ".join(many.lines())


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


def left_out(table, rows, chosen):
    """Return which left-out predictions of the first rows are wrong under a fit to them and to what was chosen."""
    X, y = np.r_[table["features"], chosen["features"][rows]], np.r_[table["label"], chosen["label"][rows]]
    Y, n, found = np.eye(4)[y], len(table["label"]), []
    for row in range(n):
        keep = np.arange(len(y)) != row
        W = np.linalg.solve(X[keep].T @ X[keep] + np.eye(8), X[keep].T @ Y[keep])
        found.append((X[row] @ W).argmax() != y[row])
    return np.array(found, float)


def test_the_change_of_the_error_has_the_standard_error_of_refits():
    core, pool = blobs(150, 1), blobs(600, 2, 0.4)
    exact = {"ridge": 1.0, "standardize": "none", "intercept": False, "precision": "float64"}
    result = run(core, pool, budget=200, rounds=2, **exact)
    rows = result.samples["id"].to_numpy()
    change = left_out(core, rows, pool) - left_out(core, rows[:0], pool)
    gaps = result.summary["error_difference"]
    assert gaps["to_before"]["difference"] == pytest.approx(change.mean(), abs=1e-12)
    assert gaps["to_before"]["standard_error"] == pytest.approx(change.std() / np.sqrt(150), rel=1e-9)
    start, first, last = result.summary["error_by_budget"]
    assert "to_before" not in start and last["to_before"] == gaps["to_before"]
    change = left_out(core, rows[: first["chosen"]], pool) - left_out(core, rows[:0], pool)
    assert first["to_before"]["difference"] == pytest.approx(change.mean(), abs=1e-12)
    assert first["to_before"]["standard_error"] == pytest.approx(change.std() / np.sqrt(150), rel=1e-9)
    for step in (first, last):
        gap = step["error"] - step["error_uniform"]
        assert step["to_uniform"]["difference"] == pytest.approx(gap, abs=1e-12)
    nothing = run({**core, "w": np.ones(150)}, {**pool, "w": np.zeros(600)}, weight="w").summary
    assert nothing["error_difference"] == {}


def test_the_standard_error_of_a_change_follows_the_weights_of_rows_that_validate():
    core, pool = blobs(150, 1), blobs(600, 2, 0.4)
    v = np.random.default_rng(3).integers(0, 4, 150).astype(float)
    exact = {"ridge": 1.0, "standardize": "none", "intercept": False, "precision": "float64"}
    result = run({**core, "v": v}, {**pool, "v": np.ones(600)}, validation_weight="v", budget=200, rounds=2, **exact)
    rows = result.samples["id"].to_numpy()
    change = left_out(core, rows, pool) - left_out(core, rows[:0], pool)
    mean = (v @ change) / v.sum()
    found = result.summary["error_difference"]["to_before"]
    assert found["difference"] == pytest.approx(mean, abs=1e-12)
    error = np.sqrt((v**2 * (change - mean) ** 2).sum()) / v.sum()  # of a ratio of sums
    assert found["standard_error"] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("method", ["balanced", "paper"])
def test_random_choice_has_as_many_rows_where_a_round_finds_fewer_than_it_sought(method):
    core, pool = blobs(150, 1), blobs(900, 2, 0.6)
    steps = run(core, pool, method=method, rounds=3).summary["error_by_budget"]
    short = [b["chosen"] - a["chosen"] for a, b in pairwise(steps)]
    assert min(short) < 250, "a round was short"
    for step in steps[1:]:
        assert abs(step["uniform_chosen"] - step["chosen"]) < 4 * step["chosen"] ** 0.5  # a row is in by its own draw


def test_a_fall_of_the_error_is_green_and_choice_called_better_only_beyond_chance():
    def told(before, uniform, error=0.01, pool=1000):
        gaps = {"to_before": (before, error), "to_uniform": (uniform, error)}
        names = ("difference", "standard_error")
        known = {name: dict(zip(names, gap, strict=True)) for name, gap in gaps.items()}
        step = {"chosen": 100, "uniform_chosen": 101, "error_uniform": 0.3}
        s = {"error_difference": known, "n_selected": 100, "n_pool": pool, "task": "classification",
             "error_by_budget": [step], "error_after": 0.25, "validation": "leave-one-out"}  # fmt: skip
        return extended._after(s).tone, extended_words.change(s)[0], extended_words.against_random(s)[0]

    tone, change, random = told(-0.015, -0.015)
    assert tone == "" and "no more than chance" in change and "did not clearly beat random choice" in random
    tone, change, random = told(-0.03, -0.03)
    assert tone == "good" and "a fall beyond chance" in change and random.startswith("choosing beat random choice")
    assert "points" in change and "%" not in change
    assert told(0.03, 0.03)[0] == "hurts" and "random choice was better" in told(0.03, 0.03)[2]
    assert "all of the pool was chosen" in told(-0.03, 0.0, pool=100)[2]


def test_numbers_are_told_once_and_none_that_stands_apart_is_no_zero():
    result = run(numbers(200, 1), numbers(300, 2))
    page = result.folder.read("report.html").decode()
    assert result.summary["pool_noise_estimate"] == 0
    assert "labels wrong" not in page and "which does not say that all are right" in page
    assert "left-out squared error after" not in page and "left-out loss after" not in page
    assert "; loss" not in result.lines()[1]
    assert "cross-entropy (nats) after" in run(blobs(200, 1), blobs(300, 2)).folder.read("report.html").decode()
    assert "Rows of weight 0" not in page


def test_what_was_chosen_is_held_against_the_truth(caplog):
    core, pool = blobs(200, 1), blobs(1000, 2, 0.4)
    core["real"], pool["real"] = core["label"], blobs(1000, 2)["label"]
    wrong = pool["label"] != pool["real"]
    pool["w"], core["w"] = 1.0 * (np.arange(1000) < 800), np.ones(200)
    result = run(core, pool, truth="real", weight="w")
    p, ids = result.summary["planted"], result.samples["id"].to_numpy()
    assert (p["n_planted"], p["n_chosen"], p["by"]) == (wrong[:800].sum(), wrong[ids].sum(), "real")
    assert p["right_in_pool"] == pytest.approx(1 - wrong[:800].mean())
    assert p["right_among_chosen"] == pytest.approx(1 - wrong[ids].mean())
    assert any(line.startswith("labels that are right, by `real`") for line in result.lines())
    assert "Labels that are right" in result.folder.read("report.html").decode()
    with pytest.raises(InputError, match=r"data.truth: column `real` must hold what the label holds, got string"):
        run(core, {**pool, "real": pool["real"].astype(str)}, truth="real", weight="w")
    assert not caplog.records
    del pool["real"]
    assert "planted" not in run(core, pool, truth="real", weight="w").summary
    assert "column `real` (data.truth) is not in the pool" in caplog.text


@pytest.mark.parametrize(("estimate", "missed"), [(0.02, True), (0.0, True), (0.15, False), (None, False)])
def test_the_share_of_wrong_labels_is_the_true_one_where_it_is_known(estimate, missed):
    s = {"pool_noise_estimate": estimate, "n_pool": 1000, "planted": {"n_planted": 200, "by": "real"}}
    (tile,) = extended._noise(s)
    assert tile.value.startswith("20.0") and tile.detail.startswith("by real; ") and "estimated" in tile.detail
    notes = extended_words.missed_in_words(s)
    assert len(notes) == missed and all("20.0" in note and "missed most" in note for note in notes)
    right = {**s, "planted": {"n_planted": 0, "by": "real"}}
    assert extended._noise(right)[0].tone == "" and extended_words.missed_in_words(right) == []
    assert extended_words.missed_in_words({"pool_noise_estimate": 0.02, "n_pool": 1000}) == []


def test_few_copies_of_the_table_in_a_pool_are_a_note():
    core, pool = blobs(400, 1), blobs(1000, 2)
    pool = {name: np.r_[values, core[name][:3]] for name, values in pool.items()}
    result = run(core, pool, budget=20)
    said = "3 of the pool's 1,003 rows have the very features of rows of the table"
    assert result.summary["shared"]["pool"]["known"] == 3
    assert any(line.startswith(f"note: {said}") for line in result.lines())
    assert said in result.folder.read("report.html").decode().replace("&#39;", "'")
    assert not any("very features" in line for line in run(core, blobs(1000, 2), budget=20).lines())


def test_mistakes_are_told_in_the_right_words():
    core, pool = blobs(50, 1), blobs(50, 2)
    with pytest.raises(InputError, match=r"pool.path: the table must have rows, got 0 in .* Give at least one row\."):
        run(core, {name: values[:0] for name, values in pool.items()})
    with pytest.raises(InputError, match=r"Did you mean `budget`\? Choose from .* new_classes,"):
        run(core, pool, bugdet=5)


@pytest.mark.jobs
def test_a_pool_of_ones_own_needs_a_table_of_ones_own(tmp_path):
    pq.write_table(diva_ray.score(blobs(50, 1), cluster=INLINE, quiet=True).samples, tmp_path / "pool.parquet")
    done = run_job("jobs/extend.py", f"pool.path={tmp_path / 'pool.parquet'}", f"output={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("beside a pool of one's own, got none. Set `data.path`.")


def test_one_copy_is_told_as_one():
    said = [few_shared_in_words({"pool": {"rows": 1000, "known": n}}, 400)[0] for n in (1, 2)]
    assert said[0].startswith("1 of the pool's 1,000 rows has") and said[1].startswith(
        "2 of the pool's 1,000 rows have"
    )


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_rows_chosen_first_are_shown_as_the_pool_has_them(rounds):
    core, pool = blobs(200, 1), blobs(600, 2, 0.3)
    core["note"], pool["note"] = ["of the table"] * 200, [f"row {k} of the pool" for k in range(600)]
    pool["note"][5] = "<b>bold</b>"
    result = run(core, pool, show="note", budget=100, rounds=rounds, block_rows=64)
    ranked = result.samples.sort_by("rank")
    ids = ranked["id"].to_pylist()[: extended.SHOWN]
    page = result.folder.read("report.html").decode()
    assert page.count(" of the pool</blockquote>") + page.count("&lt;b&gt;bold") == len(ids)
    at = [page.index(pool["note"][k] if k != 5 else "&lt;b&gt;bold") for k in ids]
    assert "Chosen first" in page and at == sorted(at) and "<b>bold" not in page and "of the table</" not in page
    del pool["note"]
    assert "Chosen first" in run(core, pool, show="note", budget=20).folder.read("report.html").decode()
