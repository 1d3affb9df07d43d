"""Rows that have the very features of other rows: copies, which vouch for each other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from diva_ray.engine.identity import LOOKED, count_alike, distinct_hashes
from diva_ray.engine.reduce import Tally
from diva_ray.engine.scan import Scan

if TYPE_CHECKING:
    from diva_ray.tasks.session import Session

log = logging.getLogger("diva_ray")

MOST_ALIKE = 0.02  # share of rows with the features of others from which it is told
# Of another table, by its role:
SHARED = {
    "validation": "rows of the validation table have the very features of rows that train. A row that was trained on "
    "validates nothing: take such rows out of one of the tables (validation.path).",
    "test": "test rows have the very features of rows that train. A row that was trained on tests nothing: take such "
    "rows out of one of the tables (test.path).",
    "pool": "rows of the pool have the very features of rows of the table. A copy predicts its original when that is "
    "left out, so copies look helpful: take them out of the pool (pool.path).",
}


def alike_of(found: Scan) -> int:
    """Return how many rows have the features of a row that does not leave with them; an estimate beyond LOOKED rows."""
    same, looked = count_alike(found.looked)
    return round(same / looked * found.counts["rows"]) if looked else 0


def alike_in_words(alike: int, rows: int) -> str:
    """Return what is to be said of rows with the features of other rows; nothing where they are few.

    A copy among the rows that predict a left-out row tells its label: of 600 digits with 15 % wrong labels 99 of 107
    were found, with 60 rows there twice 80 of 121, with 300 none (RESULTS.md, Copies).
    """
    if alike < MOST_ALIKE * rows:
        return ""
    return (
        f"{'About ' if rows > LOOKED else ''}{alike:,} of {rows:,} rows have the very features of another row. If they "
        "are copies, each predicts the label of the other when that is left out, and wrong labels go unseen: keep one "
        "of them, or name a column that is the same for all copies (data.group)."
    )


def look_for_copies(session: Session) -> None:
    """Let later passes over other tables count their rows that have the features of a row of this one."""
    session.engine.tell(trained=distinct_hashes(session.scan.looked))


def note_shared(session: Session, role: str, rows: int, found: Tally, *, quiet: bool = False) -> None:
    """Note how many of the rows of another table have the features of a row of this one, an estimate beyond LOOKED
    rows; log it where they are many."""
    core = session.scan
    _, looked = count_alike(core.looked)
    known = round(found["shared"] * core.counts["rows"] / looked) if looked else 0
    session.shared[role] = {"rows": rows, "known": known}
    for said in () if quiet else shared_in_words({role: session.shared[role]}, int(core.counts["rows"])):
        log.warning("%s", said)


def shared_in_words(shared: dict[str, dict[str, int]], trained: int) -> list[str]:
    """Return what is to be said of rows of other tables that are in this one too; nothing where they are few."""
    return [
        f"{'About ' if trained > LOOKED else ''}{one['known']:,} of {one['rows']:,} {SHARED[role]}"
        for role, one in shared.items()
        if one["known"] > 0 and one["known"] >= MOST_ALIKE * min(one["rows"], trained)
    ]
