"""What lies at a path: Parquet, an image folder, WebDataset tars, JSON lines, CSV, or a saved Hugging Face dataset."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from itertools import chain, islice

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.columns import check_names
from diva_ray.data.files import check_named
from diva_ray.data.raw import folder, lines, saved, tables, tar
from diva_ray.data.raw.listing import Listing, under
from diva_ray.data.raw.units import PICTURE_SUFFIXES, Source, name_of, suffix_of
from diva_ray.errors import InputError, first_line

log = logging.getLogger("diva_ray")
SUFFIXES = {
    "parquet": ("parquet", "pq"), "webdataset": ("tar", "tgz"), "jsonl": ("jsonl", "ndjson"), "csv": ("csv", "tsv"),
    "huggingface": ("arrow",), "folder": PICTURE_SUFFIXES,
}  # fmt: skip
TABLES = ("parquet", "jsonl", "csv")
SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")


def find_raw(path: str, kind: str, *, id: str | None, label: str, unit_rows: int, peek: int | None = None) -> Source:
    """Return what lies at a path; names, footers and a few samples (`peek` of JSON lines and tars) are read.

    Raises:
        InputError: nothing there, kinds that are mixed, or files of that kind that cannot be read.
    """
    if kind not in ("auto", *SUFFIXES):
        raise InputError(f"data.kind: must be auto, {', '.join(SUFFIXES)}, got {kind}. Change `data.kind`.")
    try:
        filesystem, base, files = list_raw(path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.path: names of files must be UTF-8, got {error.object!r} below {path}. Rename it."
        ) from error
    auto, kind = kind == "auto", kind_of(path, files) if kind == "auto" else kind
    beside = sum(suffix_of(info.path) in PICTURE_SUFFIXES for info in files) if auto and kind in TABLES else 0
    hint = f"{beside:,} picture(s) lie beside it, which data.kind=folder reads"
    try:
        source = _found(path, kind, (filesystem, base, files), id=id, label=label, unit_rows=unit_rows, peek=peek)
    except InputError as error:
        raise InputError(f"{error} {hint}." if beside else str(error)) from error
    check_names(source.schema, path)
    if source.about() < beside:
        log.warning("data.path: %s is read as a table of %s samples (%s). %s.", path, f"{source.about():,}", kind, hint)
    return source


Found = tuple[pyarrow.fs.FileSystem, str, Listing]


def _found(
    path: str, kind: str, found: Found, *, id: str | None, label: str, unit_rows: int, peek: int | None
) -> Source:
    filesystem, base, files = found
    chosen = (info for info in files if suffix_of(info.path) in SUFFIXES[kind])
    first = next(chosen, None)
    if first is None:
        raise InputError(
            f"data.path: files of kind {kind} ({', '.join(SUFFIXES[kind])}) must lie there, got "
            f"{', '.join(name_of(info.path) for info in islice(files, 3)) or 'none'} at {path}. Change `data.path` or "
            "`data.kind`."
        )
    if kind == "folder":
        if id not in (None, "none", "id"):
            raise InputError(f"data.id: pictures of a folder have their path as id, got {id}. Leave `data.id` out.")
        if label in ("id", "image"):
            raise InputError(f"data.label: classes must have a name of their own, got {label}. Change `data.label`.")
        return folder.find(path, filesystem, base, chain([first], chosen), label, unit_rows)
    infos = [first, *chosen]
    if kind == "parquet":
        return tables.find(path, id, unit_rows)
    if kind == "webdataset":
        return tar.find(path, filesystem, base, infos, label, id, peek)
    if kind == "huggingface":
        return saved.find(path, filesystem, infos, id, unit_rows)
    return lines.find(path, kind, filesystem, base, infos, id, unit_rows, peek)


def kind_of(path: str, files: Iterable[pyarrow.fs.FileInfo]) -> str:
    """Return the kind of the files that were found."""
    kinds = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
    found, some, saved = {}, [], set()
    for info in files:
        name, suffix = name_of(info.path), suffix_of(info.path)
        some += [name] if len(some) < 3 else []
        saved |= {name} & set(SAVED)
        if suffix in kinds:
            found.setdefault(kinds[suffix], name)
    if saved and "huggingface" in found:
        return "huggingface"
    if not found:
        raise InputError(
            f"data.path: raw samples must lie there (Parquet, pictures, .tar, .jsonl, .csv, a saved Hugging Face "
            f"dataset), got {', '.join(some) or 'an empty folder'} at {path}. Change `data.path`."
        )
    if len(found) == 2 and "folder" in found:  # pictures beside a table that names them
        del found["folder"]
    if len(found) > 1:
        some = " and ".join(f"{name} ({kind})" for kind, name in sorted(found.items()))
        raise InputError(f"data.kind: files of one kind must lie there, got {some} at {path}. Set `data.kind`.")
    return next(iter(found))


def list_raw(path: str) -> Found:
    """Return (file system, base folder, the sorted files under a path); names that begin with . or _ are left out."""
    check_named(path)
    if "://" in path:
        try:
            filesystem, base = pyarrow.fs.FileSystem.from_uri(path)
            files = Listing(under(filesystem, base), base)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"data.path: must be within reach, got {type(error).__name__} ({first_line(error)}) at "
                f"{path}. Change `data.path`."
            ) from error
    else:
        filesystem = pyarrow.fs.LocalFileSystem()
        base = os.path.abspath(os.path.expanduser(path))
        if os.path.exists(base):
            files = Listing(under(filesystem, base), base)
        else:
            found = [info for name in glob.glob(base, recursive=True) for info in under(filesystem, name)]
            base = os.path.dirname(base.split("*")[0].split("?")[0].split("[")[0] + "x")
            files = Listing(sorted(found, key=lambda info: info.path), base)
    if not files.seen:
        found = "an empty folder" if os.path.isdir(os.path.expanduser(path)) else "nothing"
        raise InputError(
            f"data.path: a file, or a folder, glob or URI with some, must be there, got {found} at {path}. Change "
            "`data.path`."
        )
    alone = next((info.path == base for info in files), False)  # a file is named, whatever it is called
    return filesystem, os.path.dirname(base) if alone else base, files
