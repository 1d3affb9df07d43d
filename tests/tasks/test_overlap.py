"""Classes that overlap, next to others that do not: right labels look right, wrong ones are found as told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

import diva_ray

QUIET = {"cluster": {"kind": "inline", "threads": 1}, "quiet": True}
CENTERS = np.array([[-4.0, 0, 0], [4.0, 0, 0], [0, 0, 0], [0, 0, 1.0]])  # the last two overlap, between the others


def table(seed: int, share: float, rows: int = 1500) -> tuple[dict[str, np.ndarray], np.ndarray]:
    g = np.random.default_rng(seed)
    truth = g.integers(0, 4, rows)
    X = np.c_[CENTERS[truth], np.zeros((rows, 3))] + g.standard_normal((rows, 6))
    wrong = g.random(rows) < share
    return {"features": X, "label": np.where(wrong, (truth + g.integers(1, 4, rows)) % 4, truth)}, wrong


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_right_label_is_called_wrong(seed: int) -> None:
    found = diva_ray.score(table(seed, 0.0)[0], **QUIET).summary
    assert found["n_label_issues"] == 0 and found["noise_estimate"] < 0.005


@pytest.mark.parametrize("seed", [0, 2])
def test_wrong_labels_are_found_with_the_precision_told(seed: int) -> None:
    data, wrong = table(seed, 0.05)
    result = diva_ray.score(data, outputs=True, **QUIET)
    flagged, known = result.samples["is_label_issue"].to_numpy(), result.summary["calibration"]
    precision, recall = (flagged & wrong).sum() / flagged.sum(), (flagged & wrong).sum() / wrong.sum()
    assert precision > 0.9 and recall > 0.65  # among the two that overlap they cannot be told
    assert result.summary["label_issue_precision"] == pytest.approx(precision, abs=0.1)
    assert result.summary["label_issue_recall"] == pytest.approx(recall, abs=0.1)
    assert np.array(known["mix"]["weights"]).shape == (4, 4) and len(known["mix"]["bias"]) == 4
    given = result.pred_probs()[np.arange(len(wrong)), data["label"]]
    e = result.summary["noise_estimate"]
    odds = known["shift"] + known["slope"] * logit(np.clip(given, 1e-10, 1 - 1e-10)) - logit(e) + np.log(3)
    np.testing.assert_allclose(result.samples["label_score"].to_numpy(), expit(odds), atol=2e-3)


def test_the_same_rows_whatever_the_blocks() -> None:
    data, _ = table(3, 0.1)
    one, other = (diva_ray.score(data, precision="float64", block_rows=size, **QUIET) for size in (256, 4096))
    assert "mix" in one.summary["calibration"]
    assert one.samples["is_label_issue"] == other.samples["is_label_issue"]
    np.testing.assert_allclose(one.samples["label_score"], other.samples["label_score"], rtol=1e-6)


def in_a_row(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes one after another: the outputs of a linear fit hardly ever say the middle one."""
    g = np.random.default_rng(seed)
    y = g.integers(0, 3, rows)
    return np.c_[2.0 * (y - 1) + 0.7 * g.standard_normal(rows), g.standard_normal((rows, 5))], y


@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_between_others_is_chosen_from_a_pool_as_often_as_they_are(seed: int) -> None:
    X, y = in_a_row(seed, 600)
    P, truth = in_a_row(seed + 10, 2000)
    g = np.random.default_rng(seed + 20)
    wrong = g.random(2000) < 0.4
    given = np.where(wrong, (truth + g.integers(1, 3, 2000)) % 3, truth)
    pool = {"features": P, "label": given, "id": 1000 + np.arange(2000)}
    found = diva_ray.extend({"features": X, "label": y, "id": np.arange(600)}, pool, budget=800, **QUIET)
    chosen = np.zeros(2000, dtype=bool)
    chosen[np.array(found.samples["id"]) - 1000] = True
    assert chosen.sum() == 800 and wrong[chosen].mean() < 0.09
    right = [float((chosen & ~wrong & (truth == k)).sum() / (~wrong & (truth == k)).sum()) for k in range(3)]
    assert min(right) > 0.5
