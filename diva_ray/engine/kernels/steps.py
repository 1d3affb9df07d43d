"""Passes of a weight step: proposals with what they change in the fit sums, and trials on rows set apart."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diva_ray.core import links, loss_verdict, losses, reweight, verdict
from diva_ray.core.products import multiply
from diva_ray.core.ridge import FitAccumulator, FitSums
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Block,
    Fold,
    Known,
    blocks,
    codes_of,
    device_of,
    fold_of,
    group_codes,
    idle,
    keep_weights,
    source_codes,
    validation_weights,
    weights,
)
from diva_ray.engine.kernels.passes import scored_rows
from diva_ray.engine.kernels.verdicts import doubtful_scores, gap_kinds, issue_flags, uncertainty, z_of
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup

GATHERED = 4_000_000  # outputs of all models of rows that are judged in one call


class Each(tuple[Any, ...]):
    """Partials side by side; `+` adds them entry by entry, `+=` in place where they can."""

    def __add__(self, other: Any) -> Each:
        return Each(a + b for a, b in zip(self, other, strict=True))

    def __iadd__(self, other: Any) -> Each:
        return Each(operator.iadd(a, b) for a, b in zip(self, other, strict=True))


def propose(shard: Shard, known: Known) -> Partial:
    """Return, for every step of `known["steps"]`, what it changes in the fit sums; keep the weights of `known["kept"]`.

    Only rows whose weight changes are multiplied: n p^2 operations times their share.
    """
    setup: Setup = known["setup"]
    before, steps = weights(shard, known), known["steps"]
    after = torch.stack([next_weights(shard, known, step, before) for step in steps])
    sums = [FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device_of(known)) for _ in steps]
    for b in blocks(shard, known):
        for k, change in enumerate((after[:, b.start : b.stop] - before[b.start : b.stop]).to(b.Z)):
            rows = torch.nonzero(change).squeeze(1)
            if len(rows):
                sums[k].add(b.Z[rows], b.Y[rows], change[rows], None if b.offset is None else b.offset[rows])
    if known["kept"] is not None:
        keep_weights(shard, known, after[known["kept"]], known["next_step"])
    totals = torch.stack([before, *after]).sum(1)
    return Partial(Each(one.sums() for one in sums), Tally(totals=totals, moved=(after != before).sum(1)))


def next_weights(shard: Shard, known: Known, step: reweight.Step, alpha: Tensor) -> Tensor:
    """Return the weights of every row after a step, before their mean is restored; of a validation table's all stay 0,
    and it need not have sources."""
    if shard.extent.held_out:
        return alpha
    scored, factor = scored_rows(shard, known), None
    if step.kind == "sources":
        codes = source_codes(shard, known["setup"])
        assert codes is not None
        factor = known["factors"][step.value][codes]
    issue = issue_flags(shard, known) if step.kind == "issues" else None
    if step.kind == "detrimental":
        issue = verdict.is_detrimental(z_of(scored), known["verdict"])
    score = doubtful_scores(shard, known) if step.kind in ("doubtful", "uncertain") else None
    mean = known["mean_uncertainty"] if step.kind == "uncertain" else 0.0  # 0 where every class is sure: no step
    unsure = uncertainty(shard, known) / mean if mean > 0 else torch.ones_like(alpha)
    after = step(alpha, scored[:, 0], scored[:, 1], issue=issue, score=score, factor=factor, unsure=unsure)
    after = torch.where(validation_weights(shard, known) > 0, alpha, after) if known.get("trust") else after
    return after.masked_fill(idle(shard, known), 0.0)


def fold_counts(shard: Shard, known: Known) -> Tensor:
    """Return, for every fold, how many rows validate in it, validate outside, and are fitted to outside, (folds, 3)."""
    found = []
    for k in range(known["folds"]):
        within = {**known, "fold": Fold(k, known["folds"])}
        inside, outside = validation_weights(shard, known) > 0, validation_weights(shard, within) > 0
        found.append([int((inside & ~outside).sum()), int(outside.sum()), int((weights(shard, within) > 0).sum())])
    return torch.tensor(found)


def validating_by_class(shard: Shard, known: Known) -> Tensor:
    """Return the rows of every class that validate, and their weight in it, (2, c)."""
    setup: Setup = known["setup"]
    v = validation_weights(shard, known)
    Y, v = codes_of(shard, setup)[v > 0], v[v > 0].double()
    found = torch.zeros(2, setup.outputs, dtype=torch.float64)
    return found.index_add_(1, Y, torch.stack([torch.ones_like(v), v]))


def changed(sums: FitSums, change: FitSums, factor: float) -> FitSums:
    """Return the fit sums after a step whose weights are multiplied by `factor` to keep their mean."""
    total = sums + change
    return FitSums(total.gram.mul_(factor), total.cross.mul_(factor))


@dataclass(frozen=True)
class FoldModels:
    """Models to be compared on rows set apart: for every fold, their solutions side by side, (p, models c)."""

    count: int  # folds in all
    solutions: dict[int, Tensor]
    rules: dict[int, verdict.Verdict | None]  # for every fold, by which labels of numbers looked wrong without it
    models: int
    bases: int  # the first of them, with which all are compared


def trial_outputs(shard: Shard, known: Known) -> Iterator[tuple[int, Block, Tensor, Tensor]]:
    """Yield (fold, block, rows, outputs (m, models, c)) of every fold's rows that validate, by the models fitted
    without it; all but the block's features on the CPU."""
    trials: FoldModels = known["trials"]
    if known.get("held_out", False) and not shard.extent.held_out:
        return
    folds = fold_of(shard, trials.count).to(device_of(known))
    for b in blocks(shard, known):
        for k, W in trials.solutions.items():
            rows = torch.nonzero((folds[b.start : b.stop] == k) & (b.v > 0)).squeeze(1)
            if len(rows):
                F = multiply(b.Z[rows], W).unflatten(1, (trials.models, -1))
                F = F if b.offset is None else F + b.offset[rows, None]
                yield k, replace(b, Y=b.Y.cpu(), v=b.v.cpu()), rows.cpu(), F.cpu()


def calibrate_trials(shard: Shard, known: Known) -> Each:
    """Return every model's calibration sums on the rows set apart."""
    none = torch.zeros(0, known["trials"].models, known["setup"].outputs)
    total = Each(links.link_sums_by_model(none, torch.zeros(0, dtype=torch.int64), torch.zeros(0)))
    outputs = ((F, b.Y[rows], b.v[rows].double()) for _, b, rows, F in trial_outputs(shard, known))
    for F, Y, v in gathered(outputs):
        total = total + Each(links.link_sums_by_model(F, Y, v))
    return total


def gathered(parts: Iterator[tuple[Tensor, ...]]) -> Iterator[list[Tensor]]:
    """Yield the parts joined until the first of their tensors has `GATHERED` entries: of few rows, calls cost most."""
    held, entries = [], 0
    for part in parts:
        held.append(part)
        entries += part[0].numel()
        if entries >= GATHERED:
            yield [torch.cat(column) for column in zip(*held, strict=True)]
            held, entries = [], 0
    if held:
        yield [torch.cat(column) for column in zip(*held, strict=True)]


def judge_trials(shard: Shard, known: Known) -> reweight.TrialSums:
    """Return the sums from which models are compared, row against row (group against group)."""
    setup: Setup = known["setup"]
    models, calibrations, loss = known["trials"].models, known["calibrations"], setup.loss_function()
    several = setup.task == "multilabel"
    if setup.loss == "logistic":  # of ridge outputs it rewards a mere change of scale; their own loss does not
        loss = losses.squared
    none = torch.zeros(0, models, dtype=torch.float64)
    bases = known["trials"].bases
    total = reweight.trial_sums(none, none, none[:, 0], torch.zeros(0, dtype=torch.int64), bases)
    codes = group_codes(shard, known)

    def outputs() -> Iterator[tuple[Tensor, ...]]:
        for k, b, rows, F in trial_outputs(shard, known):
            most = torch.full((len(rows),), math.inf, dtype=torch.float64)
            if (rule := known["trials"].rules[k]) is not None:
                kinds = gap_kinds(shard, known)
                most[:] = loss_verdict.largest_right(rule, None if kinds is None else kinds[b.start : b.stop][rows])
            yield F, b.Y[rows], b.v[rows].double(), codes[b.start : b.stop][rows], most

    for F, Y, v, code, most in gathered(outputs()):
        judged = calibrations or [None] * models
        found = [reweight.trial_losses(F[:, m], Y, judged[m], loss, several=several, most=most) for m in range(models)]
        values, wrong = (torch.stack(columns, 1) for columns in zip(*found, strict=True))
        unit = torch.unique(code, return_inverse=True)[1]
        total = total + reweight.trial_sums(values, wrong, v, unit, bases)
    return total
