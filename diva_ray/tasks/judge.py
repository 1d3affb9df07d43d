"""The rules for verdicts, fitted to histograms of the rows: two rounds over what the passes left with the shards."""

from __future__ import annotations

from diva_ray.core import verdict
from diva_ray.data.shards import Extent
from diva_ray.engine import verdicts
from diva_ray.engine.context import Setup, Tally
from diva_ray.tasks.runner import Runner

REFERENCE_TARGETS = 64  # labels of other rows that a row's own is compared with, for targets that are not classes


def judge(
    runner: Runner, setup: Setup, tally: Tally, scored: list[Extent]
) -> tuple[verdict.Verdict, verdict.Link | None]:
    """Return the rules for verdicts, which the shards know from then on."""
    link = calibrate(runner, setup, tally, scored)
    histogram = runner.run(verdicts.judge, "judge", scored)
    classes = setup.task == "classification"
    rule = verdict.fit_verdict(histogram, setup.outputs) if classes else verdict.fit_loss_verdict(histogram)
    runner.engine.tell(verdict=rule)
    return rule, link


def calibrate(runner: Runner, setup: Setup, tally: Tally, scored: list[Extent]) -> verdict.Link | None:
    """Return how outputs become probabilities of classes; of other targets, a few stand for other rows' labels."""
    if setup.task == "classification":
        runner.engine.tell(levels=verdict.class_levels(tally["levels"]))
        link = verdict.fit_link(runner.run(verdicts.calibrate, "calibrate", scored), setup.outputs)
        runner.engine.tell(link=link)
        return link
    runner.engine.tell(examples=max(1, -(-REFERENCE_TARGETS // len(scored))))
    (reference,) = runner.run(verdicts.examples_of_targets, "calibrate", scored).joined()
    runner.engine.tell(reference=reference, link=None)
    return None
