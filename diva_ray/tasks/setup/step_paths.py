"""Where a walk of weight steps can go."""

from __future__ import annotations

from dataclasses import dataclass

from diva_ray.core.reweight import Step


@dataclass(frozen=True)
class Path:
    """Where a walk can go.

    Attributes:
        chain: the step that it goes on along.
        beside: steps that are tried from each of its states.
    """

    chain: Step
    beside: tuple[Step, ...] = ()


# Cleaner data bear less ridge, and a leave-one-out error on noisy labels cannot tell: steps of the grid of ridges.
RIDGES = (1.0, 1 / 3, 1 / 9)
LOWERED = Path(Step("shrink", 1.0), (Step("issues"), Step("doubtful")))  # by what looks harmful or wrong
SAMPLES = Path(LOWERED.chain, (*LOWERED.beside, Step("uncertain", 0.5), Step("uncertain", 0.2)))  # of classes
SOURCES = Path(Step("sources", 0.3), (Step("sources", 0.1), Step("sources", 1.0)))


def walk_path(task: str, level: str) -> Path:
    """Return where the safe steps of a task go, for every row or for every source."""
    if level == "source":
        return SOURCES
    return SAMPLES if task == "classification" else LOWERED
