"""Numbers to predict, wherever they lie: far from 0, close together, wide apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes

import diva_ray
from diva_ray.core import loss_verdict
from diva_ray.engine.kernels.moments import merge_moments, moments
from diva_ray.engine.kernels.scan import Extremes
from diva_ray.errors import InputError

N, RIDGE = 60, 0.5
generator = np.random.default_rng(3)
X = generator.standard_normal((N, 4))
Y = X @ np.array([1.0, -0.5, 0.2, 0.0]) + 0.5 * generator.standard_normal(N)


def score(label, columns=None, **options):
    data = {"features": X, "label": label, **(columns or {})}
    return diva_ray.score(
        data, **{"quiet": True, "cluster": {"kind": "inline", "threads": 1}, "ridge": RIDGE, **options}
    )


def refits(label):
    """Return (derivative, standard error, R2) of squared leave-one-out losses by refits and differences, float64."""
    Z = X - X.mean(0)
    Z = np.hstack([np.ones((N, 1)), Z / np.sqrt((Z**2).sum(1).mean())])
    penalty = RIDGE * np.diag([0.0, *np.ones(4)])

    def losses(weight):
        left = []
        for i in range(N):
            keep = np.arange(N) != i
            A = Z[keep].T @ (weight[keep, None] * Z[keep]) + penalty
            left.append((Z[i] @ np.linalg.solve(A, Z[keep].T @ (weight[keep] * label[keep])) - label[i]) ** 2)
        return np.array(left)

    step = 1e-4
    moves = np.array([losses(np.ones(N) + step * e) - losses(np.ones(N) - step * e) for e in np.eye(N)]) / (2 * step)
    return moves.sum(1), np.sqrt((moves**2).sum(1)), 1 - losses(np.ones(N)).sum() / ((label - label.mean()) ** 2).sum()


DERIVATIVE, ERROR, R2 = refits(Y)


@pytest.mark.parametrize(
    "shift,factor", [(0, 1), (1e3, 1), (1e6, 1), (1.7e9, 1), (0, 1e-12), (0, 1e12), (3e12, 1e6), (-40, 1e-4)]
)
def test_neither_place_nor_unit_of_the_numbers_matters(shift, factor):
    result = score(Y * factor + shift)
    derivative, error = (result.samples[name].to_numpy() / factor**2 for name in ("derivative", "standard_error"))
    largest = np.abs(DERIVATIVE).max()
    np.testing.assert_allclose(derivative, DERIVATIVE, rtol=1e-4, atol=1e-5 * largest)
    np.testing.assert_allclose(error, ERROR, rtol=1e-4, atol=1e-5 * largest)
    assert result.summary["error"] == result.summary["r2"] == pytest.approx(R2, rel=1e-5)


def test_nothing_is_estimated_of_no_flagged_label():
    result = score(Y)
    wanted = {"n_label_issues": 0, "label_issue_precision": None, "label_issue_recall": None}
    assert {name: result.summary[name] for name in wanted} == wanted
    assert any(line.startswith("0 labels look wrong; ") for line in result.lines())
    classes = score((Y > 0).astype(int)).summary
    assert "r2" not in classes and 0 < classes["error"] < 0.5


def test_numbers_that_stand_for_something_else_are_told():
    rare = np.arange(N) % 40 == 7
    result = score(np.where(rare, -999.0, Y))
    (told,) = [line for line in result.lines() if "tell next to nothing of the numbers" in line]
    assert f"R2 {result.summary['r2']:.3f}" in told and "-999" in told
    assert "gross outlier" in result.folder.read("report.html").decode()
    assert set(np.argsort(result.samples["label_score"].to_numpy())[: rare.sum()]) == set(np.flatnonzero(rare))
    assert not any("tell next to nothing" in line for line in score(Y).lines())


@pytest.mark.parametrize(("factor", "share"), [(10, 0.05), (100, 0.02), (1000, 0.005), (1000, 0.2), (-1000, 0.02)])
def test_numbers_so_gross_that_they_pull_the_fit_off_the_others_are_found(factor, share):
    draw = np.random.default_rng(1)
    Z = draw.standard_normal((3500, 8))
    label = Z @ draw.standard_normal(8) + 0.5 * draw.standard_normal(3500) + 20
    wrong = np.arange(1500) < 1500 * share
    given = np.where(wrong, factor * label[:1500], label[:1500])
    options = {"quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    found = diva_ray.score({"features": Z[:1500], "label": given}, **options)
    assert found.samples["is_label_issue"].to_numpy().tolist() == wrong.tolist()
    assert found.summary["label_issue_precision"] > 0.95 and found.summary["label_issue_recall"] > 0.95
    assert any("perhaps because of those that look wrong" in line for line in found.told) is (
        found.summary["r2"] < 0.02
    )
    if share <= 0.05:  # beyond, most rows of any fold would have to be set aside to hear the rest
        weight = diva_ray.reweight({"features": Z[:1500], "label": given}, **options).samples["weight"].to_numpy()
        ones = np.hstack([np.ones((3500, 1)), Z])
        root = np.sqrt(weight)[:, None]
        fit = np.linalg.lstsq(root * ones[:1500], root[:, 0] * given, rcond=None)[0]
        assert np.square(ones[1500:] @ fit - label[1500:]).mean() < 0.3  # 0.25 of right labels


@pytest.mark.parametrize("rare", [0.01, 0.05, 0.2])
def test_rare_numbers_among_zeros_are_not_gross(rare):
    draw = np.random.default_rng(2)
    label = (draw.random(2000) < rare) * draw.gamma(2, 100, 2000)
    data = {"features": draw.standard_normal((2000, 12)), "label": label}
    summary = diva_ray.score(data, quiet=True, cluster={"kind": "inline", "threads": 1}).summary
    assert summary["n_label_issues"] == 0


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (np.linspace(-1, 1, 99), False), (np.append(np.linspace(-3, -2, 99), 250.0), True),
        (np.append(np.linspace(2, 3, 99), -250.0), True), (np.append(np.linspace(-1.5, 0.5, 99), 50.0), False),
        (np.random.default_rng(0).lognormal(0, 1, 999) - np.exp(0.5), False), (np.zeros(0), False),
    ],
)  # fmt: skip
def test_a_fit_is_pulled_where_errors_lie_on_one_side_of_it(errors, expected):
    signed = torch.from_numpy(errors * np.abs(errors))
    nothing, ones = torch.zeros(len(errors)), torch.ones(len(errors))
    kinds = torch.arange(len(errors)) % 2
    assert loss_verdict.pulled(loss_verdict.loss_sums(signed, signed[:, None], nothing, ones, kinds)) is expected


def test_one_of_several_numbers_may_lie_far_from_the_rest():
    near, far = (score(np.stack([Y, Y + shift], 1)) for shift in (0.0, 1e6))
    np.testing.assert_allclose(far.samples["z"].to_numpy(), near.samples["z"].to_numpy(), rtol=1e-3, atol=1e-4)
    assert far.summary["error"] == pytest.approx(near.summary["error"], rel=1e-5)


def test_common_numbers_stay_with_quick_products():
    assert score(Y).summary["precision"] == "float32"
    assert score(Y + 1e4).summary["precision"] == "float64"


@pytest.mark.parametrize("factor", [1e-20, 1e20, 1e200])
def test_numbers_whose_derivatives_cannot_be_written_are_refused(factor):
    told = r"data.label: numbers must have a standard deviation of 1e-15 to 1e\+15, got .* in `label`. Scale the column"
    with pytest.raises(InputError, match=told):
        score(Y * factor)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e12])
def test_a_constant_is_refused_and_validates_with_an_r2_of_0(value):
    with pytest.raises(InputError, match=r"data.label: numbers must differ from row to row, got .* in every row of"):
        score(np.full(N, value))
    rows = {"features": X[:20], "label": np.full(20, value)}
    assert score(Y + value, validation=rows).summary["r2"] == 0


@pytest.mark.parametrize("far", [300.0, 1e4, 1e8])
@pytest.mark.parametrize("what", ["offset", "beside", "few heard", "validation"])
def test_numbers_far_from_zero_keep_their_digits_wherever_that_is(what, far):
    """Offsets, one number of several, rows that train but do not validate, a validation table."""
    y, noise = Y, np.random.default_rng(8).standard_normal(N)
    label, columns, more = {
        "offset": (y, {"o": far + 0.1 * noise}, {"offset": "o"}),
        "beside": (np.c_[y, np.full(N, far)], {}, {}),
        "few heard": (far + y, {"v": (np.arange(N) == 7) * 1.0}, {"validation_weight": "v"}),
        "validation": (far + y, {}, {"validation": {"features": X[:5] + 0.01, "label": np.full(5, far)}}),
    }[what]
    one, other = (score(label, columns, precision=p, **more) for p in ("auto", "float64"))
    assert one.summary["precision"].startswith("float64") == (far > 30 * y.std())
    d, e = (run.samples["derivative"].to_numpy() for run in (one, other))
    np.testing.assert_allclose(d, e, atol=1e-5 * np.abs(e).max())


def test_offsets_of_classes_far_from_zero_keep_their_digits():
    noise = np.random.default_rng(8).standard_normal((2, N, 3))
    label = (X[:, :3] + noise[0]).argmax(1)
    one, other = (score(label, {"o": -1e4 + noise[1]}, offset="o", precision=p) for p in ("auto", "float64"))
    assert one.summary["error"] == other.summary["error"]
    d, e = (run.samples["derivative"].to_numpy() for run in (one, other))
    np.testing.assert_allclose(d, e, atol=1e-5 * np.abs(e).max())


def test_truth_in_another_type_is_compared_as_the_narrower_holds_it():
    y, wrong = Y, np.arange(N) < 20
    for label, truth, count in [
        ((y + 5 * wrong).astype(np.float32), y, 20),
        (np.round(3 * y) + 0.5 * wrong, np.round(3 * y).astype(int), 20),
        (y.astype(np.float16), y.astype(np.float16), 0),
    ]:
        found = score(label, {"t": truth}, truth="t").summary["planted"]
        assert found["n_planted"] == count


def test_predictions_are_written_as_labels_are():
    y = 1.7e9 + 300 * Y  # seconds, of which float32 holds every 128th
    result = score(y)
    found = result.samples["predicted_label"]
    assert found.type == pa.float64()
    r2 = 1 - ((found.to_numpy() - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert r2 == pytest.approx(result.summary["r2"], abs=1e-6)
    assert score((y - 1.7e9).astype(np.float32)).samples["predicted_label"].type == pa.float32()


@pytest.mark.parametrize("seed", [10, *(pytest.param(k, marks=pytest.mark.long) for k in (11, 12))])
@pytest.mark.parametrize("share", [0.05, 0.15])
def test_precision_recall_and_share_of_swapped_numbers_are_told(share, seed):
    """At 15 % only gross ones stand apart: that others hide among the right ones must be told, too."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(6000, 20))
    y = X @ generator.normal(size=20) + 0.5 * generator.normal(size=6000)
    wrong = generator.random(6000) < share
    given = np.where(wrong, y[generator.permutation(6000)], y)
    result = diva_ray.score({"features": X, "label": given}, cluster={"kind": "inline", "threads": 1}, quiet=True)
    flagged = result.samples["is_label_issue"].to_numpy()
    s, caught = result.summary, (flagged & wrong).sum()
    assert s["label_issue_precision"] == pytest.approx(caught / flagged.sum(), abs=0.05)
    assert s["label_issue_recall"] == pytest.approx(caught / wrong.sum(), abs=0.08)
    assert s["noise_estimate"] == pytest.approx(share, abs=0.02)


def test_scores_of_numbers_do_not_depend_on_the_order_of_rows():
    draw = np.random.default_rng(4)
    n, order, Z = 5000, draw.permutation(5000), draw.standard_normal((5000, 8))  # in three shards
    y = Z.sum(1) + 0.3 * draw.standard_normal(n)
    one, other = (
        score(y[rows], {"features": Z[rows], "id": rows}, precision="float64") for rows in (np.arange(n), order)
    )
    a, b = (run.samples["label_score"].to_numpy() for run in (one, other))
    np.testing.assert_allclose(b, a[order], rtol=1e-5)


def test_moments_of_parts_add_up():
    values, weight = generator.standard_normal((90, 2)) + np.array([0, 1e6]), generator.integers(0, 3, 90).astype(float)
    weight[30:40] = 0
    parts = [
        moments(torch.from_numpy(values[a:b]), torch.from_numpy(weight[a:b])) for a, b in ((0, 30), (30, 40), (40, 90))
    ]
    found = merge_moments(merge_moments(parts[0], parts[1]), parts[2]).numpy()
    mean = np.average(values, axis=0, weights=weight)
    wanted = [weight.sum(), *mean, *(weight @ (values - mean) ** 2)]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("value", [-999.0, 999.0])
def test_a_number_that_stands_for_none_is_told(value, caplog):
    y = np.where(np.arange(N) % 20 == 7, value, Y)
    diva_ray.score({"features": X, "label": y}, cluster={"kind": "inline", "threads": 1})
    told = [record.message for record in caplog.records if "stands for a missing one" in record.message]
    assert told and f"column `label` is {value:g} in 3 rows" in told[0]


def test_numbers_of_long_tails_and_many_zeros_stand_for_themselves():
    draw = np.random.default_rng(0)
    for seed in range(40):
        draw = np.random.default_rng(seed)
        claims = np.where(draw.random(500) < 0.9, 0.0, np.round(draw.lognormal(5, 2, 500)))
        for numbers in (
            claims,
            draw.standard_cauchy(500),
            np.array([0.0, 0, 1]),
            np.array([3.0, 3, 3]),
            draw.random(2),
        ):
            parts = [Extremes(Counter(part.tolist())) for part in np.array_split(numbers, 3)]
            found = sum(parts, Extremes())
            assert found.placeholder() is None
            assert found == sum(parts[::-1], Extremes()) == Extremes() + Extremes(Counter(numbers.tolist()))


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_numbers_in_another_unit_are_found_and_uneven_errors_are_not(share):
    draw = np.random.default_rng(1)
    X = draw.standard_normal((1500, 10))
    y = 10 + X @ draw.standard_normal(10) + 0.3 * draw.standard_normal(1500) * np.exp(0.7 * X[:, 0])
    wrong = draw.random(1500) < share
    data = {"features": X, "label": np.where(wrong, 2.54 * y, y), "truth": y}
    result = diva_ray.score(data, truth="truth", quiet=True, cluster={"kind": "inline", "threads": 1})
    found, flagged = result.summary["planted"], result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    assert found["precision"] is None if share == 0 else found["precision"] > 0.9 and found["recall"] > 0.85
    assert share > 0 or not flagged.any()
    assert share > 0 or (found["recall"] is None and found["f1"] is None and "nothing to find" in result.told[-1])


def test_one_wrong_class_of_several_is_found():
    draw = np.random.default_rng(2)
    several = draw.random((1500, 5)) < 0.4
    X = several @ draw.standard_normal((5, 40)) + 0.5 * draw.standard_normal((1500, 40))
    wrong = draw.random(1500) < 0.08
    given = several.copy()
    rows = np.flatnonzero(wrong)
    given[rows, draw.integers(0, 5, len(rows))] ^= True
    data = {"features": X, "label": [np.flatnonzero(row).tolist() for row in given]}
    result = diva_ray.score(data, quiet=True, cluster={"kind": "inline", "threads": 1})
    flagged = result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    assert (flagged & wrong).sum() > 0.95 * wrong.sum() and (flagged & ~wrong).sum() < 0.05 * flagged.sum()
    assert result.summary["label_issue_precision"] > 0.9
    assert abs(result.summary["missing_labels"] - 0.016) < 0.01 and abs(result.summary["added_labels"] - 0.016) < 0.01
    assert "missing from its labels" in result.told[-1]
    clean = diva_ray.score(
        {"features": X, "label": [np.flatnonzero(row).tolist() for row in several]}, quiet=True,
        cluster={"kind": "inline", "threads": 1},
    )  # fmt: skip
    assert clean.summary["n_label_issues"] == 0 and clean.summary["missing_labels"] is None


def test_right_labels_of_rare_classes_are_not_flagged():
    draw = np.random.default_rng(4)
    X = draw.standard_normal((2000, 20))
    score = X @ draw.standard_normal((20, 15))
    several = score > np.quantile(score, 0.95, axis=0)
    data = {"features": X, "label": [np.flatnonzero(row).tolist() for row in several]}
    result = diva_ray.score(data, quiet=True, cluster={"kind": "inline", "threads": 1})
    assert result.summary["n_label_issues"] == 0  # the largest error of a row's classes had 6 in 10 rows flagged
    assert result.samples["label_score"].to_numpy().min() > 0
    pairs = zip(result.samples["label"].to_pylist(), result.samples["predicted_label"].to_pylist(), strict=True)
    missed = [len(set(label) - set(predicted)) for label, predicted in pairs]
    assert sum(missed) < 0.3 * several.sum()  # no output of a class of 5 % is above a half


def test_a_pool_of_several_labels_gives_up_its_right_ones():
    draw = np.random.default_rng(6)
    X = draw.standard_normal((2600, 20))
    several = X @ draw.standard_normal((20, 6)) + 0.3 * draw.standard_normal((2600, 6)) > 0.7
    given = several.copy()
    wrong = np.arange(2600) >= 400
    wrong &= draw.random(2600) < 0.3
    rows = np.flatnonzero(wrong)
    given[rows, draw.integers(0, 6, len(rows))] ^= True
    label = [np.flatnonzero(row).tolist() for row in given]
    core = {"features": X[:400], "label": label[:400]}
    pool = {"features": X[400:], "label": label[400:]}
    result = diva_ray.extend(core, pool, budget=800, quiet=True, cluster={"kind": "inline", "threads": 1})
    chosen = 400 + np.asarray(result.samples["id"])
    assert len(chosen) == 800 and wrong[chosen].mean() < 0.1
    assert abs(result.summary["pool_noise_estimate"] - 0.3) < 0.08


def test_numbers_with_ids_are_judged_alike_in_any_order():
    draw = np.random.default_rng(3)
    X = draw.standard_normal((400, 10))
    y = X @ draw.standard_normal(10) + 0.5 * draw.standard_normal(400)
    y[:40] = y[draw.permutation(40)]
    table = {"features": X, "label": y, "id": np.arange(400)}
    flagged = set()
    for order in (np.arange(400), draw.permutation(400), np.argsort(y)):
        rows = {name: values[order] for name, values in table.items()}
        samples = diva_ray.score(rows, ridge=1.0, quiet=True, cluster={"kind": "inline", "threads": 1}).samples
        issue = samples["is_label_issue"].to_numpy(zero_copy_only=False)
        flagged.add(tuple(sorted(np.array(samples["id"])[issue].tolist())))
    assert len(flagged) == 1 and len(flagged.pop()) > 10


def test_it_is_said_where_wrong_numbers_may_hide_and_that_the_least_scores_are_likeliest():
    draw = np.random.default_rng(0)
    Z = draw.standard_normal((500, 6))
    y, wrong = Z.sum(1) + draw.standard_normal(500), np.arange(500) < 20
    y[wrong] += 4.5 * draw.choice([-1, 1], 20)
    result = score(y, {"features": Z})
    assert result.summary["n_label_issues"] == 0
    assert np.isin(result.samples["label_score"].to_numpy().argsort()[:20], np.flatnonzero(wrong)).mean() > 0.7
    note = "No label is called wrong, though long tails"
    assert [line.startswith(f"note: {note}") and "least label_score" in line for line in result.lines()].count(
        True
    ) == 1
    assert note in Path(result.lines()[-1].removeprefix("report: ")).read_text()
    y[wrong] += 40
    assert not any(note in line for line in score(y, {"features": Z}).lines()), "those that stand apart are flagged"


@pytest.mark.parametrize(("size", "seed"), [(10, 1), (20, 1), (60, 0), (60, 2), (200, 1)])
def test_gross_errors_of_one_size_are_found_and_no_right_number_with_them(size, seed):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(900, 9))
    y = X @ draw.normal(size=9) + 0.3 * draw.normal(size=900)
    bad = draw.random(900) < 1 / 8
    y += np.where(bad, size * draw.choice([-1, 1], 900), 0)
    result = diva_ray.score({"features": X, "label": y}, cluster={"kind": "inline", "threads": 1}, quiet=True)
    assert (result.samples["is_label_issue"].to_numpy() == bad).all()
    assert result.summary["label_issue_precision"] > 0.99
    assert result.summary["detrimental_precision"] is None  # of a cut that a share of all rows passes
    assert result.summary["noise_estimate"] == pytest.approx(bad.mean(), abs=0.01)


def drawn(noise, rows, seed, columns=8):
    """Features, and the numbers that they tell but for noise of variance about 1."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((rows, columns))
    return generator, features, features @ np.full(columns, columns**-0.5) + noise(generator, rows)


@pytest.mark.parametrize(
    ("tails", "rows", "share"),
    [
        pytest.param(tails, rows, share, marks=[pytest.mark.long] * (len(tails) % 2 == (rows == 600)))
        for tails in ("normal", "skewed")
        for rows, share in ((600, 0.2), (600, 0.05), (3000, 0.2))
    ],
)
def test_gross_errors_close_to_the_right_ones_take_none_of_their_tail(tails, rows, share):
    """At 6 standard deviations; a story that spreads them down to the median had called every third flag wrongly."""
    noise = {
        "normal": lambda generator, n: generator.standard_normal(n),
        "skewed": lambda generator, n: (generator.gamma(2, size=n) - 2) / 2**0.5,
    }[tails]
    for seed in range(2):
        generator, features, label = drawn(noise, rows, seed)
        wrong = np.arange(rows) < share * rows
        label[wrong] += 6 * generator.choice([-1, 1], wrong.sum())
        result = diva_ray.score(
            {"features": features, "label": label}, cluster={"kind": "inline", "threads": 1}, quiet=True
        )
        flagged = result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
        precision, recall = wrong[flagged].mean(), flagged[wrong].mean()
        assert precision > 0.85 and recall > 0.85
        assert result.summary["label_issue_precision"] == pytest.approx(precision, abs=0.11)


@pytest.mark.parametrize("seed", [100, *(pytest.param(k, marks=pytest.mark.long) for k in (101, 102))])
def test_rows_of_larger_noise_are_no_gross_errors(seed):
    """Errors of one row in 14 are four times those of the rest: all are right."""
    noise = lambda generator, n: generator.standard_normal(n) * np.where(generator.random(n) < 0.07, 4, 1)  # noqa: E731
    _, features, label = drawn(noise, 5000, seed)
    summary = diva_ray.score(
        {"features": features, "label": label}, cluster={"kind": "inline", "threads": 1}, quiet=True
    ).summary
    assert summary["n_label_issues"] == 0


@pytest.mark.parametrize(("rank", "loss"), [(1, "squared"), (12, "cosine")])
def test_vectors_along_a_line_are_not_judged_by_their_sign(rank, loss):
    """A right one lies on the other side of the center than its prediction as often as that errs."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((600, 20))
    inner = X @ generator.standard_normal((20, rank)) / np.sqrt(20) + generator.standard_normal((600, rank)) * 0.3
    Y = inner @ generator.standard_normal((rank, 24))
    options = {"loss": "cosine", "quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    right = diva_ray.score({"features": X, "label": Y}, **options)
    assert right.summary["n_label_issues"] == 0 and right.summary["label_loss"] == loss
    wrong = generator.random(600) < 0.1
    Y[wrong] = Y[generator.permutation(600)[: wrong.sum()]]
    mixed = diva_ray.score({"features": X, "label": Y}, **options)
    flagged = mixed.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    assert not flagged.any() if rank == 1 else (flagged & wrong).sum() > 0.9 * wrong.sum() > 0.8 * flagged.sum()


def flagged(features, label):
    cluster = {"kind": "inline", "threads": 1}
    result = diva_ray.score({"features": features, "label": label}, task="regression", quiet=True, cluster=cluster)
    return np.array(result.samples["is_label_issue"])


@pytest.mark.parametrize("seed", range(3))
def test_a_few_values_that_nothing_tells_are_no_gross_errors(seed):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(500, 4))
    for label in (generator.integers(1, 5, 500), 12 * (generator.random(500) < 0.2) + generator.integers(0, 3, 500)):
        assert not flagged(X, label.astype(float)).any()


@pytest.mark.parametrize(("gross", "tells"), [("code", True), ("code", False), ("ten times", True)])
def test_gross_numbers_among_a_few_values_are_found(gross, tells):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(800, 5))
    label = np.round(tells * (X @ [1, 2, 0, 0, 1]) + generator.normal(size=800) + 5)
    wrong = generator.random(800) < 0.03
    label[wrong] = -999 if gross == "code" else 10 * label[wrong]
    found = flagged(X, label)
    assert not (found & ~wrong).any() and (found & wrong).sum() >= (1.0 if gross == "code" else 0.7) * wrong.sum()


def test_lumps_that_predictions_tell_apart_are_judged_by_their_errors():
    errors, numbers = 2 * torch.randn(300, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 5.0
    assert loss_verdict.largest_of_common(errors, numbers) == pytest.approx(float(errors.square().max()))
    assert loss_verdict.largest_of_common(errors / 9, numbers) == 0.0
    code = torch.where(torch.arange(300) < 9, -999.0, numbers)  # a code, not a lump
    errors[:9] = 1000.0
    assert loss_verdict.largest_of_common(errors, code) == pytest.approx(float(errors[9:].square().max()))
    assert loss_verdict.largest_of_common(errors, torch.where(code < 0, 12.0, numbers)) == 1000.0**2  # is no code
    assert loss_verdict.largest_of_common(errors, torch.arange(300.0)) == 0.0  # all different


@pytest.mark.parametrize("rows", [6, 10, 15])
def test_nothing_is_told_of_a_handful_of_numbers(rows):
    diabetes = load_diabetes()
    for seed in range(6):
        at = np.random.default_rng(seed).choice(442, rows, replace=False)
        assert not flagged(diabetes.data[at], diabetes.target[at] + 0.25).any()
