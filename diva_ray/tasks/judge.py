"""Judge: the rules for verdicts, fitted to histograms of all rows and to a sample of fixed size."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from diva_ray.core import noise, verdict
from diva_ray.engine import verdicts
from diva_ray.tasks.derived import Derived
from diva_ray.tasks.session import Session

REFERENCE_TARGETS = 64  # labels of other rows that a row's own is compared with, for targets that are not classes
SAMPLED = 4096  # rows from which noise that is not drawn at random is estimated


def judge(session: Session, derived: Derived) -> tuple[verdict.Verdict, verdict.Link | None]:
    """Return the rules for verdicts, and the calibration of the outputs if targets are classes."""
    runner, scored = session.runner, session.scored()
    if session.task == "classification":
        return _judge_classes(session, derived)
    runner.engine.tell(examples=max(1, -(-REFERENCE_TARGETS // len(scored))))
    (reference,) = runner.run(verdicts.examples_of_targets, "calibrate", scored).joined()
    runner.engine.tell(reference=reference, link=None)
    return verdict.fit_loss_verdict(runner.run(verdicts.judge, "judge", scored)), None


def _judge_classes(session: Session, derived: Derived) -> tuple[verdict.Verdict, verdict.Link]:
    """Uniform noise first; then flips between classes, or doubt of the labellers, where there is evidence."""
    runner, scored, classes = session.runner, session.scored(), derived.setup.outputs
    levels = verdict.class_levels(derived.tally["levels"])
    runner.engine.tell(levels=levels)
    link = verdict.fit_link(runner.run(verdicts.calibrate, "calibrate", scored), classes)
    runner.engine.tell(link=link, flips=None, sampled=-(-SAMPLED // len(scored)))
    sums = runner.run(verdicts.judge, "judge", scored)
    rule = verdict.fit_verdict(sums, classes)
    (facts,) = runner.run(verdicts.sample_facts, "judge", scored).joined()
    F, y = verdict.level(facts[:, 3:], facts[:, 1], levels), facts[:, 2].long()
    flips = None
    found = runner.timed("judge", noise.fit_flips, F, y, link, rule.noise_rate)
    if found is not None:
        link, flips = found
        runner.engine.tell(link=link, flips=flips)
        rule = verdict.fit_verdict(runner.run(verdicts.judge, "judge", scored), classes, flips=True)
    else:
        doubt = _doubt(session, derived, facts, link, levels, rule.noise_rate)
        rule = verdict.fit_verdict(sums, classes, doubt=doubt) if doubt else rule
    return replace(rule, class_dependence=noise.dependence_of_suspects(F, y, link, flips, rule)), link


def _doubt(session: Session, derived: Derived, facts: Tensor, link: verdict.Link, levels: Tensor, rate: float) -> float:
    """Return the share of labellers' doubt; neighbours are sought where rows are many for the columns."""
    leverage = float(facts[:, 1].mean()) if len(facts) else 1.0
    if derived.form != "primal" or leverage > noise.MOST_LEVERAGE or not 2 <= len(levels) <= noise.MOST_CLASSES:
        return 0.0
    runner, scored = session.runner, session.scored()
    references: tuple[Tensor, Tensor] = runner.run(verdicts.sample_whitened, "neighbours", scored).joined()
    runner.engine.tell(references=references)
    near = runner.run(verdicts.nearest, "neighbours", scored)
    runner.engine.forget("references")
    return runner.timed("neighbours", noise.find_doubt, facts, near, link, levels, rate)
