"""What a pass found of the rows, in storage: for a worker that takes another's place, and for a run that is resumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diva_ray.data.folder import Folder
from diva_ray.data.shards import Shard


@dataclass(frozen=True)
class RowFiles:
    """Results of the rows of one pass, a file for every shard.

    Attributes:
        folder: where files are whole or absent, see `data.folder`.
        name: of the pass, among all of a run: a resumed one gives it the same.
    """

    folder: Folder
    name: str

    def keep(self, shard: Shard, **columns: Tensor) -> None:
        """Write what a pass found of a shard's rows."""
        self.folder.write_arrays(self._file(shard), {name: values.numpy() for name, values in columns.items()})

    def find(self, shard: Shard) -> dict[str, Tensor] | None:
        """Return what the pass found of a shard's rows, or None if there is no file, or a damaged one."""
        found = self.folder.read_whole(self._file(shard))
        return None if found is None else {name: torch.from_numpy(values) for name, values in found.items()}

    def _file(self, shard: Shard) -> str:
        return f"{self.name}/{shard.extent.index:05d}.npz"


def found_before(files: RowFiles | None, shard: Shard) -> dict[str, Tensor] | None:
    """Return what is kept of a shard's rows, or None where nothing is."""
    return None if files is None else files.find(shard)
