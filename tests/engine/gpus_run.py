"""A Ray cluster that counts two GPUs nobody has: who is given which, and what a worker says whose torch sees none."""

import json
import sys

import ray

import diva_ray
from diva_ray.data.shards import Columns
from diva_ray.data.split import split
from diva_ray.data.table import open_parquet
from diva_ray.engine.cluster import Cluster
from diva_ray.engine.shelf import Keeping
from diva_ray.errors import InputError


def ids(self):
    """What an actor was given."""
    return ray.get_gpu_ids()


def given(path, workers, gpus):
    """Start workers and return the GPUs of each."""
    table, columns = open_parquet(path, "data.path"), Columns(("features",), "label")
    cluster = Cluster(
        [table], columns, split(table, columns), workers=workers, threads=1, gpus_per_worker=gpus,
        keep=lambda _: Keeping(gpus=gpus),
    )  # fmt: skip
    found = ray.get([actor.__ray_call__.remote(ids) for actor in cluster.actors])
    cluster.close()
    return found


def refused(path, **cluster):
    """Return the one line of a run that cannot be."""
    try:
        diva_ray.score(path, cluster={"kind": "ray", **cluster}, quiet=True)
    except InputError as error:
        return str(error)
    return None


if __name__ == "__main__":
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=200 << 20,
        log_to_driver=False, logging_level=40,
    )  # fmt: skip
    path = sys.argv[1]
    told = {
        "half": given(path, 3, 0.5),
        "three": refused(path, workers=3, gpus_per_worker=1), "unseen": refused(path, workers=1, gpus_per_worker=1),
    }  # fmt: skip
    with open(sys.argv[2], "w") as file:
        json.dump(told, file)
    ray.shutdown()
