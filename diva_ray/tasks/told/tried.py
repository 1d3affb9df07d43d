"""What was tried, in words: steps, ridges, and from where the bars of a page count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diva_ray.report import words

PARTS = {2: "half", 3: "a third", 9: "a ninth"}


def ridge_in_words(summary: dict[str, Any], chosen: bool) -> str:
    """Return the ridge to fit with and where it comes from; `chosen`: by leave-one-out, else given."""
    ridge, before = summary["ridge"], summary.get("ridge_uniform")
    told = words.number(ridge, 4)
    if before is None or before == ridge:
        return told + (" (chosen by leave-one-out)" if chosen else "")
    return f"{told} ({part_of(before / ridge)} of {_first(before, chosen)}; taken on outer folds)"


def _first(ridge: float, chosen: bool) -> str:
    told = words.number(ridge, 4)
    return f"the {told} that leave-one-out chose" if chosen else f"the given {told}"


def part_of(times: float) -> str:
    """Return `a ninth` for 9."""
    return PARTS.get(round(times), f"1 / {times:.3g}")


def at_ridge(summary: dict[str, Any], key: str) -> str:
    """Return under which ridge an error stands, where not all stand under that for the weights as they are."""
    alike = summary["ridge"] == summary["ridge_compared"] == summary["ridge_uniform"]
    return "" if alike else f" (at its best ridge, {words.number(summary[key], 4)})"


def explained(tried: list[dict[str, Any]], ridge: float, chosen: bool, things: str = "sources") -> str:
    """Return what the steps of what was tried do, and what a part of the ridge is, a sentence each."""
    values: dict[str, float] = {}
    for step in (step for row in tried for step in row["steps"]):
        values.setdefault(step["kind"], step["value"])
    told = []
    if "sources" in values:
        rate = f"{values['sources']:g}"
        told.append(
            f"{things.capitalize()} moved by {rate}: the weight of each is multiplied by exp(\N{MINUS SIGN}"
            f"{rate} z), z = derivative / standard error, held within ±3."
        )
    if "shrink" in values:
        told.append(
            "Harm beyond 1 standard error removed: a weight whose derivative is above that is multiplied by standard "
            "error / derivative."
        )
    if "doubtful" in values:
        told.append(
            "Labels of a score below 1/2 weighed down: such a weight is multiplied by twice the score. Of classes it "
            "is the probability that the label is right, under the likeliest share of wrong labels, whether or not any "
            "are sure to be; of other targets no probability, but below 1/2 where the left-out loss is above the "
            "median loss with another row's label."
        )
    if "uncertain" in values:
        told.append(
            "A share s of the weight by uncertainty: a weight is multiplied by 1 \N{MINUS SIGN} s + s u, u how unsure "
            "its class is (1 \N{MINUS SIGN} the sum of its squared left-out probabilities, over the mean), that of "
            "doubtful labels as above, too: rows near the boundaries between classes count more."
        )
    if "plain" in values:
        told.append(
            f"Plain step of {values['plain']:g}: weight less {values['plain']:g} times its derivative, not below 0."
        )
    for part in sorted({round(1 / row["ridge_factor"]) for row in tried} - {1}):
        told.append(f"ridge / {part}: fitted with {part_of(part)} of {_first(ridge, chosen)}.")
    return " ".join(told)


def as_given_ridge(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was tried under the ridge as it is."""
    return [trial for trial in trials if trial["ridge_factor"] == 1]


def trial_bars(tried: list[dict[str, Any]], error: str, shape: Callable) -> list[dict[str, Any]]:
    """Return a bar for everything that was tried, from the weights and the ridge as they are."""
    # Whether another ridge does better for the weights as they are
    moved = any(row["gain"] for row in tried if not row["steps"] and row["ridge_factor"] == 1)
    return [
        {
            "label": row["weights"].replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}"),
            "value": row["gain_over_given"], "error": row["gain_over_given_standard_error"],
            "detail": f"{error} {shape(row['error'])}" + (_beyond_ridge(row) if moved else ""), "strong": row["taken"],
        }
        for row in tried
    ]  # fmt: skip


def _beyond_ridge(row: dict[str, Any]) -> str:
    if not row["steps"]:
        return ""
    gain, error = words.number(row["gain"]), words.number(row["gain_standard_error"], 2)
    return f"; the steps alone, beyond the best ridge: {gain} ± {error}"


def best_by_steps(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was tried, the best gain first: each under its best ridge (the one taken under its own), and the
    weights as they are under the ridge as it is too."""
    unmoved = [trial for trial in trials if not trial["steps"]]
    best: dict[str, dict[str, Any]] = {"": trials[0], "ridge": max(unmoved, key=lambda trial: trial["gain"])}
    for trial in trials:
        steps = trial["moves"]
        if steps not in best or (trial["taken"], trial["gain"]) > (best[steps]["taken"], best[steps]["gain"]):
            best[steps] = trial
    once = {trial["weights"]: trial for trial in best.values()}
    return sorted(once.values(), key=lambda trial: -trial["gain_over_given"])
