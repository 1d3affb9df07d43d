"""The rows of the output, written where they are, and what the driver is told of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.core import multilabel, verdict
from diva_ray.data.columns import is_list, storage_type
from diva_ray.data.files import part_name
from diva_ray.data.shards import Shard
from diva_ray.engine.context import Known, codes_of, source_codes, validation_weights, weights_after
from diva_ray.engine.kernels.extremes import confused_pairs, examples
from diva_ray.engine.kernels.passes import left_out_outputs, left_out_rows, scored_rows
from diva_ray.engine.kernels.shaping import lonely_rows
from diva_ray.engine.kernels.uids import write_uids
from diva_ray.engine.kernels.verdicts import gap_factors, label_scores, nearness, several_outputs, z_of
from diva_ray.engine.meter import peak_memory
from diva_ray.engine.reduce import ByCode, Rows, Tally
from diva_ray.engine.setup import Setup

Z_EDGES = torch.sinh(torch.linspace(-8, 8, 2001, dtype=torch.float64))  # cells of z, 0.008 wide at 0, up to 1,490
SAME = 1e-6  # of a weight, by which it may differ and still be the same: samples/ holds float32
LIKELY = 0.5  # label_score beyond which a label is likelier right than wrong
DECADES = (0.005, 0.05, 0.5, 5.0)  # widths of the cells of weights below 4, 40, 400 and 4,000 mean weights
WEIGHT_EDGES = torch.cat(  # lower ends; the last cell holds all above
    [width * torch.arange(80 if k else 0, 800 + (width == 5.0), dtype=torch.float64) for k, width in enumerate(DECADES)]
)


def write(shard: Shard, known: Known) -> Tally:
    """Last round: decide, write the shard's rows in the order of the input, and report counts and the worst of them."""
    return write_rows(shard, known, *samples_table(shard, known))


def count_weights(alpha: Tensor, kept: Tensor) -> Tensor:
    """Return how many of the weights are 0 and how many lowered, their sum and that of their squares, and how many are
    raised, (5,); `kept`: what each would be without a step, but for what keeps the mean of all."""
    zero, lowered, raised = (alpha == 0) & (kept > 0), alpha < kept * (1 - SAME), alpha > kept * (1 + SAME)
    kinds = zero.double(), lowered.double(), alpha, alpha.square(), raised.double()
    return torch.stack([kind.sum() for kind in kinds])


def write_rows(shard: Shard, known: Known, table: pa.Table, facts: dict[str, Tensor]) -> Tally:
    """Write the rows of the output, and report counts and the worst of them; `facts` are in the shard's order."""
    setup: Setup = known["setup"]
    name = f"samples/{part_name(shard.extent.index)}.parquet"
    folder = known["folder"]
    if name.split("/")[1] in known["written"]:
        pass
    elif known["outputs"] and setup.task != "pairs":
        write_with_outputs(shard, known, name, table)
    else:
        folder.write_table(name, table)
    counts = Tally(max_memory=peak_memory(), max_common=float(known.get("common", 1.0)))
    counts.update(n_detrimental=int(facts["detrimental"].sum()), n_label_issues=int(facts["issue"].sum()))
    z, issue, alpha = facts["z"], facts["issue"], facts["weight"]
    counts["weights"] = count_weights(alpha, counts["max_common"] * shard.weight)
    size = len(WEIGHT_EDGES)
    relative = alpha.double() / known.get("mean_weight", 1.0) * (1 + 1e-6)  # 1 less a rounding error is 1
    counts["weight_counts"] = torch.bincount(torch.bucketize(relative, WEIGHT_EDGES, right=True) - 1, minlength=size)
    cells = torch.bucketize(z.double().nan_to_num(0), Z_EDGES).clamp(1, len(Z_EDGES) - 1) - 1
    size = len(Z_EDGES) - 1
    counts["z_counts"] = torch.bincount(cells, minlength=size)
    counts["z_issue_counts"] = torch.bincount(cells[issue], minlength=size)
    if "odds" in facts:
        counts["hurting"] = examples(shard, table, z)
        counts["examples"] = examples(shard, table, -facts["odds"], "suspicion")
    else:
        counts["examples"] = examples(shard, table, z)
        counts["suspects"] = examples(shard, table, -facts["label_score"], "suspicion")
    if known.get("export") == "datacomp":
        write_uids(shard, folder, ~issue & (alpha > 0))
    if setup.task == "classification":
        Y = codes_of(shard, setup)
        right = (facts["predicted"] == Y) & (facts["label_score"] > LIKELY)
        counts["n_detrimental_right"] = int((facts["detrimental"] & right).sum())
        for key, chosen in (("class_detrimental", facts["detrimental"]), ("class_issues", issue)):
            counts[key] = torch.bincount(Y[chosen], minlength=setup.outputs)
        counts["class_n"] = torch.bincount(Y, minlength=setup.outputs)
        counts["n_only_of_class"] = int(lonely_rows(shard, known).sum())
        counts["class_weight"] = torch.zeros(setup.outputs, dtype=torch.float64).index_add_(0, Y, alpha)
        counts["pairs"] = confused_pairs(Y, facts["predicted"], issue, setup.outputs)
    codes = source_codes(shard, setup)
    if codes is not None:
        columns = (torch.ones_like(alpha), alpha, facts["detrimental"], issue)
        counts["by_source"] = ByCode.of(codes, torch.stack([column.double() for column in columns], 1))
    if shard.truth is not None:
        planted, hurts = facts["planted"], facts["detrimental"]
        found = [planted, issue, hurts, planted & issue, planted & hurts]
        counts["planted"] = torch.stack([flags.sum() for flags in found])
        scores = torch.stack([planted.float(), facts["label_score"], z, facts["margin"]], 1)
        counts["ranked"] = Rows((scores if known["rank_truth"] else scores[:0],))
    return counts


def samples_table(shard: Shard, known: Known) -> tuple[pa.Table, dict[str, Tensor]]:
    """Return the rows of the output, in the order of the input, and the facts behind them, in the shard's order."""
    setup: Setup = known["setup"]
    rows, scored = left_out_rows(shard, known), scored_rows(shard, known)
    z = z_of(scored)
    facts = facts_of(shard, known, z, label_scores(shard, known))
    predicted, margin = torch.zeros(len(z), dtype=torch.int64), facts["margin"]
    if setup.task == "classification":
        facts["predicted"] = predicted = rows.predicted
        facts["margin"] = margin = rows.margin.float()
    if shard.truth is not None:
        facts["planted"] = torch.from_numpy(differ(shard.label, shard.truth, numbers=setup.task == "regression"))
    identifier = shard.ids()
    columns: dict[str, Any] = {
        "id": identifier,
        "label": shard.label,
        "weight": facts["weight"].float(),
        "derivative": scored[:, 0].float(),
        "standard_error": scored[:, 1].float(),
        "z": z,
        "is_detrimental": facts["detrimental"],
        "leverage": rows.leverage.float(),
        "loss": rows.loss.float(),
        "margin": pa.array(margin.numpy(), from_pandas=True),
        "predicted_label": predicted_labels(shard, known, predicted),
        "label_score": facts["label_score"],
        "is_label_issue": facts["issue"],
    }
    if setup.task == "classification" and known["link"].near:
        columns["nearness"] = nearness(shard, known).float()
    if setup.task == "classification" and (factors := gap_factors(shard, known)) is not None:
        columns["gap_factor"] = factors.float()
    if setup.task == "multilabel":
        columns["corrected_label"] = corrected_labels(shard, known, facts["issue"])
    if shard.truth is not None:
        columns["true_label"] = shard.truth
    return as_table(shard, columns), facts


def facts_of(shard: Shard, known: Known, z: Tensor, label_score: Tensor) -> dict[str, Tensor]:
    """Return what is decided of every row; labels that are trusted are taken for right."""
    rule: verdict.Verdict = known["verdict"]
    issue = label_score < rule.label.value
    if known.get("trust"):
        issue &= validation_weights(shard, known) <= 0
    return {
        "z": z, "label_score": label_score.float(), "weight": final_weights(shard, known),
        "issue": issue, "detrimental": verdict.is_detrimental(z, rule),
        "margin": torch.full_like(z, torch.nan),
    }  # fmt: skip


def as_table(shard: Shard, columns: dict[str, Any]) -> pa.Table:
    """Return columns and what the table says of its rows, in the order of the input."""
    columns = {**columns}
    for name, values in (("group", shard.group_values), ("source", shard.source_values)):
        if values is not None:
            columns[name] = values
    if shard.original is not None:
        columns["__row__"] = pa.array(shard.original)
    table = pa.table({k: pa.array(v.numpy()) if isinstance(v, Tensor) else v for k, v in columns.items()})
    order = shard.input_order()
    return table if order is None else table.take(pa.array(order))


def final_weights(shard: Shard, known: Known) -> Tensor:
    """Return the weights that a run ends with: those of `known["final"]`, (step, factor), else the table's."""
    step, factor = known.get("final", (None, 1.0))
    return weights_after(shard, known, step, factor)


def predicted_labels(shard: Shard, known: Known, best: Tensor) -> pa.Array | pa.ChunkedArray:
    """Return what the left-out model predicts, in the type of the labels."""
    setup: Setup = known["setup"]
    if setup.task == "classification":
        assert setup.classes is not None
        return setup.classes.take(pa.array(best.numpy()))
    if setup.task == "multilabel":
        several = (multilabel.likely(x, known["slips"]) for _, x, _ in several_outputs(shard, known))
        return pa.chunked_array(_lists_of_classes(likely, setup.classes) for likely in several)
    found = (F for _, F in left_out_outputs(shard, known))
    dtype = written_dtype(shard.label.type)
    if setup.task == "regression":
        return pa.chunked_array(pa.array(F[:, 0].to(dtype).numpy()) for F in found)
    return pa.chunked_array(lists(F, dtype) for F in found)


def written_dtype(label: pa.DataType) -> torch.dtype:
    """Return in what numbers to predict are written: as labels are, but no float16, and of whole numbers float64."""
    kind = storage_type(label)
    kind = kind.value_type if is_list(kind) else kind
    return torch.float32 if kind in (pa.float16(), pa.float32()) else torch.float64


def differ(label: pa.Array, truth: pa.Array, *, numbers: bool) -> np.ndarray:
    """Return which labels are not the true ones; of numbers, as the narrower of two floating types holds them."""
    if not numbers:
        return pc.not_equal(truth, label.cast(truth.type)).to_numpy(zero_copy_only=False)
    kinds = [one.type.to_pandas_dtype() for one in (label, truth) if pa.types.is_floating(one.type)]
    kind = min(kinds, key=lambda kind: np.dtype(kind).itemsize, default=np.float64)
    one, other = (
        (x if pa.types.is_floating(x.type) else x.cast(pa.float64())).to_numpy(zero_copy_only=False).astype(kind)
        for x in (label, truth)
    )
    return one != other


def corrected_labels(shard: Shard, known: Known, flagged: Tensor) -> pa.ChunkedArray:
    """Return the classes of flagged rows in which single ones are more likely wrong than right, those turned; of all
    other rows null."""
    parts = []
    for rows, x, Y in several_outputs(shard, known):
        found = multilabel.corrected(x, Y, known["slips"])
        changed = flagged[rows] & (found != (Y > 0.5)).any(1)
        lists = _lists_of_classes(found & changed[:, None], known["setup"].classes)
        parts.append(pc.if_else(pa.array(changed.numpy()), lists, pa.scalar(None, lists.type)))
    return pa.chunked_array(parts)


def _lists_of_classes(several: Tensor, classes: pa.Array) -> pa.Array:
    row, column = torch.nonzero(several, as_tuple=True)
    offsets = torch.searchsorted(row, torch.arange(len(several) + 1)).int()
    return pa.ListArray.from_arrays(pa.array(offsets.numpy()), classes.take(pa.array(column.numpy())))


def write_with_outputs(shard: Shard, known: Known, name: str, table: pa.Table) -> None:
    """Write the rows of the output with their left-out outputs, as these come."""
    schema, at = table.schema.append(pa.field("loo_output", pa.list_(pa.float32()))), 0
    with known["folder"].stream_table(name, schema) as writer:
        for outputs in in_input_order(shard, (F.float() for _, F in left_out_outputs(shard, known))):
            rows = table.slice(at, len(outputs))
            writer.write_table(rows.append_column("loo_output", lists(outputs)))
            at += len(outputs)


def in_input_order(shard: Shard, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield float32 rows that come in parts, in the order of the input, again in parts of that size.

    Rows that were sorted by group wait in a file without a name.
    """
    place = shard.input_order()
    if place is None:
        yield from parts
        return
    with tempfile.TemporaryFile() as file:
        size, width = 1, 0
        for part in parts:
            size, width = max(size, len(part)), part.shape[1]
            file.write(part.contiguous().numpy().data)
        file.flush()
        kept = np.memmap(file, np.float32, mode="r", shape=(len(place), width)) if width else np.empty((len(place), 0))
        for a in range(0, len(place), size):
            yield torch.from_numpy(kept[place[a : a + size]].astype(np.float32, copy=False))


def lists(values: Tensor, dtype: torch.dtype = torch.float32) -> pa.Array:
    """Return rows of numbers as an Arrow list column."""
    n, c = values.shape
    offsets = pa.array(np.arange(0, n * c + 1, c, dtype=np.int32 if n * c < 2**31 else np.int64))
    flat = pa.array(values.to(dtype).contiguous().numpy().reshape(-1))
    return (pa.ListArray if n * c < 2**31 else pa.LargeListArray).from_arrays(offsets, flat)
