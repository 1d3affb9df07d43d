"""Rows that have the very features of other rows: copies, which vouch for each other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from diva_ray.data.shards import Extent
from diva_ray.engine.kernels.identity import LOOKED, count_alike, distinct_hashes, validated
from diva_ray.engine.kernels.scan import Scan
from diva_ray.engine.reduce import Rows, Tally

if TYPE_CHECKING:
    from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")

MOST_ALIKE = 0.02  # share of rows with the features of others from which it is told
# Of another table, by its role, the rows that are in this one; in the validation table where two are named:
SHARED = {
    "validation": "rows of the validation table have the very features of rows that train. A row that was trained on "
    "validates nothing: take such rows out of one of the tables (validation.path).",
    "test": "test rows have the very features of rows that train. A row that was trained on tests nothing: take such "
    "rows out of one of the tables (test.path).",
    "pool": "rows of the pool have the very features of rows of the table. A copy predicts its original when that is "
    "left out, so copies look helpful: take them out of the pool (pool.path).",
    "pool_validation": "rows of the pool have the very features of rows that validate, so they look helpful, and a row "
    "that is trained on validates nothing: take them out of the pool (pool.path).",
    "test_validation": "test rows have the very features of rows that validate, by which weights and ridge are chosen: "
    "take such rows out of one of the tables (test.path).",
}


def alike_of(found: Scan) -> int:
    """Return how many rows have the features of a row that does not leave with them; an estimate beyond LOOKED rows."""
    same, looked = count_alike(found.looked)
    return round(same / looked * found.counts["rows"]) if looked else 0


def alike_in_words(alike: int, rows: int) -> str:
    """Return what is to be said of rows with the features of other rows; nothing where they are few.

    A copy among the rows that predict a left-out row tells its label: of 600 digits with 15 % wrong labels 99 of 107
    were found, with 60 rows there twice 80 of 121, with 300 none (docs/results/wrong_labels.md, Copies).
    """
    if alike < MOST_ALIKE * rows:
        return ""
    return (
        f"{'About ' if rows > LOOKED else ''}{alike:,} of {rows:,} rows have the very features of another row. If they "
        "are copies, each predicts the label of the other when that is left out, and wrong labels go unseen: keep one "
        "of them, or name a column that is the same for all copies (data.group)."
    )


def look_for_copies(session: Session, held: list[Extent], *, quiet: bool) -> None:
    """Count the validation table's rows (`held`) that have the features of a row of this one; let later passes over
    other tables count theirs."""
    session.engine.tell(trained=distinct_hashes(session.scan.looked), validated=np.zeros(0, np.uint64))
    if not held:
        return
    rows = sum(extent.rows for extent in held)
    session.engine.tell(looked=min(1.0, LOOKED / rows))
    found: Tally = session.runner.run(validated, "copies", held)
    note_shared(session, "validation", rows, found, quiet=quiet)
    looked: Rows = found["looked"]
    session.validated = looked
    session.engine.tell(validated=distinct_hashes(looked))


def note_shared(session: Session, role: str, rows: int, found: Tally, *, quiet: bool = False) -> None:
    """Note how many of the rows of another table have the features of a row of this one, and of the validation table:
    estimates beyond LOOKED rows. Log it where they are many."""
    trained = int(session.scan.counts["rows"])
    others = {role: (session.scan.looked, trained, "shared_trained")}
    if session.validated is not None:
        others[f"{role}_validation"] = session.validated, session.shared["validation"]["rows"], "shared_validated"
    for name, (hashes, of, count) in others.items():
        _, looked = count_alike(hashes)
        session.shared[name] = {"rows": rows, "known": round(found[count] * of / looked) if looked else 0}
    for said in () if quiet else shared_in_words(session.shared, trained, tuple(others)):
        log.warning("%s", said)


def few_shared_in_words(shared: dict[str, dict[str, int]], trained: int) -> list[str]:
    """Return how many rows of a pool are in the table too, where they are too few for a warning; nothing at none."""
    one = shared.get("pool", {"rows": 0, "known": 0})
    if not one["known"] or shared_in_words(shared, trained, ("pool",)):
        return []
    about, have = "About " if trained > LOOKED else "", "has" if one["known"] == 1 else "have"
    return [
        f"{about}{one['known']:,} of the pool's {one['rows']:,} rows {have} the very features of rows of the table. A "
        "copy predicts its original when that is left out, so copies look helpful."
    ]


def shared_in_words(shared: dict[str, dict[str, int]], trained: int, roles: tuple[str, ...] = ()) -> list[str]:
    """Return what is to be said of rows of other tables (of all, or of some `roles`) that are in this one, or in the
    validation table, too; nothing where they are few."""
    said = []
    for role in roles or shared:
        one, of = shared[role], shared["validation"]["rows"] if role.endswith("_validation") else trained
        if one["known"] > 0 and one["known"] >= MOST_ALIKE * min(one["rows"], of):
            said.append(f"{'About ' if of > LOOKED else ''}{one['known']:,} of {one['rows']:,} {SHARED[role]}")
    return said
