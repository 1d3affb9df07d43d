"""An embedding run before it starts: encoders built and tried, columns named, workers found, earlier files checked."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from diva_ray.config import EmbedConfig
from diva_ray.data.decode import Pictures
from diva_ray.data.encoders.build import PLAIN
from diva_ray.data.folder import Folder
from diva_ray.data.picture_states import PictureStates
from diva_ray.data.raw.units import Source, Unit
from diva_ray.engine.embedding import DROPPED, FAILED, NULLS, PICTURES, REQUESTS, UNIT, UNREAD, Job
from diva_ray.errors import InputError
from diva_ray.report import words
from diva_ray.tasks.setup import embed_setup as setup
from diva_ray.tasks.setup.plan import check_workers, ray_is_running
from diva_ray.tasks.setup.saved_config import differing_options, refuse_differing

log = logging.getLogger("diva_ray")
FREE = ("output", "resume", "plan", "cluster", "most_failed")  # options that a resumed run may change
MOST_THREADS = 16  # of a worker with a GPU, for decoding


@dataclass
class Prepared:
    """A run before it starts: everything is checked."""

    job: Job
    built: setup.Built
    kind: str
    why: str
    workers: int
    gpus: float
    timeouts: dict[str, float]
    most_failed: float
    state: dict[str, Any]
    reused: dict[int, dict[str, Any]]  # finished units of the run that is resumed

    @property
    def pending(self) -> list[Unit]:
        """Units that are still to be encoded."""
        return [unit for unit in self.job.source.units if unit.index not in self.reused]

    def lines(self) -> list[str]:
        """Return what will be done, for a person."""
        job = self.job
        count = f"{job.source.about():,}{'' if job.source.rows is not None else ' (estimate)'}"
        left = f", {len(self.reused):,} already done" if self.reused else ""
        bands = [
            f"{band.name:<10} {band.width:,} features of `{band.column}` by {band.config.name}{encoder.told}, "
            f"{band.batch} at a time"
            for band, encoder in zip(job.bands, self.built.encoders, strict=True)
        ]
        return [
            f"raw        {job.source.name} ({job.source.kind})",
            f"samples    {count} in {words.counted(len(job.source.units), 'unit', 'units')}{left}",
            *bands,
            f"where      {self.kind}: {self.why}; {self.workers} worker(s) with {job.threads} thread(s)"
            + (f" and {self.gpus:g} GPU" if self.gpus else ""),
        ]


def prepare(config: EmbedConfig, source: Source, found: list, folder: Folder, state: Any) -> Prepared:
    """Return the run; what is wrong with encoders or columns is said before any cluster is started.

    Args:
        found: encoders' configs and the user's modules.
        state: state.json of the run that is resumed, else None.
    """
    kind, why = setup.where_to_run(config)
    built = setup.build_all(config, found, setup.choose_device(config.device) if kind == "inline" else "cpu")
    pictured = [band.column for band in built.bands if band.tower == setup.IMAGE]
    picture = pictured[0] if pictured and config.thumbnail else None
    kept = setup.kept_columns(config, source, built.bands, picture is not None)
    schema = setup.schema_of(source, built.bands, kept, config.dtype, picture is not None)
    workers, gpus, threads = 1, 0.0, config.cluster.threads or torch.get_num_threads()
    if kind != "inline":
        networks = any(one.kind not in PLAIN for one, _ in found)
        workers, gpus, threads = _on_cluster(config, kind, len(source.units), networks=networks)
    before = [one["batch"] for one in (state or {}).get("bands") or []]
    built.bands = _with_batches(config, built, found, before, workers, gpus)
    now = _state(config, source, built)
    _check_same(state, now, folder)
    root = os.path.expanduser(config.data.root) if config.data.root else source.root
    if config.data.root and kind == "inline" and "://" not in root and not os.path.isdir(root):
        raise InputError(f"data.root: a folder or URI must be there, got nothing at {root}. Change `data.root`.")
    job = Job(
        source=source,
        bands=built.bands,
        kept=kept,
        schema=schema,
        folder=folder,
        picture=picture,
        thumbnail=config.thumbnail,
        root=root,
        most_pixels=config.most_pixels,
        device=config.device,
        precision=config.precision,
        threads=threads,
        mark=str(now["run"]),
    )
    reused = _finished(job) if config.resume and not config.plan else {}
    timeouts = {"start_timeout": config.cluster.start_timeout, "unit_timeout": config.cluster.pass_timeout}
    return Prepared(job, built, kind, why, workers, gpus, timeouts, config.most_failed, now, reused)


def _with_batches(
    config: EmbedConfig, built: setup.Built, found: list, before: list[int], workers: int, gpus: float
) -> tuple[setup.Band, ...]:
    """Return the bands with their batch sizes: as told, as in the run that is resumed, else what memory allows."""
    if len(before) == len(built.bands):
        sizes = before
    elif gpus and not (config.plan and not ray_is_running()):  # nothing is started for a plan
        from diva_ray.engine.encoder_pool import batch_on_gpu

        sizes = batch_on_gpu(
            [one for one, _ in found], [module for _, module in found], config.precision, gpus,
            config.cluster.start_timeout, config.cluster.pass_timeout,
        )  # fmt: skip
    else:
        sizes = setup.batches(config, built, workers)
    return tuple(replace(band, batch=band.config.batch or size) for band, size in zip(built.bands, sizes, strict=True))


def _state(config: EmbedConfig, source: Source, built: setup.Built) -> dict[str, Any]:
    """Return what a resumed run must share."""
    options = {k: v for k, v in asdict(config).items() if k not in (*FREE, "encoder", "encoders")}
    bands = [{**asdict(band), "mark": encoder.mark} for band, encoder in zip(built.bands, built.encoders, strict=True)]
    run = setup.hash_of([options, bands, torch.__version__.split("+")[0]])
    return {"options": options, "bands": bands, "units": setup.units_mark(source.units), "run": run}


def _check_same(state: Any, now: dict[str, Any], folder: Folder) -> None:
    """Raise if the folder to resume holds another run."""
    if state is None:
        return
    options, before = now["options"], state.get("options", {})
    differing = differing_options(before, options)
    differing += ["encoder"] * (state.get("bands") != now["bands"])
    refuse_differing(folder, differing, ["data.path"] * (state.get("units") != now["units"]))


def _on_cluster(config: EmbedConfig, kind: str, units: int, *, networks: bool) -> tuple[int, float, int]:
    """Return (workers, GPUs of each, threads of each) that the cluster can hold."""
    from diva_ray.engine.autoscale import check_resources
    from diva_ray.engine.connect import check_driver, connect

    threads = config.cluster.threads or 1
    check_workers(kind, config.cluster.workers or 1, threads)
    if kind == "local" and config.plan:  # nothing is started for a plan
        cpus = os.cpu_count() or 1
        return min(config.cluster.workers or cpus // threads, units), config.cluster.gpus_per_worker, threads
    connect(kind)
    check_driver("embed on a cluster")
    import ray

    have = ray.cluster_resources()
    gpus = config.cluster.gpus_per_worker
    if not gpus and config.device != "cpu" and have.get("GPU", 0) and networks:
        gpus = 1.0
    if config.device == "cuda" and not gpus:
        raise InputError("device: the cluster must have a GPU for cuda, got none. Use `device=auto`.")
    if gpus and not config.cluster.threads:  # decoding keeps up with a GPU only with many threads
        threads = _threads_beside(gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    return check_resources(config.cluster.workers, threads, gpus, units), gpus, threads


def _threads_beside(gpus: float, nodes: list[dict[str, float]]) -> int:
    """Return how many CPUs every worker with so many GPUs can have on any of the nodes that have GPUs."""
    least = min((int(one["CPU"] // max(one["GPU"] // gpus, 1)) for one in nodes if one.get("GPU") and one.get("CPU")),
                default=1)  # fmt: skip
    return max(1, min(MOST_THREADS, least))


def _finished(job: Job) -> dict[int, dict[str, Any]]:
    """Return the units whose files are there, whole and of this run; another run's or broken ones are made again, and
    those of samples whose own files could not be read, or are not as they were."""
    listed = {one["file"]: one for one in (job.folder.read_object("manifest.json") or {}).get("units", [])}
    names = set(job.folder.names("features"))
    found, changed = {}, 0
    for unit in job.source.units:
        name = f"features/{unit.file}"
        footer = job.folder.footer(name) if unit.file in names else None
        notes = (footer.metadata or {}) if footer is not None else {}
        if footer is None or notes.get(UNIT) != job.stamp(unit).encode() or UNREAD in notes:
            continue
        size, digest = job.folder.digest(name)
        if name in listed and listed[name]["sha256"] != digest:
            continue
        if PICTURES in notes and _pictures_now(job, unit) not in (b"", notes[PICTURES]):
            changed += 1
            continue
        found[unit.index] = {
            "unit": unit.index, "file": name, "rows": footer.num_rows, "failed": int(notes.get(FAILED, b"0")),
            "bytes": size, "sha256": digest, "reused": True, "dropped": json.loads(notes.get(DROPPED, b"{}")),
            "nulls": json.loads(notes.get(NULLS, b"{}")),
        }  # fmt: skip
    if changed:
        log.warning("pictures of %s have changed since: made again", words.counted(changed, "unit", "units"))
    return found


def _pictures_now(job: Job, unit: Unit) -> bytes:
    """Return what stands for the states of the pictures that a unit's rows name; nothing where they are out of reach of
    this process, as on a cluster they may be."""
    pictures = Pictures(job.root, job.most_pixels)
    if not (pictures.local and os.path.isdir(pictures.base)):
        return b""
    with ThreadPoolExecutor(REQUESTS) as pool:
        states = PictureStates(job.pictured, pictures, pool)
        for rows in job.source.read(job.source, unit, job.pictured, job.chunk):
            states.add(rows.table)
    return states.mark()
