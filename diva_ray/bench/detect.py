"""Detection: how well wrong labels are found, ours next to cleanlab, Data-OOB, KNN-Shapley (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

import diva_ray
from diva_ray.bench import baselines, peers
from diva_ray.bench.peers import auc, f1
from diva_ray.bench.sets import RealSet
from diva_ray.bench.speed import Figure, Sizes
from diva_ray.bench.tables import Results, Table
from diva_ray.data.columns import to_matrix
from diva_ray.data.sources import digits as digits_table
from diva_ray.data.table import open_parquet
from diva_ray.tasks.setup.result import Result

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
        "AUC label_score": auc(wrong, -rows["label_score"]),
        "AUC z": auc(wrong, rows["z"]),
        "AUC derivative": auc(wrong, rows["derivative"]),
        "AUC cleanlab": auc(wrong, -quality),
        "AUC Data-OOB": auc(wrong, -bagged),
        "AUC KNN-Shapley": auc(wrong[~held], -shapley),
        "F1 is_label_issue": f1(wrong, flags["is_label_issue"]),
        "F1 is_detrimental": f1(wrong, flags["is_detrimental"]),
        "F1 derivative > 0": f1(wrong, rows["derivative"] > 0),
        "F1 cleanlab": f1(wrong, issues),
        "F1 Data-OOB": f1(wrong, baselines.lower_cluster(bagged)),
        "F1 KNN-Shapley": f1(wrong[~held], baselines.lower_cluster(shapley)),
    }


def tables(results: Results) -> list[Table]:
    """Return a table of AUCs and one of F1s."""
    return [
        results.table("Wrong labels found: AUC", AUC, 3, max),
        results.table("Wrong labels found: F1, each method by its own cut", F1, 3, max, NOTE),
    ]


def digits(s: Sizes) -> Iterator[Figure]:
    """Detection on scikit-learn's digits."""
    tables = [digits_table(0.2, seed).drop_columns(["image"]) for seed in range(3)]
    yield from detection(tables, "true_label", {"AUC margin": 0.996, "AUC derivative": 0.990})


def quality_on(name: str) -> Callable[[Sizes], Iterator[Figure]]:
    """Return the detection entry of a real data set in `data_folder`."""

    def entry(s: Sizes) -> Iterator[Figure]:
        table = open_parquet(f"{s.data_folder}/{name}/train.parquet")
        rows = table.reader().read(0, table.rows, table.schema.names)
        if "gold_label" in rows.column_names:  # human noise
            tables = [rows.select(["features", "label", "gold_label"])]
            return detection(tables, "gold_label", {"AUC label_score": 0.825})
        rows, truth = rows.select(["features"]), rows["label"].to_numpy(zero_copy_only=False)
        tables = [rows.append_column("label", pa.array(peers.plant(truth, 0.2, seed))) for seed in range(3)]
        tables = [noisy.append_column("true_label", pa.array(truth)) for noisy in tables]
        goals = {"F1 best": 0.83} if name == "dtd" else {"AUC best": 0.99, "F1 best": 0.93}
        return detection(tables, "true_label", goals)

    return entry


def detection(tables: list[pa.Table], truth: str, goals: dict[str, float]) -> Iterator[Figure]:
    """Return how well wrong labels are found, ours (mean over tables) next to cleanlab (first table)."""
    found, labels = [], [[t[name].to_numpy(zero_copy_only=False) for name in ("label", truth)] for t in tables]
    for table, (given, true) in zip(tables, labels, strict=True):
        found.append(peers.ours_found(table, truth, given != true))
    mean = {name: float(np.mean([one.figures[name] for one in found])) for name in found[0].figures}
    mean["AUC best"] = max(mean["AUC z"], mean["AUC label_score"])
    mean["F1 best"] = max(mean["F1 is_label_issue"], mean["F1 is_detrimental"])
    for name, value in mean.items():
        each = ", ".join(f"{one.figures[name]:.4f}" for one in found if name in one.figures)
        yield Figure(name, value, "", goals.get(name), True, each or "better of the two means")
    note = f"diva_ray.score on {tables[0].num_rows:,} rows, report and files included"
    yield Figure("seconds", float(np.median([one.seconds for one in found])), "s", note=note)
    X, (given, true) = to_matrix(tables[0]["features"], "features", "")[0], labels[0]
    codes = np.unique(given, return_inverse=True)[1]
    other = peers.cleanlab_found(np.asarray(X, np.float32), codes, given != true)
    for name, value in other.figures.items():
        yield Figure(f"{name} of cleanlab", value, note="5-fold LogisticRegression, first seed")
    yield Figure("seconds of cleanlab", other.seconds, "s")
