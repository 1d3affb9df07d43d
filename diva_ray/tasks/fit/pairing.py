"""What a table of pairs is fitted by: either band predicted from the other, and similarities that tell partners."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diva_ray.core import partners
from diva_ray.core.verdict import Verdict
from diva_ray.data.scale import Scale
from diva_ray.engine.kernels import pair_verdicts, pairs
from diva_ray.engine.kernels.sampling import in_order
from diva_ray.engine.reduce import Tally
from diva_ray.engine.setup import Setup
from diva_ray.tasks.fit.derive import derive, with_errors
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.setup.forms import takes_dual
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.setup.settle import standard_scales

REFERENCES = 512  # other pairs, with whose sides every pair's own are compared


@dataclass(frozen=True)
class Judged:
    """What was found of a table of pairs, beside its derivatives.

    Attributes:
        aligned: whether the towers share a space, `alignment` standard errors beyond chance.
        slopes: of the pretrained model in each direction; None where they do not.
        partners: the similarities and how they add up.
        rule: cuts on the probability of belonging together and on z.
    """

    aligned: bool
    alignment: float
    slopes: dict[str, float | None]
    partners: partners.Partners
    rule: Verdict


def target_scales(session: Session) -> tuple[Scale, Scale]:
    """Return how either band is scaled as a target: centred, mean squared norm 1, whatever `standardize` says."""
    means, scales = standard_scales(session.scan)
    first, second = (Scale((mean,), (scale,), False) for mean, scale in zip(means, scales, strict=True))
    return first, second


def align(session: Session) -> tuple[bool, float, dict[str, float | None]]:
    """Return whether the towers are aligned, the evidence, and the slope of the pretrained model in each direction."""
    nothing: dict[str, float | None] = dict.fromkeys(pairs.DIRECTIONS)
    widths = session.scan.widths
    if widths[0] != widths[1]:
        return False, 0.0, nothing
    first, second, codes = in_order(session.runner.run(pairs.sample_sides, "align", session.scored()))
    found = partners.alignment(first.double(), second.double(), codes)
    if not found[0]:
        return found[0], found[1], nothing
    back = partners.alignment(second.double(), first.double(), codes)
    return True, found[1], {"forward": found[2], "backward": back[2]}


def derive_directions(
    session: Session, scales: tuple[Scale, Scale], slopes: dict[str, float | None]
) -> tuple[dict[str, Derived], Tensor]:
    """Return what is known of either direction, and joint sums for every source; the joint derivative and its standard
    error stay with the shards."""
    config, validating = session.config, session.scan.counts["validating"]
    rows = session.runner.rows
    setups = {name: direction_setup(session.setup, scales, *places) for name, places in pairs.DIRECTIONS.items()}
    widest = max(setups.values(), key=lambda setup: setup.scale.width)
    dual = takes_dual(rows, widest.scale.width, config.ridge)
    errors = "exact" if dual or with_errors(widest, rows, validating, config.standard_errors).collect else "estimate"
    # The draws of both directions are added, so both take the same sign vectors.
    vectors = min(with_errors(setup, rows, validating, errors).vectors for setup in setups.values())
    derived = {}
    for name, setup in setups.items():
        runner = replace(session.runner, engine=pairs.Directed(session.engine, name))
        runner.engine.tell(setup=setup, slope=slopes[name], draws=True)
        derived[name] = derive(runner, setup, config.ridge, validating, errors, dual=dual, vectors=vectors)
    joint: Tally = session.runner.run(pairs.join, "join", session.scored())
    return derived, joint["sources"].whole(session.setup.n_sources)


def direction_setup(setup: Setup, scales: tuple[Scale, Scale], source: int, target: int) -> Setup:
    """Return the setup of predicting one band from the other."""
    own = setup.scale
    outputs = scales[target].width
    center = torch.zeros(outputs, dtype=torch.float64) if setup.loss == "cosine" else None
    scale = Scale((own.mean[source],), (own.scale[source],), own.intercept)
    return replace(setup, task="vector", scale=scale, outputs=outputs, center=center)


def fit_partners(session: Session) -> partners.Partners:
    """Return how cosines tell partners, fitted to a sample of pairs; the shards know it and the references then."""
    runner = session.runner
    *sides, codes, places = in_order(runner.run(pair_verdicts.sample, "calibrate", session.scored()))
    sampled = [(sides[k], sides[k + 1]) for k in range(0, len(sides), 2)]
    some = slice(REFERENCES)
    fitted = runner.timed("calibrate", similarities_of, sampled, codes, some)
    references = [(first[some], second[some]) for first, second in sampled]
    runner.engine.tell(partners=fitted, references=(references, codes[some]), places=places[some])
    return fitted


def similarities_of(sampled: list[tuple[Tensor, Tensor]], codes: Tensor, at: slice) -> partners.Partners:
    """Return the similarities, each fitted alone and then together; the references are the sample's rows `at`."""
    others = codes[:, None] != codes[at][None]
    found, own, cross = [], [], []
    for first, second in sampled:
        mine, across, down = (first * second).sum(1).double(), first @ second[at].T, second @ first[at].T
        one = partners.fit_sharpness(mine, across, down, others)
        found.append(one)
        own.append(partners.margin_odds(mine, across, down, others, one.sharpness))
        cross.append(partners.cross_odds(across, down[at], others, others[at], one.sharpness))
    return partners.fit_weights(found, torch.stack(own), torch.stack(cross), len(torch.unique(codes)))
