"""Rows that lack a band are predicted worse, which is no sign of a wrong label."""

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


def classes(seed, wrong=0.0, lacking=0.3, n=3000, c=4, other=0.3):
    """Return a table of classes whose band `a` tells most, which labels are wrong and which rows lack `a`."""
    draw = np.random.default_rng(seed)
    A, B = draw.normal(size=(n, 20)), draw.normal(size=(n, 12))
    W = np.random.default_rng(0).normal(size=(32, c))
    true = (A @ W[:20] + other * B @ W[20:] + 0.5 * draw.gumbel(size=(n, c))).argmax(1)
    bad, lacks = draw.random(n) < wrong, draw.random(n) < lacking
    given = np.where(bad, (true + draw.integers(1, c, n)) % c, true)
    a = pa.array([None if gap else row for gap, row in zip(lacks, A.tolist(), strict=True)], pa.list_(pa.float64()))
    label = pa.array([f"class {k}" for k in given])
    return pa.table({"a": a, "b": pa.array(B.tolist()), "label": label, "id": np.arange(n)}), bad, lacks


def several(seed, wrong=0.0, lacking=0.1, n=3000, c=6):
    """Return a table of several labels, one of which is wrong in some rows, and which rows lack `a`."""
    draw = np.random.default_rng(seed)
    A, B = draw.normal(size=(n, 20)), draw.normal(size=(n, 12))
    W = np.random.default_rng(0).normal(size=(32, c))
    given = A @ W[:20] + 0.3 * B @ W[20:] + 0.5 * draw.logistic(size=(n, c)) > 2
    bad, lacks = draw.random(n) < wrong, draw.random(n) < lacking
    given[bad, draw.integers(0, c, n)[bad]] ^= True
    a = pa.array([None if gap else row for gap, row in zip(lacks, A.tolist(), strict=True)], pa.list_(pa.float64()))
    label = [[f"tag {k}" for k in np.flatnonzero(row)] for row in given]
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


@pytest.mark.parametrize("made", [pytest.param(table, marks=pytest.mark.long), classes, several])
def test_the_same_rows_whatever_the_blocks(made):
    rows = made(4, 0.08, n=5000)[0]
    one, other = (score(rows, precision="float64", block_rows=size).samples for size in (256, 4096))
    assert other["is_label_issue"] == one["is_label_issue"] and 0 < sum(one["is_label_issue"].to_pylist()) < 600
    np.testing.assert_allclose(other["label_score"], one["label_score"], rtol=1e-6)


def test_weights_are_tried_where_rows_lack_bands():
    rows, wrong, _ = table(5, 0.1)
    found = diva_ray.reweight(rows, features=["a", "b"], cluster=INLINE, quiet=True)
    weights = found.samples["weight"].to_numpy()
    assert found.summary["accepted"] and weights[wrong].mean() < 0.3 * weights[~wrong].mean()


@pytest.mark.long  # below a pool lacks what some rows of the table lack too
def test_rows_of_a_pool_that_lack_what_no_row_of_the_table_lacks_are_chosen():
    core, pool = table(6, lacking=0.0)[0].drop_columns("id"), table(6, 0.1, n=600, lacking=0.3)
    found = diva_ray.extend(core, pool=pool[0], features=["a", "b"], cluster=INLINE, quiet=True, budget=200)
    chosen = found.samples["id"].to_numpy() if "id" in found.samples.column_names else None
    assert chosen is not None and len(chosen) == 200
    assert pool[1][chosen].mean() < 0.5 * pool[1].mean() and pool[2][chosen].any()


@pytest.mark.parametrize("other", [0.3, 1.0])
def test_no_right_class_looks_wrong_for_want_of_a_band(other):
    rows, _, lacks = classes(1, lacking=0.1, other=other)
    assert score(rows).summary["n_label_issues"] == 0 and lacks.sum() > 200


@pytest.mark.parametrize("lacking", [0.1, 0.3])
@pytest.mark.parametrize("other", [0.3, 1.0])
def test_wrong_classes_are_found_beside_gaps_with_the_precision_told(lacking, other):
    rows, wrong, lacks = classes(2, 0.05, lacking, other=other)
    result = score(rows, outputs=True)
    flagged = result.samples["is_label_issue"].to_numpy()
    precision = (flagged & wrong).sum() / flagged.sum()
    assert precision > 0.8 and result.summary["label_issue_precision"] == pytest.approx(precision, abs=0.1)
    assert flagged[wrong & ~lacks].mean() > 0.7 and flagged[lacks].mean() < 0.05
    factor, scores = (result.samples[name].to_numpy() for name in ("gap_factor", "label_score"))
    assert (factor[~lacks] == 1).all() and len({*factor[lacks]}) == 1 and factor[lacks][0] < 0.5
    given = np.unique(rows["label"], return_inverse=True)[1]
    within = (scores > 1e-4) & (scores < 1 - 1e-4)
    p, scores = (one[within].astype(float) for one in (result.pred_probs()[np.arange(len(rows)), given], scores))
    slope = result.summary["calibration"]["slope"]
    ratio = scores / (1 - scores) / (p / (1 - p)) ** slope  # the posterior odds are those of the class times one number
    assert within.sum() > 1000 and ratio == pytest.approx(np.full(len(ratio), np.median(ratio)), rel=1e-2)


@pytest.mark.parametrize("made", [classes, pytest.param(several, marks=pytest.mark.long)])
def test_a_pool_of_rows_that_lack_a_band_is_chosen_by_labels_that_are_right(made):
    core, (pool, wrong, lacks) = made(4, n=800, lacking=0.2)[0].drop_columns("id"), made(5, 0.3, 0.3)
    found = diva_ray.extend(core, pool=pool, features=["a", "b"], cluster=INLINE, quiet=True, budget=600)
    chosen = found.samples["id"].to_numpy()
    heard = np.intersect1d(chosen, np.flatnonzero(~lacks))
    assert len(chosen) == 600 and len(heard) > 200 and wrong[heard].mean() < 0.5 * wrong.mean()


def test_several_labels_of_rows_that_lack_a_band_hide_no_wrong_ones_of_others():
    assert score(several(1)[0]).summary["n_label_issues"] == 0
    for lacking in (0.1, 0.3):
        rows, wrong, lacks = several(2, 0.05, lacking)
        result = score(rows)
        flagged = result.samples["is_label_issue"].to_numpy()
        precision = (flagged & wrong).sum() / flagged.sum()
        assert result.summary["label_issue_precision"] == pytest.approx(precision, abs=0.13) and precision > 0.75
        assert flagged[wrong & ~lacks].mean() > 0.6 and not flagged[lacks].any()


@pytest.mark.ray
@pytest.mark.parametrize("made", [classes, pytest.param(several, marks=pytest.mark.long)])
def test_workers_judge_rows_with_gaps_as_one_process_does(ray_cluster, made):
    rows = made(6, 0.1, 0.2)[0]
    inline = score(rows).samples
    found = score(rows, cluster={"kind": "ray", "workers": 2, "threads": 1})
    assert found.folder.read_table("samples").equals(inline), "the same bits"
