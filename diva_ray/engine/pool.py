"""Passes over a pool: score its rows, choose among them, add what was chosen to the fit. Features are read again.

Between passes a pool's shard keeps what it learnt of its rows; a worker that takes a dead one's place reads and scores
them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.core import choose, levels, links, loss_verdict, losses, multilabel, verdict
from diva_ray.core import derivative as dd
from diva_ray.core.histogram import Histogram
from diva_ray.core.products import multiply_triangular_, row_dot, spare
from diva_ray.core.ridge import FitAccumulator, FitSums
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Known,
    blocks,
    codes_of,
    coordinates,
    device_of,
    keep_weights,
    targets,
    weights_after,
)
from diva_ray.engine.reduce import Partial, Tally, add_in_order
from diva_ray.engine.selected import remember_chosen
from diva_ray.engine.setup import Setup
from diva_ray.engine.verdicts import gap_kinds, label_losses, unit_outputs, worth, wrong_losses

HARMS = 2.0  # root mean squares of the derivatives: of numbers, where no wrong ones show, rows beyond it are left


@dataclass
class PoolRows:
    """What the last pass learnt of a shard's rows.

    Attributes:
        derivative: dL/dalpha, (n,).
        evidence: log-odds that the given label, or all of several, are right; of other targets the loss; (n,).
        near: rows whose features were kept, because they will probably be chosen, the features, and the offsets.
    """

    derivative: Tensor
    evidence: Tensor
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


def class_counts(shard: Shard, known: Known) -> Tensor:
    """Return the rows of every class that may be chosen: those with a weight."""
    setup: Setup = known["setup"]
    size = setup.outputs if setup.task == "classification" else 1
    return torch.bincount(classes_of(shard, setup)[shard.weight > 0], minlength=size)


def calibrate_pool(shard: Shard, known: Known) -> Histogram:
    """Return the likelihood of the given classes under a grid of calibrations, by outputs of a fit that heard none of
    these rows; 2 n p c operations, one read."""
    setup: Setup = known["setup"]
    Y, weight, W = codes_of(shard, setup), judged(shard, known).double(), known["solution"]["W"]
    parts = []
    for b in blocks(shard, known):
        F = b.Z @ W
        F = (F if b.offset is None else F + b.offset).cpu()
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
    W, adjoint, device = known["solution"]["W"], known["adjoint"].first(setup.outputs), device_of(known)
    n, given = len(shard), shard.weight.to(setup.dtype)
    derivative, evidence = torch.empty(n), torch.empty(n)
    slice_sums, Y = FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device), targets(shard, setup)
    in_slice, close = in_uniform_slice(shard, known), is_near(shard, known)
    free, near, reference = ~taken(shard, known), [], []
    value = worth(shard, known, known["link"]) if setup.task in ("classification", "multilabel") else None
    for b in blocks(shard, known):
        part = slice(b.start, b.stop)
        F = b.Z @ W
        F = F if b.offset is None else F + b.offset
        r = losses.subtract_from_targets(b.Y, F)
        Z = coordinates(b.Z, known)
        derivative[part] = dd.derivative(Z, r.to(Z), dd.OwnTerms.none(Z), Z.new_empty(len(Z), 0), adjoint)[0].float()
        F, nothing = F.cpu(), torch.zeros(len(F), dtype=F.dtype)
        if setup.task == "classification":
            F, link = levels.level(F, nothing, known["levels"], None if value is None else value[part]), known["link"]
            F = F if link.mix is None else link.mix.mixed(F)
            evidence[part] = links.log_odds(F, Y[part], link).float()
        elif setup.task == "multilabel":
            x = unit_outputs(F, nothing, known, None if value is None else value[part])
            evidence[part] = multilabel.rows_log_odds(x, Y[part], known["pool_slips"]).float()
        else:
            evidence[part] = label_losses(F, Y[part], setup).float()
            reference.append(wrong_losses(F, known))
        rows = torch.nonzero(in_slice[part]).squeeze(1).to(device)
        chosen = given[part].to(device)[rows]
        slice_sums.add(b.Z[rows], b.Y[rows], chosen, None if b.offset is None else b.offset[rows])
        rows = torch.nonzero(close[part] & free[part]).squeeze(1)
        near.append((rows + b.start, b.Z[rows.to(device)].cpu()))
    rows, Z = (torch.cat(parts) for parts in zip(*near, strict=True))
    offset = None if shard.offset is None else shard.offset[rows]
    shard.state["pool"] = PoolRows(derivative, evidence, (rows, Z, offset))
    if setup.task in ("classification", "multilabel"):
        histogram = verdict.verdict_sums(evidence, torch.zeros(n), judged(shard, known).double())
    else:
        kinds = gap_kinds(shard, known)
        # Rows that were chosen count too, with the losses of a fit that heard them: wrong ones, when most of the rest
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


def is_near(shard: Shard, known: Known) -> Tensor:
    """Return which rows this round will probably reach in their random order: their features are kept."""
    place = choose.random_order(shard.keys, known["seed"])
    return (place >= known["near"][0]) & (place < known["near"][1])


def scored_pool(shard: Shard, known: Known) -> PoolRows:
    """Return what is known of the rows, computed again if this worker does not have it."""
    if "pool" not in shard.state:
        score_pool(shard, known)
    rows = shard.state["pool"]
    assert isinstance(rows, PoolRows)
    return rows


def probabilities(shard: Shard, known: Known) -> Tensor:
    """Return the probability that each given label is right (all of several); 0 or 1 by the cut where targets are not
    classes; 1 where the table's classes have but one row and the pool few, so that nothing is known of any label."""
    if known["blind"]:
        return torch.ones(len(shard), dtype=torch.float64)
    evidence, rule = scored_pool(shard, known).evidence, known["pool_verdict"]
    if known["setup"].task == "classification":
        unknown = known["new"][codes_of(shard, known["setup"])]
        return verdict.label_scores(evidence, rule).masked_fill(unknown, 1 - rule.noise_rate)
    if known["setup"].task == "multilabel":
        return verdict.label_scores(evidence, rule)
    return (loss_verdict.loss_scores(evidence, rule, gap_kinds(shard, known)) >= rule.label.value).double()


def harms(shard: Shard, known: Known) -> Tensor:
    """Return which rows are left for their derivative.

    It is a row's residual times what the table's errors say at its place: rows of one sign alone fit these errors, and
    right numbers so chosen were 1.2 % of their variance worse than as many at random (mean of 18 tables). So of numbers
    only rows that stand out are left, and only where no wrong ones show: swapped ones then still are told a little.
    """
    task, derivative = known["setup"].task, scored_pool(shard, known).derivative
    if task == "multilabel" or known["blind"]:  # the coin alone says little of rows with many labels; there is none
        return derivative >= 0
    if task == "classification" or known["pool_verdict"].noise_rate > 0:
        return torch.zeros(len(shard), dtype=torch.bool)
    return derivative > HARMS * known["derivative_scale"]


def order(shard: Shard, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """Return every row's key (least first), class for quotas, and kind: 0 helps, 1 does not, 2 was chosen before."""
    setup: Setup = known["setup"]
    if known["method"] == "paper":
        derivative = scored_pool(shard, known).derivative
        keys, helps, classes = (
            choose.rising_keys(derivative, shard.keys),
            derivative < 0,
            torch.zeros(len(shard)).long(),
        )
    else:
        keys, helps = choose.balanced_keys(shard.keys, probabilities(shard, known), known["seed"])
        helps &= ~harms(shard, known)
        if known["blind"]:
            keys = choose.rising_keys(scored_pool(shard, known).derivative, shard.keys)
        classes = classes_of(shard, setup)
    kind = torch.where(helps, 0, 1)
    if known["near_only"]:  # rows whose features were not kept wait for their turn
        kind = kind.masked_fill(helps & ~is_near(shard, known), 2)
    return keys, classes, kind.masked_fill(taken(shard, known) | (shard.weight == 0), 2)


def count_choices(shard: Shard, known: Known) -> Tensor:
    """Return the rows that help and those that do not, by class, (2, c)."""
    _, classes, kind = order(shard, known)
    size = known["choices"]
    return torch.stack([torch.bincount(classes[kind == k], minlength=size) for k in (0, 1)])


def count_bytes(shard: Shard, known: Known) -> Tensor:
    """Return one round of the selection of the rows of one kind."""
    keys, classes, kind = order(shard, known)
    mine = kind == known["kind"]
    return choose.byte_counts(keys[mine], classes[mine], known["prefix"], known["level"])


def picked(shard: Shard, known: Known) -> tuple[Tensor, Tensor]:
    """Return which rows are chosen in this round, and the key of every row."""
    keys, classes, kind = order(shard, known)
    chosen = torch.zeros(len(shard), dtype=torch.bool)
    for which, (last, wanted) in known["limits"].items():
        chosen |= (kind == which) & choose.up_to(keys, classes, last, wanted)
    return chosen, keys


def take(shard: Shard, known: Known) -> Partial:
    """Add the rows chosen in this round to the fit, from what was kept of their features, else from the shard read
    again; return fit sums, how many they are, and which shards must be read for it."""
    setup, device = known["setup"], device_of(known)
    sums = FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device)
    chosen, keys = picked(shard, known)
    at = torch.nonzero(chosen).squeeze(1)
    rows, Z, offset = scored_pool(shard, known).near
    found = torch.isin(at, rows)
    if len(at) and not bool(found.all()):
        if not known["again"]:  # whether or not this worker has them: sums must not depend on what was lost
            return Partial(sums.sums(), Tally(missing=[shard.extent.index], chosen=0))
        Z = torch.cat([b.Z[chosen[b.start : b.stop].to(device)] for b in blocks(shard, known)])
        offset = None if shard.offset is None else shard.offset[at]
    elif len(at):
        places = torch.searchsorted(rows, at)
        Z, offset = Z[places], None if offset is None else offset[places]
    if len(at):
        Y, Z = targets(shard, setup)[at].to(device), Z.to(device)
        offset = None if offset is None else offset.to(Z)
        sums.add(Z, Y, shard.weight[at].to(Z), offset)
        _remember(shard, known, at, keys, Z, offset)
    kept = taken(shard, known) | chosen
    keep_weights(shard, known, kept.double(), known["next_step"])
    return Partial(sums.sums(), Tally(missing=[], chosen=len(at)))


def _remember(shard: Shard, known: Known, at: Tensor, keys: Tensor, Z: Tensor, offset: Tensor | None) -> None:
    """Keep what the output says of the rows chosen in this round, standard errors among it."""
    setup: Setup = known["setup"]
    F = Z @ known["solution"]["W"]
    F = F if offset is None else F + offset.to(F)
    r = losses.subtract_from_targets(targets(shard, setup)[at].to(F.device), F)
    exact, error = known.get("validation"), torch.zeros(len(at), dtype=torch.float64)
    if exact is not None:
        for inner, C in exact.contributions(Z, r, torch.full((len(at),), -1, device=Z.device)):
            error[inner] = C.norm(dim=1).double()
    elif setup.vectors:
        U, adjoint_ = multiply_triangular_(spare(Z), known["solution"]["whiten"], upper=True), known["adjoint"]
        reach, Z, folding = row_dot(U, U), coordinates(Z, known), setup.folding()
        own, signs = dd.OwnTerms.none(Z, reach.to(Z)), Z.new_ones(len(at), setup.vectors)
        draws = dd.derivative(Z, r.to(Z), own, signs, adjoint_, folding=folding)[1].double()
        error = (draws.square().mean(1) + dd.drawn_variance(reach, adjoint_.moments)).sqrt().cpu()
    d = scored_pool(shard, known).derivative[at]
    z = torch.where(error > 0, d / error, torch.zeros_like(d)).float()
    facts = {
        "row": at,
        "key": keys[at],
        "derivative": d,
        "z": z,
        "label_score": probabilities(shard, known)[at].float(),
    }
    remember_chosen(shard, known, facts)


def sum_uniform(shard: Shard, known: Known) -> Partial:
    """Return the fit sums of the slice that stands for uniform choice, and how many rows it has."""
    mine = in_uniform_slice(shard, known)
    sums: FitSums = _sums_of(shard, known, {"uniform": mine})["uniform"]
    return Partial(sums, Tally(uniform=int((mine & (shard.weight > 0)).sum())))


def sum_again(shard: Shard, known: Known) -> Tally:
    """Return the fit sums of all rows chosen so far, and of those that stand for uniform choice; n p^2 operations."""
    draw = choose.uniform_draw(shard.keys, known["uniform_seed"])
    return _sums_of(shard, known, {"chosen": taken(shard, known), "uniform": draw < known["uniform_slice"][1]})


def _sums_of(shard: Shard, known: Known, found: dict[str, Tensor]) -> Tally:
    setup, device = known["setup"], device_of(known)
    sums = {name: FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device) for name in found}
    for b in blocks(shard, known):
        for name, mine in found.items():
            part = mine[b.start : b.stop]
            rows, weight = torch.nonzero(part).squeeze(1).to(device), shard.weight[b.start : b.stop][part].to(b.Z)
            sums[name].add(b.Z[rows], b.Y[rows], weight, None if b.offset is None else b.offset[rows])
    return Tally({name: total.sums() for name, total in sums.items()})
