"""A Ray that is started here asks for a token that only its owner can read."""

import os
import stat
import subprocess
import sys

import pytest

CODE = """
import os
from diva_ray.engine.connect import connect
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
