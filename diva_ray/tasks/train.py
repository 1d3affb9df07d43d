"""Train: SGD on the weighted rows, and its test error beside uniform weights, deleted rows and the closed form."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa

from diva_ray.config import FitConfig, ReweightConfig, TrainConfig
from diva_ray.data.folder import Folder
from diva_ray.data.given import FLAGS, Given
from diva_ray.data.sources import is_ray_dataset, open_data
from diva_ray.data.table import Table
from diva_ray.engine.course import Course
from diva_ray.engine.progress import Progress
from diva_ray.engine.training import PROGRESS, SingleProcess, checkpoint, linear, train_all
from diva_ray.errors import EmptyFoldError, InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.report.words import counted
from diva_ray.tasks import reweight
from diva_ray.tasks.fit.closed import REWEIGHTED
from diva_ray.tasks.fit.course import ClosedForms, prepare_course, workers_of
from diva_ray.tasks.setup.begin import begin, open_folder, tidy
from diva_ray.tasks.setup.calls import configure, path_of, takes_table
from diva_ray.tasks.setup.datasets import from_dataset
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.manifest import fingerprint
from diva_ray.tasks.setup.opened import open_tables
from diva_ray.tasks.setup.option_checks import check_choices, check_least
from diva_ray.tasks.setup.options import check_options, import_code
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.saved_config import differing_options, refuse_differing
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.weights import check_classes, open_given
from diva_ray.tasks.setup.with_test import open_both
from diva_ray.tasks.told.trained import figures, given_in_words, told, weight_figures, write_model
from diva_ray.tasks.told.trained_page import sheet_of
from diva_ray.threads import blas_environment, of_worker

log = logging.getLogger("diva_ray")
ERRORS = pa.schema([("arm", pa.string()), ("seed", pa.int64()), ("error", pa.float64())])


@takes_table
def train(data: Any, test: Any = None, *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return the test error of a module trained by SGD under weights, beside three others, with intervals.

    Arms: `weighted`; `uniform`, every row alike, but none of weight 0 in the table; `without_flagged`, uniform without
    the rows that the run flagged; each trained `seeds` times. `closed_form` is the ridge solution under the weights,
    with the run's ridge, and `closed_form_uniform` the one with every row alike, with the ridge that the run compared
    it under; where no run tells them, both ridges are chosen by leave-one-out. Differences are like to like, SGD to
    uniform SGD and closed form to closed form, and paired: seed against seed (Student's t), and test row against test
    row. Nothing is compared where the weights are alike. `summary["warnings"]` says where training did not converge.
    A row of weight w adds w times its loss to its step; weights are brought to mean 1 over the rows that take part.
    `data.offset` is added to the module's outputs (of classes: to its logits), and to those of the closed form.
    Workers read their own rows, and write a checkpoint after every epoch from which a killed run goes on.

    Args:
        data: as for `diva_ray.score`.
        test: as `data`, with the same columns.
        quiet: no progress.
        **options: `weights`, the result of `reweight` or `score`, or the folder of such a run (or auto); `module`, a
            callable (n_features, n_outputs) -> torch.nn.Module; `flag`, `epochs`, `batch_size`, `learning_rate`,
            `momentum`, `weight_decay`, `seeds`, `window`. Columns and all others are as
            for `diva_ray.score`; with types and defaults: `python jobs/train.py --help`.

    Returns:
        A `Result`; `.samples` has a row for every model: arm, seed, error.

    Raises:
        InputError: bad input or options, in one line.
    """
    path = path_of(test)
    if path is not None:
        options["test"], test = {"path": path}, None
    build = options.pop("module", None)
    if build is not None:
        options["module"] = build if isinstance(build, str) else "callable"
    config, data, loss = configure(TrainConfig, data, options)
    build = None if isinstance(build, str) else build
    return run(config, data, loss=loss, quiet=quiet, test_rows=test, build=build)


@tidy
def run(
    config: TrainConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False, test_rows: Any = None,
    build: Callable | None = None,
) -> Result | Plan:  # fmt: skip
    """Return the result of a training run as its config says (`jobs/train.py`); see `train`."""
    check_options(config)
    config.weights = None if config.weights == "none" else config.weights
    check(config, loss)
    own = build is not None or config.module is not None
    build = choose_module(config, build)
    data, test, folder = open_both(config, data, test_rows)
    given = look_ahead(config, data, loss, test)
    folder = folder or open_folder(config)
    if is_ray_dataset(data) and not config.plan:
        # Read once, for the weights and for training: its order may be another each time.
        config.data.path = data = from_dataset(data, folder, "table", plan=False)
        given = look_ahead(config, open_data(data, None, 0.0, config.seed), loss, test)
    if config.weights == "auto" and not config.plan:
        given = reweight_first(config, data, loss, folder, quiet=quiet)
    if config.weights == "auto" and config.plan:
        log.info(
            "weights=auto: the rows are reweighted first (see `jobs/reweight.py plan=true`), then, as planned here:"
        )
    beside = {} if given is None or config.weights == "auto" else {"weights": given.table}
    with begin(config, data, loss, quiet=quiet, pool=test, folder=folder, beside=beside) as session:
        course, trained = prepare_course(session, config, given, build, own=own)
        if trained.adopted is not None:
            log.info("weights: %s", given_in_words(weight_figures(trained.adopted, trained.factor)))
        folder.write_json("state.json", session.mark)  # not before: test rows may be mended, and the run resumed
        session.engine.close()
        go(session, course, quiet=quiet)
        return _finish(session, config, course, trained)


def check(config: TrainConfig, loss: Callable | None) -> None:
    """Raise for options that no table could make right."""
    if config.weights != "auto" and (loss is not None or config.loss != "auto"):
        raise InputError(
            f"loss: must be auto unless weights=auto, as a module is trained by cross-entropy, binary cross-entropy of "
            f"several labels, or squared error of numbers, got {config.loss if loss is None else 'a callable'}. Leave "
            "`loss` out."
        )
    check_choices(config, {"flag": FLAGS})
    check_least(config, {"epochs": 1, "batch_size": 1, "seeds": 1, "window": 1, "weight_decay": 0})
    if config.projection is not None:
        raise InputError(
            f"projection: must be none for a module, which takes features as they are, got {config.projection}. Leave "
            "`projection` out."
        )
    rate = config.learning_rate
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate != "auto" and not (number and 0 < rate < math.inf):
        raise InputError(
            f"learning_rate: must be auto or a number > 0 and finite, got {rate!r}. Change `learning_rate`."
        )
    if not config.weight_decay < math.inf:
        raise InputError(f"weight_decay: must be finite, got {config.weight_decay}. Change `weight_decay`.")
    if not 0 <= config.momentum < 1:
        raise InputError(f"momentum: must be at least 0 and below 1, got {config.momentum}. Change `momentum`.")


def choose_module(config: TrainConfig, given: Callable | None) -> Callable[..., Any]:
    """Return what builds the module: the user's callable, code that is trusted, or a linear head."""
    if given is None and config.module is None:
        return partial(linear, bias=config.intercept)
    build: Any = given if given is not None else import_code("module", str(config.module), trusted=config.trust_code)
    if not callable(build):
        raise InputError(
            f"module: must be a function (n_features, n_outputs) -> torch.nn.Module, got {config.module}. Change "
            "`module`."
        )
    return build


def look_ahead(config: TrainConfig, data: Any, loss: Callable | None, test: Table) -> Given | None:
    """Return the weights' run; raise for what footers, labels and the first ids tell, before anything is started."""
    distant = is_ray_dataset(config.validation.rows)
    if distant or not isinstance(data, Table):  # a Ray Dataset tells nothing before it is read
        return open_given(config)
    opened = open_tables(config, data, loss, test)
    if opened.task in ("classification", "multilabel"):
        check_classes(data, test, opened.columns.label)
    return open_given(config, data, opened.columns)


def reweight_first(config: TrainConfig, data: Any, loss: Callable | None, folder: Folder, *, quiet: bool) -> Given:
    """Reweight the rows into a folder of the output, unless that was done before; return the weights."""
    output = folder.location(REWEIGHTED)
    same = {field.name: getattr(config, field.name) for field in fields(FitConfig)}
    first = ReweightConfig(**{**same, "data": replace(config.data), "output": output})
    done = Folder(output)
    if done.read_json("summary.json") is None:
        log.info("weights=auto: the rows are reweighted first, in %s", output)
        try:
            reweight.run(first, data, loss=loss, quiet=quiet)
        except EmptyFoldError as error:
            raise InputError(
                f"weights: auto must have rows enough for {first.folds} outer folds to reweight them first, got a "
                f"fold without ({error.found}). Use `weights=null`, or add samples."
            ) from error
    else:
        _check_same(done, first, open_data(data, None, 0.0, config.seed) if isinstance(data, str) else data)
    found = open_given(replace(config, weights=output))
    assert found is not None
    return found


def _check_same(folder: Folder, now: ReweightConfig, table: Table) -> None:
    """Raise if other rows were reweighted, or with other options."""
    before = folder.read_config()
    wanted = {name: value for name, value in asdict(now).items() if name not in ("output", "resume", "plan", "cluster")}
    differing = differing_options(before, json.loads(json.dumps(wanted, default=str)))
    changed = folder.read_json("state.json")["data"][0] != fingerprint(table)
    refuse_differing(folder, differing, ["data.path"] * changed, "weights")


def go(session: Session, course: Course, *, quiet: bool) -> None:
    """Train, in this process or on Ray, with progress."""
    rows, folder = course.table.rows, course.folder
    before = sum(len((folder.read_arrays(checkpoint(*model)) or {"loss": ()})["loss"]) for model in course.models)
    progress = Progress("train", (len(course.models) * course.epochs - before) * rows, quiet=quiet)
    done = [before]
    workers = 1 if session.plan.kind == "inline" else workers_of(session, course)
    begun = folder.read_json(PROGRESS) if before else None
    if begun and begun["workers"] != workers:
        log.warning(
            "resume: %s trained so far, %s from here: each draws batches from its own rows, so models are those of "
            "neither number", counted(begun["workers"], "worker", "workers"), workers,
        )  # fmt: skip

    def told(report: dict[str, Any]) -> None:
        if report.get("done", 0) > done[0]:
            progress.add((report["done"] - done[0]) * rows)
            done[0] = report["done"]

    if session.plan.kind == "inline":
        train_all(course, SingleProcess(told))
    else:
        from diva_ray.engine.trainer import run_on_ray

        environment = of_worker(course.threads)
        environment |= blas_environment() if session.plan.kind == "local" else {}
        run_on_ray(course, workers, environment, told)
        told({"done": len(course.models) * course.epochs})
    session.runner.seconds["train"] = progress.close()


def _finish(session: Session, config: TrainConfig, course: Course, trained: ClosedForms) -> Result:
    """Write the model and the errors, and describe."""
    folder = session.folder
    write_model(session, config, course)
    summary = figures(session, config, course, trained)
    errors = [
        {"arm": arm["name"], "seed": seed, "error": error}
        for arm in summary["arms"]
        for seed, error in zip([None] if arm["name"] in course.closed else course.seeds, arm["per_seed"], strict=True)
    ]
    folder.write_table("errors/part-00000.parquet", pa.Table.from_pylist(errors, ERRORS))
    page = render_sheet(sheet_of(session, config, course, summary))
    return replace(conclude(session, summary, page, told, "errors"), on_ray=False)
