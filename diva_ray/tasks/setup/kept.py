"""What a run keeps of its fit for later ones: sums of groups of rows, what those rows are, and their frame.

`sums/index.json` says what was fitted and how, and names `segments.npz` (rows and hashes of every segment, and its
group), `frames.npz` (centres and scales) and one file for every group. The index is written last.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_ray.config import FitConfig
from diva_ray.core.carry import Frame, pack, unpack
from diva_ray.core.ridge import FitSums
from diva_ray.core.subspace import projections
from diva_ray.data.folder import Folder
from diva_ray.data.table import Table
from diva_ray.engine.reduce import SECTIONS, UNIT
from diva_ray.errors import InputError, first_line
from diva_ray.tasks.setup.opened import Opened
from diva_ray.tasks.setup.plan import Plan

VERSION = 2  # of the frames: 1 had means that were not quite those that were taken off
PLACE = "sums"
SEGMENTS = 1024  # into about how many a table is cut
MOST_BYTES = 256 << 20  # of all kept sums
MOST_GROUPS = 64
SAME = ("features", "task", "standardize", "projection", "seed")  # what sums depend on beside the rows


@dataclass(frozen=True)
class KeptGroup:
    """One group's sums in a file: in which frame, from products of which precision, over which rows.

    Attributes:
        gram: hashes of its segments' features and weights, ascending.
        cross: hash of all that its sums depend on.
    """

    file: str
    frame: int
    dtype: str
    rows: int
    gram: tuple[int, ...]
    cross: int


@dataclass
class Kept:
    """The sums that a finished run has kept."""

    folder: Folder
    options: dict[str, Any]
    bits: int
    rows: int
    classes: list[str] | None
    groups: list[KeptGroup]
    frames: list[Frame]
    files: dict[str, list[int]]

    def load(self, group: KeptGroup, classes: list[str] | None) -> FitSums:
        """Return a group's sums, with a column for every one of these classes (None: numbers)."""
        found = _whole(self.folder.read_arrays, self.folder, group.file)
        if found is None:
            raise InputError(
                f"update: the run must have its kept sums, got no {PLACE}/{group.file} in {self.folder.path}. Score "
                "without `update`."
            )
        gram = unpack(torch.from_numpy(found["gram"]), self.frames[group.frame].width)
        cross = torch.from_numpy(found["cross"])
        if classes is not None and classes != self.classes:
            at = {name: k for k, name in enumerate(self.classes or [])}
            columns = [cross[:, at[name]] if name in at else torch.zeros(len(cross)) for name in classes]
            cross = torch.stack([column.double() for column in columns], 1)
        return FitSums(gram, cross)

    def unchanged_rows(self, table: Table) -> int:
        """Return how many of a table's rows lie in files that are as they were."""
        return sum(state[0] for file, state in files_of(table).items() if self.files.get(file) == state)


def options_of(config: FitConfig, features: tuple[str, ...], task: str) -> dict[str, Any]:
    """Return what sums depend on beside the rows."""
    found = {"features": list(features), "task": task, **{k: v for k, v in asdict(config).items() if k in SAME[2:]}}
    return found if config.projection else {**found, "seed": None}


def open_kept(config: FitConfig, update: str, features: tuple[str, ...], task: str, table: Table) -> Kept:
    """Return what the run of `update` has kept, for a table that it can serve.

    Raises:
        InputError: no such run, or one whose sums are of something else.
    """
    folder = Folder(update, "update")
    if config.output and folder.path == Folder(config.output).path:
        raise InputError(f"update: must be another folder than output, got {folder.path} for both. Change `output`.")
    index = _whole(folder.read_object, folder, "index.json")
    if index is None and not folder.names(""):
        raise InputError(
            f"update: the folder of a score run must be there, got nothing at {folder.path}. Change `update`, or score "
            "without it."
        )
    if index is None or index.get("version") != VERSION:
        raise InputError(
            "update: must be the folder of a score run that kept its fit sums (not with keep_sums=false, pairs, or "
            f"fewer rows than features, and by this version), got none at {folder.path}. Score without `update`."
        )
    options = options_of(config, features, task)
    for name in SAME:
        if index["options"][name] != options[name]:
            raise InputError(
                f"update: the run must have been made with the same `{name}`, got {index['options'][name]} in "
                f"{folder.path} and {options[name]} here. Change `{name}`, or score without `update`."
            )
    if config.precision == "float64" and {group["dtype"] for group in index["groups"]} != {"float64"}:
        raise InputError(
            f"update: the run must have kept sums of float64 products for precision=float64, got float32 in "
            f"{folder.path}. Change `precision`, or score without `update`."
        )
    if table.rows > 64 * index["rows"]:
        raise InputError(
            f"update: the table must have at most 64 times the run's rows, got {table.rows:,} and {index['rows']:,} in "
            f"{folder.path}. Score without `update`."
        )
    return _read(folder, index, features)


def _whole(read: Callable[[str], Any], folder: Folder, name: str) -> Any:
    """Return what a file of the kept sums holds, None if there is none; raise one line for a damaged one."""
    try:
        return read(f"{PLACE}/{name}")
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InputError(
            f"update: files of kept sums must be whole, got {type(error).__name__} ({first_line(error)}) at "
            f"{folder.path}/{PLACE}/{name}. Score without `update`."
        ) from error


def _read(folder: Folder, index: dict[str, Any], features: tuple[str, ...]) -> Kept:
    """Return what an index describes; the sums stay in their files."""
    segments, stored = (_whole(folder.read_arrays, folder, name) for name in ("segments.npz", "frames.npz"))
    if segments is None or stored is None:
        raise InputError(
            f"update: the run must have its kept sums whole, got a part of them in {folder.path}. Score without "
            "`update`."
        )
    options, frames = index["options"], []
    for k in range(len(stored["scales"])):
        means = tuple(torch.from_numpy(stored[f"mean-{k}-{band}"]) for band in range(len(features)))
        project = _project(features, means, options["projection"], options["seed"])
        gaps = tuple(int(band) for band in stored[f"gaps-{k}"])
        frames.append(Frame(means, tuple(stored["scales"][k].tolist()), project, gaps))
    groups = [
        KeptGroup(
            gram=tuple(sorted(segments["gram"][segments["group"] == k].tolist())),
            cross=int(segments["cross"][segments["group"] == k].sum(dtype=np.uint64)),
            **group,
        )
        for k, group in enumerate(index["groups"])
    ]
    return Kept(
        folder, options, index["bits"], index["rows"], index["classes"], groups, frames, index["files"]
    )  # fmt: skip


def _project(
    names: tuple[str, ...], means: tuple[Tensor, ...], columns: int | None, seed: int | None
) -> tuple[Tensor | None, ...]:
    found = projections(names, [len(mean) for mean in means], columns, seed or 0)
    return found or (None,) * len(means)


class Writer:
    """Writes the sums of a run, group by group, and their index at the end."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.bytes = folder, 0
        self.groups: list[dict[str, Any]] = []
        folder.drop(PLACE)  # what an interrupted run, or a fit in another precision, has left

    def add(self, sums: FitSums, frame: int, dtype: str, rows: int) -> None:
        """Write the sums of the next group."""
        arrays = {"gram": pack(sums.gram.double()).numpy(), "cross": sums.cross.double().contiguous().numpy()}
        file = f"group-{len(self.groups):05d}.npz"
        self.folder.write_arrays(f"{PLACE}/{file}", arrays)
        self.groups.append({"file": file, "frame": frame, "dtype": dtype, "rows": rows})
        self.bytes += sum(values.nbytes for values in arrays.values())

    def finish(self, index: dict[str, Any], segments: dict[str, np.ndarray], frames: list[Frame]) -> None:
        """Write what the groups are: hashes of segments, with the number of the group as it was added, and frames."""
        used = sorted({group["frame"] for group in self.groups})
        frames = [frames[k] for k in used]
        groups = [{**group, "frame": used.index(group["frame"])} for group in self.groups]
        stored = {"scales": np.array([frame.scales for frame in frames])}
        for k, frame in enumerate(frames):
            stored |= {f"mean-{k}-{band}": mean.numpy() for band, mean in enumerate(frame.means)}
            stored[f"gaps-{k}"] = np.array(frame.gaps, np.int64)
        self.folder.write_arrays(f"{PLACE}/segments.npz", segments)
        self.folder.write_arrays(f"{PLACE}/frames.npz", stored)
        self.folder.write_json(f"{PLACE}/index.json", {"version": VERSION, **index, "groups": groups})


def files_of(table: Table) -> dict[str, list[int]]:
    """Return rows, bytes and time of change of every file of a table; none of one in memory."""
    rows: dict[str, int] = {}
    for piece in table.pieces:
        rows[piece.file] = rows.get(piece.file, 0) + piece.rows
    if not rows or table.filesystem is None:
        return {}
    infos = table.filesystem.get_file_info(list(rows))
    return {info.path: [rows[info.path], info.size, info.mtime_ns or 0] for info in infos}


def most_groups(rows: int, p: int, outputs: int) -> int:
    """Return how many groups' sums to keep: no more bytes than about an eighth of float32 features, or `MOST_BYTES`."""
    size = 8 * (p * (p + 1) // 2 + p * outputs)
    return min(MOST_GROUPS, MOST_BYTES // size, max(1, rows // max(256, 8 * p)))


def expect_sums(config: FitConfig, plan: Plan, opened: Opened) -> tuple[int | None, Kept | None]:
    """Return by how many bits a table is cut into segments (None: no sums), and what there is to update; tell the plan.

    Raises:
        InputError: the run of `update` cannot serve the table.
    """
    update, keeps, table = getattr(config, "update", None), getattr(config, "keep_sums", False), opened.tables[0]
    if opened.task == "pairs" or not (update or keeps):
        return None, None
    kept = open_kept(config, update, opened.columns.features, opened.task, table) if update else None
    groups = most_groups(table.rows, plan.features + 1, plan.outputs)
    at_a_time = min(groups, -(-groups // min(SECTIONS, -(-plan.shards // UNIT))) + 1)  # of a section of shards
    plan.sizes = replace(plan.sizes, sums=plan.sizes.sums + 8 * plan.features**2 * at_a_time)
    if kept is None:
        return max(5, int(np.log2(table.rows / SEGMENTS))), None
    note = f"update of {update} ({kept.rows:,} rows): sums of rows that are as they were are taken from there"
    if kept.files:
        note += f"; {kept.unchanged_rows(table):,} rows lie in files that have not changed"
    plan.notes.append(note)
    return kept.bits, kept
