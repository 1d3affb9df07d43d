"""A Ray that is started here asks for a token that only its owner can read; what Ray Client cannot run is refused."""

import os
import stat
import subprocess
import sys

import pytest

import diva_ray
from diva_ray.engine import connect as connecting
from diva_ray.engine.connect import connect
from diva_ray.errors import InputError

CODE = """
import os
from diva_ray.engine import connect as connecting
from diva_ray.engine.connect import connect
from diva_ray.errors import InputError
connect("local", cpus=1, object_store_memory=100 << 20)
print(os.environ["RAY_AUTH_MODE"])  # as Ray has set it for its processes
"""


@pytest.mark.cluster
@pytest.mark.long  # `jobs/test_score` starts one in any case
def test_a_local_ray_has_a_token_of_its_owner_alone(tmp_path):
    drop = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    path = tmp_path / "ray" / "token"
    environment = {**kept, "RAY_AUTH_TOKEN_PATH": str(path)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["token"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and len(path.read_text()) == 64


@pytest.mark.ray
def test_a_stale_note_is_not_asked_where_a_cluster_runs(ray_cluster, monkeypatch, tmp_path):
    """Ray finds that one by its processes, whatever was noted before."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert connecting.noted_address() == ""
    monkeypatch.setattr(connecting.psutil, "process_iter", lambda *names: iter(()))
    assert connecting.noted_address() == "127.0.0.1:1"


@pytest.mark.parametrize("options", [{}, {"plan": True}])
def test_a_driver_outside_the_cluster_runs_no_ray_data(options, tmp_path, monkeypatch):
    """A stand-in for the connection alone; a real one is in `jobs/test_submit`, among the long ones."""
    import ray.data
    import ray.util.client

    class Dataset:
        pass

    Dataset.__module__ = "ray.data.dataset"  # by which it is known
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    with pytest.raises(diva_ray.InputError, match="a Ray Dataset takes Ray Data, which does not run through"):
        diva_ray.score(Dataset(), output=str(tmp_path / "run"), quiet=True, **options)
    assert not (tmp_path / "run").exists(), "nothing stands in the way of the next try"


def test_a_ray_that_does_not_start_is_told_in_a_line(monkeypatch, tmp_path):
    """A stand-in for a machine too busy to start a node in Ray's half a minute; what it raises is Ray's own type."""
    import ray

    def init(*args, **options):
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    told = r"^cluster: Ray must start on this machine, got Exception \(The current node timed out.*`cluster=inline`\.$"
    with pytest.raises(diva_ray.InputError, match=told):
        connect("local", cpus=1)


THREADS = """
import threading, time
import numpy as np
import diva_ray

X = np.random.default_rng(0).normal(size=(200, 4))

def score():
    table = {"features": X, "label": (X[:, 0] > 0).astype(int)}
    print(diva_ray.score(table, quiet=True, cluster={"kind": "local", "workers": 1}).summary["n_samples"], flush=True)

first = threading.Thread(target=score)
first.start()
first.join()
time.sleep(1)  # in which processes end that ended with their thread
both = [threading.Thread(target=score) for _ in range(2)]
for one in both:
    one.start()
for one in both:
    one.join()
"""


@pytest.mark.cluster
def test_a_ray_outlives_the_thread_that_asked_for_it_and_is_started_once(tmp_path):
    """Linux ends its processes with the thread that started them, and whoever asked next waited a minute to die."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout.split()) == (0, ["200"] * 3), done.stderr[-2000:]


def test_a_token_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file" / "token"))
    with pytest.raises(InputError, match="cluster: Ray on this machine must have a token, .* RAY_AUTH_TOKEN_PATH"):
        connecting._own_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    connecting._own_token()
    first = (tmp_path / "token").read_text()
    connecting._own_token()
    assert (tmp_path / "token").read_text() == first and (tmp_path / "token").stat().st_mode & 0o777 == 0o600
