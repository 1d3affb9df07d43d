"""Everything that goes wrong on a cluster of three nodes, one after another: run in a process of its own.

A session scores and reweights one table while workers are killed, a node is lost, another is pre-empted, a file is
gone, the disk is full and drivers die; what is written must have the bits of an undisturbed run in one process.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster as Nodes

import diva_ray
from diva_ray.engine import reduce
from diva_ray.engine.cluster import Cluster
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels import passes
from diva_ray.errors import InputError
from diva_ray.tasks.setup import done

ROWS, FILES, WORKERS = 12_000, 6, 3
WHERE = {"kind": "ray", "workers": WORKERS}
ALONE = {"kind": "ray", "workers": 1}  # where workers beside it would only start; the bits are the same
HERE = {"kind": "inline", "threads": 1}
STRUCK = ("fit", "score", "write")  # passes in which workers are killed
reduce.UNIT = 1  # the driver adds shard by shard, so that things can happen in the middle of a pass
done.DEAR = 0.0


def write_table(folder: Path) -> str:
    """Write a learnable table of several files."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((ROWS, 16)).astype(np.float32)
    y = (X[:, :4] + generator.standard_normal((ROWS, 4))).argmax(1)
    y[:1500] = generator.integers(0, 4, 1500)
    folder.mkdir(parents=True)
    for k in range(FILES):
        part = slice(k * ROWS // FILES, (k + 1) * ROWS // FILES)
        rows = {"features": pa.FixedShapeTensorArray.from_numpy_ndarray(X[part]), "label": pa.array(y[part])}
        pq.write_table(pa.table(rows), folder / f"part-{k}.parquet")
    return str(folder)


def run(verb: str, table: str, output: str, where: dict | None = None, **options):
    """Score or reweight the table."""
    more = {"folds": 2, "steps": 1} if verb == "reweight" else {"labeller_doubt": "on"}
    return getattr(diva_ray, verb)(table, cluster=where or HERE, output=output, quiet=True, **more, **options)


def name_of(kernel) -> str:
    """Return the name of a kernel."""
    return getattr(kernel, "__name__", "") or kernel.func.__name__


WHOLE = Cluster.each


class Disturbed:
    """While entered, `happen(pids of workers, kernel's name, number of that pass)` is called in the midst of passes:
    after the first shard."""

    def __init__(self, happen, log: Path | None = None) -> None:
        self.happen, self.log, self.passes, self.pids = happen, log, [], []

    def __enter__(self) -> "Disturbed":
        disturbed = self

        def each(self, kernel, extents, done=int, features=True):
            name = name_of(kernel)
            disturbed.passes.append(name)
            # Asked for now: a worker answers when it has done what it was asked before.
            disturbed.pids = ray.get([actor.process.remote() for actor in self.actors])
            noted = functools.update_wrapper(functools.partial(note, kernel=kernel, log=disturbed.log), kernel)
            chosen = noted if disturbed.log else kernel
            for k, partial in enumerate(WHOLE(self, chosen, extents, done, features)):
                if k == 0:
                    disturbed.happen(disturbed.pids, name, disturbed.passes.count(name))
                yield partial

        Cluster.each = each
        return self

    def __exit__(self, *_: object) -> None:
        Cluster.each = WHOLE


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Give the names of the passes that a run in this process takes: what a cluster began it may finish."""
    whole, passes = Inline.each, []

    def each(self, kernel, *args, **options):
        passes.append(name_of(kernel))
        return whole(self, kernel, *args, **options)

    Inline.each = each
    try:
        yield passes
    finally:
        Inline.each = whole


def note(shard, known, *, kernel, log):
    """Run a kernel and note which shard it, and what it computes again, goes over."""
    for name in ("left_out_of", "score"):  # whitening, and the derivative
        inner = getattr(passes, name)
        if not hasattr(inner, "__wrapped__"):

            def again(shard, *args, inner=inner):
                _write(log, f"again:{inner.__name__}:in:{vars(passes)['within']}", shard)
                return inner(shard, *args)

            setattr(passes, name, functools.update_wrapper(again, inner))
    vars(passes)["within"] = name_of(kernel)  # of a module that both processes import
    _write(log, name_of(kernel), shard)
    time.sleep(0.25 if name_of(kernel) in STRUCK else 0.05)  # so that a pass has a middle, on a slow machine too
    return getattr(kernel, "__wrapped__", kernel)(shard, known)


def _write(log: Path, name: str, shard) -> None:
    with open(log, "a") as file:
        file.write(f"{name} {shard.extent.index}\n")


def same(result, expected, what: str) -> None:
    """Raise unless the rows have the bits that they must have; say what was survived."""
    assert result.folder.read_table("samples").equals(expected.folder.read_table("samples")), what
    assert "steps" not in result.folder.names(""), what
    print(f"{time.strftime('%H:%M:%S')} same bits after: {what}", flush=True)


def notify(nodes: Nodes, node) -> None:
    """Tell Ray that a node will be pre-empted in half a minute, as clouds tell it."""
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = ray._raylet.GcsClient(address=nodes.address)
    taken, why = client.drain_node(node.node_id, reason, "spot", int(time.time() * 1000) + 30_000)
    assert taken, why


def workers_and_nodes_go(nodes: Nodes, table: str, folder: Path, expected) -> None:
    """Workers are killed, a node is lost without a word, another is told that it will be pre-empted and goes a second
    later, each in a pass of its own: little is computed again."""
    victims: list[int] = []
    gone: list[str] = []
    struck = Counter(fit=1, score=1, write=1, propose=1, leave_one_out=2)  # in which pass of that name

    def replace_first(*, notice: bool) -> None:
        node = next(iter(nodes.worker_nodes))
        nodes.add_node(num_cpus=1)
        gone.append(node.node_id)
        if notice:
            notify(nodes, node)
            threading.Timer(1.0, lambda: nodes.remove_node(node, allow_graceful=False)).start()
            time.sleep(1.5)  # so that the node goes in the middle of the pass
        else:
            nodes.remove_node(node, allow_graceful=False)

    def happen(pids, name, number):
        if struck[name] != number:
            return
        if name in ("propose", "leave_one_out"):
            replace_first(notice=name == "leave_one_out")
        else:
            victims.append((1 + len(victims)) % WORKERS)
            os.kill(pids[victims[-1]], signal.SIGKILL)

    with Disturbed(happen, folder / "kernels.log") as seen:
        result = run("reweight", table, str(folder / "killed"), WHERE)
    assert len(victims) == 3 and len(gone) == 2, (victims, gone)
    assert {node["NodeID"] for node in ray.nodes() if not node["Alive"]} == set(gone)
    same(result, expected, "a worker killed in each of three passes, a node lost, a node pre-empted with a notice")
    ran = Counter((folder / "kernels.log").read_text().splitlines())
    shards = {line.split()[1] for line in ran}
    share = -(-len(shards) // WORKERS)
    top = Counter(seen.passes)
    redone = {name: sum(ran[f"{name} {shard}"] - top[name] for shard in shards) for name in top}
    print(f"  again: {redone}; of {len(shards)} shards, of which a worker holds {share}", flush=True)
    assert all(0 <= n <= (share if name in struck else 0) for name, n in redone.items()), redone
    assert any(redone.values()), "kills must hit the middle of a pass"
    first = ("again:left_out_of:in:least_room ", "again:left_out_of:in:leave_one_out ")  # whose work it is
    again = [line for line in ran if line.startswith("again:") and not line.startswith(first)]
    assert not again, f"what was left with rows must be found in storage, got {again}"
    assert result.summary["workers"]["restarts"] >= len(victims) + len(gone)


def file_gone(table: str, folder: Path, expected) -> None:
    """A file cannot be read when a new worker loads it: one line; once it is back the run is finished, right here."""
    file, away = Path(table) / f"part-{FILES - 1}.parquet", folder / "away.parquet"

    def happen(pids, name, number):
        if name == "leave_one_out":
            file.rename(away)
            os.kill(pids[-1], signal.SIGKILL)

    with Disturbed(happen, folder / "gone.log"):
        try:
            run("score", table, str(folder / "file"), ALONE)
            raise AssertionError("a file that is gone must be an error")
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error), error
            print("  ", error, flush=True)
    away.rename(file)
    with watched() as passes:
        result = run("score", table, str(folder / "file"), resume=True)
    assert passes[:2] == ["scan", "leave_one_out"], passes
    same(result, expected, "a file that was gone for a while")


def disk_full(table: str, folder: Path, expected) -> None:
    """The disk is full when rows are written: one line; with more room the run is finished, in this process."""
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1980k", "none", small], check=False).returncode:
        print("SKIPPED: a full disk (nobody may mount one here)", flush=True)
        return
    try:
        try:
            run("score", table, str(small / "run"), ALONE)
            raise AssertionError("a full disk must be an error")
        except InputError as error:
            assert "No space left on device" in str(error) and "resume=true" in str(error), error
            print("  ", error, flush=True)
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        with watched() as passes:
            result = run("score", table, str(small / "run"), resume=True)
        assert passes == ["scan", "write"], passes  # 1.7 MB are kept before rows are written: 0.6 MB
        same(result, expected, "a full disk")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def driver_dies(nodes: Nodes, table: str, folder: Path, expected) -> None:
    """The driver is killed while rows are written, and the run finished by another."""
    output = str(folder / "driver")
    command = [sys.executable, "-m", "tests.engine.chaos_run", "driver", table, output, "write"]
    died = subprocess.run(
        command, env={**os.environ, "RAY_ADDRESS": nodes.address}, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "driver" / "samples").glob("part*")}
    with watched() as passes:
        result = run("reweight", table, output, resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "driver" / "samples").glob("part*")}
    assert written and all(after[name] == time for name, time in written.items()), "what was written must stay"
    assert passes == ["scan", "write"], passes
    same(result, expected, f"a killed driver; {len(written)} of {len(after)} parts were there")


def driver(table: str, output: str, fatal: str) -> None:
    """Reweight until the driver kills itself after the first shard of a pass."""

    def happen(pids, name, number):
        if name == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with Disturbed(happen):
        run("reweight", table, output, ALONE)


def start() -> Nodes:
    """Start a head without CPUs and three nodes of one, which are missed soon."""
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}
    head = {"num_cpus": 0, "_system_config": {**quick, "health_check_failure_threshold": 3}}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    for _ in range(WORKERS):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=40)
    return nodes


def main(output: str) -> None:
    """Let everything happen; print OK when all of it was survived."""
    folder = Path(output)
    table = write_table(folder / "table")
    whole = {verb: run(verb, table, str(folder / verb)) for verb in ("score", "reweight")}
    nodes = start()
    file_gone(table, folder, whole["score"])
    disk_full(table, folder, whole["score"])
    driver_dies(nodes, table, folder, whole["reweight"])
    workers_and_nodes_go(nodes, table, folder, whole["reweight"])
    ray.shutdown()
    nodes.shutdown()
    print("OK")


if __name__ == "__main__":
    driver(*sys.argv[2:]) if sys.argv[1] == "driver" else main(sys.argv[1])
