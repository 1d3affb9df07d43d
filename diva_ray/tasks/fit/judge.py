"""Judge: the rules for verdicts, fitted to histograms of all rows and to a sample of fixed size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from diva_ray.core import evidence, labellers, levels, links, loss_verdict, multilabel, noise, verdict
from diva_ray.core.histogram import Histogram
from diva_ray.core.mixing import likeliest_boundaries
from diva_ray.core.recalibration import recalibrate
from diva_ray.data.shards import Extent
from diva_ray.engine.kernels import neighbours, verdicts
from diva_ray.engine.kernels.sampling import in_order
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.calibrate import (
    boundaries_matter,
    calibrate_classes,
    calibrate_others,
    draw_sample,
    mix_outputs,
    uniform_link,
)
from diva_ray.tasks.setup.forms import SAMPLED, SEARCHED
from diva_ray.tasks.setup.runner import Runner


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
        calibration, by = calibrate_others(runner, setup, tally, scored)
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


def _judge_classes(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent], *, doubt: bool, seek_flips: bool
) -> tuple[verdict.Verdict, links.Link]:
    """Uniform noise first, unless right labels of classes whose boundaries lie elsewhere are as likely (asked where
    predictions tell little: of classes that lie apart any boundary would do); then, where there is evidence, flips
    between classes, or doubt of the labellers (none where rows lack bands that tell, as what is missed for want of
    those looks like it). Of labels that none of these explain outputs may be mixed: not where none look wrong, as there
    is nothing to mend then."""
    calibrated, factors = calibrate_classes(runner, setup, tally, scored, by_nearness=True)
    classes, own, divisors = setup.outputs, tally["levels"], levels.class_levels(tally["levels"])
    uniform = _judge_uniform(runner, scored, calibrated, own)
    link, rule, flips = uniform.link, uniform.rule, None
    if not 2 <= classes <= noise.MOST_CLASSES:
        return _recalibrated(runner, scored, classes, uniform), link
    sample = draw_sample(runner, scored, divisors)
    F, y, h = sample.F, sample.y, sample.h
    right = -math.inf
    if boundaries_matter(link, own) and (seek_flips or rule.noise_rate > 0):
        right = runner.timed("judge", likeliest_boundaries, F, y, None).likelihood
        if rule.noise_rate > 0:
            wrong = runner.timed("judge", likeliest_boundaries, F, y, rule.noise_rate).likelihood
            if wrong - right <= math.log(len(F)) / 2:
                uniform = _judge_uniform(runner, scored, calibrated, own, right=True)
                link, rule = uniform.link, uniform.rule
    found = runner.timed("judge", noise.fit_flips, F, y, h, link, rule.noise_rate, right) if seek_flips else None
    suspected, share = found is None and rule.noise_rate > 0, 0.0
    if found is not None:
        link, flips = replace(found[0], likelihood=link.likelihood, near=link.near), found[1]
        runner.engine.tell(link=link, flips=flips)
        rule = verdict.fit_verdict(runner.run(verdicts.judge, "judge", scored, features=False), classes, flips=True)
    elif doubt and uniform.shows and not factors:
        share = _doubt(runner, scored, sample.facts, link, divisors, rule.noise_rate)
        rule = verdict.fit_verdict(uniform.sums, classes, doubt=share) if share else rule
    if suspected and not share:
        mixed = mix_outputs(runner, scored, sample, link, rule.noise_rate)
        if mixed is not None:
            mix, calibrated = mixed
            uniform = _judge_uniform(runner, scored, calibrated, own, replace(link, mix=mix))
            link, F = uniform.link, mix.mixed(F)
        rule = _recalibrated(runner, scored, classes, uniform)
    dependence = noise.dependence_of_suspects(F, y, link, flips, rule)
    return replace(rule, class_dependence=dependence, flips=flips is not None), link


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
    link, shows, clear = uniform_link(likeliest, calibrated, own[1], right=right)
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
    rows = sum(extent.rows for extent in scored)
    runner.engine.tell(references=references, searched=min(1.0, SEARCHED / rows))
    near = runner.run(neighbours.nearest, "neighbours", scored)
    runner.engine.forget("references", "searched")
    return runner.timed("neighbours", labellers.find_doubt, facts, near, link, divisors, rate)
