"""A head without CPUs that adds nodes when workers ask for them: run in a process of its own."""

import contextlib
import logging
import re
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import diva_ray
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import open_parquet
from diva_ray.engine import autoscale
from diva_ray.engine.cluster import Cluster
from diva_ray.errors import InputError
from tests.heads import Started, fake_autoscaler, fake_head

ROWS = 5000  # four shards
begun = time.monotonic()


def tell(what: str) -> None:
    """Print what has happened, and the CPUs that are there."""
    print(f"{time.monotonic() - begun:5.1f} s  {what}: {cpus():g} CPUs", flush=True)


def cpus() -> float:
    """Return the CPUs that are there."""
    return ray.cluster_resources().get("CPU", 0)


def write_table(path: str) -> None:
    """Write learnable rows."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((ROWS, 8)).astype(np.float32)
    y = (X[:, :3] + generator.standard_normal((ROWS, 3))).argmax(1)
    pq.write_table(pa.table({"features": list(X), "label": y}), path)


@contextlib.contextmanager
def engine(path: str, **options):
    """Yield an engine that has started."""
    rows, columns = open_parquet(path), Columns(features=("features",), label="label")
    found = Cluster([rows], columns, split(rows, columns), threads=1, **options)
    try:
        found.start()
        yield found
    finally:
        found.close()


def asks_for_nodes(path: str) -> None:
    """Check what a job asks for, and that it gets it."""
    with engine(path, workers=None) as one:
        assert one.workers == 1, "a cluster without CPUs is asked for one worker"
        tell("no number asked for")
    result = diva_ray.score(path, cluster={"kind": "ray", "workers": 2}, quiet=True)
    tell("two asked for")
    inline = diva_ray.score(path, cluster={"kind": "inline", "threads": 1}, quiet=True)
    assert result.folder.read_json("manifest.json")["cluster"]["workers"] == 2
    assert result.folder.read_table("samples").equals(inline.folder.read_table("samples"))


def asks_for_too_many(path: str, started: Started) -> None:
    """Check what is done where the cluster cannot become so large, and that idle nodes go."""
    with engine(path, workers=None, useful=4) as few:
        assert few.workers < 4, "the cluster cannot become that large: those that came share all shards"
        assert sum(few.load()) == ROWS
        tell(f"four would be useful, {few.workers} came")
    try:
        with engine(path, workers=4, start_timeout=3.0):
            raise AssertionError("four workers cannot run")
    except InputError as error:
        assert re.search(r"cluster: every worker must have started within 3 s, got [0-3] of 4 .*ray status", str(error))
        tell("four asked for")
    started.wait(lambda: 1 / (cpus() == 0), 60)
    tell("idle nodes are gone")


def asks_for_a_gpu(path: str) -> None:
    """Check that a worker with a GPU brings a node that has one."""
    with engine(path, workers=1, gpus_per_worker=1.0):
        assert ray.cluster_resources()["GPU"] == 1
        assert ray.available_resources().get("GPU", 0) == 0
        tell("a GPU asked for")


def main(folder: str, version: str) -> None:
    """Start the cluster, ask, print OK."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    autoscale.SETTLED = 5.0
    path = f"{folder}/table.parquet"
    write_table(path)
    store = {"object_store_memory": 100 << 20}
    types = {"cpu": {"CPU": 1, **store}, "gpu": {"CPU": 1, "GPU": 1, **store}}
    with Started() as started:
        started.head("--include-dashboard=false", *fake_autoscaler(started, types, 3), **fake_head(version))
        ray.init(address=started.address, log_to_driver=False, logging_level=40)
        try:
            tell("a head")
            assert cpus() == 0, "no work on the head"
            if version == "v1":
                asks_for_too_many(path, started)
            else:
                asks_for_nodes(path)
                asks_for_a_gpu(path)
        finally:
            ray.shutdown()  # or it would end this process when its cluster is gone
    print("OK", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
