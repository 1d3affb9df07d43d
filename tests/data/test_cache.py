"""What goes into the cache comes back as it was; nothing is left of it; a full disk is told in one line."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diva_ray.bench.peers import memory_above, reset_memory
from diva_ray.data.cache import Cache, Spilled
from diva_ray.errors import InputError


@dataclass(frozen=True)
class Kept:
    values: torch.Tensor
    name: str


def test_arrays_of_every_kind_come_back_with_their_bits(tmp_path):
    cache = Cache(str(tmp_path))
    given_ = {
        "half": torch.randn(7, 3).half(), "flags": torch.tensor([True, False]), "none": None,
        "inside": [np.arange(5, dtype=np.uint64), (torch.zeros(0, 4), "text")],
        "words": pa.array(["a", None, "ü"]), "lists": pa.array([[1, 2], [], None]).slice(1, 2),
        "object": Kept(torch.arange(3), "kept"),
    }  # fmt: skip
    found = cache.get(cache.put(given_))
    assert found["half"].dtype == torch.float16 and torch.equal(found["half"], given_["half"])
    assert torch.equal(found["flags"], given_["flags"]) and found["none"] is None
    assert found["inside"][0].dtype == np.uint64 and found["inside"][0].tolist() == [0, 1, 2, 3, 4]
    assert found["inside"][1][0].shape == (0, 4) and found["inside"][1][1] == "text"
    assert found["words"].equals(given_["words"]) and found["lists"].equals(given_["lists"])
    assert torch.equal(found["object"].values, torch.arange(3)) and found["object"].name == "kept"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=30))
def test_results_of_rows_are_those_set_last_and_their_place_is_used_again(tmp_path_factory, steps):
    cache = Cache(str(tmp_path_factory.mktemp("cache")))
    state, expected = Spilled(cache), {}
    for name, size, remove in steps:
        if remove:
            assert (state.pop(name, None) is None) == (name not in expected)
            expected.pop(name, None)
        else:
            state[name] = expected[name] = torch.full((size,), float(len(expected) + size))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    before = cache.end
    for name, value in expected.items():
        state[name] = value
    assert cache.end == before


def test_nothing_is_left_of_the_cache_of_a_process_that_was_killed(tmp_path):
    code = f"""
        import os, signal, numpy as np
        from diva_ray.data.cache import Cache
        cache = Cache({str(tmp_path)!r})
        cache.put(np.ones(1 << 20))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_in_one_line(tmp_path):
    code = f"""
        import resource, signal, numpy as np
        from diva_ray.data.cache import Cache
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        Cache({str(tmp_path)!r}).put(np.ones(1 << 20))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "InputError: cluster.cache: the disk must have room" in last and str(tmp_path) in last


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cluster.cache: a file must be made there, got .* Change `cluster.cache`"):
        Cache(str(tmp_path / "file" / "inside"))


def test_reading_takes_no_memory_beyond_what_is_read(tmp_path):
    cache = Cache(str(tmp_path))
    kept = [cache.put(np.ones(1 << 22)) for _ in range(12)]  # 400 MB in all
    level = reset_memory()
    for one in kept:
        assert cache.get(one)[-1] == 1
    assert memory_above(level) < 100 << 20
