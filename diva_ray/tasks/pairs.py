"""Pairs: which of two bands' rows belong together, and what each pair does to predicting one band from the other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diva_ray.core import partners
from diva_ray.engine.kernels import pair_verdicts
from diva_ray.engine.reduce import Tally
from diva_ray.tasks.fit.derived import Derived
from diva_ray.tasks.fit.pairing import Judged, align, derive_directions, fit_partners, target_scales
from diva_ray.tasks.fit.sampled import tell_sample
from diva_ray.tasks.setup.checks import check_bands_vary
from diva_ray.tasks.setup.finish import conclude
from diva_ray.tasks.setup.result import Result
from diva_ray.tasks.setup.session import Session
from diva_ray.tasks.told.by_source import sources_of
from diva_ray.tasks.told.pairs_page import page_of, summarise, told
from diva_ray.tasks.told.written import finish_copies, write_samples

SAMPLED_PAIRS = 1024  # pairs to which similarities are fitted; the references are among them


def score_pairs(session: Session) -> Result:
    """Return the result of scoring pairs: the derivative of the summed losses of both directions, and verdicts."""
    if session.config.ridge == "auto":  # a side that is always the same asks for none, and lets none be chosen
        check_bands_vary(session)
    scales = target_scales(session)
    session.engine.tell(scales=scales, setup=session.setup)
    tell_sample(session.runner, session.scored(), SAMPLED_PAIRS, "align")
    aligned, alignment, slopes = align(session)
    session.engine.tell(aligned=aligned)
    derived, by_source = derive_directions(session, scales, slopes)
    session.folder.write_json("state.json", session.mark)
    fitted = fit_partners(session)
    judged = session.runner.run(pair_verdicts.judge, "judge", session.scored())
    rule = partners.fit_pair_verdict(judged, fitted.clear)
    session.engine.tell(verdict=rule)
    return _finish(session, derived, by_source, Judged(aligned, alignment, slopes, fitted, rule))


def _finish(session: Session, derived: dict[str, Derived], by_source: Tensor, judged: Judged) -> Result:
    written: Tally = write_samples(session, pair_verdicts.write)
    summary: dict[str, Any] = summarise(session, derived, judged, written)
    sources = sources_of(derived["forward"].setup, by_source, written)
    if sources is not None:
        session.folder.write_table("sources.parquet", sources)
    finish_copies(session, summary)
    page = page_of(session, summary, written, sources)
    return conclude(session, summary, page, told, worker_memory=written["max_memory"])
