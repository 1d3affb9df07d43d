"""Passes over a pool: score its rows, and sum those of uniform choice; `pool_choice` chooses. Features are read again.

Between passes a pool's shard keeps what it learnt of its rows; a worker that takes a dead one's place reads and scores
them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core import choose, levels, links, loss_verdict, multilabel, verdict
from diva_ray.core import derivative as dd
from diva_ray.core.histogram import Histogram
from diva_ray.core.ridge import FitAccumulator, FitSums
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Known,
    blocks,
    codes_of,
    coordinates,
    device_of,
    targets,
    weights_after,
)
from diva_ray.engine.kernels.left_out import fitted
from diva_ray.engine.kernels.verdicts import gap_kinds, label_losses, unit_outputs, worth, wrong_losses
from diva_ray.engine.reduce import Partial, Tally, add_in_order
from diva_ray.engine.setup import Setup


@dataclass
class PoolRows:
    """What the last pass learnt of a shard's rows.

    Attributes:
        derivative: dL/dalpha, (n,).
        evidence: log-odds that the given label, or all of several, are right; of other targets the loss; (n,).
        uncertainty: how unsure the fit is of the class of every row, (n,); None where that orders nothing.
        near: rows whose features were kept, because they will probably be chosen, the features, and the offsets.
    """

    derivative: Tensor
    evidence: Tensor
    uncertainty: Tensor | None
    near: tuple[Tensor, Tensor, Tensor | None]


def taken(shard: Shard, known: Known) -> Tensor:
    """Return which rows were chosen in earlier rounds."""
    step = known.get("pool_step")
    if not step:
        return torch.zeros(len(shard), dtype=torch.bool)
    return weights_after(shard, known, step, 1.0) > 0


def classes_of(shard: Shard, setup: Setup) -> Tensor:
    """Return the class of every row for quotas; all 0 where targets are not classes."""
    if setup.task == "classification":
        return codes_of(shard, setup)
    return torch.zeros(len(shard), dtype=torch.int64)


def weight_of(shard: Shard, known: Known) -> Tensor:
    """Return what every row weighs once it is chosen, float64: its own weight times its class's
    (`tasks.fit.class_shares`)."""
    by_class = known.get("class_weights")
    return shard.weight if by_class is None else shard.weight * by_class[codes_of(shard, known["setup"])]


def class_counts(shard: Shard, known: Known) -> Tensor:
    """Return the rows of every class that may be chosen: those with a weight."""
    setup: Setup = known["setup"]
    size = setup.outputs if setup.task == "classification" else 1
    return torch.bincount(classes_of(shard, setup)[shard.weight > 0], minlength=size)


def calibrate_pool(shard: Shard, known: Known) -> Histogram:
    """Return the likelihood of the given classes under a grid of calibrations, by outputs of a fit that saw none of
    these rows; 2 n p c operations, one read."""
    setup: Setup = known["setup"]
    Y, weight = codes_of(shard, setup), judged(shard, known).double()
    parts = []
    for b in blocks(shard, known):
        F = fitted(b, known)[0].cpu()
        rows = slice(b.start, b.stop)
        F = levels.level(F, torch.zeros(len(F), dtype=F.dtype), known["levels"])
        parts.append(links.link_sums(F, Y[rows], weight[rows]))
    return add_in_order(parts)


def judged(shard: Shard, known: Known) -> Tensor:
    """Return which rows say how many labels are wrong: those with a weight that were not chosen, of classes that the
    fit knows."""
    kept = ~taken(shard, known) & (shard.weight > 0)
    if known["setup"].task == "classification":  # of a class without a row in the fit nothing is known
        kept &= ~known["new"][codes_of(shard, known["setup"])]
    return kept


def score_pool(shard: Shard, known: Known) -> Partial:
    """Score every row of a pool's shard; return the histogram of the evidence on its labels, and the fit sums of the
    slice that stands for uniform choice. n p^2 + 4 n p c operations, one read."""
    setup: Setup = known["setup"]
    adjoint, device = known["adjoint"].first(setup.outputs), device_of(known)
    n, given = len(shard), shard.weight.to(setup.dtype)
    derivative, evidence = torch.empty(n), torch.empty(n)
    slice_sums, Y = FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device), targets(shard, setup)
    in_slice, free, near, reference = in_uniform_slice(shard, known), ~taken(shard, known), [], []
    uncertainty = None if known["mean_uncertainty"] is None else torch.empty(n)
    value = worth(shard, known, known["link"]) if setup.task in ("classification", "multilabel") else None
    for b in blocks(shard, known):
        part = slice(b.start, b.stop)
        F, r = fitted(b, known)
        Z = coordinates(b.Z, known)
        derivative[part] = dd.derivative(Z, r.to(Z), dd.OwnTerms.none(Z), Z.new_empty(len(Z), 0), adjoint)[0].float()
        F, nothing = F.cpu(), torch.zeros(len(F), dtype=F.dtype)
        if setup.task == "classification":
            F, link = levels.level(F, nothing, known["levels"], None if value is None else value[part]), known["link"]
            F = F if link.mix is None else link.mix.mixed(F)
            evidence[part] = links.log_odds(F, Y[part], link).float()
            if uncertainty is not None:
                uncertainty[part] = links.uncertainty(F, link).float()
        elif setup.task == "multilabel":
            x = unit_outputs(F, nothing, known, None if value is None else value[part])
            evidence[part] = multilabel.rows_log_odds(x, Y[part], known["pool_slips"]).float()
        else:
            evidence[part] = label_losses(F, Y[part], known).float()
            reference.append(wrong_losses(F, known))
        rows = torch.nonzero(in_slice[part]).squeeze(1).to(device)
        chosen = given[part].to(device)[rows]
        slice_sums.add(b.Z[rows], b.Y[rows], chosen, None if b.offset is None else b.offset[rows])
        close = in_reach(shard, known, part, uncertainty)
        rows = torch.nonzero(close & free[part]).squeeze(1)
        near.append((rows + b.start, b.Z[rows.to(device)].cpu()))
    rows, Z = (torch.cat(parts) for parts in zip(*near, strict=True))
    offset = None if shard.offset is None else shard.offset[rows]
    shard.state["pool"] = PoolRows(derivative, evidence, uncertainty, (rows, Z, offset))
    if setup.task in ("classification", "multilabel"):
        histogram = verdict.verdict_sums(evidence, torch.zeros(n), judged(shard, known).double())
    else:
        kinds = gap_kinds(shard, known)
        # Rows that were chosen count too, with the losses of a fit that saw them: wrong ones, when most of the rest
        # are, would be taken for the right ones.
        weighing = (shard.weight > 0).double()
        histogram = loss_verdict.loss_sums(evidence, torch.cat(reference), torch.zeros(n), weighing, kinds)
    squares = derivative[free & (given > 0)].double().square()
    counts = {"uniform": int((in_slice & (given > 0)).sum()), "free": len(squares), "squares": float(squares.sum())}
    return Partial(slice_sums.sums(), Tally(evidence=histogram, **counts))


def in_uniform_slice(shard: Shard, known: Known) -> Tensor:
    """Return which rows this round adds to those that stand for uniform choice."""
    draw = choose.uniform_draw(shard.keys, known["uniform_seed"])
    low, high = known["uniform_slice"]
    return (draw >= low) & (draw < high)


def waits(shard: Shard, known: Known, part: slice, uncertainty: Tensor | None) -> Tensor:
    """Return how long some rows wait in the random order of this round."""
    rates = None if uncertainty is None else choose.lean(uncertainty[part], known["mean_uncertainty"])
    return choose.waits(shard.keys[part], known["seed"] + known["round"], rates)


def in_reach(shard: Shard, known: Known, part: slice, uncertainty: Tensor | None) -> Tensor:
    """Return which of some rows this round will probably reach in their random order: their features are kept."""
    return waits(shard, known, part, uncertainty) < known["near"]


def scored_pool(shard: Shard, known: Known) -> PoolRows:
    """Return what is known of the rows, computed again if this worker does not have it."""
    if "pool" not in shard.state:
        score_pool(shard, known)
    rows = shard.state["pool"]
    assert isinstance(rows, PoolRows)
    return rows


def sum_uniform(shard: Shard, known: Known) -> Partial:
    """Return the fit sums of the slice that stands for uniform choice, and how many rows it has."""
    mine = in_uniform_slice(shard, known)
    sums: FitSums = _sums_of(shard, known, {"uniform": mine * shard.weight})["uniform"]
    return Partial(sums, Tally(uniform=int((mine & (shard.weight > 0)).sum())))


def sum_again(shard: Shard, known: Known) -> Tally:
    """Return the fit sums of all rows chosen so far, and of those that stand for uniform choice; n p^2 operations."""
    draw = choose.uniform_draw(shard.keys, known["uniform_seed"])
    uniform = draw < known["uniform_slice"][1]
    weights = {"chosen": taken(shard, known) * weight_of(shard, known), "uniform": uniform * shard.weight}
    return _sums_of(shard, known, weights)


def _sums_of(shard: Shard, known: Known, weights: dict[str, Tensor]) -> Tally:
    setup, device = known["setup"], device_of(known)
    sums = {name: FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device) for name in weights}
    for b in blocks(shard, known):
        for name, every in weights.items():
            part = every[b.start : b.stop]
            rows, weight = torch.nonzero(part).squeeze(1).to(device), part[part > 0].to(b.Z)
            sums[name].add(b.Z[rows], b.Y[rows], weight, None if b.offset is None else b.offset[rows])
    return Tally({name: total.sums() for name, total in sums.items()})
