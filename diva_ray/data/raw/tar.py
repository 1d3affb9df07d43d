"""WebDataset tars: members that share a key are one sample; nothing is ever written to disk."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.raw.units import (
    MOST_BYTES,
    OTHER_ID,
    PICTURE_SUFFIXES,
    Failure,
    RawRows,
    Source,
    Unit,
    below,
    file_mark,
    head_columns,
    loaded,
    misfit,
    note_unknown,
    rechunk,
)
from diva_ray.errors import InputError, first_line

# What tarfile raises and overrides by names that its stubs lack.
EmptyHeaderError, TruncatedHeaderError = tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError  # type: ignore[attr-defined]
InvalidHeaderError, ReadError = tarfile.InvalidHeaderError, tarfile.ReadError  # type: ignore[attr-defined]
MOST_MEMBERS = 1000  # of a sample
MOST_HEADER = 1 << 20  # bytes of a header that tells long names and the like: tarfile reads it whole
LONG_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
MOST_HEADERS = 16  # of one member: tarfile calls itself for each
BUFFER = 1 << 16  # bytes that tarfile reads at a time
AHEAD = 1 << 22  # bytes that storage is asked for at a time: every request to a store waits for an answer
PEEKED = 64  # first samples, which tell the columns
READ_ROWS = 64
TWICE = "/"  # after the suffix of a second member that has it: no suffix holds one
ENDING = re.compile(r"\.(tar|tgz)(\.\w+)?$", re.IGNORECASE)
TEXTS = ("txt", "text", "caption")
USED = {*PICTURE_SUFFIXES, *TEXTS, "cls", "cls2", "json"}  # others are not read
Sample = tuple[str, dict[str, bytes | None], int]  # key, members by suffix (None: not read), bytes in the tar


def find(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    base: str,
    infos: list[pyarrow.fs.FileInfo],
    label: str,
    id: str | None,
    peek: int | None,
) -> Source:
    """Return a unit for every tar; the first samples tell the columns."""
    if id not in (None, "none", "id"):
        raise InputError(f"data.id: samples of a tar have their key as id, got {id}. Leave `data.id` out.")
    units = tuple(Unit(k, info.path, bytes=info.size, mark=file_mark(info)) for k, info in enumerate(infos))
    peek = peek or PEEKED
    count, size, reasons = 0, 0, []

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, size
        for _, members, stored in islice(chain.from_iterable(samples(filesystem, info.path) for info in infos), peek):
            count += 1
            size += stored
            yield _tried(members, label, reasons)

    schema = pa.schema([pa.field("id", pa.string()), *head_columns(rows())])
    if not count:
        raise InputError(f"data.path: a tar must hold samples, got none in {infos[0].path}. Change `data.path`.")
    if len(reasons) == count:
        raise InputError(
            f"data.path: members of a sample must fit, got {reasons[0]} in each of the first {count:,} samples of "
            f"{infos[0].path}. Pack the tar again, or leave it out."
        )
    estimate = int(sum(unit.bytes for unit in units) / max(1.0, size / count))
    more = {"label": label, "alone": len(units) == 1, "base": base, "head": f"{peek:,} samples"}
    return Source("webdataset", path, schema, units, None, filesystem, read, path, estimate=estimate, more=more)


def _tried(members: dict[str, bytes | None], label: str, reasons: list[str]) -> dict[str, Any]:
    """Return a sample's columns, none if its members cannot be read, and note why: it will be a failure."""
    try:
        return row_of(members, label)
    except ValueError as error:
        reasons.append(first_line(error, 160))
        return {}


class Watched(tarfile.TarInfo):
    """Header of a member; a tar that ends without its end mark is told from a whole one, a bomb from a header."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Return the next header; note an end that is none: tarfile itself takes it, or a damaged one, for the end."""
        try:
            return super().fromtarfile(tarfile)
        except InvalidHeaderError as error:
            if tarfile.offset:
                raise ReadError(f"{error} at byte {tarfile.offset}: damaged?") from None
            raise
        except (EmptyHeaderError, TruncatedHeaderError):
            tarfile.cut = True
            raise
        finally:
            if not getattr(tarfile, "depth", 0):
                tarfile.pax_headers.clear()  # global ones, kept for all members to come: nothing of them is used

    def _proc_member(self, tarfile: Any) -> Any:
        """Read what a header announces; raise before a huge one is, or after too many of one member.

        The one hook for headers that follow a header in every release: since those that tell directories more strictly
        (3.13.5 as Debian patched it, 3.14) neither `frombuf` nor `fromtarfile` sees them.
        """
        if self.type in LONG_HEADERS and self.size > MOST_HEADER:
            raise ReadError(f"a header of {self.size} bytes, more than {MOST_HEADER}")
        depth = tarfile.depth = getattr(tarfile, "depth", 0) + 1
        try:
            if depth > MOST_HEADERS:
                raise ReadError(f"more than {MOST_HEADERS} headers of one member")
            return super()._proc_member(tarfile)  # type: ignore[misc]  # no stub has it
        finally:
            tarfile.depth = depth - 1


class Stored:
    """A tar's bytes: gzip is unpacked here, as tarfile does not hold it against its checksum."""

    def __init__(self, stream: Any) -> None:
        """Look whether it is gzip."""
        buffered = io.BufferedReader(stream, BUFFER)
        self.gzip = buffered.peek(2)[:2] == b"\x1f\x8b"
        self.file: Any = gzip.GzipFile(fileobj=buffered) if self.gzip else buffered
        self.ended = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes; raise where tarfile reads on and on beyond the end, as for a size that is a lie."""
        found = self.file.read(size)
        self.ended += not found
        if self.ended > MOST_HEADERS:
            raise ReadError("unexpected end of data")
        return found

    def check_rest(self) -> None:
        """Read what follows the end mark of a gzipped tar, up to the checksum of all of it."""
        while self.gzip and self.file.read(BUFFER):
            pass


def samples(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[Sample]:
    """Yield the samples of a tar in order, one in memory at a time: MOST_BYTES of it, the first that are used.

    Raises:
        InputError: no tar, a member whose name would leave the folder it is unpacked in, or too many of one sample.
    """
    key, members, held, stored = None, {}, 0, 0
    try:
        with (
            filesystem.open_input_stream(path, compression=None, buffer_size=AHEAD) as stream,
            tarfile.open(
                fileobj=(tarred := cast(Any, Stored(stream))), mode="r|*", tarinfo=Watched, bufsize=BUFFER
            ) as tar,
        ):
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
                check_name(member.name, path)
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile() or not stem or not suffix:  # links are never followed
                    continue
                own = f"{folder}/{stem}" if folder not in ("", ".") else stem
                if own != key and key is not None:
                    yield key, members, stored
                    members, held, stored = {}, 0, 0
                if len(members) == MOST_MEMBERS:
                    raise ReadError(f"more than {MOST_MEMBERS} members of sample {own}")
                suffix = suffix.lower()
                used = suffix.rpartition(".")[2] in USED
                held, stored = held + used * member.size, stored + 512 + member.size
                file = tar.extractfile(member) if used and held <= MOST_BYTES else None
                key, members[suffix + TWICE * (suffix in members)] = own, file.read() if file else None
            if getattr(tar, "cut", False):
                raise ReadError("it ends without an end mark: cut off?")
            tarred.check_rest()
    except (tarfile.TarError, OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(
            f"data.path: every file must be a whole tar, got {type(error).__name__} "
            f"({first_line(error)}) at {path}. Replace the file or leave it out."
        ) from error
    if key is not None:
        yield key, members, stored


def check_name(name: str, path: str) -> None:
    """Raise for a member whose name leaves the folder: whoever unpacks such a tar is overwritten."""
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise InputError(
            f"data.path: members of a tar must stay in its folder, got {name!r} at {path}. Do not trust this tar; "
            "leave it "
            "out or pack it again."
        )


def row_of(members: dict[str, bytes | None], label: str) -> dict[str, Any]:
    """Return a sample's columns: picture members are `image`, .txt `text`, .cls the label, .json its fields.

    Raises:
        ValueError: two members are one column.
    """
    row: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for suffix, content in members.items():
        stem, _, last = suffix.rpartition(".")
        if suffix.endswith(TWICE):
            raise ValueError(f"two members end with .{suffix.removesuffix(TWICE)}: keep one of them")
        if last in PICTURE_SUFFIXES:
            name, value = stem or "image", content
        elif content is not None and last in TEXTS:
            name, value = stem or ("caption" if last == "caption" else "text"), content.decode("utf-8", "replace")
        elif content is not None and last in ("cls", "cls2"):
            text = content.decode("utf-8", "replace").strip()
            name, value = stem or label, int(text) if text.lstrip("-").isdigit() else text
        else:
            continue
        if name in row:
            raise ValueError(f".{taken[name]} and .{suffix} are both column `{name}`: keep one of them")
        row[name], taken[name] = value, suffix
    found = loaded(members.get("json") or b"{}")
    found = found if isinstance(found, dict) else {}
    return {**{OTHER_ID if name == "id" else name: value for name, value in found.items()}, **row}


def read(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield the tar's samples; one whose members do not fit is a failure."""
    file = below(source.more["base"], unit.path)
    prefix = "" if source.more["alone"] else ENDING.sub("", file) + "/"
    keys: list[str] = []
    fields = [source.schema.field(name) for name in ["id", *(name for name in columns if name != "id")]]
    known, unknown = pa.struct(list(source.schema)), {}

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        good: list[dict[str, Any]] = []
        failed: list[Failure] = []
        size, first, seen = 0, 0, set()
        for at, (key, members, _) in enumerate(samples(source.filesystem, unit.path)):
            try:
                if hash(key) in seen:
                    raise ValueError("its key came before: members of a sample must lie side by side, once")
                seen.add(hash(key))
                row = {"id": prefix + key, **row_of(members, source.more["label"])}
            except ValueError as error:
                wrong = "", f"members do not fit: {first_line(error, 160)}"
            else:
                wrong = misfit(row, ((field.name, field.type) for field in fields[1:]))
            if wrong:
                failed.append(Failure(prefix + key, f"{file} {key}", *wrong))
                continue
            note_unknown(unknown, row, known, at, f"{file} {key}")
            good.append(row)
            keys.append(key)
            size += sum(len(value or b"") for value in members.values())
            if len(good) == READ_ROWS or size > MOST_BYTES:
                yield pa.Table.from_pylist(good, pa.schema(fields)), first, failed
                first, good, failed, size = first + len(good), [], [], 0
        yield pa.Table.from_pylist(good, pa.schema(fields)), first, failed

    return rechunk(parts(), rows, lambda k: f"{file} {keys[k]}", unknown)
