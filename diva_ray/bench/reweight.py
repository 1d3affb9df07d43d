"""Reweighting: test error of the fit under weights from ours and from others (the paper's Table 1)."""

from __future__ import annotations

import numpy as np
import torch

import diva_ray
from diva_ray.bench import baselines
from diva_ray.bench.sets import SEEN, UNTOUCHED, RealSet
from diva_ray.bench.tables import Key, Results, Table
from diva_ray.tasks.setup.result import Result

GAP = 0.8  # points between uniform weights and the truth-cleaned set, from which a share of the gap means something
METHODS = {
    "ours": "ours (safe)", "paper": "DIVA paper", "dropped": "label issues dropped", "chang": "Chang et al. 2017",
    "ren": "Ren et al. 2018*", "ridge": "uniform, our ridge*",
}  # fmt: skip
COLUMNS = {"uniform": "uniform", **METHODS, "cleaned": "truth-cleaned*"}
NOTE = (
    "Every fit is the ridge head with a ridge tuned by leave-one-out (ours: the ridge of its summary), but Ren et al.: "
    "a softmax head trained by SGD. DIVA paper: two plain steps of 0.1. Without a part in the best: *Ren et al. are "
    "told the true labels of a held-out fifth and the truth-cleaned set those of every row; uniform weights under the "
    "ridge that ours chose only tell what of its gain is the ridge's."
)


def measure(one: RealSet, noise: float, seed: int) -> dict[str, float]:
    """Return the test error in percent of every method on one planting of wrong labels."""
    y = one.labels(noise, seed)
    table, uniform = one.table(y), np.ones(len(y))
    scored = diva_ray.score(table, outputs=True, seed=seed, **one.columns)
    assert isinstance(scored, Result)
    ridge, issue = scored.summary["ridge"], scored.samples["is_label_issue"].to_numpy()
    probability = scored.pred_probs()[np.arange(len(y)), np.searchsorted(np.unique(y), y)]
    ours = diva_ray.reweight(table, seed=seed, **one.columns)
    paper = diva_ray.reweight(table, method="paper", folds=2, ridge=ridge, seed=seed, **one.columns)
    assert isinstance(ours, Result) and isinstance(paper, Result)
    return {
        "uniform": one.test_error(one.fit_sums(y, uniform), ridge),
        "ours": _error(one, y, ours),
        "ridge": one.test_error(one.fit_sums(y, uniform), ours.summary["ridge"]),
        "paper": _error(one, y, paper),
        "dropped": one.tuned_error(y, (~issue).astype(np.float64)),
        "chang": one.tuned_error(y, baselines.threshold_closeness(probability)),
        "ren": _ren(one, y, seed),
        "cleaned": one.tuned_error(y, (y == one.truth).astype(np.float64)),
        "accepted": float(ours.summary["accepted"]),
    }


def _error(one: RealSet, y: np.ndarray, result: Result) -> float:
    weight = result.samples["weight"].to_numpy()
    return one.test_error(one.fit_sums(y, weight), result.summary["ridge"])


def _ren(one: RealSet, y: np.ndarray, seed: int) -> float:
    held, Z = one.held_out(0.2, seed), one.features.float()
    labels, truth = torch.from_numpy(y[~held]), torch.from_numpy(one.truth[held])
    W, _ = baselines.reweighted_head(Z[~held], labels, (Z[held], truth), one.classes, seed=seed)
    return one.error_of(W.double())


def tables(results: Results) -> list[Table]:
    """Return the test errors, and what every method makes of the gap between uniform weights and the clean set: of
    sets that took part in choosing the rules, and of sets that did not."""
    groups = {"sets looked at while the rules were chosen": SEEN, "untouched sets": UNTOUCHED}
    split = {kind: [key for key in results.values if key[0] in names] for kind, names in groups.items()}
    gaps = [gap_table(results, pairs, kind) for kind, pairs in split.items() if pairs]
    return [results.table("Test error in percent after reweighting", COLUMNS, 2, min, NOTE), *gaps]


def gap_table(results: Results, pairs: list[Key], kind: str) -> Table:
    """Return the share of the gap that every method closes, on average over the pairs that have one; its mean gain
    against uniform weights, and its worst loss, in the mean over seeds and in a single run, over all pairs."""
    gaps = {key: results.mean(key, "uniform") - results.mean(key, "cleaned") for key in pairs}
    wide = [key for key in pairs if gaps[key] > GAP]
    rows = []
    for name, head in METHODS.items():
        gain = {key: results.mean(key, "uniform") - results.mean(key, name) for key in pairs}
        share = f"{np.mean([gain[key] / gaps[key] for key in wide]):.0%}" if wide else "-"
        losses = [np.subtract(results.values[key][name], results.values[key]["uniform"]).max() for key in pairs]
        worst = [f"{max(0.0, value):.2f}" for value in (-min(gain.values()), max(losses))]
        rows.append([head, share, f"{np.mean(list(gain.values())):+.2f}", *worst])
    head = ["method", f"share of the gap closed ({len(wide)} of {len(pairs)} pairs)", "mean gain", "worst loss"]
    note = f"Pairs of set and share of wrong labels; a gap is over {GAP} points of test error; loss and gain in points."
    title = f"Between uniform weights and the truth-cleaned set: {kind}"
    return Table(title, [*head, "worst loss in a single run"], rows, note)
