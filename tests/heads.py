"""Ray clusters started as users start them, `ray start --head --block`, on ports and in a folder of their own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent  # where jobs find `python`, as in an activated environment
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_ID = "f" * 51 + "00000"  # the node id by which Ray's fake provider knows its head


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


class Started:
    """A cluster of Ray processes; ends only those that it started."""

    def __init__(self) -> None:
        # a short path: Ray's sockets lie in it
        self.folder = tempfile.mkdtemp(prefix="rt")
        self.processes: list[subprocess.Popen] = []
        self.gcs, self.dashboard, self.client = free_ports(3)

    def ray_start(self, *options: str, **environment: str) -> None:
        """Start one node."""
        agent, grpc, metrics, autoscaler, dashboard = map(str, free_ports(5))
        ports = {
            "DASHBOARD_METRIC_PORT": dashboard, "AUTOSCALER_METRIC_PORT": autoscaler, "RAY_worker_niceness": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }  # fmt: skip
        command = [
            f"{BIN}/ray", "start", "--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}", f"--object-store-memory={100 << 20}", *options,
        ]  # fmt: skip
        name = f"{self.folder}/{len(self.processes)}"
        command.append(f"--temp-dir={name}")  # nodes of one folder would delete each other's copy of a working_dir
        with open(f"{name}.log", "wb") as log:
            self.processes.append(
                subprocess.Popen(
                    command, env={**os.environ, **ports, **environment}, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )  # fmt: skip

    def head(self, *options: str, **environment: str) -> None:
        """Start a head that does no work; wait until it answers."""
        self.ray_start(
            "--head", f"--port={self.gcs}", "--num-cpus=0",
            f"--ray-client-server-port={self.client}", f"--dashboard-port={self.dashboard}", *options, **environment,
        )  # fmt: skip
        self.wait(lambda: socket.create_connection((self.address.split(":")[0], self.gcs), 1).close())

    def wait(self, attempt, seconds: float = 60.0):
        """Return what `attempt` returns once it does not raise; raise if a node has ended."""
        deadline = time.monotonic() + seconds
        while True:
            assert all(one.poll() is None for one in self.processes), self.told()
            try:
                return attempt()
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        from ray.util import get_node_ip_address

        return f"{get_node_ip_address()}:{self.gcs}"

    def told(self) -> str:
        """Return what the nodes said."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(Path(self.folder).glob("*.log")))

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self.processes):
            one.terminate()
        for one in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)  # what a node left behind
        shutil.rmtree(self.folder, ignore_errors=True)


def fake_autoscaler(started: Started, types: dict[str, dict[str, int]], most: int) -> list[str]:
    """Return the options with which a head adds nodes of these types on this machine."""
    import yaml

    node_types = {name: {"resources": has, "max_workers": most, "node_config": {}} for name, has in types.items()}
    config = {
        "cluster_name": "fake", "max_workers": most, "idle_timeout_minutes": 0.05, "upscaling_speed": 100,
        "provider": {
            "type": "external", "module": FAKE, "gcs_address": started.address, "head_node_id": HEAD_ID,
            "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "foreground_node_launch": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}}, **node_types,
        },
        "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }  # fmt: skip
    path = Path(started.folder) / "autoscaling.yaml"
    path.write_text(yaml.safe_dump(config))
    return [f"--autoscaling-config={path}"]


def fake_head(version: str) -> dict[str, str]:
    """Return the environment of a head that adds nodes on this machine, by autoscaler `v1` or `v2`."""
    return {
        "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1" if version == "v2" else "0",
    }  # fmt: skip
