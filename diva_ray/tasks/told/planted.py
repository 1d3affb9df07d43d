"""What was found, held against what is known to be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diva_ray.report import words


def planted_figures(written: Mapping[str, Any], by: str | None) -> dict[str, Any]:
    """Return `planted` of a summary, with the column that knows (None: the built-in table's own); empty where none
    does."""
    if "planted" not in written:
        return {}
    return {"planted": {**planted(written["planted"], written["ranked"].joined()[0]), "by": by}}


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
        "precision": hits / issues if issues else None,
        "recall": hits / n if n else None,
        "f1": 2 * hits / (n + issues) if n else None,
        "precision_detrimental": harmful_hits / harmful if harmful else None,
        "f1_detrimental": 2 * harmful_hits / (n + harmful) if n else None,
    }
    wrong, label_score, z, margin = ranked.double().unbind(1)
    if 0 < n < len(wrong):
        result["auc_label_score"] = float(roc_auc_score(wrong, -label_score))
        result["auc_z"] = float(roc_auc_score(wrong, z))
        if not bool(margin.isnan().any()):
            result["auc_margin"] = float(roc_auc_score(wrong, -margin))
    return result


def planted_in_words(summary: dict[str, Any]) -> list[str]:
    """Return what was found against what is known; nothing where nothing is known."""
    if "planted" not in summary:
        return []
    p, n = summary["planted"], summary["planted"]["n_planted"]
    known = f"planted {words.counted(n, 'wrong label', 'wrong labels')}"
    known = f"{words.counted(n, 'label differs', 'labels differ')} from `{p['by']}`" if p["by"] else known
    return [f"{known}, found {p['n_found']:,}: {found_in_words(p)}"]


def right_of_chosen(written: Mapping[str, Any], pool: int, by: str | None) -> dict[str, Any]:
    """Return how many labels of a pool are wrong, how many of those that were chosen, and the shares that are right."""
    n, wrong, among = int(written["n"]), int(written["wrong"]), int(written["wrong_chosen"])
    return {
        "n_planted": wrong, "n_chosen": among, "right_in_pool": 1 - wrong / pool if pool else None,
        "right_among_chosen": 1 - among / n if n else None, "by": by,
    }  # fmt: skip


def right_in_words(summary: dict[str, Any]) -> list[str]:
    """Return which share of the chosen rows' labels is right, beside the pool's; nothing where it is not known."""
    if "planted" not in summary:
        return []
    p, s = summary["planted"], summary
    by = f"by `{p['by']}`" if p["by"] else "as they were planted"
    pool = f"{words.percent(p['right_in_pool'])} ({p['n_planted']:,} of {s['n_pool']:,} wrong)"
    chosen = f"{words.percent(p['right_among_chosen'])} ({p['n_chosen']:,} of {s['n_selected']:,} wrong)"
    return [f"labels that are right, {by}: {pool} in the pool, {chosen} among the chosen"]


def found_in_words(planted: dict[str, Any]) -> str:
    """Return how well what was planted was found."""
    precision = "none flagged" if planted["precision"] is None else f"precision {planted['precision']:.3f}"
    if planted["recall"] is None:
        return f"{precision}, and nothing to find"
    return f"{precision}, recall {planted['recall']:.3f}, F1 {planted['f1']:.3f}"
