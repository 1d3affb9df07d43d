"""Numbers and vectors of rows that lack a band: what they are predicted worse by is no sign of a wrong label."""

import numpy as np
import pyarrow as pa
import pytest

import diva_ray

INLINE = {"kind": "inline", "threads": 1}
N = 800


def table(seed, wrong=0.0, vectors=False, n=N, lacking=0.1):
    """Return a table whose band `a`, which some rows lack, says most of the target, and which targets are wrong."""
    draw = np.random.default_rng(seed)
    A, B = draw.normal(size=(n, 20)), draw.normal(size=(n, 12))
    outputs = 4 if vectors else 1
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (32, outputs))
    y = A @ signs[:20] + 0.3 * B @ signs[20:]
    y += draw.normal(size=y.shape)
    bad, lacks = draw.random(n) < wrong, draw.random(n) < lacking
    y += 12 * bad[:, None] * draw.choice([-1, 1], y.shape)
    a = pa.array([None if gap else row for gap, row in zip(lacks, A.tolist(), strict=True)], pa.list_(pa.float64()))
    label = pa.array(y.tolist() if vectors else y[:, 0])
    return pa.table({"a": a, "b": pa.array(B.tolist()), "label": label, "id": np.arange(n)}), bad, lacks


def score(rows, **options):
    return diva_ray.score(rows, **{"features": ["a", "b"], "cluster": INLINE, "quiet": True, **options})


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_right_label_looks_wrong_for_want_of_a_band(vectors, seed):
    rows, _, lacks = table(seed, vectors=vectors)
    assert score(rows).summary["n_label_issues"] == 0 and lacks.sum() > 50


@pytest.mark.parametrize("vectors", [False, True])
def test_wrong_labels_are_found_among_rows_with_gaps_with_the_precision_told(vectors):
    rows, wrong, _ = table(3, 0.08, vectors)
    result = score(rows)
    flagged = result.samples["is_label_issue"].to_numpy()
    precision, recall = (flagged & wrong).sum() / flagged.sum(), (flagged & wrong).sum() / wrong.sum()
    assert precision > 0.9 and recall > 0.85
    assert result.summary["label_issue_precision"] == pytest.approx(precision, abs=0.08)


def test_the_same_rows_whatever_the_blocks():
    rows = table(4, 0.08, n=5000)[0]
    one, other = (score(rows, precision="float64", block_rows=size).samples for size in (256, 4096))
    assert other["is_label_issue"] == one["is_label_issue"]
    np.testing.assert_allclose(other["label_score"], one["label_score"], rtol=1e-6)


def test_weights_are_tried_where_rows_lack_bands():
    rows, wrong, _ = table(5, 0.1)
    found = diva_ray.reweight(rows, features=["a", "b"], cluster=INLINE, quiet=True)
    weights = found.samples["weight"].to_numpy()
    assert found.summary["accepted"] and weights[wrong].mean() < 0.3 * weights[~wrong].mean()


def test_rows_of_a_pool_that_lack_what_no_row_of_the_table_lacks_are_chosen():
    core, pool = table(6, lacking=0.0)[0].drop_columns("id"), table(6, 0.1, n=600, lacking=0.3)
    found = diva_ray.extend(core, pool=pool[0], features=["a", "b"], cluster=INLINE, quiet=True, budget=200)
    chosen = found.samples["id"].to_numpy() if "id" in found.samples.column_names else None
    assert chosen is not None and len(chosen) == 200
    assert pool[1][chosen].mean() < 0.3 * pool[1].mean() and pool[2][chosen].any()
