"""Pairs: which of two bands' rows belong together, and what each pair does to predicting one band from the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.core import partners
from diva_ray.core.verdict import Verdict
from diva_ray.data.scale import Scale
from diva_ray.engine import pair_verdicts, pairs
from diva_ray.engine.reduce import Tally
from diva_ray.engine.sampling import in_order
from diva_ray.engine.setup import Setup
from diva_ray.tasks.begin import conclude
from diva_ray.tasks.checks import check_bands
from diva_ray.tasks.derive import derive, with_errors
from diva_ray.tasks.derived import Derived, takes_dual
from diva_ray.tasks.pairs_page import page_of, summarise, told
from diva_ray.tasks.result import Result
from diva_ray.tasks.sampled import tell_sample
from diva_ray.tasks.session import Session
from diva_ray.tasks.summary import sources_of
from diva_ray.tasks.written import finish_copies, write_samples

REFERENCES = 512  # other pairs, with whose sides every pair's own are compared
SAMPLED = 1024  # pairs to which similarities are fitted; the references are among them


@dataclass(frozen=True)
class Judged:
    """What was found of a table of pairs, beside its derivatives.

    Attributes:
        aligned: whether the towers share a space, `alignment` standard errors beyond chance.
        partners: the similarities and how they add up.
        rule: cuts on the probability of belonging together and on z.
    """

    aligned: bool
    alignment: float
    partners: partners.Partners
    rule: Verdict


def score_pairs(session: Session) -> Result:
    """Return the result of scoring pairs: the derivative of the summed losses of both directions, and verdicts."""
    if session.config.ridge == "auto":  # a side that is always the same asks for none, and lets none be chosen
        check_bands(session)
    scales = target_scales(session)
    session.engine.tell(scales=scales, setup=session.setup)
    tell_sample(session.runner, session.scored(), SAMPLED, "align")
    aligned, alignment, slopes = align(session)
    session.engine.tell(aligned=aligned)
    derived, by_source = derive_directions(session, scales, slopes)
    session.folder.write_json("state.json", session.mark)
    fitted = fit_partners(session)
    judged = session.runner.run(pair_verdicts.judge, "judge", session.scored())
    rule = partners.fit_pair_verdict(judged, fitted.clear)
    session.engine.tell(verdict=rule)
    return _finish(session, derived, by_source, Judged(aligned, alignment, fitted, rule))


def target_scales(session: Session) -> tuple[Scale, Scale]:
    """Return how either band is scaled as a target: centred, mean squared norm 1, whatever `standardize` says."""
    found = session.scan
    scales = []
    for rows, total, (spread, _) in zip(found.rows, found.sums, found.spreads(), strict=True):
        mean = total / max(rows, 1)
        scale = spread**-0.5 if spread else 1.0  # a constant band stays at 0
        scales.append(Scale((mean,), (scale,), False))
    return scales[0], scales[1]


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
    config, heard = session.config, session.scan.counts["heard"]
    rows = sum(table.rows for table in session.tables)
    setups = {name: direction_setup(session.setup, scales, *places) for name, places in pairs.DIRECTIONS.items()}
    widest = max(setups.values(), key=lambda setup: setup.scale.width)
    dual = takes_dual(rows, widest.scale.width, config.ridge)
    errors = "exact" if dual or with_errors(widest, heard, config.standard_errors).collect else "estimate"
    # The draws of both directions are added, so both take the same sign vectors.
    vectors = min(with_errors(setup, heard, errors).vectors for setup in setups.values())
    derived = {}
    for name, setup in setups.items():
        runner = replace(session.runner, engine=pairs.Directed(session.engine, name))
        runner.engine.tell(setup=setup, slope=slopes[name], draws=True)
        derived[name] = derive(runner, setup, config.ridge, rows, heard, errors, dual=dual, vectors=vectors)
    joint: Tally = session.runner.run(pairs.join, "join", session.scored())
    return derived, joint["sources"]


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


def _finish(session: Session, derived: dict[str, Derived], by_source: Tensor, judged: Judged) -> Result:
    written: Tally = write_samples(session, pair_verdicts.write)
    summary: dict[str, Any] = summarise(session, derived, judged, written)
    sources = sources_of(derived["forward"].setup, by_source, written)
    if sources:
        session.folder.write_table("sources.parquet", pa.Table.from_pylist(sources))
    finish_copies(session, summary)
    page = page_of(session, summary, written, sources)
    return conclude(session, summary, page, told, worker_memory=written["max_memory"])
