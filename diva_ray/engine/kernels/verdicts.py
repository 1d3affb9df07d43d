"""Passes that judge: the calibration of left-out outputs, and how likely every given label is right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diva_ray.core import (
    gaps,
    levels,
    links,
    loss_verdict,
    losses,
    multilabel,
    noise,
    recalibration,
    sureness,
    verdict,
)
from diva_ray.core.histogram import LIMIT, Histogram
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, codes_of, targets, weights
from diva_ray.engine.kernels.passes import left_out_outputs, left_out_rows, scored_rows
from diva_ray.engine.kernels.sampling import Drawn, draws
from diva_ray.engine.kernels.shaping import lonely_rows, shaping
from diva_ray.engine.reduce import Tally, add_in_order
from diva_ray.engine.setup import Setup

ENTRIES = 1_000_000  # of rows x classes that are judged at a time, of several labels
GAPS = 4096  # rows of which it is asked which bands they lack


def z_of(scored: Tensor) -> Tensor:
    """Return derivative / standard error in float32, as written; 0 where the standard error is 0."""
    d, error = scored.float().unbind(1)
    return torch.where(error > 0, d / error, torch.zeros_like(d))


def calibrate_kinds(shard: Shard, known: Known) -> Tally:
    """Before `calibrate`, `kinds`: by the bands that rows lack, likelihood of the given classes under plain softmaxes;
    of several labels histograms of outputs, and `whole`, those of all rows."""
    weight, kinds, plain = shaping(shard, known), gap_kinds(shard, known), {**known, "gap_factors": {}}
    of = (lambda rows: None) if kinds is None else kinds.__getitem__
    if known["setup"].task == "multilabel":
        return add_in_order(
            Tally(
                whole=multilabel.output_sums(x, Y, weight[rows]),
                kinds=sureness.slip_sums(x, Y, weight[rows], known["levels"], of(rows)),
            )
            for rows, x, Y in several_outputs(shard, plain)
        )
    Y = codes_of(shard, known["setup"])
    parts = (sureness.kind_sums(F, Y[rows], weight[rows], of(rows)) for rows, F in levelled(shard, plain, None))
    return Tally(kinds=add_in_order(parts))


def calibrate(shard: Shard, known: Known) -> Histogram:
    """First round: likelihood of the given labels under a grid of calibrations; of several labels histograms of
    outputs."""
    weight = shaping(shard, known)
    if known["setup"].task == "multilabel":
        return add_in_order(multilabel.output_sums(x, Y, weight[rows]) for rows, x, Y in several_outputs(shard, known))
    Y, link = codes_of(shard, known["setup"]), known["link"]  # None, or how outputs are mixed
    near = nearness(shard, known) if known["mean_q"] and link is None else None
    return add_in_order(
        links.link_sums(F, Y[rows], weight[rows], None if near is None else near[rows])
        for rows, F in levelled(shard, known, link)
    )


def worth(shard: Shard, known: Known, link: links.Link | None) -> Tensor | None:
    """Return what every row's levelled outputs are multiplied by, under a link; None for 1."""
    near = nearness(shard, known) if link is not None and link.near else None
    factors = gap_factors(shard, known)
    if near is None or factors is None:
        return factors if near is None else near
    return near * factors.to(near)


def gap_factors(shard: Shard, known: Known) -> Tensor | None:
    """Return what the outputs of every row are worth by the bands it lacks; None where that makes no difference."""
    factors = known["gap_factors"]
    if not factors:
        return None
    kinds = gap_kinds(shard, known)
    return gaps.factors_of(torch.zeros_like(shard.keys) if kinds is None else kinds, factors)


def nearness(shard: Shard, known: Known) -> Tensor:
    """Return how near every row is to the others, 1 for one at the mean distance."""
    return levels.nearness(left_out_rows(shard, known).q, known["mean_q"])


def levelled(shard: Shard, known: Known, link: links.Link | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows with their left-out outputs, classes and rows evened out, and mixed as the link says, from which
    probabilities are made."""
    leverage, value = left_out_rows(shard, known).leverage, worth(shard, known, link)
    mix = None if link is None else link.mix
    for rows, outputs in left_out_outputs(shard, known):
        F = levels.level(outputs, leverage[rows], known["levels"], None if value is None else value[rows])
        yield rows, F if mix is None else mix.mixed(F)


def several_outputs(shard: Shard, known: Known) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, a few at a time, with their unit outputs and several labels."""
    leverage, Y = left_out_rows(shard, known).leverage, targets(shard, known["setup"])
    factors = gap_factors(shard, known)
    few = max(1, ENTRIES // known["setup"].outputs)
    for rows, outputs in left_out_outputs(shard, known):
        for a in range(rows.start, rows.stop, few):
            part = slice(a, min(a + few, rows.stop))
            F = outputs[part.start - rows.start : part.stop - rows.start]
            yield part, unit_outputs(F, leverage[part], known, None if factors is None else factors[part]), Y[part]


def unit_outputs(F: Tensor, leverage: Tensor, known: Known, factors: Tensor | None) -> Tensor:
    """Return the unit outputs of some rows, by what they are worth."""
    x = multilabel.unit_outputs(F, leverage, known["levels"])
    return x if factors is None else multilabel.sharpened(x, known["gap_thresholds"], factors)


def given_odds(shard: Shard, known: Known) -> Tensor:
    """Return the log-odds that each given label is right, with the classes' flip rates if there are any, as large as
    they get for the only row of a class, of which nothing is known; of several labels that all are."""
    if known["setup"].task == "multilabel":
        return torch.cat([multilabel.rows_log_odds(x, Y, known["slips"]) for _, x, Y in several_outputs(shard, known)])
    Y, flips, link = codes_of(shard, known["setup"]), known["flips"], known["link"]
    odds = torch.cat(
        [
            links.log_odds(F, Y[rows], link) if flips is None else noise.flip_log_odds(F, Y[rows], link, flips)
            for rows, F in levelled(shard, known, link)
        ]
    )
    return odds.masked_fill(lonely_rows(shard, known), LIMIT)


def examples(shard: Shard, known: Known) -> Tally:
    """Return a few `targets` and `gaps` of rows, and whether any row lacks a band, from one pass."""
    lacking = int(shard.gaps is not None)
    return Tally(targets=examples_of_targets(shard, known), gaps=examples_of_gaps(shard, known), max_lacking=lacking)


def examples_of_targets(shard: Shard, known: Known) -> Drawn:
    """Return a few targets, drawn by the rows' keys (whatever the order of rows with ids), that stand for other rows'
    labels; none of rows that are set apart."""
    Y = targets(shard, known["setup"])
    draw = draws(shard, known)
    kept = ~known["fold"](shard, known) if "fold" in known else torch.ones(len(draw), dtype=torch.bool)
    return Drawn(draw[kept], Y[kept], known["examples"])


def examples_of_gaps(shard: Shard, known: Known) -> Drawn:
    """Return which bands a few rows lack, drawn by the rows' keys, as `core.gaps` codes them."""
    return Drawn(draws(shard, known), torch.zeros_like(shard.keys) if shard.gaps is None else shard.gaps, GAPS)


def gap_kinds(shard: Shard, known: Known) -> Tensor | None:
    """Return which rows are judged side by side, by the bands they lack; None where no row lacks any."""
    return None if shard.gaps is None else gaps.kinds_of(shard.gaps, known["common_gaps"])


def judge(shard: Shard, known: Known) -> Histogram | loss_verdict.LossSums:
    """Second round: joint histogram of the given label's log-odds and z, or histograms of losses."""
    setup: Setup = known["setup"]
    z = z_of(scored_rows(shard, known))
    if setup.task in ("classification", "multilabel"):
        return verdict.verdict_sums(given_odds(shard, known), z, shaping(shard, known))
    return left_out_losses(shard, known, z)


def left_out_losses(shard: Shard, known: Known, z: Tensor | None = None) -> loss_verdict.LossSums:
    """Return the histograms of the losses of targets that are no classes, left out, and with other rows' labels; and of
    z, 0 where it is not given."""
    Y, weight, kinds = targets(shard, known["setup"]), shaping(shard, known), gap_kinds(shard, known)
    z = torch.zeros(len(shard)) if z is None else z
    return add_in_order(
        loss_verdict.loss_sums(
            label_losses(F, Y[rows], known), wrong_losses(F, known), z[rows], weight[rows],
            None if kinds is None else kinds[rows],
        )
        for rows, F in left_out_outputs(shard, known)
    )  # fmt: skip


def class_odds(shard: Shard, known: Known) -> Histogram:
    """Third round, where noise shows: how many classes of labelled rows have which log-odds, given or not."""
    Y, weight, link = codes_of(shard, known["setup"]), shaping(shard, known), known["link"]
    return add_in_order(
        recalibration.odds_of_classes(F, Y[rows], weight[rows], link) for rows, F in levelled(shard, known, link)
    )


def issue_flags(shard: Shard, known: Known) -> Tensor:
    """Return which labels look wrong."""
    return label_scores(shard, known) < known["verdict"].label.value


def label_scores(shard: Shard, known: Known) -> Tensor:
    """Return the probability (classes) or score (other targets) of every given label to be right, float64."""
    setup: Setup = known["setup"]
    Y, rule = targets(shard, setup), known["verdict"]
    if setup.task in ("classification", "multilabel"):
        return verdict.label_scores(given_odds(shard, known), rule)
    parts = [label_losses(F, Y[rows], known) for rows, F in left_out_outputs(shard, known)]
    return loss_verdict.loss_scores(torch.cat(parts), rule, gap_kinds(shard, known))


def doubtful_scores(shard: Shard, known: Known) -> Tensor:
    """Return label scores; of classes those under the likeliest link and share of wrong labels where none shows: what
    cannot be told from chance may still lower the error, and is tried by those who ask what does."""
    return label_scores(shard, as_likeliest(known))


def uncertainty(shard: Shard, known: Known) -> Tensor:
    """Return how unsure the class of every row is by its left-out outputs, see `links.uncertainty`, float64."""
    within = as_likeliest(known)
    return torch.cat([links.uncertainty(F, within["link"]) for _, F in levelled(shard, within, within["link"])])


def total_uncertainty(shard: Shard, known: Known) -> Tensor:
    """Return the sum of the weights of all rows, and of weight times uncertainty, (2,)."""
    alpha = weights(shard, known).double()
    return torch.stack([alpha.sum(), alpha @ uncertainty(shard, known).to(alpha)])


def as_likeliest(known: Known) -> Known:
    """Return what is known, with the likeliest link and share of wrong labels where none shows."""
    link = known.get("likeliest")
    if link is None or known["verdict"].noise_rate > 0:
        return known
    rule = known["verdict"]
    rule = verdict.Verdict(known["likeliest_offset"], 0.0, rule.label, rule.z)
    return {**known, "link": link, "flips": None, "verdict": rule}


def some_errors(shard: Shard, known: Known) -> Drawn:
    """Return the left-out errors, from `known["center"]`, and the labels of one number, (m, 2), of a few rows that
    shape the rules, drawn by their keys."""
    Y = targets(shard, known["setup"])
    assert isinstance(Y, Tensor)
    errors = torch.cat([F - Y[rows] for rows, F in left_out_outputs(shard, known)]) - known["center"]
    kept = shaping(shard, known) > 0
    return Drawn(draws(shard, known)[kept], torch.cat([errors, Y], 1).double()[kept], known["examples"])


def label_losses(outputs: Tensor, Y: Tensor, known: Known) -> Tensor:
    """Return the loss by which a label is judged, `known["label_loss"]`: of one number with the sign of its error,
    counted from `known["center"]`."""
    setup: Setup = known["setup"]
    if setup.task == "regression":
        error = (outputs - Y).double().squeeze(1) - known["center"]
        return error * error.abs()
    loss = losses.squared if known["label_loss"] == "squared" else setup.loss_function()
    rows = max(1, links.TOGETHER // outputs.shape[1])
    return torch.cat([loss(*part)[0].double() for part in zip(outputs.split(rows), Y.split(rows), strict=True)])


def wrong_losses(outputs: Tensor, known: Known) -> Tensor:
    """Return what the losses would be with wrong labels, (n, m): those of a few other rows."""
    others = known["reference"].to(known["setup"].dtype)
    return torch.stack([label_losses(outputs, other.expand(len(outputs), -1), known) for other in others], 1)
