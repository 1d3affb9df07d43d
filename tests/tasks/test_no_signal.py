"""Features that say nothing of the labels, and outcomes of chance: no label is called wrong, and the run says why."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_breast_cancer

import diva_ray

INLINE = {"kind": "inline", "threads": 1}
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(800, 5))
CHANCE = 1 / (1 + np.exp(-4 * X[:, 0]))
LABELS = {
    "rare": (GENERATOR.random(800) < 0.2).astype(int),
    "even": GENERATOR.integers(0, 2, 800),
    "exclusive or": (X[:, 0] * X[:, 1] > 0).astype(int),
    "chance": (GENERATOR.random(800) < CHANCE).astype(int),
    "several": pa.array([sorted(set(GENERATOR.integers(0, 4, 2).tolist())) for _ in range(800)]),
    "numbers": GENERATOR.normal(size=800),
}


@pytest.mark.parametrize("labels", LABELS)
def test_no_label_is_called_wrong_and_curating_keeps_all_rows(labels):
    result = diva_ray.curate({"features": X, "label": LABELS[labels]}, cluster=INLINE, quiet=True, outputs=True)
    assert result.summary["n_label_issues"] == 0
    assert result.samples.num_rows == 800
    warned = any("next to nothing of the labels" in line for line in result.lines())
    assert warned == (labels in ("rare", "even", "exclusive or", "several"))
    noted = any(line.startswith("note: No label is called wrong, though") for line in result.lines())
    assert noted == (labels == "chance") and any("which 5 % pass at most" in line for line in result.lines())


@pytest.mark.parametrize("labels", ["rare", "numbers"])
def test_a_feature_that_holds_the_label_is_told(labels):
    y = LABELS[labels]
    near = y + 0.3 * GENERATOR.normal(size=800)
    for features, leaks in ((np.c_[X, y], True), (np.c_[X, near], False)):
        lines = diva_ray.score({"features": features, "label": y}, cluster=INLINE, quiet=True).lines()
        assert any("look for one that holds the label" in line for line in lines) == leaks


@pytest.mark.parametrize(("rows", "classes", "share"), [(400, 3, 0.07), (3000, 3, 0.07), (600, 2, 0.15)])
def test_wrong_labels_are_found_where_classes_lie_far_apart(rows, classes, share):
    generator = np.random.default_rng(rows)
    truth = generator.integers(0, classes, rows)
    X = generator.normal(size=(classes, 50))[truth] + 0.2 * generator.normal(size=(rows, 50))
    wrong = generator.random(rows) < share
    given = np.where(wrong, (truth + generator.integers(1, classes, rows)) % classes, truth)
    data = {"features": X.astype(np.float32), "label": given, "truth": truth}
    found = diva_ray.score(data, truth="truth", cluster=INLINE, quiet=True).summary
    assert found["planted"]["precision"] == found["planted"]["recall"] == 1.0 and found["planted"]["by"] == "truth"
    assert found["label_issue_precision"] > 0.95 and found["label_issue_recall"] > 0.95


def ordered(which):
    """Return features and classes in order, cut from a quantity that they tell: every label is right."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(2000, 20))
    if which == "ratings":
        return X, np.clip(np.round(3 + 1.1 * X[:, 0] + 0.4 * generator.normal(size=2000)), 1, 5).astype(int)
    if which in (5, 6):
        return X, np.digitize(X[:, 0], np.quantile(X[:, 0], np.linspace(0, 1, which + 1)[1:-1]))
    cells = load_breast_cancer().data
    cells, area = (cells - cells.mean(0)) / cells.std(0), cells[:, 3]
    return cells, np.digitize(area, np.quantile(area, [0.2, 0.4, 0.6, 0.8]))


@pytest.mark.parametrize("which", [5, 6, "ratings", "area of cells"])
def test_classes_in_order_that_a_linear_model_masks_are_not_flipped(which):
    X, y = ordered(which)
    found = diva_ray.score({"features": X, "label": y}, cluster=INLINE, quiet=True).summary
    assert found["n_label_issues"] == 0 and found["error"] > 0.2


def test_probabilities_of_chance_are_as_unsure_as_chance_is():
    result = diva_ray.score({"features": X, "label": LABELS["chance"]}, cluster=INLINE, quiet=True, outputs=True)
    told = result.pred_probs()[:, 1]
    assert np.abs(told - CHANCE).mean() < 0.1
    assert result.summary["information"] > 0.3 * result.summary["label_entropy"]


@pytest.mark.parametrize("seed", [0, 2])
def test_outcomes_of_few_columns_are_not_the_labellers_doubt(seed):
    """Neighbours of an outcome share no more than those of a label that was guessed; one in fifty is a true error."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(2400, 2))
    likely = 0.02 + 0.96 / (1 + np.exp(-X @ [4.0, 2.0]))
    data = {"features": X.astype(np.float32), "label": (generator.random(2400) < likely).astype(int)}
    asked = diva_ray.score(data, labeller_doubt="on", cluster=INLINE, quiet=True).summary
    assert asked["labeller_doubt"] > 0.5 and asked["n_label_issues"] > 300, "a sixth of the rows, nearly all right"
    found = diva_ray.score(data, cluster=INLINE, quiet=True).summary
    assert found["labeller_doubt"] == 0 and found["n_label_issues"] < 100


@pytest.mark.parametrize(("share", "seed"), [(0.02, 0), (0.1, 1)])
def test_classes_that_overlap_are_not_the_labellers_doubt(share, seed):
    """Many columns, so that the nearest row is far: it shares nothing, and that says nothing."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 5, 10_000)
    X = generator.normal(size=(5, 64))[truth] * 0.35 + generator.normal(size=(10_000, 64))
    wrong = generator.random(10_000) < share
    given = np.where(wrong, (truth + generator.integers(1, 5, 10_000)) % 5, truth)
    data = {"features": X.astype(np.float32), "label": given, "truth": truth}
    options = {"truth": "truth", "standard_errors": "estimate", "cluster": INLINE, "quiet": True}
    found = diva_ray.score(data, labeller_doubt="on", **options).summary
    assert found["labeller_doubt"] == 0
    assert found["planted"]["precision"] > 0.7 and found["planted"]["recall"] > 0.75
    assert found["label_issue_precision"] == pytest.approx(found["planted"]["precision"], abs=0.15)
    assert found["noise_estimate"] == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("rows", [300, 600, 2000])
@pytest.mark.parametrize("seed", [1, 3])
def test_classes_that_overlap_in_a_long_tail_are_no_wrong_labels(rows, seed):
    """Far from the other class their shares stay the same, as under labels that flip one way."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, rows)
    X = generator.exponential(size=(rows, 2))
    X[:, 0] *= np.exp(1.5 * y)
    assert diva_ray.score({"features": X, "label": y}, cluster=INLINE, quiet=True).summary["n_label_issues"] == 0


def test_wrong_labels_of_one_class_of_two_are_found():
    generator = np.random.default_rng(5)
    truth = generator.integers(0, 2, 600)
    X = generator.standard_normal((600, 5))
    X[:, 0] += 4 * truth
    given = np.where((truth == 1) & (generator.random(600) < 0.2), 0, truth)
    assert (truth == 1).mean() < 0.5, "the class that flips holds less than half of the rows"
    data = {"features": X, "label": given, "truth": truth}
    planted = diva_ray.score(data, truth="truth", cluster=INLINE, quiet=True).summary["planted"]
    assert planted["precision"] > 0.9 and planted["recall"] > 0.75


@pytest.mark.parametrize("columns", [(28, 16), (26, 11), (11, 15), (26, 9), (6, 21)])
def test_two_columns_with_long_tails_accuse_no_one(columns):
    X, y = load_breast_cancer(return_X_y=True)
    data = {"features": X[:, columns].astype(np.float32), "label": y}
    assert diva_ray.score(data, cluster=INLINE, quiet=True).summary["n_label_issues"] == 0


def test_a_low_precision_is_told_with_what_it_means():
    generator = np.random.default_rng(1)
    y, X = generator.integers(0, 2, 1000), generator.normal(size=(1000, 8))
    X[np.arange(1000), y] += 1.5  # little more than their spread apart
    given = np.where(generator.random(1000) < 0.05, 1 - y, y)
    result = diva_ray.score({"features": X, "label": given}, labeller_doubt="on", cluster=INLINE, quiet=True)
    assert result.summary["n_label_issues"] and result.summary["label_issue_precision"] < 0.6
    assert any("are right by the estimate: where classes overlap" in line for line in result.lines())


@pytest.mark.parametrize(("task", "columns"), [("classes", 3), ("classes", 80), ("several", 3), ("numbers", 3)])
def test_doubt_that_was_to_be_asked_and_is_not_is_told(task, columns, caplog):
    X = np.random.default_rng(3).standard_normal((60, columns))
    given = (X[:, 0] > 0).astype(int)
    label = {"classes": given, "several": [[int(y)] for y in given], "numbers": X[:, 0]}[task]
    diva_ray.score({"features": X, "label": label}, labeller_doubt="on", cluster=INLINE, quiet=True)
    assert ("labeller_doubt: on is read for rows of one class" in caplog.text) == ((task, columns) != ("classes", 3))


@pytest.mark.parametrize(("rows", "alone"), [(60, 40), (60, 60), (30, 29)])
def test_nothing_is_known_of_the_only_row_of_a_class(rows, alone):
    draw = np.random.default_rng(0)
    names = np.array([f"only {k}" if k < alone else f"class {k % 2}" for k in range(rows)])
    data = {"features": draw.standard_normal((rows, 5)), "label": names}
    options = {"quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    found = diva_ray.score(data, **options)
    only = rows if alone >= rows - 1 else alone  # of the last class there is one row, too
    assert found.summary["n_only_of_class"] == only and found.summary["n_label_issues"] == 0
    assert found.samples["label_score"].to_numpy()[:only].min() > 0.99
    weight = diva_ray.reweight(data, **options).samples["weight"].to_numpy()
    assert np.isfinite(weight).all() and weight.min() > 0


@pytest.mark.parametrize(("rows", "columns", "base", "slope"), [(4000, 4, -1.3, 0.3), (8000, 10, -1.3, 1.0)])
def test_outcomes_that_hardly_depend_on_anything_are_right(rows, columns, base, slope):
    """Of a logistic model: it hangs on where the boundary lies, and how soft it is, what a linear fit makes of it."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(rows, columns))
    label = np.where(generator.random(rows) < 1 / (1 + np.exp(-base - slope * X[:, 0])), "yes", "no")
    assert diva_ray.score({"features": X, "label": label}, cluster=INLINE, quiet=True).summary["n_label_issues"] == 0


def test_wrong_labels_of_rare_classes_far_apart_are_no_boundary():
    generator = np.random.default_rng(0)
    truth = (generator.random(2000) < 0.15).astype(int)
    X = generator.normal(size=(2000, 4)) + 4 * truth[:, None]
    wrong = generator.random(2000) < 0.1
    found = diva_ray.score({"features": X, "label": truth ^ wrong}, cluster=INLINE, quiet=True)
    flagged = np.array(found.samples["is_label_issue"])
    assert (flagged & wrong).sum() > 0.9 * wrong.sum() and (flagged & ~wrong).sum() < 0.05 * wrong.sum()
