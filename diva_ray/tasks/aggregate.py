"""Aggregate: the penalty and share of every band (modality), by the exact leave-one-out gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from diva_ray.config import AggregateConfig
from diva_ray.core.bands import shares_of
from diva_ray.core.reweight import best_trial
from diva_ray.engine.kernels import bands
from diva_ray.engine.reduce import Tally
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.derive import derive, fit_with_room, with_errors
from diva_ray.tasks.fit.dual import for_few_rows
from diva_ray.tasks.fit.few_validate import lean, some_validate
from diva_ray.tasks.fit.folds import check_folds, try_folds
from diva_ray.tasks.fit.shares import Aggregated, PenaltySearch, aggregate_bands, refine
from diva_ray.tasks.fit.walk import Walk, walk_to
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import configure, takes_table
from diva_ray.tasks.setup.checks import check_bands_vary
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.option_checks import check_choices, check_range
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.step_paths import LOWERED
from diva_ray.tasks.told.aggregated import figures, sheet_of, telling, told
from diva_ray.tasks.told.joint import Joint
from diva_ray.tasks.told.written import write_rows


@takes_table
def aggregate(data: Any, *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return the penalty and share of every band, and the dataset derivative of every sample under them.

    Every column of `features` is a band with a penalty Lambda_m = ridge / share_m, shares adding up to 1. The left-out
    squared error is minimised over all penalties by L-BFGS with its exact gradient, from several starts; for classes
    one multiple of them all is then taken if fewer left-out labels are wrong, beyond chance. All bands are summed once
    into one Gram matrix; an evaluation is a solve and one pass (half a derivative), the gradient costs none
    (`core.bands`). The figures of each band alone and of all others without it come from sub-blocks of that matrix.
    With `weights=joint` sample weights are found as by `diva_ray.reweight` (accepted on outer folds, else left alone)
    under those shares, and the shares once more under the weights.

    Args:
        data: as for `diva_ray.score`.
        quiet: no progress.
        **options: `weights`, `starts`, `evaluations`, `steps`, `folds`, `outputs`. Columns and all others are as
            for `diva_ray.score`; with types and defaults: `python jobs/aggregate.py --help`.

    Returns:
        A `Result`; `.summary["bands"]` has penalty, share, error_alone and error_without of every band.

    Raises:
        InputError: bad input or options, in one line.

    References:
        Dukler et al. 2022, section 3.4 (multi-modal aggregation); banded ridge: Nunez-Elizalde, Huth, Gallant 2019.
    """
    config, data, loss = configure(AggregateConfig, data, options)
    return run(config, data, loss=loss, quiet=quiet)


@tidy
def run(
    config: AggregateConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False
) -> Result | Plan:
    """Return the result of an aggregation as its config says (`jobs/aggregate.py`); see `aggregate`."""
    check(config)
    with begin(config, data, loss, quiet=quiet) as session:
        return _finish(session, config)


def check(config: AggregateConfig) -> None:
    """Raise for options that no table could make right."""
    check_range(config, starts=(1, 20), evaluations=(1, 1000), steps=(1, 10), folds=(2, 50))
    check_choices(config, {"weights": ("given", "joint")})
    for name, neutral in (("ridge", "auto"), ("shares", None)):
        if getattr(config, name) != neutral:
            raise InputError(
                f"{name}: is what jobs/aggregate.py finds, got {getattr(config, name)}. Leave `{name}` out."
            )


def _finish(session: Session, config: AggregateConfig) -> Result:
    """Search, score under what was found, and describe."""
    check_bands_vary(session)
    runner, names, counts = session.runner, list(session.columns.features), session.scan.counts
    if config.weights == "joint":
        check_folds(runner, session.setup, config.folds)  # before the descents, which take long
    setup = for_few_rows(runner, session.setup)
    session.setup = replace(setup, dtype=session.setup.dtype)
    search = PenaltySearch(runner, setup, counts["validation"], counts["validating"])
    found = aggregate_bands(search, names, config.starts, config.evaluations)
    if some_validate(session):
        found = lean(search, found, names, config.starts, config.evaluations)
    found.warn_of_ends(names)
    joint, penalties = None, found.multiple * found.penalties
    if config.weights == "joint":
        joint = weigh(session, config, search, found)
        penalties, search = joint.penalties, joint.search
    ridge, shares = shares_of(penalties)
    final = replace(session.setup, scale=session.setup.scale.shared(shares.tolist()))
    runner.engine.forget("rows", "scored", "targets")
    derived = derive(runner, final, ridge, counts["validating"], config.standard_errors)
    ridges = [fit.ridge for fit in found.alone]
    runner.engine.tell(
        alone=search.alone(names, ridges, shares), telling=telling(session, found.alone, derived.tally.get("class_n"))
    )
    session.folder.write_json("state.json", session.mark)
    summary, written, sources = write_rows(session, derived, kernel=bands.write)
    summary.update(figures(session, found, joint, summary["error"]))
    session.folder.write_json("bands.json", summary["bands"])  # {band: {penalty, share, error_alone, ...}}
    page = render_sheet(sheet_of(session, derived, found, summary, written, sources))
    where = session.folder.location("bands.json")
    return conclude(session, summary, page, partial(told, where=where), worker_memory=written["max_memory"])


def weigh(session: Session, config: AggregateConfig, search: PenaltySearch, found: Aggregated) -> Joint:
    """Try sample weights under the shares found, and search once more under those taken.

    There a row validates as much less as its weight was lowered: what is believed to be wrong must choose no penalty
    (where such rows validate in full, the ridge found is far too large). So no weight follows how unsure its row's
    class is, which is no belief in its label. The engine knows the weights from then on.
    """
    ridge, shares = shares_of(found.multiple * found.penalties)
    setup = replace(session.setup, scale=session.setup.scale.shared(shares.tolist()), dtype=search.setup.dtype)
    setup = with_errors(setup, session.scan.counts["rows"], session.scan.counts["validating"], config.standard_errors)
    setup = fit_with_room(session.runner, setup, ridge)[0]  # steps do not look at leverages
    walk = Walk(session.runner, setup, ridge, LOWERED, session.scored(), session.folder)
    arms, sums, _ = try_folds(walk, config.folds, config.steps)
    taken = best_trial(sums)
    walk_to(walk, arms[taken])
    taken = taken if walk.final else 0
    engine, penalties, multiple = session.engine, found.multiple * found.penalties, found.multiple
    engine.forget("fold", "verdict", "validation", "adjoint")
    if walk.final:
        step, factor = walk.final
        engine.tell(step=step, factor=factor, believed=walk.grown, setup=setup)
        if found.toward > 0.5:  # those that the penalties lie nearer to choose them here, too
            engine.tell(validates="fitted")
        count: Tally = session.runner.run(bands.validating, "count")
        changed = replace(session.setup, dtype=setup.dtype)
        search = PenaltySearch(session.runner, changed, count["weight"], count["rows"])
        penalties, multiple = refine(search, found, config.evaluations)
        engine.forget("believed", "validates")
    return Joint(arms, sums, taken, penalties, multiple, search)
