"""Raw pictures, texts and pairs to features: one file a unit of input, with encoders by name."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from diva_ray.config import EmbedConfig
from diva_ray.data.decoded import with_pictures_as_bytes
from diva_ray.data.folder import Folder
from diva_ray.data.in_memory import write_parts
from diva_ray.data.raw import tables
from diva_ray.data.raw.find import find_raw
from diva_ray.data.raw.units import Source, Unit
from diva_ray.data.sources import open_data
from diva_ray.data.table import Table, from_arrow
from diva_ray.engine.embedding import UnitEncoder
from diva_ray.engine.progress import Progress
from diva_ray.tasks.setup import embed_setup as setup
from diva_ray.tasks.setup.begin import open_folder, tidy
from diva_ray.tasks.setup.calls import takes_table
from diva_ray.tasks.setup.datasets import from_dataset
from diva_ray.tasks.setup.embed_prepare import Prepared, prepare
from diva_ray.tasks.setup.finish import now
from diva_ray.tasks.setup.manifest import fingerprint
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.told.embed_done import conclude, told
from diva_ray.tasks.told.embed_plan import EmbedPlan, make_plan

log = logging.getLogger("diva_ray")
EARLY = 1000  # refused samples after which a run with too many ends at once
MARGIN = 2  # by which units not yet read may be larger than those that were, for that


@takes_table
def embed(data: Any = None, *, quiet: bool = False, **options: Any) -> Result | EmbedPlan:
    """Return features of raw pictures and texts, written file by file as they are made.

    Every unit of input (row groups of Parquet, a tar, a run of files, lines or record batches) becomes one file of
    features, whole or absent, so `resume=True` computes only what is missing, and gives the same bits. Samples that
    cannot be decoded go to `quarantine/` with the reason.

    Args:
        data: path or URI of Parquet, an image folder (one folder a class), WebDataset tars, JSON lines, CSV or a saved
            Hugging Face dataset; or an Arrow table, DataFrame, Ray Dataset, or mapping of arrays such as
            {"image": pictures, "label": y}. None: the built-in digits.
        quiet: no progress.
        **options: `encoder` (a name in configs/encoder, a mapping such as {"name": "timm", "model": ...}, a torch
            module or a function that returns one; {"module": net, "layer": ...} names a layer), `encoders` (several);
            of the raw rows: `id`, `label`, `keep`, `root`, `kind`, `peek`; `device`, `precision`, `dtype`, `thumbnail`,
            `unit_rows`, `most_pixels`, `most_failed`, `seed`, `output`, `cluster`, `resume`, `plan`, `trust_code`. With
            types and defaults: `python jobs/embed.py --help`.

    Returns:
        A `Result` whose `.samples` has `id`, the kept columns, and a float16 tensor column for every encoder; an
        `EmbedPlan` if `plan=True`.

    Raises:
        InputError: bad input or options, in one line; more refused samples than `most_failed` allows.
    """
    config, data, modules = setup.configure(data, options)
    return run(config, data, modules, quiet=quiet)


@tidy
def run(
    config: EmbedConfig, data: Any = None, modules: list[Any] | None = None, *, quiet: bool = False
) -> Result | EmbedPlan:
    """Return the result of an embedding run as its config says (`jobs/embed.py`); see `embed`."""
    started, clock = now(), time.perf_counter()
    setup.check(config)
    with ExitStack() as stack:
        folder = open_folder(config)
        if config.plan and config.data.path is None:  # what is in memory is written first: for a plan, elsewhere
            folder = Folder(stack.enter_context(tempfile.TemporaryDirectory(prefix="diva_ray-plan-")))
        source = open_raw(config, data, folder)
        opened = time.perf_counter()
        found = setup.resolve(config, modules or [], source)
        state = folder.read_object("state.json") if config.resume and not config.plan else None
        prepared = prepare(config, source, found, folder, state)
        if config.plan:
            with threads(prepared.job.threads):  # as workers have
                return make_plan(config, prepared)
        seconds = {"open": opened - clock, "load": time.perf_counter() - opened}
        if not quiet:
            for line in prepared.lines():
                log.info("%s", line)
        folder.write_json("state.json", prepared.state)
        if prepared.kind != "inline":
            folder.share()
        done, seconds["encode"] = _encode(prepared, quiet)
        summary = conclude(config, prepared, done, seconds, started)
        return Result(summary, folder, prepared.kind != "inline", told(config, prepared, summary), "features")


def open_raw(config: EmbedConfig, data: Any, folder: Folder) -> Source:
    """Return what is to be encoded; rows in memory are written to `raw/` first, where every worker can read them."""
    raw = config.data
    if data is None and raw.path is not None:
        known = {"id": raw.id, "label": raw.label, "peek": raw.peek}
        return find_raw(raw.path, raw.kind, unit_rows=config.unit_rows, **known)
    table = open_data(with_pictures_as_bytes(data), raw.builtin, raw.noise, config.seed)
    if data is None:
        assert isinstance(table, Table) and table.memory is not None
        table = from_arrow(table.memory.drop_columns(["features"]), table.name)  # its pixels are what is to be encoded
    if not isinstance(table, Table):  # a Ray Dataset
        return tables.find(from_dataset(table, folder, "raw", plan=False), raw.id, config.unit_rows)
    write_parts(table, folder, "raw", config.unit_rows)
    source = tables.find(folder.location("raw"), raw.id, config.unit_rows, mark=fingerprint(table))
    return replace(source, name=table.name, more={**source.more, "temporary": True})


def _encode(prepared: Prepared, quiet: bool) -> tuple[list[dict[str, Any]], float]:
    """Return how every unit went, in order, and the seconds it took; stop when too many samples are refused."""
    job, pending = prepared.job, prepared.pending
    rows = job.source.about() - sum(one["rows"] + one["failed"] for one in prepared.reused.values())
    progress = Progress("encode", max(rows, 1), quiet=quiet)
    done = list(prepared.reused.values())
    failed, seen = (sum(one[name] for one in done) for name in ("failed", "rows"))
    start = time.perf_counter()
    try:
        for one in _each(prepared, pending, progress) if pending else ():
            done.append(one)
            failed, seen = failed + one["failed"], seen + one["rows"]
            if failed >= EARLY and failed > prepared.most_failed * _most_rows(job.source, len(done), seen + failed):
                break  # whatever comes, it is too many
    finally:
        progress.close()
    return sorted(done, key=lambda one: one["unit"]), time.perf_counter() - start


def _most_rows(source: Source, units: int, seen: int) -> float:
    """Return how many rows there are, or, where only reading tells, twice as many as those seen in some units
    suggest."""
    if source.rows is not None:
        return source.rows
    return MARGIN * max(seen * len(source.units) / units, source.about())


def _each(prepared: Prepared, pending: list[Unit], progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield how every unit went."""
    job = prepared.job
    if prepared.kind == "inline":
        with threads(job.threads):
            encoder = UnitEncoder(job, prepared.built.encoders)
            try:
                for unit in pending:
                    yield encoder.encode(unit, progress.add)
            finally:
                encoder.close()
        return
    from diva_ray.engine.encoder_pool import encode_on_ray

    given, workers, gpus = prepared.built.given, prepared.workers, prepared.gpus
    prepared.built.encoders.clear()  # the workers have their own
    for one in encode_on_ray(job, pending, given, workers=workers, gpus=gpus, **prepared.timeouts):
        progress.add(one["rows"] + one["failed"])
        yield one


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads here, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
