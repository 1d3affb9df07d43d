"""A trial's error against refits from scratch by numpy: bands, projection, scales, ridge by leave-one-out, weights."""

from dataclasses import replace

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.config import ClusterConfig, DataConfig, TuneConfig
from diva_ray.core.hashing import splitmix
from diva_ray.core.subspace import gaussian_projection
from diva_ray.errors import InputError
from diva_ray.tasks.fit import study as study_module
from diva_ray.tasks.fit.derive import solve_in_range
from diva_ray.tasks.fit.derived import penalty_pattern
from diva_ray.tasks.fit.study import EVALUATIONS, STARTS, Study
from diva_ray.tasks.fit.trials import SUMS, Record, error_figures, error_of_choosing
from diva_ray.tasks.setup.begin import begin
from diva_ray.tasks.setup.space import parse_space

INLINE = {"kind": "inline", "threads": 1}
N, FOLDS = 240, 3
TRIALS = {
    "all": {},
    "one band": {"bands": ("text",)},
    "the other": {"bands": ("image",), "standardize": "none", "ridge": 30.0},
    "no intercept": {"intercept": False, "ridge": 0.1},
    "projected": {"projection": 5, "ridge": 2.0},
    "projected band": {"projection": 4, "bands": ("text",), "intercept": False},
}


def draw(n=N, seed=0, chance=1.0):
    """Return two bands of different scale, three classes that chance has a part in, some of them wrong, and ids."""
    generator = np.random.default_rng(seed)
    image, text = 7 + 3 * generator.standard_normal((n, 8)), 0.1 * generator.standard_normal((n, 6))
    y = (image[:, :3] / 3 + 10 * text[:, :3] + chance * generator.standard_normal((n, 3))).argmax(1)
    wrong = generator.permutation(n)[: n // 10]
    y[wrong] = (y[wrong] + 1) % 3
    return {"image": image, "text": text, "label": y, "id": np.arange(n)}


@pytest.fixture
def study(tmp_path):
    return open_study(draw(), tmp_path)


def open_study(table, folder, **options):
    given = options.pop("data", DataConfig(features=["image", "text"]))
    options = {"precision": "float64", **options}
    config = TuneConfig(
        data=given, cluster=ClusterConfig(**INLINE), folds=FOLDS, ridge=1.0, output=str(folder),
        space={"ridge": {"loguniform": [0.01, 10.0]}}, **options,
    )  # fmt: skip
    return Study(begin(config, table, None, quiet=True), config)


def fold_of(ids):
    keys = torch.from_numpy(pandas.util.hash_array(ids.astype(np.int64).view(np.uint64)).view(np.int64))
    return splitmix(keys).numpy().view(np.uint64) % np.uint64(FOLDS)


def features(table, bands=("image", "text"), standardize="auto", projection=None, **_):
    """Return the features as the fit must see them."""
    parts = []
    for name in bands:
        X = table[name]
        if standardize == "auto":
            X = X - X.mean(0)
            X = X / np.sqrt((X**2).sum(1).mean())
        if projection is not None and X.shape[1] > projection:
            X = X @ gaussian_projection(X.shape[1], projection, name, 0).numpy()
        parts.append(X)
    return np.hstack(parts)


def fit(X, y, alpha, ridge, intercept=True):
    """Return a function that gives a weighted ridge fit's class for rows of features."""
    Z = np.c_[np.ones(len(X)), X] if intercept else X
    penalty = np.diag(np.r_[np.zeros(int(intercept)), np.full(X.shape[1], ridge)])
    W = np.linalg.solve((Z.T * alpha) @ Z + penalty, (Z.T * alpha) @ np.eye(3)[y])
    return lambda X: (np.c_[np.ones(len(X)), X] if intercept else X) @ W


def wrong_rows(X, y, fold, ridge, alpha=None, intercept=True):
    """Return 1 for every row that a model without its fold gets wrong; `alpha` maps rows to weights."""
    found = np.zeros(len(y))
    for k in range(FOLDS):
        rest = np.flatnonzero(fold != k)
        weight = np.ones(len(rest)) if alpha is None else alpha(rest)
        given = ridge(rest) if callable(ridge) else ridge
        found[fold == k] = fit(X[rest], y[rest], weight, given, intercept)(X[fold == k]).argmax(1) != y[fold == k]
    return found


def judged(study, choice):
    """Return the number of wrong rows of every fold."""
    found = [study.judge(choice, k) for k in range(FOLDS)]
    assert sum(one["rows"] for one in found) == sum(one["weight"] for one in found) == N
    return [one["error"] for one in found]


def by_fold(wrong, fold):
    return [wrong[fold == k].sum() for k in range(FOLDS)]


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_errs_as_refits_without_each_fold_do(study, name):
    table, choice = draw(), replace(parse_space(study.config).base, **TRIALS[name])
    X, fold = features(table, **TRIALS[name]), fold_of(table["id"])
    wrong = wrong_rows(X, table["label"], fold, choice.ridge, intercept=choice.intercept)
    assert judged(study, choice) == by_fold(wrong, fold)
    assert 0.1 < wrong.mean() < 0.7


def test_outputs_agree_and_not_only_their_errors(study):
    table, choice = draw(), replace(parse_space(study.config).base, projection=5)
    fold, X = fold_of(table["id"]), features(table, projection=5)
    rest = fold != 1
    model = study.train(choice, 1)
    Z = np.c_[np.ones(N), features(table)]  # nothing is projected in the columns of the solution
    np.testing.assert_allclose(
        Z @ model.solution.numpy(), fit(X[rest], table["label"][rest], np.ones(rest.sum()), 1.0)(X), rtol=1e-9
    )


def test_ridge_is_chosen_without_the_fold(study):
    table, choice = draw(), replace(parse_space(study.config).base, ridge="auto", bands=("text",))
    X, y, fold = features(table, ("text",)), table["label"], fold_of(table["id"])

    def chosen(rest):
        """Return the ridge of the grid with the least squared error of refits without each row."""
        Z, T = np.c_[np.ones(len(rest)), X[rest]], np.eye(3)[y[rest]]
        centred = X[rest] - X[rest].mean(0)
        grid = (centred**2).sum() / X.shape[1] * np.logspace(-6, 3, 20)
        losses = []
        for ridge in grid:
            penalty = np.diag(np.r_[0.0, np.full(X.shape[1], ridge)])
            errors = []
            for i in range(len(rest)):
                keep = np.arange(len(rest)) != i
                errors.append(T[i] - Z[i] @ np.linalg.solve(Z[keep].T @ Z[keep] + penalty, Z[keep].T @ T[keep]))
            losses.append((np.array(errors) ** 2).sum())
        return grid[int(np.argmin(losses))]

    found = [study.judge(choice, k) for k in range(FOLDS)]
    ridges = [chosen(np.flatnonzero(fold != k)) for k in range(FOLDS)]
    np.testing.assert_allclose([one["ridge"] for one in found], ridges, rtol=1e-9)
    assert study.passes["ridge"] == FOLDS
    judged(study, replace(choice, rule="paper"))
    assert study.passes["ridge"] == FOLDS, "the same columns have the same ridge"


@pytest.mark.parametrize(
    "rule", ["shrink", "paper", "drop_label_issues", "drop_detrimental", "weigh_doubtful", "weigh_uncertain"]
)
def test_weights_follow_the_rows_outside_the_fold_alone(tmp_path, rule):
    """Against scoring runs on tables without the fold, and refits under the weights that follow."""
    table = draw(chance=0.2)  # or wrong labels could be chance's
    study = open_study(table, tmp_path)
    choice = replace(parse_space(study.config).base, rule=rule, eta=0.5, standardize="none")
    X, y, fold = features(table, standardize="none"), table["label"], fold_of(table["id"])
    changed = []

    def alpha(rest):
        part = {name: values[rest] for name, values in table.items()}
        scored = diva_ray.score(
            part, features=["image", "text"], ridge=1.0, standardize="none", labeller_doubt="off", cluster=INLINE,
            precision="float64", quiet=True, outputs=True,
        )  # fmt: skip
        found, unsure = scored.samples.to_pandas(), 1 - np.square(scored.pred_probs()).sum(1)
        d, se = found["derivative"].to_numpy(np.float64), found["standard_error"].to_numpy(np.float64)
        weight = {
            "shrink": np.where(d > 0, np.minimum(1, se / np.where(d > 0, d, 1)), 1.0),
            "paper": np.maximum(1 - 0.5 * d, 0),
            "drop_label_issues": 1.0 - found["is_label_issue"].to_numpy(),
            "drop_detrimental": 1.0 - found["is_detrimental"].to_numpy(),
            "weigh_doubtful": np.minimum(1, 2 * found["label_score"].to_numpy(np.float64)),
            "weigh_uncertain": np.minimum(1, 2 * found["label_score"].to_numpy(np.float64))
            * (0.5 + 0.5 * unsure / unsure.mean()),
        }[rule]
        changed.append((weight != 1).mean())
        return weight if rule == "paper" else weight * len(weight) / weight.sum()  # plain steps keep no mean

    assert judged(study, choice) == by_fold(wrong_rows(X, y, fold, 1.0, alpha), fold)
    assert max(changed) > 0.01
    rest = np.flatnonzero(fold != 1)
    outputs = np.c_[np.ones(N), X] @ study.train(choice, 1).solution.numpy()
    np.testing.assert_allclose(outputs, fit(X[rest], y[rest], alpha(rest), 1.0)(X), rtol=1e-4, atol=1e-5)
    assert np.abs(outputs - fit(X[rest], y[rest], np.ones(len(rest)), 1.0)(X)).max() > 1e-3, "it changes something"


def banded(X, y, fold, penalties):
    """Return 1 for every row that a model without its fold gets wrong; `penalties` of each column, by its rows."""
    found = np.zeros(len(y))
    for k in range(FOLDS):
        rest = np.flatnonzero(fold != k)
        Z = np.c_[np.ones(len(rest)), X[rest]]
        W = np.linalg.solve(Z.T @ Z + np.diag(np.r_[0.0, penalties(rest)]), Z.T @ np.eye(3)[y[rest]])
        found[fold == k] = (np.c_[np.ones(N), X][fold == k] @ W).argmax(1) != y[fold == k]
    return found


def test_given_shares_are_penalties_of_bands(study):
    table, shares = draw(), {"image": 0.002, "text": 4.0}
    X, y, fold = features(table), table["label"], fold_of(table["id"])
    choice = replace(parse_space(study.config).base, shares=shares, ridge=2.0)
    wrong = banded(X, y, fold, lambda rest: np.r_[np.full(8, 2.0 / 0.002), np.full(6, 2.0 / 4.0)])
    assert judged(study, choice) == by_fold(wrong, fold)
    assert judged(study, choice) != judged(study, replace(choice, shares="none"))
    small, few = features(table, projection=5), replace(choice, projection=5)
    wrong = banded(small, y, fold, lambda rest: np.r_[np.full(5, 2.0 / 0.002), np.full(5, 2.0 / 4.0)])
    assert judged(study, few) == by_fold(wrong, fold)
    alone = replace(choice, bands=("text",), ridge=8.0)  # a penalty of 8 / 4
    assert judged(study, alone) == judged(study, replace(alone, shares="none", ridge=2.0))


def test_shares_are_found_without_the_fold(study):
    """Against runs of `aggregate` on tables without the fold."""
    table = draw()
    X, y, fold = features(table, standardize="none"), table["label"], fold_of(table["id"])
    choice = replace(parse_space(study.config).base, shares="auto", ridge="auto", standardize="none")

    def penalties(rest):
        part = {name: values[rest] for name, values in table.items()}
        bands = diva_ray.aggregate(
            part, features=["image", "text"], standardize="none", precision="float64", starts=STARTS,
            evaluations=EVALUATIONS, cluster=INLINE, quiet=True,
        ).summary["bands"]  # fmt: skip
        found = [one["penalty"] for one in (bands.values() if isinstance(bands, dict) else bands)]
        return np.repeat(found, [8, 6])

    assert judged(study, choice) == by_fold(banded(X, y, fold, penalties), fold)
    before = study.passes["shares"]
    assert judged(study, replace(choice, rule="paper", eta=1e-12)) == judged(study, choice)
    assert study.passes["shares"] == before, "the same columns have the same shares"
    rest = np.flatnonzero(fold != 1)
    Z = np.c_[np.ones(len(rest)), X[rest]]
    W = np.linalg.solve(Z.T @ Z + np.diag(np.r_[0.0, penalties(rest)]), Z.T @ np.eye(3)[y[rest]])
    model = study.train(choice, 1)
    roots = np.r_[1.0, np.repeat(model.scale.scale, [8, 6])]
    np.testing.assert_allclose(roots[:, None] * model.solution.numpy(), W, rtol=1e-6, atol=1e-9)


def test_rows_of_the_fold_do_not_count_where_errors_are_counted(study, monkeypatch):
    seen = []
    search = study_module.PenaltySearch
    monkeypatch.setattr(study_module, "PenaltySearch", lambda *args: seen.append(args[2:4]) or search(*args))
    fold = fold_of(np.arange(N))
    for k in range(2):
        study.train(replace(parse_space(study.config).base, shares="auto"), k)
    assert seen == [(float((fold != k).sum()), int((fold != k).sum())) for k in range(2)]


def test_sums_are_made_once_and_the_order_of_trials_changes_no_bit(study, tmp_path):
    base = parse_space(study.config).base
    choices = [
        replace(base, **more) for more in (*TRIALS.values(), {"rule": "shrink"}, {"ridge": "auto"}, {"shares": "auto"})
    ]
    found = {k: [dict(study.judge(one, 1)), study.train(one, 1).solution] for k, one in enumerate(choices)}
    assert study.passes["fit"] == 2, "one for each standardisation"
    other = open_study(draw(), tmp_path / "other")
    for k in reversed(range(len(choices))):
        assert dict(other.judge(choices[k], 1)) == found[k][0]
        assert torch.equal(other.train(choices[k], 1).solution, found[k][1])


def test_float64_is_taken_where_a_trial_needs_it_and_leaves_no_trace(tmp_path):
    """An ill-conditioned choice between two others must not change their bits, targets that are cached included."""
    generator = np.random.default_rng(1)
    X = generator.standard_normal((N, 14)) @ np.diag(np.logspace(0, -4, 14))
    table = {"image": X[:, :8], "text": X[:, 8:], "label": X @ generator.standard_normal(14), "id": np.arange(N)}
    runs = []
    for order in ((1.0, 1e-9, 1.0), (1e-9, 1.0, 1e-9)):
        study = open_study(table, tmp_path / str(order[0]))  # precision=float64; from here on as auto:
        study.session.setup = replace(study.session.setup, dtype=torch.float32)
        base = replace(parse_space(study.config).base, standardize="none")
        runs.append({ridge: dict(study.judge(replace(base, ridge=ridge), 0)) for ridge in order})
        assert {dtype for _, dtype in study.sums} == {torch.float32, torch.float64}
    assert runs[0] == runs[1]
    double = open_study(table, tmp_path / "double")
    assert dict(double.judge(replace(base, ridge=1e-9), 0)) == runs[0][1e-9], "float64 from the targets on"


def test_sums_that_float32_makes_indefinite_are_made_again(tmp_path):
    table = draw()
    table["text"] = table["image"][:, :6] + 1e-5 * table["text"]
    double, single = open_study(table, tmp_path / "double"), open_study(table, tmp_path / "single")
    single.session.setup = replace(single.session.setup, dtype=torch.float32)
    choice = replace(parse_space(double.config).base, ridge=1e-9, standardize="none")
    setup = single.setup(choice)
    sums, double_setup = single._fit_sums(choice, setup, 0), replace(setup, dtype=torch.float64)
    with pytest.raises(InputError, match="positive definite"):
        solve_in_range(double.session.runner, double_setup, sums, 1e-9 * penalty_pattern(setup))
    assert dict(single.judge(choice, 0)) == dict(double.judge(choice, 0))


def test_a_validation_table_is_what_trials_are_judged_on(tmp_path):
    table, other = draw(), draw(90, seed=1)
    rows = pa.table({name: values.tolist() for name, values in other.items()})
    pq.write_table(rows, tmp_path / "held_out.parquet")
    config = TuneConfig(
        data=DataConfig(features=["image", "text"]), cluster=ClusterConfig(**INLINE), folds=FOLDS,
        ridge=1.0, output=str(tmp_path / "out"), space={"ridge": {"loguniform": [0.01, 10.0]}}, standardize="none",
    )  # fmt: skip
    config.validation.path = str(tmp_path / "held_out.parquet")
    study = Study(begin(config, table, None, quiet=True), config)
    found = [study.judge(parse_space(config).base, k) for k in range(FOLDS)]
    model = fit(features(table, standardize="none"), table["label"], np.ones(N), 1.0)
    wrong = model(features(other, standardize="none")).argmax(1) != other["label"]
    assert sum(one["rows"] for one in found) == 90
    assert sum(one["error"] for one in found) == wrong.sum()


def test_the_interval_is_that_of_a_ratio_over_groups(tmp_path):
    table = draw()
    group, v = np.arange(N) // 3, np.random.default_rng(2).uniform(0.5, 2.0, N)
    given = DataConfig(features=["image", "text"], group="group", validation_weight="v")
    study = open_study({**table, "group": group, "v": v}, tmp_path, data=given)
    found = [study.judge(parse_space(study.config).base, k) for k in range(FOLDS)]
    sums = {name: sum(one[name] for one in found) for name in SUMS}
    keys = torch.from_numpy(pandas.util.hash_array(group.astype(np.int64).view(np.uint64)).view(np.int64))
    fold = splitmix(keys).numpy().view(np.uint64) % np.uint64(FOLDS)
    wrong = wrong_rows(features(table), table["label"], fold, 1.0)
    w, s = np.bincount(group, v), np.bincount(group, v * wrong)
    mean = s.sum() / w.sum()
    error = np.sqrt(((s - mean * w) ** 2).sum()) / w.sum()
    figures = error_figures(sums, counted=False)
    np.testing.assert_allclose([figures["error"], figures["standard_error"]], [mean, error], rtol=1e-12)
    assert figures["high"] - figures["low"] == pytest.approx(2 * 1.959964 * error)


@pytest.mark.parametrize("rows", [40, 400])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 1.0])
def test_the_interval_of_counted_errors_holds_the_truth_where_few_are_wrong(rows, share):
    from scipy.stats import binom, binomtest

    found = [error_figures({"weight": rows, "weight_weight": rows, "error": k, "weight_error": k, "error_error": k},
                           counted=True) for k in range(rows + 1)]  # fmt: skip
    for k in (0, 1, rows // 3, rows):
        wilson = binomtest(k, rows).proportion_ci(method="wilson")
        assert (found[k]["low"], found[k]["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-8)
    held = [one["low"] - 1e-12 <= share <= one["high"] + 1e-12 for one in found]
    assert binom.pmf(np.arange(rows + 1), rows, share) @ held > 0.92
    doubled = {"weight": 2.0 * rows, "weight_weight": 4.0 * rows, "error": 0.0, "weight_error": 0.0, "error_error": 0.0}
    assert error_figures(doubled, counted=True) == pytest.approx(found[0]), (
        "a weight that all rows have changes nothing"
    )


def test_the_error_of_choosing_pays_for_luck():
    """Of three trials that are lucky on one fold each, the best by the others is not lucky on the one that judges."""
    records = [Record(k, None, 3, [{"error": e, "weight": 10.0} for e in errors])  # type: ignore[arg-type]
               for k, errors in enumerate(([0.0, 5.0, 5.0], [5.0, 0.0, 5.0], [5.0, 5.0, 0.0]))]  # fmt: skip
    assert error_of_choosing(records) == 15 / 30
    assert error_of_choosing(records[:1]) is None
    clear = [*records, Record(3, None, 3, [{"error": 1.0, "weight": 10.0}] * 3)]  # type: ignore[arg-type]
    assert error_of_choosing(clear) == 3 / 30


def far_table(far, n=300):
    generator = np.random.default_rng(0)
    y = generator.standard_normal(n)
    return {"features": y[:, None] + 0.3 * generator.standard_normal((n, 6)) + far, "label": y, "id": np.arange(n)}


@pytest.mark.parametrize("far", [300, 3000])
def test_the_ridge_of_a_trial_on_columns_far_from_0_is_the_one_of_float64(far, tmp_path):
    """Float32 sums chose 114 and 5,602 instead of 13: they hold little but the means."""
    ridges = []
    for precision in ("auto", "float64"):
        study = open_study(far_table(far, 3000), tmp_path / precision, data=DataConfig(), precision=precision)
        choice = replace(parse_space(study.config).base, standardize="none", ridge="auto")
        ridges.append(study.train(choice, 0).ridge)
    assert ridges[0] == pytest.approx(ridges[1], rel=1e-9) and 1 < ridges[0] < 50


def test_a_search_that_takes_columns_as_they_are_refuses_those_that_hold_their_mean_only(tmp_path):
    with pytest.raises(InputError, match="with standardize=none a column's mean must be at most"):
        diva_ray.tune(
            far_table(1e9), space={"standardize": {"choice": ["auto", "none"]}}, search="grid", quiet=True,
            cluster=INLINE, output=str(tmp_path / "run"),
        )  # fmt: skip
