"""Rounds of choosing rows of a pool."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.config import ExtendConfig
from diva_ray.core import choose, evidence, loss_verdict, pool_losses, verdict
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import pool, pool_choice, verdicts
from diva_ray.engine.reduce import Partial
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.calibrate import calibrate, calibrate_on_pool, tells_of_classes
from diva_ray.tasks.fit.class_shares import ClassShares, compare_shares, hardly_known
from diva_ray.tasks.fit.enroll import losses_on_another_scale
from diva_ray.tasks.fit.gauge import Gauge
from diva_ray.tasks.fit.rank import keys_at, rank_chosen
from diva_ray.tasks.setup.forms import NEAR, NEAR_BYTES
from diva_ray.tasks.setup.runner import Runner
from diva_ray.tasks.setup.session import Session, error_kind

log = logging.getLogger("diva_ray")

SLACK = 0.05  # of rows chosen at random by which they may be more than those chosen


@dataclass
class Extension:
    """Rounds of choosing.

    Attributes:
        taken: rows chosen so far, by class.
        shares: of classes, since the first round that knew something of labels.
        gauge: the fit to the table and what was chosen, and how good it is.
        offset: of the first verdict on a pool beside a table whose labels were taken as right.
        kept: the step of the gauge with which it ends; `best`: the one after which the error has risen beyond chance.
    """

    session: Session
    config: ExtendConfig
    extents: list[Extent]
    setup: Setup
    pool_counts: Tensor
    bare: int
    gauge: Gauge = field(init=False)
    taken: Tensor = field(init=False)
    shares: ClassShares | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    uniform_to: float = 0.0
    helping: int = 0
    reason: str = ""
    noise_rate: float = 0.0
    offset: float | None = None
    single: bool = False  # whether most rows of the table were the only ones of their class in some round
    blind: bool = False  # `single`, and the pool is as small: nothing is known of its labels
    was_blind: bool = False
    on_pool: bool = False  # `single`, and the pool's labels say how far to trust the fit
    used_up: bool = False

    @property
    def runner(self) -> Runner:
        """What runs the passes."""
        return self.session.runner

    def go(self) -> None:
        """Choose in rounds until the budget is spent, no row helps, none is left, or the error has risen."""
        total = self.helping = int(self.pool_counts.sum())
        goal = min(self.config.budget or total, total)
        self.runner.engine.tell(
            store=self.session.folder, method=self.config.method, levels=None, link=None, blind=False,
            seed=self.config.seed, uniform_seed=self.config.seed + 17,
            choices=self.setup.outputs if self._by_class else 1, uniform_slice=(0.0, 0.0),
        )  # fmt: skip
        self.taken = torch.zeros_like(self.pool_counts) if self._by_class else torch.zeros(1, dtype=torch.int64)
        self.gauge = Gauge(self.session, self.setup, self.config.ridge, self.extents)
        gives_back = self.config.method == "balanced" and self.config.budget is None  # a budget is asked for
        for k in range(self.config.rounds):
            batch = round(goal * (k + 1) / self.config.rounds) - self.gauge.chosen
            if batch < 1:
                continue
            self.gauge.measure()
            if gives_back and self.gauge.rises():
                break
            drawn = self.score(k, batch, total)
            if not self.choose(k, batch):
                break
            self.add_uniform(drawn, batch, total)
        self.gauge.measure()
        self.kept = self.gauge.steps[-1]
        self.best = self.gauge.least if self.gauge.rises() else self.kept
        if gives_back and self.best is not self.kept:
            self.kept, self.reason = self.best, f"more rows raise the {error_kind(self.session.validation)} error"
        elif self.gauge.chosen == total or self.used_up:
            self.reason = "the pool is used up"
        elif self.config.budget and self.gauge.chosen == goal:
            self.reason = "the budget is spent"
        elif self._by_class and not self.blind:
            self.reason = "no remaining label is likely right"
        else:
            self.reason = "no remaining row helps"

    @property
    def _by_class(self) -> bool:
        return self.setup.task == "classification" and self.config.method == "balanced"

    def score(self, k: int, batch: int, total: int) -> Partial:
        """Score the pool in one read; fit the rule for its labels; return this round's slice of the uniform choice."""
        engine = self.runner.engine
        self.gauge.tell_derivative()
        left, self.setup = self.gauge.left, self.gauge.setup
        self.find_lonely()
        calibrated, all_right = calibrate(self.runner, self.setup, left, self.session.scored())
        engine.forget("pool")
        if self.setup.task == "classification":
            engine.tell(new=hardly_known(left["class_n"]))
        row = self.setup.scale.width * self.setup.dtype.itemsize
        # Of the random order in which helping rows are taken, the part that this round will probably reach; however
        # many workers there are, as quotas follow what is in it.
        share = min(NEAR * batch / max(self.helping - self.gauge.chosen, 1), 1.0, NEAR_BYTES / (row * total))
        near = (-math.log1p(-share) if share < 1 else math.inf) if self.config.method == "balanced" else 0.0
        ends = self.uniform_to, (self.gauge.chosen + batch) / total
        engine.tell(uniform_slice=ends, near=near, round=k, next_step=f"chosen{k + 1}")
        shows = self.on_pool and calibrate_on_pool(self.runner, self.setup, self.extents, self.pool_counts)
        engine.tell(mean_uncertainty=self.mean_uncertainty())
        found: Partial = self.runner.run(pool.score_pool, "score pool", self.extents)
        classes = 2 if self.setup.task == "multilabel" else self.setup.outputs  # rows with a slip, and without
        histogram = found.tally["evidence"]
        if self.setup.task in ("classification", "multilabel"):
            told = shows if self.on_pool else tells_of_classes(calibrated, left["levels"], self.setup.outputs)
            rule = verdict.fit_verdict(histogram, classes, shows=told)
            if all_right:  # rows whose coin fell on wrong stay behind: what is left would have ever more of them
                self.offset = rule.offset if self.offset is None else self.offset
                rule = replace(rule, offset=self.offset)
        else:
            rule = loss_verdict.fit_loss_verdict(histogram)
            table = self.runner.run(verdicts.left_out_losses, "judge", self.session.scored(), features=False)
            rule = pool_losses.judge_against_table(rule, histogram, table)
        numbers = self.setup.task in ("regression", "vector")
        if numbers and k == 0 and (far := losses_on_another_scale(histogram, left, self.session.scan.counts)):
            log.warning("%s", far)
        self.noise_rate = rule.noise_rate if k == 0 else self.noise_rate
        scale = (found.tally["squares"] / max(found.tally["free"], 1)) ** 0.5
        engine.tell(pool_verdict=rule, derivative_scale=scale)
        return found

    def mean_uncertainty(self) -> float | None:
        """Return how unsure the classes of the table's rows are, left out; None where that says nothing, or where rows
        are not taken by it."""
        if not self._by_class or self.on_pool or self.blind:
            return None
        scored = self.session.scored()
        weight, total = self.runner.run(verdicts.total_uncertainty, "judge", scored, features=False).tolist()
        return total / weight if weight else None

    def add_uniform(self, drawn: Partial, batch: int, total: int) -> None:
        """Add as many rows chosen at random as this round has chosen: the slice that was drawn as the pool was scored,
        or, where fewer were chosen than the batch that was sought, a smaller one from another read."""
        before = self.gauge.steps[-1]["chosen"]
        end = (before + batch) / total
        if batch > (1 + SLACK) * (self.gauge.chosen - before):
            end = self.gauge.chosen / total
            self.runner.engine.tell(uniform_slice=(self.uniform_to, end))
            drawn = self.runner.run(pool.sum_uniform, "uniform", self.extents)
        self.gauge.add_uniform(drawn.sums, drawn.tally["uniform"])
        self.uniform_to = max(self.uniform_to, end)

    def find_lonely(self) -> None:
        """Tell the shards which classes vanish with their only row: left out, they say nothing of labels. Where
        they are most rows of the table, a pool's labels say how far to trust the fit; of a small one rows are chosen by
        the derivative alone."""
        if self.setup.task != "classification" or self.session.validation != "leave-one-out":
            return
        rows = self.gauge.left["class_n"]
        lonely = (rows == 1) & (self.taken == 0 if self._by_class else True)
        single = bool(rows[rows == 1].sum() > rows.sum() / 2)
        self.on_pool = single and self._by_class and int(self.pool_counts.sum()) > evidence.FEW
        self.blind = not self.on_pool and bool(rows[lonely].sum() > rows.sum() / 2)
        self.single, self.was_blind = self.single or self.on_pool or self.blind, self.was_blind or self.blind
        self.runner.engine.tell(lonely=None if self.on_pool or self.blind else lonely, blind=self.blind)

    def choose(self, k: int, batch: int) -> int:
        """Choose rows and add them to the fit; return how many: what helps first, the rest only to fill a budget."""
        engine = self.runner.engine
        if self.shares is None and self.setup.task == "classification" and not self.blind:
            given, weigh = None if self._by_class else self.pool_counts, self.config.class_weights == "auto"
            self.shares = compare_shares(self.runner, self.extents, given, weigh=self._by_class and weigh)
        engine.tell(near_only=False)
        helping, rest = self.runner.run(pool_choice.count_choices, "choose", self.extents, features=False)
        self.helping = int(helping.sum()) + self.gauge.chosen
        self.used_up = not int(helping.sum() + rest.sum())
        first = choose.quotas(helping, batch, self.taken)
        second = torch.zeros_like(first)
        if self.config.budget is not None:
            second = choose.quotas(rest, batch - int(first.sum()), self.taken + first)
        if not int(first.sum() + second.sum()):
            return 0
        if self.config.method == "balanced" and not self.blind:  # else all are read again that are chosen
            engine.tell(near_only=True)
            near, _ = self.runner.run(pool_choice.count_choices, "choose", self.extents, features=False)
            engine.tell(near_only=bool((near >= first).all()))
        self.taken = self.taken + first + second
        limits = {kind: (self.last_keys(kind, wanted), wanted) for kind, wanted in ((0, first), (1, second))}
        engine.tell(limits=limits, again=False)
        found: Partial = self.runner.run(pool_choice.take, "take", self.extents, features=False)
        again = [extent for extent in self.extents if extent.index in set(found.tally["missing"])]
        if again:
            engine.tell(again=True)
            found = found + self.runner.run(pool_choice.take, "take", again)
        engine.tell(pool_step=f"chosen{k + 1}")
        count = int(found.tally["chosen"])
        rank_chosen(self.runner, self.extents, count, self.gauge.chosen)
        self.gauge.add(k + 1, found.sums, count, int(first.sum()))
        return count

    def last_keys(self, kind: int, wanted: Tensor) -> Tensor:
        """Return the key of the last row to take of every class."""
        self.runner.engine.tell(kind=kind)
        return keys_at(self.runner, pool_choice.count_bytes, "choose", self.extents, wanted)
