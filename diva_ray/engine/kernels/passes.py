"""The passes: kernels (shard, known) -> partial sums, the same on every engine.

A kernel is a pure function of the shard's rows and of what the driver made known; per-row results stay in `shard.state`
and are computed again if a worker lost them. Partials are added in the order of the shards.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diva_ray.core import derivative as dd
from diva_ray.core import levels, multilabel
from diva_ray.core.adjoint import AdjointAccumulator
from diva_ray.core.grid import Family, grid_squared_errors, grid_squares
from diva_ray.core.leave_out import LeftOut, adjoint
from diva_ray.core.products import add_rows_
from diva_ray.core.ridge import FitAccumulator, FitSums
from diva_ray.core.ridge_choice import pack_moments
from diva_ray.core.second_order import SecondOrder, second_order
from diva_ray.data.prepare import block_bounds, prepare
from diva_ray.data.shards import Shard
from diva_ray.engine.context import (
    Block,
    Known,
    blocks,
    codes_of,
    coordinates,
    device_of,
    group_codes,
    idle,
    keep_weights,
    leave_out_groups,
    own_sources,
    row_signs,
    source_codes,
    targets,
    validation_weights,
    weights,
)
from diva_ray.engine.kernels.left_out import (
    RowStore,
    facts_of_outputs,
    fitted,
    left_out_again,
    left_out_of,
    outputs_again,
)
from diva_ray.engine.kernels.row_files import found_before
from diva_ray.engine.kernels.shaping import shaping, units_by_class
from diva_ray.engine.reduce import ByCode, Partial, Rows, Tally, add_in_order
from diva_ray.engine.setup import Setup


def fit(shard: Shard, known: Known) -> FitSums:
    """Fit pass: Z' D Z and Z' D Y."""
    setup: Setup = known["setup"]
    sums = FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device_of(known))
    for block in blocks(shard, known):
        sums.add(block.Z, block.Y, block.alpha, block.offset)
    return sums.sums()


def grid(shard: Shard, known: Known) -> Tensor:
    """Grid pass: moments of the leave-one-out squared error for every ridge, packed.

    Squared error whatever the loss: cross-entropy of raw outputs prefers no ridge at all, and finds less.
    """
    family: Family = known["family"]
    count, factor = len(family.ridges), known.get("outputs_factor")
    total = torch.zeros(count + 3, count + 1, dtype=torch.float64)
    for b in blocks(shard, known):
        if factor is not None and b.Y.ndim == 1 and b.offset is None and not b.group_rows:
            found = grid_squares(b.Z, b.Y, b.alpha, family, factor)
        else:
            found = grid_squared_errors(b.Z, b.Y, b.alpha, b.offset, b.group_rows, family)
        total += pack_moments(found, b.alpha, b.v, b.group_rows)
    return total


def leave_one_out(shard: Shard, known: Known) -> Partial:
    """Adjoint pass: left-out predictions of every row, of which what `RowStore` holds stays with the shard, and the
    sums of the derivative."""
    setup: Setup = known["setup"]
    device = device_of(known)
    sums = AdjointAccumulator(
        setup.scale.width, setup.outputs, setup.vectors, setup.dtype, device, setup.inputs, folding=setup.folding()
    )
    signs, codes = row_signs(shard, setup).to(device), group_codes(shard, known).to(device)
    kept, checked = [], known.get("checked")
    squares = torch.zeros(2, len(checked.codes) if checked else 0, dtype=torch.float64, device=device)
    for b, U, left, t, second in _left_out(shard, known):
        sums.add(U, b.alpha, left, t, signs[b.start : b.stop], second)
        if checked is not None:
            squares += checked.sums(U, t, b.alpha[:, None] * left.e, codes[b.start : b.stop])
        if setup.collect:
            some = torch.nonzero((b.v > 0) | (t != 0).any(1)).squeeze(1)  # or whose group validates
            moved = b.alpha[some, None] * left.e[some]
            kept.append((U[some], t[some], moved, codes[b.start : b.stop][some]))
    counts = tally(shard, known, left_out_rows(shard, known))
    counts["checked"] = squares
    return Partial(sums.sums(), counts, Rows(*kept) if kept else None)


def _left_out(
    shard: Shard, known: Known, before: Tensor | None = None
) -> Iterator[tuple[Block, Tensor, LeftOut, Tensor, SecondOrder | None]]:
    """Yield every block with its whitened features, left-out residuals, adjoint residuals and (with sign vectors) what
    stands for the second order; at the end the shard has the results of its rows. n p^2 operations; with q = z' A^-1 z
    known from `before`, 2 n p c, and nothing whitened."""
    setup: Setup = known["setup"]
    rows, loss, folding = RowStore(len(shard), setup), setup.loss_function(), setup.folding()
    q = torch.empty(len(shard), dtype=setup.dtype)
    for b in blocks(shard, known):
        F, r = fitted(b, known)
        U, left = left_out_of(shard, known, b, r) if before is None else (b.Z, left_out_again(b, r, before))
        outputs = F.add_(r).sub_(left.e)
        values, gradient = loss(outputs, b.Y)
        t, own = adjoint(left, b.v[:, None] * gradient)
        second = second_order(left, b.alpha, t) if setup.vectors else None
        if second is not None:
            drawn = dd.own_draws(left, r, t, setup.vectors, folding)
            rows.put(b.start, b.stop, drawn=drawn, reach=second.reach, bend=second.bend)
        rows.put(b.start, b.stop, r=r, outputs=outputs, own=own, leverage=1 - left.room, q=left.q, loss=values)
        rows.put(b.start, b.stop, **facts_of_outputs(outputs, b.Y, setup))
        q[b.start : b.stop] = left.q
        rows.least_room = min(rows.least_room, left.least_room)
        yield b, U, left, t, second
    shard.state["rows"] = rows
    if before is None and known.get("left_files") and leave_out_groups(shard, known) is None:
        known["left_files"].keep(shard, q=q)


def least_room(shard: Shard, known: Known) -> Partial:
    """Return the largest leverage of a row or group, nothing else; n p^2 operations."""
    parts = (left_out_of(shard, known, b, b.Z.new_zeros(len(b.Z), 1))[1].least_room for b in blocks(shard, known))
    return Partial(None, Tally(max_leverage=1 - min(parts, default=1.0)))


def tally(shard: Shard, known: Known, rows: RowStore) -> Tally:
    """Return the sums over validation rows that the summary and the rules for verdicts need."""
    setup: Setup = known["setup"]
    v = validation_weights(shard, known)
    result = Tally(loss=float(v @ rows.loss.double()), max_leverage=1 - rows.least_room)
    result["wrong"] = float(v @ rows.wrong)
    if setup.task == "multilabel":
        several, shapes = targets(shard, setup), shaping(shard, known)
        parts = (slice(a, b) for a, b in block_bounds(shard, setup.block_rows))
        result["levels"] = add_in_order(multilabel.class_shares(several[rows], shapes[rows]) for rows in parts)
    if setup.task == "classification":
        Y = codes_of(shard, setup)
        shapes = shaping(shard, known)
        result["levels"] = levels.class_sums(rows.given, Y, shapes, setup.outputs)
        result["class_units"] = units_by_class(shard, known)
        result["reach"] = levels.reach_sums(rows.q, shapes)
        result["max_q"] = float((rows.q * shapes.to(rows.q)).max()) if len(shapes) else 0.0
        own = torch.full_like(v, not shard.extent.held_out)  # a validation table's rows are no samples
        for name, values in (
            ("class_n", own),
            ("class_wrong", own * rows.wrong),
            ("class_loss", own * rows.loss.double()),
        ):
            result[name] = torch.zeros(setup.outputs, dtype=torch.float64).index_add_(0, Y, values)
    return result


def left_out_rows(shard: Shard, known: Known) -> RowStore:
    """Return the shard's left-out rows; a worker that does not have them computes them again, but none of the sums, and
    from what is in storage no n p^2."""
    if "rows" not in shard.state:
        if "dual" in known:
            shard.state["rows"] = known["dual"][shard.extent.index]
        else:
            before = found_before(known.get("left_files"), shard)
            for _ in _left_out(shard, known, None if before is None else before["q"]):
                pass
    rows = shard.state["rows"]
    assert isinstance(rows, RowStore)
    return rows


def left_out_outputs(shard: Shard, known: Known) -> Iterator[tuple[slice, Tensor]]:
    """Yield ranges of rows with their left-out outputs: all rows at once where these are kept, else block by block."""
    rows = left_out_rows(shard, known)
    if len(rows.outputs):
        yield slice(0, len(shard)), rows.outputs
        return
    for b in blocks(shard, known):
        yield slice(b.start, b.stop), outputs_again(shard, known, b, rows.leverage[b.start : b.stop])


def score(shard: Shard, known: Known) -> Partial:
    """Score pass: derivative and standard error of every row, kept with the shard; sums for every source.

    With `known["update"]`, a `core.reweight.Step`, the same read of every block also adds the next step's fit sums:
    two reads a weight step.
    """
    setup: Setup = known["setup"]
    rows, adjoint_, device = left_out_rows(shard, known), known["adjoint"], device_of(known)
    signs, folding = row_signs(shard, setup).to(device), setup.folding()
    held, codes = own_sources(shard, setup, device)
    exact = None if known.get("draws") else known.get("validation")  # pairs: added up in `pairs.join`
    update = known.get("update")
    scored = torch.zeros(len(shard), 2, dtype=torch.float64)
    drawn = torch.zeros(len(shard), setup.vectors + 1, dtype=torch.float64) if known.get("draws") else None
    columns = 1 + (len(exact.codes) if exact else setup.vectors + 1)
    following = FitAccumulator(setup.scale.width, setup.outputs, setup.dtype, device) if update else None
    alpha, apart = weights(shard, known).clone(), idle(shard, known)
    by_source = ByCode(held, torch.zeros(len(held), columns, dtype=torch.float64, device=device))
    groups = group_codes(shard, known).to(device)
    # What a source's derivative is of: a weight added to every row, or (in steps) a factor of the weights there are.
    moved = (alpha.clone() if known.get("multiplied") else torch.ones_like(alpha)).to(device)
    scratch: Tensor | None = None
    for b in blocks(shard, known):
        part = slice(b.start, b.stop)
        r = rows.r[part].to(device) if len(rows.r) else fitted(b, known)[1]
        Z = coordinates(b.Z, known)
        if Z.is_cpu and (scratch is None or len(scratch) < len(Z)):
            scratch = torch.empty_like(Z)
        own = rows.own_terms(part, Z)
        d, draws = dd.derivative(Z, r.to(Z), own, signs[part].to(Z), adjoint_, scratch, folding)
        d = d.double()
        every, error = d[:, None], torch.zeros_like(d)
        if own.reach is not None:
            rest = dd.drawn_variance(own.reach, adjoint_.moments)
            every = torch.cat([every, draws.double(), rest[:, None]], 1)
            error = setup.errors_of(every)[1]
            if drawn is not None:
                drawn[part] = every[:, 1:].cpu()
        if codes is not None:
            factor = moved[part, None].expand(every.shape).clone()
            factor[:, setup.vectors + 1 :].square_()  # of variances
            add_rows_(by_source.sums[:, : every.shape[1]], codes[part], every * factor)
        for inner, C in exact.contributions(b.Z, r, groups[part]) if exact else ():
            error[inner] = C.norm(dim=1).double()
            if codes is not None:
                add_rows_(by_source.sums[:, 1:], codes[part][inner], C.double() * moved[part][inner, None])
        d, error = d.cpu(), error.cpu()
        scored[part, 0], scored[part, 1] = d, error
        if following is not None and update is not None:
            alpha[part] = update(alpha[part], d, error).masked_fill(apart[part], 0.0)
            following.add(b.Z, b.Y, alpha[part].to(b.Z), b.offset)
    found = {"scored": scored} if drawn is None else {"scored": scored, "drawn": drawn}
    shard.state.update(found)
    if known.get("score_files") and update is None:  # a step leaves its weights
        known["score_files"].keep(shard, **found)
    if following is not None:
        keep_weights(shard, known, alpha, known["next_step"])
    return Partial(following.sums() if following else None, Tally(sources=by_source))


def scored_rows(shard: Shard, known: Known, name: str = "scored") -> Tensor:
    """Return derivative and standard error of every row (n, 2), or (`drawn`) draws of the derivative under every sign
    vector and the variance that the second order adds to their mean square (n, vectors + 1); from storage, or computed
    again, if this worker does not have them."""
    if name not in shard.state:
        if "dual" in known:
            shard.state["scored"] = known["dual_scored"][shard.extent.index]
        elif before := found_before(known.get("score_files"), shard):
            shard.state.update(before)
        else:
            score(shard, known)
    scored = shard.state[name]
    assert isinstance(scored, Tensor)
    return scored


def gather(shard: Shard, known: Known) -> Rows:
    """Return the prepared rows themselves: for the dual form, whose n x p is smaller than the p x p sums."""
    setup: Setup = known["setup"]
    n = len(shard)
    Z = prepare(shard, 0, n, setup.scale, torch.empty(n, setup.scale.width, dtype=setup.dtype))
    alpha, v = weights(shard, known).to(setup.dtype), validation_weights(shard, known).to(setup.dtype)
    offset = torch.zeros(n, setup.outputs) if shard.offset is None else shard.offset
    Y = targets(shard, setup)
    assert isinstance(Y, torch.Tensor)  # the dual form keeps outputs
    return Rows((Z, Y, alpha, v, offset.to("cpu", setup.dtype), group_codes(shard, known)))


def receive(shard: Shard, known: Known) -> Partial:
    """Keep what the dual form found for the shard's rows; return their tally."""
    shard.state.pop("rows", None)
    shard.state.pop("scored", None)
    counts, setup = tally(shard, known, left_out_rows(shard, known)), known["setup"]
    counts["sources"] = ByCode.none(1)
    if setup.sources is not None:
        moved = known["dual_contributions"][shard.extent.index].double()
        every = torch.cat([moved.sum(1, keepdim=True), moved], 1)
        codes = source_codes(shard, setup)
        counts["sources"] = ByCode.none(every.shape[1]) if codes is None else ByCode.of(codes, every)
    return Partial(None, counts)
