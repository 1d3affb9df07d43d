"""The environment that BLAS and OpenMP read once, when their libraries are loaded.

SPIN is how long torch's threads wait for each other actively before they sleep. By default GNU's OpenMP turns 300,000
times: nothing on idle cores of their own, but where others use them, or two virtual processors are one core, the one
that is waited for gets less of it. On two virtual processors without other work runs took 2.8 to 3.6 times as long as
with one thread, 1.1 to 1.6 times with 10,000 turns, and with 300 as long or less (docs/results/clusters.md).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = {"GOMP_SPINCOUNT": "300"}


def wait_briefly() -> None:
    """Set it for this process, unless its environment says how to wait, or torch is there, which reads it once."""
    if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
        for name, value in SPIN.items():
            os.environ.setdefault(name, value)


def of_worker(threads: int) -> dict[str, str]:
    """Return the environment of a worker with so many threads."""
    return {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **SPIN}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that a library reads, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def blas_environment() -> dict[str, str]:
    """Return the environment under which OpenBLAS uses this processor's AVX-512 kernels, if it does not by itself."""
    import numpy  # noqa: F401  # brings OpenBLAS
    from threadpoolctl import threadpool_info

    if "OPENBLAS_CORETYPE" in os.environ or not os.path.exists("/proc/cpuinfo"):
        return {}
    taken = {str(info.get("architecture")) for info in threadpool_info() if info.get("internal_api") == "openblas"}
    with open("/proc/cpuinfo") as file:
        return better_coretype(taken, file.read())


def better_coretype(architectures: set[str], cpuinfo: str) -> dict[str, str]:
    """Return OPENBLAS_CORETYPE for a processor that has AVX-512 but was taken for one without.

    OpenBLAS takes AMD's Zen 4 and 5 for Haswell: 128 instead of 251 GF/s in float32 products.
    """
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if architectures & {"Haswell", "Zen"} and "avx512vl" in cpuinfo else {}
