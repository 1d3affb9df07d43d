"""Augment: with which probability to apply each transform, leaving out an original with all its copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.config import AugmentConfig
from diva_ray.core.reweight import Step, best_trial, least_base
from diva_ray.engine.kernels import copies
from diva_ray.engine.reduce import Partial
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.derive import fit_with_room, with_errors
from diva_ray.tasks.fit.dual import for_few_rows
from diva_ray.tasks.fit.folds import outcome, try_folds
from diva_ray.tasks.fit.walk import Walk, walk_to
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import configure, takes_table
from diva_ray.tasks.setup.checks import check_sources
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.option_checks import check_range, check_size
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.step_paths import SOURCES, Path
from diva_ray.tasks.told.augmented import RULE, VALIDATED, sheet_of, told
from diva_ray.tasks.told.summary import common_figures


@takes_table
def augment(data: Any, *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return the probability of every transform: p_k = sum of the weights of its copies over all weights.

    A table holds every original under several transforms: `source` names the transform, `group` the original. The
    weights of transforms follow the derivative of the left-out loss of the originals as they are, each left out with
    all its copies, so that no copy vouches for itself; steps are accepted on outer folds of originals, as in
    `diva_ray.reweight`. Beside it stands the paper's answer (Dukler et al. 2022, "Data augmentation"): plain steps for
    every row under plain leave-one-out. About `folds * steps` derivatives with standard errors.

    Args:
        data: as for `diva_ray.score`; `diva_ray.augmented` makes such a table from pictures.
        quiet: no progress.
        **options: `source` and `group`, which are needed; `identity`, `steps`, `eta`, `folds`. Columns and all others
            are as for `diva_ray.score`; with types and defaults: `python jobs/augment.py --help`.

    Returns:
        A `Result`; `.summary["augmentations"]` maps every transform to its figures.

    Raises:
        InputError: bad input or options, in one line.
    """
    config, data, loss = configure(AugmentConfig, data, options)
    return run(config, data, loss=loss, quiet=quiet)


@tidy
def run(config: AugmentConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False) -> Result | Plan:
    """Return the result of a run as its config says (`jobs/augment.py`); see `augment`."""
    check(config)
    with begin(config, data, loss, quiet=quiet) as session:
        counts = count_copies(session, config)
        return _finish(session, config, counts, *weigh(session, config))


def check(config: AugmentConfig) -> None:
    """Raise for options that no table could make right."""
    for name in ("source", "group"):
        if not getattr(config.data, name):
            role = "transforms" if name == "source" else "originals"
            raise InputError(f"data.{name}: must name the column of {role}, got none. Set `data.{name}`.")
    check_range(config, steps=(1, 10), folds=(2, 50))
    check_size(config.eta)


def count_copies(session: Session, config: AugmentConfig) -> Tensor:
    """Return the copies of every transform; raise unless every original is there as it is, and in another form."""
    check_sources(session, "transforms")
    if session.setup.sources is not None and session.setup.sources.null_count:
        raise InputError(
            f"data.source: every row must name its transform, got null in column `{config.data.source}`. Name it, or "
            "drop such rows."
        )
    session.engine.tell(setup=session.setup, identity=config.identity)
    found = session.runner.run(copies.count, "count")
    if int(found["bare"]):
        raise InputError(
            f"data.group: every original must be there under `{config.identity}`, got {int(found['bare'])} without, "
            f"such as {found['example'][0]}. Add them, or change `identity`."
        )
    return found["copies"]


def weigh(session: Session, config: AugmentConfig) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the figures of the run, and of every transform."""
    runner, reached = session.runner, session.scan.counts["rows"]  # copies move with the original that validates
    setup = for_few_rows(runner, session.setup)
    setup = with_errors(setup, reached, reached, config.standard_errors)
    setup, ridge, _, _ = fit_with_room(runner, setup, config.ridge)
    walk = Walk(runner, setup, ridge, SOURCES, session.scored(), session.folder)
    arms, sums, folds = try_folds(walk, config.folds, config.steps)
    taken = best_trial(sums)
    ours = _looked(walk)
    walk_to(walk, arms[taken])
    weights: Tensor = runner.run(copies.weights_by_source, "weigh")
    left_out: Partial = ours[0]
    alone, paper = _paper(walk, config)
    names = setup.source_names().to_pylist()
    d, error = setup.errors_of(ours[1])
    d_alone, error_alone = setup.errors_of(alone[1])
    transforms = {
        name: {
            "probability": float(weights[k] / weights.sum()), "derivative": float(d[k]),
            "standard_error": float(error[k]), "z": float(d[k] / error[k]) if error[k] > 0 else 0.0,
            "probability_paper": float(paper[k] / paper.sum()), "derivative_leave_one_out": float(d_alone[k]),
            "z_leave_one_out": float(d_alone[k] / error_alone[k]) if error_alone[k] > 0 else 0.0,
        }
        for k, name in enumerate(names)
    }  # fmt: skip
    base = least_base(sums) if taken else 0
    v = session.scan.counts["validation"]
    figures = {
        "ridge": ridge * arms[taken].ridge, "ridge_uniform": ridge, "ridge_compared": ridge * arms[base].ridge,
        "accepted": taken > 0, "chosen": arms[taken].name.replace("sources moved", "transforms moved"),
        **{name: value for name, value in arms[taken].figures.items() if name != "moves"},
        **outcome(sums, taken, base), "folds": f"{folds} of {config.folds}",
        "loss_leave_group_out": left_out.tally["loss"] / v,
        "error_leave_group_out": left_out.tally["wrong"] / v, "error_leave_one_out": alone[0].tally["wrong"] / v,
    }  # fmt: skip
    return figures, transforms


def _looked(walk: Walk) -> tuple[Partial, Tensor]:
    """Return the left-out sums under the table's weights and the contributions by source."""
    left = walk.look(walk.solve(walk.begin(None)))
    return left, walk.by_source


def _paper(walk: Walk, config: AugmentConfig) -> tuple[tuple[Partial, Tensor], Tensor]:
    """Return what plain leave-one-out says of the originals, and the weights by source that the paper's steps give.

    Copies stay in when a row is left out, and every row validates: the paper's reading.
    """
    engine = walk.runner.engine
    engine.forget("final")
    engine.tell(ungrouped=True)
    alone = _looked(walk)
    engine.tell(validation_source=None)
    plain = replace(walk, path=Path(Step("plain", config.eta)), setup=with_errors(walk.setup, 0, 0, "none"))
    sums = plain.begin(None)
    for _ in range(config.steps):
        sums = plain.move(plain.solve(sums))
    engine.tell(final=(f"{plain.name}-{plain.at}", 1.0))
    weights: Tensor = walk.runner.run(copies.weights_by_source, "weigh")
    engine.forget("ungrouped")
    return alone, torch.as_tensor(weights)


def _finish(
    session: Session, config: AugmentConfig, counts: Tensor, figures: dict[str, Any], found: dict[str, dict[str, Any]]
) -> Result:
    """Describe."""
    folder = session.folder
    folder.write_json("state.json", session.mark)
    for row, n in zip(found.values(), counts.tolist(), strict=True):
        row["n"] = n
    summary = {
        **common_figures(session, session.setup, figures["ridge"]), **figures,
        "identity": config.identity, "augmentations": found,
        "rule": RULE.format(loss=VALIDATED[session.validation]),
    }  # fmt: skip
    folder.write_json("augmentations.json", found)
    folder.write_table(
        "transforms/part-00000.parquet", pa.Table.from_pylist([{"transform": k, **v} for k, v in found.items()])
    )
    return conclude(session, summary, render_sheet(sheet_of(session, summary)), told, "transforms")
