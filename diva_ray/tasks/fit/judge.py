"""Judge: the rules for verdicts, fitted to histograms of all rows and to a sample of fixed size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diva_ray.core import evidence, gaps, labellers, levels, links, loss_verdict, multilabel, noise, sureness, verdict
from diva_ray.core.histogram import Histogram
from diva_ray.core.links import Mix
from diva_ray.core.mixing import fit_mix, likeliest_boundaries
from diva_ray.core.recalibration import recalibrate
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import neighbours, pool, verdicts
from diva_ray.engine.kernels.sampling import in_order
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.sampled import tell_sample
from diva_ray.tasks.setup.forms import SAMPLED, SEARCHED
from diva_ray.tasks.setup.runner import Runner

REFERENCE_TARGETS = 64  # labels of other rows that a row's own is compared with, for targets that are not classes
DIRECTIONS = 3.0  # of targets: along fewer, cosines of right ones lie at both ends, in no one hump
TELLS_NOTHING = 0.02  # of the entropy of the labels, or of the variance of numbers
TELLS_ALL = 0.9999  # of the same
MOST_BOUNDARIES = 100  # classes: of more, other classes' labels are too unlikely for a boundary to explain them


def judge(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent], *, doubt: bool = False, flips: bool = True
) -> tuple[verdict.Verdict, links.Link | multilabel.Slips | None]:
    """Return the rules for verdicts, which the shards know from then on, and the calibration of one class or several.

    `doubt`: also ask, by two more reads, whether the labellers' own doubt explains what the model misses.
    `flips`: seek classes that flip into each other, which takes longer than all else of few rows and many classes.
    """
    calibration: links.Link | multilabel.Slips | None
    if setup.task == "classification":
        set_apart_lonely(runner, tally)
        rule, calibration = _judge_classes(runner, setup, tally, scored, doubt=doubt, seek_flips=flips)
    else:
        calibration, by = _calibrate_others(runner, setup, tally, scored)
        sums: Any = runner.run(verdicts.judge, "judge", scored, features=False)
        if calibration is None:
            number = setup.task == "regression"
            sums = (_from_center(runner, scored) if number and loss_verdict.pulled(sums) else None) or sums
            rule = loss_verdict.fit_loss_verdict(sums)
            if number and rule.noise_rate > 0:
                common = loss_verdict.largest_of_common(*_some_errors(runner, scored))
                rule = loss_verdict.fit_loss_verdict(sums, common) if common > 0 else rule
            rule = replace(rule, loss=by)
        else:
            rule = verdict.fit_verdict(sums, 2, shows=calibration.shows, flips=True)
    runner.engine.tell(verdict=rule)
    return rule, calibration


def set_apart_lonely(runner: Runner, tally: Tally) -> None:
    """Tell the shards which classes have one row (or group) that is fitted to: left out, nothing predicts them, so that
    row shapes no rule (unless all are such) and its label is not called wrong."""
    lonely = tally["class_units"] <= 1
    if not lonely.all():
        tally["levels"] = tally["levels"].masked_fill(lonely, 0.0)
    runner.engine.tell(lonely=lonely if lonely.any() else None)


def _some_errors(runner: Runner, scored: list[Extent]) -> Tensor:
    """Return the left-out errors and the numbers of a sample of rows, (2, m)."""
    runner.engine.tell(examples=SAMPLED)
    return runner.run(verdicts.some_errors, "judge", scored, features=False).rows.T


def _from_center(runner: Runner, scored: list[Extent]) -> loss_verdict.LossSums | None:
    """Return the histograms of losses whose errors are counted from their median; None where most labels are the very
    same number, as of counts that are mostly 0: the rest are rare, not gross."""
    errors, labels = _some_errors(runner, scored)
    if float((labels == labels.median()).double().mean()) >= 0.5:
        return None
    runner.engine.tell(center=float(errors.median()))
    found: loss_verdict.LossSums = runner.run(verdicts.judge, "judge", scored, features=False)
    return found


def calibrate(runner: Runner, setup: Setup, tally: Tally, scored: list[Extent]) -> Histogram | multilabel.Slips | None:
    """Tell how outputs become probabilities of classes, return the sums that say so, or of several labels what they
    say; of other targets, a few stand for other rows' labels.

    Outputs are mixed where that suits the given labels better (`core.mixing`): rows of a pool whose label is right with
    a probability that is told too low at a boundary move that boundary.
    """
    if setup.task != "classification":
        return _calibrate_others(runner, setup, tally, scored)[0]
    calibrated, classes = _calibrate_classes(runner, setup, tally, scored, by_nearness=False)[0], setup.outputs
    if not 2 < classes <= noise.MOST_CLASSES:
        return calibrated
    link = links.fit_link(calibrated, classes)
    rate = links.noise_rate_at(calibrated, link, classes)
    sample = _sample(runner, scored, levels.class_levels(tally["levels"]))
    mixed = _mix(runner, scored, sample, link, rate)
    if mixed is None:
        return calibrated
    mix, calibrated = mixed
    runner.engine.tell(link=replace(links.fit_link(calibrated, classes), mix=mix))
    return calibrated


def _calibrate_classes(
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


def _calibrate_others(
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


def tells_of_classes(calibrated: object, levels: Tensor, outputs: int) -> bool:
    """Return whether left-out predictions tell anything of the classes: where they do not, labels of other rows, all as
    unlikely, are no wrong ones. `calibrated` is what `calibrate` returned, `levels` the tally's."""
    if not isinstance(calibrated, Histogram):
        return True
    entropy = label_entropy(levels)
    return entropy + links.fit_link(calibrated, outputs).likelihood >= TELLS_NOTHING * entropy


def calibrate_on_pool(runner: Runner, setup: Setup, extents: list[Extent], counts: Tensor) -> bool:
    """Tell how outputs become probabilities by the labels of a pool, of which the fit heard none, and return whether
    wrong labels show there: left out, the only row of a class says nothing. `counts`: the pool's rows by class."""
    runner.engine.tell(levels=torch.ones(setup.outputs, dtype=torch.float64), gap_factors={})
    sums: Histogram = runner.run(pool.calibrate_pool, "calibrate", extents)
    link, shows, _ = _uniform_link(links.fit_link(sums, setup.outputs), sums, counts.double())
    runner.engine.tell(link=link)
    return shows


def _uniform_link(
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


def _judge_classes(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent], *, doubt: bool, seek_flips: bool
) -> tuple[verdict.Verdict, links.Link]:
    """Uniform noise first; then, where there is evidence, flips between classes, or doubt of the labellers (none where
    rows lack bands that tell, as what is missed for want of those looks like it). Of labels that none of these explain
    outputs may be mixed: not where none look wrong, as there is nothing to mend then."""
    calibrated, factors = _calibrate_classes(runner, setup, tally, scored, by_nearness=True)
    classes, own, divisors = setup.outputs, tally["levels"], levels.class_levels(tally["levels"])
    uniform = _judge_uniform(runner, scored, calibrated, own)
    link, rule, flips = uniform.link, uniform.rule, None
    if not 2 <= classes <= noise.MOST_CLASSES:
        return _recalibrated(runner, scored, classes, uniform), link
    sample = _sample(runner, scored, divisors)
    F, y, h = sample.F, sample.y, sample.h
    if rule.noise_rate > 0 and _boundaries_explain(runner, sample, link, rule.noise_rate, label_entropy(own)):
        uniform = _judge_uniform(runner, scored, calibrated, own, right=True)
        link, rule = uniform.link, uniform.rule
    found = runner.timed("judge", noise.fit_flips, F, y, h, link, rule.noise_rate) if seek_flips else None
    suspected, share = found is None and rule.noise_rate > 0, 0.0
    if found is not None:
        link, flips = replace(found[0], likelihood=link.likelihood, near=link.near), found[1]
        runner.engine.tell(link=link, flips=flips)
        rule = verdict.fit_verdict(runner.run(verdicts.judge, "judge", scored, features=False), classes, flips=True)
    elif doubt and uniform.shows and not factors:
        share = _doubt(runner, scored, sample.facts, link, divisors, rule.noise_rate)
        rule = verdict.fit_verdict(uniform.sums, classes, doubt=share) if share else rule
    if suspected and not share:
        mixed = _mix(runner, scored, sample, link, rule.noise_rate)
        if mixed is not None:
            mix, calibrated = mixed
            uniform = _judge_uniform(runner, scored, calibrated, own, replace(link, mix=mix))
            link, F = uniform.link, mix.mixed(F)
        rule = _recalibrated(runner, scored, classes, uniform)
    dependence = noise.dependence_of_suspects(F, y, link, flips, rule)
    return replace(rule, class_dependence=dependence, flips=flips is not None), link


def _boundaries_explain(runner: Runner, sample: _Sample, link: links.Link, rate: float, entropy: float) -> bool:
    """Return whether labels that are all right, of classes whose boundaries lie elsewhere, are as likely as wrong ones.

    Asked where predictions tell little of the labels: of classes that lie apart any boundary between them would do.
    """
    F, y = sample.F, sample.y
    if entropy + link.likelihood >= evidence.LEAST_TOLD * entropy or F.shape[1] > MOST_BOUNDARIES:
        return False
    wrong, right = (runner.timed("judge", likeliest_boundaries, F, y, e) for e in (rate, None))
    return wrong - right <= math.log(len(F)) / 2


class _Sample(NamedTuple):
    """A sample of rows: weight, leverage, nearness, label and left-out outputs side by side; levelled outputs; labels;
    leverages."""

    facts: Tensor
    F: Tensor
    y: Tensor
    h: Tensor


def _sample(runner: Runner, scored: list[Extent], divisors: Tensor) -> _Sample:
    tell_sample(runner, scored, SAMPLED, "judge")
    (facts,) = in_order(runner.run(neighbours.sample_facts, "judge", scored, features=False))
    h = facts[:, 1]
    return _Sample(facts, levels.level(facts[:, 4:], h, divisors, facts[:, 2]), facts[:, 3].long(), h)


def _mix(
    runner: Runner, scored: list[Extent], sample: _Sample, link: links.Link, rate: float
) -> tuple[Mix, Histogram] | None:
    """Return how outputs are mixed and what tells how mixed ones become probabilities; None where they are not."""
    mix = runner.timed("judge", fit_mix, sample.F, sample.y, sample.h, link, rate)
    if mix is None:
        return None
    runner.engine.tell(link=replace(link, mix=mix))
    return mix, runner.run(verdicts.calibrate, "calibrate", scored, features=False)


class _Uniform(NamedTuple):
    """What is to be said if labels are replaced at random: `clear` where classes lie far apart."""

    link: links.Link
    rule: verdict.Verdict
    sums: Histogram
    shows: bool
    clear: bool


def _judge_uniform(
    runner: Runner,
    scored: list[Extent],
    calibrated: Histogram,
    own: Tensor,
    like: links.Link | None = None,
    *,
    right: bool = False,
) -> _Uniform:
    """Tell the link under uniform noise, which mixes outputs as another one does, and judge by it; `right`: that of
    right labels."""
    classes, rows = own.shape[1], calibrated.rows(float(calibrated.counts[0, 0].sum()))

    def carried(link: links.Link) -> links.Link:
        return link if like is None else replace(link, near=like.near, mix=like.mix)

    likeliest = links.fit_link(calibrated, classes)
    link, shows, clear = _uniform_link(likeliest, calibrated, own[1], right=right)
    offset = verdict.offset_of(links.noise_rate_at(calibrated, likeliest, classes), classes, rows)
    runner.engine.tell(link=carried(link), likeliest=carried(likeliest), likeliest_offset=offset)
    sums = runner.run(verdicts.judge, "judge", scored, features=False)
    rule = verdict.fit_verdict(sums, classes, shows=shows)
    return _Uniform(carried(link), rule, sums, shows, clear)


def _recalibrated(runner: Runner, scored: list[Extent], classes: int, uniform: _Uniform) -> verdict.Verdict:
    """Return the rule by how often classes of every log-odds are given; the same where no label is wrong, classes
    lie so far apart that any odds explain it, or rows are too few to know more than a link."""
    rule, sums = uniform.rule, uniform.sums
    rows = sums.rows(float(sums.counts.sum()))
    if rule.noise_rate == 0 or uniform.clear or rows <= evidence.FEW:
        return rule
    every = runner.run(verdicts.class_odds, "judge", scored, features=False)
    again = runner.timed("judge", recalibrate, sums.counts.sum(1), every, classes, rule.noise_rate)
    return verdict.fit_verdict(sums, classes, again=again)


def _doubt(
    runner: Runner, scored: list[Extent], facts: Tensor, link: links.Link, divisors: Tensor, rate: float
) -> float:
    """Return the share of labellers' doubt; neighbours are sought where rows are many for the columns."""
    leverage = float(facts[:, 1].mean()) if len(facts) else 1.0
    if leverage > labellers.MOST_LEVERAGE:
        return 0.0
    references = tuple(in_order(runner.run(neighbours.sample_whitened, "neighbours", scored)))
    rows = sum(extent.stop - extent.start for extent in scored)
    runner.engine.tell(references=references, searched=min(1.0, SEARCHED / rows))
    near = runner.run(neighbours.nearest, "neighbours", scored)
    runner.engine.forget("references", "searched")
    return runner.timed("neighbours", labellers.find_doubt, facts, near, link, divisors, rate)
