"""An image folder: one folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.raw.listing import pack, unpack
from diva_ray.data.raw.units import Failure, RawRows, Source, Unit, file_mark, rechunk, root_of
from diva_ray.errors import InputError

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}  # no classes


def find(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    base: str,
    infos: Iterator[pyarrow.fs.FileInfo],
    label: str,
    unit_rows: int,
) -> Source:
    """Return the pictures under a folder; the first folder of a picture's path is its class, its path the id."""
    units, total, below = [], 0, False
    first, deep = set(), 0  # folders of the first level; pictures in folders of theirs
    while some := list(islice(infos, unit_rows)):
        names = [info.path[len(base) + 1 :] for info in some]
        # Names too: a file that moves to another class keeps its size and its time of change.
        told = "".join(f"{name}\0{file_mark(info)}\n" for name, info in zip(names, some, strict=True))
        mark = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        size, stop = sum(info.size for info in some), total + len(some)
        units.append(Unit(len(units), base, total, stop, len(some), size, mark, total, files=pack(names)))
        total, below = stop, below or any("/" in name for name in names)
        first |= {name.partition("/")[0] for name in names}
        deep += sum(name.count("/") > 1 for name in names)
    if 2 * deep > total and {name.lower() for name in first} <= SPLITS:
        raise InputError(
            f"data.path: a folder of pictures must hold one folder a class, got {', '.join(sorted(first))}, with "
            f"folders of their own, at {path}. Name one of them: data.path={path.rstrip('/')}/{sorted(first)[0]}."
        )
    classes = [pa.field(label, pa.string())] if below else []
    schema = pa.schema([pa.field("id", pa.string()), pa.field("image", pa.string()), *classes])
    root, more = root_of(path, f"{base}/{unpack(units[0].files)[0]}", base), {"label": label}
    return Source("folder", path, schema, tuple(units), total, filesystem, read, root, more=more)


def read(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield names and classes; the files are opened where the pictures are decoded."""
    names = unpack(unit.files)

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        made = {"id": names, "image": names}
        made[source.more["label"]] = [name.split("/", 1)[0] if "/" in name else None for name in names]
        kept = {name: made[name] for name in ["id", *(name for name in columns if name != "id")]}
        yield pa.table(kept, schema=pa.schema([source.schema.field(name) for name in kept])), 0, []

    return rechunk(parts(), rows, lambda k: names[k])
