"""How many workers a cluster can hold, whether it grows when more are asked for, and waiting for them."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, NamedTuple

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # pyright: ignore[reportAttributeAccessIssue]
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from diva_ray.errors import InputError

log = logging.getLogger("diva_ray")

REPORT_TIMEOUT = 10.0  # seconds in which a cluster that has just started says whether it grows
LOG_EVERY = 10.0  # seconds between lines while workers are awaited
SETTLED = 45.0  # seconds in which no worker came and no node was on its way, after which no more are awaited


class Growth(NamedTuple):
    """What the monitor of the cluster says."""

    reported: bool  # it has said something
    grows: bool  # an autoscaler adds nodes
    coming: int  # nodes that it is starting


def growth() -> Growth:
    """Return whether the cluster grows. Every cluster has a monitor, but only where nodes are added do they have types:
    elsewhere it calls a node `node_` and its id (autoscaler v1), or leaves the type empty (v2).
    """
    client: Any = internal_kv_get_gcs_client()
    if is_autoscaler_v2():
        reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=REPORT_TIMEOUT))
        state = reply.autoscaling_state
        reported = state.autoscaler_state_version > 0
        typed = any(node.ray_node_type_name for node in reply.cluster_resource_state.node_states)
        coming = len(state.pending_instances) + sum(one.count for one in state.pending_instance_requests)
        return Growth(reported, reported and typed, coming)
    found = client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = (json.loads(found) if found else {}).get("autoscaler_report")
    if not report:
        return Growth(False, False, 0)
    typed = any(not name.startswith("node_") for name in report["active_nodes"])
    return Growth(True, typed, len(report["pending_nodes"]) + sum(report["pending_launches"].values()))


def grows() -> bool:
    """Return whether an autoscaler adds nodes; waits a little, because a young cluster does not say so at once."""
    deadline = time.monotonic() + REPORT_TIMEOUT
    while not (found := growth()).reported and time.monotonic() < deadline:
        time.sleep(0.5)
    return found.grows


def room(threads: int, gpus: float) -> int:
    """Return how many workers fit the nodes that are there, each on one of them."""
    total = 0
    for have in (node["Resources"] for node in ray.nodes() if node["Alive"]):
        fit = int(have.get("CPU", 0) // threads)
        total += min(fit, int(have.get("GPU", 0) / gpus)) if gpus else fit
    return total


def check_resources(workers: int | None, threads: int, gpus: float, shards: int, useful: int = 1) -> int:
    """Return how many workers to start: where the cluster grows as many as are asked for, else only what fits.

    Args:
        workers: asked for by the user; None: what fits, or `useful` if that is more and the cluster grows.

    Raises:
        InputError: they do not fit and the cluster does not grow: they would wait for ever.
    """
    fit = room(threads, gpus)
    wanted = min(workers or max(fit, useful), shards)
    if (workers or wanted) <= fit or grows():
        return wanted
    have = ray.cluster_resources()
    got = f"got {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
    if workers and fit:
        raise InputError(
            f"cluster.workers: the cluster must have {workers} x {threads} "
            f"CPUs{f' and {workers} x {gpus:g} GPUs' if gpus else ''}, {got}, and no autoscaler adds nodes. Lower "
            f"`cluster.workers` to {fit} or less."
        )
    if not fit:
        raise InputError(
            f"cluster: one worker must fit a node, which needs {threads} CPUs and {gpus:g} GPUs, {got}, and no "
            "autoscaler adds nodes. Add one, or lower `cluster.threads` or `cluster.gpus_per_worker`."
        )
    return min(fit, shards)


def await_workers(refs: list[Any], timeout: float, *, all_of_them: bool) -> int:
    """Return how many workers run: all, or those that came before the cluster stopped to grow; tells who is awaited.

    Raises:
        InputError: for `timeout` seconds none came, though all (else: one) must.
    """
    waiting, lately = refs, time.monotonic()
    changed = told = lately
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(1.0, timeout))
        now, ran = time.monotonic(), len(refs) - len(waiting)
        lately = now if done else lately
        if not waiting:
            break
        late = now - lately >= timeout
        if late and (all_of_them or not ran):
            raise InputError(
                f"cluster: every worker must have started within {timeout:g} s, got {ran} of {len(refs)} (free now: "
                f"{ray.available_resources()}). Free resources, see `ray status` for nodes that could not be added, "
                f"lower `cluster.workers`{f' to {ran}' if ran else ''}, or raise `cluster.start_timeout`."
            )
        if all_of_them or not ran or done or growth().coming:
            changed = now
        if late or now - changed >= SETTLED:
            return ran
        if now - told >= LOG_EVERY:
            told = now
            have = ray.cluster_resources().get("CPU", 0)
            told_so = "%-10s %d of %d workers run; the cluster has %g CPUs, nodes on their way: %d"
            log.info(told_so, "start", ran, len(refs), have, growth().coming)
    return len(refs)
