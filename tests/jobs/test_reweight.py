"""Reweighting, on real digits with planted noise."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import diva_ray
from diva_ray.core.hashing import splitmix
from diva_ray.core.reweight import Step
from diva_ray.tasks.setup import step_paths
from diva_ray.tasks.setup.step_paths import Path as Walked
from diva_ray.tasks.told.reweighted import headline, tone_of
from diva_ray.tasks.told.tried import best_by_steps, trial_bars
from tests.forks import run_job
from tests.jobs.problems import digits_split, weighted_error
from tests.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
INLINE = {"kind": "inline", "threads": 1}


def run(X, y, **options):
    return diva_ray.reweight({"features": X, "label": y}, **{"cluster": INLINE, "quiet": True, **options})


def weights(result):
    return np.array(result.samples["weight"], dtype=np.float64)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_safe_weights_close_much_of_the_gap_to_the_truth_on_noisy_labels(share):
    X, y, truth, X_test, y_test = digits_split(share)
    result = run(X, y)
    s, alpha = result.summary, weights(result)
    uniform = weighted_error(X, y, np.ones(900), s["ridge_uniform"], X_test, y_test)
    ours = weighted_error(X, y, alpha, s["ridge"], X_test, y_test)
    right = y == truth
    clean = weighted_error(X[right], y[right], np.ones(right.sum()), s["ridge"], X_test, y_test)
    assert s["accepted"]
    assert s["error_reweighted"] < s["error_uniform"]
    assert uniform - ours > 0.4 * (uniform - clean) > 0
    assert alpha.mean() == pytest.approx(1.0, abs=1e-6), "the mean weight is kept"
    assert alpha[right].mean() > 1.05 > 0.6 > alpha[~right].mean()


def test_flags_are_held_against_the_truth_as_by_score():
    X, y, truth, _, _ = digits_split(0.2)
    result = run(X, y, steps=1, folds=2)
    assert "planted" not in result.summary
    data = {"features": X, "label": y, "real": truth}
    result = diva_ray.reweight(data, truth="real", steps=1, folds=2, cluster=INLINE, quiet=True)
    p, issue = result.summary["planted"], result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    assert (p["n_planted"], p["n_found"], p["by"]) == ((y != truth).sum(), (issue & (y != truth)).sum(), "real")
    assert any("labels differ from `real`, found" in line for line in result.lines())
    assert "labels differ from <code>real</code>" in result.folder.read("report.html").decode()


def test_weights_that_any_step_has_lowered_are_counted():
    X, y, _, _, _ = digits_split(0.4)
    result = run(X, y, ridge=1.0, steps=3)
    alpha, s = weights(result), result.summary
    assert s["accepted"] and s["chosen"].count("then") >= 1, "several steps"
    assert s["n_lowered"] == (alpha < alpha.max() * (1 - 1e-5)).sum()


def test_labels_that_are_trusted_are_no_issues_and_the_mean_weight_is_that_of_what_is_written():
    X, y, truth, _, _ = digits_split(0.3)
    v = np.zeros(900)
    for k in range(10):
        v[np.flatnonzero(truth == k)[:3]] = 1
    label = np.where(v > 0, truth, y)
    one = np.flatnonzero(v)[0]
    label[one] = (truth[one] + 1) % 10  # wrong, but trusted
    data = {"features": X, "label": label, "v": v}
    result = diva_ray.score(data, method="trusted", validation_weight="v", cluster=INLINE, quiet=True)
    s, flagged = result.summary, result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
    assert np.array(result.samples["label_score"])[one] < s["label_threshold"]
    assert not flagged[v > 0].any() and flagged.any() and s["n_label_issues"] == flagged.sum()
    assert s["mean_weight"] == pytest.approx(weights(result).mean(), rel=1e-6) != 1


def test_of_right_labels_rows_near_the_boundaries_weigh_more_and_none_is_dropped():
    X, y, _, X_test, y_test = digits_split(0.0)
    result = run(X, y)
    s, alpha = result.summary, weights(result)
    assert s["accepted"] and s["chosen"].endswith("of the weight by uncertainty")
    margin = result.samples["margin"].to_numpy()
    near = np.argsort(margin)[:200]
    assert alpha[near].mean() > 1.2 and alpha.min() > 0.4 and s["n_zero"] == 0
    assert s["n_lowered"] == (alpha < 1 - 1e-5).sum() and s["n_raised"] == (alpha > 1 + 1e-5).sum() > 0
    assert f"{s['n_lowered']:,} weights lowered, 0 to zero, {s['n_raised']:,} raised" in result.told[2]
    uniform = weighted_error(X, y, np.ones(900), s["ridge_uniform"], X_test, y_test)
    assert weighted_error(X, y, alpha, s["ridge"], X_test, y_test) < 0.95 * uniform
    page = Page(result.folder.read("report.html").decode())
    assert "A share s of the weight by uncertainty: a weight is multiplied by 1" in page.text and "raised" in page.text


def test_labels_that_say_nothing_are_left_alone():
    X, _, _, _, _ = digits_split(0.0)
    result = run(X, np.random.default_rng(0).integers(0, 3, 900))
    assert not result.summary["accepted"]
    assert (weights(result) == 1).all()
    assert result.summary["error_reweighted"] <= result.summary["error_uniform"]


def test_the_papers_steps_are_plain_and_their_number_is_kept():
    X, y, _, _, _ = digits_split(0.2)
    result = run(X, y, method="paper", eta=0.1, steps=2, ridge=1.0)
    alpha = np.ones(900)
    for _ in range(2):
        table = {"features": X, "label": y, "w": alpha}
        d = np.array(diva_ray.score(table, weight="w", ridge=1.0, cluster=INLINE, quiet=True).samples["derivative"])
        alpha = np.maximum(alpha - 0.1 * d, 0)
    np.testing.assert_allclose(weights(result), alpha, rtol=2e-4, atol=2e-5)
    assert result.summary["chosen"] == "plain step of 0.1; then plain step of 0.1"


def test_arms_are_judged_on_models_that_never_saw_the_fold():
    """The table's own weights on fold k must do exactly as a refit without fold k does."""
    X, y, _, _, _ = digits_split(0.2)
    result = run(X, y, folds=3, steps=1, ridge=1.0, standardize="none")
    keys = torch.from_numpy(pandas.util.hash_array(np.arange(900).view(np.uint64)).view(np.int64))
    fold = splitmix(keys).numpy().view(np.uint64) % np.uint64(3)
    wrong = 0.0
    for k in range(3):
        inside = fold != k
        rest = X[~inside], y[~inside]
        wrong += (~inside).sum() * weighted_error(X[inside], y[inside], np.ones(inside.sum()), 1.0, *rest)
    assert result.summary["trials"][0]["error"] == pytest.approx(wrong / 900, abs=1e-9)


def test_a_fold_calibrates_arms_once_however_often_they_are_tried(monkeypatch):
    X, y, _, _, _ = digits_split(0.2)
    from diva_ray.tasks.fit import folds as module

    monkeypatch.setattr(module, "_clear", lambda sums: False)
    once = run(X, y, folds=3, steps=1)
    heard, whole = [], module.calibrate_arms

    def hear(runner, setup, trials):
        heard.append(list(trials.solutions))
        return whole(runner, setup, trials)

    monkeypatch.setattr(module, "calibrate_arms", hear)
    monkeypatch.setattr(module, "CLEAR_ROWS", 450)  # tried after two of three folds of 900 rows, and after all
    assert run(X, y, folds=3, steps=1).summary["trials"] == once.summary["trials"]
    assert heard == [[0, 1], [2]]


def test_steps_that_change_no_weight_in_the_end_are_not_accepted(monkeypatch):
    monkeypatch.setattr(step_paths, "LOWERED", Walked(Step("shrink", 2.0), (Step("issues"),)))
    draw = np.random.default_rng(3)
    X = draw.standard_normal((600, 8))
    V = X @ draw.standard_normal((8, 5)) + 1.2 * draw.standard_normal((600, 5))
    V[:45] = V[draw.permutation(45)]
    found = diva_ray.reweight({"features": X, "label": V}, loss="cosine", cluster=INLINE, quiet=True)
    s = found.summary
    assert any(trial["gain"] > trial["gain_standard_error"] and "dropped" in trial["weights"] for trial in s["trials"])
    assert s["n_lowered"] == 0 and not s["accepted"] and s["ridge"] == s["ridge_uniform"] and s["gain"] == 0
    assert "no weight changed" in found.told[0]


def test_a_ridge_too_large_for_its_labels_is_lowered_though_no_weight_changes(monkeypatch):
    generator = np.random.default_rng(0)
    means, truth = generator.standard_normal((100, 64)), np.repeat(np.arange(100), 10)
    X = (means[truth] + 2.1 * generator.standard_normal((1000, 64))).astype(np.float32)
    y = np.where(generator.random(1000) < 0.2, generator.integers(0, 100, 1000), truth)
    monkeypatch.setattr("diva_ray.tasks.reweight.best_trial", lambda sums: 0)
    options = {"steps": 1, "folds": 3, "cluster": INLINE, "quiet": True}
    found = diva_ray.reweight({"features": X, "label": y}, **options)
    s = found.summary
    assert not s["accepted"] and s["n_lowered"] == 0
    assert s["ridge"] in (pytest.approx(s["ridge_uniform"] / 3), pytest.approx(s["ridge_uniform"] / 9))
    assert s["gain"] > 3 * s["gain_standard_error"] > 0 and s["loss_uniform"] - s["loss_reweighted"] == pytest.approx(
        s["gain"]
    )
    assert "no weight changed" in found.told[0] and f"under a ridge of {s['ridge']:.4g} instead of" in found.told[1]
    page = Page(found.folder.read("report.html").decode())
    assert "under a ridge of" in page.text and "error under another ridge" in page.text
    assert f"of the {s['ridge_uniform']:.4g} that leave-one-out chose; taken on outer folds)" in page.text
    assert "(chosen by leave-one-out)" not in page.text
    fixed = diva_ray.reweight({"features": X, "label": y}, ridge=s["ridge_uniform"], **options).summary
    assert fixed["ridge"] == s["ridge_uniform"] and fixed["gain"] == 0
    Xt = (means[truth] + 2.1 * generator.standard_normal((1000, 64))).astype(np.float32)
    arms = diva_ray.train(
        {"features": X, "label": y}, {"features": Xt, "label": truth}, weights=found, cluster=INLINE, quiet=True,
        epochs=1, seeds=1,
    ).summary  # fmt: skip
    assert arms["ridge"] == s["ridge"]


def test_the_chart_counts_from_the_weights_and_the_ridge_as_they_are():
    """Random labels: a smaller ridge may gain, and its bar says by how much."""
    X, _, _, _, _ = digits_split(0.0)
    found = run(X[:300], np.arange(300) % 5, steps=1, folds=3)
    s, page = found.summary, Page(found.folder.read("report.html").decode())
    loss = [trial["loss"] for trial in s["trials"]]
    for trial in s["trials"]:
        assert trial["gain_over_given"] == pytest.approx(loss[0] - trial["loss"], abs=1e-12)
    bars = trial_bars(best_by_steps(s["trials"]), "error", str)
    assert {"weights as they are", "weights as they are; ridge / 9"} <= {" ".join(bar["label"].split()) for bar in bars}
    assert next(bar["value"] for bar in bars if bar["label"] == "weights as they are") == 0
    assert "Gain in loss over the weights and the ridge as they are" in page.text
    assert "ridge / 9: fitted with a ninth of the" in page.text and "that leave-one-out chose." in page.text


def test_an_error_as_given_says_under_which_ridge_it_stands():
    s = {"method": "safe", "task": "classification", "accepted": True, "chosen": "sources moved by 1; ridge / 9",
         "error_uniform": 0.28, "error_reweighted": 0.27, "gain": 0.1, "gain_standard_error": 0.01, "ridge": 0.5,
         "ridge_compared": 1.5, "ridge_uniform": 4.5}  # fmt: skip
    assert (
        "28.0\N{NO-BREAK SPACE}% as given (at its best ridge, 1.5) and 27.0\N{NO-BREAK SPACE}% reweighted (at its best "
        "ridge, 0.5)." in headline(s)[1]
    )
    alike = s | {"ridge": 4.5, "ridge_compared": 4.5}
    assert "ridge" not in headline(alike)[1]
    assert tone_of(s) == "good" and tone_of(s | {"error_reweighted": 0.29}) == ""


def test_plain_steps_that_do_harm_are_not_called_a_success():
    X, y, _, _, _ = digits_split(0.0)
    found = run(X[:300], y[:300], method="paper", eta=10.0, folds=3)
    s, page = found.summary, Page(found.folder.read("report.html").decode())
    assert s["error_reweighted"] > s["error_uniform"] and s["gain"] < 0, "what this test is about"
    assert "Accepted" not in page.text and "Taken, not tested: plain step of 10" in page.text
    assert re.search(r"the error rose from .* to .*, the loss rose by", page.text)
    assert not [tag for tag in page.all("div") if tag.get("class") == "good"]
    assert "not tested" in s["rule"] and "accepted" not in s["rule"] and "not tested" in found.told[0]
    assert "The mean weight is as it was" not in page.text


def test_a_bad_source_loses_its_weight():
    X, y, truth, X_test, y_test = digits_split(0.0)
    source = np.array(["clean", "crawl", "farm"])[np.arange(900) % 3]
    noisy = digits_split(0.7)[1]
    y = np.where(source == "farm", noisy, y)
    table = {"features": X, "label": y, "source": source}
    once, result = (
        diva_ray.reweight(table, source="source", level="source", steps=steps, cluster=INLINE, quiet=True)
        for steps in (1, 3)
    )
    found = {row["source"]: row["weight"] for row in result.summary["sources"]}
    assert result.summary["accepted"]
    derivative, of_source = once.samples["derivative"].to_numpy(), once.samples["source"].to_numpy()
    for row in once.summary["sources"]:  # of weights as they were
        assert row["derivative"] == pytest.approx(derivative[of_source == row["source"]].sum(), rel=1e-4)
        assert row["z"] == pytest.approx(row["derivative"] / row["standard_error"])
    assert found["farm"] < 0.8 < 1.1 < min(found["clean"], found["crawl"])
    (line,) = [line for line in result.lines() if line.startswith("mean weight by source: ")]
    told = dict(part.split() for part in line.removeprefix("mean weight by source: ").split(", "))
    assert list(told) == sorted(found, key=found.get) and float(told["farm"]) == pytest.approx(found["farm"], abs=0.01)
    page = Page(result.folder.read("report.html").decode())
    assert f"M{line[1:]}." in page.text and ">Lowered<" not in page.text
    uniform = weighted_error(X, y, np.ones(900), result.summary["ridge_uniform"], X_test, y_test)
    assert weighted_error(X, y, weights(result), result.summary["ridge"], X_test, y_test) < uniform
    with pytest.raises(diva_ray.InputError, match=r"at least two sources must be there .*, got 1 \(clean\) in column"):
        diva_ray.reweight({**table, "source": ["clean"] * 900}, source="source", level="source", cluster=INLINE)


def test_few_rows_and_many_columns_groups_and_numbers_work_too():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 100)).astype(np.float32)
    y = X[:, 0] + 0.1 * generator.standard_normal(60)
    y[:6] += 20
    table = {"features": X, "label": y, "group": np.arange(60) // 2}
    result = diva_ray.reweight(table, group="group", ridge=10.0, cluster=INLINE, quiet=True)
    assert result.summary["task"] == "regression"
    assert weights(result).mean() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.ray
@pytest.mark.long
def test_inline_and_ray_agree_bit_for_bit_also_when_workers_die(ray_cluster, monkeypatch):
    import ray

    from diva_ray.engine.cluster import Cluster

    X, y, _, _, _ = digits_split(0.3)
    X, y = np.tile(X, (3, 1)), np.tile(y, 3)  # three shards
    options = {"folds": 2, "steps": 2}
    inline = run(X, y, **options)
    whole, killed = Cluster.each, []

    def each_with_a_death(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ in ("propose", "judge_trials", "write") and kernel.__name__ not in killed:
                os.kill(ray.get(self.actors[len(killed) % 2].process.remote()), signal.SIGKILL)
                killed.append(kernel.__name__)
            yield partial

    monkeypatch.setattr(Cluster, "each", each_with_a_death)
    result = run(X, y, cluster={"kind": "ray", "workers": 2}, **options)
    assert killed == ["propose", "judge_trials", "write"]
    assert result.folder.read_table("samples").equals(inline.samples)
    assert result.summary["trials"] == inline.summary["trials"]
    assert "weights" not in result.folder.names(""), "what only a restart needs is gone in the end"


@pytest.mark.jobs
def test_the_job_writes_what_the_contract_promises(tmp_path):
    done = run_job("jobs/reweight.py", f"output={tmp_path / 'run'}", "cluster=inline", "folds=3")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"error_uniform", "error_reweighted", "accepted", "n_samples", "seconds"} <= summary.keys()
    assert {"samples", "report.html", "config.yaml", "manifest.json"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert "accepted" in done.stdout
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What was tried" in page and "http" not in page.replace("http-equiv", "")


def test_weights_that_help_are_found_where_no_label_is_sure_to_be_wrong():
    """A third of the labels of two classes is wrong: no row can be called so, but the likelier ones can be doubted."""
    errors = []
    for seed in (1, 4):
        draw = np.random.default_rng(seed)

        def rows(n, draw=draw):
            label = draw.integers(0, 2, n)
            return draw.standard_normal((n, 20)) + np.where(label[:, None] == 1, 0.45, -0.45), label

        (X, truth), (X_test, y_test) = rows(400), rows(4000)
        y = np.where(draw.random(400) < 0.35, 1 - truth, truth)
        found = diva_ray.reweight({"features": X, "label": y}, standardize="none", cluster=INLINE, quiet=True)
        assert not found.samples["is_label_issue"].to_numpy(zero_copy_only=False).any()
        ours = weighted_error(X, y, found.samples["weight"].to_numpy(), found.summary["ridge"], X_test, y_test)
        uniform = weighted_error(X, y, np.ones(400), found.summary["ridge_uniform"], X_test, y_test)
        errors.append((uniform, ours))
    uniform, ours = np.mean(errors, 0)
    assert ours < 0.6 * uniform, errors
