"""A driver with a disk of its own: what it writes there no worker finds. Run in a process of its own, as root."""

import ctypes
import os
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from sklearn.datasets import load_digits

import diva_ray
from diva_ray.errors import InputError

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
WHERE = {"kind": "ray", "workers": 1}


def mount_apart(folder: str) -> bool:
    """Put a disk that this process alone sees in the place of a folder; return whether that was allowed."""
    if ctypes.CDLL(None).unshare(NEW_MOUNTS):
        return False
    for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "none", folder]):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return False
    return True


def refused(run, **options) -> str:
    """Return what is said of a run that cannot be."""
    try:
        run(**options, cluster=WHERE, quiet=True)
    except InputError as error:
        return str(error)
    raise AssertionError("the run went through")


def main(address: str, shared: str) -> None:
    """Print what is said of every run, or `not allowed`."""
    mine = f"{shared}/mine"
    os.mkdir(mine)
    if not mount_apart(mine):
        print("not allowed")
        return
    X, y = load_digits(return_X_y=True)
    rows = pa.table({"features": list(X[:600].astype(np.float32)), "label": y[:600]})
    for folder in (shared, mine):
        pq.write_table(rows, f"{folder}/table.parquet")
    ray.init(address, log_to_driver=False, logging_level=40)
    print(refused(diva_ray.score, data=f"{shared}/table.parquet", output=f"{mine}/run"))
    assert os.listdir(mine) == ["table.parquet"], "nothing may be left of a run that could not be"
    tempfile.tempdir = mine
    print(refused(diva_ray.score, data=f"{shared}/table.parquet"))
    print(refused(diva_ray.score, data=ray.data.from_arrow(rows), output=f"{mine}/run"))
    assert os.listdir(mine) == ["table.parquet"], "nor of its rows"
    print(refused(diva_ray.embed, encoder="edges", output=f"{mine}/features"))
    print(refused(diva_ray.score, data=f"{mine}/table.parquet", output=f"{shared}/run"))
    result = diva_ray.score(f"{shared}/table.parquet", output=f"{shared}/run", cluster=WHERE, quiet=True)
    assert result.folder.read_table("samples").num_rows == 600
    assert not os.path.exists(f"{shared}/run/.run"), "the token is gone when all is there"


if __name__ == "__main__":
    main(*sys.argv[1:])
