"""Progress of a pass: a bar on a terminal; in a log its rate and time left, and one line of key=value when it ends."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

log = logging.getLogger("diva_ray")
LOG_EVERY = 10.0  # seconds between lines when nobody watches a terminal
NARROW = 70  # columns below which a bar would lose the time left
WORTH_A_LINE = 1.0  # seconds of a pass that leaves one on a terminal: a hundred shorter ones would hide what came out


class Progress:
    """Counts the rows of one pass: a bar on a terminal; in a log a line every ten seconds and one at the end."""

    def __init__(self, label: str, rows: int, *, quiet: bool = False) -> None:
        self.label, self.rows, self.done, self.quiet = label, rows, 0, quiet
        self.start = self.last = time.perf_counter()
        self.bar = None if quiet or sys.stderr is None or not sys.stderr.isatty() else _bar(label, rows)

    def add(self, rows: int) -> None:
        """Count finished rows."""
        self.done += rows
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.update(rows)
        elif not self.quiet and now - self.last >= LOG_EVERY and 0 < self.done < self.rows:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.rows - self.done) / rate
            share = self.done / self.rows
            log.info("%-10s %4.0f %%  %s rows/s  %.0f s left", self.label, 100 * share, f"{rate:,.0f}", left)

    def begin(self) -> None:
        """Let the rate be that from now on: what was waited for until here says nothing of the rows."""
        self.start = self.last = time.perf_counter()
        if self.bar is not None:
            self.bar.reset()

    def skip(self, rows: float) -> None:
        """Take rows that will not be asked for out of what is left."""
        self.rows = max(self.rows - round(rows), self.done)
        if self.bar is not None:
            self.bar.total = self.rows

    def close(self, **figures: Any) -> float:
        """Finish, log the pass (in a log with more figures), and return its seconds."""
        seconds = time.perf_counter() - self.start
        if self.bar is not None:
            self.bar.close()
        rate = self.done / max(seconds, 1e-9)
        if self.bar is not None and seconds >= WORTH_A_LINE:
            log.info("%-10s %s rows in %.2f s  (%s rows/s)", self.label, f"{self.done:,}", seconds, f"{rate:,.0f}")
        elif self.bar is None and not self.quiet:
            told = {"rows": self.done, "seconds": round(seconds, 4), "rows_per_second": round(rate), **figures}
            log.info("%s", key_values({"pass": self.label, **told}))
        return seconds


def _bar(label: str, rows: int) -> tqdm:
    """Return a bar; on a narrow terminal of what cannot be done without, and drawn on one that does not know its
    height, where tqdm draws nothing."""
    size = shutil.get_terminal_size()  # 80 by 24 where it is not known
    narrow = "{desc}{percentage:3.0f}% {rate_fmt} {remaining} left" if size.columns < NARROW else None
    return tqdm(
        total=rows, desc=f"{label:<10}", unit=" rows", unit_scale=True, leave=False, nrows=size.lines, bar_format=narrow
    )


@contextmanager
def quieted(level: int, *names: str) -> Iterator[None]:
    """Let loggers tell nothing below a level."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(level)
    try:
        yield
    finally:
        for one, before in zip(loggers, levels, strict=True):
            one.setLevel(before)


def key_values(figures: dict[str, Any]) -> str:
    """Return `key=value key="two words"` on one line, as log collectors read it (logfmt)."""
    return " ".join(f"{key}={_word(str(value))}" for key, value in figures.items())


def _word(text: str) -> str:
    """Return text as it is where it is one plain word, else quoted: no value may end its line or begin another key."""
    plain = text and text.isprintable() and not set(text) & set(' ="\\')
    return text if plain else json.dumps(text)
