"""The default rules on real features: what users may count on. The sets are not part of the project."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
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
    ("name", "auc", "f1"), [("flowers", 0.99, 0.93), ("caltech101", 0.99, 0.93), ("dtd", 0.97, 0.83)]
)
def test_a_fifth_of_wrong_labels_is_found(name, auc, f1):
    summary = diva_ray.score(planted(name, 0.2, 3), truth="truth", cluster="inline", quiet=True).summary
    found = summary["planted"]
    assert max(found["auc_z"], found["auc_label_score"]) >= auc
    assert max(found["f1"], found["f1_detrimental"]) >= f1
    assert abs(summary["noise_estimate"] - 0.2) < 0.05
    assert abs(summary["label_issue_precision"] - found["precision"]) < 0.15
    assert abs(summary["label_issue_recall"] - found["recall"]) < 0.1


@pytest.mark.parametrize("name", ["flowers", "caltech101", "dtd"])
def test_clean_labels_are_left_alone(name):
    summary = diva_ray.score(planted(name, 0.0, 0), cluster="inline", quiet=True).summary
    assert summary["n_label_issues"] <= 0.03 * summary["n_samples"]
    assert summary["n_detrimental"] <= 0.06 * summary["n_samples"]


def test_human_label_errors_rank_first():
    table = pq.read_table(DATA / "agnews" / "train.parquet")
    summary = diva_ray.score(table, truth="gold_label", cluster="inline", quiet=True).summary
    assert summary["planted"]["auc_label_score"] >= 0.825
