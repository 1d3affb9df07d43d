"""The fit of a run that keeps its sums, and takes those of an earlier run for rows that are as they were."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diva_ray.core.carry import Frame, carry, distance, of_fit
from diva_ray.core.ridge import FitSums
from diva_ray.data.prepare import center_of
from diva_ray.engine.kernels.identity import Segments, join
from diva_ray.engine.kernels.parts import Key, Ranges, fit_parts
from diva_ray.engine.kernels.scan import Scan
from diva_ray.engine.reduce import Tally, sections
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.setup.kept import KeptGroup, Writer, files_of, most_groups, options_of
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.session import Session

log = logging.getLogger("diva_ray")
FAR = 1.0  # distance of centres from which on sums of float32 are not carried: they would lose eps times its square


@dataclass
class GroupPart:
    """Segments whose sums are kept (`kept`), kept but for their targets (`relabelled`), or to be computed."""

    segments: list[int]
    kept: KeptGroup | None = None
    relabelled: bool = False


def plan_groups(segments: Segments, kept: list[KeptGroup], most: int) -> list[list[GroupPart]]:
    """Return the groups of a fit, each of one part or, where they would be more than `most`, of several.

    A kept group is taken over when all of its segments are found. The last segment is a group of its own, so that rows
    appended to a table change no other.
    """
    free = defaultdict(list)
    for k in reversed(range(len(segments.gram))):
        free[int(segments.gram[k])].append(k)
    groups: list[list[GroupPart]] = []
    for group in kept:
        if all(len(free[gram]) >= count for gram, count in Counter(group.gram).items()):
            found = sorted(free[gram].pop() for gram in group.gram)
            relabelled = int(segments.cross[found].sum(dtype=np.uint64)) != group.cross
            groups.append([GroupPart(found, group, relabelled)])
    left, target, last = (
        sorted(k for ks in free.values() for k in ks),
        segments.rows.sum() / most,
        len(segments.rows) - 1,
    )
    part = GroupPart([])
    for k in left:
        if part.segments and (k == last or segments.rows[part.segments].sum() >= target):
            groups.append([part])
            part = GroupPart([])
        part.segments.append(k)
    groups += [[part]] if part.segments else []
    tail = [group for group in groups if group[0].segments == [last]]
    groups = [group for group in groups if group[0].segments != [last]]
    while len(groups) > most:
        groups.sort(key=lambda group: (_rows(group, segments), group[0].segments))
        groups = [groups[0] + groups[1], *groups[2:]]
    return sorted(groups + tail, key=lambda group: min(part.segments[0] for part in group))


def _rows(group: list[GroupPart], segments: Segments) -> int:
    return int(sum(segments.rows[part.segments].sum() for part in group))


def ranges_of(groups: list[list[GroupPart]], segments: Segments) -> Ranges:
    """Return the rows that the fit pass has to read; neighbours are one range."""
    wanted = [
        (k, g, part.kept is not None)
        for g, group in enumerate(groups)
        for part in group
        if part.kept is None or part.relabelled
        for k in part.segments
    ]
    rows = np.array(
        [(segments.start[k], segments.stop[k], g, only) for k, g, only in sorted(wanted)], np.int64
    ).reshape(-1, 4)
    same = (rows[1:, 0] == rows[:-1, 1]) & (rows[1:, 2:] == rows[:-1, 2:]).all(1)
    first = np.concatenate([[True], ~same])[: len(rows)]
    stop = rows[np.concatenate([~same, [True]])[: len(rows)], 1]
    return Ranges(rows[first, 0], stop, rows[first, 2], rows[first, 3].astype(bool))


class Keeper:
    """Fits a session's rows group by group, from an earlier run's sums where it can, and keeps the sums."""

    def __init__(self, session: Session) -> None:
        self.session, self.kept = session, session.kept
        assert session.scan.fragments is not None
        self.segments = join(session.scan.fragments)
        self.classes: list[str] | None = None
        self.figures: dict[str, Any] = {}

    def fit(self, runner: Runner, setup: Setup) -> FitSums:
        """Return the fit sums of all rows; a pass over the rows that have changed."""

        def go() -> tuple[FitSums, dict[str, Any]]:
            return self._fit(runner, setup), self.figures

        sums, self.figures = runner.once("fit", go, fit_parts.__name__, int(self.segments.rows.sum()))
        return sums

    def _fit(self, runner: Runner, setup: Setup) -> FitSums:
        start, before = time.perf_counter(), dict(runner.seconds)
        self.classes = None if setup.classes is None else [str(name) for name in setup.classes.to_pylist()]
        frame = frame_of(setup, self.session.scan)
        self.frames = [*(self.kept.frames if self.kept else []), frame]
        self.frame = next(k for k, one in enumerate(self.frames) if same_frame(one, frame))
        self._check_widths(frame)
        most = most_groups(int(self.segments.rows.sum()), frame.width, setup.outputs)
        groups = plan_groups(self.segments, self._usable(setup.dtype, frame), max(1, most))
        if self.kept and self.session.columns.offset and self.classes != self.kept.classes:
            for part in (part for group in groups for part in group if part.kept):
                part.relabelled = True  # of a class that is new the kept targets hold no offset
        ranges = ranges_of(groups, self.segments)
        extents = [extent for extent in self.session.scored() if ranges.touch(extent)]
        writer = Writer(self.session.folder) if most and getattr(self.session.config, "keep_sums", True) else None
        runner.engine.tell(ranges=ranges, gaps=frame.gaps)
        sums, rows = _Sums(self, groups, ranges, writer, str(setup.dtype).removeprefix("torch.")), Tally(
            computed=0, targets_only=0
        )  # fmt: skip
        sums.finish(0)
        for section, found in zip(
            sections(extents), runner.each(fit_parts, "fit", extents) if extents else (), strict=True
        ):
            rows += found.rows
            sums.hold(found.sums)
            sums.finish(section[-1][-1].stop)
        runner.engine.forget("ranges", "gaps")
        if writer:
            self._write_index(writer, sums)
        self._note(groups, rows, writer)
        total = of_fit(sums.total(), frame, intercept=setup.scale.intercept)
        spent = time.perf_counter() - start - (runner.seconds.get("fit", 0.0) - before.get("fit", 0.0))
        runner.add_seconds("sums", spent)
        return total

    def _usable(self, dtype: torch.dtype, frame: Frame) -> list[KeptGroup]:
        """Return the earlier run's groups whose products are precise enough here.

        Those of float32 have lost what is small beside the distance of both centres: of rows that lay far from the old
        one, as where others that were far larger are mended or gone, nearly all.
        """
        if self.kept is None:
            return []
        near = [distance(old, frame) <= FAR for old in self.kept.frames]
        if dtype == torch.float32 and not all(near[g.frame] for g in self.kept.groups if g.dtype == "float32"):
            log.info("update: the features' centre has moved far: float32 sums about the old one are not taken")
        return [g for g in self.kept.groups if g.dtype == "float64" or (dtype == torch.float32 and near[g.frame])]

    def _check_widths(self, frame: Frame) -> None:
        if self.kept is None:
            return
        widths = [len(mean) for mean in frame.means]
        for old in self.kept.frames:
            if (wide := [len(mean) for mean in old.means]) != widths:
                raise InputError(
                    f"update: bands must be as wide as they were, got {wide} in {self.kept.folder.path} and "
                    f"{widths} here. Score without `update`."
                )

    def _write_index(self, writer: Writer, sums: _Sums) -> None:
        session, group = self.session, np.empty(len(self.segments.gram), np.int64)
        for number, one in enumerate(sums.written):
            for part in one:
                group[part.segments] = number
        writer.finish(
            {
                "options": options_of(session.config, session.columns.features, session.task),
                "bits": session.cut_bits,
                "rows": int(self.segments.rows.sum()),
                "classes": self.classes,
                "files": files_of(session.given),
            },
            {"group": group, "gram": self.segments.gram, "cross": self.segments.cross},
            self.frames,
        )

    def _note(self, groups: list[list[GroupPart]], rows: Tally, writer: Writer | None) -> None:
        total = int(self.segments.rows.sum())
        taken = [part for group in groups for part in group if part.kept]
        self.figures = {
            "kept_sums": {"groups": len(groups), "bytes": writer.bytes} if writer else None,
            "update": {
                "run": self.kept.folder.path,
                "rows_before": self.kept.rows,
                "rows_unchanged": total - rows["computed"] - rows["targets_only"],
                "rows_relabelled": rows["targets_only"],
                "rows_computed": rows["computed"],
                "groups_taken": len(taken),
                "groups_before": len(self.kept.groups),
            }
            if self.kept
            else None,
        }


class _Sums:
    """Sums of groups on their way: held until all of a group's rows are in, then written and added to the total."""

    def __init__(
        self, keeper: Keeper, groups: list[list[GroupPart]], ranges: Ranges, writer: Writer | None, dtype: str
    ) -> None:
        self.keeper, self.groups, self.writer, self.dtype = keeper, groups, writer, dtype
        last = {g: 0 for g in range(len(groups))} | dict(zip(ranges.group.tolist(), ranges.stop.tolist(), strict=True))
        self.waiting = sorted(last.items(), key=lambda item: (item[1], item[0]))
        self.held: dict[Key, FitSums] = {}
        self.totals: dict[int, FitSums] = {}
        self.written: list[list[GroupPart]] = []

    def hold(self, found: dict[Key, FitSums]) -> None:
        for key, sums in found.items():
            self.held[key] = self.held[key] + sums if key in self.held else sums

    def finish(self, row: int) -> None:
        """Take the groups all of whose rows come before a row."""
        while self.waiting and self.waiting[0][1] <= row:
            g, _ = self.waiting.pop(0)
            sums, frame, dtype = self._group(g)
            if self.writer:
                rows = _rows(self.groups[g], self.keeper.segments)
                self.writer.add(sums, frame, dtype, rows)
            self.written.append(self.groups[g])
            so_far = self.totals.get(frame)
            self.totals[frame] = sums if so_far is None else so_far + sums

    def _group(self, g: int) -> tuple[FitSums, int, str]:
        """Return a group's sums, their frame and the precision of their products."""
        kept, new = self.keeper.kept, self.keeper.frame
        parts = [self.held.pop((g, False))] if (g, False) in self.held else []
        dtypes = {self.dtype} if parts else set()
        stored = [part for part in self.groups[g] if part.kept is not None]
        for part in stored:
            assert kept is not None and part.kept is not None
            sums, frame = kept.load(part.kept, self.keeper.classes), part.kept.frame
            dtypes.add(part.kept.dtype)
            if len(self.groups[g]) == 1 and not part.relabelled:
                return sums, frame, part.kept.dtype
            if part.relabelled:
                width = self.held[(g, True)].cross.shape[1]
                sums = FitSums(sums.gram, torch.zeros(len(sums.cross), width, dtype=torch.float64))
            parts.append(carry(sums, self.keeper.frames[frame], self.keeper.frames[new]))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if (g, True) in self.held:
            total = FitSums(total.gram, total.cross + self.held.pop((g, True)).cross)
        return total, new, "float32" if "float32" in dtypes else "float64"

    def total(self) -> FitSums:
        """Return the sums of all groups in the run's own frame."""
        new, frames = self.keeper.frame, self.keeper.frames
        found = [s if k == new else carry(s, frames[k], frames[new]) for k, s in sorted(self.totals.items())]
        total = found[0]
        for sums in found[1:]:
            total = total + sums
        return total


def frame_of(setup: Setup, found: Scan) -> Frame:
    """Return what the columns of a run's parts are."""
    scale = setup.scale
    gaps = tuple(band for band, rows in enumerate(found.rows) if rows < found.counts["rows"])
    means = tuple(center_of(m, s, setup.dtype).double() for m, s in zip(scale.mean, scale.scale, strict=True))
    return Frame(means, scale.scale, scale.project or (None,) * len(means), gaps)


def same_frame(one: Frame, other: Frame) -> bool:
    """Return whether sums in one frame are sums in the other."""
    if (one.scales, one.gaps) != (other.scales, other.gaps):
        return False
    return all(torch.equal(a, b) for a, b in zip(one.means, other.means, strict=True) if a.shape == b.shape)


def figures_of(keeper: Keeper | None, session: Session) -> dict[str, Any]:
    """Return what the summary says of kept sums: null where there are none, as for fewer rows than features."""
    if session.kept and not (keeper and keeper.figures):
        log.warning("update: nothing was taken over, because fewer rows than features need no fit sums")
    return {"kept_sums": None, "update": None, **(keeper.figures if keeper else {})}
