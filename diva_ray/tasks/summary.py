"""What a scoring run says of itself: summary, manifest, and the page's contents."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from diva_ray.core.verdict import Link, Verdict, class_levels
from diva_ray.engine.context import Setup, Tally
from diva_ray.engine.verdicts import Z_EDGES
from diva_ray.report.page import ScoreReport
from diva_ray.tasks.derived import SIGN_VECTORS, Derived
from diva_ray.tasks.session import Session

CLASS_DEPENDENT = 1 / 3  # class dependence beyond which a reader is warned
RULES = {
    "is_detrimental": "z > threshold: more weight on this sample raises the validation error, beyond chance",
    "is_label_issue": "label_score < label_threshold: the cut with the best expected F1 against wrong labels; "
    "precision and recall are estimated from calibrated left-out probabilities, without knowing the truth",
    "class_dependence": "about which share of the suspected labels keeps to one wrong class per true class: 0 for "
    "errors drawn at random. The same errors in the validation labels mislead every score; trusted rows do not",
    "labeller_doubt": "> 0: what the model misses is hardly shared by neighbouring rows; this share of it is taken for "
    "errors of the labellers. Wrong if the outcome depends on chance, or the features do not show the class",
}


def common_figures(session: Session, setup: Setup, ridge: float) -> dict[str, Any]:
    """Return the figures that every task's summary begins with."""
    counts = session.scan.counts
    loss = session.loss if isinstance(session.loss, str) else getattr(session.loss, "__name__", "callable")
    return {
        "n_samples": int(counts["rows"]),
        "n_features": setup.scale.width - int(setup.scale.intercept),
        "n_outputs": setup.outputs,
        "n_validation": int(counts["heard"]),
        "task": session.task,
        "loss_function": loss,
        "validation": session.validation,
        "ridge": ridge,
        "mean_weight": counts["weight"] / counts["rows"],
    }


def summarise(session: Session, derived: Derived, rule: Verdict, link: Link | None, written: Tally) -> dict[str, Any]:
    """Return the figures of summary.json."""
    counts, setup = session.scan.counts, derived.setup
    bands = dict(zip(session.columns.features, derived.band_derivatives.tolist(), strict=True))
    summary = {
        **common_figures(session, setup, derived.ridge),
        "ridge_derivative": float(derived.band_derivatives.sum()),
        "band_penalty_derivative": bands,
        "loss": derived.tally["loss"] / counts["validation"],
        "error": error_of(session, derived),
        "threshold": rule.z.value,
        "n_detrimental": int(written["n_detrimental"]),
        "detrimental_precision": rule.z.precision,
        "detrimental_recall": rule.z.recall,
        "label_threshold": rule.label.value,
        "n_label_issues": int(written["n_label_issues"]),
        "label_issue_precision": rule.label.precision,
        "label_issue_recall": rule.label.recall,
        "noise_estimate": rule.noise_rate,
        "method": getattr(session.config, "method", "plain"),
        "class_dependence": rule.class_dependence,
        "labeller_doubt": rule.doubt,
        "rules": RULES,
        "standard_errors": derived.standard_errors
        if derived.standard_errors == "exact"
        else f"{SIGN_VECTORS} sign vectors",
        "standard_error_check": derived.agreement,
        "form": derived.form,
        "condition": derived.condition,
        "max_leverage": derived.tally["max_leverage"],
        "precision": str(setup.dtype).removeprefix("torch."),
        "ridge_grid": [{"ridge": r, "squared_error": None if not np.isfinite(e) else e} for r, e in derived.grid],
    }
    if link is not None:
        scale = None if not np.isfinite(link.scale) else link.scale
        levels = class_levels(derived.tally["levels"]).tolist()
        summary["calibration"] = {"scale": scale, "sharpness": link.sharpness, "levels": levels}
    if "planted" in written:
        summary["planted"] = planted(written["planted"], written["ranked"].joined()[0])
    return summary


def told(summary: dict[str, Any]) -> list[str]:
    """Return a scoring run in a few lines, for a terminal."""
    s = summary
    kind = {"classification": "error", "multilabel": "error"}.get(s["task"], "R2")
    lines = [
        f"{s['n_samples']:,} samples, {s['validation']} {kind} {s['error']:.4f}, ridge {s['ridge']:.4g}",
        f"{s['n_label_issues']:,} labels look wrong (estimated precision {s['label_issue_precision']:.2f}, recall "
        f"{s['label_issue_recall']:.2f}); {s['n_detrimental']:,} samples hurt (z > {s['threshold']:.2f})",
    ]
    lines += [f"warning: {warning}" for warning in warnings_of(s)]
    if "curated" in s:
        lines.append(f"curated copy: {s['curated']['rows']:,} rows, {s['curated']['changed']:,} changed or dropped")
    if "planted" in s:
        p = s["planted"]
        lines.append(
            f"planted {p['n_planted']:,} wrong labels, found {p['n_found']:,}: precision {p['precision']:.3f}, "
            f"recall {p['recall']:.3f}, F1 {p['f1']:.3f}"
        )
    return lines


def error_of(session: Session, derived: Derived) -> float:
    """Return the left-out error rate (classes), share of wrong labels (several), or R2 (numbers)."""
    wrong, total = derived.tally["wrong"], session.scan.counts["validation"]
    if session.task in ("classification", "multilabel"):
        return wrong / total
    v, squares = float(session.scan.target[0]), float(session.scan.target[-1])
    mean = session.scan.target[1:-1] / v
    variance = squares - v * float(mean @ mean)
    return 1.0 - wrong / variance if variance > 0 else 0.0


def planted(counts: torch.Tensor, ranked: torch.Tensor) -> dict[str, Any]:
    """Return what was found against the truth.

    Args:
        counts: wrong labels, label issues, detrimental samples, wrong labels among either.
        ranked: (wrong, label_score, z, margin) of every row; empty for tables too large to rank.
    """
    from sklearn.metrics import roc_auc_score

    n, issues, harmful, hits, harmful_hits = (int(count) for count in counts)
    result: dict[str, Any] = {
        "n_planted": n,
        "n_found": hits,
        "precision": hits / max(issues, 1),
        "recall": hits / max(n, 1),
        "f1": 2 * hits / max(n + issues, 1),
        "f1_detrimental": 2 * harmful_hits / max(n + harmful, 1),
    }
    wrong, label_score, z, margin = ranked.double().unbind(1)
    if 0 < n < len(wrong):
        result["auc_label_score"] = float(roc_auc_score(wrong, -label_score))
        result["auc_z"] = float(roc_auc_score(wrong, z))
        if not bool(margin.isnan().any()):
            result["auc_margin"] = float(roc_auc_score(wrong, -margin))
    return result


def sources_of(session: Session, derived: Derived, written: Tally) -> list[dict[str, Any]]:
    """Return every source with the derivative of adding the same weight to all its samples, and its standard error."""
    names = derived.setup.sources
    if names is None:
        return []
    scale = 1.0 if derived.standard_errors == "exact" else SIGN_VECTORS**-0.5
    d, error = derived.by_source[:, 0], derived.by_source[:, 1:].norm(dim=1) * scale
    rows = []
    for k, name in enumerate(names.to_pylist()):
        z = float(d[k] / error[k]) if error[k] > 0 else 0.0
        rows.append(
            {
                "source": name, "n": int(written["source_n"][k]), "derivative": float(d[k]),
                "standard_error": float(error[k]), "z": z, "n_detrimental": int(written["source_detrimental"][k]),
            }
        )  # fmt: skip
    return rows


def run_facts(session: Session, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was run, for a page."""
    plan, chosen = session.plan, session.config.ridge == "auto"
    return [
        ("Data", plan.table),
        ("Features", ", ".join(session.columns.features) + f" ({summary['n_features']:,} columns)"),
        ("Label", session.columns.label),
        ("Loss", f"{summary['loss_function']}, {summary['validation']}"),
        ("Ridge", f"{summary['ridge']:.4g}" + (" (chosen by leave-one-out)" if chosen else "")),
        ("Where", f"{plan.kind}, {session.engine.workers} worker(s)"),
        ("Versions", f"diva_ray {version('diva_ray')}, ray {version('ray')}, torch {version('torch')}"),
    ]


def page_of(session: Session, derived: Derived, summary: dict[str, Any], written: Tally, sources: list) -> ScoreReport:
    """Return the contents of report.html."""
    setup = derived.setup
    more = [("Standard errors", summary["standard_errors"]), ("Precision", summary["precision"])]
    z_edges, z_counts, z_issue_counts = histogram(written)
    worst, best = shown(session, written["examples"].worst), shown(session, written["examples"].best[:12])
    return ScoreReport(
        title="What each sample is worth",
        task=session.task,
        run=[*run_facts(session, summary), *more],
        summary=summary,
        z_edges=z_edges,
        z_counts=z_counts,
        z_issue_counts=z_issue_counts,
        classes=classes_of(setup, derived, written),
        confused=confused(setup, written),
        worst=worst,
        best=best,
        sources=sources,
        planted=summary.get("planted"),
        notes=notes_of(session, derived, summary),
        downloads=downloads(bool(sources), "curated" in summary),
        validation="leave-one-out" if session.validation == "leave-one-out" else "validation",
    )


def histogram(written: Tally, bins: int = 60) -> tuple[list[float], list[int], list[int]]:
    """Return edges, counts and counts of label issues of z in even bins; a thousandth of either tail is in the last."""
    counts, issues = written["z_counts"].numpy(), written["z_issue_counts"].numpy()
    centers = (Z_EDGES[1:] + Z_EDGES[:-1]).numpy() / 2
    share = counts.cumsum() / max(counts.sum(), 1)
    low = min(centers[int((share < 0.001).sum())], -1.0)
    high = max(centers[min(int((share < 0.999).sum()), len(centers) - 1)], 1.0)
    edges = np.linspace(low, high, bins + 1)
    both = [np.histogram(centers.clip(low, high), edges, weights=c)[0].astype(int).tolist() for c in (counts, issues)]
    return edges.tolist(), both[0], both[1]


def shown(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their picture or text, read from the table one by one."""
    if session.show is None:
        return rows
    table = session.tables[0]
    result = []
    for row in rows:
        at = row.get("__row__", row["row"])
        source = session.original or table
        value = source.reader().read(at, at + 1, [session.show])[session.show][0].as_py()
        key = "picture" if isinstance(value, bytes) else "text"
        result.append({**row, key: value if isinstance(value, bytes) or value is None else str(value)})
    return result


def classes_of(setup: Any, derived: Derived, written: Tally) -> list[dict[str, Any]]:
    """Return every class with its left-out error and counts."""
    if setup.task != "classification":
        return []
    t = derived.tally
    return [
        {
            "label": str(label), "n": int(t["class_n"][k]),
            "error": float(t["class_wrong"][k] / max(t["class_n"][k], 1)),
            "loss": float(t["class_loss"][k] / max(t["class_n"][k], 1)),
            "n_detrimental": int(written["class_detrimental"][k]), "n_label_issues": int(written["class_issues"][k]),
        }
        for k, label in enumerate(setup.classes.to_pylist())
    ]  # fmt: skip


def weights_by_class(setup: Setup, written: Tally) -> list[dict[str, Any]]:
    """Return every class with its rows and their mean weight, the most lowered first."""
    if "class_weight" not in written or setup.classes is None:
        return []
    rows = zip(setup.classes.to_pylist(), written["class_n"].tolist(), written["class_weight"].tolist(), strict=True)
    found = [{"label": str(label), "n": int(n), "weight": total / n if n else 0.0} for label, n, total in rows]
    return sorted(found, key=lambda row: row["weight"])


def confused(setup: Any, written: Tally) -> list[dict[str, Any]]:
    """Return pairs of classes by how often one was predicted for the other."""
    if "pairs" not in written:
        return []
    names = setup.classes.to_pylist()
    pairs = sorted(written["pairs"].items(), key=lambda item: -item[1][0])
    return [
        {
            "given": str(names[code // len(names)]),
            "predicted": str(names[code % len(names)]),
            "n": n,
            "n_label_issues": i,
        }
        for code, (n, i) in pairs[:100]
    ]


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """Return what may have misled the verdicts."""
    found = []
    if summary["class_dependence"] > CLASS_DEPENDENT and summary["n_label_issues"] and summary["method"] != "trusted":
        found.append(
            "The suspected labels keep to few pairs of classes. Such errors are in the validation labels too and "
            "mislead every left-out score: trust a few rows of each class (data.validation_weight, method=trusted)."
        )
    if summary["labeller_doubt"] > 0:
        found.append(
            "Labels were flagged on the assumption that every sample has one class that can be told from its features; "
            "where classes truly overlap they are not wrong (labeller_doubt=off)."
        )
    return found


def notes_of(session: Session, derived: Derived, summary: dict[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes = warnings_of(summary)
    if derived.standard_errors != "exact":
        found = derived.agreement or {"rows": 0}
        checked = (
            f"; on {found['rows']} rows, estimate / exact is {found['median_ratio']:.2f} +- {found['spread']:.2f}"
            if found["rows"]
            else ""
        )
        notes.append(f"Standard errors are estimated from {SIGN_VECTORS} random sign vectors{checked}.")
    if derived.form == "dual":
        notes.append("Fewer rows than columns: solved in its n x n form.")
    if derived.grid and derived.ridge in (derived.grid[0][0], derived.grid[-1][0]):
        notes.append("The chosen ridge lies at the end of the grid; set `ridge` to look further.")
    if summary["precision"] == "float64" and session.config.precision != "float64":
        notes.append(f"Products in float64: the condition number is {derived.condition:.1e}, or a leverage is near 1.")
    return notes


def downloads(sources: bool, curated: bool) -> list[str]:
    """Return the written files, each with what it holds."""
    files = [
        "samples/: one Parquet row per sample, in the order of the input",
        "summary.json: every figure of this page and the rules behind the verdicts",
        "manifest.json: versions, the data's fingerprint, start and end",
        "config.yaml: the options of this run",
    ]
    files += ["curated/, changes/: a copy of the table, and what changed in it"] if curated else []
    return files + (["sources.parquet: the derivative of every source"] if sources else [])
