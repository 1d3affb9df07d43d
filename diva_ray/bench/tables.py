"""Figures of the task benchmarks by set, share of wrong labels and seed, and tables of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Key = tuple[str, float | None]  # set, share of planted labels (None: human errors)


@dataclass(frozen=True)
class Table:
    """A titled table of strings."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""

    def lines(self) -> list[str]:
        """Return it for a terminal, in aligned columns."""
        every = [self.head, *self.rows]
        widths = [max(len(row[k].replace("**", "")) for row in every) for k in range(len(self.head))]
        shown = []
        for row in every:
            plain = [cell.replace("**", "") for cell in row]
            shown.append("  ".join(cell.ljust(width) for cell, width in zip(plain, widths, strict=True)).rstrip())
        return [self.title, shown[0], "-" * len(shown[0]), *shown[1:], *textwrap.wrap(self.note, 120)]

    def markdown(self) -> str:
        """Return it as Markdown."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])


@dataclass
class Results:
    """Values by set and share of wrong labels, figure and seed."""

    values: dict[Key, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, name: str, share: float | None, found: dict[str, float]) -> None:
        """Take in what one seed gave."""
        figures = self.values.setdefault((name, share), {})
        for what, value in found.items():
            figures.setdefault(what, []).append(float(value))

    def mean(self, key: Key, what: str) -> float:
        """Return a figure's mean over seeds."""
        return float(np.mean(self.values[key][what]))

    def cell(self, key: Key, what: str, digits: int) -> str:
        """Return a figure as mean and, of several seeds, standard deviation; a dash where it was not measured."""
        values = self.values[key].get(what)
        if not values:
            return "-"
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    def table(
        self, title: str, columns: dict[str, str], digits: int, best: Callable[[list[float]], float], note: str = ""
    ) -> Table:
        """Return a table with a row for every set and share, and a column for every figure; the best is bold.

        Args:
            columns: head of every column by its figure; a head that ends in * takes no part in the best.
            best: max or min.
        """
        rows = []
        for key, figures in self.values.items():
            cells = [self.cell(key, what, digits) for what in columns]
            entered = [what in figures and not head.endswith("*") for what, head in columns.items()]
            shown = [round(self.mean(key, what), digits) if there else None
                     for what, there in zip(columns, entered, strict=True)]  # fmt: skip
            top = best([value for value in shown if value is not None])
            cells = [f"**{c}**" if value == top else c for c, value in zip(cells, shown, strict=True)]
            rows.append([told(key), *cells])
        return Table(title, ["set", *columns.values()], rows, note)

    def record(self) -> list[dict[str, Any]]:
        """Return every figure with its mean, spread and values."""
        return [
            {
                "set": name, "noise": "human" if share is None else share, "what": what, "mean": float(np.mean(values)),
                "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None, "values": values,
            }
            for (name, share), figures in self.values.items() for what, values in figures.items()
        ]  # fmt: skip


def told(key: Key) -> str:
    """Return a set and its share of wrong labels in words."""
    name, share = key
    return f"{name}, human" if share is None else f"{name}, {share:.0%}"
