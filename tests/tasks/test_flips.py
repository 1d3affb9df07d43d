"""Labels of one class that are given as another: found by a whole run, and not where classes lie around each other."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import diva_ray
from diva_ray.core import noise


def judged(X, y):
    result = diva_ray.score({"features": X, "label": y}, quiet=True, cluster={"kind": "inline", "threads": 1})
    return result.summary, result.samples["is_label_issue"].to_numpy()


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_one_digit_that_is_called_another_is_found(share):
    X, truth = load_digits(return_X_y=True)
    wrong = (truth == 3) & (np.random.default_rng(0).random(len(truth)) < share)
    summary, issue = judged(X, np.where(wrong, 8, truth))
    assert (issue & wrong).sum() > 0.75 * wrong.sum()
    assert (issue & wrong).sum() > 0.75 * issue.sum()
    assert summary["noise_estimate"] == pytest.approx(wrong.mean(), abs=0.4 * wrong.mean())
    assert summary["class_dependence"] > 0.8


def test_missed_members_of_a_class_of_two_are_found():
    draw = np.random.default_rng(6)
    truth = (draw.random(2000) < 0.3).astype(int)
    X = draw.standard_normal((2000, 10)) + 6 / 10**0.5 * truth[:, None]
    wrong = (truth == 1) & (draw.random(2000) < 0.4)
    _, issue = judged(X, np.where(wrong, 0, truth))
    assert (issue & wrong).sum() > 0.9 * wrong.sum() and (issue & ~wrong).sum() < 0.05 * issue.sum()


@pytest.mark.parametrize("prior", [0.3, 0.5])
def test_a_class_all_around_another_flips_into_none(prior):
    """A linear model sees nearly one probability in the inner class, as if a share of it had flipped."""
    draw = np.random.default_rng(29)
    y = (draw.random(1000) < prior).astype(int)
    X = draw.standard_normal((1000, 5)) * np.where(y[:, None] == 1, 2.2, 1.0) + 0.54 * y[:, None]
    summary, issue = judged(X, y)
    assert not issue.any() and summary["noise_estimate"] == 0


@pytest.mark.parametrize("flipped", [False, True])
def test_reweighting_seeks_them_fold_after_fold_only_where_the_first_has_some(flipped, monkeypatch):
    X, truth = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    if flipped:
        y = np.where((truth == 3) & (draw.random(len(truth)) < 0.4), 8, truth)
    else:
        y = np.where(draw.random(len(truth)) < 0.2, draw.integers(0, 10, len(truth)), truth)
    found, fit = [], noise.fit_flips
    monkeypatch.setattr(noise, "fit_flips", lambda *args: found.append(fit(*args)) or found[-1])
    options = {"steps": 2, "folds": 3, "quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    trials = diva_ray.reweight({"features": X, "label": y}, **options).summary["trials"]
    (taken,) = (one for one in trials if one["taken"])
    whole = max(1, len(taken["steps"]))  # looks at all rows, which always seek
    seen = [one is not None for one in found]
    assert seen == ([True] * (3 * 2 + whole) if flipped else [False] * (2 + whole))
