"""Score: the dataset derivative of every sample, which are detrimental, which labels look wrong."""

from __future__ import annotations

import datetime
import json
import logging
import os
import resource
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import torch

from diva_ray.config import DataConfig, ScoreConfig, ValidationConfig
from diva_ray.core import verdict
from diva_ray.data.regroup import restore_order
from diva_ray.engine import verdicts
from diva_ray.errors import InputError
from diva_ray.report.page import render_score_page
from diva_ray.tasks.derive import derive
from diva_ray.tasks.derived import Derived
from diva_ray.tasks.folder import Folder
from diva_ray.tasks.options import check_options, cluster_options
from diva_ray.tasks.plan import Plan
from diva_ray.tasks.result import Result
from diva_ray.tasks.session import Session, make_plan, open_session
from diva_ray.tasks.summary import fingerprint, manifest, page_of, sources_of, summarise

log = logging.getLogger("diva_ray")
MOST_RANKED = 1_000_000  # rows up to which scores come to the driver to be ranked against a known truth (AUC)
REFERENCE_TARGETS = 64  # labels of other rows that a row's own is compared with, for targets that are not classes


def score(
    data: Any,
    *,
    features: str | list[str] = "features",
    label: str = "label",
    id: str | None = None,
    weight: str | None = None,
    validation_weight: str | None = None,
    group: str | None = None,
    source: str | None = None,
    offset: str | None = None,
    show: str | None = "auto",
    truth: str | None = None,
    validation: str | None = None,
    loss: str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "auto",
    cluster: str | Mapping[str, Any] = "auto",
    output: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result | Plan:
    """Return the dataset derivative of every sample, with its standard error and verdicts.

    The derivative is dL/dalpha of L = sum_i v_i loss_i, the leave-one-out loss of a ridge fit to the features: > 0
    means that more weight on the sample raises the validation error. Exact (closed form), 4 n p^2 operations. Standard
    errors are exact up to 10,000 validation rows and estimated from eight sign vectors beyond.

    Args:
        data: Parquet path, folder, glob or URI; Ray Dataset; Arrow table; DataFrame; or a mapping of arrays such as
            {"features": X (n, d), "label": y (n,)}.
        features: column or columns; each is a band (modality).
        label, id, weight, validation_weight, group, source, offset, show, truth: columns, see `DataConfig`.
        validation: path of a separate validation table; then there is no leave-one-out.
        loss: auto, cross_entropy, squared, logistic, cosine, or a callable (outputs (n, c), targets) -> values (n,).
        cluster: auto, inline, local, ray, or fields of `ClusterConfig` such as {"kind": "local", "workers": 2}.
        output: folder or URI for the files, new or empty; None: a temporary folder.
        quiet: no progress.
        **options: any other field of `ScoreConfig` (task, ridge, precision, outputs, seed, plan, resume, ...).

    Returns:
        A `Result` with `.samples`, `.summary` and `.write(folder)`; a `Plan` if `plan=True`.

    Raises:
        InputError: bad input or options, in one line.

    References:
        Dukler et al., DIVA: Dataset Derivative of a Learning Task, ICLR 2022, Prop. 1 and 3.
    """
    known = {field.name for field in fields(ScoreConfig)}
    for name in options:
        if name not in known:
            raise InputError(
                f"score: options must be fields of ScoreConfig, got {name!r}. Choose from {', '.join(sorted(known))}."
            )
    columns = DataConfig(
        features=features, label=label, id=id, weight=weight, validation_weight=validation_weight, group=group,
        source=source, offset=offset, show=show, truth=truth,
    )  # fmt: skip
    where = cluster_options(cluster)
    config = ScoreConfig(
        data=columns, validation=ValidationConfig(path=validation), cluster=where,
        loss=loss if isinstance(loss, str) else "callable", output=output or "", **options,
    )  # fmt: skip
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        config.data.path, data = str(data), None
    return run(config, data, loss=None if isinstance(loss, str) else loss, quiet=quiet)


def run(config: ScoreConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False) -> Result | Plan:
    """Return the result of a scoring run as its config says (`jobs/score.py`); see `score`."""
    started = _now()
    check_options(config)
    config.output = config.output or os.path.join(tempfile.gettempdir(), f"diva_ray-{uuid.uuid4().hex[:12]}")
    folder = Folder(config.output)
    if not config.plan:
        folder.open_new(resume=config.resume)
    if type(data).__module__.startswith("ray.data"):
        data = _from_dataset(config, data, folder)
    plan, opened = make_plan(config, data, loss)
    if config.plan:
        return plan
    for line in plan.lines() if not quiet else ():
        log.info("%s", line)
    session = open_session(config, plan, opened, folder, quiet=quiet)
    try:
        mark = _mark(session)
        derived = derive(
            session.runner, session.setup, config.ridge, sum(table.rows for table in session.tables),
            session.scan.counts["heard"], config.standard_errors,
        )  # fmt: skip
        folder.write_json("state.json", mark)
        return _finish(session, derived, started)
    finally:
        session.engine.close()


def _finish(session: Session, derived: Derived, started: str) -> Result:
    """Judge, write and describe."""
    config, folder, runner = session.config, session.folder, session.runner
    rule, link = judge(session, derived)
    runner.engine.tell(
        verdict=rule, link=link, folder=folder, outputs=config.outputs,
        rank_truth=session.scan.counts["rows"] <= MOST_RANKED,
        written=set(folder.names("samples")) if config.resume else set(),
    )  # fmt: skip
    written = runner.run(verdicts.write, "write", session.scored())
    if session.original is not None:
        restore_order(folder, on_ray=session.plan.kind != "inline")
    summary = summarise(session, derived, rule, link, written)
    sources = sources_of(session, derived, written)
    if sources:
        folder.write_table("sources.parquet", pa.Table.from_pylist(sources))
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    summary["peak_memory_bytes"] = int(max(driver, written["max_memory"]))
    summary["driver_memory_bytes"] = int(driver)
    summary["seconds"] = {name: round(seconds, 4) for name, seconds in runner.seconds.items()}
    page = page_of(session, derived, summary, written, sources)
    folder.write("report.html", render_score_page(page).encode())
    folder.write_json("summary.json", summary)
    folder.write_yaml("config.yaml", {**asdict(config), "output": folder.path})
    folder.write_json("manifest.json", manifest(session, started, _now()))
    return Result(summary, folder, session.plan.kind != "inline")


def judge(session: Session, derived: Derived) -> tuple[verdict.Verdict, verdict.Link | None]:
    """Return the rules for verdicts, fitted to histograms of the rows."""
    runner, scored, classes = session.runner, session.scored(), derived.setup.outputs
    if session.task == "classification":
        runner.engine.tell(levels=verdict.class_levels(derived.tally["levels"]))
        link = verdict.fit_link(runner.run(verdicts.calibrate, "calibrate", scored), classes)
        runner.engine.tell(link=link)
        return verdict.fit_verdict(runner.run(verdicts.judge, "judge", scored), classes), link
    runner.engine.tell(examples=max(1, -(-REFERENCE_TARGETS // len(scored))))
    (reference,) = runner.run(verdicts.examples_of_targets, "calibrate", scored).joined()
    runner.engine.tell(reference=reference, link=None)
    return verdict.fit_loss_verdict(runner.run(verdicts.judge, "judge", scored)), None


def _mark(session: Session) -> dict[str, Any]:
    """Return what tells this run from others; raise if the folder to resume holds another one."""
    config = asdict(session.config)
    for name in ("output", "resume", "plan", "cluster"):
        config.pop(name)
    mark = {"data": [fingerprint(table) for table in session.tables], "config": config}
    mark = json.loads(json.dumps(mark, default=str))
    found = session.folder.read_json("state.json")
    if session.config.resume and found is not None and found != mark:
        differing = [key for key in mark["config"] if found["config"].get(key) != mark["config"][key]] or ["data.path"]
        raise InputError(
            f"resume: the run in {session.folder.path} must have the same data and options, got another "
            f"{', '.join(differing)}. Use the same options, or a new `output`."
        )
    return mark


def _from_dataset(config: ScoreConfig, dataset: Any, folder: Folder) -> Any:
    """Write a Ray Dataset once into shards that survive a restart; return their path, or its first rows for a plan."""
    if config.plan:
        return pa.concat_tables(dataset.limit(1000).iter_batches(batch_size=1000, batch_format="pyarrow"))
    log.info("the Ray Dataset is written to %s for the workers", folder.location("table"))
    if "table" not in folder.names(""):
        dataset.write_parquet(folder.location("table"))
    config.data.path = folder.location("table")
    return folder.location("table")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
