"""Three nodes on this machine, one of which is lost in the middle of a pass: run in a process of its own."""

import sys

import numpy as np
import ray
from ray.cluster_utils import Cluster as Nodes

import diva_ray
from diva_ray.engine.cluster import Cluster


def main(output: str) -> None:
    """Score and reweight inline and on the nodes; print OK when the bits agree."""
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}
    nodes = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "_system_config": {**quick, "health_check_failure_threshold": 3}},
    )
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=40)
    generator = np.random.default_rng(0)
    X = generator.standard_normal((4000, 16)).astype(np.float32)
    y = (X[:, :4] + generator.standard_normal((4000, 4))).argmax(1)
    y[:800] = generator.integers(0, 4, 800)
    table = {"features": X, "label": y}
    inline = diva_ray.reweight(table, cluster={"kind": "inline", "threads": 1}, folds=2, steps=1, quiet=True)
    whole, lost = Cluster.each, []

    def each_with_a_loss(self, kernel, extents, done=int, features=True):
        for k, partial in enumerate(whole(self, kernel, extents, done, features)):
            if k == 0 and kernel.__name__ == "propose" and not lost:
                lost.append(next(iter(nodes.worker_nodes)))
                nodes.add_node(num_cpus=2)
                nodes.remove_node(lost[0], allow_graceful=False)
            yield partial

    Cluster.each = each_with_a_loss
    where = {"kind": "ray", "workers": 3}
    result = diva_ray.reweight(table, cluster=where, folds=2, steps=1, quiet=True, output=output)
    assert lost, "a node must have been lost"
    assert result.folder.read_table("samples").equals(inline.samples)
    assert result.summary["trials"] == inline.summary["trials"]
    print("OK", len(ray.nodes()), "nodes seen")


if __name__ == "__main__":
    main(sys.argv[1])
