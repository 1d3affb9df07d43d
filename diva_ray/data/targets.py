"""Labels to targets: class codes, several classes, numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diva_ray.data.columns import Where, encode, is_list, one_chunk
from diva_ray.data.shards import finite_matrix


def number_targets(label: pa.Array, name: str, where: Where) -> Tensor:
    """Return regression or vector targets as float64 (n, c)."""
    return finite_matrix(label, name, "data.label", where).double()


def label_values(label: pa.Array) -> pa.Array:
    """Return the distinct classes of a label column (of its elements, for lists of classes)."""
    if is_list(label.type):
        label = one_chunk(label.flatten())
    return pc.unique(label)


def class_codes(label: pa.Array, classes: pa.Array) -> Tensor:
    """Return class codes (n,)."""
    return torch.from_numpy(encode(label, classes))


def class_targets(label: pa.Array, classes: pa.Array) -> Tensor:
    """Return class codes (n,), or a multi-hot float64 matrix (n, c) for lists of classes."""
    return SeveralClasses(label, classes, torch.float64)[:] if is_list(label.type) else class_codes(label, classes)


class SeveralClasses:
    """The targets of lists of classes: indexed by rows, it gives their multi-hot matrix (rows, c).

    Codes are kept, not the matrix.
    """

    def __init__(self, label: pa.Array, classes: pa.Array, dtype: torch.dtype) -> None:
        owner = torch.from_numpy(pc.list_parent_indices(label).to_numpy(zero_copy_only=False).astype(np.int64))
        self.codes = class_codes(one_chunk(label.flatten()), classes)
        self.starts = torch.searchsorted(owner, torch.arange(len(label) + 1))
        self.classes, self.dtype = len(classes), dtype

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: slice | list[int] | Tensor) -> Tensor:
        chosen = torch.arange(len(self))[rows]
        counts = self.starts[chosen + 1] - self.starts[chosen]
        owner = torch.arange(len(chosen)).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        at = torch.arange(len(owner)) - first[owner] + self.starts[chosen][owner]
        hot = torch.zeros(len(chosen), self.classes, dtype=self.dtype)
        hot[owner, self.codes[at]] = 1
        return hot
