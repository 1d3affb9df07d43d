"""Outputs on a disk that not every node has: refused before any pass, not written in part."""

import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from diva_ray.data.folder import Folder
from diva_ray.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
OUTPUT = "output: every node must reach the folder of the run, got none or another one on "


def on_worker(folder):
    """The folder as a worker has it."""
    return pickle.loads(pickle.dumps(folder))


def test_a_worker_writes_where_it_finds_what_the_driver_left(tmp_path):
    folder = Folder(str(tmp_path / "out"))
    folder.open_new(resume=False)
    on_worker(folder).write("a", b"")  # nobody shares it
    folder.share()
    assert folder.names("") == ["a"]
    on_worker(folder).write("b", b"")
    on_worker(on_worker(folder)).check_reached()
    (tmp_path / "out").rename(tmp_path / "moved")  # as another node sees it
    for write in (
        lambda one: one.write("c", b""),
        lambda one: one.write_table("c.parquet", pa.table({"x": [1]})),
        lambda one: one.stream_table("c.parquet", pa.schema([])).__enter__(),
        lambda one: one.pass_on(pa.table({"x": [1]})),
    ):
        with pytest.raises(InputError, match=OUTPUT):
            write(on_worker(folder))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_run_is_another_one(tmp_path):
    ours, theirs = Folder(str(tmp_path / "out")), Folder(str(tmp_path / "out"))
    ours.share()
    theirs.share()
    on_worker(theirs).check_reached()
    with pytest.raises(InputError, match=OUTPUT):
        on_worker(ours).check_reached()


def test_what_a_killed_driver_left_is_no_run(tmp_path):
    Folder(str(tmp_path)).share()
    Folder(str(tmp_path)).open_new(resume=False)
    assert Folder(str(tmp_path)).names("") == []


@pytest.mark.ray
@pytest.mark.long  # what a worker says is above
def test_a_driver_with_a_disk_of_its_own_is_told(tmp_path, ray_cluster):
    """Each node would write its own rows to its own disk, and the run would end with those of the driver's alone."""
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.engine.apart_run", address, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    said = run.stdout.splitlines()
    if said == ["not allowed"]:
        pytest.skip("a disk of its own takes the rights of root")
    assert [line.startswith(OUTPUT) for line in said[:4]] == [True] * 4, said
    assert said[4].startswith("data.path: every node must find every file, got none on ") and len(said) == 5
