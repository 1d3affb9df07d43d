"""A curated copy of the input, shard by shard: every column, with flagged rows dropped, weighted or relabelled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.columns import encode, in_one_chunk, is_list, one_chunk, to_matrix
from diva_ray.data.files import part_name
from diva_ray.data.roles import FOUND
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known
from diva_ray.engine.reduce import Tally

FACTS = ["id", "is_label_issue", "label_score"]


def curate(shard: Shard, known: Known) -> Tally:
    """Write the rows of the shard's extent into `curated/`, and what changed into `changes/`; return how many did."""
    start, stop, index = shard.extent.start, shard.extent.stop, shard.extent.index
    table, folder = known["table"], known["folder"]
    rows = in_one_chunk(table.reader(as_stored=True).read(start, stop, table.schema.names))
    names = [*FACTS, _likelier(known)] if known["curate"] == "relabel" else FACTS
    facts = known["scores"].reader().read(start, stop, names)
    if known["trusted"] is not None:
        facts = _trusting(facts, one_chunk(rows[known["trusted"]]))
    change = {"drop": _drop, "weight": _weight, "relabel": _relabel}[known["curate"]]
    curated, changes = change(rows, facts, known)
    folder.write_table(f"curated/{part_name(index)}.parquet", curated)
    if changes.num_rows or not index:  # a folder there is in any case
        folder.write_table(f"changes/{part_name(index)}.parquet", changes)
    told = Tally(changed=changes.num_rows, kept=curated.num_rows)
    if known["task"] == "classification" and known["curate"] != "weight":
        told.update(before=_rows_of_classes(rows, known), after=_rows_of_classes(curated, known))
    return told


def _rows_of_classes(rows: pa.Table, known: Known) -> Tensor:
    """Return how many rows of every class of the table there are, (c,)."""
    label, classes = one_chunk(rows[known["label"]]), known["classes"]
    label = label.dictionary_decode() if pa.types.is_dictionary(label.type) else label
    codes = torch.from_numpy(encode(label.cast(classes.type), classes))
    return torch.bincount(codes[codes >= 0], minlength=len(classes))


def _trusting(facts: pa.Table, weight: pa.Array) -> pa.Table:
    """Return the facts with labels that are trusted taken for right."""
    trusted = pa.array(_numbers(weight) > 0)
    for name, right in (("is_label_issue", False), ("label_score", 1.0)):
        at = facts.schema.get_field_index(name)
        kind = facts.schema.field(at).type
        facts = facts.set_column(at, name, pc.if_else(trusted, pa.scalar(right, kind), one_chunk(facts[name])))
    return facts


def _numbers(weight: pa.Array) -> np.ndarray:
    """Return weights, of which a list of one is one, too (n,) float64."""
    return to_matrix(weight, "weight", "")[0][:, 0].astype(np.float64)


def _flags(facts: pa.Table) -> pa.Array:
    return one_chunk(facts["is_label_issue"])


def _drop(rows: pa.Table, facts: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    flags = _flags(facts)
    changes = facts.filter(flags).select(["id", "label_score"])
    return rows.filter(pc.invert(flags)), changes.append_column(
        "change", pa.array(["dropped"] * len(changes), pa.string())
    )


def _weight(rows: pa.Table, facts: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    """Weigh every row by the probability that its label is right; where that is no probability, flagged rows by 0."""
    name = known["weight_column"]
    score = one_chunk(facts["label_score"]).to_numpy(zero_copy_only=False).astype(np.float64)
    if known["task"] not in ("classification", "multilabel", "pairs"):
        score = 1.0 - _flags(facts).to_numpy(zero_copy_only=False)
    before, at = np.ones(len(score)), rows.schema.get_field_index(name)
    if at >= 0:
        before = _numbers(one_chunk(rows[name]))
    after = pa.array(before * score)
    field = pa.field(name, after.type, metadata=FOUND)
    curated = rows.set_column(at, field, after) if at >= 0 else rows.append_column(field, after)
    changed = np.flatnonzero(before * np.abs(score - 1) > 1e-3 * before)  # a row of weight 0 keeps it
    changes = facts.select(["id", "label_score"]).append_column("weight", after).take(pa.array(changed))
    return curated, changes.append_column("change", pa.array(["weighted"] * len(changed), pa.string()))


def _relabel(rows: pa.Table, facts: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    name, flags = known["label"], _flags(facts)
    given, found = one_chunk(rows[name]), one_chunk(facts[_likelier(known)])
    if is_list(given.type):  # several labels of which none is more likely wrong than right stay
        flags = pc.and_(flags, found.is_valid())
    else:  # so does a label that is unlikely, and yet likelier than any other
        flags = pc.and_(flags, pc.not_equal(found.cast(given.type), given))
    # Of several labels there may be more or fewer than before.
    kind = found.type if pa.types.is_fixed_size_list(given.type) else given.type
    given = given.cast(kind)
    label = pc.if_else(flags, found.cast(kind), given)
    at = rows.schema.get_field_index(name)
    stored = _as_stored(label, rows[name].type)
    curated = rows.set_column(at, rows.schema.field(at).with_type(stored.type), stored)
    facts = facts.append_column("label_before", given).append_column("label_after", label)
    changes = facts.filter(flags).select(["id", "label_score", "label_before", "label_after"])
    return curated, changes.append_column("change", pa.array(["relabelled"] * len(changes), pa.string()))


def _likelier(known: Known) -> str:
    """Return the column that says what a flagged label should be."""
    return "corrected_label" if known["task"] == "multilabel" else "predicted_label"


def _as_stored(label: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return labels in the type of the column that held them; Parquet keeps of a dictionary its type, not its order."""
    if not pa.types.is_dictionary(kind):
        return label
    found = label.dictionary_encode()
    codes, values = found.indices.cast(kind.index_type), found.dictionary.cast(kind.value_type)
    return pa.DictionaryArray.from_arrays(codes, values, ordered=kind.ordered)
