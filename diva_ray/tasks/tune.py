"""Tune: Ray Tune over what has no exact gradient, every trial on the same loaded shards and fit sums."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diva_ray.config import TuneConfig
from diva_ray.data.sources import is_ray_dataset
from diva_ray.data.table import Table
from diva_ray.engine.progress import Progress
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.folds import check_folds
from diva_ray.tasks.fit.study import Study
from diva_ray.tasks.fit.trials import FOLDS, Record, Trials, best_of, counts_errors, error_figures
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import configure, path_of, takes_table
from diva_ray.tasks.setup.checks import check_columns_held
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.opened import open_tables
from diva_ray.tasks.setup.option_checks import check_choices, check_range
from diva_ray.tasks.setup.options import check_options, choose_loss
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import look_beside
from diva_ray.tasks.setup.space import MOST_TRIALS, Space, parse_space
from diva_ray.tasks.setup.weights import check_classes, check_scanned_classes
from diva_ray.tasks.setup.with_test import is_digits, open_both
from diva_ray.tasks.told.tuned import best_options, best_yaml, figures, sheet_of, told

log = logging.getLogger("diva_ray")
TABLE = "trials.parquet"


@dataclass(repr=False)
class Tuned(Result):
    """A finished search: `.trials`, one row a trial; `.best`, options of the winner for the other calls."""

    best: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def trials(self) -> pa.Table:
        """Every trial: its choice, error, standard error, interval, folds, seconds, whether it was stopped."""
        return pq.read_table(pa.BufferReader(self.folder.read(TABLE)))

    @property
    def samples(self) -> Any:
        """The trials: a search writes no rows of the table."""
        return self.trials


@takes_table
def tune(
    data: Any, space: Mapping[str, Any] | None = None, *, test: Any = None, quiet: bool = False, **options: Any
) -> Tuned | Plan:
    """Return the options with the least error on outer folds, found by Ray Tune, and how every trial did.

    A trial is a choice of bands, ridge, loss, intercept, standardisation, random projection, and of a rule for the
    weights. It is judged on each of `folds` outer folds (with a separate validation table: on folds of that) by a model
    for which ridge, weights and fit never saw the fold's labels; only the bands' means and scales are those of all
    rows. Its error is the mean over all rows, with the standard error over rows (or groups).
    Fit sums by fold are computed once for all trials: n p^2 operations a standardisation. Then a trial costs a solve,
    p^3, and one look at its fold's rows, 2 n p c in all; `ridge=auto` adds a grid pass a fold for every new set of
    columns, and a rule its own derivatives. Exact but for rounding: the sums of a choice are sub-blocks of those of all
    bands, or R'GR.
    The best of many errors is too good; `error_of_choosing` and, with a test table, `test_error` say by how much.

    Args:
        data: as for `diva_ray.score`.
        space: of every name that varies, {"choice": [...]}, {"loguniform": [low, high]}, {"uniform": [low, high]} or
            one value; names are bands, shares, ridge, loss, intercept, standardize, projection, rule, steps, eta.
        test: path, Arrow table, DataFrame, Ray Dataset or mapping of arrays with the same columns, on which the best
            trial alone is judged, fitted to all rows.
        quiet: no progress.
        **options: `search`, `scheduler`, `trials`, `reduction`, `folds`, `rule`, `steps`, `eta`. Columns and all others
            are as for `diva_ray.score`; with types and defaults: `python jobs/tune.py --help`.

    Returns:
        A `Tuned`; `diva_ray.score(data, **result.best)` uses what won (the call that `.summary["target"]` names;
        what no option of it says is in `.summary["not_in_best"]`).

    Raises:
        InputError: bad input, options or space, in one line.
    """
    path = path_of(test)
    if path is not None:
        options["test"], test = {"path": path}, None
    if space is not None:
        if not isinstance(space, Mapping):
            raise InputError(
                f"space: must be a mapping of names to values, got {space!r}, such as "
                "{'ridge': {'loguniform': [0.001, 10]}}. Change `space`."
            )
        options["space"] = dict(space)
    config, data, loss = configure(TuneConfig, data, options)
    return run(config, data, loss=loss, quiet=quiet, test_rows=test)


@tidy
def run(
    config: TuneConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False, test_rows: Any = None
) -> Tuned | Plan:
    """Return the result of a tuning run as its config says (`jobs/tune.py`); see `tune`."""
    check_options(config)
    space = check(config)
    test, folder = test_rows, None
    if config.test.path or test_rows is not None or is_digits(config, data):
        data, test, folder = open_both(config, data, test_rows)
    look_ahead(config, data, loss, test, space)
    with begin(config, data, loss, quiet=quiet, pool=test, folder=folder) as session:
        check_values(config, session.task, space)  # of a Ray Dataset nothing told the task before
        check_folds(session.runner, session.setup, config.folds, every=True)
        if session.beside():
            check_scanned_classes(session.scan.labels, look_beside(session, "test").labels, session.beside_table)
        if "none" in space.values("standardize"):
            intercept = True in space.values("intercept")
            check_columns_held(session.columns, session.scan, standardized=False, intercept=intercept)
        session.folder.write_json("state.json", session.mark)  # not before: what was wrong may be mended
        study = Study(session, config)
        trials, records = search(study, space, quiet=quiet)
        return _finish(study, space, trials, records)


def check(config: TuneConfig) -> Space:
    """Return the space; raise for options that no table could make right."""
    check_choices(config, {"search": ("random", "grid", "optuna"), "scheduler": ("none", "asha")})
    check_range(config, trials=(1, MOST_TRIALS), folds=(2, 50), reduction=(2, 50))
    space = parse_space(config)
    from diva_ray.engine.tuner import check_search

    check_search(config.search)
    return space


def look_ahead(config: TuneConfig, data: Any, loss: Callable | None, test: Any, space: Space) -> None:
    """Raise for what footers and labels tell, before anything is started."""
    if any(is_ray_dataset(d) for d in (data, config.validation.rows)):  # tells nothing before it is read
        return
    opened = open_tables(config, data, loss, test)
    check_values(config, opened.task, space)
    if isinstance(test, Table) and opened.task in ("classification", "multilabel"):
        check_classes(opened.tables[0], test, opened.columns.label)


def check_values(config: TuneConfig, task: str, space: Space) -> None:
    """Raise for a loss or a rule of the space that does not fit the task, or is code that may not run."""
    if "weigh_uncertain" in space.values("rule") and task != "classification":
        raise InputError(
            f"rule: weigh_uncertain must have one class a row to be unsure of, got task={task}. Change `space.rule` or "
            "`rule`."
        )
    for name in space.values("loss"):
        if name != config.loss:
            choose_loss(replace(config, loss=name), task, None)


def search(study: Study, space: Space, *, quiet: bool) -> tuple[Trials, list[Record]]:
    """Run every trial; passes are quiet meanwhile, and progress counts the rows on which trials are judged."""
    from diva_ray.engine.tuner import Search, connected, run_trials

    config, runner = study.config, study.session.runner
    points = space.points(config.search, config.trials, config.seed)
    order = Search(
        {name: (one.kind, one.labels()) for name, one in space.dimensions.items()}, config.search, config.scheduler,
        config.trials if points is None else len(points), points, config.folds, config.reduction, config.seed,
    )  # fmt: skip
    asked = space.size() if config.search == "grid" else config.trials
    if order.trials < asked:
        log.info("%d of %d trials: the space has no more choices that differ in effect", order.trials, asked)
    rows = study.session.scan.counts["validating"] * order.trials
    progress = Progress("trials", int(rows), quiet=quiet)
    code = callable(study.session.loss) or any(":" in name for name in space.values("loss"))
    same = config.resume and not code  # of a function nothing tells whether it is the same one
    trials = Trials(study, space, config.folds, same, progress=progress)
    runner.quiet, start = True, time.perf_counter()
    with connected(study.session.plan.kind):
        run_trials(order, trials.evaluate)
    records = trials.end(points)
    runner.quiet = quiet
    runner.seconds["trials"] = time.perf_counter() - start
    progress.close()
    return trials, records


def _finish(study: Study, space: Space, trials: Trials, records: list[Record]) -> Tuned:
    """Judge the winner on the test table, write, and describe."""
    session, config, best = study.session, study.config, best_of(records)
    extents = session.beside()
    found = study.judge(best.choice, None, extents) if extents else None
    test = None
    if found is not None:
        figures_there = error_figures(found, counted=counts_errors(study))
        test = {**figures_there, "rows": found["rows"], "ridge": found["ridge"]}
    folder, rows = session.folder, [record.row() for record in records]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    folder.write(TABLE, buffer.getvalue().to_pybytes())
    folder.write("best.yaml", best_yaml(session, config, best.choice).encode())
    folder.drop("weights")
    summary = figures(study, space, trials, records, best, test)
    result = conclude(session, summary, render_sheet(sheet_of(session, space, summary, rows)), told)
    log.info("what every fold said stays in %s", folder.location(FOLDS))
    return Tuned(summary, folder, False, result.told, best=best_options(config, best.choice))


SCHEMA = pa.schema([
    ("trial", pa.int64()), ("bands", pa.string()), ("shares", pa.string()), ("ridge", pa.float64()),
    ("ridge_used", pa.float64()), ("loss", pa.string()), ("intercept", pa.bool_()), ("standardize", pa.string()),
    ("projection", pa.int64()), ("rule", pa.string()), ("steps", pa.int64()), ("eta", pa.float64()),
    ("error", pa.float64()), ("standard_error", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
    ("folds", pa.int64()), ("fold_errors", pa.list_(pa.float64())), ("seconds", pa.float64()), ("stopped", pa.bool_()),
    ("failed", pa.string()),
])  # fmt: skip
