"""The search for every band's penalty: the leave-one-out loss as their function, its starts, and fits to some bands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.bands import Descent, band_slices, descend, penalty_of_columns, shares_of
from diva_ray.core.grid import default_ridges, rotate
from diva_ray.core.ridge import FitSums, solve
from diva_ray.engine.kernels import bands, passes
from diva_ray.engine.setup import Setup
from diva_ray.errors import FitError
from diva_ray.tasks.fit.derive import run_with_room, solve_in_range, tell_solution
from diva_ray.tasks.fit.derived import by_band
from diva_ray.tasks.setup.runner import Runner

log = logging.getLogger("diva_ray")

FAR = 1e3  # how far above its own ridge a band's penalty starts that is to take no part
FEW_BANDS = 8  # up to which each band alone is a start
EDGE = 1e-6  # how near a penalty is to the least one tried that counts as there
ALIKE = 1 + 1e-4  # how near losses are that count as equal
AROUND = torch.logspace(-1, 1, 9, dtype=torch.float64)  # ridges tried around the penalties found
MULTIPLES = torch.logspace(-1.5, 1, 11, dtype=torch.float64)  # likewise, where errors of classes are counted


@dataclass(frozen=True)
class Fitted:
    """A fit to some bands, at the ridge with the least left-out squared error.

    Attributes:
        ridge: in units of the pattern it was sought along.
        loss: mean left-out squared error; `wrong`: summed counted errors.
    """

    ridge: float
    loss: float
    wrong: float


class PenaltySearch:
    """The mean left-out squared error of a fit to every band, as a function of their penalties.

    `validation`: the sum of the validation weights, `validating`: of how many rows.
    `sums`: the fit sums of all bands and pairs of bands, the only ones ever needed, where they are known already.

    Squared error whatever the loss, as for the ridge: cross-entropy of raw outputs prefers no ridge at all.
    """

    def __init__(
        self, runner: Runner, setup: Setup, validation: float, validating: float, sums: FitSums | None = None
    ) -> None:
        self.runner, self.total, self.validating = runner, validation, validating
        self.setup = replace(setup, loss="squared", vectors=0, collect=False)
        self.widths, self.first = setup.scale.widths, int(setup.scale.intercept)
        self.seen: dict[tuple[float, ...], tuple[float, Tensor, float]] = {}
        self.begin()
        self.sums: FitSums = self.runner.run(passes.fit, "fit") if sums is None else sums

    def begin(self) -> None:
        """Have the workers compute for this search from now on."""
        self.runner.engine.forget("rows", "scored", "targets")
        self.runner.engine.tell(setup=self.setup)

    def columns(self, penalties: Tensor) -> Tensor:
        """Return the penalty of every column."""
        return penalty_of_columns(penalties, self.widths, self.first)

    def evaluate(self, penalties: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its derivative by every band's penalty: a solve, and one pass (half a derivative).

        Products are in float64 from where float32 would lose the answer.
        """
        return self._known(penalties)[:2]

    def wrong(self, penalties: Tensor) -> float:
        """Return the summed counted errors there."""
        return self._known(penalties)[2]

    def _known(self, penalties: Tensor) -> tuple[float, Tensor, float]:
        """Return the same, and the summed counted errors."""
        key = tuple(penalties.tolist())
        if key not in self.seen:
            self.seen[key] = self._evaluate(penalties)
        return self.seen[key]

    def _evaluate(self, penalties: Tensor) -> tuple[float, Tensor, float]:
        runner = self.runner
        solution = solve_in_range(runner, self.setup, self.sums, self.columns(penalties))
        if solution is not None:
            tell_solution(runner, solution, self.setup.dtype)
            left = run_with_room(runner, self.setup, passes.leave_one_out, "leave-out")
            if left is not None:
                _, gradient = runner.timed("solve", solve_adjoint, solution, left.sums)
                tally = left.tally
                return tally["loss"] / self.total, by_band(self.setup, gradient) / self.total, float(tally["wrong"])
        self.setup = replace(self.setup, dtype=torch.float64)
        self.begin()
        self.sums = self.runner.run(passes.fit, "fit")
        return self._evaluate(penalties)

    def fits(self, subsets: list[list[int]], penalties: Tensor | None) -> tuple[list[Fitted], list[Tensor]]:
        """Return the best fit to every subset of bands, and the ridges tried: one read of the rows for all of them.

        Ridges alike on all of a subset's bands, over the default grid; or, with `penalties`, multiples of those.
        """
        parts, found = self._tried(subsets, penalties, AROUND)
        return [self._best(part.family.ridges, losses) for part, losses in zip(parts, found, strict=True)], [
            part.family.ridges[torch.isfinite(losses[0])] for part, losses in zip(parts, found, strict=True)
        ]

    def multiple(self, penalties: Tensor) -> tuple[float, float]:
        """Return the multiple of the penalties nearest to 1 under which left-out classes are wrong no more often than
        under the best, but for one standard error, and the summed counted errors there; 1 where classes are not the
        task. One read.

        Squared error shrinks the outputs of many classes more than their order bears. A one-standard-error rule
        (Breiman et al. 1984): few rows prove nothing.
        """
        if self.setup.task != "classification":
            return 1.0, self._known(penalties)[2]
        (part,), (losses,) = self._tried([list(range(len(self.widths)))], penalties, MULTIPLES)
        wrong, least = losses[1], float(losses[1].min())
        rate = least / self.total
        error = self.total * (rate * max(1 - rate, 0.0) / self.validating) ** 0.5
        alike = torch.nonzero(wrong <= least + error).squeeze(1)
        taken = alike[part.family.ridges[alike].log().abs().argmin()]
        return float(part.family.ridges[taken]), float(wrong[taken])

    def without(self, penalties: Tensor) -> list[Fitted] | None:
        """Return the best fits without each band, under multiples of its penalties; of two bands None: then the other
        is alone."""
        count = len(self.widths)
        subsets = [[k for k in range(count) if k != m] for m in range(count)]
        return self.fits(subsets, penalties)[0] if count > 2 else None

    def _tried(
        self, subsets: list[list[int]], penalties: Tensor | None, multiples: Tensor
    ) -> tuple[list[bands.Part], Tensor]:
        """Return a part for every subset, and its left-out squared and counted errors, (parts, 2, ridges)."""
        slices = band_slices(self.widths, self.first)
        pattern = self.columns(torch.ones(len(slices), dtype=torch.float64) if penalties is None else penalties)
        parts = []
        for subset in subsets:
            kept = self.kept(subset)
            sums, rows = self.sums.columns(kept), self.runner.rows
            rotation = self.runner.timed("solve", rotate, sums, pattern[kept], rows)
            ridges = default_ridges(rotation, rows) if penalties is None else multiples
            parts.append(bands.Part(kept, self.runner.timed("solve", rotation.at, ridges, self.setup.dtype)))
        self.runner.engine.tell(parts=parts)
        found: Tensor = self.runner.run(bands.part_losses, "bands")
        self.runner.engine.forget("parts")
        return parts, found

    def kept(self, subset: list[int]) -> Tensor:
        """Return the columns of some bands, the intercept first."""
        slices = band_slices(self.widths, self.first)
        chosen = (slices[m] for m in subset)
        return torch.cat([torch.arange(self.first), *(torch.arange(part.start, part.stop) for part in chosen)])

    def alone(self, names: Sequence[str], ridges: Sequence[float], shares: Tensor) -> dict[str, bands.Alone]:
        """Return fits to each band alone, in the coordinates of bands that are scaled by the root of their share."""
        fits, dtype = {}, self.setup.dtype
        for m, (name, ridge) in enumerate(zip(names, ridges, strict=True)):
            kept = self.kept([m])
            penalty = self.columns(torch.full_like(shares, ridge))[kept]
            solution = self.runner.timed("solve", solve, self.sums.columns(kept), penalty)
            root = torch.where(penalty > 0, shares[m].sqrt(), torch.ones_like(penalty))[:, None]
            fits[name] = bands.Alone(
                kept, (solution.W / root).to(dtype), (solution.Linv.T / root).to(dtype).contiguous()
            )
        return fits

    def _best(self, ridges: Tensor, losses: Tensor) -> Fitted:
        k = int(losses[0].argmin())
        if not bool(torch.isfinite(losses[0, k])):
            raise FitError(
                f"ridge: some ridge must leave every leverage below 1, got none up to {float(ridges[-1]):.3g}. Add "
                "samples, or let fewer bands take part (`data.features`)."
            )
        return Fitted(float(ridges[k]), float(losses[0, k]) / self.total, float(losses[1, k]))


@dataclass(frozen=True)
class Aggregated:
    """What a search found.

    Attributes:
        penalties: of every band, (bands,); `gradient`: dL/dLambda there, of the mean loss.
        multiple: of the penalties, under which fewer left-out classes are wrong (`PenaltySearch.multiple`).
        loss: mean left-out squared error there; `wrong`: summed counted errors, under that multiple.
        together: all bands under one ridge (plain concatenation); `alone`, `without`: every band.
        descents: the starts, in the order they were tried.
        least: the least penalty of every band that was tried, (bands,).
        toward: how far the penalties lie from those of the rows that validate to those of all rows, see
            `few_validate.lean`.
    """

    penalties: Tensor
    multiple: float
    gradient: Tensor
    loss: float
    wrong: float
    together: Fitted
    alone: list[Fitted]
    without: list[Fitted]
    descents: list[Descent]
    evaluations: int
    least: Tensor
    toward: float = 0.0

    def warn_of_ends(self, names: list[str]) -> None:
        """Warn where a penalty lies at the least that was tried."""
        at = [
            name
            for name, found, low in zip(names, self.penalties, self.least, strict=True)
            if found <= (1 + EDGE) * low
        ]
        if at:
            log.warning(
                "the penalty of `%s` lies at the least that was tried: a smaller one may do better. Are its columns of "
                "different units?", "`, `".join(at),
            )  # fmt: skip


def aggregate_bands(search: PenaltySearch, names: list[str], starts: int, evaluations: int) -> Aggregated:
    """Return the penalties with the least left-out squared error that descents from several starts find.

    Args:
        starts: descents at most, from the starts with the least loss.
        evaluations: of a descent, at most.
    """
    count = len(names)
    (together, *alone), tried = search.fits(_all_and_each(count), None)
    own = torch.tensor([fit.ridge for fit in alone], dtype=torch.float64)
    low, high = bounds(own, together, tried)
    begin = [("own penalties", own), ("equal penalties", torch.full_like(own, together.ridge))]
    for m, name in enumerate(names) if count <= FEW_BANDS else ():
        far = FAR * own
        far[m] = own[m]
        begin.append((f"{name} alone", far))
    descents: list[Descent] = []
    for name, start in _promising(search, begin, starts, low, high):
        descents.append(descend(search.evaluate, start, low, high, evaluations, name, descents))
        if not search.runner.quiet:
            last = descents[-1]
            log.info("from %s: squared error %.6f after %d evaluations", name, last.loss, len(last.losses))
    best = most_even(descents)
    loss, gradient = search.evaluate(best.penalties)
    without = search.without(best.penalties) or alone[::-1]
    multiple, wrong = search.multiple(best.penalties)
    return Aggregated(
        best.penalties, multiple, gradient, loss, wrong, together, alone, without, descents, len(search.seen), low
    )


def most_even(descents: list[Descent]) -> Descent:
    """Return the descent that ended best; of those that ended alike (bands may say the same) the most even shares."""
    least = min(one.loss for one in descents)
    alike = [one for one in descents if one.loss <= ALIKE * least]
    return max(alike, key=lambda one: float(torch.special.entr(shares_of(one.penalties)[1]).sum()))


def _all_and_each(count: int) -> list[list[int]]:
    return [list(range(count)), *([m] for m in range(count))]


def bounds(own: Tensor, together: Fitted, tried: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least and the largest penalty of every band: from where no leverage reaches 1, to far out of use.

    The least ridge `tried` for all bands is in the unit of the largest where they are not standardised: of one on a
    smaller scale, that of its fit alone.
    """
    least = torch.tensor([min(float(tried[0][0]), float(ridges[0])) for ridges in tried[1:]], dtype=torch.float64)
    return least, 1e2 * FAR * own.clamp_min(together.ridge)


def refine(search: PenaltySearch, found: Aggregated, evaluations: int) -> tuple[Tensor, float]:
    """Return the penalties found under other sample weights, by a descent from those before and by counted errors, and
    their multiple of where the descent ended."""
    (together, *_), tried = search.fits(_all_and_each(len(found.penalties)), None)
    low, high = bounds(found.penalties, together, tried)
    descent = descend(search.evaluate, found.penalties, low, high, evaluations)
    multiple, _ = search.multiple(descent.penalties)
    return multiple * descent.penalties, multiple


def _promising(
    search: PenaltySearch, begin: list[tuple[str, Any]], starts: int, low: Tensor, high: Tensor
) -> list[tuple[str, Any]]:
    """Return the starts with the least loss, in that order; one evaluation each where there are more than asked for."""
    if len(begin) <= starts:
        return begin
    losses = [search.evaluate(start.clamp(low, high))[0] for _, start in begin]
    order = sorted(range(len(begin)), key=losses.__getitem__)
    return [begin[k] for k in order[:starts]]
