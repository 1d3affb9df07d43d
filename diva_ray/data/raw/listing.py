"""The files under a path, in order and packed: ten bytes of memory or so for each, where a FileInfo takes 250."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow.fs

from diva_ray.data.files import check_links

BLOCK = 4096  # files that are packed together
AT_ONCE = 8  # folders that are listed at a time: with their files unpacked


def pack(values: list[Any]) -> bytes:
    """Return what JSON can say, packed: names of files are much alike."""
    return zlib.compress(json.dumps(values).encode(), 1)


def unpack(packed: bytes) -> list[Any]:
    """Return what was packed."""
    return json.loads(zlib.decompress(packed))


class Listing:
    """The files that are listed but those below `base` in a path with a part that begins with . or _, in their order.

    `seen` counts those that are left out too.
    """

    def __init__(self, infos: Iterable[pyarrow.fs.FileInfo], base: str) -> None:
        self.seen, self.blocks, rest = 0, [], iter(infos)
        length = len(base) + 1
        while some := list(islice(rest, BLOCK)):
            self.seen += len(some)
            shown = [one for one in some if not any(part[:1] in "._" for part in one.path[length:].split("/") if part)]
            self.blocks.append(pack([(one.path, one.size, one.mtime_ns) for one in shown]))

    def __iter__(self) -> Iterator[pyarrow.fs.FileInfo]:
        """Yield the files."""
        for block in self.blocks:
            for path, size, time in unpack(block):
                yield pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=size, mtime_ns=time)


def under(filesystem: pyarrow.fs.FileSystem, base: str) -> Iterator[pyarrow.fs.FileInfo]:
    """Yield the files under a path (or the one that it is), sorted by their paths, a few of its folders at a time."""
    info = filesystem.get_file_info(base)
    if info.type == pyarrow.fs.FileType.File:
        yield info
    if info.type in (pyarrow.fs.FileType.File, pyarrow.fs.FileType.NotFound):
        return

    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    if local:
        check_links(base)

    def files(one: pyarrow.fs.FileInfo) -> list[pyarrow.fs.FileInfo]:
        if one.type != pyarrow.fs.FileType.Directory:
            return [one]
        inside = filesystem.get_file_info(pyarrow.fs.FileSelector(one.path, recursive=True))
        inside += _links_to_nothing(one.path) if local else []
        return sorted((found for found in inside if found.type == pyarrow.fs.FileType.File), key=_place)

    top = filesystem.get_file_info(pyarrow.fs.FileSelector(base))
    top = sorted(top + (_links_to_nothing(base, deep=False) if local else []), key=_place)
    top = [one for one in top if one.type in (pyarrow.fs.FileType.File, pyarrow.fs.FileType.Directory)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for k in range(0, len(top), AT_ONCE):
            for found in pool.map(files, top[k : k + AT_ONCE]):
                yield from found


def _links_to_nothing(folder: str, *, deep: bool = True) -> list[pyarrow.fs.FileInfo]:
    """Return links whose file is not there, such as pictures whose contents were never fetched, as empty files: Arrow
    passes them by, and a class of them would be gone without a word."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                found.append(pyarrow.fs.FileInfo(entry.path, pyarrow.fs.FileType.File, size=0, mtime_ns=0))
            elif deep and entry.is_dir(follow_symlinks=False):
                found += _links_to_nothing(entry.path)
    return found


def _place(info: pyarrow.fs.FileInfo) -> str:
    """Return what sorts a file by its path, and a folder as the files in it."""
    return f"{info.path}/" if info.type == pyarrow.fs.FileType.Directory else info.path
