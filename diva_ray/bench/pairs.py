"""Pairs without labels: how well swapped sides are found, ours next to cosine (CLIP-score) filtering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import diva_ray
from diva_ray.bench.peers import auc, f1
from diva_ray.bench.tables import Results, Table, told
from diva_ray.data.columns import to_matrix
from diva_ray.tasks.setup.result import Result

SETS = ("digits", "flickr8k", "emoji")
AUC = {
    "AUC label_score": "label_score", "AUC cosine": "cosine (CLIP score)", "AUC forward": "left-out cosine, forward",
    "AUC backward": "left-out cosine, backward", "AUC residual": "squared residual", "AUC z": "z",
    "AUC derivative": "derivative",
}  # fmt: skip
F1 = {
    "F1 is_label_issue": "is_label_issue", "F1 cosine": "cosine, share told*", "F1 forward": "forward, share told*",
}  # fmt: skip
RULE = {
    "precision": "precision", "expected precision": "expected", "recall": "recall", "expected recall": "expected",
    "share": "share of all", "seconds": "seconds",
}  # fmt: skip
NOTE = (
    "A share of the pairs have their second sides passed among themselves, never within a group (digits: left half and "
    "right half of a picture; flickr8k: CLIP towers, five captions an image; emoji: EfficientNet pictures and MiniLM "
    "names, two encoders that never met, four vendors an emoji; rows of one image or emoji leave together). "
    "The cosine exists only where both towers have one space: of emoji it does not; of digits it is that of raw pixels."
)
TOLD = "*The lowest cosines are flagged, as many as were planted: that share is not known in practice."


@dataclass(frozen=True)
class PairSet:
    """Two bands (n, d) float32 whose rows belong together, and groups that leave together (n,)."""

    name: str
    first: np.ndarray
    second: np.ndarray
    group: np.ndarray
    given: None = None  # no human errors: sides are swapped


def read_pairs(name: str, folder: str | None) -> PairSet:
    """Return a set of pairs by its name."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels = np.asarray(load_digits(return_X_y=True)[0], np.float32).reshape(-1, 8, 8)
        left, right = (half.reshape(len(pixels), -1) for half in (pixels[:, :, :4], pixels[:, :, 4:]))
        return PairSet(name, left, right, np.arange(len(pixels)))
    table = pq.read_table(Path(folder or "") / name / ("pairs.parquet" if name == "flickr8k" else "train.parquet"))
    first, second = (np.asarray(to_matrix(table[k], k, "")[0], np.float32) for k in ("image", "text"))
    key = table["image_id" if name == "flickr8k" else "name"].to_numpy()
    return PairSet(name, first, second, np.unique(key, return_inverse=True)[1])


def swapped(one: PairSet, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return from which row each second side comes, and which rows got that of another group."""
    draw, n = np.random.default_rng(seed), len(one.group)
    rows = draw.permutation(n)[: round(share * n)]
    origin = rows.copy()
    while True:
        same = np.flatnonzero(one.group[origin] == one.group[rows])
        if not len(same):
            break
        for a, b in zip(same, draw.integers(0, len(rows), len(same)), strict=True):
            origin[[a, b]] = origin[[b, a]]
    every, wrong = np.arange(n), np.zeros(n, bool)
    every[rows], wrong[rows] = origin, True
    return every, wrong


def measure(one: PairSet, noise: float, seed: int) -> dict[str, float]:
    """Return AUC and F1 of every score on one swapping, and what the rule said of itself."""
    origin, wrong = swapped(one, noise, seed)
    data: dict[str, Any] = {"image": one.first, "text": one.second[origin], "group": one.group}
    options: dict[str, Any] = {
        "task": "pairs", "features": ["image", "text"], "group": "group", "seed": seed, "quiet": True, "outputs": True,
        "cluster": {"kind": "inline", "threads": 1},
    }  # fmt: skip
    result = diva_ray.score(data, **options)
    assert isinstance(result, Result)
    rows = {name: result.samples[name].to_numpy() for name in result.samples.column_names
            if not name.startswith(("loo_", "better_"))}  # fmt: skip
    scores = {
        "label_score": rows["log_odds"], "forward": rows["cosine_forward"], "backward": rows["cosine_backward"],
        "residual": -_residual(result, data["text"]), "z": -rows["z"], "derivative": -rows["derivative"],
    }  # fmt: skip
    if one.first.shape[1] == one.second.shape[1]:
        scores["cosine"] = _cosine(one.first, data["text"])
    found = {f"AUC {name}": auc(wrong, -score) for name, score in scores.items()}
    for name in {"cosine", "forward"} & set(scores):
        found[f"F1 {name}"] = f1(wrong, scores[name] <= np.sort(scores[name])[wrong.sum() - 1])
    issue, summary = rows["is_label_issue"], result.summary
    return {
        **found,
        "F1 is_label_issue": f1(wrong, issue),
        "F1 is_detrimental": f1(wrong, rows["is_detrimental"]),
        "precision": float((wrong & issue).sum() / max(issue.sum(), 1)),
        "expected precision": summary["label_issue_precision"] or 0.0,
        "recall": float((wrong & issue).sum() / wrong.sum()),
        "expected recall": summary["label_issue_recall"] or 0.0,
        "share": summary["noise_estimate"],
        "seconds": sum(summary["seconds"].values()),
    }


def _residual(result: Result, second: np.ndarray) -> np.ndarray:
    predicted = np.asarray(to_matrix(result.samples["loo_second"], "loo_second", "")[0], np.float64)
    centred = second - second.mean(0, dtype=np.float64)
    return np.square(centred / np.sqrt(np.square(centred).sum(1).mean()) - predicted).sum(1)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.maximum(lengths, 1e-30)


def tables(results: Results) -> list[Table]:
    """Return a table of AUCs, one of F1s, and one of what the rule expected of itself."""
    return [
        results.table("Swapped pairs found: AUC", AUC, 3, max, NOTE),
        results.table("Swapped pairs found: F1", F1, 3, max, TOLD),
        plain(results),
    ]


def plain(results: Results) -> Table:
    """Return the rule's figures beside what it expected of them."""
    rows = [[told(key), *(results.cell(key, what, 2) for what in RULE)] for key in results.values]
    return Table("What the rule expects of itself, without any label", ["set", *RULE.values()], rows)
