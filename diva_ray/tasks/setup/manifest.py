"""Which versions, which data, where: what every run notes of itself."""

from __future__ import annotations

import hashlib
import platform
import sys
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diva_ray.tasks.setup.session import Session


def manifest(session: Session, started: str, ended: str) -> dict[str, Any]:
    """Return versions, name and fingerprint of the data by its role (train, held_out, pool, test), and where it ran."""
    data = {
        role: {"name": table.name, "fingerprint": fingerprint(table)}
        for role, table in zip(session.roles, session.tables, strict=True)
    }
    cluster = {"kind": session.plan.kind, "why": session.plan.why, "workers": session.engine.workers}
    return described(data, cluster, started, ended)


def described(data: dict[str, Any], cluster: dict[str, Any], started: str, ended: str) -> dict[str, Any]:
    """Return what every run says of itself."""
    return {
        **versions(), "python": platform.python_version(), "data": data,
        "start": started, "end": ended, "cluster": cluster, "command": sys.argv,
    }  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers of a run."""
    return {name: version(name) for name in ("diva_ray", "ray", "torch", "numpy", "pyarrow")}


def fingerprint(table: Any) -> str:
    """Return a hash of the table's schema, rows and files (name, size, time of change), not of every value;
    of a table in memory every byte."""
    digest = hashlib.sha256(f"{table.schema.remove_metadata()}{table.rows}".encode())
    for column in table.memory.columns if table.memory is not None else ():
        for chunk in column.chunks:
            digest.update(f"{chunk.offset} {len(chunk)}".encode())  # two slices of an array share its buffers
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    for file, (size, changed) in sorted(table.marks.items()):
        digest.update(f"{file}{size}{changed}".encode())
    return digest.hexdigest()[:16]
