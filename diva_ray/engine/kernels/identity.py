"""What rows are, by their content: hashes that find the rows of an earlier run again, wherever they lie now.

A row's hash is one of its features' bytes and its weight (what the Gram matrix depends on), and one of its target and
offset too. A table is cut into segments after its content: a segment begins at a row whose features' hash ends in
`bits` zeros. Inserting, deleting or changing a row changes its own segment only, and rewriting files changes none. A
segment's hash is the sum of its rows' hashes: shards that hold parts of it add them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.core.hashing import splitmix
from diva_ray.data.columns import is_list, one_chunk, row_keys
from diva_ray.data.shards import Shard, bare_rows
from diva_ray.data.targets import number_targets
from diva_ray.engine.context import Known, unit_keys
from diva_ray.engine.reduce import Rows, Tally

SOME_CLASS = 0x9E3779B97F4A7C15  # a set with the class whose own key is 0 is not the set without it
ROWS = 128  # hashed at a time: their products stay in the cache
LOOKED = 1 << 16  # rows at most of which the driver holds hashes, to tell whether rows have the features of others
USUAL = 8  # times as many segments as expected, and one more: beyond that the content has no variety to cut by


@dataclass(frozen=True)
class Segments:
    """Rows [start, stop) of a table in its shards' order, each with the hash of features and weights and of all."""

    start: np.ndarray
    stop: np.ndarray
    gram: np.ndarray
    cross: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Rows of every segment."""
        return self.stop - self.start


def join(fragments: Rows) -> Segments:
    """Return the segments of a table from what its shards found, in their order."""
    start, length, begins, gram, cross = (column.numpy() for column in fragments.joined())
    first = np.flatnonzero(begins)
    first = first if len(first) and first[0] == 0 else np.concatenate([[0], first])
    gram, cross = (np.add.reduceat(values.view(np.uint64), first) for values in (gram, cross))
    return Segments(start[first], start[first] + np.add.reduceat(length, first), gram, cross)


def fragments(shard: Shard, known: Known, bits: int, features: np.ndarray) -> Rows:
    """Return (start, rows, whether a segment begins there, hash of features and weight, of all) of a shard's parts.

    `features` are `feature_hashes(shard, None)`.
    """
    gram, cross = row_hashes(shard, known, features)
    last = _mix(features) & np.uint64((1 << bits) - 1)
    begins = (last == 0) & np.concatenate([[True], features[1:] != features[:-1]])
    if begins.sum() > USUAL * (1 + (len(begins) >> bits)):
        begins[:] = False
    at = np.union1d([0], np.flatnonzero(begins))
    columns = (
        shard.extent.start + at,
        np.diff(at, append=len(begins)),
        begins[at].astype(np.int64),
        np.add.reduceat(gram, at).view(np.int64),
        np.add.reduceat(cross, at).view(np.int64),
    )
    return Rows(tuple(torch.from_numpy(column) for column in columns))


def alike(shard: Shard, share: float, features: np.ndarray) -> Rows:
    """Return hashes of features, and leave-out groups, of the rows whose hash lies in the first `share` of all hashes:
    of rows with the same features all are among them, or none. A row without any feature is like no other."""
    in_share = _mix(features) >> np.uint64(32) < share * 2.0**32
    chosen = np.flatnonzero(in_share & ~bare_rows(shard.missing, len(shard)).numpy())
    return Rows((torch.from_numpy(features[chosen].view(np.int64)), unit_keys(shard)[torch.from_numpy(chosen)]))


def count_alike(looked: Rows) -> tuple[int, int]:
    """Return how many of the rows that were looked at have the features of a row of another group, and how many were
    looked at."""
    hashes, unit = looked.joined()
    pairs = torch.unique(torch.stack([hashes, unit], 1), dim=0)[:, 0]  # one of every group that has these features
    found, groups = torch.unique(pairs, return_counts=True)
    shared = found[groups > 1]
    return int(torch.isin(hashes, shared).sum()), len(hashes)


def distinct_hashes(looked: Rows) -> np.ndarray:
    """Return the hashes of features of the rows that were looked at, each once."""
    return np.unique(looked.joined()[0].numpy().view(np.uint64))


def shared(shard: Shard, known: Known) -> Tally:
    """Return how many rows of another table have the features of a row that was looked at: of `known["trained"]`, of
    the validation table's `known["validated"]`."""
    hashes = feature_hashes(shard)
    return Tally({f"shared_{which}": int(np.isin(hashes, known[which]).sum()) for which in ("trained", "validated")})


def validated(shard: Shard, known: Known) -> Tally:
    """Return how many rows of the validation table have the features of a row that trains, and hashes of its own."""
    hashes = feature_hashes(shard)
    found = int(np.isin(hashes, known["trained"]).sum())
    return Tally(shared_trained=found, looked=alike(shard, known["looked"], hashes))


def feature_hashes(shard: Shard, kind: torch.dtype | None = torch.float32) -> np.ndarray:
    """Return a 64-bit hash of every row's features as numbers of a kind, by default one for all tables: a copy in
    float64 is still a copy; None: of their bytes."""
    features = np.zeros(len(shard), np.uint64)
    for band, (values, absent) in enumerate(zip(shard.bands, shard.missing, strict=True)):
        features = _mix(features ^ hash_words(values, band, kind))
        if absent is not None:
            features[absent.numpy()] = _mix(~features[absent.numpy()])
    return features


def row_hashes(shard: Shard, known: Known, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 64-bit hashes of every row: of its features with its weight; with its target and offset too."""
    gram = _mix(features ^ _mix(shard.weight.numpy().view(np.uint64)))
    target = hash_words(number_targets(shard.label, known["label"], shard.where), 0) if known["numbers"] else None
    cross = _mix(gram ^ (class_hashes(shard.label) if target is None else target))
    return gram, cross if shard.offset is None else _mix(cross ^ hash_words(shard.offset, 0))


def hash_words(values: Tensor, seed: int, kind: torch.dtype | None = None) -> np.ndarray:
    """Return a hash of the bytes of every row (n, d), as numbers of a kind or as they are: sum of a_k x_k mod 2^64 over
    its 32-bit words x, a fixed and odd.

    About 3 GB/s. Two rows that differ have one hash with a chance of 2^-32 at most.

    References:
        Lemire and Kaser 2014, Strongly universal string hashing is fast (multilinear hashing).
    """
    rows, kind = values.cpu().contiguous(), values.dtype if kind is None else kind
    size = rows.shape[1] * kind.itemsize
    if not size:
        return np.zeros(len(rows), np.uint64)
    word = np.uint32 if size % 4 == 0 else np.uint16 if size % 2 == 0 else np.uint8
    count = size // np.dtype(word).itemsize
    factors = _mix(np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) | np.uint64(1)
    products, found = np.empty((ROWS, count), np.uint64), np.empty(len(rows), np.uint64)
    for a in range(0, len(rows), ROWS):
        words = rows[a : a + ROWS].to(kind).numpy().view(word)
        part = products[: len(words)]
        np.multiply(words, factors, out=part)
        np.add.reduce(part, 1, out=found[a : a + ROWS])
    return found


def class_hashes(label: pa.Array) -> np.ndarray:
    """Return a hash of every row's class, or of its set of classes."""
    if not is_list(label.type):
        return row_keys(label)
    keys = _mix(row_keys(one_chunk(label.flatten())) ^ np.uint64(SOME_CLASS))
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(keys, dtype=np.uint64)])
    ends = np.cumsum(pc.list_value_length(label).to_numpy(zero_copy_only=False).astype(np.int64))
    return np.diff(before[np.concatenate([[0], ends])])


def _mix(keys: np.ndarray) -> np.ndarray:
    return splitmix(torch.from_numpy(np.ascontiguousarray(keys).view(np.int64))).numpy().view(np.uint64)


def places_of_key(key: int, shard: Shard, known: Known) -> list[tuple[object, str]]:
    """Return the id and place of the first two rows with this key: a whole shard may have it."""
    rows = torch.nonzero(shard.keys == np.uint64(key & (2**64 - 1)).astype(np.int64).item()).squeeze(1)[:2].tolist()
    return [(None if shard.id is None else shard.id[row].as_py(), shard.where(row)) for row in rows]
