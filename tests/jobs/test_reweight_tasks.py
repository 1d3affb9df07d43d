"""Reweighting where targets are not single classes."""

import numpy as np
import pytest

import diva_ray

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


@pytest.mark.parametrize("loss", ["squared", "cosine"])
def test_vectors_with_gross_errors_lose_weight_where_that_helps(loss):
    X, generator = draw(), np.random.default_rng(1)
    V = (X[:, :3] + 0.1 * generator.standard_normal((400, 3))).astype(np.float32)
    wrong = generator.permutation(400)[:60]
    V[wrong] = V[np.roll(wrong, 1)] * 3
    result = diva_ray.reweight({"features": X, "label": V}, loss=loss, cluster=INLINE, quiet=True)
    alpha = np.array(result.samples["weight"])
    right = np.setdiff1d(np.arange(400), wrong)
    assert result.summary["accepted"]
    assert alpha[wrong].mean() < 0.7 * alpha[right].mean()
