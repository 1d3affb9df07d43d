"""One unit of raw samples to one file of features: read and decoded in threads, encoded meanwhile, written whole or not
at all. The same for a unit wherever it runs, so it may run again."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diva_ray.config import EncoderConfig
from diva_ray.data.decode import NO_FILE, NOT_READABLE, Pictures, RefusedError, text_of, thumbnail
from diva_ray.data.encoders.encoder import IMAGE, TEXT, Encoder
from diva_ray.data.folder import Folder
from diva_ray.data.picture_states import PictureStates
from diva_ray.data.raw.units import MOST_HELD, Failure, RawRows, Source, Unit
from diva_ray.engine.ahead import ahead
from diva_ray.engine.fetched import sent_home, store, told_room
from diva_ray.engine.meter import peak_memory
from diva_ray.errors import InputError, one_line

AHEAD = 2  # chunks that are decoded and wait
REQUESTS = 16  # pictures that are fetched at a time from where a request waits for its answer
GROUP = 1024  # rows of a row group, at least
TEXT_CHUNK = 16  # batches of texts that are sorted by length together
NOTED = 3  # refused samples of a unit that its result tells of
QUARANTINE = pa.schema([(name, pa.string()) for name in ("id", "where", "column", "reason")])
UNIT, FAILED, DROPPED = b"diva_ray.unit", b"diva_ray.failed", b"diva_ray.dropped"  # keys in a file's footer
NULLS = b"diva_ray.nulls"  # likewise: how many of its rows are null, by column
UNREAD = b"diva_ray.unread"  # likewise: of the samples that failed, those that a resumed run tries again
PICTURES = b"diva_ray.pictures"  # likewise: in what state the pictures were that its rows name by path


@dataclass(frozen=True)
class Band:
    """One encoder of a run: which raw column it reads, which column it writes, how wide, how many at a time."""

    config: EncoderConfig
    tower: str
    column: str
    name: str
    width: int
    batch: int


@dataclass(frozen=True)
class Job:
    """What a worker must know besides its units.

    Attributes:
        kept: raw column -> the name under which it is written.
        schema: of the files of features.
        picture: raw column whose thumbnails are kept in the column `picture`; None: none.
        mark: what tells this run's files from another's.
    """

    source: Source
    bands: tuple[Band, ...]
    kept: dict[str, str]
    schema: pa.Schema
    folder: Folder
    picture: str | None
    thumbnail: int
    root: str
    most_pixels: int
    device: str
    precision: str
    threads: int
    mark: str

    @property
    def chunk(self) -> int:
        """Rows that are read, decoded and encoded together: a batch of pictures, or sixteen of texts."""
        pictures = [band.batch for band in self.bands if band.tower == IMAGE]
        return max(pictures) if pictures else TEXT_CHUNK * max(band.batch for band in self.bands)

    @property
    def pictured(self) -> list[str]:
        """Raw columns of pictures."""
        columns = [*(band.column for band in self.bands if band.tower == IMAGE), self.picture]
        return [name for name in dict.fromkeys(columns) if name]

    def stamp(self, unit: Unit) -> str:
        """Return what the footer of a unit's file says: this run, this piece of input."""
        return f"{self.mark} {os.path.basename(unit.path)} {unit.start} {unit.skip} {unit.rows} {unit.mark}"


@dataclass
class DecodedChunk:
    """A chunk, decoded: for every band its samples (None: missing), thumbnails, and which rows are good."""

    rows: RawRows
    samples: list[list[Any]]
    thumbnails: list[bytes | None]
    good: np.ndarray
    failures: list[Failure] = field(default_factory=list)


class UnitEncoder:
    """Encodes units, one after the other."""

    def __init__(self, job: Job, encoders: list[Encoder]) -> None:
        self.job, self.encoders = job, encoders
        self.pictures = Pictures(job.root, job.most_pixels)
        at_once = max(REQUESTS if "://" in job.root else 1, job.threads)
        self.pool = ThreadPoolExecutor(at_once, thread_name_prefix="decode")
        read = [*job.kept, *(band.column for band in job.bands), *([job.picture] if job.picture else [])]
        self.columns: list[str] = [name for name in dict.fromkeys(read) if name != "id"]

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def encode(self, unit: Unit, told: Callable[[int], Any] = int) -> dict[str, Any]:
        """Write the unit's features (and quarantine), and return how it went; `told` hears of finished rows."""
        start, cpu = time.perf_counter(), time.process_time()
        seconds = {"wait": 0.0, "encode": 0.0, "write": 0.0}
        failures: list[Failure] = []
        held: list[pa.Table] = []
        nulls: Counter[str] = Counter()
        rows, before, unknown = 0, start, {}
        job = self.job
        metadata, states = {UNIT: job.stamp(unit).encode()}, PictureStates(job.pictured, self.pictures, self.pool)
        with job.folder.stream_table(f"features/{unit.file}", job.schema) as writer:
            for prepared in ahead(self._prepared(unit, states), AHEAD):
                now = time.perf_counter()
                seconds["wait"] += now - before
                self._check_storage(prepared)
                held.append(self._encoded(prepared))
                nulls.update({name: held[-1][name].null_count for name in job.schema.names})
                failures += prepared.failures
                unknown = prepared.rows.unknown
                then = time.perf_counter()
                seconds["encode"] += then - now
                if sum(t.num_rows for t in held) >= GROUP or sum(t.nbytes for t in held) > MOST_HELD:
                    rows += _flush(writer, held)
                before = time.perf_counter()
                seconds["write"] += before - then
                told(len(prepared.good) + len(prepared.rows.failures))
            rows += _flush(writer, held)
            job.folder.remove(f"quarantine/{unit.file}")  # of a run that is resumed
            if failures:
                listed = pa.table({k: [getattr(one, k) for one in failures] for k in QUARANTINE.names}, QUARANTINE)
                job.folder.write_table(f"quarantine/{unit.file}", listed)
            nulls = +nulls  # those that have some
            metadata |= {NULLS: json.dumps(nulls).encode()} if nulls else {}
            metadata |= {DROPPED: json.dumps(unknown).encode()} if unknown else {}
            unread = sum(one.reason.startswith((NO_FILE, NOT_READABLE)) for one in failures)
            metadata |= {UNREAD: str(unread).encode()} if unread else {}
            metadata |= {PICTURES: states.mark()} if states.named else {}
            writer.add_key_value_metadata({**metadata, FAILED: str(len(failures)).encode()})
        size, digest = job.folder.digest(f"features/{unit.file}")
        seconds["write"] += time.perf_counter() - before
        return {
            "unit": unit.index, "file": f"features/{unit.file}", "rows": rows, "failed": len(failures), "bytes": size,
            "dropped": unknown, "nulls": dict(nulls), "sha256": digest, **seconds,
            "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
            "noted": [f"{one.id} at {one.where}: {one.reason}" for one in failures[:NOTED]], "process": os.getpid(),
            "host": socket.gethostname(), "memory": peak_memory(),
        }  # fmt: skip

    def _check_storage(self, prepared: DecodedChunk) -> None:
        """Raise where a whole chunk of pictures could not be read from a store: it is gone, and each would be refused
        after a wait of seconds or minutes."""
        failures = prepared.failures
        unread = failures and all(one.reason.startswith(NOT_READABLE) for one in failures)
        if unread and not self.pictures.local and not prepared.good.any():
            raise InputError(
                f"data.root: storage must stay within reach, got {len(failures)} pictures in a row that are "
                f"{failures[0].reason} at {self.pictures.root}. Run it again with `resume=true`."
            )

    def _prepared(self, unit: Unit, states: PictureStates) -> Iterator[DecodedChunk]:
        for rows in self.job.source.read(self.job.source, unit, self.columns, self.job.chunk):
            states.add(rows.table)  # before they are read: one that is replaced meanwhile is seen to differ
            yield self._prepare(rows)

    def encode_rows(self, rows: RawRows) -> pa.Table:
        """Return the output rows of some input rows, at once."""
        return self._encoded(self._prepare(rows))

    def _prepare(self, rows: RawRows) -> DecodedChunk:
        """Decode a chunk."""
        bands, n = self.job.bands, rows.table.num_rows
        samples: list[list[Any]] = [[None] * n for _ in bands]
        thumbnails: list[bytes | None] = [None] * n
        missing = np.zeros((n, len(bands)), bool)
        reasons: dict[int, tuple[str, str]] = {}
        for column in dict.fromkeys(band.column for band in bands):
            mine = [b for b, band in enumerate(bands) if band.column == column]
            values = rows.table[column].to_pylist()
            pictured = any(bands[b].tower == IMAGE for b in mine)
            task = (lambda value, m=mine, c=column: self._decode(value, m, c)) if pictured else self._text
            for k, found in enumerate((self.pool.map if pictured else map)(task, values)):
                if isinstance(found, str):
                    absent = values[k] is None or (isinstance(values[k], dict) and not any(values[k].values()))
                    missing[k, mine] = True
                    if not absent or len(bands) == len(mine):
                        reasons.setdefault(k, (column, found))
                    continue
                for b, sample in zip(mine, found[0] * len(mine) if not pictured else found[0], strict=True):
                    samples[b][k] = sample
                thumbnails[k] = found[1] or thumbnails[k]
        for k in np.flatnonzero(missing.all(1)).tolist():
            reasons.setdefault(k, (", ".join(band.column for band in bands), "no value"))
        ids = rows.table["id"].to_pylist()
        reasons |= {k: ("id", "no id") for k in range(n) if ids[k] is None}
        failures = [Failure("" if ids[k] is None else str(ids[k]), rows.where(k), *reasons[k]) for k in sorted(reasons)]
        good = np.ones(n, bool)
        good[list(reasons)] = False
        return DecodedChunk(rows, samples, thumbnails, good, [*rows.failures, *failures])

    def _decode(self, value: Any, mine: list[int], column: str) -> tuple[list[Any], bytes | None] | str:
        """Return a picture cut for every band that reads it and its thumbnail, or the reason why not."""
        job = self.job
        try:
            forms = [self.encoders[b].form for b in mine]
            side = 0 if any(form is None for form in forms) else max(form.least for form in forms if form)
            if side and column == job.picture:
                side = max(side, -(-job.thumbnail // 2))  # twice that is decoded
            picture = self.pictures.open(value, side)
            cut = [form.of(picture) if form else picture for form in forms]
            small = thumbnail(picture, job.thumbnail) if column == job.picture else None
            return cut, small
        except RefusedError as error:
            return str(error)
        except (ValueError, MemoryError, OverflowError, OSError) as error:  # a size that Pillow cannot make
            return f"not to be cut to size: {one_line(error, 160) if error.args else type(error).__name__}"

    def _text(self, value: Any) -> tuple[list[str], None] | str:
        try:
            return [text_of(value)], None
        except RefusedError as error:
            return str(error)

    def _encoded(self, prepared: DecodedChunk) -> pa.Table:
        """Return the rows as they are written."""
        bands = {}
        for b, (band, encoder) in enumerate(zip(self.job.bands, self.encoders, strict=True)):
            values, present = self._features(band, encoder, prepared.samples[b], prepared.good)
            broken = np.flatnonzero(present & ~np.isfinite(values).all(1))
            for k in broken.tolist():
                reason = f"features are not finite as {values.dtype}"
                where = prepared.rows.where(k)
                prepared.failures.append(Failure(str(prepared.rows.table["id"][k].as_py()), where, band.column, reason))
            prepared.good[broken] = False
            bands[band.name] = values, present
        rows, good = prepared.rows.table, prepared.good
        written: dict[str, Any] = {"id": rows["id"]}
        written |= {name: rows[column] for column, name in self.job.kept.items()}
        for name, (values, present) in bands.items():
            written[name] = _vectors(values, present, self.job.schema.field(name).type)
        if self.job.picture:
            written["picture"] = pa.array(prepared.thumbnails, pa.binary())
        table = pa.table([written[name] for name in self.job.schema.names], schema=self.job.schema)
        return table if good.all() else table.filter(pa.array(good))

    def _features(
        self, band: Band, encoder: Encoder, samples: list[Any], good: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (features (n, width) as they are stored, which rows have them), in batches of fixed composition."""
        kind = self.job.schema.field(band.name).type.value_type.to_pandas_dtype()
        present = np.array([sample is not None for sample in samples], bool) & good
        order = np.flatnonzero(present)
        if band.tower == TEXT:  # texts of like length pad each other least
            order = order[np.argsort([len(samples[k]) for k in order], kind="stable")]
        values = np.zeros((len(samples), band.width), kind)
        pending: list[tuple[np.ndarray, torch.Tensor, torch.cuda.Event | None]] = []
        for start in range(0, len(order), band.batch):
            some = order[start : start + band.batch]
            with _told(band), told_room(encoder):
                pending.append((some, *sent_home(encoder.run([samples[k] for k in some]))))
            while len(pending) > (
                1 if encoder.device == "cuda" else 0
            ):  # the next batch is sent before this one is fetched
                store(values, *pending.pop(0))
        for one in pending:
            store(values, *one)
        return values, present


@contextmanager
def _told(band: Band) -> Iterator[None]:
    """Tell in one line what a network raises in the middle of a run: it took the made-up samples at its start."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a network raises what it likes
        raise InputError(
            f"encoder: the model must take every sample, got {type(error).__name__} "
            f"({one_line(error)}) from {band.config.name or band.config.kind} in a batch of column "
            f"`{band.column}`. Change `encoder.model` or `encoder.tokens`, or leave the sample out."
        ) from error


def _vectors(values: np.ndarray, present: np.ndarray, kind: pa.BaseExtensionType) -> pa.Array:
    """Return a tensor column; rows without the modality are null."""
    mask = None if present.all() else pa.array(~present)
    flat = pa.array(values.reshape(-1))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask))


def _flush(writer: Any, held: list[pa.Table]) -> int:
    rows = sum(table.num_rows for table in held)
    if rows:
        writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=rows)
    held.clear()
    return rows
