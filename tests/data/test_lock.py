"""Two runs in one output folder: one goes on, the other is told, and what the first has written stays."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import diva_ray
from diva_ray.data.folder import Folder
from diva_ray.data.lock import is_kept, keep_others_out, let_others_in
from diva_ray.data.store import LOCK
from diva_ray.errors import InputError
from tests.data.tables import INLINE
from tests.forks import ROOT, run_job

HOLD = """
import sys
from diva_ray.data.folder import Folder
from diva_ray.data.lock import keep_others_out
folder = Folder(sys.argv[1])
folder.open_new(resume=False)
keep_others_out(folder)
folder.write("sums/one", b"of the first run")
print("held", flush=True)
sys.stdin.read()
"""


def score(output, **options):
    draw = np.random.default_rng(0)
    X = draw.standard_normal((60, 3))
    return diva_ray.score(
        {"features": X, "label": (X[:, 0] > 0).astype(int)}, output=str(output), cluster=INLINE, quiet=True, **options
    )


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into a folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_told_of_the_first_and_touches_nothing(holder, tmp_path, resume):
    told = rf"output: no other run may be writing there, got process {holder.pid} on .* at .*out. Wait until it has"
    with pytest.raises(InputError, match=told):
        score(tmp_path / "out", resume=resume)
    assert sorted(os.listdir(tmp_path / "out")) == [LOCK, "sums"]
    assert (tmp_path / "out" / "sums" / "one").read_bytes() == b"of the first run"


def test_a_run_that_was_killed_keeps_no_one_out(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    Folder(str(tmp_path / "out")).drop("sums")
    assert os.listdir(tmp_path / "out") == [LOCK]
    assert score(tmp_path / "out").summary["n_samples"] == 60
    assert LOCK not in os.listdir(tmp_path / "out")


def test_a_folder_is_free_again_after_a_run_and_after_a_mistake(tmp_path):
    with pytest.raises(InputError, match="ridge"):
        score(tmp_path / "out", ridge=-1.0)
    assert not (tmp_path / "out").exists()
    score(tmp_path / "out", keep_sums=False)
    assert not is_kept(str(tmp_path / "out"))
    assert score(tmp_path / "out", keep_sums=False, resume=True).summary["n_samples"] == 60
    with pytest.raises(InputError, match="must be new or empty"):
        score(tmp_path / "out")
    assert not is_kept(str(tmp_path / "out")) and LOCK not in os.listdir(tmp_path / "out")


def test_a_lock_is_of_one_run_also_within_a_process_and_a_uri_has_none(tmp_path):
    folder = Folder(str(tmp_path))
    keep_others_out(folder)
    with pytest.raises(InputError, match=f"got process {os.getpid()} on"):
        keep_others_out(Folder(str(tmp_path)))
    let_others_in(folder.path)
    let_others_in(folder.path)
    keep_others_out(folder)
    let_others_in(folder.path)
    assert os.listdir(tmp_path) == []


def test_a_run_of_another_thread_is_left_alone(tmp_path):
    folder = Folder(str(tmp_path / "out"))
    folder.open_new(resume=False)
    keep_others_out(folder)
    folder.write("sums/one", b"of the first run")
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=f"got process {os.getpid()} on"):
        pool.submit(score, tmp_path / "out", resume=True).result()
    assert is_kept(folder.path) and sorted(os.listdir(tmp_path / "out")) == [LOCK, "sums"]
    let_others_in(folder.path)


def test_a_folder_that_was_deleted_meanwhile_is_free(tmp_path):
    folder = Folder(str(tmp_path / "out"))
    folder.open_new(resume=False)
    keep_others_out(folder)
    shutil.rmtree(tmp_path / "out")
    let_others_in(folder.path)
    assert not is_kept(folder.path)


@pytest.mark.long
def test_of_two_jobs_that_start_together_one_ends_well(tmp_path):
    command = [sys.executable, "jobs/score.py", "cluster=inline", f"output={tmp_path / 'out'}"]
    pair = [subprocess.Popen([*command, f"ridge={ridge}"], cwd=ROOT, stderr=subprocess.PIPE) for ridge in (1, 1000)]
    told = [process.communicate()[1].decode() for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 2]
    at = [process.returncode for process in pair].index(0)
    assert told[1 - at].startswith("output: ") and told[1 - at].count("\n") == 1
    assert Folder(str(tmp_path / "out")).read_json("summary.json")["ridge"] == (1, 1000)[at]
    again = ("cluster=inline", f"ridge={(1, 1000)[at]}", f"output={tmp_path / 'out'}", "resume=true")
    assert run_job("jobs/score.py", *again).returncode == 0
