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


@pytest.fixture(scope="module")
def chaos(tmp_path_factory, request):
    """The run of `test_whatever_fails`, started at once: it waits more than it computes, and so does the other."""
    wanted = any("test_whatever_fails" in item.name for item in request.session.items)
    run = start("chaos_run", str(tmp_path_factory.mktemp("chaos") / "run")) if wanted else None
    yield run
    if run is not None:
        run.kill()


@pytest.mark.cluster
@pytest.mark.long  # the test below loses a node too
def test_a_lost_node_changes_no_bit(tmp_path):
    assert any(line.startswith("OK") for line in end(start("nodes_run", str(tmp_path / "run")), 240))


@pytest.mark.cluster
@pytest.mark.slow
# v1 is the autoscaler that `ray up` starts, v2 that of KubeRay.
@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.long), "v2"])
def test_workers_ask_for_nodes_and_use_those_that_arrive(version, tmp_path, chaos):
    assert end(start("grows_run", str(tmp_path), version), 300)[0] == "OK"


@pytest.mark.cluster
@pytest.mark.slow
def test_whatever_fails_the_run_ends_or_resumes_with_the_same_bits(chaos):
    assert end(chaos, 500)[0] == "OK"
