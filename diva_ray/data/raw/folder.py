"""An image folder: one folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.raw.units import Failure, Rows, Source, Unit, mark_of, rechunk, root_of


def find(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    base: str,
    infos: list[pyarrow.fs.FileInfo],
    label: str,
    unit_rows: int,
) -> Source:
    """Return the pictures under a folder; the first folder of a picture's path is its class, its path the id."""
    names = [info.path[len(base) + 1 :] for info in infos]
    units = []
    for start in range(0, len(names), unit_rows):
        part = slice(start, start + unit_rows)
        mark = hashlib.sha256("".join(map(mark_of, infos[part])).encode()).hexdigest()[:16]
        size = sum(info.size for info in infos[part])
        some = tuple(names[part])
        units.append(Unit(len(units), base, start, start + len(some), len(some), size, mark, start, files=some))
    classes = [pa.field(label, pa.string())] if any("/" in name for name in names) else []
    schema = pa.schema([pa.field("id", pa.string()), pa.field("image", pa.string()), *classes])
    root, more = root_of(path, infos[0].path, base), {"label": label}
    return Source("folder", path, schema, tuple(units), len(names), filesystem, read, root, more=more)


def read(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[Rows]:
    """Yield names and classes; the files are opened where the pictures are decoded."""

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        names: list[Any] = list(unit.files)
        made = {"id": names, "image": names}
        made[source.more["label"]] = [name.split("/", 1)[0] if "/" in name else None for name in names]
        kept = {name: made[name] for name in ["id", *(name for name in columns if name != "id")]}
        yield pa.table(kept, schema=pa.schema([source.schema.field(name) for name in kept])), 0, []

    return rechunk(parts(), rows, lambda k: unit.files[k])
