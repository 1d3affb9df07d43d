"""One Ray cluster for the whole session, private and quiet."""

import ast
import atexit
import functools
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path

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
    RAY_prestart_worker_first_driver="0",  # idle processes that cost what they do not save
    RAY_metrics_report_interval_ms="2000",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process compiles again what pip did not
sys.dont_write_bytecode = False

import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


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


# --- order -----------------------------------------------------------------------------------------------------------
# Ray's processes take a tenth of a core even where nothing runs. So of the processes of `-n` one alone has a cluster:
# it runs all tests that use it, first and one after another, and then ends it.


@functools.cache
def _of_ray(file):
    """Return the names of a file's tests that use the session's cluster, as xdist knows tests by their names alone."""
    found = set()
    for node in (body := ast.parse(Path(file).read_text()).body):
        if isinstance(node, ast.Assign) and "pytest.mark.ray" in ast.unparse(node):  # pytestmark
            return {one.name for one in body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef) and "pytest.mark.ray" in map(ast.unparse, node.decorator_list):
            found.add(node.name)
    return found


def _turn(item):
    """Return when a test's turn is: those of the session's cluster, of clusters of their own, all others."""
    if item.name.partition("[")[0] in _of_ray(item.path):
        return 0
    return 2 - (item.get_closest_marker("cluster") is not None)


def pytest_collection_modifyitems(items):
    """Long tests first, so that no process waits for another at the end."""
    items.sort(key=_turn)


def pytest_runtest_setup(item):
    """Check shapes in core's own tests and in those of the rooms that call it; whole tasks and jobs take a fifth less
    time without, and run as users run them."""
    jaxtyping.config.update("jaxtyping_disable", item.path.parent.name not in ("core", "data", "engine"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """End the session's cluster once no more of its tests come."""
    if _turn(item) == 0 and (nextitem is None or _turn(nextitem)):
        import ray

        ray.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal files to processes; tests of the session's cluster together, to one."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            name = nodeid.partition("[")[0].rpartition("::")[2]
            return "the session's cluster" if name in _of_ray(config.rootpath / file) else file

    return Files(config, log)
