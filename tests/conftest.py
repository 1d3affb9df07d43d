"""One Ray cluster for the whole session, private and quiet."""

import atexit
import os
import secrets
import shutil
import socket
import sys
import tempfile

_folder = tempfile.tempdir = tempfile.mkdtemp(prefix="diva_ray-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
_token = os.path.join(_folder, "token")
with open(os.open(_token, os.O_CREAT | os.O_WRONLY, 0o600), "w") as _file:
    _file.write(secrets.token_hex(32))
# Before ray is imported anywhere: it reads these once.
os.environ.update(
    RAY_AUTH_TOKEN_PATH=_token,
    RAY_AUTH_MODE="token",
    RAY_worker_niceness="0",
    RAY_metrics_report_interval_ms="2000",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process compiles again what pip did not
sys.dont_write_bytecode = False

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster():
    """A real local Ray cluster with four CPUs; the port on which its node serves metrics."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300 << 20,
        log_to_driver=False,
        logging_level=40,
        _metrics_export_port=port,
    )
    yield port
    ray.shutdown()


@pytest.fixture(scope="session")
def task():
    """Learnable features, five string classes, two sources: 13,000 rows in 12 shards."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((13_000, 24)).astype(np.float32)
    y = np.array([f"class {k}" for k in (X[:, :5] + generator.standard_normal((13_000, 5))).argmax(1)])
    return {
        "features": X,
        "label": y,
        "id": generator.permutation(13_000),
        "source": np.array(["crawl", "label farm"])[generator.integers(0, 2, 13_000)],
    }
