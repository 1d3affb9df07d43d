"""What a kernel sees: the setup, the shard block by block, the current weights, and the rows it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.core.derivative import Validation, pairwise_contributions, random_signs
from diva_ray.core.hashing import splitmix
from diva_ray.core.leave_out import rows_by_group_size
from diva_ray.core.products import multiply, multiply_triangular_, spare
from diva_ray.data.columns import is_list
from diva_ray.data.prepare import block_bounds, prepare
from diva_ray.data.shards import Shard
from diva_ray.data.targets import SeveralClasses, class_codes, number_targets
from diva_ray.engine.device import CPU, block_rows, row_bytes
from diva_ray.engine.setup import Setup
from diva_ray.errors import InputError

# Entries of a slice of pairwise contributions, of which half a dozen are held: in the cache of a CPU, and within what a
# device keeps free for a block.
SLICE, DEVICE_SLICE = 2_000_000, 16_000_000
Known = Mapping[str, Any]
Kernel = Callable[[Shard, Known], Any]


@dataclass(frozen=True)
class Block:
    """Rows [start, stop) of a shard as the mathematics sees them, on the device of the pass."""

    start: int
    stop: int
    Z: Tensor
    Y: Tensor
    alpha: Tensor
    v: Tensor
    offset: Tensor | None
    group_rows: list[Tensor]


def device_of(known: Known) -> torch.device:
    """Return where this process's passes work on features; results of rows, and all that follows, are on the CPU."""
    return known.get("device", CPU)


def coordinates(Z: Tensor, known: Known) -> Tensor:
    """Return rows as the known adjoint takes them: as they are, or a whitened copy."""
    if known["adjoint"].inputs == "full":
        return Z
    return multiply_triangular_(spare(Z), known["solution"]["whiten"], upper=True).to(known["adjoint"].P.dtype)


def targets(shard: Shard, setup: Setup) -> Tensor | SeveralClasses:
    """Return the shard's targets: codes, or values in the dtype of the products, or what gives such values of rows."""
    cached = shard.state.get("targets")
    if cached is None:
        if setup.classes is None:
            cached = number_targets(shard.label, setup.label, shard.where).to(setup.dtype)
        elif is_list(shard.label.type):
            several = SeveralClasses(shard.label, setup.classes, setup.dtype)
            cached = several[:] if setup.keeps_outputs else several
        else:
            cached = class_codes(shard.label, setup.classes)
        shard.state["targets"] = cached
    assert isinstance(cached, Tensor | SeveralClasses)
    return cached if isinstance(cached, SeveralClasses) or cached.ndim == 1 else cached.to(setup.dtype)


def codes_of(shard: Shard, setup: Setup) -> Tensor:
    """Return the class of every row, of a task whose rows have one."""
    found = targets(shard, setup)
    assert isinstance(found, Tensor)
    return found


def rows_at_once(setup: Setup, device: torch.device) -> int:
    """Return the rows of a block: as many as are asked for, or as keep a device busy."""
    return block_rows(
        setup.block_rows, row_bytes(setup.scale.width, setup.outputs, setup.dtype.itemsize, setup.draws), device
    )


def blocks(shard: Shard, known: Known) -> Iterator[Block]:
    """Yield the shard block by block; the memory of Z is the next block's too."""
    setup: Setup = known["setup"]
    device, dtype = device_of(known), setup.dtype
    Y, alpha = targets(shard, setup), weights(shard, known).to(device, dtype)
    Y = Y.to(device) if isinstance(Y, Tensor) else Y
    v = validation_weights(shard, known).to(device, dtype)
    offset = None if shard.offset is None else shard.offset.to(device, dtype)
    group, bounds = leave_out_groups(shard, known), block_bounds(shard, rows_at_once(setup, device))
    buffer = torch.empty(max(b - a for a, b in bounds), setup.scale.width, dtype=dtype, device=device)
    for a, b in bounds:
        groups = [] if group is None else rows_by_group_size(group[a:b].to(device))
        Z = prepare(shard, a, b, setup.scale, buffer)
        yield Block(a, b, Z, Y[a:b].to(device), alpha[a:b], v[a:b], None if offset is None else offset[a:b], groups)


def leave_out_groups(shard: Shard, known: Known) -> Tensor | None:
    """Return the group that every row leaves with, or None where each leaves alone."""
    return None if known.get("ungrouped") else shard.group


@dataclass(frozen=True)
class Fold:
    """Rows set apart, fold `k` of `count` by the hash of their key (or group's): neither fitted to nor validating.

    With a separate validation table only its rows are set apart; every training row is fitted to.
    """

    k: int
    count: int

    def __call__(self, shard: Shard, known: Known) -> Tensor:
        """Return which rows of the shard are set apart."""
        if known.get("held_out", False) and not shard.extent.held_out:
            return torch.zeros(len(shard), dtype=torch.bool)
        return fold_of(shard, self.count) == self.k


def fold_of(shard: Shard, count: int) -> Tensor:
    """Return the fold of every row, 0..count - 1: rows of one group share it."""
    hashed = splitmix(unit_keys(shard)).numpy().view(np.uint64)
    return torch.from_numpy((hashed % np.uint64(count)).astype(np.int64))


def unit_keys(shard: Shard) -> Tensor:
    """Return the key of what leaves together: of the row, or of its group."""
    if shard.group is None or shard.group_keys is None:
        return shard.keys
    return torch.from_numpy(shard.group_keys.view(np.int64))[shard.group]


def weights(shard: Shard, known: Known) -> Tensor:
    """Return alpha of the current step: the table's, or what the last weight step left; 0 for rows set apart."""
    if shard.extent.pool:  # a pool's rows enter the fit when they are chosen, by sums of their own
        return torch.zeros_like(shard.weight)
    alpha = weights_after(shard, known, known.get("step"), known.get("factor", 1.0))
    if known.get("even"):  # every row alike that the table gives any weight
        alpha = (shard.weight > 0).to(alpha)
    if known.get("trust") and not known.get("step"):  # later steps start from there
        alpha = torch.where(validation_weights(shard, known) > 0, known["trust"] * alpha, alpha)
    return alpha.masked_fill(idle(shard, known), 0.0)


def idle(shard: Shard, known: Known) -> Tensor:
    """Return which rows must not be fitted to: those of a validation table, and those set apart."""
    if shard.extent.held_out:
        return torch.ones(len(shard), dtype=torch.bool)
    return known["fold"](shard, known) if "fold" in known else torch.zeros(len(shard), dtype=torch.bool)


def weights_after(shard: Shard, known: Known, step: str | None, factor: float) -> Tensor:
    """Return the weights that a step left, times the factor that keeps their mean; the table's if there was none."""
    if not step or (shard.extent.held_out and not shard.extent.pool):  # rows that only validate take no steps
        return shard.weight
    kept = shard.state.setdefault("weights", {})
    assert isinstance(kept, dict)
    if step not in kept:
        kept[step] = torch.from_numpy(found_in_store(known, weights_file(shard, step))["weights"])
        shard.state["weights"] = kept
    return kept[step] * factor


def found_in_store(known: Known, name: str) -> dict[str, np.ndarray]:
    """Return the arrays that an earlier pass has left in storage, where nothing else has them.

    Raises:
        InputError: the file is gone, or damaged.
    """
    found = known["store"].read_whole(name)
    if found is None:
        raise InputError(
            f"output: what a run has written must stay while it runs, got no whole {name} in {known['store'].path}. "
            "Begin the run again in a new `output`."
        )
    return found


def keep_weights(shard: Shard, known: Known, alpha: Tensor, step: str) -> None:
    """Keep the next step's weights with the shard, and in storage for a worker that takes its place."""
    kept = shard.state.setdefault("weights", {})
    assert isinstance(kept, dict)
    current = [name for name in (known.get("step"), known.get("pool_step")) if name in kept]
    shard.state["weights"] = {name: kept[name] for name in current} | {step: alpha}
    if known.get("store") is not None:
        known["store"].write_arrays(weights_file(shard, step), {"weights": alpha.numpy()})


def weights_file(shard: Shard, step: str) -> str:
    """Return where the weights of a step are kept."""
    return f"weights/{step}-{shard.extent.index:05d}.npz"


def row_signs(shard: Shard, setup: Setup) -> Tensor:
    """Return the sign of every row under every vector: drawn from the row's key, or from its group's."""
    return random_signs(unit_keys(shard), setup.vectors, setup.seed).to(setup.dtype)


def group_codes(shard: Shard, known: Known) -> Tensor:
    """Return a code of every row's leave-out group that is unique over all shards and ascends with them."""
    group = leave_out_groups(shard, known)
    local = torch.arange(len(shard)) if group is None else group
    return (shard.extent.index << 40) + local


def source_codes(shard: Shard, setup: Setup) -> Tensor | None:
    """Return the code of every row's source; None of a validation table, which is no source."""
    held, place = own_sources(shard, setup, "cpu")
    return None if place is None else held[place]


def own_sources(shard: Shard, setup: Setup, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """Return the codes of the sources that a shard's rows have, rising, and every row's place among them; none of a
    validation table, which is no source."""
    if shard.extent.held_out or shard.source is None or setup.sources is None:
        return torch.zeros(0, dtype=torch.int64, device=device), None
    held, place = _sources_held(shard.source, setup.sources)
    return held.to(device), place.to(device)


def _sources_held(column: pa.Array, sources: pa.Array) -> tuple[Tensor, Tensor]:
    """Return the codes in `sources` that occur in a column, rising, and every row's place among them.

    All sources are looked for in a table of the column's own: a table of a million would be made for every shard.
    """
    own = pc.unique(column)
    at = pc.index_in(sources, own)
    held = pc.indices_nonzero(at.is_valid()).to_numpy().astype(np.int64)
    place = np.empty_like(held)
    place[at.drop_null().to_numpy()] = np.arange(len(held))
    return torch.from_numpy(held), torch.from_numpy(place[pc.index_in(column, own).to_numpy()])


def validation_weights(shard: Shard, known: Known) -> Tensor:
    """Return v: with a separate validation table the training rows do not validate."""
    if known.get("validates") == "fitted":  # every row as much as it weighs in the fit
        return weights(shard, known)
    if shard.extent.pool or (known.get("held_out", False) and not shard.extent.held_out):
        return torch.zeros_like(shard.validation)
    v = shard.validation
    if known.get("validation_source") is not None and shard.source is not None:
        validates = pc.equal(shard.source, known["validation_source"]).fill_null(False).to_numpy(zero_copy_only=False)
        v = v * torch.from_numpy(validates).double()
    if known.get("believed") and not shard.extent.held_out:  # a row whose weight was lowered validates as much less
        left = weights_after(shard, known, known.get("step"), 1 / known["believed"]) / shard.weight
        v = v * torch.where(shard.weight > 0, left.clamp_max(1.0), 1.0)  # of weight 0 in the table: never lowered
    return v.masked_fill(known["fold"](shard, known), 0.0) if "fold" in known else v


@dataclass(frozen=True)
class ValidationRows:
    """Every validation row, for exact standard errors (a few thousand rows at most).

    Attributes:
        reach: A^-1 Z_v', (p, m): the kernel of a row z with them is z reach.
        rows: what pairwise contributions need of them.
        codes: sorted leave-out group codes; `rows.group` counts them.
    """

    reach: Tensor
    rows: Validation
    codes: Tensor

    def contributions(self, Z: Tensor, r: Tensor, codes: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield C_jG for slices of the rows j, so that about as many entries are held as suit the device."""
        step = max(16, (SLICE if Z.is_cpu else DEVICE_SLICE) // max(1, len(self.rows.group)))
        groups = rows_by_group_size(self.rows.group)
        at = torch.searchsorted(self.codes, codes).clamp_max(len(self.codes) - 1)
        inside = torch.where(self.codes[at] == codes, at, -1)
        for a in range(0, len(Z), step):
            part = slice(a, min(a + step, len(Z)))
            K = multiply(Z[part], self.reach)
            yield part, pairwise_contributions(K, r[part], inside[part], self.rows, groups)
