"""Detection: how well wrong labels are found, ours next to cleanlab, Data-OOB, KNN-Shapley (the paper's Figure 3)."""

from __future__ import annotations

import numpy as np

import diva_ray
from diva_ray.bench import baselines, peers
from diva_ray.bench.sets import RealSet
from diva_ray.bench.tables import Results, Table
from diva_ray.tasks.result import Result

AUC = {
    "AUC label_score": "label_score", "AUC z": "z", "AUC derivative": "derivative (paper)",
    "AUC cleanlab": "cleanlab", "AUC Data-OOB": "Data-OOB", "AUC KNN-Shapley": "KNN-Shapley*",
}  # fmt: skip
F1 = {
    "F1 is_label_issue": "is_label_issue", "F1 is_detrimental": "is_detrimental",
    "F1 derivative > 0": "derivative > 0 (paper)", "F1 cleanlab": "cleanlab", "F1 Data-OOB": "Data-OOB",
    "F1 KNN-Shapley": "KNN-Shapley*",
}  # fmt: skip
NOTE = (
    "cleanlab: 5-fold logistic regression. Rows that leave together are in one fold and one bag. Data-OOB (200 trees) "
    "and KNN-Shapley (5 neighbours) are our own compact implementations of the published estimators, because "
    "OpenDataVal installs only beside older numpy and torch; their cut is OpenDataVal's, the lower of two clusters. "
    "*KNN-Shapley is told the true labels of a held-out fifth and is judged on the other rows: it takes no part in the "
    "best."
)


def measure(one: RealSet, noise: float, seed: int) -> dict[str, float]:
    """Return AUC and F1 of every detector on one planting of wrong labels."""
    given = one.labels(noise, seed)
    wrong = given != one.truth
    result = diva_ray.score(one.table(given), seed=seed, **one.columns)
    assert isinstance(result, Result)
    rows = {name: result.samples[name].to_numpy() for name in ("label_score", "z", "derivative")}
    flags = {name: result.samples[name].to_numpy() for name in ("is_label_issue", "is_detrimental")}
    X = one.features[:, 1:].numpy().astype(np.float32)
    quality, issues = peers.cleanlab(X, given, one.group)
    bagged = baselines.data_oob(X, given, one.groups, seed=seed)
    held = one.held_out(0.2, seed)
    shapley = baselines.knn_shapley(X[~held], given[~held], X[held], one.truth[held])
    return {
        "AUC label_score": _auc(wrong, -rows["label_score"]),
        "AUC z": _auc(wrong, rows["z"]),
        "AUC derivative": _auc(wrong, rows["derivative"]),
        "AUC cleanlab": _auc(wrong, -quality),
        "AUC Data-OOB": _auc(wrong, -bagged),
        "AUC KNN-Shapley": _auc(wrong[~held], -shapley),
        "F1 is_label_issue": _f1(wrong, flags["is_label_issue"]),
        "F1 is_detrimental": _f1(wrong, flags["is_detrimental"]),
        "F1 derivative > 0": _f1(wrong, rows["derivative"] > 0),
        "F1 cleanlab": _f1(wrong, issues),
        "F1 Data-OOB": _f1(wrong, baselines.lower_cluster(bagged)),
        "F1 KNN-Shapley": _f1(wrong[~held], baselines.lower_cluster(shapley)),
    }


def tables(results: Results) -> list[Table]:
    """Return a table of AUCs and one of F1s."""
    return [
        results.table("Wrong labels found: AUC", AUC, 3, max),
        results.table("Wrong labels found: F1, each method by its own cut", F1, 3, max, NOTE),
    ]


def _auc(wrong: np.ndarray, suspicion: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, suspicion))


def _f1(wrong: np.ndarray, found: np.ndarray) -> float:
    return 2 * float((wrong & found).sum()) / max(float(wrong.sum() + found.sum()), 1.0)
