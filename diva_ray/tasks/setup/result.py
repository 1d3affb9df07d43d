"""What a task returns to Python."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from diva_ray.data.columns import to_matrix
from diva_ray.data.folder import Folder
from diva_ray.errors import InputError


@dataclass(repr=False)
class Result:
    """A finished run: its summary, its rows, its folder.

    Attributes:
        summary: machine-readable figures, as in summary.json.
        samples: the run's rows, as a table; `path`: where all its files are, a temporary folder when no `output` was
            given; `folder`: reads and writes them, wherever that is.
        on_ray: whether `samples` is a Ray Dataset.
        told: what came out, in a few lines, which `lines()` and `print` show.
        rows: sub-folder of the rows.
    """

    summary: dict[str, Any]
    folder: Folder
    on_ray: bool
    told: list[str] = field(default_factory=list)
    rows: str = "samples"

    @cached_property
    def samples(self) -> Any:
        """The run's rows (one per sample in the order of the input; chosen rows): an Arrow table, or a Ray Dataset
        after a run on Ray."""
        if self.on_ray:
            import ray.data

            rows = ray.data.read_parquet(self.folder.location(self.rows))
            rows.context.execution_options.preserve_order = True  # of this dataset and those made of it
            return rows
        return self.folder.read_table(self.rows)

    @property
    def path(self) -> str:
        """Folder or URI of the run's files."""
        return self.folder.path

    def pred_probs(self) -> np.ndarray:
        """Return calibrated out-of-sample class probabilities (n, c), as cleanlab takes them; needs `outputs=True`.

        softmax_k(sharpness g((1 - leverage) loo_output_k / level_k)), g(x) = scale asinh(x / scale), under g times the
        columns `nearness` (features with heavy tails) and `gap_factor` (rows that lack bands) where they are written,
        and mixed by the weights and bias of `mix` where no curve for every class fits:
        the calibration of summary.json, the likeliest where a share of the labels is wrong. So these are the
        probabilities of the true class; the given one agrees less often by that share (`noise_estimate`). The given
        label is right with odds exp(shift + slope l) (1 - e) (c - 1) / e, l the log-odds of its probability here.
        Columns are the sorted classes.
        """
        if "calibration" not in self.summary:
            raise InputError(
                f"pred_probs: rows must have one class each, got task={self.summary.get('task')}. Read `label_score` "
                "of `samples` instead."
            )
        table = self.folder.read_table("samples")
        if "loo_output" not in table.column_names:
            raise InputError("pred_probs: left-out outputs must be written, got none. Score with `outputs=True`.")
        known = self.summary["calibration"]
        outputs, _ = to_matrix(table["loo_output"], "loo_output", "samples")
        room = 1 - table["leverage"].to_numpy()
        for worth in ("nearness", "gap_factor"):
            room = room * table[worth].to_numpy() if worth in table.column_names else room
        F = outputs.astype(np.float64) * room[:, None] / np.array(known["levels"])
        if mix := known.get("mix"):
            F = F @ np.array(mix["weights"]) + np.array(mix["bias"])
        logits = known["sharpness"] * (F if known["scale"] is None else known["scale"] * np.arcsinh(F / known["scale"]))
        return softmax(logits, axis=1)

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Copy the run's files into a new or empty folder and return its path."""
        target = Folder(os.fspath(folder))
        target.open_new(resume=False)
        if not (self.folder.local and target.local):
            raise InputError(
                f"write: both folders must be local, got {self.path} and {folder}. Give `output` to the call."
            )
        shutil.copytree(self.folder.base, target.base, dirs_exist_ok=True)
        return target.path

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """Return the same for a notebook, with a link to the report."""
        report = self.folder.location("report.html")
        address = Path(report).as_uri() if self.folder.local else report
        told = "".join(f"<li>{escape(line)}</li>" for line in self.told)
        return f'<ul>{told}</ul><p>report: <a href="{escape(address)}">{escape(report)}</a></p>'

    def lines(self) -> list[str]:
        """Return the run in a few lines, for a terminal or a notebook."""
        return [*self.told, f"report: {self.folder.location('report.html')}"]
