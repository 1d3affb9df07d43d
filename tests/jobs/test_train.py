"""Training under weights, beside uniform weights, deleted rows and the closed form."""

import json
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.config import ClusterConfig, DataConfig, TrainConfig
from diva_ray.core.compare import RowSums, mean_interval
from diva_ray.data.folder import Folder
from diva_ray.engine import training
from diva_ray.errors import InputError
from diva_ray.tasks.train import run
from tests.forks import run_job
from tests.jobs.problems import Halves, digits_split

ROOT = Path(__file__).resolve().parents[2]
INLINE = {"kind": "inline", "threads": 1}
QUICK = {"epochs": 3, "seeds": 2, "quiet": True}


def noisy(n=2400, d=12, classes=4, share=0.3, seed=0):
    """Return rows whose labels are partly wrong, clean test rows, and which labels are wrong."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n + 1000, d)).astype(np.float32)
    truth = (X[:, :classes] * 2 + 0.3 * generator.standard_normal((n + 1000, classes))).argmax(1)
    wrong = generator.random(n) < share
    label = np.where(wrong, (truth[:n] + 1) % classes, truth[:n])  # one class is taken for the next
    return {"features": X[:n], "label": label}, {"features": X[n:], "label": truth[n:]}, wrong


def run_of(folder, weight, issue=None, ids=None, **summary):
    """Write what a reweight run leaves that training reads."""
    import pyarrow as pa

    target = Folder(str(folder))
    ids = np.arange(len(weight)) if ids is None else ids
    flags = {} if issue is None else {"is_label_issue": issue, "is_detrimental": issue}
    target.write_table(
        "samples/part-00000.parquet", pa.table({"id": ids, "weight": weight.astype(np.float32), **flags})
    )
    target.write_json("summary.json", summary)
    return target.path


def by_name(result):
    return {arm["name"]: arm for arm in result.summary["arms"]}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A table, test rows, and a run that knows every wrong label."""
    data, test, wrong = noisy()
    folder = run_of(tmp_path_factory.mktemp("runs") / "weights", 1.0 - 0.9 * wrong, wrong, ridge=0.5)
    return data, test, wrong, folder


# --- inline ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(known, tmp_path_factory):
    data, test, _, folder = known
    output = tmp_path_factory.mktemp("runs") / "trained"
    return diva_ray.train(data, test, weights=folder, cluster=INLINE, epochs=10, output=str(output), quiet=True)


def test_right_weights_and_deleted_rows_beat_uniform_weights(trained):
    arms = by_name(trained)
    assert list(arms) == ["weighted", "uniform", "without_flagged", "closed_form", "closed_form_uniform"]
    assert arms["uniform"]["difference_to_uniform"] is None
    for name in ("weighted", "without_flagged"):
        gap = arms[name]["difference_to_uniform"]
        assert arms[name]["error"] < arms["uniform"]["error"] - 0.01 and arms[name]["verdict"] == "lower", arms
        assert gap["low"] < gap["mean"] < gap["high"] < 0 and gap["rows_low"] < gap["mean"] < gap["rows_high"] < 0
        assert gap["mean"] == pytest.approx(arms[name]["error"] - arms["uniform"]["error"], abs=1e-12)
    assert trained.summary["n_flagged"] == trained.summary["n_samples"] - round(
        sum(np.isclose(pq.read_table(trained.summary["weights"] + "/samples")["weight"], 1.0))
    )


def test_the_closed_form_is_the_ridge_solution(trained, known):
    """By plain NumPy: standardised rows, an unpenalised column of 1, the run's own ridge and weights."""
    data, test, wrong, _ = known
    X, alpha = data["features"].astype(np.float64), (1.0 - 0.9 * wrong).astype(np.float32).astype(np.float64)
    centred = X - X.mean(0)
    scale = (centred**2).sum(1).mean() ** -0.5
    Z = np.c_[np.ones(len(X)), centred * scale]
    penalty = np.diag([0.0] + [0.5] * X.shape[1])
    W = np.linalg.solve(Z.T @ (alpha[:, None] * Z) + penalty, Z.T @ (alpha[:, None] * np.eye(4)[data["label"]]))
    found = trained.folder.read_arrays("model/closed_form.npz")
    np.testing.assert_allclose(found["weight"], W[1:].T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["bias"], W[0], rtol=1e-4, atol=1e-6)
    predicted = (np.c_[np.ones(1000), (test["features"] - X.mean(0)) * scale] @ W).argmax(1)
    assert by_name(trained)["closed_form"]["error"] == pytest.approx((predicted != test["label"]).mean(), abs=0.0021)


def test_the_model_can_be_used_as_it_says(trained, known):
    _, test, _, _ = known
    model, scale = (trained.folder.read_arrays(f"model/{name}.npz") for name in ("model", "scale"))
    told = trained.folder.read_json("model/model.json")
    x = (test["features"] - scale["mean"]) * scale["scale"]
    predicted = np.array(told["classes"])[(x @ model["weight"].T + model["bias"]).argmax(1)]
    assert told["arm"] == "weighted" and told["n_features"] == 12
    error = (predicted != test["label"]).mean()
    assert error == pytest.approx(by_name(trained)["weighted"]["per_seed"][0], abs=0.0011)


def test_a_loss_that_diverges_is_one_line(tmp_path):
    data, test, _ = noisy(300)
    for table in (data, test):
        table["label"] = table["features"][:, 0].astype(np.float64)
    with pytest.raises(
        InputError, match=r"learning_rate: the training loss must stay finite, got (inf|nan) .* \(30 now\), with"
    ):
        diva_ray.train(data, test, learning_rate=30.0, batch_size=16, cluster=INLINE, epochs=10, quiet=True)


def test_it_writes_what_the_contract_promises(trained):
    names = set(trained.folder.names(""))
    assert {"config.yaml", "summary.json", "manifest.json", "report.html", "model", "errors"} <= names
    assert trained.samples.num_rows == 3 * 3 + 2 and trained.summary["n_test"] == 1000
    page = trained.folder.read("report.html").decode()
    assert "What the weights are worth" in page and "without flagged" in page
    assert any("test error" in line for line in trained.lines())


def test_a_finished_run_is_not_trained_again(trained, known, monkeypatch):
    data, test, _, folder = known
    options = {"weights": folder, "cluster": INLINE, "epochs": 10, "output": trained.path, "quiet": True}
    with pytest.raises(InputError, match="output: the folder must be new or empty"):
        diva_ray.train(data, test, **options)
    monkeypatch.setattr(training, "row_losses", None)
    again = diva_ray.train(data, test, resume=True, **options)
    assert [arm["per_seed"] for arm in again.summary["arms"]] == [arm["per_seed"] for arm in trained.summary["arms"]]


@pytest.mark.parametrize(("momentum", "workers"), [(0.9, 1), (0.0, 2)])
def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(known, tmp_path, monkeypatch, caplog, momentum, workers):
    """Dropout too: a module's own randomness is seeded epoch by epoch. Windows are smaller than the table."""
    data, test, _, folder = known

    def build(p, c):
        first, last = torch.nn.Linear(p, 16), torch.nn.Linear(16, c)
        return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(0.2), last)

    options = {"weights": folder, "module": build, "cluster": INLINE, "window": 700, "momentum": momentum, **QUICK}
    whole = diva_ray.train(data, test, **options)
    epochs, save = [], training.save

    def dies(*given):
        save(*given)
        epochs.append(given[1])
        if len(epochs) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "save", dies)
        diva_ray.train(data, test, output=str(tmp_path / "run"), **options)
    progress = tmp_path / "run" / "checkpoints" / "progress.json"
    before = json.loads(progress.read_text())
    assert before["workers"] == 1
    progress.write_text(json.dumps(before | {"workers": workers}))
    with caplog.at_level("WARNING", "diva_ray"):
        again = diva_ray.train(data, test, output=str(tmp_path / "run"), resume=True, **options)
    assert ("resume: 2 workers trained so far, 1 from here" in caplog.text) == (workers == 2)
    for arm, other in zip(whole.summary["arms"], again.summary["arms"], strict=True):
        assert arm["per_seed"] == other["per_seed"] and arm.get("training_loss") == other.get("training_loss")


@pytest.mark.parametrize("task", ["regression", "vector", "multilabel"])
def test_other_targets(task):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((1500, 6)).astype(np.float32)
    Y = 1000 + 50 * (X[:, :2] + 0.1 * generator.standard_normal((1500, 2)))
    label = {
        "regression": Y[:, 0], "vector": list(Y),
        "multilabel": [[name for name, on in zip("ab", row, strict=True) if on] for row in Y > 1000],
    }[task]  # fmt: skip
    weight = generator.random(1500)
    rows = {"features": X[:1000], "label": label[:1000], "w": weight[:1000, None]}  # a list of one is a number, too
    test = {"features": X[1000:], "label": label[1000:]}
    result = diva_ray.train(rows, test, weight="w", cluster=INLINE, epochs=15, seeds=2, quiet=True)
    arms = by_name(result)
    assert list(arms) == ["weighted", "uniform", "closed_form", "closed_form_uniform"]  # nothing flags a row
    noise = {"regression": 25.0, "vector": 50.0, "multilabel": 0.025}[task]  # half of the rows have one label
    for arm in arms.values():
        assert 0.2 * noise < arm["error"] < 1.5 * noise, arms


def test_offsets_are_corrected_not_learned_again():
    generator = np.random.default_rng(0)
    X, own = generator.standard_normal((900, 3)).astype(np.float32), 100 * generator.standard_normal(900)
    rows = {"features": X, "label": X[:, 0] + own, "own": own[:, None]}
    first, rest = ({name: values[part] for name, values in rows.items()} for part in (slice(600), slice(600, None)))
    arms = by_name(diva_ray.train(first, rest, offset="own", cluster=INLINE, epochs=60, seeds=1, quiet=True))
    assert arms["closed_form"]["error"] < 1e-3 and arms["uniform"]["error"] < 1.0 and arms["uniform"]["low"] is None


@pytest.mark.parametrize("intercept", [True, False])
def test_offsets_of_numbers_far_from_zero_are_taken_off_with_all_their_digits(intercept):
    draw = np.random.default_rng(2)
    X = draw.standard_normal((900, 6))
    o = 1e5 + 10 * X[:, 0]
    rows = {"features": X, "label": o + X[:, 1] + 0.3 * draw.standard_normal(900), "own": o[:, None]}
    data, test = ({name: values[part] for name, values in rows.items()} for part in (slice(600), slice(600, 900)))
    result = diva_ray.train(
        data, test, offset="own", intercept=intercept, weights=None, epochs=10, cluster=INLINE, quiet=True
    )
    arms = {arm["name"]: arm["error"] for arm in result.summary["arms"]}
    assert arms["uniform"] == pytest.approx(arms["closed_form"], rel=0.05) and arms["uniform"] < 0.15


def test_a_head_without_intercept_has_none():
    draw = np.random.default_rng(3)
    X = draw.standard_normal((900, 4))
    rows = {"features": X, "label": 5 + X[:, 0]}
    data, test = ({name: values[part] for name, values in rows.items()} for part in (slice(600), slice(600, 900)))
    result = diva_ray.train(data, test, intercept=False, weights=None, epochs=10, cluster=INLINE, quiet=True)
    arms = {arm["name"]: arm["error"] for arm in result.summary["arms"]}
    assert arms["uniform"] == pytest.approx(arms["closed_form"], rel=0.05) and arms["uniform"] > 20


def test_weights_are_taken_where_a_table_validates_too(tmp_path):
    X, y, _, X_test, y_test = digits_split(0.2)
    data, test = {"features": X, "label": y}, {"features": X_test[:200], "label": y_test[:200]}
    apart = {"features": X_test[200:400], "label": y_test[200:400]}
    options = {"validation": apart, "epochs": 1, "seeds": 1, "cluster": INLINE, "quiet": True}
    weights = diva_ray.score(data, validation=apart, cluster=INLINE, quiet=True, output=str(tmp_path / "run")).path
    summary = diva_ray.train(data, test, weights=weights, **options).summary
    assert summary["n_flagged"] > 0 and summary["validation"] == "separate table"


def test_weights_by_default_come_from_reweighting_first():
    config = TrainConfig(DataConfig(builtin="digits"), cluster=ClusterConfig(**INLINE), weights="auto", output="")
    config.epochs, config.seeds = 8, 2
    result = run(config, quiet=True)
    assert result.summary["n_test"] == 359 and result.summary["n_samples"] == 1438
    assert {"samples", "summary.json"} <= set(result.folder.names("reweight"))
    assert "reweight/report.html" in result.folder.read("report.html").decode()
    assert result.summary["ridge"] == result.folder.read_json("reweight/summary.json")["ridge"]
    assert all(arm["error"] < 0.25 for arm in result.summary["arms"])


def test_intervals():
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.standard_error) == (2.0, pytest.approx(3**-0.5))
    assert found.high - 2.0 == pytest.approx(4.302653 * 3**-0.5, rel=1e-6)
    E = torch.from_numpy(np.random.default_rng(0).random((50, 3)))
    halves = [RowSums(25.0, e.sum(0), e.T @ e) for e in (E[:25], E[25:])]
    found = (halves[0] + halves[1]).contrast(torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64))
    d = (E[:, 0] - E[:, 1:].mean(1)).numpy()
    assert (found.mean, found.standard_error) == (pytest.approx(d.mean()), pytest.approx(d.std(ddof=1) / 50**0.5))


# --- Ray -------------------------------------------------------------------------------------------------------------


def kill_a_worker(output, after, killed):
    """Kill the process that writes the checkpoints, once it has written `after` epochs."""
    progress, deadline = (
        Path(output) / training.PROGRESS,
        time.monotonic() + 240,
    )  # Ray Train takes its time to start
    while time.monotonic() < deadline:
        found = json.loads(progress.read_text()) if progress.exists() else {}
        if found.get("done", 0) >= 12:  # all of them: too late
            return
        if found.get("done", 0) >= after and psutil.pid_exists(found["process"]):
            os.kill(found["process"], signal.SIGKILL)
            killed.append(found)
            return
        time.sleep(0.01)


def on_two_workers(known, output, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # two seconds by default
    data, test, _, folder = known
    where = {"kind": "ray", "workers": 2}
    options = {"weights": folder, "epochs": 4, "seeds": 1, "quiet": True, "output": str(output)}
    return diva_ray.train(data, test, cluster=where, module=Halves, **options)


@pytest.mark.ray
@pytest.mark.long  # `test_cluster` scores one, by the same way into a table
def test_a_ray_dataset_may_be_the_test_table(ray_cluster, tmp_path):
    import pyarrow as pa
    import ray

    data, test, _ = noisy(300)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(test["features"].reshape(-1)), 12)
    rows = ray.data.from_arrow(pa.table({"features": lists, "label": test["label"]}))
    options = {"cluster": INLINE, **QUICK}
    found = diva_ray.train(data, rows, output=str(tmp_path / "run"), **options)
    assert found.summary["n_test"] == 1000
    assert found.summary["arms"] == diva_ray.train(data, test, **options).summary["arms"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_training_goes_on(ray_cluster, known, tmp_path, monkeypatch):
    killed: list[dict] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "killed", 3, killed))
    killer.start()
    result = on_two_workers(known, tmp_path / "killed", monkeypatch)
    killer.join()
    assert killed and 3 <= killed[0]["done"] < 12, "a worker died in the middle"
    last = result.folder.read_json(training.PROGRESS)
    assert last["done"] == 12 and last["process"] != killed[0]["process"]
    data, test, _, folder = known
    inline = diva_ray.train(data, test, weights=folder, cluster=INLINE, module=Halves, epochs=4, seeds=1, quiet=True)
    for arm, other in zip(result.summary["arms"], inline.summary["arms"], strict=True):
        assert arm["error"] == pytest.approx(other["error"], abs=0.02)
    assert "ray_train" not in result.folder.names("") and result.samples.num_rows == 5
    torch.manual_seed(0)
    new, found = Halves(12, 4).state_dict(), result.folder.read_arrays("model/model.npz")
    for name in ("unused.weight", "frozen.weight"):  # which have no gradient
        np.testing.assert_array_equal(found[name], new[name])


@pytest.mark.ray
@pytest.mark.long
def test_a_killed_controller_is_replaced(ray_cluster, known, tmp_path, monkeypatch, caplog):
    """Ray Train's own actor, which it does not start again."""
    data, test, _, folder = known
    killed: list[int] = []

    def kill():
        progress, deadline = tmp_path / "out" / training.PROGRESS, time.monotonic() + 240
        while time.monotonic() < deadline and not killed:
            done = json.loads(progress.read_text())["done"] if progress.exists() else 0
            if done >= 3:
                names = {one.pid: " ".join(one.cmdline()) for one in psutil.process_iter() if one.status() != "zombie"}
                killed.extend(pid for pid, name in names.items() if "ray::TrainController" in name)
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    result = on_two_workers(known, tmp_path / "out", monkeypatch)
    killer.join()
    assert killed and "Ray Train's controller died; checkpoints stay (1 of at most 8 times)" in caplog.text
    assert result.folder.read_json(training.PROGRESS)["done"] == 12 and "ray_train" not in result.folder.names("")
    inline = diva_ray.train(data, test, weights=folder, cluster=INLINE, module=Halves, epochs=4, seeds=1, quiet=True)
    for arm, other in zip(result.summary["arms"], inline.summary["arms"], strict=True):
        assert arm["error"] == pytest.approx(other["error"], abs=0.02)


@pytest.mark.ray
@pytest.mark.long
def test_a_killed_worker_changes_nothing(ray_cluster, known, tmp_path, monkeypatch):
    whole = on_two_workers(known, tmp_path / "whole", monkeypatch)
    killed: list[dict] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "killed", 6, killed))
    killer.start()
    again = on_two_workers(known, tmp_path / "killed", monkeypatch)
    killer.join()
    assert killed
    for arm, other in zip(whole.summary["arms"], again.summary["arms"], strict=True):
        assert arm["per_seed"] == pytest.approx(other["per_seed"], abs=1e-6)
        assert arm.get("training_loss") == pytest.approx(other.get("training_loss"), abs=1e-6)
    for name in whole.folder.names("checkpoints"):
        if name.endswith(".npz"):
            one, two = (run.folder.read_arrays(f"checkpoints/{name}") for run in (whole, again))
            assert one.keys() == two.keys() and all(np.allclose(one[key], two[key], atol=1e-6) for key in one)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,told",
    [
        ({"test": None}, r"test.path: a table of test rows must be named, got none. Set `test.path`"),
        ({"epochs": 0}, r"epochs: must be at least 1, got 0. Change `epochs`"),
        ({"seeds": 0}, r"seeds: must be at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size: must be at least 1, got 0"),
        ({"learning_rate": float("inf")}, "learning_rate: must be auto or a number > 0 and finite, got inf"),
        ({"weight_decay": float("inf")}, "weight_decay: must be finite, got inf"),
        ({"learning_rate": 0.0}, r"learning_rate: must be auto or a number > 0 and finite, got 0.0"),
        ({"learning_rate": "fast"}, r"learning_rate: must be auto or a number > 0 and finite, got 'fast'. Change `lea"),
        ({"learning_rate": True}, r"learning_rate: must be auto or a number > 0 and finite, got True"),
        ({"momentum": 1.0}, r"momentum: must be at least 0 and below 1, got 1.0"),
        ({"flag": "bad"}, r"flag: must be is_label_issue, is_detrimental, either, got bad. Change `flag`"),
        ({"module": "os:system"}, r"module: code may run only with trust_code=true, got module=os:system"),
        ({"module": "no.such:f", "trust_code": True}, r"module: must be importable as module:function, got no.such"),
        ({"module": lambda p, c: torch.nn.Linear(p, c + 1)}, r"module: must have parameters to train and take \(2, "),
        ({"module": lambda p: torch.nn.Linear(p, 2)}, r"module: must be built and run for 12 features .* TypeError"),
        ({"weights": "/no/such"}, r"weights: must be the output of a reweight or score run, .* got none at /no/such"),
        ({"epoch": 3}, r"train: options must be columns or fields of TrainConfig, got 'epoch'"),
    ],
    ids=lambda one: re.sub(" at 0x[0-9a-f]+", "", str(one)),
)  # fmt: skip
def test_mistakes_in_options(known, options, told):
    data, test, _, _ = known
    options = {"cluster": INLINE, "quiet": True, "test": test, **options}
    with pytest.raises(InputError, match=told) as caught:
        diva_ray.train(data, **options)
    assert "\n" not in str(caught.value)


def test_mistakes_in_tables(known, tmp_path):
    data, test, _, _ = known
    rest = {"cluster": INLINE, "quiet": True}

    def refuses(told, test=test, **options):
        with pytest.raises(InputError, match=told):
            diva_ray.train(options.pop("data", data), test, **{**rest, **options})

    refuses(r"test.path: the table must have the same columns, got no `features`", {"x": [1.0], "label": [0]})
    new = {**test, "label": np.full(1000, 9)}
    refuses(r"test.path: labels must be among the table's 4 classes, got 1 new one, such as 9 at", new)
    refuses(r"test.path: column `label` must hold integer as in the table, got string", {**test, "label": ["a"] * 1000})
    refuses(r"data.features: vectors of a band must have equal length", {**test, "features": test["features"][:, :5]})
    spoilt = test["features"].copy()
    spoilt[7, 0] = np.nan
    refuses(
        r"data.features: column `features` must be finite, got nan at test.path row 7", {**test, "features": spoilt}
    )
    other = run_of(tmp_path / "other", np.ones(2400), ids=np.arange(2400)[::-1].copy())
    refuses(r"weights: the run must have the table's rows in the table's order, got id 2399 in", weights=other)
    named = {**rest, "epochs": 1, "seeds": 1, "group": "who"}  # nothing needs the groups of test rows: of any type
    test_named = {**test, "who": [f"user {k}" for k in range(1000)]}
    diva_ray.train({**data, "who": np.arange(2400) // 2}, test_named, **named)
    short = run_of(tmp_path / "short", np.ones(7))
    refuses(r"weights: the run must have the table's 2,400 rows, got 7 at", weights=short)
    zero = run_of(tmp_path / "zero", np.zeros(2400))
    refuses(r"weights: some weight must be > 0, got all zero", weights=zero)
    negative = run_of(tmp_path / "negative", np.where(np.arange(2400) == 5, -1.0, 1.0))
    refuses(r"weights: column `weight` must be >= 0, got -1.0 at weights part-00000.parquet row 5", weights=negative)
    refuses(
        r"weights: samples/ must have column `is_detrimental`, got id, weight at .*or `flag`", weights=zero,
        flag="is_detrimental",
    )  # fmt: skip


# --- weights of a run ------------------------------------------------------------------------------------------------


def test_a_run_on_rows_in_another_order_is_refused_and_relabelled_rows_are_told(caplog):
    data, test, _ = noisy(400)
    scored = diva_ray.score(data, cluster=INLINE, quiet=True)
    order = np.random.default_rng(1).permutation(400)
    with pytest.raises(
        InputError, match=r"rows in the table's order, got another label in \d+ rows at its ends, \d+ of them not fl"
    ):
        diva_ray.train({name: values[order] for name, values in data.items()}, test, weights=scored, cluster=INLINE)
    mended, flagged = data["label"].copy(), scored.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    mended[flagged] = (mended[flagged] + 3) % 4
    diva_ray.train({**data, "label": mended}, test, weights=scored, cluster=INLINE, **QUICK)
    assert f"in that run {flagged.sum()} rows at the table's ends have another label: relabelled since?" in caplog.text
    assert flagged.sum() > 20


def test_weights_that_are_all_alike_are_no_comparison_and_the_page_says_so(tmp_path, caplog):
    data, test, wrong = noisy(300)
    flagged = np.arange(300) < 7
    with caplog.at_level("INFO", logger="diva_ray"):
        folder = run_of(tmp_path / "same", np.ones(300), flagged)
        result = diva_ray.train(data, test, weights=folder, cluster=INLINE, **QUICK)
    s, page = result.summary, result.folder.read("report.html").decode()
    assert (s["n_changed"], s["n_flagged"], s["weights_alike"]) == (0, 7, True)
    assert by_name(result)["weighted"]["per_seed"] == by_name(result)["uniform"]["per_seed"]
    assert "No weight was changed: this is the same training" in page and "not clearly different from" not in page
    assert "0 of 300 weights lowered, 0 to zero; 7 rows flagged" in page
    assert any("0 of 300 weights lowered" in line for line in result.lines())
    assert "weights: 0 of 300 weights lowered, 0 to zero; 7 rows flagged" in caplog.text
    folder = run_of(tmp_path / "some", 1.0 - 0.5 * wrong, np.zeros(300, bool))
    result = diva_ray.train(data, test, weights=folder, cluster=INLINE, **QUICK)
    s, page = result.summary, result.folder.read("report.html").decode()
    assert (s["n_changed"], s["n_flagged"], s["weights_alike"]) == (wrong.sum(), 0, False)
    assert "No weight was changed" not in page and "the same training as uniform" in page, "nothing was left out"
    scaled = {**data, "w": np.full(300, 2.0)}
    result = diva_ray.train(scaled, test, weight="w", weights=folder, cluster=INLINE, **QUICK)
    assert result.summary["n_changed"] == 300, "held against the table's own"


def test_differences_of_errors_are_percentage_points_and_losses_have_a_unit(trained):
    page = trained.folder.read("report.html").decode()
    gaps = page[page.index("Difference to uniform") : page.index("By seed")]
    assert "points" in gaps and "%</td>" not in gaps
    assert "cross-entropy (nats)" in page and "in %" in page


def test_a_ridge_relative_to_other_features_is_not_taken():
    data, test, _ = noisy(400)
    data = {**data, "features": data["features"] * 30}
    scored = diva_ray.score(data, cluster=INLINE, quiet=True)
    same, other, alone = (
        diva_ray.train(data, test, weights=run, standardize=kind, cluster=INLINE, **QUICK).summary["ridge"]
        for run, kind in ((scored, "auto"), (scored, "none"), (None, "none"))
    )
    assert same == scored.summary["ridge"] and other == pytest.approx(alone) and other > 100 * same


def test_training_is_not_resumed_under_another_run(tmp_path):
    data, test, wrong = noisy(300)
    options = {"weights": str(tmp_path / "w"), "output": str(tmp_path / "run"), "cluster": INLINE, **QUICK}
    run_of(tmp_path / "w", np.ones(300), wrong)
    first = diva_ray.train(data, test, **options).summary["arms"]
    assert diva_ray.train(data, test, **options, resume=True).summary["arms"] == first
    run_of(tmp_path / "w", 1.0 - 0.5 * wrong, wrong)
    with pytest.raises(
        InputError,
        match=r"must have the same data and options, got another weights \(what lies there has changed\)\. Put",
    ):
        diva_ray.train(data, test, **options, resume=True)


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        (400, {"loss": "squared"}, "loss: must be auto unless weights=auto, .* got squared. Leave `loss` out"),
        (400, {"loss": lambda F, Y: F}, "loss: must be auto unless weights=auto, .* got a callable"),
        (
            12,
            {"weights": "auto", "group": "g"},
            "weights: auto must have rows enough for 5 outer folds .* Use `weights=null`",
        ),
        (400, {"weights": __file__}, "weights: must be the output of a reweight or score run, .* got none at"),
        (400, {"empty": True}, "test.path: the table must have rows, got 0"),
    ],
)
def test_what_cannot_be_trained_with_is_one_line(rows, options, told):
    data, test, _ = noisy(rows)
    if "group" in options:  # two of them: most folds hear none
        data["g"] = np.arange(rows) % 2
    if options.pop("empty", False):
        test = {name: values[:0] for name, values in test.items()}
    with pytest.raises(InputError, match=told):
        diva_ray.train(data, test, **options, cluster=INLINE, **QUICK)


def test_no_weights_may_be_said_in_a_word_and_the_loss_told_is_the_one_trained_with():
    data, test, _ = noisy(300)
    summary = diva_ray.train(data, test, weights="none", cluster=INLINE, **QUICK).summary
    assert [arm["name"] for arm in summary["arms"]] == ["uniform", "closed_form"]
    assert summary["loss_function"] == "cross_entropy" and summary["weights"] is None


def test_the_process_may_have_another_default_dtype():
    data, test, _ = noisy(300)
    torch.set_default_dtype(torch.float64)
    try:
        found = [diva_ray.score(data, cluster=INLINE, quiet=True), diva_ray.train(data, test, cluster=INLINE, **QUICK)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0].samples.equals(diva_ray.score(data, cluster=INLINE, quiet=True).samples)
    closed = [by_name(run)["closed_form"] for run in (found[1], diva_ray.train(data, test, cluster=INLINE, **QUICK))]
    numbers = [{**arm, "difference_to_uniform": None, "verdict": None} for arm in closed]
    assert numbers[0] == numbers[1], "the module begins elsewhere, its numbers being drawn in that dtype"


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.mark.jobs
def test_the_job_runs_by_itself_and_says_mistakes_in_one_line(tmp_path):
    job = partial(run_job, "jobs/train.py")
    done = job("cluster=inline", f"output={tmp_path / 'run'}", "epochs=4", "seeds=2", "cluster.threads=1")
    assert done.returncode == 0, done.stderr
    assert "weighted" in done.stdout and "rows_per_second=" in done.stdout
    bad = job(f"data.path={ROOT}", "epochs=0", f"output={tmp_path / 'bad'}")
    assert bad.returncode == 2 and bad.stderr.strip() == "epochs: must be at least 1, got 0. Change `epochs`."
    bad = job(f"data.path={ROOT}", f"output={tmp_path / 'bad'}")
    assert bad.returncode == 2 and bad.stderr.startswith("test.path: a table of test rows must be named, got none.")
