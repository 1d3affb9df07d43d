"""A run whose driver dies at any pass is resumed to the same bits, and takes no pass twice."""

import json
import resource
import shutil
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch

import diva_ray
from diva_ray.data.folder import Folder
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels.steps import Each
from diva_ray.engine.packed import pack, unpack
from diva_ray.engine.reduce import Partial, Rows, Tally
from diva_ray.errors import InputError, LostLeverageError
from diva_ray.tasks.setup import done


def table(n=1300, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, 12)).astype(np.float32)
    y = (X[:, :4] + generator.standard_normal((n, 4))).argmax(1)
    return {"features": X, "label": y, "id": np.arange(n) + 10_000 * seed, "source": np.array(["a", "b"])[y % 2]}


def bands():
    rows = table()
    rows["first"], rows["second"] = rows["features"][:, :6], rows["features"][:, 6:]
    return {**rows, "features": None}


def copies():
    rows = table(600)
    turned = {**rows, "features": rows["features"] + 0.5}
    both = {name: np.concatenate([rows[name], turned[name]]) for name in ("features", "label")}
    return {**both, "group": np.tile(np.arange(600), 2), "source": np.repeat(["identity", "turned"], 600)}


RUNS = {
    "score": lambda **o: diva_ray.score(table(), source="source", **o),
    "groups": lambda **o: diva_ray.score(copies(), group="group", source="source", **o),
    "reweight": lambda **o: diva_ray.reweight(table(), folds=2, steps=2, **o),
    "trusted": lambda **o: diva_ray.score(
        {**table(), "v": (np.arange(1300) % 3 == 0) * 1.0}, validation_weight="v", method="trusted", **o
    ),
    "paper": lambda **o: diva_ray.reweight(table(), method="paper", folds=2, steps=2, **o),
    "extend": lambda **o: diva_ray.extend(table(), table(1300, 1), rounds=3, budget=500, **o),
    "aggregate": lambda **o: diva_ray.aggregate(
        {k: v for k, v in bands().items() if v is not None}, features=["first", "second"], starts=2, weights="joint",
        evaluations=4, folds=2, steps=1, **o,
    ),
    "augment": lambda **o: diva_ray.augment(copies(), group="group", source="source", folds=2, steps=1, **o),
}  # fmt: skip


LOADING = ("scan", "places_of_key")  # kernels that load and check what is given: every attempt does that
OWN = ("seconds", "workers", "peak_memory_bytes", "driver_memory_bytes")  # figures of the attempt, not of the data


class DriverDied(BaseException):
    """What a test ends a driver with: nothing catches it."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in ("groups", "paper", "augment"))) for name in RUNS]
)
def test_a_run_resumes_from_any_pass_to_the_same_bits_without_taking_one_twice(name, tmp_path, monkeypatch):
    run, whole = RUNS[name], Inline.each
    taken: list[str] = []
    dying: list[int] = []
    monkeypatch.setattr(done, "DEAR", 0.0)

    def each(self, kernel, *rest):
        if dying and len(taken) == dying[0]:
            raise DriverDied
        taken.append(getattr(kernel, "__name__", "") or kernel.func.__name__)
        return whole(self, kernel, *rest)

    monkeypatch.setattr(Inline, "each", each)
    undisturbed = run(cluster="inline", quiet=True, output=str(tmp_path / "whole"))
    assert not (tmp_path / "whole" / "steps").exists() and not (tmp_path / "whole" / "weights").exists()
    path = list(taken)
    first = next(k for k, kernel in enumerate(path) if kernel not in LOADING)
    output, at = str(tmp_path / "run"), first
    stops = sorted({*range(first + 1, len(path), max(1, (len(path) - first) // 2)), len(path) - 1})
    for k in stops:
        taken.clear()
        dying[:] = [first + k - at]
        with pytest.raises(DriverDied):
            run(cluster="inline", quiet=True, output=output, resume=at > first)
        assert taken == path[:first] + path[at:k]
        markers = sorted((tmp_path / "run" / "steps").glob("*.json"))
        told = json.loads(markers[-1].read_text())
        assert told["step"] == len(markers) - 1 == k - first - 1
        assert told["kernel"] == path[k - 1] and told["rows"] > 0 and told["seconds"] >= 0 and told["finished"]
        at = k
    dying.clear()
    taken.clear()
    result = run(cluster="inline", quiet=True, output=output, resume=True)
    assert taken == path[:first] + path[at:]
    if name != "augment":
        written = "selected" if name == "extend" else "samples"
        assert result.folder.read_table(written).equals(undisturbed.folder.read_table(written))
    for figure, value in undisturbed.summary.items():
        if figure not in OWN:
            assert json.dumps(result.summary[figure], default=str) == json.dumps(value, default=str), figure


def test_a_damaged_step_is_run_again_and_a_run_that_went_another_way_is_refused(tmp_path, monkeypatch, caplog):
    folder = Folder(str(tmp_path / "run"))
    monkeypatch.setattr(done, "DEAR", 0.0)
    begun = done.Done.open(folder, {"data": []}, resume=False)
    values = [torch.arange(6.0).reshape(2, 3).T, Tally(loss=0.1), 3]
    for k, value in enumerate(values):
        begun.once(f"pass {k}", "kernel", 5, lambda value=value: value)
    assert sorted(folder.names("steps"))[:2] == ["0000-pass-0.json", "0000-pass-0.npz"]
    file = tmp_path / "run" / "steps" / "0001-pass-1.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    resumed = done.Done.open(folder, {"data": []}, resume=True)
    first = resumed.once("pass 0", "kernel", 5, pytest.fail)
    assert torch.equal(first, values[0]) and first.stride() == values[0].stride()
    assert resumed.once("pass 1", "kernel", 5, lambda: "again") == "again"
    assert resumed.once("pass 2", "kernel", 5, lambda: "again too") == "again too"
    assert "0001-pass-1.npz is damaged" in caplog.text and "are run again" in caplog.text
    with pytest.raises(
        InputError, match=r"resume: the run must go the way it went, got `fit` over 5 rows where steps/"
    ):
        done.Done.open(folder, {}, resume=True).once("fit", "kernel", 5, pytest.fail)


def test_a_pass_that_raised_for_more_digits_raises_again_and_those_after_it_are_kept(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path / "run"))
    monkeypatch.setattr(done, "DEAR", 0.0)
    taken = []

    def lost():
        taken.append("lost")
        raise LostLeverageError("ridge: leverage must be below 1")

    for resume in (False, True):
        run = done.Done.open(folder, {}, resume=resume)
        with pytest.raises(LostLeverageError, match="must be below 1"):
            run.once("leave-out", "kernel", 5, lost)
        assert run.once("fit", "kernel", 5, lambda: taken.append("fit") or 3) == 3
    assert taken == ["lost", "fit"]


def test_passes_are_found_in_their_order_however_many_there_are(tmp_path, monkeypatch):
    names = [f"{k:04d}-fit.json" for k in range(10_002)]
    monkeypatch.setattr(Folder, "names", lambda *_: sorted(names))
    assert len(done.Done.open(Folder(str(tmp_path)), {}, resume=True).found) == len(names)


def test_files_that_a_dead_worker_left_half_written_are_nobodys_and_deleted(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("samples/part-0.parquet", b"whole")
    (tmp_path / "samples" / ".part-0.parquet.4711.part").write_bytes(b"ha")
    assert folder.names("samples") == ["part-0.parquet"]
    folder.sweep("samples")
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["part-0.parquet"]


def test_weights_that_were_damaged_are_one_line_and_what_parts_told_is_worked_out_again(tmp_path, monkeypatch):
    whole, output = Inline.each, str(tmp_path / "run")
    monkeypatch.setattr(done, "DEAR", 0.0)

    def each(self, kernel, *rest):
        yield from whole(self, kernel, *rest)
        if getattr(kernel, "__name__", "") == dies_after:
            raise DriverDied

    def run(**options):
        return RUNS["paper"](cluster="inline", quiet=True, **options)

    monkeypatch.setattr(Inline, "each", each)
    dies_after = "write"
    with pytest.raises(DriverDied):
        run(output=output)
    for file in (tmp_path / "run" / "steps" / "write").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:50])
    dies_after = "no kernel"
    shutil.copytree(output, tmp_path / "again")
    found, expected = run(output=str(tmp_path / "again"), resume=True), run(output=str(tmp_path / "undisturbed"))
    assert found.summary["n_lowered"] == expected.summary["n_lowered"]
    assert found.samples.equals(expected.samples)
    for file in (tmp_path / "run" / "weights").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"output: what a run has written must stay .*, got no whole weights/"):
        run(output=output, resume=True)


def test_results_come_back_as_they_were():
    value = Partial(
        Each((torch.full((2,), np.nan), np.float32(0.1))),
        Tally(a=0.1 + 0.2, b=float("inf"), c=None, d={3: (1, True)}, e=np.arange(4, dtype=np.uint64), f=[b"x", 10**15]),
        Rows((torch.zeros(0, 3),), (torch.ones(2, 3),)),
    )
    found = unpack(pack(value))
    assert type(found) is Partial and type(found.sums) is Each and type(found.tally) is Tally
    assert found.sums[0].isnan().all() and found.sums[1] == value.sums[1]
    assert {k: v for k, v in found.tally.items() if k != "e"} == {k: v for k, v in value.tally.items() if k != "e"}
    assert found.tally["e"].dtype == np.uint64 and found.tally["e"].tolist() == [0, 1, 2, 3]
    assert torch.equal(found.rows.joined()[0], value.rows.joined()[0])
    column = unpack(pack(pa.array(["a", None])))
    assert column.equals(pa.array(["a", None]))


def test_nothing_but_this_package_is_made_of_what_was_stored():
    tree = b'{"object": {}, "of": "subprocess:Popen"}'
    with pytest.raises(ValueError, match="no class of this package"):
        unpack({"tree": np.frombuffer(tree, np.uint8)})


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(tmp_path):
    folder = Folder(str(tmp_path))
    rows, limits = pa.table({"x": np.random.default_rng(0).random(100_000)}), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"output: the disk must have room for the run, got File too large at .*resume"
        ):
            folder.write_table("samples/part-0.parquet", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert folder.names("samples") == []


def test_a_folder_takes_the_place_of_another_where_no_folder_can_be_moved():
    folder = Folder("mock:///run")  # not local, as an object store
    for name, text in (("old/a.txt", b"1"), ("old/b.txt", b"2"), ("new/a.txt", b"3")):
        folder.write(name, text)
    folder.replace("new", "old")
    assert folder.names("old") == ["a.txt"] and folder.read("old/a.txt") == b"3" and not folder.names("new")
