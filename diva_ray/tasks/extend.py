"""Extend: which rows of a pool to add to a table, and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diva_ray.config import ExtendConfig
from diva_ray.engine.kernels import selected
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.enroll import enroll
from diva_ray.tasks.fit.extension import Extension
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import configure, path_of, takes_table
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.option_checks import check_choices, check_least, check_range
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.told.extended import chosen_first, figures, sheet_of
from diva_ray.tasks.told.extended_words import told


@takes_table
def extend(data: Any, pool: Any, *, new_classes: str = "error", quiet: bool = False, **options: Any) -> Result | Plan:
    """Return which rows of a pool to add to a table, ranked, with the error that every amount leads to.

    In rounds: the table's rows are left out one by one from the fit to table and chosen rows; every pool row gets its
    derivative, and a probability that its label is right under that fit. `method=balanced` takes rows whose label is
    probably right (a coin with that probability, see `core.choose`), at random within a class, those whose class the
    fit is unsure of more often, classes in proportion: better than chance, and far better on a noisy pool.
    `method=paper` takes the most negative derivatives (Dukler et al. 2022, section 4). Without `budget` it ends when no
    remaining row is likely right (paper: has a negative derivative); `balanced` also when the left-out error of the
    table has risen beyond chance: the rounds since it was least are then given back.
    A round costs one derivative of the table and one read of the pool, n p^2 operations (two reads where it finds fewer
    rows than it sought); a shard is read again only when a chosen row's features were not kept. The pool's features are
    never all in memory.

    Args:
        data: the table, as for `diva_ray.score`.
        pool: rows to choose from, with the same columns; their weights count once they are chosen.
        new_classes: what to do with labels that the table does not have: error, or allow.
        quiet: no progress.
        **options: `budget`, `rounds`, `method`, `class_weights`. Columns and all others are as
            for `diva_ray.score`; with types and defaults: `python jobs/extend.py --help`.

    Returns:
        A `Result`; `.samples` are the chosen rows: id, rank (0 first), round, derivative, z, label,
        label_score, and the weight to fit with (`class_weights`).

    Raises:
        InputError: bad input or options, in one line.
    """
    options["pool"] = {"new_classes": new_classes}
    path = path_of(pool)
    if path is not None:
        options["pool"]["path"], pool = path, None
    config, data, loss = configure(ExtendConfig, data, options, more=("new_classes",))
    return run(config, data, loss=loss, quiet=quiet, pool_rows=pool)


@tidy
def run(
    config: ExtendConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False, pool_rows: Any = None
) -> Result | Plan:
    """Return the result of an extension as its config says (`jobs/extend.py`); see `extend`."""
    check(config)
    if data is None and config.data.path is None and (config.pool.path is not None or pool_rows is not None):
        raise InputError(
            "data.path: a table of one's own must be named beside a pool of one's own, got none. Set `data.path`."
        )
    with begin(config, data, loss, quiet=quiet, pool=pool_rows) as session:
        work = Extension(session, config, *enroll(session, config))
        work.go()
        session.folder.write_json("state.json", session.mark)
        return _finish(work)


def check(config: ExtendConfig) -> None:
    """Raise for options that no table could make right."""
    choices = {
        "method": ("balanced", "paper"),
        "class_weights": ("auto", "none"),
        "pool.new_classes": ("error", "allow"),
    }
    check_choices(config, choices)
    check_range(config, rounds=(1, 1000))
    check_least(config, {"budget": 1})


def _finish(work: Extension) -> Result:
    """Write the chosen rows, and describe."""
    session, folder = work.session, work.session.folder
    work.gauge.compare()  # before rows are written: the pass that ends the run
    work.runner.engine.tell(folder=folder, rounds=work.kept["rounds"])
    written = work.runner.run(selected.write_selected, "write", work.extents, features=False, again=True)
    summary = figures(session, work, written)
    page = render_sheet(sheet_of(session, summary, chosen_first(session, written)))
    return conclude(session, summary, page, partial(told, where=folder.location("selected")), "selected")
