"""Several nodes, one of which is lost for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def start(module: str, *words: str) -> subprocess.Popen:
    """Start a run on a cluster of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"tests.engine.{module}", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(run: subprocess.Popen, seconds: float) -> list[str]:
    """Return what a run said, its last line first; raise if it failed."""
    try:
        said, complaint = run.communicate(timeout=seconds)
    finally:
        run.kill()
    assert run.returncode == 0, said[-2000:] + complaint[-3000:]
    print(said)
    return said.splitlines()[::-1]


@pytest.mark.cluster
@pytest.mark.long  # the test below loses a node too
def test_a_lost_node_changes_no_bit(tmp_path):
    assert any(line.startswith("OK") for line in end(start("nodes_run", str(tmp_path / "run")), 240))


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.parametrize("version", ["v1", "v2"])  # the autoscaler that `ray up` starts, and that of KubeRay
def test_workers_ask_for_nodes_and_use_those_that_arrive(version, tmp_path):
    assert end(start("grows_run", str(tmp_path), version), 300)[0] == "OK"


@pytest.mark.cluster
@pytest.mark.slow
def test_whatever_fails_the_run_ends_or_resumes_with_the_same_bits(tmp_path):
    assert end(start("chaos_run", str(tmp_path / "run")), 500)[0] == "OK"
