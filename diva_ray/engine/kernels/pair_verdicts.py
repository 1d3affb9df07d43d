"""Verdicts on pairs: how well either side suits the other against other partners, and the rows of the output."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.core import partners, verdict
from diva_ray.core.histogram import Histogram
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, unit_keys
from diva_ray.engine.kernels.pairs import joint_scores, views
from diva_ray.engine.kernels.passes import left_out_rows, scored_rows
from diva_ray.engine.kernels.samples import as_table, facts_of, lists, write_rows
from diva_ray.engine.kernels.sampling import rows_of_sample, sampled
from diva_ray.engine.kernels.shaping import shaping
from diva_ray.engine.kernels.verdicts import z_of
from diva_ray.engine.reduce import Rows, Tally

ROWS = 4096  # compared with the references at a time


def units(shard: Shard, known: Known) -> list[tuple[Tensor, Tensor]]:
    """Return (first sides, second sides) of unit length for every similarity: left-out predictions and targets of both
    directions, and, where the towers are aligned, the two bands as they are."""
    sides = []
    for one, mine in views(shard, known):
        targets = one.state["targets"]
        assert isinstance(targets, Tensor)
        sides.append((unit(left_out_rows(one, mine).outputs), unit(targets)))
    return [*sides, (sides[1][1], sides[0][1])] if known["aligned"] else sides


def unit(rows: Tensor) -> Tensor:
    """Return rows of length 1 in float32; a row of zeros stays one."""
    return (rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)).float()


def sample(shard: Shard, known: Known) -> Rows:
    """Return the sides of a few pairs under every similarity, with their groups and places."""
    chosen = sampled(shard, known)
    sides = [side[chosen] for both in units(shard, known) for side in both]
    return rows_of_sample(shard, known, *sides, unit_keys(shard)[chosen], torch.from_numpy(shard.positions())[chosen])


def margins(shard: Shard, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """Return own cosines (k, n), log-odds of belonging together (n,), and which reference suits each side best (2, n).

    2 k n m (c_1 + c_2) operations for m references.
    """
    if "margins" not in shard.state:
        sides, codes = units(shard, known), unit_keys(shard)
        parts = [
            _margins_of([(a[rows], b[rows]) for a, b in sides], codes[rows], known)
            for rows in (slice(a, a + ROWS) for a in range(0, len(shard), ROWS))
        ]
        shard.state["margins"] = tuple(torch.cat(part, -1) for part in zip(*parts, strict=True))
    cosines, odds, nearest = cast(tuple[Tensor, ...], shard.state["margins"])
    return cosines, odds, nearest


def _margins_of(sides: list[tuple[Tensor, Tensor]], codes: Tensor, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    fitted: partners.Partners = known["partners"]
    references, reference_codes = known["references"]
    others = codes[:, None] != reference_codes[None]
    cosines, odds, nearest = [], [], []
    for one, (first, second), (firsts, seconds) in zip(fitted.similarities, sides, references, strict=True):
        own = (first * second).sum(1).double()
        across, down = first @ seconds.T, second @ firsts.T
        cosines.append(own)
        odds.append(partners.margin_odds(own, across, down, others, one.sharpness))
        nearest.append(across.masked_fill(~others, -2.0).argmax(1))
    return torch.stack(cosines), partners.log_odds(torch.stack(odds), fitted), torch.stack(nearest[:2])


def judge(shard: Shard, known: Known) -> Histogram:
    """Return the joint histogram of the log-odds of belonging together and z."""
    return verdict.verdict_sums(margins(shard, known)[1], z_of(joint_scores(shard, known)), shaping(shard, known))


def write(shard: Shard, known: Known) -> Tally:
    """Last round: decide, write the shard's rows in the order of the input, and report counts and the worst of them."""
    return write_rows(shard, known, *pairs_table(shard, known))


def pairs_table(shard: Shard, known: Known) -> tuple[pa.Table, dict[str, Tensor]]:
    """Return the rows of the output, in the order of the input, and the facts behind them, in the shard's order."""
    cosines, odds, nearest = margins(shard, known)
    scored, directions = joint_scores(shard, known), views(shard, known)
    facts = facts_of(shard, known, z_of(scored), verdict.label_scores(odds, known["verdict"]))
    facts["odds"] = odds.float()
    found = [(left_out_rows(*one), scored_rows(*one)) for one in directions]
    columns: dict[str, Any] = {
        "id": shard.ids(),
        "weight": facts["weight"].float(),
        "derivative": scored[:, 0].float(),
        "standard_error": scored[:, 1].float(),
        "z": facts["z"],
        "is_detrimental": facts["detrimental"],
        "loss": torch.stack([rows.loss.double() for rows, _ in found]).sum(0).float(),
        "label_score": facts["label_score"],
        "is_label_issue": facts["issue"],
        "log_odds": odds.float(),
        "derivative_forward": found[0][1][:, 0].float(),
        "derivative_backward": found[1][1][:, 0].float(),
        "cosine_forward": cosines[0].float(),
        "cosine_backward": cosines[1].float(),
    }
    if known["aligned"]:
        columns["cosine"] = cosines[2].float()
    places = known["places"]
    columns["better_second"], columns["better_first"] = places[nearest[0]], places[nearest[1]]
    if shard.truth is not None:
        columns["belongs"] = shard.truth
        facts["planted"] = torch.from_numpy(pc.invert(shard.truth).to_numpy(zero_copy_only=False))
    if known["outputs"]:
        columns |= {
            f"loo_{name}": lists(rows.outputs) for name, (rows, _) in zip(("second", "first"), found, strict=True)
        }
    return as_table(shard, columns), facts
