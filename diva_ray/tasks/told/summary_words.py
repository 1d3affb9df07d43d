"""What a scoring run says in words: its few lines, notes and warnings, from its summary alone."""

from __future__ import annotations

import math
from typing import Any

from diva_ray.report.words import counted
from diva_ray.tasks.fit.calibrate import TELLS_ALL, TELLS_NOTHING
from diva_ray.tasks.setup.alike import alike_in_words, shared_in_words
from diva_ray.tasks.told.measures import figure_words
from diva_ray.tasks.told.planted import planted_in_words

CLASS_DEPENDENT = 1 / 3  # class dependence beyond which a reader is warned
DOUBTFUL = 0.6  # estimated precision below which a reader is warned
ROUGH = 0.5  # spread of estimated standard errors over exact ones; 0.1 to 0.25 on eleven real sets
MANY_MISSED = 0.05  # error from which a run that calls no label wrong says what that means


def told(summary: dict[str, Any]) -> list[str]:
    """Return a scoring run in a few lines, for a terminal."""
    s = summary
    kind = figure_words(s)[0]
    expected = f" ({estimates(s)})" if s["n_label_issues"] else ""
    lines = [
        f"{s['n_samples']:,} samples, {s['validation']} {kind} {s['error']:.4f}{validating(s)}, ridge {s['ridge']:.4g}",
        f"{counted(s['n_label_issues'], 'label looks', 'labels look')} wrong{expected}; "
        f"{counted(s['n_detrimental'], 'sample hurts', 'samples hurt')} (z > {s['threshold']:.2f}"
        f"{'' if s['noise_estimate'] else ', which 5 % pass at most'})",
    ]
    if s.get("update"):
        u = s["update"]
        lines.append(
            f"of the fit, the sums of {counted(u['rows_unchanged'], 'row', 'rows')} were taken from {u['run']}, those "
            f"of {u['rows_relabelled']:,} but for their labels; {u['rows_computed']:,} were computed"
        )
    lines += [f"warning: {warning}" for warning in warnings_of(s)]
    lines += [f"note: {note}" for note in verdict_notes(s)]
    if "curated" in s:
        lines.append(curated_in_words(s))
    return lines + planted_in_words(s)


def verdict_notes(summary: dict[str, Any]) -> list[str]:
    """Return what kind of wrong labels show among several, what it means where none is called wrong, and that deleting
    what hurts may not help."""
    found = []
    if hurt_by_loss_alone(summary):
        found.append(
            f"{summary['n_detrimental_right']:,} of {summary['n_detrimental']:,} that hurt are predicted right without "
            "themselves: they raise the loss, not the count of errors; deleting them is unlikely to help."
        )
    if lonely := summary.get("n_only_of_class"):
        which = "sample is the only one of its class" if lonely == 1 else "samples are the only ones of their classes"
        found.append(
            f"{lonely:,} {which} (but for others of their group, or of weight 0): left out, nothing predicts them, so "
            "none of them is called wrong."
        )
    if summary.get("missing_labels") is not None:
        return [
            *found,
            f"About {summary['missing_labels']:.2%} of the classes that belong to a sample are missing from its "
            f"labels, and {summary['added_labels']:.2%} of those that do not belong are given.",
        ]
    return found + unflagged(summary) * (not summary.get("n_label_issues", 1))


def unflagged(summary: dict[str, Any]) -> list[str]:
    """Return what it means that no label is called wrong, where predictions tell something and miss something."""
    likeliest = "those with the least label_score are likeliest."
    if summary["task"] in ("classification", "multilabel"):
        missed = f"{summary['error']:.1%} are not predicted"
        missed = missed if summary["task"] == "classification" else f"the ranking error is {summary['error']:.1%}"
        said = f"though {missed}: hard samples explain it too. Wrong labels that look "
        told = summary["error"] >= MANY_MISSED and not tells_nothing(summary)
        return [f"No label is called wrong, {said}like them cannot be told from them; {likeliest}"] * told
    return [
        "No label is called wrong, though long tails or uneven errors may hide wrong ones, which nothing tells from "
        f"right ones that are hard to predict; {likeliest}"
    ] * (summary.get("r2", 0.0) >= TELLS_NOTHING)


def hurt_by_loss_alone(summary: dict[str, Any]) -> bool:
    """Return whether most samples that hurt are predicted right without themselves."""
    hurt = summary.get("n_detrimental", 0)
    return hurt > 1 and 2 * summary.get("n_detrimental_right", 0) > hurt


def tells_nothing(summary: dict[str, Any]) -> bool:
    """Return whether left-out predictions tell next to nothing of the classes."""
    return summary.get("information", math.inf) < TELLS_NOTHING * summary.get("label_entropy", 0.0)


def tells_all(summary: dict[str, Any]) -> bool:
    """Return whether left-out predictions are the labels, as where one of the features holds them."""
    if summary.get("r2") is not None:
        return summary["r2"] > TELLS_ALL
    entropy = summary.get("label_entropy") or math.inf
    return summary["error"] == 0 and (summary.get("information") or 0.0) > TELLS_ALL * entropy


def curated_in_words(summary: dict[str, Any]) -> str:
    """Return what a curated copy is, and of flagged labels that stay why they do."""
    curated = summary["curated"]
    done = {"drop": "dropped", "relabel": "relabelled", "weight": "of a changed weight"}[curated["kind"]]
    stay = summary["n_label_issues"] - curated["changed"] if curated["kind"] == "relabel" else 0
    why = f"; {counted(stay, 'flagged label stays', 'flagged labels stay')}, as none is likelier" if stay else ""
    lost = curated.get("classes_lost", 0)
    gone = f"; {counted(lost, 'class has', 'classes have')} no row left" if lost else ""
    return f"curated copy: {counted(curated['rows'], 'row', 'rows')}, {curated['changed']:,} {done}{why}{gone}"


def validating(summary: dict[str, Any]) -> str:
    """Return of which rows the error is, where they are not all."""
    n = summary["n_validation"]
    return "" if n == summary["n_samples"] else f" of the {n:,} that validate"


def estimates(summary: dict[str, Any]) -> str:
    """Return which precision and recall to expect of the rows that are flagged, in words."""
    precision, recall = summary["label_issue_precision"], summary["label_issue_recall"]
    return "none is flagged" if precision is None else f"estimated precision {precision:.2f}, recall {recall:.2f}"


def dependence_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what is to be said where the labels that look wrong are not wrong at random."""
    own = summary["validation"] == "leave-one-out" and summary["method"] != "trusted"
    if not own or summary["class_dependence"] <= CLASS_DEPENDENT:
        return []
    kept = "go mostly one way" if summary["n_outputs"] == 2 else "keep to few pairs of classes"
    return [
        f"The suspected labels {kept}. Look at some: where these classes overlap, right labels look so, and fewer are "
        "wrong than is estimated; else such errors are in the validation labels too and mislead every left-out score: "
        "trust a few rows of each class (data.validation_weight, method=trusted)."
    ]


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """Return what may have misled the verdicts."""
    left_out = summary["validation"] == "leave-one-out"
    alike = alike_in_words(summary["n_alike"], summary["n_samples"]) if left_out else ""
    found = [*([alike] if alike else []), *shared_in_words(summary["shared"], summary["n_samples"])]
    found += dependence_in_words(summary) if summary["n_label_issues"] else []
    precision = summary["label_issue_precision"]
    if summary["n_label_issues"] and precision is not None and precision < DOUBTFUL:
        found.append(
            f"Of the labels that look wrong, about {round((1 - precision) * summary['n_label_issues']):,} are right by "
            "the estimate: where classes overlap, right labels look like wrong ones. Look at some before they are "
            "dropped."
        )
    if tells_nothing(summary):
        found.append(
            f"Left-out predictions tell next to nothing of the labels ({max(summary['information'], 0.0):.3f} of "
            f"{summary['label_entropy']:.3f} nats): other features are needed before any label can be called wrong."
        )
    if "r2" in summary and summary["r2"] < TELLS_NOTHING and summary["n_label_issues"]:
        found.append(
            f"Left-out predictions tell next to nothing of the numbers (R2 {summary['r2']:.3f}), perhaps because of "
            "those that look wrong: look at them, leave them out (curate=drop, say), and score the rest again."
        )
    elif "r2" in summary and summary["r2"] < TELLS_NOTHING:
        found.append(
            f"Left-out predictions tell next to nothing of the numbers (R2 {summary['r2']:.3f}): look for numbers that "
            "stand for something else, such as -999, or for other features."
        )
    if tells_all(summary):
        found.append(
            "Left-out predictions leave no doubt of a single label. Real features seldom do: look for one that holds "
            "the label, or was made of it."
        )
    check = summary.get("standard_error_check") or {"rows": 0}
    if check["rows"] and check["spread"] > ROUGH:
        found.append(
            f"The estimated standard errors of {check['rows']} rows are {check['median_ratio']:.2f} +- "
            f"{check['spread']:.2f} times the exact ones: z is rough. `standard_errors=exact` is not; "
            "`plan=true` says what it takes."
        )
    if summary["labeller_doubt"] > 0:
        found.append(
            "Labels were flagged on the assumption that every sample has one class that can be told from its features; "
            "where classes truly overlap they are not wrong: then run it with `labeller_doubt=off`."
        )
    return found
