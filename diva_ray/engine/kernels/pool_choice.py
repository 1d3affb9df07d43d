"""Choosing rows of a pool: which help and in what order, and adding them to the fit. See `engine.kernels.pool`."""

from __future__ import annotations

import torch
from torch import Tensor

from diva_ray.core import choose, loss_verdict, losses, verdict
from diva_ray.core import derivative as dd
from diva_ray.core.products import multiply_triangular_, row_dot, spare
from diva_ray.core.ridge import FitAccumulator
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Known,
    blocks,
    codes_of,
    coordinates,
    device_of,
    keep_weights,
    targets,
)
from diva_ray.engine.kernels.left_out import outputs_of
from diva_ray.engine.kernels.pool import classes_of, scored_pool, taken, waits, weight_of
from diva_ray.engine.kernels.selected import remember_chosen
from diva_ray.engine.kernels.verdicts import gap_kinds
from diva_ray.engine.reduce import Partial, Tally
from diva_ray.engine.setup import Setup

HARMS = 2.0  # root mean squares of the derivatives: of numbers, where no wrong ones show, rows beyond it are left


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
        uncertainty, right = scored_pool(shard, known).uncertainty, probabilities(shard, known)
        wait = waits(shard, known, slice(None), uncertainty)
        if uncertainty is not None:  # among rows that the fit is unsure of the coin lets more wrong ones pass
            wait /= right
        keys, helps = choose.balanced_keys(shard.keys, right, known["seed"], wait)
        helps &= ~harms(shard, known)
        if known["blind"]:
            keys = choose.rising_keys(scored_pool(shard, known).derivative, shard.keys)
        classes = classes_of(shard, setup)
    kind = torch.where(helps, 0, 1)
    if known["near_only"]:  # rows whose features were not kept wait for their turn
        kind = kind.masked_fill(helps & (wait >= known["near"]), 2)
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
        sums.add(Z, Y, weight_of(shard, known)[at].to(Z), offset)
        _remember(shard, known, at, keys, Z, offset)
    kept = taken(shard, known) | chosen
    keep_weights(shard, known, kept.double(), known["next_step"])
    return Partial(sums.sums(), Tally(missing=[], chosen=len(at)))


def _remember(shard: Shard, known: Known, at: Tensor, keys: Tensor, Z: Tensor, offset: Tensor | None) -> None:
    """Keep what the output says of the rows chosen in this round, standard errors among it."""
    setup: Setup = known["setup"]
    F = outputs_of(Z, offset, known)
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
        "weight": weight_of(shard, known)[at],
    }
    remember_chosen(shard, known, facts)
