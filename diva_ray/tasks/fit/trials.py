"""The trials of a search: what each fold said of each, kept in storage so that a killed run goes on; their figures."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diva_ray.core.compare import NORMAL, ratio_error, wilson
from diva_ray.engine.progress import Progress
from diva_ray.errors import FitError, InputError
from diva_ray.report.words import counted
from diva_ray.tasks.fit.study import Study
from diva_ray.tasks.setup.space import Choice, Space, label, short

log = logging.getLogger("diva_ray")
FOLDS = "folds"  # folder of what every fold said
SUMS = ("rows", "weight", "error", "weight_weight", "weight_error", "error_error")
FIGURES = ("error", "standard_error", "low", "high")


@dataclass
class Record:
    """A trial: its choice, and the sums of every fold that it was judged on, in order."""

    number: int
    choice: Choice
    whole: int  # folds of a whole trial
    folds: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None
    counted: bool = True  # errors are wrong or badly ranked labels, at most 1 a row

    @property
    def complete(self) -> bool:
        """Whether every fold was judged."""
        return self.failed is None and len(self.folds) == self.whole

    @property
    def stopped(self) -> bool:
        """Whether the scheduler ended it early."""
        return self.failed is None and len(self.folds) < self.whole

    def figures(self) -> dict[str, Any]:
        """Return the error over the folds judged so far, with its standard error and 95 % interval over rows."""
        if not self.folds:
            return dict.fromkeys(FIGURES)
        return error_figures({name: sum(fold[name] for fold in self.folds) for name in SUMS}, counted=self.counted)

    @property
    def error(self) -> float:
        """The error over the folds judged so far; infinite without one."""
        return self.figures()["error"] if self.folds and self.failed is None else float("inf")

    def row(self) -> dict[str, Any]:
        """Return the trial as a row of trials.parquet."""
        choice, ridges = self.choice, [fold["ridge"] for fold in self.folds]
        return {
            "trial": self.number, "bands": label(choice.bands), "shares": label(choice.shares),
            "ridge": None if choice.ridge == "auto" else float(choice.ridge),
            "ridge_used": _geometric_mean(ridges) if ridges else None,
            "loss": choice.loss, "intercept": choice.intercept, "standardize": choice.standardize,
            "projection": choice.projection, "rule": choice.rule, "steps": choice.steps, "eta": choice.eta,
            **(self.figures() if self.failed is None else dict.fromkeys(FIGURES)), "folds": len(self.folds),
            "fold_errors": [fold["error"] / fold["weight"] for fold in self.folds],
            "seconds": sum(fold["seconds"] for fold in self.folds), "stopped": self.stopped, "failed": self.failed,
        }  # fmt: skip


def _geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if min(values) > 0 else 0.0


def error_figures(sums: dict[str, float], *, counted: bool) -> dict[str, Any]:
    """Return the weighted mean error of units (rows, or groups that leave together), its standard error over units, and
    its 95 % interval.

    The error of sum v e / sum v is that of a ratio: sum (s_u - mean w_u)^2, w and s the sums of v and v e of a unit. It
    tells how other rows would differ, not how other training rows would. The interval of errors that are counted, at
    most 1 a row, is Wilson's, of as many rows as would have that standard error: mean +- 1.96 standard errors, which
    others have (not below 0), holds the truth far less often where few are wrong, and is no interval where none is.

    References:
        Korn and Graubard 1998, Surv. Methodol. 24 (effective sample size).
    """
    mean = sums["error"] / sums["weight"]
    parts = (float(sums[name]) for name in ("error_error", "weight_error", "weight_weight", "weight"))
    error = float(ratio_error(mean, *parts))
    low, high = max(mean - NORMAL * error, 0.0), mean + NORMAL * error
    if counted:
        rows = mean * (1 - mean) / error**2 if error > 0 else sums["weight"] ** 2 / sums["weight_weight"]
        low, high = wilson(mean, float(rows))
    return {"error": mean, "standard_error": error, "low": low, "high": high}


@dataclass
class Trials:
    """Answers what the trials ask, in the order in which they ask.

    Attributes:
        resume: whether folds may be in storage already; what was judged once is not judged again.
        known: what every fold said of every choice.
        spent: seconds of folds judged by this process.
        kept: folds that were known already.
    """

    study: Study
    space: Space
    whole: int
    resume: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: Progress | None = None
    spent: float = 0.0
    kept: int = 0

    def evaluate(self, name: str, point: dict[str, Any], fold: int) -> dict[str, Any]:
        """Return a trial's error after one more fold, and whether it has failed."""
        if not self.records and self.progress is not None:
            self.progress.begin()
        if name not in self.records:
            self._tell_last()
            choice = self.space.choice(point)
            self.records[name] = Record(len(self.records), choice, self.whole, counted=counts_errors(self.study))
        record = self.records[name]
        found = self._judged(record.choice, fold)
        if "failed" in found:
            record.failed = found["failed"]
            return {"error": float("inf"), "failed": True}
        record.folds[fold:] = [found]  # a trial whose process died begins again
        if self.progress is not None:
            self.progress.add(found["rows"])
        return {"error": record.error, "failed": False}

    def _judged(self, choice: Choice, fold: int) -> dict[str, Any]:
        file = f"{FOLDS}/{choice.key()}-{fold}.json"
        folder = self.study.session.folder
        found = self.known.get(file) or (folder.read_json(file) if self.resume else None)
        if found is not None and ("failed" not in found or file in self.known):
            self.kept += 1
        else:
            found = self._judge(choice, fold)
            folder.write_json(file, found)
        self.known[file] = found
        return found

    def _judge(self, choice: Choice, fold: int) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            found: dict[str, Any] = dict(self.study.judge(choice, fold))
        except FitError as error:  # others, such as a file that is gone or a full disk, are the run's
            return {"failed": str(error)}
        seconds = time.perf_counter() - start
        self.spent += seconds
        return {**found, "seconds": seconds}

    def _tell_last(self) -> None:
        """Log the trial that has ended, and the best so far."""
        if not self.records or self.progress is None or self.progress.quiet:
            return
        last = next(reversed(self.records.values()))
        self.progress.skip(sum(fold["rows"] for fold in last.folds) * (self.whole / max(len(last.folds), 1) - 1))
        varied = ", ".join(f"{name} {short(getattr(last.choice, name))[:40]}" for name in self.space.dimensions)
        after = "" if last.complete else f" after {counted(len(last.folds), 'fold', 'folds')}"
        ended = last.failed or f"error {last.error:.4f}{after}"
        done = [one for one in self.records.values() if one.complete]
        best = f"; best {min(one.error for one in done):.4f}" if done else ""
        log.info("trial %d: %s (%s)%s", last.number, ended, varied, best)

    def end(self, points: list[dict[str, Any]] | None = None) -> list[Record]:
        """Return every trial in the order of the points, where those are known, else of their first question.

        Raises:
            InputError: none was judged on every fold.
        """
        self._tell_last()
        found = list(self.records.values())
        if points is not None:  # a trial whose process died before it asked comes last
            place = {self.space.choice(point).key(): k for k, point in reversed(list(enumerate(points)))}
            found.sort(key=lambda one: place[one.choice.key()])
            for number, one in enumerate(found):
                one.number = number
        if not any(record.complete for record in found):
            reason = next((record.failed for record in found if record.failed), "none was judged on every fold")
            raise InputError(f"tune: some trial must succeed, got {len(found)} that failed: {reason} Change `space`.")
        return found


def counts_errors(study: Study) -> bool:
    """Return whether errors are at most 1 a row, not squared errors."""
    return study.session.task in ("classification", "multilabel")


def best_of(records: list[Record]) -> Record:
    """Return the trial with the least error among those judged on every fold; of equal ones the simplest, the first."""
    whole = [record for record in records if record.complete]
    return min(whole, key=lambda one: (one.error, one.choice.rule != "none", len(one.choice.bands), one.number))


def error_of_choosing(records: list[Record]) -> float | None:
    """Return the error of choosing the best trial by all folds but one, on that one; over folds.

    The least of many errors is too good. Here a trial is chosen without the fold that judges it, so that a trial chosen
    by luck pays for it; the models have still seen each other's folds. None with one whole trial.

    References:
        Tibshirani and Tibshirani 2009, Ann. Appl. Stat. 3(2); Tsamardinos et al. 2018, Mach. Learn. 107 (bootstrap).
    """
    whole = [record for record in records if record.complete]
    if len(whole) < 2:
        return None
    error, weight = (np.array([[fold[name] for fold in one.folds] for one in whole]) for name in ("error", "weight"))
    chosen = [
        int(np.argmin(np.delete(error, k, 1).sum(1) / np.delete(weight, k, 1).sum(1))) for k in range(error.shape[1])
    ]
    folds = range(error.shape[1])
    return float(sum(error[chosen[k], k] for k in folds) / sum(weight[chosen[k], k] for k in folds))
