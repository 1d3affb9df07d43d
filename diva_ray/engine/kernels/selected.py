"""The chosen rows of a pool: kept in storage as they are chosen, ranked a stretch of their order at a time, written.

Neither the driver nor a worker holds more of a round's order than one stretch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diva_ray.core import choose
from diva_ray.data.files import part_name
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, codes_of
from diva_ray.engine.kernels.extremes import EXAMPLES, Examples
from diva_ray.engine.kernels.samples import differ
from diva_ray.engine.reduce import Rows, Tally
from diva_ray.engine.setup import Setup

NOTHING = {"row": np.zeros(0, np.int64), "weight": np.zeros(0)} | {
    name: np.zeros(0, np.float32) for name in ("derivative", "z", "label_score")
}


def remember_chosen(shard: Shard, known: Known, facts: dict[str, Tensor]) -> None:
    """Keep what the output says of the rows chosen in this round, by rising key, where a worker that takes this one's
    place finds it."""
    order = np.argsort(_unsigned(facts["key"]))
    arrays = {name: values.numpy()[order] for name, values in facts.items()}
    known["store"].write_arrays(_file("chosen", shard, known["round"]), arrays)


def count_ranked(shard: Shard, known: Known) -> Tensor:
    """Return one round of the selection of the keys at which stretches of this round's order end, (stretches, 256)."""
    keys, prefix = _chosen_keys(shard, known), known["prefix"]
    nothing = torch.zeros_like(keys)
    counts = [choose.byte_counts(keys, nothing, prefix[k : k + 1], known["level"]) for k in range(len(prefix))]
    return torch.cat(counts)


def stretch_keys(shard: Shard, known: Known) -> Rows:
    """Return the keys of this round's chosen rows that lie in the stretch."""
    keys = _chosen_keys(shard, known)
    return Rows((keys[_within(keys, known)],))


def rank_stretch(shard: Shard, known: Known) -> int:
    """Keep the ranks of the chosen rows that lie in the stretch, from its sorted keys and the rank of the first; return
    how many they are."""
    keys, (ranked, first) = _chosen_keys(shard, known), known["ranked"]
    part = _within(keys, known)
    if part.start == part.stop:
        return 0
    name = _file("ranks", shard, known["round"])
    kept = known["store"].read_arrays(name)
    ranks = np.full(len(keys), -1) if kept is None else kept["ranks"]
    ranks[part] = first + np.searchsorted(_unsigned(ranked), _unsigned(keys[part]))
    known["store"].write_arrays(name, {"ranks": ranks})
    return part.stop - part.start


def write_selected(shard: Shard, known: Known) -> Tally:
    """Write a shard's rows chosen in the rounds that are kept, with their rank; return how many and their classes,
    and where the truth is known how many labels are wrong, in the pool (its rows with a weight) and among them."""
    setup: Setup = known["setup"]
    parts, places, by_class = [], [], setup.task == "classification"
    identifier = shard.ids()
    counts = torch.zeros(setup.outputs if by_class else 1, dtype=torch.int64)
    wrong, wrong_chosen = None, 0  # labels that are not the true ones
    if shard.truth is not None:
        wrong = torch.from_numpy(differ(shard.label, shard.truth, numbers=setup.task == "regression"))
    for k in range(max(known["rounds"], 1)):
        facts = known["store"].read_arrays(_file("chosen", shard, k)) if k < known["rounds"] else None
        if facts is None and (k or shard.extent.start):  # the first shard tells the columns, should none be chosen
            continue
        facts = NOTHING if facts is None else facts
        at = facts["row"]
        ranks = known["store"].read_arrays(_file("ranks", shard, k))["ranks"] if len(at) else at
        columns = {
            "id": identifier.take(pa.array(at)), "rank": ranks, "round": np.full(len(at), k),
            "derivative": facts["derivative"], "z": facts["z"],
            "label": shard.label.take(pa.array(at)), "label_score": facts["label_score"],
            "weight": facts["weight"],
        }  # fmt: skip
        parts.append(pa.table(columns))
        if len(counts) > 1:
            counts += torch.bincount(codes_of(shard, setup)[torch.from_numpy(at)], minlength=len(counts))
        wrong_chosen += 0 if wrong is None else int(wrong[torch.from_numpy(at)].sum())
        places.append(shard.positions()[np.asarray(at, np.int64)])
    found = Tally(n=sum(len(part) for part in parts), classes=counts, first=Examples([], [], "first"))
    if parts:
        table = pa.concat_tables(parts)
        known["folder"].write_table(f"selected/{part_name(shard.extent.index)}.parquet", table)
        found["first"] = first_chosen(table, np.concatenate(places))
    if wrong is not None:
        found |= {"wrong": int((wrong & (shard.weight > 0)).sum()), "wrong_chosen": wrong_chosen}
    return found


def first_chosen(table: Any, places: np.ndarray) -> Examples:
    """Return the rows chosen first, as a page shows them, with their place in the pool."""
    ranks = table["rank"].to_numpy()
    at = np.argsort(ranks)[:EXAMPLES]
    rows = table.take(at).to_pylist()
    found = [{**row, "first": -row["rank"], "row": int(place)} for row, place in zip(rows, places[at], strict=True)]
    return Examples(found, [], "first")


def _chosen_keys(shard: Shard, known: Known) -> Tensor:
    """Return the keys of a shard's rows that were chosen in this round, least first."""
    found = known["store"].read_arrays(_file("chosen", shard, known["round"]))
    return torch.zeros(0, dtype=torch.int64) if found is None else torch.from_numpy(found["key"])


def _within(keys: Tensor, known: Known) -> slice:
    """Return where sorted keys lie in the stretch: after one key, up to another; None: no limit."""
    after, last = known["stretch"]
    start = 0 if after is None else int(np.searchsorted(_unsigned(keys), _unsigned(after), "right"))
    return slice(start, len(keys) if last is None else int(np.searchsorted(_unsigned(keys), _unsigned(last), "right")))


def _unsigned(keys: Tensor) -> np.ndarray:
    return keys.numpy().view(np.uint64)


def _file(what: str, shard: Shard, k: int) -> str:
    return f"weights/{what}-{k}-{shard.extent.index:05d}.npz"
