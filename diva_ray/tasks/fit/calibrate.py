"""Calibrate: how left-out outputs become probabilities, and a sample of rows by which more is asked of them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from diva_ray.core import evidence, gaps, levels, links, loss_verdict, multilabel, noise, sureness
from diva_ray.core.histogram import Histogram
from diva_ray.core.links import Mix
from diva_ray.core.mixing import fit_boundaries, fit_mix
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import neighbours, pool, verdicts
from diva_ray.engine.kernels.sampling import in_order
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.sampled import tell_sample
from diva_ray.tasks.setup.forms import SAMPLED
from diva_ray.tasks.setup.runner import Runner

REFERENCE_TARGETS = 64  # labels of other rows that a row's own is compared with, for targets that are not classes
DIRECTIONS = 3.0  # of targets: along fewer, cosines of right ones lie at both ends, in no one hump
TELLS_NOTHING = 0.02  # of the entropy of the labels, or of the variance of numbers
TELLS_ALL = 0.9999  # of the same
MOST_BOUNDARIES = 100  # classes whose boundaries are sought in 7 s; those of 250 in 34


def calibrate(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent]
) -> tuple[Histogram | multilabel.Slips | None, bool]:
    """Tell how outputs become probabilities of classes, return the sums that say so, or of several labels what they
    say; of other targets, a few stand for other rows' labels. Also whether these labels were taken as right.

    Outputs are mixed where that suits the given labels better (`core.mixing`): rows of a pool whose label is right with
    a probability that is told too low at a boundary move that boundary. Where predictions tell little of the labels,
    those of the table are taken as right if boundaries that lie elsewhere explain them as well as wrong ones do: a
    pool's labels are wrong as far as they are less likely than these.
    """
    if setup.task != "classification":
        return calibrate_others(runner, setup, tally, scored)[0], False
    calibrated, classes = calibrate_classes(runner, setup, tally, scored, by_nearness=False)[0], setup.outputs
    if not 2 <= classes <= noise.MOST_CLASSES:
        return calibrated, False
    link = links.fit_link(calibrated, classes)
    rate = links.noise_rate_at(calibrated, link, classes)
    weak = rate > 0 and boundaries_matter(link, tally["levels"])
    if not weak and classes == 2:
        return calibrated, False
    sample = draw_sample(runner, scored, levels.class_levels(tally["levels"]))
    if weak and (found := runner.timed("calibrate", fit_boundaries, sample.F, sample.y, link, rate)):
        runner.engine.tell(link=found)
        return calibrated, True
    mixed = mix_outputs(runner, scored, sample, link, rate)
    if mixed is None:
        return calibrated, False
    mix, calibrated = mixed
    runner.engine.tell(link=replace(links.fit_link(calibrated, classes), mix=mix))
    return calibrated, False


def calibrate_classes(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent], *, by_nearness: bool
) -> tuple[Histogram, dict[int, float]]:
    """Tell how outputs become probabilities, return the sums that say so, and what outputs of rows that lack bands are
    worth. `by_nearness`: classes may also be told by outputs times the nearness of the row."""
    mean_q = reached(tally) if by_nearness else None
    runner.engine.tell(levels=levels.class_levels(tally["levels"]), link=None, flips=None, mean_q=mean_q)
    sums = _sums_by_gaps(runner, setup, scored)
    factors = {} if sums is None else sureness.fit_factors(sums["kinds"], setup.outputs)
    runner.engine.tell(gap_factors=factors)
    calibrated: Histogram = runner.run(verdicts.calibrate, "calibrate", scored, features=False)
    runner.engine.tell(link=links.fit_link(calibrated, setup.outputs))
    return calibrated, factors


def _sums_by_gaps(runner: Runner, setup: Setup, scored: list[Extent]) -> Tally | None:
    """Return what tells what outputs of rows that lack bands are worth, None where no row lacks any; and tell the
    shards of which kind their rows are."""
    if len(setup.scale.mean) < 2:
        return None
    runner.engine.tell(examples=0)
    drawn: Tally = runner.run(verdicts.examples, "calibrate", scored, features=False)
    runner.engine.tell(common_gaps=gaps.common_codes(drawn["gaps"].rows))
    if not drawn["max_lacking"]:
        return None
    sums: Tally = runner.run(verdicts.calibrate_kinds, "calibrate", scored, features=False)
    return sums if len(sums["kinds"]) > 1 else None


def calibrate_others(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent]
) -> tuple[multilabel.Slips | None, str]:
    """Tell how outputs of several labels become probabilities; or a few other rows' targets, and by which loss a label
    is held against them. Return the first, or the name of the loss.

    Cosines of targets that lie along a line are 1 or -1, and -1 for a right one whenever the prediction errs on the
    other side: they are told from wrong ones by squared errors.
    """
    if setup.task == "multilabel":
        runner.engine.tell(levels=tally["levels"], link=None, gap_factors={})
        sums = _sums_by_gaps(runner, setup, scored)
        if sums is not None:
            fit, shares = sureness.fit_slip_factors, tally["levels"]
            factors, thresholds = runner.timed("calibrate", fit, sums["whole"], sums["kinds"], shares)
            runner.engine.tell(gap_factors=factors, gap_thresholds=thresholds)
        outputs = runner.run(verdicts.calibrate, "calibrate", scored, features=False)
        slips = runner.timed("calibrate", multilabel.fit_slips, outputs)
        runner.engine.tell(slips=slips, pool_slips=multilabel.even_slips(slips))
        return slips, ""
    runner.engine.tell(examples=REFERENCE_TARGETS)
    drawn: Tally = runner.run(verdicts.examples, "calibrate", scored, features=False)
    reference, by = drawn["targets"].rows, "squared"
    if setup.loss == "cosine":
        assert setup.center is not None
        spread = loss_verdict.directions(reference, setup.center, setup.near)
        by = "cosine" if spread >= DIRECTIONS else "squared"
    common = gaps.common_codes(drawn["gaps"].rows)
    runner.engine.tell(reference=reference, link=None, common_gaps=common, center=0.0, label_loss=by)
    return None, by


def reached(tally: Tally) -> float | None:
    """Return the mean q = z' A^-1 z of the rows where some lie far beyond it, else None: nearness would say nothing."""
    weight, total = tally["reach"].tolist()
    return total / weight if weight > 0 and tally["max_q"] * weight > levels.FAR * total > 0 else None


def label_entropy(levels: Tensor) -> float:
    """Return the entropy of the labels, by the weights of the classes in the tally's `levels`, in nats."""
    return float(torch.special.entr(levels[1] / levels[1].sum()).sum())


def boundaries_matter(link: links.Link, levels: Tensor) -> bool:
    """Return whether predictions tell so little of the labels that classes may have any boundary between them, and
    whether it can be sought."""
    entropy = label_entropy(levels)
    return entropy + link.likelihood < evidence.LEAST_TOLD * entropy and levels.shape[1] <= MOST_BOUNDARIES


def tells_of_classes(calibrated: object, levels: Tensor, outputs: int) -> bool:
    """Return whether left-out predictions tell anything of the classes: where they do not, labels of other rows, all as
    unlikely, are no wrong ones. `calibrated` is what `calibrate` returned, `levels` the tally's."""
    if not isinstance(calibrated, Histogram):
        return True
    entropy = label_entropy(levels)
    return entropy + links.fit_link(calibrated, outputs).likelihood >= TELLS_NOTHING * entropy


def calibrate_on_pool(runner: Runner, setup: Setup, extents: list[Extent], counts: Tensor) -> bool:
    """Tell how outputs become probabilities by the labels of a pool, of which the fit saw none, and return whether
    wrong labels show there: left out, the only row of a class says nothing. `counts`: the pool's rows by class."""
    runner.engine.tell(levels=torch.ones(setup.outputs, dtype=torch.float64), gap_factors={})
    sums: Histogram = runner.run(pool.calibrate_pool, "calibrate", extents)
    link, shows, _ = uniform_link(links.fit_link(sums, setup.outputs), sums, counts.double())
    runner.engine.tell(link=link)
    return shows


def uniform_link(
    best: links.Link, calibrated: Histogram, weight: Tensor, *, right: bool = False
) -> tuple[links.Link, bool, bool]:
    """Return the link under uniform noise, the likeliest where wrong labels show, whether they do (`right`: they do
    not), and whether as classes lie far apart."""
    if not right and evidence.noise_shows(best, weight, calibrated.rows(float(calibrated.counts[0, 0].sum()))):
        return best, True, False
    clear = None if right else evidence.fit_clear_link(calibrated, weight)
    if clear is not None:
        return clear, True, True
    sure = links.fit_link(calibrated, len(weight), right=True)  # probabilities as sure as right labels let them be
    return replace(sure, likelihood=best.likelihood), False, False


class Sample(NamedTuple):
    """A sample of rows: weight, leverage, nearness, label and left-out outputs side by side; levelled outputs; labels;
    leverages."""

    facts: Tensor
    F: Tensor
    y: Tensor
    h: Tensor


def draw_sample(runner: Runner, scored: list[Extent], divisors: Tensor) -> Sample:
    """Return a sample of rows that shape the rules, of fixed size, with outputs divided by the classes' `divisors`."""
    tell_sample(runner, scored, SAMPLED, "judge")
    (facts,) = in_order(runner.run(neighbours.sample_facts, "judge", scored, features=False))
    h = facts[:, 1]
    return Sample(facts, levels.level(facts[:, 4:], h, divisors, facts[:, 2]), facts[:, 3].long(), h)


def mix_outputs(
    runner: Runner, scored: list[Extent], sample: Sample, link: links.Link, rate: float
) -> tuple[Mix, Histogram] | None:
    """Return how outputs are mixed and what tells how mixed ones become probabilities; None where they are not."""
    mix = runner.timed("judge", fit_mix, sample.F, sample.y, sample.h, link, rate)
    if mix is None:
        return None
    runner.engine.tell(link=replace(link, mix=mix))
    return mix, runner.run(verdicts.calibrate, "calibrate", scored, features=False)
