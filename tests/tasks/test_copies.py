"""Rows that are there twice: what they cost when each is left out alone, that it is told, and that groups mend it."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import diva_ray

INLINE = {"kind": "inline", "threads": 1}


def copied(k, rows=600):
    """Return digits as random features, 15 % of the labels wrong, of which the first k rows are there twice."""
    X, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(y))[:rows]
    X = np.tanh(X[chosen] @ generator.normal(size=(64, 1500)) / 40)
    wrong = generator.random(rows) < 0.15
    given = np.where(wrong, (y[chosen] + generator.integers(1, 10, rows)) % 10, y[chosen])
    at = np.r_[np.arange(rows), np.arange(k)]
    return {"features": X[at], "label": given[at], "who": at}, wrong[at]


@pytest.mark.parametrize("k", [60, 300])
def test_copies_hide_wrong_labels_which_is_told_and_groups_find_them(k):
    table, wrong = copied(k)
    found = {}
    for group in (None, "who"):
        result = diva_ray.score(table, group=group, quiet=True, cluster=INLINE)
        flagged = result.samples["is_label_issue"].to_numpy(zero_copy_only=False)
        found[group] = (flagged & wrong).sum() / wrong.sum()
        assert result.summary["n_alike"] == (0 if group else 2 * k)
        assert ("the very features of another row" in repr(result)) == (group is None)
        if group:
            assert abs(result.summary["label_issue_recall"] - found[group]) < 0.1
    assert found["who"] > 0.88 and found[None] < 0.75
