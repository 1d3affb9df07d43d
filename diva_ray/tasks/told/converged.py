"""Whether training ended where it should: what a run tells of arms that did not converge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diva_ray.tasks.told.chance import CLEAR

ROSE = 1.5  # times the loss of the first epoch, beyond which that of a later one tells of too large steps
HALFWAY = 0.265  # of the epochs, after which the rates of half a cosine add up to half of their sum
BLEW_UP = 100.0  # nats of a row of classes, which no model that learnt anything loses
STILL_FALLING = 0.15  # of the fall of the loss, in the second half of that sum; converged, it was below 0.12
LEAST_FALL = 0.01  # of the loss, which is worth a word
FALLS_ON = 0.03  # of the loss of classes, in that second half: it never quite comes to rest
BEHIND = 0.05  # of the closed form's error, which is worth a word


def settle(summary: dict[str, Any]) -> None:
    """Add `diverged` (arms whose training went wrong), `warnings` and `notes` to the figures; an arm that diverged, or
    is compared with one that did, has no other verdict."""
    summary["diverged"] = [arm["name"] for arm in summary["arms"] if lost(arm, summary) or rose(arm, summary)]
    for arm in summary["arms"]:
        if arm["verdict"] is not None and {arm["name"], arm["compared_to"]} & set(summary["diverged"]):
            arm["verdict"] = "did not converge"
    summary["warnings"] = [
        *_told(summary, _lost), *_told(summary, _rose), *_told(summary, _useless), *_told(summary, _short)
    ]  # fmt: skip
    summary["notes"] = _told(summary, _falls_on)


def lost(arm: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Return whether a trained arm is worse than one that learns nothing, beyond chance over test rows."""
    error = arm["rows_standard_error"]
    return "training_loss" in arm and arm["error"] - summary["learns_nothing"] > CLEAR * (error or 0.0)


def rose(arm: dict[str, Any], s: dict[str, Any]) -> bool:
    """Return whether the training loss of some epoch was far above that of the first, or ended where only outputs that
    blew up can bring it: errors of classes, which no scale of the outputs changes, do not tell."""
    first, *rest = arm.get("training_loss", [0.0])
    return (bool(rest) and max(rest) > ROSE * first) or _blew_up(arm, s)


def _blew_up(arm: dict[str, Any], s: dict[str, Any]) -> bool:
    return s["task"] in ("classification", "multilabel") and arm.get("training_loss", [0.0])[-1] > BLEW_UP


def fell_late(arm: dict[str, Any]) -> bool:
    """Return whether the training loss fell in the second half of the sum of rates as far as it does not where it has
    come to rest: the rate itself ends at 0, so that the last epochs say nothing."""
    losses = arm["training_loss"]
    if len(losses) < 2:
        return False
    first, half, last = losses[0], losses[halfway(losses)], losses[-1]
    return half - last > max(STILL_FALLING * (first - last), LEAST_FALL * abs(half))


def halfway(losses: list[float]) -> int:
    """Return the epoch after which rates add up to half of their sum, counted from 0."""
    return max(round(HALFWAY * len(losses)) - 1, 0)


def behind(arm: dict[str, Any]) -> bool:
    """Return whether the closed form under the same weights is better, beyond chance and by as much as matters."""
    gap = arm.get("difference_to_closed_form")
    return gap is not None and gap["verdict"] == "higher" and gap["mean"] > BEHIND * (arm["error"] - gap["mean"])


def _told(summary: dict[str, Any], tell: Callable[[dict[str, Any], dict[str, Any]], str]) -> list[str]:
    """Return what one rule says of the arms, the figures of the first alone: `{}` stands for their names."""
    trained = [arm for arm in summary["arms"] if "training_loss" in arm]
    found = [(arm["name"], said) for arm in trained if (said := tell(arm, summary))]
    if not found:
        return []
    names = ", ".join(f"`{name}`" for name, _ in found)
    return [found[0][1].format(names if len(found) == 1 else f"{names} (figures of the first)")]


def _lost(arm: dict[str, Any], s: dict[str, Any]) -> str:
    if not lost(arm, s):
        return ""
    first, *rest = arm["training_loss"]
    cure = f"Lower `learning_rate` ({s['learning_rate']:g} now)."
    if not rest or max(rest) <= first:  # it went down all the way, too slowly
        cure = (
            f"More `epochs` ({s['epochs']} now), another `learning_rate` ({s['learning_rate']:g} now), or features of "
            "one scale (`standardize=auto`)."
        )
    return (
        f"{{}}: worse than {nothing(s)} ({against(s, arm['error'], s['learns_nothing'])}): training did not converge. "
        f"{cure}"
    )


def _rose(arm: dict[str, Any], s: dict[str, Any]) -> str:
    if lost(arm, s) or not rose(arm, s):
        return ""
    first, *rest = arm["training_loss"]
    if _blew_up(arm, s):
        return (
            f"{{}}: the training loss was {arm['training_loss'][-1]:.3g} at last, that of outputs which blew up: lower "
            f"`learning_rate` ({s['learning_rate']:g} now)."
        )
    return (
        f"{{}}: the training loss rose from {first:.3g} in the first epoch to {max(rest):.3g}: training did not "
        f"converge as it should. Lower `learning_rate` ({s['learning_rate']:g} now)."
    )


def _useless(arm: dict[str, Any], s: dict[str, Any]) -> str:
    if lost(arm, s) or rose(arm, s) or arm["error"] < s["learns_nothing"]:
        return ""
    return (
        f"{{}}: no better than {nothing(s)} ({against(s, arm['error'], s['learns_nothing'])}): the features tell "
        f"nothing, or training did not converge (`learning_rate` {s['learning_rate']:g}, `epochs` {s['epochs']})."
    )


def _short(arm: dict[str, Any], s: dict[str, Any]) -> str:
    if lost(arm, s) or rose(arm, s) or not (behind(arm) or fell_late(arm)):
        return ""
    parts, losses = [], arm["training_loss"]
    if behind(arm):
        closed = arm["error"] - arm["difference_to_closed_form"]["mean"]
        parts.append(f"behind the closed form of the same weights, beyond chance ({against(s, arm['error'], closed)})")
    if fell_late(arm):
        k = halfway(losses)
        parts.append(
            f"the training loss was still falling ({losses[k]:.3g} in epoch {k + 1}, {losses[-1]:.3g} at last)"
        )
        more = f"training has not converged, and more `epochs` ({s['epochs']} now) may tell more."
    else:
        more = (
            f"training has not converged, or fits noise that the ridge does not. Other `epochs` ({s['epochs']} now), "
            f"`learning_rate` ({s['learning_rate']:g} now) or `weight_decay` may tell more."
        )
    return f"{{}}: {', and '.join(parts)}: {more}"


def _falls_on(arm: dict[str, Any], s: dict[str, Any]) -> str:
    losses = arm["training_loss"]
    half, last = losses[halfway(losses)], losses[-1]
    classes = s["task"] in ("classification", "multilabel")
    if not classes or lost(arm, s) or rose(arm, s) or _short(arm, s) or not half - last > FALLS_ON * half:
        return ""
    why = ", as more wrong labels are fitted" if s["n_flagged"] and arm["name"] != "without_flagged" else ""
    return (
        f"{{}}: the training loss fell from {half:.3g} in epoch {halfway(losses) + 1} to {last:.3g} at last and would "
        f"fall on{why}: what weights are worth hangs on `epochs` ({s['epochs']} now). Try others."
    )


def nothing(s: dict[str, Any]) -> str:
    """Return in words what a model says that learns nothing."""
    if s["offset"]:
        return "the offsets alone"
    kinds = {"classification": "the commonest class", "multilabel": "how common every class is"}
    return f"always predicting {kinds.get(s['task'], 'the mean')}"


def against(s: dict[str, Any], error: float, other: float) -> str:
    """Return two errors side by side."""
    return f"{error_text(s, error)} against {error_text(s, other)}"


def places(s: dict[str, Any]) -> int | None:
    """Return the decimals of an error that its test rows can tell: of shares, those of one row; None for numbers."""
    if s["task"] not in ("classification", "multilabel"):
        return None
    return len(str(max(s["n_test"] * (s["n_outputs"] if s["task"] == "multilabel" else 1) - 1, 1)))


def error_text(s: dict[str, Any], value: float, *, sign: bool = False) -> str:
    """Return an error, or a difference of errors, with the digits that mean something, for a terminal."""
    decimals, plus = places(s), "+" if sign else ""
    if decimals is not None:
        return f"{value:{plus}.{decimals}f}"
    return f"{value:{plus},.0f}" if abs(value) >= 1e4 else f"{value:{plus}.4g}"
