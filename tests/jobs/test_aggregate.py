"""Aggregation of bands, on digits and on tables made so that the answer is known."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.optimize import minimize

import diva_ray
from diva_ray.data.sources import digits_bands
from diva_ray.engine.kernels.bands import against
from diva_ray.errors import InputError
from diva_ray.tasks.told import aggregated, joint
from tests.forks import run_job

ROOT = Path(__file__).resolve().parent.parent.parent
INLINE = {"kind": "inline", "threads": 1}
BANDS = ["signal", "faint", "random"]


def table(n=240, seed=0, missing=False, width=30):
    """Three bands of which one tells the class, one tells it faintly, and one nothing; half the rows lack `faint`."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    means = 1.5 * generator.standard_normal((3, 8))
    bands = {
        "signal": means[y] + generator.standard_normal((n, 8)),
        "faint": 0.3 * means[y] + generator.standard_normal((n, 8)),
        "random": 5 * generator.standard_normal((n, width)),
    }
    columns = {name: [row.tolist() for row in band.astype(np.float32)] for name, band in bands.items()}
    if missing:
        columns["faint"] = [row if k % 2 else None for k, row in enumerate(columns["faint"])]
    return pa.table({"label": y, **columns})


def run(data, features=BANDS, **options):
    return diva_ray.aggregate(data, features=features, **{"cluster": INLINE, "quiet": True, **options})


def standardised(data, names):
    """Bands centred and of unit mean squared norm where they are there, zeros elsewhere."""
    parts = []
    for name in names:
        rows = data[name].to_pylist()
        there = np.array([row is not None for row in rows])
        width = len(rows[int(there.argmax())])
        X = np.array([row if row is not None else [0.0] * width for row in rows])
        centred = X[there] - X[there].mean(0)
        X[there] = centred / np.sqrt((centred**2).sum(1).mean())
        parts.append(X)
    return parts


def left_out(parts, y, penalties, groups=None):
    """Return outputs of refits, each without one group, from the normal equations less the group's own part."""
    Z = np.c_[np.ones(len(y)), *parts]
    Lambda = np.diag(np.r_[0.0, *[np.full(X.shape[1], q) for X, q in zip(parts, penalties, strict=True)]])
    Y, F = np.eye(int(y.max()) + 1)[y], np.empty((len(y), int(y.max()) + 1))
    groups = np.arange(len(y)) if groups is None else groups
    A, B = Z.T @ Z + Lambda, Z.T @ Y
    for group in np.unique(groups):
        out = groups == group
        W = np.linalg.solve(A - Z[out].T @ Z[out], B - Z[out].T @ Y[out])
        F[out] = Z[out] @ W
    return F


def squared_error(parts, y, penalties, groups=None):
    return float(((left_out(parts, y, penalties, groups) - np.eye(int(y.max()) + 1)[y]) ** 2).sum(1).mean())


def searched(summary, penalties):
    """Return where the search ended, before one multiple of all penalties was taken by counted errors."""
    return [penalty / summary["ridge_multiple"] for penalty in penalties]


def test_the_multiple_of_the_penalties_is_the_nearest_to_1_within_a_standard_error_of_the_fewest_wrong():
    generator = np.random.default_rng(0)
    y = np.arange(600) % 150  # many classes, few rows of each: squared error shrinks too much
    means = generator.standard_normal((150, 30))
    rows = (means[y] + 0.6 * generator.standard_normal((600, 30))).astype(np.float32)
    data = pa.table({"label": y, "signal": list(rows[:, :15]), "faint": list(rows[:, 15:])})
    parts = standardised(data, ["signal", "faint"])
    s = run(data, ["signal", "faint"], precision="float64").summary
    ended = searched(s, [s["bands"][name]["penalty"] for name in ("signal", "faint")])
    multiples = np.logspace(-1.5, 1, 11)
    wrong = np.array([(left_out(parts, y, [k * q for q in ended]).argmax(1) != y).sum() for k in multiples])
    alike = multiples[wrong <= wrong.min() + np.sqrt(wrong.min() * (1 - wrong.min() / 600))]
    expected = alike[np.abs(np.log(alike)).argmin()]
    assert expected < 0.9, "a case in which another multiple is taken"
    assert s["ridge_multiple"] == pytest.approx(expected)
    louder = data.append_column("loud", pa.array(np.full(600, 50.0)))
    louder = run(louder, ["signal", "faint"], precision="float64", validation_weight="loud").summary
    assert louder["ridge_multiple"] == s["ridge_multiple"], "validation weights are no rows"
    numbers = data.set_column(0, "label", [np.arange(600) / 7])
    assert run(numbers, ["signal", "faint"]).summary["ridge_multiple"] == 1


@pytest.mark.parametrize("missing", [False, True])
def test_the_penalties_are_those_of_a_search_by_refits(missing):
    data = table(90, missing=missing)
    y, parts = np.array(data["label"]), standardised(data, ["signal", "faint"])
    result = run(data, ["signal", "faint"], precision="float64", starts=4, evaluations=60)
    s = result.summary
    best = min(
        (minimize(lambda x: squared_error(parts, y, np.exp(x)), start, method="Nelder-Mead", options={"xatol": 1e-3})
         for start in ([0.0, 0.0], [1.0, 3.0])), key=lambda found: found.fun,
    )  # fmt: skip
    assert s["squared_error"] == pytest.approx(best.fun, rel=1e-4)
    found = [s["bands"][name]["penalty"] for name in ("signal", "faint")]
    assert s["squared_error"] == pytest.approx(squared_error(parts, y, searched(s, found)), rel=1e-9)
    assert s["error"] == pytest.approx((left_out(parts, y, found).argmax(1) != y).mean(), abs=1e-12)


def test_what_each_band_adds_is_what_refits_without_it_say():
    data = table(90)
    y, parts = np.array(data["label"]), standardised(data, BANDS)
    s = run(data, precision="float64").summary
    penalties = searched(s, [s["bands"][name]["penalty"] for name in BANDS])
    for m, name in enumerate(BANDS):
        band = s["bands"][name]
        F = left_out([parts[m]], y, [band["ridge_alone"]])
        assert band["error_alone"] == pytest.approx((F.argmax(1) != y).mean(), abs=1e-12)
        rest = [k for k in range(3) if k != m]
        tried = [
            squared_error([parts[k] for k in rest], y, [factor * penalties[k] for k in rest])
            for factor in np.logspace(-1, 1, 9)
        ]
        assert band["squared_error_without"] == pytest.approx(min(tried), rel=1e-9)
    concatenated = squared_error(parts, y, [s["ridge_concatenated"]] * 3)
    assert s["squared_error_concatenated"] == pytest.approx(concatenated, rel=1e-9)
    assert s["squared_error"] < concatenated
    assert s["bands"]["random"]["share"] < 0.02
    assert sum(band["share"] for band in s["bands"].values()) == pytest.approx(1)
    shares = [s["bands"][name]["share"] * s["bands"][name]["penalty"] for name in BANDS]
    assert shares == pytest.approx([s["ridge"]] * 3)


@pytest.mark.parametrize("n", [90, 24])  # fewer rows than columns, too
def test_every_row_is_told_what_each_band_alone_says_of_it(n):
    data = table(n, missing=True)
    y, parts = np.array(data["label"]), standardised(data, BANDS)
    result = run(data, precision="float64", starts=1, evaluations=3)
    rows = result.samples
    for m, name in enumerate(BANDS):
        F = left_out([parts[m]], y, [result.summary["bands"][name]["ridge_alone"]])
        others = np.where(np.eye(3, dtype=bool)[y], -np.inf, F)
        margin = F[np.arange(n), y] - others.max(1)
        there = np.array([value is not None for value in data[name].to_pylist()])
        found = rows[f"margin_{name}"].to_pylist()
        assert [value is not None for value in found] == there.tolist()
        assert np.array(found, dtype=float)[there] == pytest.approx(margin[there], abs=1e-6)
        predicted = np.array(rows[f"predicted_{name}"].to_pylist(), dtype=float)
        assert (predicted[there] == F.argmax(1)[there]).all() and np.isnan(predicted[~there]).all()


def test_numbers_are_told_with_the_loss_of_each_band():
    data = table(80)
    y = np.array([row[0] for row in data["signal"].to_pylist()])
    result = run(data.set_column(0, "label", [y]), ["signal", "random"], precision="float64")
    Z = np.c_[np.ones(80), standardised(data, ["signal"])[0]]
    Lambda = result.summary["bands"]["signal"]["ridge_alone"] * np.diag([0.0] + [1.0] * 8)
    left = [Z[i] @ np.linalg.solve(np.delete(Z, i, 0).T @ np.delete(Z, i, 0) + Lambda,
                                   np.delete(Z, i, 0).T @ np.delete(y, i)) for i in range(80)]  # fmt: skip
    assert np.array(result.samples["loss_signal"]) == pytest.approx((left - y) ** 2, abs=1e-6)
    page = result.folder.read("report.html").decode()
    assert "Where random stands alone" in page


def test_a_band_stands_alone_only_where_another_that_tells_is_for_the_label():
    says = torch.tensor([[-1.0, -1.0, 0.5, torch.nan], [0.4, -0.1, 0.9, 0.9], [0.8, 0.8, 0.8, 0.8]])
    gaps = against(says, [True, True, False], classes=True)
    assert gaps[0].tolist() == pytest.approx([1.4, -np.inf, -np.inf, -np.inf])  # the third band guesses
    assert gaps[2].tolist() == [-np.inf] * 4 and not (gaps[1] > 0).any()
    nothing = against(says, [False, False, False], classes=True)
    assert (nothing == -torch.inf).all()
    losses = against(-says.abs(), [True, True, False], classes=False)
    assert losses[0].tolist() == pytest.approx([0.6, 0.9, -np.inf, -np.inf])


def test_nothing_is_said_to_stand_alone_beside_bands_that_guess():
    data = table(120)
    result = run(data, ["signal", "random"], precision="float64")
    page = result.folder.read("report.html").decode()
    assert result.summary["bands"]["random"]["error_alone"] > 0.5
    assert "Where random stands alone" in page and "Where signal stands alone" not in page


def test_rows_of_a_group_leave_together():
    data = table(60)
    twice, group = pa.concat_tables([data, data]), np.tile(np.arange(60), 2)
    y, parts = np.array(twice["label"]), standardised(twice, ["signal", "faint"])
    grouped = twice.append_column("pair", pa.array(group))
    result = run(grouped, ["signal", "faint"], group="pair", precision="float64")
    s = result.summary
    found = [s["bands"][name]["penalty"] for name in ("signal", "faint")]
    assert s["squared_error"] == pytest.approx(squared_error(parts, y, searched(s, found), group), rel=1e-9)
    F = left_out([parts[0]], y, [s["bands"]["signal"]["ridge_alone"]], group)
    margin = F[np.arange(120), y] - np.where(np.eye(3, dtype=bool)[y], -np.inf, F).max(1)
    assert np.array(result.samples["margin_signal"]) == pytest.approx(margin, abs=1e-6)  # of each band alone, too


@pytest.mark.parametrize("width", [30, 200])  # of 40 rows: the search is in as many coordinates of the wider band
def test_fewer_rows_than_columns(width):
    data = table(40, seed=3, width=width)
    y, parts = np.array(data["label"]), standardised(data, BANDS)
    s = run(data).summary
    found = [s["bands"][name]["penalty"] for name in BANDS]
    assert s["form"] == "dual"
    assert s["n_features"] == 16 + width and s["bands"]["random"]["columns"] == width
    assert s["squared_error"] == pytest.approx(squared_error(parts, y, searched(s, found)), rel=1e-6)
    assert s["error"] == pytest.approx((left_out(parts, y, found).argmax(1) != y).mean(), abs=1e-6)


def test_other_jobs_take_the_shares(tmp_path):
    data = table()
    s = run(data, output=str(tmp_path / "run")).summary
    again = diva_ray.score(
        data,
        features=BANDS,
        ridge=s["ridge"],
        shares=str(tmp_path / "run" / "bands.json"),
        cluster=INLINE,
        quiet=True,
        keep_sums=False,
    )
    for name in ("error", "loss", "n_detrimental"):
        assert again.summary[name] == s[name]
    named = {name: 7 * band["share"] for name, band in s["bands"].items()}
    named = diva_ray.score(data, features=BANDS, ridge=7 * s["ridge"], shares=named, cluster=INLINE, quiet=True)
    assert named.summary["loss"] == pytest.approx(s["loss"], rel=1e-5), "only penalty = ridge / share counts"
    with pytest.raises(InputError, match=r"found under \(auto\), got standardize=none with .* Set `standardize=auto`"):
        diva_ray.score(data, features=BANDS, shares=str(tmp_path / "run"), standardize="none", cluster=INLINE)
    with pytest.raises(InputError, match=r"projection .* found under \(null\), got projection=2 .*`projection=null`"):
        diva_ray.score(data, features=BANDS, shares=str(tmp_path / "run"), projection=2, cluster=INLINE)
    projected = diva_ray.aggregate(data, features=BANDS, projection=2, seed=3, cluster=INLINE, quiet=True)
    assert projected.told[2].startswith("use them: jobs/score.py ridge=")
    assert projected.told[2].endswith("projection=2 seed=3")
    with pytest.raises(InputError, match=r"seed that they were found under \(3\), got seed=0"):
        diva_ray.score(data, features=BANDS, shares=projected.path, projection=2, cluster=INLINE)


def test_a_run_is_not_resumed_under_other_shares_in_the_same_place(tmp_path):
    shares, options = tmp_path / "bands.json", {"features": BANDS, "cluster": INLINE, "quiet": True}
    options |= {"shares": str(shares), "output": str(tmp_path / "run")}
    shares.write_text(json.dumps({name: {"share": share} for name, share in zip(BANDS, (0.8, 0.1, 0.1), strict=True)}))
    diva_ray.score(table(), **options)
    shares.write_text(json.dumps({name: {"share": share} for name, share in zip(BANDS, (0.1, 0.1, 0.8), strict=True)}))
    with pytest.raises(InputError, match="resume: .* must have the same data and options, got another shares"):
        diva_ray.score(table(), resume=True, **options)


def test_what_rows_tell_does_not_depend_on_the_unit_of_their_weights():
    data, pages = table(), []
    for v in (2.0, 0.02):
        rows = data.append_column("v", pa.array(np.full(len(data), v)))
        run = diva_ray.aggregate(rows, features=BANDS, validation_weight="v", cluster=INLINE, quiet=True)
        pages.append(re.findall(r"<span>± ([0-9.]+)", run.folder.read("report.html").decode()))
    assert len(pages[0]) == 8 and pages[0] == pages[1]


def test_derivatives_by_penalties_are_those_of_refits_also_under_shares():
    data, shares, ridge = table(), dict(zip(BANDS, (0.5, 0.2, 0.3), strict=True)), 0.7
    options = {"loss": "squared", "precision": "float64", "cluster": INLINE, "quiet": True}

    def loss(penalties):
        total = 1 / sum(1 / one for one in penalties.values())
        given = {name: total / one for name, one in penalties.items()}
        return diva_ray.score(data, features=BANDS, ridge=total, shares=given, **options).summary

    penalties = {name: ridge / share for name, share in shares.items()}
    s = loss(penalties)
    for name, penalty in penalties.items():
        step = 1e-4 * penalty
        up, down = (loss(penalties | {name: penalty + sign * step})["loss"] for sign in (1, -1))
        assert s["band_penalty_derivative"][name] == pytest.approx(240 * (up - down) / (2 * step), rel=1e-4)
    by_ridge = sum(s["band_penalty_derivative"][name] / share for name, share in shares.items())
    assert s["ridge_derivative"] == pytest.approx(by_ridge)


def test_sample_weights_are_found_under_the_shares_when_asked_for():
    data = digits_bands(0.4, 0)
    s = run(data, ["pixels", "strokes", "random"], weights="joint", starts=1, steps=1, folds=3)
    given = run(data, ["pixels", "strokes", "random"], starts=1)
    weight = np.array(s.samples["weight"], dtype=float)
    assert s.summary["weights"]["accepted"]
    assert s.summary["weights"]["error_reweighted"] < s.summary["weights"]["error_uniform"]
    wrong = np.array(data["label"]) != np.array(data["true_label"])
    assert weight.mean() == pytest.approx(1, abs=1e-5) and weight[wrong].mean() < 0.6 < weight[~wrong].mean()
    assert s.summary["ridge"] < given.summary["ridge"], "cleaner data bear less ridge"
    assert (np.array(given.samples["weight"]) == 1).all()


def joint_problem(numbers=False):
    """Return two bands that tell, one that does not, and labels of which a fifth is wrong; a clean table beside it."""
    draw = np.random.default_rng(5)
    latent = draw.normal(size=(700, 3))
    A, B = (latent @ draw.normal(size=(3, p)) + 0.5 * draw.normal(size=(700, p)) for p in (8, 6))
    label = latent @ np.array([1.0, 2.0, 3.0]) if numbers else latent.argmax(1)
    wrong = (draw.random(700) < 0.2) & (np.arange(700) < 400)
    label = np.where(wrong, label[draw.permutation(700)] + 9 * numbers, label)
    bands = {"a": A, "b": B, "noise": draw.normal(size=(700, 5)), "label": label}
    return ({name: values[part] for name, values in bands.items()} for part in (slice(0, 400), slice(400, 700)))


def error_by_refit(data, validation, penalties, summary):
    """Return the error on a validation table of the fit under the weights as given."""
    names = list(penalties)
    scales = [(data[n].mean(0), np.sqrt(((data[n] - data[n].mean(0)) ** 2).sum(1).mean())) for n in names]
    Z, V = (
        np.c_[np.ones(len(one["label"])), *[(one[n] - m) / s for n, (m, s) in zip(names, scales, strict=True)]]
        for one in (data, validation)
    )
    Lambda = np.diag(np.r_[0.0, *[np.full(data[n].shape[1], penalties[n]) for n in names]])
    y = data["label"]
    Y = y[:, None] if summary["task"] == "regression" else np.eye(3)[y]
    F = V @ np.linalg.solve(Z.T @ Z + Lambda, Z.T @ Y)
    if summary["task"] != "regression":
        return (F.argmax(1) != validation["label"]).mean()
    v = validation["label"]
    return 1 - ((F[:, 0] - v) ** 2).sum() / ((v - v.mean()) ** 2).sum()


@pytest.mark.parametrize("numbers", [False, pytest.param(True, marks=pytest.mark.long)])
def test_bands_are_compared_under_the_weights_as_given_and_what_weights_gain_is_told_apart(numbers):
    data, clean = joint_problem(numbers)
    options = {"validation": clean, "precision": "float64"}
    names = ["a", "b", "noise"]
    given, found = (run(data, names, weights=weights, **options) for weights in ("given", "joint"))
    s, w, word = found.summary, found.summary["weights"], "R2" if numbers else "error"
    assert w["accepted"], "or this says little"
    assert given.summary["error_together"] == given.summary["error"]
    assert s["error_together"] == pytest.approx(given.summary["error"], abs=1e-12) != s["error"]
    for name in ("error_alone", "error_without"):
        assert [band[name] for band in s["bands"].values()] == [band[name] for band in given.summary["bands"].values()]
    assert w["gain"] == pytest.approx(w["loss_uniform"] - w["loss_reweighted"]) and w["gain"] > w["gain_standard_error"]
    first = {name: band["penalty"] for name, band in given.summary["bands"].items()}
    assert s["error_together"] == pytest.approx(error_by_refit(data, clean, first, s), rel=1e-4)
    told, page = found.told, found.folder.read("report.html").decode().replace("\N{NO-BREAK SPACE}", " ")
    assert f"weights as given: validation {word} {s['error_together']:.4f}; all under one ridge" in told[0]
    figures = f"{w['error_uniform']:.4f} as given, {w['error_reweighted']:.4f} with them; loss gain "
    assert f"on folds that took no part {'squared error' if numbers else 'error'} {figures}" in told[3]
    assert numbers == ("(no row counts more than where it looks wrong)" in told[3])
    assert f"3 bands together, weights as given: validation {word} " in page and "Sample weights accepted: " in page
    assert "and the weights as given" not in page and "its own best ridge, weights as given" in page
    assert "Leave-one-out" not in page and "left-out" not in page.split("<footer")[0].replace("loo", "")
    assert "left-out" not in " ".join([*told, *s["meaning"].values()])


def test_a_gain_in_loss_that_decides_is_told_beside_a_worse_error():
    w = {"accepted": True, "moves": "labels that look wrong dropped", "ridge_factor": 1 / 3, "error_uniform": 0.194,
         "error_reweighted": 0.1948, "gain": 0.00036, "gain_standard_error": 0.00028}  # fmt: skip
    said = "; ".join(joint.verdict_in_words({"weights": w, "task": "multilabel"}, "{:.4f}".format))
    assert "0.1940 as given, 0.1948 with them; loss gain 0.00036" in said and "within chance" in said
    assert "dropped (tried under ridge / 3; penalties were found anew)" in said
    assert joint.tiles_of({"weights": w, "task": "multilabel"})[0].tone == ""
    said = "; ".join(
        joint.verdict_in_words({"weights": w | {"accepted": False}, "task": "regression"}, "{:.4f}".format)
    )
    assert said.startswith("sample weights left as they were") and "squared error 0.1940" in said and "with" not in said


@pytest.mark.parametrize("task", ["classification", "regression", "vector"])
def test_one_ridge_is_said_to_do_as_well_only_where_it_does(task):
    data = table(90)
    y = np.array(data["signal"].to_pylist()) + 0.5 * np.random.default_rng(1).standard_normal((90, 8))
    label = {"classification": data["label"], "regression": y[:, 0], "vector": y[:, :2].astype(np.float32).tolist()}
    telling = "faint" if task == "classification" else "signal"  # the other would leave no error
    result = run(data.set_column(0, "label", [label[task]]), [telling, "random"], task=task)
    s, sign = result.summary, 1 if task == "classification" else -1  # R2: more is better
    assert sign * (s["error_concatenated"] - s["error_together"]) > 0.01
    assert not any("does as well" in line for line in result.told)
    for worse in (0.0, 0.01):
        found = aggregated.told(s | {"error_concatenated": s["error_together"] - sign * worse}, "bands.json")
        assert any("does as well" in line for line in found)


def test_a_share_near_0_is_no_disuse():
    """A band of next to no penalty takes nearly all of the shares; the other adds to it all the same."""
    draw = np.random.default_rng(0)
    A, B = draw.normal(size=(300, 4)), draw.normal(size=(300, 6))
    label = 10 * A.sum(1) + 2 * B[:, 0] + 2 * draw.normal(size=300)
    result = run({"a": A, "b": B, "label": label}, ["a", "b"])
    bands, page = result.summary["bands"], result.folder.read("report.html").decode()
    assert bands["a"]["error_without"] < bands["b"]["error_without"] < result.summary["error_together"] - 0.005
    assert (
        f"the R2 without it: a {bands['a']['error_without']:.4f}, b {bands['b']['error_without']:.4f}" in result.told[1]
    )
    assert "not what it adds to them" in page and "whatever its share" in page


@pytest.mark.ray
@pytest.mark.long
def test_workers_find_the_same_bits_also_when_one_dies(ray_cluster, monkeypatch):
    import ray

    from diva_ray.engine.cluster import Cluster

    data = table(2600, missing=True)
    options = {"starts": 2, "evaluations": 4}
    inline = run(data, **options)
    whole, killed = Cluster.each, []

    def each_with_a_death(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ in ("part_losses", "leave_one_out") and kernel.__name__ not in killed:
                os.kill(ray.get(self.actors[len(killed) % 2].process.remote()), signal.SIGKILL)
                killed.append(kernel.__name__)
            yield partial

    monkeypatch.setattr(Cluster, "each", each_with_a_death)
    result = run(data, cluster={"kind": "ray", "workers": 2}, **options)
    assert sorted(killed) == ["leave_one_out", "part_losses"]
    assert result.summary["bands"] == inline.summary["bands"]
    assert result.folder.read_table("samples").equals(inline.samples)


def test_the_second_search_hears_rows_as_much_less_as_they_weigh(monkeypatch):
    """After two steps too; and rows that the table gives no weight, which no step can lower, in full."""
    from diva_ray.engine import context
    from diva_ray.engine.kernels import bands

    heard, whole = {}, bands.validating

    def hear(shard, known):
        heard.update(zip(shard.positions().tolist(), context.validation_weights(shard, known).tolist(), strict=True))
        return whole(shard, known)

    monkeypatch.setattr(bands, "validating", hear)
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(300, 3))
    label, held = latent.argmax(1), np.arange(300) % 3 == 0
    wrong = ~held & (generator.random(300) < 0.4)
    label[wrong] = (label[wrong] + 1) % 3
    A, B = (latent @ generator.normal(size=(3, p)) + 0.3 * generator.normal(size=(300, p)) for p in (8, 6))
    for weight in (0.0, 0.2):
        w = np.where(held, weight, 1.0)
        heard.clear()
        data = {"a": A, "b": B, "label": label, "w": w}
        found = run(data, ["a", "b"], weight="w", weights="joint", starts=1)
        assert found.summary["weights"]["chosen"].count("then") == 1, "two steps, or this says little"
        kept = np.array(found.samples["weight"])
        left = np.divide(kept, w, out=np.zeros(300), where=w > 0)
        expected = np.where(w > 0, left / left.max(), 1.0)
        np.testing.assert_allclose([heard[k] for k in range(300)], expected, rtol=1e-6)
        assert (expected < 0.95).sum() > 20


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"features": "signal"}, "data.features: must name at least two bands, got signal"),
        ({"features": ["signal", "absent"]}, "data.features: column `absent` must be in the table"),
        ({"ridge": 1.0}, "ridge: is what jobs/aggregate.py finds, got 1.0. Leave `ridge` out"),
        ({"shares": {"signal": 1}}, "shares: is what jobs/aggregate.py finds"),
        ({"starts": 0}, "starts: must be 1 to 20, got 0"),
        ({"weights": "some"}, "weights: must be given or joint, got some"),
    ],
)
def test_mistakes_are_one_line(options, told):
    with pytest.raises(InputError, match=told):
        run(table(30), **options)


def test_a_band_that_never_varies_is_one_line():
    data = table(30).append_column("flat", pa.array([[1.0, 2.0]] * 30))
    with pytest.raises(InputError, match=r"data.features: every band must vary .* in all 30 rows of `flat`"):
        run(data, ["signal", "flat"])


def test_a_band_called_label_is_one_line():
    data = table(30).rename_columns(["class", "label", *BANDS[1:]])
    with pytest.raises(InputError, match="data.features: no band may be called `label`"):
        run(data, ["label", *BANDS[1:]], label="class")


def test_bands_that_say_the_same_share_alike():
    data = table(90)
    twice = data.append_column("again", data["signal"])
    bands = run(twice, ["signal", "again", "random"], starts=4).summary["bands"]
    assert bands["signal"]["share"] == pytest.approx(bands["again"]["share"], rel=0.05)


def test_a_band_on_a_far_smaller_scale_is_heard_where_features_are_taken_as_they_are():
    data = table(width=8)
    large = pa.array((1e5 * np.array(data["random"].to_pylist(), np.float32)).tolist())
    data = data.set_column(data.column_names.index("random"), "random", large)
    together = run(data, features=["signal", "random"], standardize="none")
    alone = diva_ray.score(data, features="signal", standardize="none", cluster=INLINE, quiet=True)
    assert together.summary["error"] <= alone.summary["error"] + 0.02  # two thirds wrong where `random` decides alone


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"signal": 1.0, "faint": 1.0}, r"shares: every band of data.features must have one \(signal, faint, random\)"),
        ({"signal": 1.0, "faint": 0, "random": 1.0}, r"shares: must be numbers > 0, got 0 for `faint`. Leave the band"),
        ("nowhere/bands.json", "got nowhere/bands.json: there is no file .*/nowhere/bands.json. Change `shares`"),
        ("nowhere", "its bands.json, got nowhere: there is no file .*/nowhere/bands.json. Change `shares`"),
        ([1, 2, 3], r"shares: must be {band: share} or the path of bands.json, got \[1, 2, 3\]"),
    ],
)
def test_shares_that_cannot_be_used_are_one_line(shares, told):
    with pytest.raises(InputError, match=told):
        diva_ray.score(table(30), features=BANDS, shares=shares, cluster=INLINE, quiet=True)


def test_another_file_than_bands_json_is_told_as_one(tmp_path):
    (tmp_path / "bands.json").write_text("[1]")
    told = "shares: must be an aggregate run.s folder or its bands.json, got .*bands.json. Change"
    with pytest.raises(InputError, match=told):
        diva_ray.score(table(30), features=BANDS, shares=str(tmp_path / "bands.json"), cluster=INLINE, quiet=True)


def test_a_band_of_another_width_in_one_file_is_one_line(tmp_path):
    import pyarrow.parquet as pq

    data = table(30)
    pq.write_table(data, tmp_path / "a.parquet")
    short = [row[:5] for row in data["faint"].to_pylist()]
    pq.write_table(data.set_column(data.schema.get_field_index("faint"), "faint", [short]), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"data.features: .*faint.*got .*8.*5|data.features: .*faint.*5.*8") as caught:
        run(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.jobs
def test_the_job_writes_what_the_contract_promises(tmp_path):
    done = run_job("jobs/aggregate.py", f"output={tmp_path / 'run'}", "cluster=inline", "starts=1")
    assert done.returncode == 0, done.stderr
    bands = json.loads((tmp_path / "run" / "bands.json").read_text())
    assert list(bands) == ["pixels", "strokes", "random"]
    for band in bands.values():
        assert {"penalty", "share", "error_alone", "error_without"} <= band.keys()
        assert isinstance(band["rows"], int)
    assert {"samples", "report.html", "config.yaml", "manifest.json", "summary.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert "shares=" in done.stdout and "best alone" in done.stdout
    assert re.search("from (own penalties|equal penalties|pixels alone|strokes alone|random alone): ", done.stdout)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Which modalities count" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("seed", [0, 9, 15])
def test_a_band_that_gives_the_classes_away_takes_float64(seed):
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((300, 5))
    y = np.digitize(A[:, 0] + 0.3 * generator.standard_normal(300), [-0.6, 0.6])
    result = diva_ray.aggregate(
        {"a": A, "u": np.eye(3)[y], "label": y}, features=["a", "u"], cluster=INLINE, quiet=True
    )
    assert result.summary["error"] == 0 and result.summary["bands"]["u"]["share"] > 0.9
