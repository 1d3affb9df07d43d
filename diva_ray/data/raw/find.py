"""What lies at a path: Parquet, an image folder, WebDataset tars, JSON lines, CSV, or a saved Hugging Face dataset."""

from __future__ import annotations

import glob
import os

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.columns import check_names
from diva_ray.data.raw import folder, lines, saved, tables, tar
from diva_ray.data.raw.units import PICTURE_SUFFIXES, Source, name_of, suffix_of
from diva_ray.errors import InputError

SUFFIXES = {
    "parquet": ("parquet", "pq"), "webdataset": ("tar", "tgz"), "jsonl": ("jsonl", "ndjson"), "csv": ("csv", "tsv"),
    "huggingface": ("arrow",), "folder": PICTURE_SUFFIXES,
}  # fmt: skip
SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")


def find_raw(path: str, kind: str, *, id: str | None, label: str, unit_rows: int, peek: int | None = None) -> Source:
    """Return what lies at a path; names, footers and a few samples (`peek` of JSON lines and tars) are read.

    Raises:
        InputError: nothing there, kinds that are mixed, or files of that kind that cannot be read.
    """
    if kind not in ("auto", *SUFFIXES):
        raise InputError(f"data.kind: must be auto, {', '.join(SUFFIXES)}, got {kind}. Change `data.kind`.")
    source = _found(path, kind, id=id, label=label, unit_rows=unit_rows, peek=peek)
    check_names(source.schema, path)
    return source


def _found(path: str, kind: str, *, id: str | None, label: str, unit_rows: int, peek: int | None) -> Source:
    filesystem, base, files = list_files(path)
    if kind == "auto":
        kind = kind_of(path, files)
    infos = [info for info in files if suffix_of(info.path) in SUFFIXES[kind]]
    if not infos:
        raise InputError(
            f"data.path: files of kind {kind} ({', '.join(SUFFIXES[kind])}) must lie there, got "
            f"{', '.join(name_of(info.path) for info in files[:3]) or 'none'} at {path}. Change `data.path` or "
            "`data.kind`."
        )
    if kind == "parquet":
        return tables.find(path, id, unit_rows)
    if kind == "folder":
        return folder.find(path, filesystem, base, infos, label, unit_rows)
    if kind == "webdataset":
        return tar.find(path, filesystem, base, infos, label, id, peek)
    if kind == "huggingface":
        return saved.find(path, filesystem, infos, id, unit_rows)
    return lines.find(path, kind, filesystem, base, infos, id, peek)


def kind_of(path: str, files: list[pyarrow.fs.FileInfo]) -> str:
    """Return the kind of the files that were found."""
    names = {name_of(info.path) for info in files}
    if names & set(SAVED) and any(suffix_of(info.path) == "arrow" for info in files):
        return "huggingface"
    found = {}
    for info in files:
        for kind, suffixes in SUFFIXES.items():
            if suffix_of(info.path) in suffixes:
                found.setdefault(kind, name_of(info.path))
    if not found:
        some = ", ".join(sorted(names)[:3]) or "an empty folder"
        raise InputError(
            f"data.path: raw samples must lie there (Parquet, pictures, .tar, .jsonl, .csv, a saved Hugging Face "
            f"dataset), got {some} at {path}. Change `data.path`."
        )
    if len(found) == 2 and "folder" in found:  # pictures beside a table that names them
        del found["folder"]
    if len(found) > 1:
        some = " and ".join(f"{name} ({kind})" for kind, name in sorted(found.items()))
        raise InputError(f"data.kind: files of one kind must lie there, got {some} at {path}. Set `data.kind`.")
    return next(iter(found))


def list_files(path: str) -> tuple[pyarrow.fs.FileSystem, str, list[pyarrow.fs.FileInfo]]:
    """Return (file system, base folder, the sorted files under a path); names that begin with . or _ are left out."""
    if "://" in path:
        try:
            filesystem, base = pyarrow.fs.FileSystem.from_uri(path)
            found = _under(filesystem, base)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"data.path: must be within reach, got {type(error).__name__} ({str(error).splitlines()[0][:200]}) at "
                f"{path}. Change `data.path`."
            ) from error
    else:
        filesystem = pyarrow.fs.LocalFileSystem()
        base = os.path.abspath(os.path.expanduser(path))
        if os.path.exists(base):
            found = _under(filesystem, base)
        else:
            found = [info for name in glob.glob(base, recursive=True) for info in _under(filesystem, name)]
            base = os.path.dirname(base.split("*")[0].split("?")[0].split("[")[0] + "x")
    if not found:
        raise InputError(
            f"data.path: a file, folder, glob or URI must be there, got nothing at {path}. Change `data.path`."
        )
    if len(found) == 1 and found[0].path == base:
        return filesystem, os.path.dirname(base), found
    length = len(base) + 1
    shown = [info for info in found if not any(part[:1] in "._" for part in info.path[length:].split("/"))]
    return filesystem, base, sorted(shown, key=lambda info: info.path)


def _under(filesystem: pyarrow.fs.FileSystem, base: str) -> list[pyarrow.fs.FileInfo]:
    info = filesystem.get_file_info(base)
    if info.type == pyarrow.fs.FileType.File:
        return [info]
    if info.type == pyarrow.fs.FileType.NotFound:
        return []
    inside = filesystem.get_file_info(pyarrow.fs.FileSelector(base, recursive=True))
    return [one for one in inside if one.type == pyarrow.fs.FileType.File]
