"""Sample weights found beside shares: what they did on folds that took no part, in figures and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diva_ray.core.reweight import TrialSums, least_base
from diva_ray.report.sheet import Tile
from diva_ray.tasks.fit.folds import outcome
from diva_ray.tasks.fit.shares import PenaltySearch
from diva_ray.tasks.fit.walk import Arm
from diva_ray.tasks.told.measures import error_words
from diva_ray.tasks.told.reweighted import gain_words, tone_of


@dataclass(frozen=True)
class Joint:
    """Sample weights tried under the shares found.

    Attributes:
        arms, sums, taken: what was tried, how it did on folds set apart, and which was taken.
        penalties, multiple: see `Aggregated`, found under the weights taken; `search` has the fit sums under them.
    """

    arms: list[Arm]
    sums: TrialSums
    taken: int
    penalties: Tensor
    multiple: float
    search: PenaltySearch


def weights_of(joint: Joint) -> dict[str, Any]:
    """Return how sample weights did on folds that took no part in them, beside those given under the best of the
    ridges tried for them."""
    sums, taken = joint.sums, joint.taken
    base, loss = least_base(sums) if taken else 0, (sums.loss / sums.weight).tolist()
    return {
        "accepted": taken > 0,
        "chosen": joint.arms[taken].name,
        **joint.arms[taken].figures,
        "loss_uniform": loss[base],
        "loss_reweighted": loss[taken],
        **outcome(sums, taken, base),
    }


def moved(summary: dict[str, Any]) -> bool:
    """Return whether rows are judged under other weights than those given."""
    return bool(summary.get("weights", {}).get("accepted"))


def verdict_in_words(summary: dict[str, Any], shape: Callable) -> list[str]:
    """Return whether weights were accepted, and then what they did; nothing where none were asked for."""
    if "weights" not in summary:
        return []
    w, error = summary["weights"], error_words(summary)[0]
    before, after = shape(w["error_uniform"]), shape(w["error_reweighted"])
    if not w["accepted"]:
        return [
            "sample weights left as they were: no step gained more than half a standard error",
            f"on folds that took no part {error} {before}",
        ]
    capped = " (no row counts more than where it looks wrong)" if summary["task"] in ("regression", "vector") else ""
    part = f" (tried under ridge / {1 / w['ridge_factor']:.0f}; penalties were found anew)"
    return [
        f"sample weights accepted: {w['moves']}{part if w['ridge_factor'] != 1 else ''}",
        f"on folds that took no part {error} {before} as given, {after} with them; {gain_words(w)}, which decides"
        f"{capped}: more than half a standard error is accepted",
    ]


def tiles_of(summary: dict[str, Any]) -> list[Tile]:
    """Return the error with the weights that were accepted, beside that of those given, on the same folds."""
    if not moved(summary):
        return []
    w, (error, shape) = summary["weights"], error_words(summary)
    detail = f"{shape(w['error_uniform'])} as given, on folds that took no part; {gain_words(w)}"
    return [Tile(f"{error} with the weights", shape(w["error_reweighted"]), detail, tone_of(w))]
