"""What an embedding run will do, as `plan=true` prints it: one batch is tried, nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from diva_ray.config import EmbedConfig
from diva_ray.engine.batch_size import sample_bytes
from diva_ray.engine.embedding import AHEAD, Job, UnitEncoder
from diva_ray.report import words
from diva_ray.tasks.setup.embed_prepare import Prepared
from diva_ray.tasks.setup.embed_setup import IMAGE, Built

TRIED = 64  # samples


@dataclass
class EmbedPlan:
    """Units, rows, bytes, memory, batch sizes and time of a run."""

    raw: str
    units: int
    rows: int
    rows_known: bool
    bytes: int
    bands: list[str]
    kind: str
    why: str
    workers: int
    threads: int
    gpus: float
    worker_bytes: int
    output_bytes: int
    rate: float | None  # samples a second of one worker, as tried here
    seconds: float | None
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the plan for a person."""
        gib, about = 1 << 30, "" if self.rows_known else " (estimate)"
        units, files = (words.counted(self.units, one, f"{one}s") for one in ("unit", "file"))
        if self.rate is None or self.seconds is None:
            pace = "unknown: the GPU was not tried"
        else:
            pace = (
                f"about {self.seconds:,.0f} s at {self.rate:,.0f} samples/s a worker (up to {TRIED} samples tried here)"
            )
        return [
            f"raw        {self.raw}",
            f"samples    {self.rows:,}{about} in {units}, {self.bytes / gib:.3f} GiB as stored",
            *(f"encoder    {band}" for band in self.bands),
            f"where      {self.kind}: {self.why}",
            f"workers    {self.workers} with {self.threads} thread(s)"
            + (f" and {self.gpus:g} GPU" if self.gpus else ""),
            f"memory     {self.worker_bytes / gib:.3f} GiB a worker beside the libraries (estimate)",
            f"output     {self.output_bytes / gib:.3f} GiB of features in {files}",
            f"time       {pace}",
            *(f"note       {note}" for note in self.notes),
        ]


def make_plan(config: EmbedConfig, prepared: Prepared) -> EmbedPlan:
    """Return the plan; the first samples of the first unit are read, decoded and encoded, and thrown away."""
    job, built = prepared.job, prepared.built
    rows = job.source.about()
    rate = None if prepared.gpus else _rate(job, built)
    width = {"float16": 2, "float32": 4}[config.dtype]
    weights = sum(4 * encoder.parameters + 8 * encoder.gradient for encoder in built.encoders)  # and the sketch
    batches = sum(band.batch * sample_bytes(encoder) for band, encoder in zip(built.bands, built.encoders, strict=True))
    pixels = sum(3 * e.form.size**2 for e in built.encoders if e.form and e.tower == IMAGE)
    chunks = (AHEAD + 2) * job.chunk * (pixels + job.source.bytes // max(rows, 1))
    bands = [
        f"{band.config.name} ({band.config.kind}): `{band.column}` -> `{band.name}`, {band.width:,} features, "
        f"{encoder.parameters / 1e6:,.1f} million parameters{encoder.told}, {band.batch} at a time"
        for band, encoder in zip(built.bands, built.encoders, strict=True)
    ]
    notes = []
    renamed = [f"`{old}` as `{new}`" for old, new in job.kept.items() if old != new]
    if renamed:
        notes.append(f"columns whose names the features take are kept under others: {', '.join(renamed)}")
    if not job.source.rows:
        notes.append("the number of rows is known only after reading: estimated from the first ones")
    return EmbedPlan(
        raw=f"{job.source.name} ({job.source.kind})",
        units=len(job.source.units),
        rows=rows,
        rows_known=job.source.rows is not None,
        bytes=job.source.bytes,
        bands=bands,
        kind=prepared.kind,
        why=prepared.why,
        workers=prepared.workers,
        threads=job.threads,
        gpus=prepared.gpus,
        worker_bytes=weights + batches + chunks,
        output_bytes=rows * width * sum(band.width for band in built.bands),
        rate=rate,
        seconds=None if rate is None else rows / (rate * prepared.workers),
        notes=notes,
    )


def _rate(job: Job, built: Built) -> float | None:
    """Return samples a second, of one chunk that is read, decoded and encoded here."""
    encoder = UnitEncoder(job, built.encoders)
    try:
        for unit in job.source.units:
            for rows in job.source.read(job.source, unit, encoder.columns, min(TRIED, job.chunk)):
                if rows.table.num_rows:
                    encoder.encode_rows(rows)  # the first call of a network is slow
                    start = time.perf_counter()
                    encoder.encode_rows(rows)
                    return rows.table.num_rows / (time.perf_counter() - start)
    finally:
        encoder.close()
    return None
