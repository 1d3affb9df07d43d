"""Penalties of bands where not all rows validate: a few of them choose by chance what all rows know."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diva_ray.core.grid import rotate
from diva_ray.core.ridge_choice import Moments, choose_ridge
from diva_ray.engine.kernels import bands
from diva_ray.engine.reduce import Tally
from diva_ray.tasks.fit.shares import Aggregated, PenaltySearch, aggregate_bands
from diva_ray.tasks.setup.session import Session

STEPS = torch.linspace(0, 1, 5, dtype=torch.float64)  # of the way from what rows that validate ask for to all rows
NOTE = (
    "Few rows choose shares by chance: the shares lie {} of the way, in the logarithms of the penalties, from what the "
    "rows that validate ask for to what all rows do; as far as the former lose no more than chance allows."
)


def some_validate(session: Session) -> bool:
    """Return whether rows may validate otherwise than they are fitted."""
    return session.config.data.validation_weight is not None or len(session.tables) > 1


def lean(search: PenaltySearch, found: Aggregated, names: list[str], starts: int, evaluations: int) -> Aggregated:
    """Return what was found, but with penalties as near to those under which all rows that are fitted lose least as the
    rows that validate let them be: under which they lose no more than under their own, but for the root of the number
    of bands in standard errors, as so many penalties fit chance. Costs another search.

    Along a straight line in the logarithms: all or nothing would leave rows that validate what chance gave them. Of
    quadratic losses with z of every penalty 2, the difference is as many standard errors. Everything else is told of
    the rows that validate.
    """
    runner = search.runner
    runner.engine.tell(validates="fitted")
    validating: Tally = runner.run(bands.validating, "count")
    all_rows = PenaltySearch(runner, search.setup, validating["weight"], validating["rows"], search.sums)
    theirs = aggregate_bands(all_rows, names, starts, evaluations)
    runner.engine.forget("validates")
    search.begin()
    penalties = [found.penalties.pow(1 - t) * theirs.penalties.pow(t) for t in STEPS]
    multiples = [found.multiple ** (1 - t) * theirs.multiple**t for t in STEPS.tolist()]
    tried = [multiple * one for multiple, one in zip(multiples, penalties, strict=True)]
    taken = choose_ridge(_moments(search, tried), errors=len(names) ** 0.5)
    if taken == 0:
        return found
    loss, gradient = search.evaluate(penalties[taken])
    wrong, without = search.wrong(tried[taken]), search.without(penalties[taken]) or found.without
    return replace(
        found, penalties=penalties[taken], multiple=multiples[taken], loss=loss, gradient=gradient, wrong=wrong,
        without=without, toward=float(STEPS[taken]),
    )  # fmt: skip


def _moments(search: PenaltySearch, candidates: list[Tensor]) -> Moments:
    """Return the moments of the left-out squared errors under every candidate's penalties: one read of the rows."""
    runner, one = search.runner, torch.ones(1, dtype=torch.float64)
    kept, parts = search.kept(list(range(len(search.widths)))), []
    for penalties in candidates:
        rotation = runner.timed("solve", rotate, search.sums, search.columns(penalties), runner.rows)
        parts.append(bands.Part(kept, runner.timed("solve", rotation.at, one, search.setup.dtype)))
    runner.engine.tell(parts=parts)
    packed: Tensor = runner.run(bands.part_moments, "bands")
    runner.engine.forget("parts")
    return Moments.unpack(packed)
