"""Which Parquet files a path names: one, a folder's, a pattern's, a URI's."""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any

import pyarrow as pa
import pyarrow.fs

from diva_ray.errors import InputError, first_line

RUNS = {"diva_ray", "command"}  # in manifest.json of every run
RUN = {"data", "config", "format"}  # in state.json of a run that reads a table, not of one that makes one


def part_name(index: int) -> str:
    """Return the name of a part of a table, without a suffix: names sort as the numbers do, without end."""
    return f"part-{index:05d}" if index < 100_000 else f"part-x{index:09d}"


def list_files(path: str, option: str) -> tuple[pyarrow.fs.FileSystem, list[str], str]:
    """Return the file system and the sorted Parquet files of a path, and the folder that it names (of a pattern, the
    part before it; of the output of an embed run, its `features/`)."""
    check_named(path, option)
    relative = "://" not in path and not os.path.isabs(os.path.expanduser(path))
    missing = InputError(
        f"{option}: a Parquet file, folder or glob must be there, got nothing at {path}"
        f"{f' in {os.getcwd()}' if relative else ''}. Change `{option}`."
    )
    if "://" in path:
        try:
            filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{option}: must be a readable URI, got {path} ({first_line(error)}). Change `{option}`."
            ) from error
        try:
            info = filesystem.get_file_info(inner)
        except OSError as error:
            raise InputError(
                f"{option}: must be within reach, got {first_line(error)} at {path}. Change `{option}`."
            ) from error
        if info.type == pyarrow.fs.FileType.NotFound and glob.has_magic(inner):
            raise InputError(
                f"{option}: a URI must name a Parquet file or folder, got a pattern at {path}. Name the folder: all "
                "Parquet files in it are read."
            )
        if info.type == pyarrow.fs.FileType.NotFound:
            raise missing
        if info.type == pyarrow.fs.FileType.File:
            return filesystem, [inner], inner
        inner, is_folder = _table_of(filesystem, inner, option), True
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
        names = [item.path for item in found if item.type == pyarrow.fs.FileType.File]
        files = sorted(file for file in _not_of_runs(filesystem, names) if not _hidden(file, inner))
    else:
        filesystem = pyarrow.fs.LocalFileSystem()
        folder = _table_of(filesystem, os.path.abspath(os.path.expanduser(path)), option)
        is_folder = os.path.isdir(folder)
        names = [folder] if os.path.exists(folder) else sorted(glob.glob(folder, recursive=True))
        files, inner = [], folder if os.path.exists(folder) else os.path.dirname(re.split(r"[*?[]", folder)[0])
        for name in names:
            if os.path.isdir(name):
                check_links(name, option)
            inside = (
                glob.glob(os.path.join(glob.escape(name), "**", "*"), recursive=True) if os.path.isdir(name) else []
            )
            inside = [file for file in _not_of_runs(filesystem, inside) if not _hidden(file, name)]
            files += [name] if os.path.isfile(name) else [file for file in inside if os.path.isfile(file)]
        files = sorted(set(files))
    if not files and is_folder:
        raise InputError(
            f"{option}: Parquet files must be there, got a folder without any at {path}. {_instead(filesystem, inner)}"
            f"Change `{option}`; jobs/embed.py makes a table of pictures, texts, CSV or JSON lines."
        )
    if not files:
        raise missing
    return filesystem, files, inner


def _instead(filesystem: pyarrow.fs.FileSystem, folder: str) -> str:
    """Return how a Hugging Face dataset saved by `save_to_disk`, which is Arrow, becomes Parquet; else nothing."""
    info = filesystem.get_file_info(f"{folder}/dataset_info.json")
    return (
        "A dataset saved by `save_to_disk` becomes Parquet by `datasets.load_from_disk(FOLDER).to_parquet(FILE)`. "
        if info.type == pyarrow.fs.FileType.File
        else ""
    )


def _table_of(filesystem: pyarrow.fs.FileSystem, folder: str, option: str) -> str:
    """Return where in a folder its table lies: the features of an embed run, the curated copy of a scoring run; any
    folder that is not a run's as it is.

    Raises:
        InputError: the output of a run that made no table, or of one that is not finished.
    """
    told = _told_in(filesystem, f"{folder}/manifest.json")
    if not told.keys() >= RUNS:
        parent, _, name = folder.rstrip("/").rpartition("/")
        run = parent if name in ("features", "curated") else folder
        _check_finished(filesystem, run, option)
        if name == "features":
            _check_whole(filesystem, run, _told_in(filesystem, f"{run}/manifest.json"), option)
        return folder
    _check_whole(filesystem, folder, told, option)
    keys = set(told)
    inside = f"{folder}/{'features' if {'encoders', 'units'} <= keys else 'curated'}"
    if filesystem.get_file_info(inside).type == pyarrow.fs.FileType.NotFound:
        rows = filesystem.get_file_info(f"{folder}/samples").type != pyarrow.fs.FileType.NotFound
        raise InputError(
            f"{option}: must be a table, got the output of a run at {folder}. Name the table that the run was given"
            f"{f', or the rows that it wrote: {option}={folder}/samples' if rows else ''}."
        )
    return inside


def _check_whole(filesystem: pyarrow.fs.FileSystem, run: str, told: dict[str, Any], option: str) -> None:
    """Raise for features of an embed run of which a file is gone: they would pass for all there are."""
    if not (told.keys() >= {*RUNS, "encoders", "units"} and _is_list_of_units(told["units"])):
        return
    there = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{run}/features", allow_not_found=True))
    names = {info.base_name for info in there}
    gone = [one["file"] for one in told["units"] if one["rows"] and one["file"].rpartition("/")[2] not in names]
    if gone:
        raise InputError(
            f"{option}: all {len(told['units']):,} files of features that manifest.json lists must be there, got none "
            f"at {run}/{gone[0]}" + (f" and {len(gone) - 1:,} more" if len(gone) > 1 else "") + ". Run jobs/embed.py "
            f"again with `output={run} resume=true`, which makes what is missing."
        )


def _is_list_of_units(units: Any) -> bool:
    """Return whether a manifest lists files as embed runs do; it may be somebody else's."""
    return isinstance(units, list) and all(
        isinstance(one, dict) and isinstance(one.get("file"), str) and "rows" in one for one in units
    )


def _check_finished(filesystem: pyarrow.fs.FileSystem, run: str, option: str) -> None:
    """Raise for the output of a run that has begun and not ended: its table is a part of what it will be."""
    begun = _told_in(filesystem, f"{run}/state.json").keys()
    ours = {"options", "bands"} <= begun or begun >= RUN
    if ours and filesystem.get_file_info(f"{run}/manifest.json").type == pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"{option}: a run whose output is read must be finished, got no manifest.json at {run}. Run it again with "
            f"`resume=true`, or change `{option}`."
        )


def _told_in(filesystem: pyarrow.fs.FileSystem, path: str) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no file, or it holds something else."""
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return {}
    with filesystem.open_input_stream(path) as stream:
        try:
            told = json.loads(stream.read())
        except (ValueError, RecursionError):  # a file of somebody else's
            return {}
    return told if isinstance(told, dict) else {}


def check_named(path: str, option: str = "data.path") -> None:
    """Raise for an empty path: it would be the folder in which the job was started, and all that lies there."""
    if not path.strip():
        raise InputError(f"{option}: a file, folder, glob or URI must be named, got an empty text. Change `{option}`.")


def check_links(folder: str, option: str = "data.path", above: tuple[str, ...] = ()) -> None:
    """Raise for a link that leads back to a folder in which it lies: its files would be read again and again."""
    above = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:  # what writers have set aside is not read
            inside = [entry for entry in entries if not entry.name.startswith((".", "_")) and entry.is_dir()]
    except OSError as error:
        raise InputError(
            f"{option}: every folder must be readable, got {first_line(error)}. Change its rights, or `{option}`."
        ) from error
    for entry in inside:
        real = os.path.realpath(entry.path) if entry.is_symlink() else ""
        if real and any(f"{one}/".startswith(f"{real.rstrip('/')}/") for one in above):
            raise InputError(
                f"{option}: no link in a folder may lead back to it, got one to {real} at {entry.path}. Remove it, or "
                "name a folder without it."
            )
        check_links(entry.path, option, above)


def is_parquet(path: str) -> bool:
    """Return whether a file's name says that it is Parquet."""
    return path.lower().endswith((".parquet", ".pq"))


def _not_of_runs(filesystem: pyarrow.fs.FileSystem, inside: list[str]) -> list[str]:
    """Return the Parquet files among those inside a folder, but for what runs wrote there: a run whose output lies in
    its table's folder must find the same table when it is resumed."""
    states = [path for path in inside if path.endswith("/state.json")]
    runs = tuple(path.removesuffix("state.json") for path in states if _told_in(filesystem, path).keys() >= RUN)
    return [path for path in inside if is_parquet(path) and not path.startswith(runs)]


def _hidden(file: str, folder: str) -> bool:
    """Return whether a file below a folder is one that writers set aside: unfinished (`_temporary/`), copies, ..."""
    parts = file[len(folder.rstrip("/")) + 1 :].split("/")
    return any(part.startswith((".", "_")) and "=" not in part for part in parts)
