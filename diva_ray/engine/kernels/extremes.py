"""The few of all rows that a page shows: the worst and the best samples, the classes most often confused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.data.shards import Shard

PAIRS_KEPT = 5_000  # confused pairs of classes that a shard reports, the most frequent first
EXAMPLES = 60  # worst samples that a shard reports
NUMBERS = 9  # of a vector: one more than `words.label` shows


def examples(shard: Shard, table: pa.Table, values: Tensor, key: str = "z") -> Examples:
    """Return the rows with the largest and the smallest values, with their place in the table."""
    order = shard.input_order()
    in_order = values if order is None else values[torch.from_numpy(order)]
    names = [name for name in table.column_names if not name.startswith("loo_")]

    def rows_at(at: Tensor) -> list[dict[str, Any]]:
        rows = table.select(names).take(pa.array(at.numpy())).to_pylist()
        return [
            {key: float(in_order[k]), **_begun(row), "row": shard.extent.start + int(k)}
            for row, k in zip(rows, at, strict=True)
        ]

    k = min(EXAMPLES, len(values))
    return Examples(rows_at(in_order.topk(k).indices), rows_at(in_order.topk(k, largest=False).indices), key)


def _begun(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the first NUMBERS of every vector: a page shows no more of them."""
    return {
        name: value[:NUMBERS] if isinstance(value, list) and value and isinstance(value[0], float) else value
        for name, value in row.items()
    }


class Examples:
    """The rows of largest and of smallest `key` seen so far; `+` keeps the extremes of both."""

    def __init__(self, worst: list[dict[str, Any]], best: list[dict[str, Any]], key: str) -> None:
        self.worst, self.best, self.key = worst, best, key

    def __add__(self, other: Examples) -> Examples:
        key = self.key
        worst = sorted(self.worst + other.worst, key=lambda row: (-row[key], row["row"]))[:EXAMPLES]
        best = sorted(self.best + other.best, key=lambda row: (row[key], row["row"]))[:EXAMPLES]
        return Examples(worst, best, key)


def confused_pairs(Y: Tensor, predicted: Tensor, issue: Tensor, classes: int) -> Pairs:
    """Return how often each class was predicted for another, the most frequent pairs first."""
    wrong = predicted != Y
    code, inverse, n = torch.unique(Y[wrong] * classes + predicted[wrong], return_inverse=True, return_counts=True)
    issues = torch.zeros(len(code), dtype=torch.float32).index_add_(0, inverse, issue[wrong].float())
    kept = n.topk(min(PAIRS_KEPT, len(n))).indices
    return Pairs({int(code[k]): (int(n[k]), int(issues[k])) for k in kept})


class Pairs(dict[int, tuple[int, int]]):
    """Counts (rows, label issues) by pair code given * classes + predicted; `+` adds, and of very many keeps the most
    frequent."""

    def __add__(self, other: Pairs) -> Pairs:
        total = Pairs(self)
        for code, (n, issues) in other.items():
            seen = total.get(code, (0, 0))
            total[code] = (seen[0] + n, seen[1] + issues)
        if len(total) <= 40 * PAIRS_KEPT:
            return total
        return Pairs(sorted(total.items(), key=lambda pair: (-pair[1][0], pair[0]))[: 20 * PAIRS_KEPT])
