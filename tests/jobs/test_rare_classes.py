"""Many classes that are each rare: no output passes 1/2, and yet models differ by how they rank them."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import label_ranking_average_precision_score

import diva_ray

INLINE = {"kind": "inline", "threads": 1}
CLASSES = 60


def rows(n, seed):
    """Return rows with 2 of 60 classes by linear scores of two bands."""
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, 30)).astype(np.float32)
    W = np.random.default_rng(9).standard_normal((30, CLASSES))
    own = np.argsort(X @ W + draw.standard_normal((n, CLASSES)), 1)[:, -2:]
    labels = [[f"c{k:02d}" for k in sorted(two)] for two in own]
    return pa.table({"a": list(X[:, :15]), "b": list(X[:, 15:]), "label": labels, "id": np.arange(n) + 10_000 * seed})


TABLE, MORE = rows(900, 1), rows(400, 2)
OPTIONS = {"features": ["a", "b"], "cluster": INLINE, "quiet": True}


def onehot(table):
    """Return (n, c) which classes rows have."""
    Y = np.zeros((table.num_rows, CLASSES))
    for i, own in enumerate(table["label"].to_pylist()):
        Y[i, [int(name[1:]) for name in own]] = 1
    return Y


@pytest.fixture(scope="module")
def scored():
    return diva_ray.score(TABLE, standardize="none", **OPTIONS)


def test_the_error_of_a_score_is_that_of_its_left_out_outputs(scored):
    X = np.hstack([np.stack(TABLE[name].to_pylist()) for name in "ab"]).astype(float)
    Y = onehot(TABLE)
    A = np.hstack([np.ones((len(X), 1)), X])
    hat = A @ np.linalg.solve(A.T @ A + np.diag([0.0] + 30 * [scored.summary["ridge"]]), A.T)
    left = Y - (Y - hat @ Y) / (1 - np.diag(hat))[:, None]
    assert (left > 0.5).sum() < 0.1 * Y.sum()  # counted by 1/2, hardly a label is ever predicted
    expected = 1 - label_ranking_average_precision_score(Y, left)
    assert scored.summary["error"] == pytest.approx(expected, abs=1e-4)
    assert "ranking error" in scored.lines()[0]


def test_a_band_adds_to_another_and_a_ridge_too_large_is_not_chosen(scored):
    bands = diva_ray.aggregate(TABLE, **OPTIONS)
    assert bands.summary["error_together"] < 0.9 * min(b["error_alone"] for b in bands.summary["bands"].values())
    assert "ranking error" in bands.lines()[0]
    space = {"ridge": {"choice": [scored.summary["ridge"] * factor for factor in (1e4, 1.0)]}}
    tuned = diva_ray.tune(TABLE, space=space, search="grid", folds=3, **OPTIONS)
    assert tuned.summary["best"]["ridge"] == pytest.approx(scored.summary["ridge"])


def test_more_rows_lower_the_error_beyond_chance():
    extended = diva_ray.extend(TABLE.slice(0, 450), TABLE.slice(450), **OPTIONS)
    gap = extended.summary["error_difference"]["to_before"]
    assert gap["difference"] < -3 * gap["standard_error"] < 0, gap


def test_training_is_beside_the_shares_of_the_classes():
    summary = diva_ray.train(TABLE, MORE, epochs=5, seeds=1, **OPTIONS).summary
    Y = onehot(MORE)
    expected = 1 - label_ranking_average_precision_score(Y, np.tile(Y.mean(0), (len(Y), 1)))
    assert summary["learns_nothing"] == pytest.approx(expected, abs=1e-9)
    assert all(arm["error"] < 0.8 * expected for arm in summary["arms"])
