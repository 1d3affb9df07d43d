"""Joining the cluster of a job, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import ray
import ray.util.client

from diva_ray.errors import InputError, first_line
from diva_ray.signals import hear_again

CONNECT_TIMEOUT = 10.0  # seconds until a cluster must answer
_ONE = threading.Lock()  # Ray is started once, whichever threads ask
_STARTER = ThreadPoolExecutor(1, "diva_ray-ray")  # its thread lives as long as the process
_started: list[str] = []  # addresses of those that were started here
TOKEN_LOG = "ray._private.authentication.authentication_token_setup"


def connect(kind: str, cpus: int | None = None, object_store_memory: int | None = None) -> None:
    """Join the job's cluster (`ray`), or start Ray on this machine (`local`), which only who has the token can reach.

    `cpus` and `object_store_memory` are of a Ray that is started here; None: what Ray takes by itself.

    Raises:
        InputError: no cluster answers.
    """
    with _ONE:
        if kind == "local" and threading.current_thread() is not threading.main_thread():
            # Ray's processes end with the thread that starts them, not with the process.
            _STARTER.submit(_connect, kind, cpus, object_store_memory).result()
        else:
            _connect(kind, cpus, object_store_memory)


def _connect(kind: str, cpus: int | None, object_store_memory: int | None) -> None:
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "") if kind == "ray" else ""
    check_address(address or (noted_address() if kind == "ray" else ""))
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if kind == "local":
            room = {"num_cpus": cpus, "object_store_memory": object_store_memory}
            # Idle processes, one a CPU, that no worker could use: workers have an environment of their own.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            _own_token()  # which Ray, since 2.59, then asks of whoever connects: its processes listen on the network
            logging.getLogger(TOKEN_LOG).setLevel(logging.ERROR)  # every start would tell how to do without
            ray.init(address="local", include_dashboard=False, **room, **quiet)
            _started.append(ray.get_runtime_context().gcs_address)
        elif address:
            ray.init(**quiet)
        else:
            ray.init(address="auto", **quiet)  # never start a cluster where one was asked for
        hear_again()
    except InputError:
        raise
    except Exception as error:  # Ray's own raise any type; of a node that is not up in time a bare Exception
        if kind == "local":
            raise InputError(
                f"cluster: Ray must start on this machine, got {type(error).__name__} ({first_line(error)}). Run it "
                "again (a busy machine may take longer than Ray waits), or use `cluster=inline`."
            ) from error
        raise InputError(
            f"cluster: a Ray cluster must answer, got {type(error).__name__} "
            f"({first_line(error)}) at "
            f"{os.environ.get('RAY_ADDRESS', 'the default address')}. Start it, fix RAY_ADDRESS, or use "
            "`cluster=local`."
        ) from error


def started_here() -> bool:
    """Return whether the Ray that this process has joined is one that was started for an earlier run of it."""
    return (
        ray.is_initialized()
        and not ray.util.client.ray.is_connected()
        and (ray.get_runtime_context().gcs_address in _started)
    )


def check_driver(what: str) -> None:
    """Raise where the driver is no process of the cluster, and so cannot run Ray Data, which `what` takes.

    Raises:
        InputError: it speaks to the cluster through Ray Client.
    """
    if ray.util.client.ray.is_connected():
        raise InputError(
            f"cluster: {what} takes Ray Data, which does not run through Ray Client, got a connection by `ray://`. "
            "Submit the job (docs/cluster.md), or run it on a node of the cluster, with RAY_ADDRESS=HOST:PORT."
        )


def memory_per_worker(threads: int) -> int | None:
    """Return the bytes that the joined cluster's smallest node has for each worker of so many threads, as Ray counts
    them; None while there is no node to work on."""
    shares = []
    for node in ray.nodes():
        workers = int(node["Resources"].get("CPU", 0) // threads) if node["Alive"] else 0
        if workers:
            shares.append(int(node["Resources"]["memory"]) // workers)
    return min(shares, default=None)


def check_address(address: str) -> None:
    """Raise unless something listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not colon:  # auto, local or none: Ray knows at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"cluster: a Ray cluster must answer, got {type(error).__name__} ({error}) at {address}. "
            "Start it, fix RAY_ADDRESS, or use `cluster=local`."
        ) from error


def noted_address() -> str:
    """Return where the Ray that was last started on this machine was, if Ray's `auto` will go by that alone: it waits
    there for 100 s in silence if that has died since. Empty if none is noted, or some node runs here: then Ray looks at
    its processes, and may well find another cluster than the one noted."""
    if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        return ""
    folder = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))  # as Ray itself looks for it
    try:
        with open(os.path.join(folder, "ray", "ray_current_cluster")) as file:
            return file.read().strip()
    except OSError:  # none was started, or by someone else: Ray says so at once
        return ""


def _own_token() -> None:
    """Make the token that Ray is to use if there is none, and keep it from others: Ray's own can be read by all."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", os.path.expanduser("~/.ray/auth_token"))
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except OSError as error:
        if not os.path.isfile(path):
            raise InputError(
                f"cluster: Ray on this machine must have a token, which could not be written ({first_line(error)}). "
                "Name a file of yours in RAY_AUTH_TOKEN_PATH, or use `cluster=inline`."
            ) from error
        if os.stat(path).st_uid == os.getuid():
            os.chmod(path, 0o600)
