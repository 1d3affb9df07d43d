"""Reweight: sample weights that lower the validation error, accepted on folds that took no part, else left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diva_ray.config import ReweightConfig
from diva_ray.core.reweight import Step, best_base, best_trial
from diva_ray.engine.kernels import samples
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.derive import fit_with_room, with_errors
from diva_ray.tasks.fit.dual import for_few_rows
from diva_ray.tasks.fit.folds import try_folds
from diva_ray.tasks.fit.trusted import check_trust
from diva_ray.tasks.fit.walk import RIDGES, Walk, walk_to
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import configure, takes_table
from diva_ray.tasks.setup.checks import check_sources
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.option_checks import check_choices, check_range, check_size
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.step_paths import Path, walk_path
from diva_ray.tasks.told.by_source import ends_of, sources_of, weighed_sources
from diva_ray.tasks.told.reweighted import Weighed, figures, sheet_of, told
from diva_ray.tasks.told.written import write_samples

log = logging.getLogger("diva_ray")


@takes_table
def reweight(data: Any, *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return sample weights with less validation error than uniform ones, or the table's own weights.

    `method=safe`: steps that lower a weight to what lies within the standard error of harmless (a soft threshold on the
    derivative), drop labels that look wrong, weigh down those likelier wrong than right, or, of classes, beside that
    give a half or a fifth of the weight to rows by how unsure their class is; ridge and mean weight are kept. Which of
    these, the number of steps, and whether to change anything are chosen on outer folds that took no part in the
    derivative, by a smooth loss, row against row: the gain less half a standard error must be above 0. (The figures
    reported for what is taken come from the same folds that chose it among some thirty: a little too good.) Where no
    step is taken, a lower ridge still may be, with `ridge=auto`, if it gains three standard errors. About
    `folds * steps` derivatives with standard errors.
    `method=paper`: `steps` plain steps alpha - eta dL/dalpha (Dukler et al. 2022, eq. 14), two reads of the data each,
    reported on the same folds but accepted as they are. `method=trusted`: `safe`, with a few trusted rows as the only
    validation (`validation_weight`, 1 on them and 0 elsewhere, or `validation`, a table).

    Args:
        data: as for `diva_ray.score`.
        quiet: no progress.
        **options: `method`, `level` (a weight for every row, or one for every `source`), `steps`, `eta`, `folds`,
            `outputs`. Columns and all others are as
            for `diva_ray.score`; with types and defaults: `python jobs/reweight.py --help`.

    Returns:
        A `Result`; `.samples` has the new weights in `weight`, next to the derivative and z that led to them: those
        and all other columns (loss, margin, leverage, left-out outputs, verdicts) are of the fit before the last step.
        Score the table with the new weights (`data.weight`) for those after it.

    Raises:
        InputError: bad input or options, in one line.
    """
    config, data, loss = configure(ReweightConfig, data, options)
    return run(config, data, loss=loss, quiet=quiet)


@tidy
def run(
    config: ReweightConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False
) -> Result | Plan:
    """Return the result of a reweighting run as its config says (`jobs/reweight.py`); see `reweight`."""
    check(config)
    with begin(config, data, loss, quiet=quiet) as session:
        if config.level == "source":
            check_sources(session, "sources")
        return _finish(session, config, _weigh(session, config))


def check(config: ReweightConfig) -> None:
    """Raise for options that no table could make right."""
    check_choices(config, {"method": ("safe", "paper", "trusted"), "level": ("sample", "source")})
    check_range(config, steps=(1, 10), folds=(2, 50))
    check_size(config.eta)
    if config.method != "paper" and config.eta != ReweightConfig.eta:
        log.warning("eta: read by `method=paper` alone; the sizes of other steps are chosen on folds")
    if config.level == "source" and config.method == "paper":
        raise InputError("level: must be sample with method=paper, got source. Change `level` or `method`.")
    if config.level == "source" and not config.data.source:
        raise InputError("data.source: must name the column of sources with level=source, got none. Set `data.source`.")


def _weigh(session: Session, config: ReweightConfig) -> Weighed:
    """Return the weights of a method, tried on folds and taken on all rows."""
    runner, validating, setup = session.runner, session.scan.counts["validating"], session.setup
    if config.method == "trusted":
        check_trust(session, setup)
    rows = runner.rows
    setup = with_errors(for_few_rows(runner, setup), rows, validating, config.standard_errors)
    setup, ridge, _, _ = fit_with_room(runner, setup, config.ridge)
    path = Path(Step("plain", config.eta)) if config.method == "paper" else walk_path(setup.task, config.level)
    walk = Walk(runner, setup, ridge, path, session.scored(), session.folder)
    bare = with_errors(setup, rows, validating, "none")  # plain steps look at no standard error
    trying = replace(walk, setup=bare) if config.method == "paper" else walk
    arms, sums, folds = try_folds(trying, config.folds, config.steps)
    taken = len(arms) - len(RIDGES) if config.method == "paper" else best_trial(sums)
    if not taken and config.ridge == "auto" and config.method != "paper":
        taken = best_base(sums)  # of wrong labels a leave-one-out error makes a ridge too large
    left = walk_to(walk, arms[taken])
    if arms[taken].steps and not walk.final:
        taken = best_base(sums) if config.ridge == "auto" else 0
    return Weighed(
        arms, sums, taken, left, setup, ridge * arms[taken].ridge, ridge, folds, walk.class_dependence, walk.by_source
    )  # fmt: skip


def _finish(session: Session, config: ReweightConfig, weighed: Weighed) -> Result:
    """Write the rows with their new weights, and describe."""
    folder, runner, scan = session.folder, session.runner, session.scan
    folder.write_json("state.json", session.mark)
    runner.engine.tell(mean_weight=scan.counts["weight"] / scan.counts["rows"])
    written = write_samples(session, samples.write)
    summary = figures(session, config, weighed, written)
    sources = sources_of(weighed.setup, weighed.by_source, written)
    if sources is not None:
        sources = weighed_sources(sources, written)
        folder.write_table("sources.parquet", sources)
        summary |= {"n_sources": len(sources), "sources": ends_of(sources)}
    page = render_sheet(sheet_of(session, weighed, summary, written))
    return conclude(session, summary, page, told, worker_memory=written["max_memory"])
