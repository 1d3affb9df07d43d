"""What to do with what a job has found: the last line that it prints."""

from __future__ import annotations

import shlex
from typing import Any

from diva_ray.config import ReweightConfig, ScoreConfig


def next_steps(config: Any, result: Any) -> list[str]:
    """Return the command that goes on from a finished run, none where it found nothing to go on from."""
    summary = getattr(result, "summary", {})  # a plan and a benchmark have none
    if isinstance(config, ScoreConfig) and summary.get("n_label_issues") and "curated" not in summary:
        where = shlex.quote(f"output={result.path}")
        others = "weight, relabel" if summary["task"] in ("classification", "multilabel") else "weight"
        asks = "" if summary["task"] == "pairs" else "; jobs/reweight.py asks first whether that helps"
        return [
            f"next: look at the report; the same command with {where} resume=true curate=drop (or {others}) writes a "
            f"cleaned copy{asks}"
        ]
    if isinstance(config, ReweightConfig) and summary.get("accepted"):
        where = shlex.quote(f"weights={result.path}")
        return [
            f"next: jobs/train.py with the same data, test.path=... and {where} shows what they do for a trained model"
        ]
    return []
