"""Progress of a pass: rate and time left, on a terminal and in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("diva_ray")
LOG_EVERY = 10.0  # seconds between lines when nobody watches a terminal


class Progress:
    """Counts the rows of one pass; a bar on a terminal, a line every ten seconds and one at the end in a log."""

    def __init__(self, label: str, rows: int, *, quiet: bool = False) -> None:
        self.label, self.rows, self.done, self.quiet = label, rows, 0, quiet
        self.start = self.last = time.perf_counter()
        watched = sys.stderr.isatty() and not quiet
        self.bar = (
            tqdm(total=rows, desc=f"{label:<10}", unit=" rows", unit_scale=True, leave=False) if watched else None
        )

    def add(self, rows: int) -> None:
        """Count finished rows."""
        self.done += rows
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.update(rows)
        elif not self.quiet and now - self.last >= LOG_EVERY and self.done < self.rows:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.rows - self.done) / rate
            share = self.done / self.rows
            log.info("%-10s %4.0f %%  %s rows/s  %.0f s left", self.label, 100 * share, f"{rate:,.0f}", left)

    def skip(self, rows: float) -> None:
        """Take rows that will not be asked for out of what is left."""
        self.rows = max(self.rows - round(rows), self.done)
        if self.bar is not None:
            self.bar.total = self.rows

    def close(self) -> float:
        """Finish, log the pass, and return its seconds."""
        seconds = time.perf_counter() - self.start
        if self.bar is not None:
            self.bar.close()
        if not self.quiet:
            rate = self.done / max(seconds, 1e-9)
            log.info("%-10s %s rows in %.2f s  (%s rows/s)", self.label, f"{self.done:,}", seconds, f"{rate:,.0f}")
        return seconds
