"""Reweighting where targets are not single classes."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

import diva_ray
from diva_ray.core import losses
from diva_ray.core.reweight import trial_losses
from diva_ray.engine.context import Fold
from diva_ray.engine.kernels import verdicts
from tests.engine.runs import opened

INLINE = {"kind": "inline", "threads": 1}


def draw(n=400, d=10, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_several_classes_are_not_reweighted_for_a_change_of_scale():
    X, generator = draw(), np.random.default_rng(1)
    Y = [[k for k in range(4) if x[k] + 0.3 * generator.standard_normal() > 0.3] or [0] for x in X]
    summary = diva_ray.reweight({"features": X, "label": Y}, cluster=INLINE, quiet=True).summary
    assert summary["task"] == "multilabel"
    assert 0 < summary["error_uniform"] < 0.3, "the share of wrong labels"
    assert summary["error_reweighted"] <= summary["error_uniform"] + 0.005


@pytest.mark.parametrize("loss", [pytest.param("squared", marks=pytest.mark.long), "cosine"])
def test_vectors_with_gross_errors_lose_weight_where_that_helps(loss):
    """Many columns for the rows, so that wrong targets do harm, and errors that look like other rows' targets.

    With few columns, or errors much larger than any target, whether the rule for labels flags the wrong ones, and
    whether that gains anything in squared loss on rows that are wrong as well, is a matter of the draw.
    """
    X, generator = draw(d=60), np.random.default_rng(1)
    V = (X[:, :3] + 0.1 * generator.standard_normal((400, 3))).astype(np.float32)
    wrong = generator.permutation(400)[:60]
    V[wrong] = V[np.roll(wrong, 1)] * 2
    result = diva_ray.reweight({"features": X, "label": V}, loss=loss, cluster=INLINE, quiet=True)
    alpha = np.array(result.samples["weight"])
    right = np.setdiff1d(np.arange(400), wrong)
    assert result.summary["accepted"]
    assert result.summary["gain"] > 2 * result.summary["gain_standard_error"], "no matter of the draw"
    assert alpha[wrong].mean() < 0.7 * alpha[right].mean()
    fresh = draw(2000, 60, seed=2)
    before, after = (fresh @ fitted(X, V, weight) - fresh[:, :3] for weight in (np.ones(400), alpha))
    assert np.square(after).mean() < 0.5 * np.square(before).mean(), "nearer to what is true of other rows"


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.long), 0.05])
def test_numbers_with_gross_errors_are_dropped_though_rows_set_apart_have_them_too(share):
    """Judged by all of its squared error, a row with a gross error would speak against its own removal."""
    X, y = load_diabetes(return_X_y=True)
    apart = np.random.default_rng(0).permutation(len(y))[:120]
    kept = np.setdiff1d(np.arange(len(y)), apart)
    wrong = np.random.default_rng(2).random(len(kept)) < share
    given = y[kept] + 800 * wrong
    result = diva_ray.reweight({"features": X[kept], "label": given}, cluster=INLINE, quiet=True)
    weight, summary = np.array(result.samples["weight"]), result.summary
    assert summary["accepted"] == (share > 0)
    if not share:
        return
    assert summary["gain"] > 3 * summary["gain_standard_error"]
    assert weight[wrong].mean() < 0.1 and weight[~wrong].mean() > 0.9
    rows = np.c_[np.ones(len(y)), X]
    before, after, best = (
        np.square(y[apart] - rows[apart] @ fitted(rows[kept], given[:, None], w)[:, 0]).mean()
        for w in (np.ones(len(kept)), weight, 1.0 - wrong)
    )
    assert after < 0.7 * before and after < 1.15 * best


def test_losses_beyond_what_looks_wrong_cost_every_model_the_same():
    F, Y = torch.tensor([[0.0], [1.0], [30.0]]), torch.zeros(3, 1)
    loss, error = trial_losses(F, Y, None, losses.squared, most=2.0)
    assert loss.tolist() == [0.0, 1.0, 2.0] and error.tolist() == [0.0, 1.0, 900.0]


def fitted(X, V, weight):
    """Return the coefficients of weighted least squares."""
    root = np.sqrt(weight)[:, None]
    return np.linalg.lstsq(root * X, root * V, rcond=None)[0]


def test_targets_that_stand_for_other_rows_labels_are_none_of_rows_set_apart():
    X = draw(1300)
    V = np.c_[np.arange(1300.0), X[:, :2]]  # the first number tells the row
    runner, setup = opened({"features": X, "label": V})
    fold = Fold(1, 3)
    apart = torch.cat([fold(shard, {}) for shard in runner.engine.shards])
    assert 300 < int(apart.sum()) < 600
    for known, allowed in (({}, torch.ones(1300, dtype=torch.bool)), ({"fold": fold}, ~apart)):
        runner.engine.tell(setup=setup, examples=50, **known)
        found = runner.run(verdicts.examples_of_targets, "calibrate").rows
        rows = found[:, 0].long()
        assert len(rows.unique()) == 50 and bool(allowed[rows].all())
