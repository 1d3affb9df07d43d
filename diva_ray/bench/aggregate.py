"""Aggregation of bands: shares by the exact gradient, against the best band, one ridge for all, and himalaya."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diva_ray
from diva_ray.bench import peers
from diva_ray.bench.sets import RealSet
from diva_ray.bench.tables import Results, Table
from diva_ray.core.bands import penalty_of_columns
from diva_ray.core.ridge import solve
from diva_ray.tasks.setup.result import Result

SETS = ("digits_bands", "cancer_bands", "fashion_bands", "emoji", "emoji_subgroup")
DRAWS, FEW = 100, 10  # of shares in himalaya's random search: its default, and for sets beyond LARGEST
LARGEST = 2_000_000  # rows times columns
ERRORS = {
    "ours": "ours", "concatenated": "all bands, one ridge", "alone": "best band alone", "himalaya": "himalaya",
}  # fmt: skip
TIMES = {"ours s": "ours, s", "himalaya s": "himalaya, s"}
MEMORY = {"ours GB": "ours, GB", "himalaya GB": "himalaya, GB"}
NOTE = (
    "Test error in percent of a ridge head; shares, ridge and the best band are chosen without a test row: ours, one "
    f"ridge and the best band by leave-one-out, himalaya by five folds and {DRAWS} draws of shares (its default; {FEW} "
    f"above {LARGEST:,} rows times columns), for every class its own. Rows that leave with others (emoji: all "
    "vendors' pictures of one) leave with them in either."
)


def measure(one: RealSet, noise: float, seed: int) -> dict[str, float]:
    """Return test errors in percent and seconds; one thread."""
    y = one.labels(noise, seed)
    level, start = peers.reset_memory(), time.perf_counter()
    result = diva_ray.aggregate(one.table(y), seed=seed, **one.columns)
    figures = {"ours s": time.perf_counter() - start, "ours GB": peers.memory_above(level) / 1e9}
    assert isinstance(result, Result)
    bands = result.summary["bands"]
    sums, names = one.fit_sums(y, np.ones(len(y))), list(one.bands)

    def error(penalties: Mapping[str, Any]) -> float:
        far = [penalties.get(name, 1e12) for name in names]
        return one.error_of(solve(sums, _columns(one, far)).W)

    figures["ours"] = error({name: band["penalty"] for name, band in bands.items()})
    figures["concatenated"] = error(dict.fromkeys(names, result.summary["ridge_concatenated"]))
    best = min(names, key=lambda name: bands[name]["squared_error_alone"])
    figures["alone"] = error({best: bands[best]["ridge_alone"]})
    figures |= {f"share {name}": band["share"] for name, band in bands.items()}
    level, start = peers.reset_memory(), time.perf_counter()
    W = himalaya(one, y, seed, DRAWS if one.features.numel() <= LARGEST else FEW)
    times = {"himalaya s": time.perf_counter() - start, "himalaya GB": peers.memory_above(level) / 1e9}
    return figures | times | {"himalaya": one.error_of(W)}


def _columns(one: RealSet, penalties: list[float]) -> Tensor:
    widths = [band.shape[1] for band in one.bands.values()]
    return penalty_of_columns(torch.tensor(penalties, dtype=torch.float64), widths, 1)


def himalaya(one: RealSet, y: np.ndarray, seed: int, draws: int) -> Tensor:
    """Return the weights (p, c) of himalaya's banded ridge, random search over shares and a grid of ridges."""
    from himalaya.backend import set_backend
    from himalaya.ridge import GroupRidgeCV
    from sklearn.model_selection import GroupKFold

    set_backend("numpy", on_error="raise")
    X, Y = one.features[:, 1:].numpy().astype(np.float32), np.eye(one.classes, dtype=np.float32)[y]
    bands = np.repeat(np.arange(len(one.bands)), [band.shape[1] for band in one.bands.values()])
    params: dict[str, Any] = {"n_iter": draws, "alphas": np.logspace(-3, 4, 15), "progress_bar": False, "warn": False}
    folds = list(GroupKFold(5, shuffle=True, random_state=seed).split(X, groups=one.groups))
    splits: Any = folds  # its annotation says int, its documentation an iterable too
    model = GroupRidgeCV(groups=bands, solver_params=params, fit_intercept=True, cv=splits, random_state=seed)
    model.fit(X, Y)
    W = np.concatenate([np.asarray(model.intercept_)[None], np.asarray(model.coef_)])
    return torch.from_numpy(W.astype(np.float64))


def tables(results: Results) -> list[Table]:
    """Return test errors and times side by side."""
    errors = results.table("Test error in percent of fits to several bands", ERRORS, 2, min, NOTE)
    times = results.table("Seconds, one thread (himalaya: few draws on large sets)", TIMES, 1, min)
    return [errors, times, results.table("Memory beyond the data", MEMORY, 2, min)]
