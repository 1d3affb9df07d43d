"""DataComp's subset files: what its own tool would have written, whatever the number of parts and ranges."""

import io

import numpy as np
import pyarrow as pa
import pytest

import diva_ray
from diva_ray.data.folder import Folder
from diva_ray.engine.kernels.uids import UID, uids_of
from diva_ray.tasks.told.export import merge_uids
from tests.tasks.test_pairs import INLINE, made, shuffled


def as_datacomp(ids):
    """Return what DataComp's baselines make of uids: two numbers of 16 hexadecimal digits each, sorted."""
    found = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in ids], np.dtype("u8,u8"))
    found.sort()
    return found


def hex_ids(n, seed=0):
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("0123456789abcdef"), 32)) for _ in range(n)]


def test_uids_are_parsed_and_sorted():
    ids = [
        "f" * 32,
        "0" * 32,
        "00000000000000010000000000000000",
        "0000000000000000ffffffffffffffff",
        "AbCdEf" + "0" * 26,
    ]
    ids += hex_ids(50)
    np.testing.assert_array_equal(uids_of(pa.array(ids)), as_datacomp(ids))
    assert len(uids_of(pa.array([], pa.string()))) == 0


@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
@pytest.mark.parametrize("sizes", [[40, 0, 33, 1], [5], [0], [300, 300]])
def test_parts_are_merged_in_order_whatever_the_ranges(tmp_path, chunk, sizes):
    folder, ids = Folder(str(tmp_path)), hex_ids(sum(sizes), seed=1)
    at = 0
    for k, size in enumerate(sizes):
        stream = io.BytesIO()
        np.save(stream, uids_of(pa.array(ids[at : at + size], pa.string())))
        folder.write(f"uids/part-{k:05d}.npy", stream.getvalue())
        at += size
    assert merge_uids(folder, chunk) == sum(sizes)
    found = np.load(tmp_path / "subset.npy")
    assert found.dtype == UID
    np.testing.assert_array_equal(found, as_datacomp(ids))


def test_uids_of_one_crawl_may_share_their_beginning(tmp_path):
    folder, ids = Folder(str(tmp_path)), [f"{7:016x}{k:016x}" for k in np.random.default_rng(0).permutation(500)]
    for k in range(2):
        stream = io.BytesIO()
        np.save(stream, uids_of(pa.array(ids[250 * k : 250 * k + 250])))
        folder.write(f"uids/part-{k:05d}.npy", stream.getvalue())
    merge_uids(folder, 30)
    np.testing.assert_array_equal(np.load(tmp_path / "subset.npy"), as_datacomp(ids))


def test_a_run_exports_the_pairs_that_are_kept(tmp_path):
    data = {**shuffled(made(2600, (12, 10), noise=0.5), 0.2), "id": hex_ids(2600), "weight": np.ones(2600)}
    data["weight"][:5] = 0.0
    result = diva_ray.score(
        data, task="pairs", features=["image", "text"], weight="weight", export="datacomp",
        output=str(tmp_path / "out"), cluster=INLINE, quiet=True,
    )  # fmt: skip
    flags = result.samples["is_label_issue"].to_pylist()
    kept = [i for i, issue, w in zip(data["id"], flags, data["weight"], strict=True) if not issue and w > 0]
    assert 1900 < len(kept) < 2400
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "subset.npy"), as_datacomp(kept))
    assert result.summary["exported"]["rows"] == len(kept)


def test_a_run_that_was_killed_before_its_end_exports_all_of_it_when_resumed(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 60)
    data = {"id": hex_ids(60), "features": draw.standard_normal((60, 3)) + y[:, None], "label": y}
    options = {"export": "datacomp", "output": str(tmp_path / "out"), "cluster": INLINE, "quiet": True}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("diva_ray.tasks.score.conclude", killed)
        with pytest.raises(KeyboardInterrupt):
            diva_ray.score(data, **options)
    before = (tmp_path / "out" / "subset.npy").read_bytes()
    result = diva_ray.score(data, **options, resume=True)
    assert (tmp_path / "out" / "subset.npy").read_bytes() == before
    assert result.summary["exported"]["rows"] == len(np.load(tmp_path / "out" / "subset.npy")) > 40
    assert not (tmp_path / "out" / "uids").exists()


def test_classes_are_exported_as_well(tmp_path):
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 60)
    data = {"id": hex_ids(60), "features": draw.standard_normal((60, 3)) + y[:, None], "label": y}
    result = diva_ray.score(data, export="datacomp", output=str(tmp_path / "out"), cluster=INLINE, quiet=True)
    kept = [i for i, issue in zip(data["id"], result.samples["is_label_issue"].to_pylist(), strict=True) if not issue]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "subset.npy"), as_datacomp(kept))
