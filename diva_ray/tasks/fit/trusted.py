"""A small trusted set as the only validation: what it says of every other row, where other labels mislead alike."""

from __future__ import annotations

from diva_ray.core.reweight import Step
from diva_ray.engine.kernels import steps
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError
from diva_ray.tasks.fit.derive import Fit, fit_with_room, with_errors
from diva_ray.tasks.fit.derived import Derived, by_band
from diva_ray.tasks.fit.dual import double_if_few
from diva_ray.tasks.fit.walk import Walk
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.step_paths import Path

TRUST = 5.0  # weight of a trusted row in the fit; with few of them, more would leave the fit to them alone
PASSES = 2  # times that the others' weights follow the trusted loss
SHRINK = Step("shrink", 1.0)


def check_trust(session: Session, setup: Setup) -> None:
    """Raise unless some rows are trusted, not all, and of every class there is one."""
    config, counts = session.config, session.scan.counts
    if not (config.data.validation_weight or config.validation.given):
        raise InputError(
            "method: trusted must be told which rows to trust, got neither `data.validation_weight` nor "
            "`validation.path`. Set one of them."
        )
    if not config.validation.given and counts["validating"] >= counts["rows"]:
        raise InputError(
            f"data.validation_weight: must be 0 on rows that are not trusted, got {config.data.validation_weight} > 0 "
            "everywhere. Mark the trusted rows only."
        )
    if setup.task == "classification" and setup.classes is not None:
        session.engine.tell(setup=setup)
        validating = session.runner.run(steps.validating_by_class, "count")[0]
        without = [str(name) for name, n in zip(setup.classes.to_pylist(), validating.tolist(), strict=True) if not n]
        if without:
            raise InputError(
                f"method: trusted rows must show every class, got none for {len(without)} of {len(validating)}, such "
                f"as {without[0]!r}. Trust a row of each, or use another `method`."
            )


def derive_trusted(session: Session, fit: Fit | None = None) -> Derived:
    """Return what `derive` does, after the weights have followed the loss of the trusted rows.

    A label that is wrong in the way its neighbours' are costs nothing when it is left out; the trusted rows see it.
    Twice, weights of other rows are lowered to what lies within a standard error of harmless to the trusted ones; left
    out of a fit to what remains, a wrong label no longer finds its like. Three derivatives.

    Rows are written with the weights that they are judged under. The loss and error that are told are those before any
    weight was lowered: weights that follow the trusted rows cannot be judged by the same rows.
    """
    config, runner = session.config, session.runner
    check_trust(session, session.setup)
    setup = double_if_few(session.setup, runner.rows)
    setup = with_errors(setup, runner.rows, session.scan.counts["validating"], config.standard_errors)
    setup, ridge, _, grid = fit_with_room(runner, setup, config.ridge, fit)
    runner.engine.tell(trust=TRUST)
    walk = Walk(runner, setup, ridge, Path(SHRINK), session.scored(), session.folder)
    sums, before = walk.begin(None), []
    for _ in range(PASSES):
        before.append(walk.look(walk.solve(sums)).tally)
        (sums,), (factor,) = walk.propose(sums, (SHRINK,), kept=0)
        walk.go(factor)
    runner.engine.tell(final=(f"{walk.name}-{walk.at}", factor), common=walk.grown)
    solution = walk.solve(sums)
    tally = Tally({**walk.look(solution).tally, **{name: before[0][name] for name in ("loss", "wrong")}})
    kind = "exact" if setup.collect else "estimate"
    return Derived(
        setup, setup.dtype, ridge, solution.condition, grid, tally, by_band(setup, walk.penalty), kind, "primal",
        walk.by_source,
    )  # fmt: skip
