"""The default rules on real features: what users may count on. The sets are not part of the project."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

import diva_ray

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
OTHERS = ("flowers", "caltech101")  # pictures as dtd's are
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="real feature sets are not part of the project: no ../shared/data"
)


def planted(name, share, seed):
    """Return a set with a share of its labels replaced, each by another class at random."""
    table = pq.read_table(DATA / name / "train.parquet")
    truth = table["label"].to_numpy(zero_copy_only=False)
    classes, codes = np.unique(truth, return_inverse=True)
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(codes))[: round(share * len(codes))]
    codes[rows] = (codes[rows] + generator.integers(1, len(classes), len(rows))) % len(classes)
    label = pa.array(classes[codes], table.schema.field("label").type)
    place = table.column_names.index("label")
    return table.set_column(place, "label", label).append_column("truth", table["label"])


@pytest.mark.parametrize(
    ("name", "auc", "f1"),
    [
        pytest.param("flowers", 0.99, 0.93, marks=pytest.mark.long),
        pytest.param("caltech101", 0.99, 0.93, marks=pytest.mark.long),
        ("dtd", 0.97, 0.83),
    ],
)
def test_a_fifth_of_wrong_labels_is_found(name, auc, f1):
    summary = diva_ray.score(planted(name, 0.2, 3), truth="truth", cluster="inline", quiet=True).summary
    found = summary["planted"]
    assert max(found["auc_z"], found["auc_label_score"]) >= auc
    assert max(found["f1"], found["f1_detrimental"]) >= f1
    assert abs(summary["noise_estimate"] - 0.2) < 0.05
    assert abs(summary["label_issue_precision"] - found["precision"]) < 0.15
    assert abs(summary["label_issue_recall"] - found["recall"]) < 0.1


@pytest.mark.parametrize("name", ["dtd", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_clean_labels_are_left_alone(name):
    summary = diva_ray.score(planted(name, 0.0, 0), cluster="inline", quiet=True).summary
    assert summary["n_label_issues"] <= 0.03 * summary["n_samples"]
    assert summary["n_detrimental"] <= 0.06 * summary["n_samples"]


@pytest.mark.parametrize(
    ("name", "f1"),
    [
        pytest.param("flowers", 0.78, marks=pytest.mark.long),
        pytest.param("caltech101", 0.74, marks=pytest.mark.long),
        ("dtd", 0.6),
    ],
)
def test_classes_that_flip_into_their_nearest_are_found(name, f1):
    table = pq.read_table(DATA / name / "train.parquet")
    classes, truth = np.unique(table["label"].to_numpy(zero_copy_only=False), return_inverse=True)
    features = np.stack(table["features"].to_numpy(zero_copy_only=False)).reshape(len(truth), -1)
    means = np.stack([features[truth == k].mean(0) for k in range(len(classes))])
    apart = ((means[:, None] - means) ** 2).sum(2) + np.diag(np.full(len(classes), np.inf))
    flipped = np.random.default_rng(4).random(len(truth)) < 0.2
    label = classes[np.where(flipped, apart.argmin(1)[truth], truth)]
    rows = {"features": features, "label": label, "truth": classes[truth]}
    summary = diva_ray.score(rows, truth="truth", cluster="inline", quiet=True).summary
    assert summary["planted"]["f1"] >= f1
    assert summary["class_dependence"] > 0.8
    assert abs(summary["label_issue_precision"] - summary["planted"]["precision"]) < 0.25


def test_human_label_errors_are_found_and_the_true_labels_left_alone():
    table = pq.read_table(DATA / "agnews" / "train.parquet")
    summary = diva_ray.score(table, truth="gold_label", cluster="inline", quiet=True).summary
    found = summary["planted"]
    assert found["auc_label_score"] >= 0.825
    assert found["f1"] >= 0.5
    assert abs(summary["label_issue_precision"] - found["precision"]) < 0.1
    assert abs(summary["noise_estimate"] - 0.198) < 0.06
    assert summary["class_dependence"] > 1 / 3
    true = table.drop_columns(["label"]).rename_columns({"gold_label": "label"})
    summary = diva_ray.score(true, cluster="inline", quiet=True).summary
    assert summary["labeller_doubt"] == 0
    assert summary["n_label_issues"] <= 0.03 * summary["n_samples"]


def mismatched(table, group, share, seed):
    """Return a set of pairs, a share of whose texts go to rows of another group, with `belongs`."""
    codes = np.unique(table[group].to_numpy(), return_inverse=True)[1]
    rows = np.random.default_rng(seed).permutation(len(codes))[: round(share * len(codes))]
    origin = rows[np.argsort(codes[rows], kind="stable")]
    shifted = np.roll(origin, len(rows) // 2)  # far along the alphabet: no group keeps its own, nor its neighbours
    every, belongs = np.arange(len(codes)), np.ones(len(codes), bool)
    every[origin], belongs[origin] = shifted, False
    assert (codes[every] != codes)[~belongs].all()
    text = table["text"].combine_chunks().take(pa.array(every))
    columns = {"image": table["image"], "text": text, "group": table[group], "belongs": pa.array(belongs)}
    return pa.table(columns)


def test_swapped_captions_are_found_better_than_by_the_cosine_of_their_towers():
    table = pq.read_table(DATA / "flickr8k" / "pairs.parquet")
    for seed in (1, 2):
        pairs = mismatched(table, "image_id", 0.2, seed)
        options = {"task": "pairs", "features": ["image", "text"], "group": "group", "truth": "belongs", "seed": seed}
        result = diva_ray.score(pairs, cluster="inline", quiet=True, **options)
        found = result.summary["planted"]
        image, text = (
            np.stack(pairs[name].to_numpy(zero_copy_only=False)).reshape(500, -1) for name in ("image", "text")
        )
        cosine = (image * text).sum(1) / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1)
        assert result.summary["aligned"]
        assert found["auc_label_score"] >= roc_auc_score(~pairs["belongs"].to_numpy(), -cosine) - 0.002
        assert abs(result.summary["noise_estimate"] - 0.2) < 0.03
        assert abs(result.summary["label_issue_precision"] - found["precision"]) < 0.1


def test_swapped_names_are_found_by_encoders_that_never_met():
    table = pq.read_table(DATA / "emoji" / "train.parquet")
    pairs = mismatched(table, "name", 0.2, 4)
    options = {"task": "pairs", "features": ["image", "text"], "group": "group", "truth": "belongs", "id": "none"}
    summary = diva_ray.score(pairs, cluster="inline", quiet=True, **options).summary
    assert not summary["aligned"]
    assert summary["planted"]["auc_label_score"] >= 0.92
    assert abs(summary["noise_estimate"] - 0.2) < 0.05
    assert abs(summary["label_issue_precision"] - summary["planted"]["precision"]) < 0.15


def test_real_pairs_are_left_alone():
    table = pq.read_table(DATA / "flickr8k" / "pairs.parquet")
    options = {"task": "pairs", "features": ["image", "text"], "group": "image_id"}
    assert diva_ray.score(table, cluster="inline", quiet=True, **options).summary["n_label_issues"] <= 5
