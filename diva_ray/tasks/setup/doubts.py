"""Which task labels mean by their type, in words, and what their values say against it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

FEW_ROWS = 3  # of a class on average: fewer, and whole numbers are probably no classes
FEW_VALUES = 20  # different whole numbers: no more, and they are probably classes


def task_in_words(task: str, outputs: int, *, all_seen: bool) -> str:
    """Return what is learnt, for a plan; classes are at least those of the rows that were looked at."""
    if task in ("classification", "multilabel"):
        return f"{task}, {'' if all_seen else 'at least '}{outputs:,} {'class' if outputs == 1 else 'classes'}"
    return {"regression": "regression, one number", "vector": f"vector, {outputs:,} numbers"}.get(task, task)


def doubts_of_task(label: pa.Array) -> list[str]:
    """Return what speaks against the task that the type of labels has chosen."""
    kind = label.type
    whole = pa.types.is_integer(kind)
    if not (whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return []
    numbers = label.drop_null().cast(pa.float64(), safe=False)
    rows, values = len(numbers), len(pc.unique(numbers))
    if whole and rows < FEW_ROWS * values:
        return [
            f"{values:,} classes of {rows / values:.1f} rows each on average: whole numbers are taken for classes; "
            "set task=regression for numbers to predict, or task=classification if they are classes"
        ]
    few = values <= FEW_VALUES and 2 * values <= rows
    if not whole and few and pc.all(pc.equal(numbers, pc.floor(numbers))).as_py():
        return [
            f"labels are whole numbers of type {kind}, {values:,} different ones: taken for numbers to predict; "
            "cast them to integers or strings for classes, or set task=regression"
        ]
    return []
