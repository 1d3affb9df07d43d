"""Several nodes, one of which is lost for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.cluster
@pytest.mark.long  # the test below loses a node too
def test_a_lost_node_changes_no_bit(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.engine.nodes_run", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(line.startswith("OK") for line in done.stdout.splitlines()), done.stdout[-2000:]


@pytest.mark.cluster
@pytest.mark.slow
def test_whatever_fails_the_run_ends_or_resumes_with_the_same_bits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.engine.chaos_run", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "OK", done.stdout[-2000:]
    print(done.stdout)


@pytest.mark.cluster
@pytest.mark.slow
# v1 is the autoscaler that `ray up` starts, v2 that of KubeRay.
@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.long), "v2"])
def test_workers_ask_for_nodes_and_use_those_that_arrive(version, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.engine.grows_run", str(tmp_path), version]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "OK", done.stdout[-2000:]
