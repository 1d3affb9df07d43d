"""Jobs submitted to a real head, as `ray job submit --working-dir . -- python jobs/score.py ...` does."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.heads import Started

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.jobs, pytest.mark.cluster, pytest.mark.slow]
LOOK = """
import json, os, pathlib, ray, diva_ray
ray.init()
@ray.remote
def where():
    import diva_ray
    return diva_ray.__file__
print(diva_ray.__file__)
print(ray.get(where.remote()))
here = pathlib.Path.cwd()
print(json.dumps([os.listdir(), sum(path.stat().st_size for path in here.rglob("*"))]))
"""


BY_CLIENT = """
import ray, diva_ray
ray.init()
where = {"kind": "ray", "workers": 1}
for run in (
    lambda: diva_ray.score(ray.data.from_items([{"features": [0.0], "label": 0}]), cluster=where, quiet=True),
    lambda: diva_ray.score(ray.data.from_items([{"features": [0.0], "label": 0}]), cluster=where, plan=True),
    lambda: diva_ray.embed(encoder="edges", cluster=where, quiet=True),
):
    try:
        run()
    except diva_ray.InputError as error:
        print(error)
"""


class Submitter:
    """The job client, and what tests ask of it."""

    def __init__(self, url: str, port: int) -> None:
        from ray.job_submission import JobSubmissionClient

        self.url, self.client, self.port = url, JobSubmissionClient(url), port

    def submit(self, entrypoint: str) -> str:
        return self.client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})

    def wait(self, job: str, until, seconds: float = 120.0):
        deadline = time.monotonic() + seconds
        while not until(self.client.get_job_info(job)):
            assert time.monotonic() < deadline, self.client.get_job_logs(job)[-3000:]
            time.sleep(0.2)
        return self.client.get_job_info(job), self.client.get_job_logs(job)

    def run(self, entrypoint: str):
        job = self.submit(entrypoint)
        return self.wait(job, terminal)


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and a node with two."""
    with Started() as started:
        # where diva_ray is found on these nodes must come from the submitted folder
        elsewhere = {"PYTHONPATH": ""}
        started.head("--dashboard-host=127.0.0.1", **elsewhere)
        started.ray_start(f"--address={started.address}", "--num-cpus=2", **elsewhere)
        submitter = started.wait(lambda: Submitter(f"http://127.0.0.1:{started.dashboard}", started.client), 60)
        started.wait(lambda: 1 / (len(live(submitter, "nodes")) == 2), 60)
        yield submitter


def live(submitter: Submitter, what: str) -> list:
    from ray.util import state

    alive = [("state", "=", "ALIVE")]
    return getattr(state, f"list_{what}")(address=submitter.url, filters=alive)


def package(info) -> str:
    return info.runtime_env["working_dir"]


def terminal(info) -> bool:
    return info.status.is_terminal()


@pytest.fixture(scope="module")
def first(cluster, tmp_path_factory):
    """The first submission, and beside it one that looks at what was submitted."""
    output = tmp_path_factory.mktemp("submitted") / "digits"
    begun = time.monotonic()
    job = cluster.submit(f"python jobs/score.py cluster=ray data=digits output={output}")
    looks = cluster.submit(f"python -c '{LOOK}'")
    info, logs = cluster.wait(job, terminal)
    print(f"first submission: {time.monotonic() - begun:.1f} s")
    return {"score": (output, info, logs), "looks": (None, *cluster.wait(looks, terminal))}


def test_a_submitted_job_succeeds_and_its_log_tells_plan_progress_and_result(first):
    output, info, logs = first["score"]
    assert info.status == "SUCCEEDED", logs
    assert info.driver_exit_code == 0
    assert re.search(r"^where +ray: ", logs, re.M), logs
    for label in ("load", "scan", "fit", "leave-out", "score", "write"):
        assert re.search(rf"^pass={label} rows=1797 seconds=[0-9.]+ rows_per_second=[0-9]+", logs, re.M), logs
    assert "1,797 samples, leave-one-out error" in logs
    assert "\r" not in logs
    assert json.loads((output / "manifest.json").read_text())["cluster"]["kind"] == "ray"


def test_a_mistake_is_one_line_with_exit_code_two_and_the_folder_is_not_sent_again(cluster, first, monkeypatch):
    def sent_again(*_, **__):
        raise AssertionError("the folder is there already")

    monkeypatch.setattr(cluster.client, "_upload_package", sent_again)
    begun = time.monotonic()
    info, logs = cluster.run("python jobs/score.py cluster=ray data=digits ridge=-1 output=/tmp/never")
    print(f"second submission: {time.monotonic() - begun:.1f} s")
    assert info.status == "FAILED"
    assert info.driver_exit_code == 2
    assert package(info) == package(first["score"][1])
    assert [line for line in logs.splitlines() if line.startswith("ridge: ")], logs
    assert "Traceback" not in logs
    assert "Traceback" not in info.message


def test_what_is_submitted_is_what_workers_import_and_nothing_large(first):
    _, info, logs = first["looks"]
    assert info.status == "SUCCEEDED", logs
    found = [line for line in logs.splitlines() if line.endswith("diva_ray/__init__.py")]
    assert len(found) == 2, logs
    assert all("/runtime_resources/working_dir_files/_ray_pkg_" in path for path in found), found
    names, size = json.loads(logs.splitlines()[-1])
    assert {"diva_ray", "jobs", "configs"} <= set(names)
    assert not {".git", ".venv", "outputs", ".pytest_cache"} & set(names)
    assert size < 20 << 20


@pytest.mark.long
def test_a_stopped_job_leaves_nothing_running_and_no_half_file_and_can_be_resumed(cluster, tmp_path):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((20_000, 256)).astype(np.float16)
    y = (X[:, :8] + generator.standard_normal((20_000, 8))).argmax(1)
    features = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    pq.write_table(pa.table({"features": features, "label": y}), tmp_path / "table.parquet")
    output = tmp_path / "run"
    command = f"python jobs/score.py cluster=ray cluster.workers=2 data.path={tmp_path}/table.parquet output={output}"
    job = cluster.submit(command)
    cluster.wait(job, lambda info: "pass=scan" in cluster.client.get_job_logs(job))
    assert len(live(cluster, "actors")) >= 2
    begun = time.monotonic()
    assert cluster.client.stop_job(job)
    info, logs = cluster.wait(job, terminal, 30)
    assert info.status == "STOPPED"
    assert f"score: interrupted. `output={output} resume=true` goes on from what is there." in logs
    assert "*** SIGTERM received" not in logs
    while live(cluster, "actors"):
        assert time.monotonic() - begun < 20, live(cluster, "actors")
        time.sleep(0.2)
    print(f"stopped, actors gone: {time.monotonic() - begun:.1f} s")
    assert not (output / "report.html").exists(), "it was stopped in the middle"
    for path in output.rglob("*.parquet"):
        pq.read_table(path)
    assert not list(output.rglob("*.part"))

    info, logs = cluster.run(f"{command} resume=true")
    assert info.status == "SUCCEEDED", logs
    assert pq.read_table(output / "samples").num_rows == 20_000


@pytest.mark.long  # the server of a client, which Ray starts for each, sometimes ends at once
def test_what_ray_client_cannot_run_is_told_before_anything_runs(cluster):
    environment = {**os.environ, "RAY_ADDRESS": f"ray://127.0.0.1:{cluster.port}"}
    run = subprocess.run(
        [sys.executable, "-c", BY_CLIENT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    told = [line for line in run.stdout.splitlines() if line.startswith("cluster: ")]
    assert run.returncode == 0 and len(told) == 3, run.stdout[-2000:] + run.stderr[-2000:]
    assert all("does not run through Ray Client, got a connection by `ray://`. Submit the job" in one for one in told)
