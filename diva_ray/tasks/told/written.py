"""What a scoring run writes of its rows: the samples, a curated copy, an export."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial, update_wrapper
from itertools import chain, count
from typing import Any

import pyarrow as pa

from diva_ray.config import ScoreConfig
from diva_ray.data.folder import Folder
from diva_ray.data.regroup import restore_in_memory
from diva_ray.data.table import open_parquet
from diva_ray.engine.context import Kernel
from diva_ray.engine.kernels import curate as curating
from diva_ray.engine.kernels import samples
from diva_ray.engine.kernels.once import TOLD, once
from diva_ray.engine.reduce import Tally
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.fit.judge import judge
from diva_ray.tasks.setup.finish import seal
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.saved_config import write_config
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.by_source import sources_of
from diva_ray.tasks.told.export import merge_uids
from diva_ray.tasks.told.summary import summarise
from diva_ray.tasks.told.summary_words import curated_in_words

log = logging.getLogger("diva_ray")
OBJECTS = 128  # columns from which on rows are taken for encoded things that have one class, not outcomes
MOST_RANKED = 1_000_000  # rows up to which scores come to the driver to be ranked against a known truth (AUC)


def write_samples(session: Session, kernel: Any) -> Tally:
    """Write `samples/` in the order of the input; return what the shards report of their rows.

    Parts that an interrupted run has written stay as they are, and what they reported is taken over.
    """
    config, folder, runner = session.config, session.folder, session.runner
    if session.original is not None:
        folder.drop("samples")  # of a run that is resumed: in another order
    runner.engine.tell(
        folder=folder, outputs=getattr(config, "outputs", False), export=getattr(config, "export", "none"),
        rank_truth=session.scan.counts["rows"] <= MOST_RANKED,
        written=set(folder.names("samples")) if config.resume else set(),
        told=set(folder.names(TOLD)) if config.resume else set(),
    )  # fmt: skip
    kernel = kernel if runner.done is None else update_wrapper(partial(once, kernel=kernel), kernel)
    written = runner.run(kernel, "write", session.scored(), features=False, again=True)
    if session.original is not None:
        restore_order(folder, on_ray=session.plan.kind != "inline")
    return written


def restore_order(folder: Folder, *, on_ray: bool) -> None:
    """Sort `samples/` back into the order of the input and drop the position column."""
    folder.drop("samples-in-order")  # of a run that was interrupted
    if on_ray:
        from diva_ray.engine.regroup_on_ray import restore_on_ray

        restore_on_ray(folder)
    else:
        restore_in_memory(folder)
    folder.replace("samples-in-order", "samples")


def write_rows(
    session: Session, derived: Derived, *, doubt: str = "auto", kernel: Kernel = samples.write
) -> tuple[dict[str, Any], Tally, pa.Table | None]:
    """Judge every row and write `samples/` (by the kernel) and `sources.parquet`; return the summary's figures, tallies
    and sources."""
    wanted = doubt == "on" or (doubt == "auto" and sum(session.scan.widths) >= OBJECTS)
    asked = derived.form == "primal" and wanted
    if doubt == "on" and not (asked and session.task == "classification"):
        tell_no_doubt()
    rule, calibration = judge(session.runner, derived.setup, derived.tally, session.scored(), doubt=asked)
    written = write_samples(session, kernel)
    summary = summarise(session, derived, rule, calibration, written)
    sources = sources_of(derived.setup, derived.by_source, written)
    if sources is not None:
        session.folder.write_table("sources.parquet", sources)
    return summary, written, sources


def tell_no_doubt() -> None:
    """Warn that labellers' doubt is not asked though it was to be."""
    log.warning("labeller_doubt: on is read for rows of one class each, where they are no fewer than the columns")


def finish_copies(session: Session, summary: dict[str, Any]) -> None:
    """Write the curated copy and the export, where they are asked for, and tell the summary."""
    config = session.config
    assert isinstance(config, ScoreConfig)
    if config.curate != "none":
        summary["curated"] = write_curated(session, config.curate)
    if config.export == "datacomp":
        kept = session.runner.timed("export", merge_uids, session.folder)
        summary["exported"] = {"format": "datacomp", "file": "subset.npy", "rows": kept}


def add_copy(session: Session, finished: Result, action: str) -> Result:
    """Return a run that had finished without a curated copy, with one: only the pass that copies is taken."""
    folder, told = session.folder, [*finished.told]
    folder.write_json("state.json", session.mark)
    copied = write_curated(session, action)
    summary = finished.summary | {"curated": copied}
    folder.write_json("summary.json", summary)
    write_config(folder, session.config)
    told.append(curated_in_words(summary))
    return seal(replace(finished, summary=summary, told=told), session)


def write_curated(session: Session, action: str) -> dict[str, Any]:
    """Write `curated/` and `changes/` on the workers; return how many rows were kept and changed, how many classes have
    none left, and the column of weights that was written: the table's own, or the first name that no column has."""
    folder, table = session.folder, session.given
    usual = chain(("weight", "sample_weight"), (f"sample_weight_{k}" for k in count(2)))
    name = session.columns.weight or next(name for name in usual if name not in table.schema.names)
    assert isinstance(session.config, ScoreConfig)
    trusted = session.columns.validation_weight if session.config.method == "trusted" else None
    session.engine.tell(
        trusted=trusted, curate=action, table=table, scores=open_parquet(folder.location("samples")),
        weight_column=name, task=session.task, folder=folder, classes=session.setup.classes,
    )  # fmt: skip
    found = session.runner.run(curating.curate, "curate", session.scored(), features=False, again=True)
    told: dict[str, Any] = {"weight_column": name} if action == "weight" else {}
    if "before" in found:
        told["classes_lost"] = int(((found["before"] > 0) & (found["after"] == 0)).sum())
    return {"kind": action, "rows": int(found["kept"]), "changed": int(found["changed"]), **told}
