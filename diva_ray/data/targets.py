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


def class_targets(label: pa.Array, classes: pa.Array) -> Tensor:
    """Return class codes (n,), or a multi-hot float64 matrix (n, c) for lists of classes."""
    if not is_list(label.type):
        return torch.from_numpy(encode(label, classes))
    owner = torch.from_numpy(pc.list_parent_indices(label).to_numpy(zero_copy_only=False).astype(np.int64))
    hot = torch.zeros(len(label), len(classes), dtype=torch.float64)
    hot[owner, torch.from_numpy(encode(one_chunk(label.flatten()), classes))] = 1
    return hot
