"""Small tables in every form, and what a run makes of them."""

import tempfile
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import diva_ray
from diva_ray.config import ClusterConfig, DataConfig, ScoreConfig, ValidationConfig
from diva_ray.data.folder import Folder
from diva_ray.engine.kernels.passes import scored_rows
from diva_ray.tasks.fit.derive import derive
from diva_ray.tasks.setup.make_plan import make_plan
from diva_ray.tasks.setup.session import open_session

INLINE = {"kind": "inline", "threads": 1}


def problem(n=90, d=4, classes=3, seed=0):
    """Return features in eighths (exact in float16), and learnable integer classes."""
    generator = np.random.default_rng(seed)
    X = np.round(generator.standard_normal((n, d)) * 8) / 8
    y = (X[:, :classes] + 0.5 * generator.standard_normal((n, classes))).argmax(1)
    return X, y


def vectors(X, kind=None):
    """Return the rows of a matrix as a fixed-size list column, or as another type of list."""
    if kind is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(X).reshape(-1)), X.shape[1])
    return pa.array(list(X), kind)


def score(data, **options):
    """Return a quiet run in this process at a fixed ridge; kept sums are cut by content, which changes bits."""
    return diva_ray.score(data, **{"quiet": True, "keep_sums": False, "cluster": INLINE, "ridge": 0.5, **options})


def derivatives(data, **options):
    """Return the derivative column of a run."""
    return score(data, **options).samples["derivative"].to_numpy()


def write(folder, table, cuts=(), row_group_size=None):
    """Write a table into files cut at these rows, and return the folder."""
    bounds = [0, *cuts, table.num_rows]
    for k, (a, b) in enumerate(pairwise(bounds)):
        pq.write_table(table.slice(a, b - a), folder / f"part-{k:03d}.parquet", row_group_size=row_group_size)
    return str(folder)


def in_float64(data, *, ridge=0.5, standard_errors="exact", **options):
    """Return (derivative, standard error) of every row in float64, in the order of the input."""
    columns = DataConfig(**{f.name: options.pop(f.name) for f in fields(DataConfig) if f.name in options})
    validation = ValidationConfig(options.pop("validation", None))
    config = ScoreConfig(columns, validation, ClusterConfig(**INLINE), ridge=ridge, precision="float64", **options)
    config.output = tempfile.mkdtemp(prefix="diva_ray-tests-")
    if isinstance(data, str):
        config.data.path, data = data, None
    plan, opened = make_plan(config, data, None)
    session = open_session(config, plan, opened, Folder(config.output), quiet=True)
    derive(session.runner, session.setup, ridge, session.scan.counts["validating"], standard_errors)
    found = torch.empty(session.tables[0].rows, 2, dtype=torch.float64)
    for shard in session.engine.shards:
        if not shard.extent.held_out:
            found[torch.from_numpy(shard.positions())] = scored_rows(shard, session.engine.known)
    return found
