"""Weights, groups, sources, offsets, a validation table: end to end against refits and autograd."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

import diva_ray
from diva_ray.data.columns import row_keys
from diva_ray.data.regroup import regroup_in_memory
from diva_ray.data.shards import Columns
from diva_ray.data.table import from_arrow
from diva_ray.engine.kernels.moments import band_moments, between

from ..oracles import Problem, assert_close, gradients, held_out_gradient, standard_errors
from .tables import INLINE, derivatives, in_float64, problem, score, vectors, write

N = 36
GENERATOR = np.random.default_rng(5)
A, B = GENERATOR.standard_normal((N, 3)), GENERATOR.standard_normal((N, 2)) * 4 + 1
MISSING = np.arange(N) % 5 == 2
CODES = (A + GENERATOR.standard_normal((N, 3))).argmax(1)
ALPHA, VALIDATION = GENERATOR.random(N) * 2, GENERATOR.random(N)
ALPHA[3], VALIDATION[7] = 0, 0
OFFSET = GENERATOR.standard_normal((N, 3)) / 3
GROUPS = np.r_[np.arange(12), np.arange(12), np.arange(12)]  # scattered inside the shard
TARGETS = {
    "classification": (CODES, "cross_entropy"),
    "regression": (A[:, 0] + 0.3 * GENERATOR.standard_normal(N), "squared"),
    "vector": (A[:, :2] + 0.3 * GENERATOR.standard_normal((N, 2)), "squared"),
    "multilabel": ([[k for k in range(3) if row[k] > 0] for row in A], "logistic"),
}


def standardised(standardize, rows=slice(None)):
    """Return both bands as the fit sees them, missing rows as zeros."""
    bands = []
    for band, gone in ((A, np.zeros(N, bool)), (B, MISSING)):
        here = band[~gone]
        mean = here.mean(0) if standardize == "auto" else 0
        scale = ((here - mean) ** 2).sum(1).mean() ** -0.5 if standardize == "auto" else 1
        bands.append(np.where(gone[:, None], 0, (band - mean) * scale))
    return np.concatenate(bands, 1)[rows]


def oracle(task, standardize, intercept, *, groups=None, offset=None, ridge=0.7):
    Y, kind = TARGETS[task]
    body = standardised(standardize)
    Z = torch.from_numpy(np.c_[np.ones(N), body] if intercept else body)
    Lambda = torch.full((Z.shape[1],), ridge, dtype=torch.float64)
    Lambda[: int(intercept)] = 0
    if task == "classification":
        target = torch.from_numpy(Y)
    elif task == "multilabel":
        target = torch.tensor([[float(k in row) for k in range(3)] for row in Y], dtype=torch.float64)
    else:
        target = torch.from_numpy(np.asarray(Y).reshape(N, -1))
    outputs = 3 if target.ndim == 1 else target.shape[1]
    zeros = torch.zeros(N, outputs, dtype=torch.float64)
    codes = torch.arange(N) if groups is None else torch.from_numpy(groups)
    moved = zeros if offset is None else torch.from_numpy(offset)
    return Problem(Z, target, torch.from_numpy(ALPHA), torch.from_numpy(VALIDATION), Lambda, moved, codes, kind)


def table(task, **columns):
    label = TARGETS[task][0]
    holed = pa.array([None if g else row for g, row in zip(MISSING, B.tolist(), strict=True)], pa.list_(pa.float64()))
    return {"a": A, "b": holed, "label": label, "w": ALPHA, "v": VALIDATION, **columns}


ROLES = {"features": ["a", "b"], "weight": "w", "validation_weight": "v", "ridge": 0.7}


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("standardize", ["auto", "none"])
@pytest.mark.parametrize("task", TARGETS)
def test_the_derivative_is_that_of_refits(task, standardize, intercept):
    found = in_float64(table(task), standardize=standardize, intercept=intercept, **ROLES)
    wanted = oracle(task, standardize, intercept)
    assert_close(found[:, 0], gradients(wanted)[0], 1e-9, "derivative")


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_groups_and_offsets_are_those_of_refits(form):
    data = table("classification", g=[f"user {k}" for k in GROUPS], o=OFFSET)
    roles = {**ROLES, "group": "g", "offset": "o"}
    wanted = oracle("classification", "auto", True, groups=GROUPS, offset=OFFSET)
    if form == "dual":  # columns of zeros change nothing but the form
        data["wide"] = np.zeros((N, 50))
        roles["features"] = ["a", "b", "wide"]
    found = in_float64(data, **roles)
    assert_close(found[:, 0], gradients(wanted)[0], 1e-9, "derivative")
    assert_close(found[:, 1], standard_errors(wanted), 1e-9, "standard error")


def test_a_separate_validation_table_is_that_of_one_fit(tmp_path):
    """Its rows neither train nor shape the scale; its ids may be those of training rows, or be missing."""
    train, rest = np.arange(N) < 24, np.arange(N) >= 24
    full = pa.table(
        {**{k: vectors(x) for k, x in (("a", A), ("o", OFFSET))}, "label": CODES, "v": VALIDATION, "w": ALPHA}
    )
    ids = pa.array(np.arange(1, 13))
    mean, scale = A[train].mean(0), ((A[train] - A[train].mean(0)) ** 2).sum(1).mean() ** -0.5
    Z = torch.from_numpy(np.c_[np.ones(N), (A - mean) * scale])
    Lambda = torch.tensor([0, 0.7, 0.7, 0.7], dtype=torch.float64)
    whole = Problem(
        Z, torch.from_numpy(CODES), torch.from_numpy(ALPHA), torch.from_numpy(VALIDATION), Lambda,
        torch.from_numpy(OFFSET), torch.arange(N), "cross_entropy",
    )  # fmt: skip
    wanted = held_out_gradient(*(whole.rows(torch.from_numpy(np.flatnonzero(part))) for part in (train, rest)))
    roles = {**ROLES, "features": "a", "offset": "o"}
    for k, held_out in enumerate((full.slice(24), full.slice(24).append_column("id", ids))):
        path = tmp_path / f"{k}.parquet"
        pq.write_table(held_out, path)
        training = full.slice(0, 24).append_column("id", pa.array(np.arange(24)))
        found = in_float64(training, validation=str(path), **roles)
        assert_close(found[:, 0], wanted, 1e-9, "derivative")
        rows = score(training, validation=str(path), **roles).samples
        assert rows["id"].to_pylist() == list(range(24))


BIG, LABELS = problem(n=2600)


def grouped(kind):
    """Return groups of two to four rows: together, scattered inside shards, or over both shards."""
    codes = np.arange(2600) // 4
    order = np.random.default_rng(1)
    if kind == "inside":
        return np.concatenate([order.permutation(codes[:1300]), order.permutation(codes[1300:])])
    return order.permutation(codes) if kind == "over" else codes


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("kind", ["together", "inside", "over"])
def test_groups_leave_together_wherever_their_rows_lie(kind, names, tmp_path):
    codes = grouped(kind)
    values = pa.array([f"user {k}" for k in codes]) if names else pa.array(codes)
    data = pa.table({"features": vectors(BIG), "label": LABELS, "g": values, "id": np.arange(2600)[::-1]})
    order = np.argsort(codes, kind="stable")
    wanted = in_float64(data.take(pa.array(order)), group="g")
    back = np.argsort(order)
    found = in_float64(data, group="g")
    assert_close(found[:, 0], wanted[back, 0], 1e-12, "derivative")
    assert_close(found[:, 1], wanted[back, 1], 1e-12, "standard error")
    rows = score(write(tmp_path, data, (1000,), 300), group="g", precision="float64").samples
    assert rows["id"].to_pylist() == list(range(2600))[::-1]
    assert rows["group"].to_pylist() == values.to_pylist() and "__row__" not in rows.column_names
    np.testing.assert_allclose(rows["derivative"].to_numpy(), found[:, 0].numpy(), rtol=1e-6)


def test_groups_change_the_answer():
    alone = derivatives({"features": BIG, "label": LABELS})
    assert not np.allclose(alone, derivatives({"features": BIG, "label": LABELS, "g": grouped("over")}, group="g"))


def test_weights_are_read_in_any_number_type():
    w = np.random.default_rng(0).integers(0, 4, N)
    wanted = derivatives({"features": A, "label": CODES, "w": w.astype(float)}, weight="w")
    for kind in ("uint8", "uint16", "int64", "float16", "float32"):
        result = score({"features": A, "label": CODES, "w": w.astype(kind)}, weight="w")
        assert np.array_equal(result.samples["derivative"].to_numpy(), wanted)
        assert result.samples["weight"].to_pylist() == w.tolist()


@pytest.mark.parametrize("standard_errors", ["exact", "estimate"])
def test_sources_sum_their_rows(standard_errors):
    names = np.array(["crawl", "annotator", None], object)[np.random.default_rng(2).integers(0, 3, 2600)]
    result = score({"features": BIG, "label": LABELS, "s": names}, source="s", standard_errors=standard_errors)
    rows = result.samples
    with result.folder.filesystem.open_input_file(f"{result.folder.base}/sources.parquet") as file:
        sources = {row["source"]: row for row in pq.read_table(file).to_pylist()}
    assert set(sources) == {"crawl", "annotator", "(none)"}
    assert rows["source"].to_pylist() == names.tolist()
    d, flagged = rows["derivative"].to_numpy(), rows["is_detrimental"].to_numpy()
    for name, row in sources.items():
        mine = names == (None if name == "(none)" else name)
        assert row["n"] == mine.sum() and row["n_detrimental"] == flagged[mine].sum()
        np.testing.assert_allclose(row["derivative"], d[mine].astype(float).sum(), rtol=1e-3, atol=1e-3)
        assert row["standard_error"] > 0


@pytest.mark.parametrize("taken,name", [(["(none)"], "(none 2)"), (["(none)", "(none 2)"], "(none 3)")])
def test_rows_without_a_source_are_no_source_of_that_name(taken, name):
    names = np.array([*taken, "crawl", None], object)[np.random.default_rng(2).integers(0, len(taken) + 2, 2600)]
    data = {"features": BIG, "label": LABELS, "s": names}
    scored, weighed = (
        score(data, source="s"),
        diva_ray.reweight(data, source="s", quiet=True, cluster=INLINE, steps=1, folds=2),
    )
    for result in (scored, weighed):
        with result.folder.filesystem.open_input_file(f"{result.folder.base}/sources.parquet") as file:
            found = {row["source"]: row["n"] for row in pq.read_table(file).to_pylist()}
        assert found == {n: (names == n).sum() for n in [*taken, "crawl"]} | {name: np.equal(names, None).sum()}


def test_no_sources_no_file():
    result = score({"features": A, "label": CODES})
    assert "sources.parquet" not in result.folder.names("")


@pytest.mark.parametrize("far", [1e4, 1e6, 1e8])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_band_far_from_zero_is_scaled_as_it_is_near(far, gaps):
    X = np.round(np.random.default_rng(5).standard_normal((2600, 4)) * 8) / 8 * 2.0**-3
    labels = (X[:, :3] + 0.1 * np.random.default_rng(6).standard_normal((2600, 3))).argmax(1)
    given = {}
    for name, shift in (("near", 0.0), ("far", far)):  # exact: in 64ths
        rows = [None if gaps and k % 5 == 0 else list(row + shift * (1 + np.arange(4))) for k, row in enumerate(X)]
        given[name] = pa.table({"features": pa.array(rows, pa.list_(pa.float64(), 4)), "label": labels})
    near, apart = (score(given[name]).samples["derivative"].to_numpy() for name in ("near", "far"))
    np.testing.assert_allclose(apart, near, rtol=1e-4, atol=1e-4 * np.abs(near).max())


@pytest.mark.parametrize("form", ["gaps", "no intercept"])
def test_a_mean_of_many_standard_deviations_costs_single_precision_no_digits(form):
    X = 2.85506 + 0.003 * np.random.default_rng(11).standard_normal((400, 6))
    labels = (X[:, :3] + 0.001 * np.random.default_rng(12).standard_normal((400, 3))).argmax(1)
    rows = pa.array([None if form == "gaps" and k % 3 == 0 else list(row) for k, row in enumerate(X)])
    options = {"intercept": form == "gaps", "ridge": 5.0}
    found, wanted = (
        score(pa.table({"features": rows, "label": labels}), precision=precision, **options).samples
        for precision in ("float32", "float64")
    )
    for name in ("derivative", "standard_error", "loss"):
        exact = wanted[name].to_numpy()
        np.testing.assert_allclose(found[name].to_numpy(), exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_moments_of_bands_agree_with_numpy_however_rows_are_cut():
    generator = np.random.default_rng(7)
    X = generator.standard_normal((500, 3)) + 1e7
    wanted = ((X - X.mean(0)) ** 2).sum(0)
    for cuts in ([250], [1, 2, 499], [100, 200, 300, 400]):
        rows, total, square = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for part in np.split(X, cuts):
            count, more, own = band_moments(torch.from_numpy(part), None)
            square += own + between(rows, total, count, more)
            rows, total = rows + count, total + more
        assert rows == 500
        np.testing.assert_allclose(square, wanted, rtol=1e-8)
        np.testing.assert_allclose(total, X.sum(0), rtol=1e-14)
    absent = np.arange(500) % 3 == 0  # the first among them
    rows, total, square = band_moments(torch.from_numpy(np.where(absent[:, None], 0, X)), torch.from_numpy(absent))
    left = X[~absent]
    assert rows == len(left)
    np.testing.assert_allclose(square, ((left - left.mean(0)) ** 2).sum(0), rtol=1e-8)
    same = torch.full((6000, 2), 0.1, dtype=torch.float64)
    assert band_moments(same, None)[2].max() <= 1e-24 * 60
    assert band_moments(same[:9], absent=torch.ones(9) > 0)[2].tolist() == [0, 0]


def test_columns_of_different_units_are_told(caplog):
    wine = load_wine()
    score({"features": wine.data, "label": wine.target})
    assert "standard deviations of columns of `features` go from 0.12 to 3.1e+02" in caplog.text
    caplog.clear()
    score({"features": wine.data / wine.data.std(0), "label": wine.target})
    score({"features": load_digits().data, "label": load_digits().target})  # some pixels are hardly ever black
    score(
        {"mean": wine.data[:, :1], "other": 1e6 * wine.data[:, 1:2], "label": wine.target}, features=["mean", "other"]
    )
    assert "standard deviations of columns" not in caplog.text


@pytest.mark.parametrize(("kind", "told"), [("one", True), ("several", True), ("half", False), ("asked", False)])
def test_vectors_of_zeros_and_ones_are_told(kind, told, caplog):
    digits = load_digits()
    hot = np.eye(10)[digits.target]
    if kind == "several":
        hot[::3, 2] = 1
    if kind == "half":
        hot[0, :2] = 0.5
    score({"features": digits.data, "label": hot}, **({"task": "vector"} if kind == "asked" else {}))
    assert ("column `label` holds vectors of 10 zeros and ones" in caplog.text) == told


def test_an_update_of_a_band_far_from_zero_is_the_run_from_scratch(tmp_path):
    X = np.random.default_rng(8).standard_normal((2600, 4)) + 1e7 * (1 + np.arange(4))
    y = (X - X.mean(0))[:, :3].argmax(1)
    options = {"cluster": INLINE, "quiet": True, "ridge": 0.5, "precision": "float64"}
    diva_ray.score({"features": X[:2000], "label": y[:2000]}, **options, output=str(tmp_path / "one"))
    table = {"features": X, "label": y}
    fresh, updated = (diva_ray.score(table, **options, update=run) for run in (None, str(tmp_path / "one")))
    assert updated.summary["update"]["rows_unchanged"] > 1000
    found, wanted = (result.samples["derivative"].to_numpy() for result in (updated, fresh))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_scattered_groups_come_in_the_order_in_which_ray_data_sorts_them():
    groups = pa.array([f"group {k}" for k in np.random.default_rng(0).integers(0, 90, 300)])
    rows = pa.table({"features": np.arange(300.0), "label": np.arange(300) % 2, "group": groups})
    table = regroup_in_memory(from_arrow(rows, "rows"), Columns(("features",), "label", group="group"))
    found = table.reader().read(0, 300, ["group", "__row__"])
    keys = row_keys(found["group"].combine_chunks()).view(np.int64)  # Parquet and Arrow sort signed numbers
    assert (keys < 0).any() and (keys[1:] >= keys[:-1]).all()
    assert (np.diff(found["__row__"].to_numpy())[keys[1:] == keys[:-1]] > 0).all()
