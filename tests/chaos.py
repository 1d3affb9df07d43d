"""Runs that are disturbed at random times for as long as you like: python -m tests.chaos --minutes 30 --seed 0.

Workers and drivers are killed, nodes lost or pre-empted with a notice; every run must end with the bits of an
undisturbed one in one process. Exits with 1, and says which run it was, if one does not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray

from tests.engine.chaos_run import WHERE, WORKERS, notify, run, start, write_table


def workers_of(nodes) -> list[psutil.Process]:
    """Return the processes in which this cluster's workers run."""
    raylets = [one.process.pid for node in nodes.worker_nodes for one in node.all_processes["raylet"]]
    children = [child for pid in raylets for child in psutil.Process(pid).children()]
    return [child for child in children if "ray::Worker" in " ".join(child.cmdline())]


def disturb(nodes, driver: subprocess.Popen, dice: random.Random) -> str:
    """Let something happen; return what."""
    what = dice.choices(["worker killed", "driver killed", "node lost", "node pre-empted"], [6, 2, 1, 1])[0]
    if what == "driver killed":
        driver.kill()
    elif what == "worker killed":
        found = workers_of(nodes)
        if not found:
            return "nothing"
        os.kill(dice.choice(found).pid, signal.SIGKILL)
    else:
        node = dice.choice(sorted(nodes.worker_nodes, key=lambda one: one.node_id))
        nodes.add_node(num_cpus=1)
        if what == "node pre-empted":
            notify(nodes, node)
            time.sleep(dice.uniform(0.0, 3.0))
        nodes.remove_node(node, allow_graceful=False)
    return what


def one_run(nodes, verb: str, table: str, output: str, dice: random.Random, happened: Counter) -> int:
    """Run to the end, however often the driver dies; return how many drivers it took."""
    attempts = 0
    while True:
        command = [sys.executable, "-m", "tests.chaos", "--drive", verb, table, output, str(int(attempts > 0))]
        environment = {**os.environ, "RAY_ADDRESS": nodes.address}
        with tempfile.TemporaryFile("w+") as told:
            driver = subprocess.Popen(command, env=environment, stdout=told, stderr=told)
            attempts += 1
            while driver.poll() is None:
                try:
                    driver.wait(dice.expovariate(1 / 8.0))
                except subprocess.TimeoutExpired:
                    happened[disturb(nodes, driver, dice)] += 1
            if driver.returncode == 0:
                return attempts
            if driver.returncode != -signal.SIGKILL:
                told.seek(0)
                raise SystemExit(f"{verb} in {output} ended with {driver.returncode}:\n{told.read()[-4000:]}")


def main() -> None:
    """Disturb runs until the time is over; print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=4, metavar=("VERB", "TABLE", "OUTPUT", "RESUME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        verb, table, output, resume = options.drive
        run(verb, table, output, WHERE, resume=resume == "1")
        return
    dice, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="chaos-"))
    table = write_table(folder / "table")
    whole = {verb: run(verb, table, str(folder / verb)).folder.read_table("samples") for verb in ("score", "reweight")}
    nodes, happened, runs = start(), Counter(), Counter()
    end, k = time.monotonic() + 60 * options.minutes, 0
    while time.monotonic() < end:
        verb, output = dice.choice(sorted(whole)), folder / f"run-{k}"
        began, before = time.monotonic(), Counter(happened)
        attempts = one_run(nodes, verb, table, str(output), dice, happened)
        found = pq.ParquetDataset(sorted(map(str, (output / "samples").glob("part*.parquet")))).read()
        took = f"{time.monotonic() - began:.0f} s, {attempts} drivers, {dict(happened - before)}"
        if not found.equals(whole[verb]):
            raise SystemExit(f"run {k}, {verb}: other bits than undisturbed, in {output} ({took})")
        runs[verb] += 1
        print(f"run {k}: {verb}, same bits ({took})", flush=True)
        k += 1
    print(f"{sum(runs.values())} runs with the same bits {dict(runs)} on {WORKERS} nodes; {dict(happened)}", flush=True)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main()
