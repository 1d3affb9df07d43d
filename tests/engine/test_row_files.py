"""Results of rows in storage: a resumed run finds them, and computes a damaged file's rows again."""

import functools

import numpy as np
import pytest

import diva_ray
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels import passes
from diva_ray.tasks.setup import done
from tests.engine.runs import small_task


class DriverDied(BaseException):
    """What the test ends a driver with: nothing catches it."""


def die_in(kernel_name, monkeypatch):
    whole = Inline.each

    def each(self, kernel, *rest):
        name = getattr(kernel, "__name__", "") or kernel.func.__name__
        for k, partial in enumerate(whole(self, kernel, *rest)):
            if name == kernel_name and k == 0:
                raise DriverDied
            yield partial

    monkeypatch.setattr(Inline, "each", each)


def noted(name, monkeypatch):
    """Return the list of the shards that a function of the passes goes over from now on."""
    inner, seen = getattr(passes, name), []

    @functools.wraps(inner)
    def wrapped(shard, *rest):
        seen.append(shard.extent.index)
        return inner(shard, *rest)

    monkeypatch.setattr(passes, name, wrapped)
    return seen


@pytest.mark.parametrize(("damaged", "grouped"), [(False, True), (True, False)])
def test_a_resumed_run_finds_what_passes_left_with_the_rows(tmp_path, monkeypatch, damaged, grouped, caplog):
    monkeypatch.setattr(done, "DEAR", 0.0)
    task = {**small_task(9000), "user": np.arange(9000) // 2}
    options = {"cluster": "inline", "quiet": True, "group": "user" if grouped else None, "standard_errors": "estimate"}
    whole = diva_ray.score(task, output=str(tmp_path / "whole"), **options)
    with monkeypatch.context() as dying:
        die_in("calibrate", dying)
        with pytest.raises(DriverDied):
            diva_ray.score(task, output=str(tmp_path / "run"), **options)
    files = sorted((tmp_path / "run" / "steps").glob("*/00000.npz"))
    assert [file.parent.name[5:] for file in files] == (["score"] if grouped else ["left", "score"])
    every = {int(file.stem) for file in (tmp_path / "run" / "steps").glob("*-score/*.npz")}
    assert len(every) > 1
    for file in files if damaged else ():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    whitened, scored = noted("left_out_of", monkeypatch), noted("score", monkeypatch)
    run = diva_ray.score(task, output=str(tmp_path / "run"), resume=True, **options)
    assert set(whitened) == (every if grouped else {0} if damaged else set())
    assert set(scored) == ({0} if damaged else set())
    assert ("is damaged" in caplog.text) == damaged
    assert run.samples.equals(whole.samples)
    assert not (tmp_path / "run" / "steps").exists()
