"""What the errors and losses of a task are called, on terminals and pages, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diva_ray.report import words

Measure = tuple[str, Callable[[float], str]]  # its name, and how it is written

SHARES = {"classification": "error", "multilabel": "ranking error"}  # 0 to 1, less is better


def error_words(summary: dict[str, Any]) -> Measure:
    """Return the error by which the models of a task are compared, less being better: of numbers the squared error."""
    name = SHARES.get(summary["task"])
    return ("squared error", words.number) if name is None else (name, words.percent)


def figure_words(summary: dict[str, Any]) -> Measure:
    """Return what a scoring run's `error` is: of numbers R2, more being better."""
    return error_words(summary) if summary["task"] in SHARES else ("R2", partial(words.fixed, places=3))


def gap_words(summary: dict[str, Any], difference: float, error: float) -> str:
    """Return the difference of two errors of a task with its standard error: of shares in percentage points."""
    if summary["task"] in SHARES:
        return words.points(difference, error)
    return f"{words.number(difference)}{words.PLUS_MINUS}{words.number(error)}"


def loss_words(name: str) -> str:
    """Return what a loss is called, with its unit where it has one."""
    return {
        "cross_entropy": "cross-entropy (nats)", "logistic": "logistic loss (nats)", "squared": "squared error",
        "cosine": "1 - cosine",
    }.get(name, "loss")  # fmt: skip
