"""Score: the dataset derivative of every sample, which are detrimental, which labels look wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diva_ray.config import DataConfig, ScoreConfig
from diva_ray.engine.kernels.uids import check_uids
from diva_ray.errors import InputError
from diva_ray.report.sheet import render_sheet
from diva_ray.tasks.fit.derive import Fit, derive
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.fit.increment import Keeper, figures_of
from diva_ray.tasks.fit.trusted import derive_trusted
from diva_ray.tasks.pairs import score_pairs
from diva_ray.tasks.setup.begin import begin, tidy
from diva_ray.tasks.setup.calls import ARRAYS, configure, takes_table
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.option_checks import check_choices
from diva_ray.tasks.setup.plan import Plan
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.scored import sheet_of
from diva_ray.tasks.told.summary_words import told
from diva_ray.tasks.told.written import add_copy, finish_copies, tell_no_doubt, write_rows


@takes_table
def score(data: Any, *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return the dataset derivative of every sample, with its standard error and verdicts.

    The derivative is dL/dalpha of L = sum_i v_i loss_i, the leave-one-out loss of a ridge fit to the features: > 0
    means that more weight on the sample raises the validation loss. Exact (closed form), 4 n p^2 operations. Standard
    errors are exact up to 10,000 validation rows and estimated from 8 to 32 sign vectors beyond.

    Args:
        data: Parquet path, folder, glob or URI; Ray Dataset; Arrow table; DataFrame; or a mapping of arrays such as
            {"features": X (n, d), "label": y (n,)}; the `Result` of `embed` or `curate`: its rows.
        quiet: no progress.
        **options: names of columns: `features` (one or several bands), `label`, `id`, `weight`, `validation_weight`,
            `group`, `source`, `offset`, `show`, `truth`. Of the fit: `task`, `loss` (a name, or a callable
            (outputs (n, c), targets) -> values (n,)), `ridge`, `shares`, `intercept`, `standardize`, `projection`,
            `precision`, `standard_errors`, `seed`, `validation` (a separate table, as `data`; then there is no
            leave-one-out). Of the run: `output` (folder or URI, new or empty; by default a temporary one, which stays),
            `cluster` (auto, inline, local, ray, or a mapping such as {"kind": "local", "workers": 2}), `plan`,
            `resume`, `trust_code`. Of scoring: `method`, `outputs`, `curate`, `labeller_doubt`, `export`, `update`,
            `keep_sums`. Where one names a run (`update`, `shares`), its `Result` may stand. With types and defaults:
            `python jobs/score.py --help`.

    Returns:
        A `Result` with `.samples`, `.summary` and `.write(folder)`; a `Plan` if `plan=True`.

    Raises:
        InputError: bad input or options, in one line.

    References:
        Dukler et al., DIVA: Dataset Derivative of a Learning Task, ICLR 2022, Prop. 1 and 3.
    """
    config, data, loss = configure(ScoreConfig, data, options)
    return run(config, data, loss=loss, quiet=quiet)


@tidy
def run(config: ScoreConfig, data: Any = None, *, loss: Callable | None = None, quiet: bool = False) -> Result | Plan:
    """Return the result of a scoring run as its config says (`jobs/score.py`); see `score`."""
    check(config)
    with begin(config, data, loss, quiet=quiet) as session:
        if session.finished is not None:
            return add_copy(session, session.finished, config.curate)
        if config.export == "datacomp":
            session.runner.run(check_uids, "check uids", session.scored())
        if session.task == "pairs":
            if config.labeller_doubt == "on":
                tell_no_doubt()
            return score_pairs(session)
        keeper = Keeper(session) if session.cut_bits is not None else None
        fit = keeper.fit if keeper else None
        derived = derive_trusted(session, fit) if config.method == "trusted" else derive_all(session, fit)
        session.folder.write_json("state.json", session.mark)
        return _finish(session, config, derived, keeper)


def check(config: ScoreConfig) -> None:
    """Raise for options that no table could make right."""
    check_choices(config, {
        "method": ("plain", "trusted"), "labeller_doubt": ("auto", "on", "off"), "export": ("none", "datacomp"),
        "curate": ("none", "drop", "weight", "relabel"),
    })  # fmt: skip
    if config.task == "pairs" and config.method == "trusted":
        raise InputError("method: must be plain for pairs, got trusted. Change `method`.")
    if config.task == "pairs" and config.data.label not in (DataConfig().label, None):
        raise InputError(f"data.label: pairs must have none, got {config.data.label}. Leave `data.label` out.")
    if config.task == "pairs" and config.update:
        raise InputError("update: pairs keep no sums, got task=pairs. Leave `update` out.")


def derive_all(session: Session, fit: Fit | None = None) -> Derived:
    """Return the derivative of every row of a session, as its config says."""
    config, validating = session.config, session.scan.counts["validating"]
    return derive(session.runner, session.setup, config.ridge, validating, config.standard_errors, fit=fit)


def _finish(session: Session, config: ScoreConfig, derived: Derived, keeper: Keeper | None) -> Result:
    """Judge, write and describe."""
    summary, written, sources = write_rows(session, derived, doubt=config.labeller_doubt)
    summary |= figures_of(keeper, session)
    finish_copies(session, summary)
    page = render_sheet(sheet_of(session, derived, summary, written, sources))
    return conclude(session, summary, page, told, worker_memory=written["max_memory"])


@takes_table
def curate(data: Any, action: str = "drop", *, quiet: bool = False, **options: Any) -> Result | Plan:
    """Return a copy of a table, all columns, in which labels that look wrong are dropped, weighted or relabelled.

    `drop`: rows whose label looks wrong are left out; `weight`: a column of weights, the probability that the label is
    right; `relabel`: such labels are replaced by the left-out prediction, of several labels only those that are more
    likely wrong than right. Written by the workers, file by file, into `curated/`, with a list of what changed in
    `changes/`. With the options and the `output` of a finished `score`, and `resume=True`, only the copy is made: look
    at its page first. Deleting what a detector flags can hurt: `diva_ray.reweight` asks first.

    Args:
        data, quiet, options: as for `diva_ray.score`.
        action: drop, weight or relabel; also by the job's name for it, `curate`.
    """
    options = {"curate": action, **options}
    if not isinstance(options["curate"], str) or options["curate"] == "none":
        got = options["curate"] if isinstance(options["curate"], str) else type(options["curate"]).__name__
        raise InputError(f"curate: must be drop, weight or relabel, got {got}. Change `action`. {ARRAYS}.")
    config, data, loss = configure(ScoreConfig, data, options, call="curate")
    result = run(config, data, loss=loss, quiet=quiet)
    return replace(result, rows="curated") if isinstance(result, Result) else result
