"""A Hugging Face dataset saved by `save_to_disk`: Arrow streams beside state.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs

from diva_ray.data.columns import storage_type
from diva_ray.data.raw.classes import class_names, with_names
from diva_ray.data.raw.tables import key_of, to_rows, with_id
from diva_ray.data.raw.units import (
    Failure,
    RawRows,
    Source,
    Unit,
    file_mark,
    loaded,
    name_of,
    rechunk,
    root_of,
    suffix_of,
)
from diva_ray.errors import InputError, first_line

END = b"\xff\xff\xff\xff\0\0\0\0"  # of a whole stream, as `datasets` writes it; pyarrow reads one without as well


def find(
    path: str, filesystem: pyarrow.fs.FileSystem, infos: list[pyarrow.fs.FileInfo], id: str | None, unit_rows: int
) -> Source:
    """Return runs of record batches of the dataset's Arrow files as units, in the order of state.json."""
    folder = infos[0].path.rpartition("/")[0]
    if any(info.path.rpartition("/")[0] != folder for info in infos):
        splits = sorted({info.path.split("/")[-2] for info in infos})
        raise InputError(
            f"data.path: one split must be named, got {', '.join(splits)} at {path}. Use `data.path={path.rstrip('/')}/"
            f"{'train' if 'train' in splits else splits[0]}`."
        )
    infos = _listed(path, infos, _order(filesystem, folder))
    schema, units, total = None, [], 0
    for info in infos:
        start, rows, stop = 0, 0, 0
        with _opened(filesystem, info.path) as reader:
            if schema is not None and not schema.equals(reader.schema):
                raise InputError(
                    f"data.path: every file must have the same columns, got others at {info.path}. Fix the dataset."
                )
            schema, counts = reader.schema, [batch.num_rows for batch in reader]
        _check_end(filesystem, info)
        for stop, count in enumerate(counts, 1):
            rows += count
            if rows >= unit_rows or stop == len(counts):
                size = info.size * rows // max(1, sum(counts))
                units.append(Unit(len(units), info.path, start, stop, rows, size, file_mark(info), total))
                start, total, rows = stop, total + rows, 0
    if not total or schema is None:
        raise InputError(f"data.path: the dataset must have rows, got 0 at {path}. Change `data.path`.")
    plain = pa.schema([pa.field(field.name, storage_type(field.type)) for field in schema])
    key = key_of(plain, id)
    classes = {name: names for name, names in class_names(schema).items() if name != key}
    schema, other = with_id(with_names(plain, classes), key, pa.int64())
    return Source(
        "huggingface", path, schema, tuple(units), total, filesystem, read, root_of(path, infos[0].path, folder), key,
        classes=classes, other_id=other,
    )  # fmt: skip


def _listed(path: str, infos: list[pyarrow.fs.FileInfo], order: dict[str, int]) -> list[pyarrow.fs.FileInfo]:
    """Return the files that state.json lists, in its order: `datasets` keeps caches of its own beside them."""
    if not order or suffix_of(path) == "arrow":  # files that are named are taken as named
        return sorted(infos, key=lambda info: (order.get(name_of(info.path), len(order)), info.path))
    found = {name_of(info.path): info for info in infos}
    absent = [name for name in order if name not in found]
    if absent:
        raise InputError(
            f"data.path: every file that state.json lists must be there, got none of {len(absent)} ({absent[0]}) at "
            f"{path}. Copy the dataset again, or name the files themselves."
        )
    return [found[name] for name in order]


def _order(filesystem: pyarrow.fs.FileSystem, folder: str) -> dict[str, int]:
    """Return the place of every data file, as state.json says."""
    state = f"{folder}/state.json"
    if filesystem.get_file_info(state).type != pyarrow.fs.FileType.File:
        return {}
    with filesystem.open_input_stream(state) as stream:
        try:
            return {str(one["filename"]): k for k, one in enumerate(loaded(stream.read()).get("_data_files", []))}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"data.path: state.json must list the data files, got {error!r} at {state}.") from error


@contextmanager
def _opened(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[pa.RecordBatchStreamReader]:
    """Give a stream, and say in one line what is wrong with it; a local file is mapped, so that what is skipped is not
    read."""
    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    try:
        yield pa.ipc.open_stream(pa.memory_map(path) if local else filesystem.open_input_stream(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"data.path: every file must be a whole Arrow stream, got {first_line(error)} at {path}. Save the dataset "
            "again."
        ) from error


def _check_end(filesystem: pyarrow.fs.FileSystem, info: pyarrow.fs.FileInfo) -> None:
    """Raise where a file ends between two batches: the rows behind it would be missed without a word."""
    with filesystem.open_input_file(info.path) as file:
        file.seek(max(info.size - len(END), 0))
        if file.read() != END:
            raise InputError(
                f"data.path: every file must be a whole Arrow stream, got one without an end mark (cut off?) at "
                f"{info.path}. Save the dataset again."
            )


def _batches(filesystem: pyarrow.fs.FileSystem, unit: Unit) -> Iterator[pa.RecordBatch]:
    """Yield the unit's batches; offsets that point elsewhere are found before anything follows them."""
    with _opened(filesystem, unit.path) as reader:
        for k, batch in enumerate(reader):
            if k >= unit.stop:
                return
            if k >= unit.start:
                batch.validate(full=True)
                yield batch


def read(source: Source, unit: Unit, columns: list[str], rows: int) -> Iterator[RawRows]:
    """Yield the rows of the unit's record batches."""

    def parts() -> Iterator[tuple[pa.Table, int, list[Failure]]]:
        number = unit.first
        for batch in _batches(source.filesystem, unit):
            if batch.num_rows:
                yield to_rows(pa.Table.from_batches([batch]), source, columns, number), number, []
                number += batch.num_rows

    return rechunk(parts(), rows, lambda k: f"{name_of(unit.path)} row {k - unit.first} from batch {unit.start}")
