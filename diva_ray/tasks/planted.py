"""What was found, held against what is known to be wrong."""

from __future__ import annotations

from typing import Any

import torch


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


def found_in_words(planted: dict[str, Any]) -> str:
    """Return how well what was planted was found."""
    precision = "none flagged" if planted["precision"] is None else f"precision {planted['precision']:.3f}"
    if planted["recall"] is None:
        return f"{precision}, and nothing to find"
    return f"{precision}, recall {planted['recall']:.3f}, F1 {planted['f1']:.3f}"
