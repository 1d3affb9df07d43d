"""The passes on a device: their logic on a simulated one, their choice of a GPU, and (mark gpu) a real one."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.core import factors, grid, losses, products
from diva_ray.core.adjoint import solve_adjoint
from diva_ray.core.dual import inverse_
from diva_ray.core.grid import rotate
from diva_ray.core.leave_out import leave_out
from diva_ray.core.ridge import FitAccumulator, solve
from diva_ray.engine import context, inline, shelf
from diva_ray.engine import device as devices
from diva_ray.engine.kernels import pairs, passes, table_left_out
from diva_ray.errors import InputError
from diva_ray.tasks.fit.gauge import Gauge
from tests.engine.runs import opened, small_task
from tests.engine.simulated import DEVICE, Simulated

ROOT = Path(__file__).resolve().parents[2]
HERE = {"kind": "inline", "threads": 1}
GENERATOR = np.random.default_rng(3)
N = 2600
X = GENERATOR.standard_normal((N, 12)).astype(np.float16)
B = [None if k % 7 == 3 else row for k, row in enumerate(GENERATOR.standard_normal((N, 5)).astype(np.float32))]
Y = np.array([f"class {k}" for k in (X[:, :4].astype(np.float32) + GENERATOR.standard_normal((N, 4))).argmax(1)])
ROWS = {
    "x": list(X), "b": B, "label": Y, "group": np.sort(GENERATOR.integers(0, N // 2, N)), "weight": GENERATOR.random(N),
    "source": Y, "offset": list(GENERATOR.standard_normal((N, 4)) / 3), "v": GENERATOR.random(N),
    "few": 1.0 * (np.arange(N) % 9 == 0),
    "y": list(GENERATOR.standard_normal((N, 3))), "id": np.arange(N),
    "c": list(GENERATOR.standard_normal((N, 6)) + X[:, :6]),
    "clear": np.where(np.arange(N) % 7 == 0, Y, [f"class {k}" for k in X[:, :4].argmax(1)]),  # some look wrong
    "slight": list(X[:, 5:9] / 50), "d": list(X[:, 7:].astype(np.float32) ** 2),
}  # fmt: skip
ALL = {
    "features": ["x", "b"], "group": "group", "weight": "weight", "source": "source", "offset": "offset",
    "validation_weight": "v",
}  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Some of the rows, and all of them, which are two shards."""
    folder = tmp_path_factory.mktemp("rows")
    for name, n in (("some", 1100), ("all", N)):
        pq.write_table(pa.table(ROWS).slice(0, n), folder / f"{name}.parquet", row_group_size=400)
    return [str(folder / f"{name}.parquet") for name in ("some", "all")]


@pytest.fixture(scope="module")
def path(paths):
    """Some of the rows."""
    return paths[0]


@pytest.fixture
def simulated(monkeypatch):
    """What runs inside it on the device, with room for all rows or none."""
    mode = Simulated()
    monkeypatch.setattr(devices, "own_device", lambda gpus: DEVICE if gpus else devices.CPU)
    monkeypatch.setattr(devices, "whole_bytes", lambda device: 1 << 40)
    # a dispatch mode is of a thread
    monkeypatch.setattr(shelf, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=mode.__enter__))

    def run(verb, *data, room=1 << 40, **options):
        monkeypatch.setattr(devices, "free_bytes", lambda device: room)
        with mode:
            result = verb(*data, cluster={**HERE, "gpus_per_worker": 1}, quiet=True, **options)
        assert mode.counts.get("aten::mm", 0) + mode.counts.get("aten::addmm_", 0) > 0
        return result

    return run


def agree(one, two, rtol=2e-6, table="samples"):
    """Assert that two results say the same of every row, numbers up to rounding."""
    first, second = (result.folder.read_table(table) for result in (one, two))
    assert first.column_names == second.column_names
    for name in first.column_names:
        a, b = first[name].to_numpy(), second[name].to_numpy()
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, atol=rtol * np.nanmax(np.abs(a), initial=0), rtol=0, err_msg=name)
        elif a.dtype.kind != "O" or not isinstance(a[0], np.ndarray):
            assert (a == b).all(), name


SCORES = {
    "plain": {"features": "x", "outputs": True},
    "estimated": {"features": "x", "standard_errors": "estimate", "source": "source", "projection": 8},
    "everything": {**ALL, "outputs": True},
    "numbers": {"features": ["x", "b"], "label": "y", "task": "vector", "loss": "cosine"},
    "pairs": {"features": ["x", "c"], "task": "pairs", "source": "source"},
    "trusted": {"features": "x", "validation_weight": "few", "method": "trusted"},
}
COVERED = ("plain", "estimated", "trusted")  # the others run the same code on a device
EVERY = [pytest.param(name, marks=[pytest.mark.long] * (name in COVERED)) for name in SCORES]


@pytest.mark.parametrize("name", EVERY)
def test_scores_on_a_device_are_those_on_a_cpu(path, simulated, name):
    options = {**SCORES[name], "precision": "float64"}
    agree(diva_ray.score(path, cluster=HERE, quiet=True, **options), simulated(diva_ray.score, path, **options))


@pytest.mark.parametrize("place", ["host", pytest.param("cache", marks=pytest.mark.long), "storage"])
def test_features_that_the_device_cannot_hold_come_in_every_pass(paths, simulated, place):
    path, options = paths[1], {"features": ["x", "d"], "offset": "slight", "precision": "float64"}
    options.update(label="clear", labeller_doubt="on")  # two passes more, where labels look wrong
    first = diva_ray.score(path, cluster=HERE, quiet=True, **options)
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        whole = devices.Lane.bring
        patch.setattr(devices.Lane, "bring", lambda lane, bands: sent.append(len(bands)) or whole(lane, bands))
        if place != "host":
            chosen = (place, "for the test")
            patch.setattr("diva_ray.tasks.setup.plan.choose_place", lambda *args: chosen)
        second = simulated(diva_ray.score, path, room=0, **options)
    assert len(sent) >= 7 * 2  # as many passes read features, of two shards each
    agree(first, second)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"precision": "float64"}, marks=pytest.mark.long),
        {"precision": "tf32", "standard_errors": "estimate"},
    ],
)
def test_the_offset_of_aligned_pairs_is_made_on_the_device(simulated, more):
    """Not on the CPU, from features that come home for it in every pass."""
    near = X[:300].astype(np.float32) + np.random.default_rng(4).standard_normal((300, 12)).astype(np.float32) / 2
    table = pa.table({"x": list(X[:300].astype(np.float32)), "c": list(near)})
    options = {"features": ["x", "c"], "task": "pairs", "ridge": 1.0, **more}
    first, made = diva_ray.score(table, cluster=HERE, quiet=True, **options), []
    with pytest.MonkeyPatch.context() as patch:
        whole = pairs.standardised
        patch.setattr(pairs, "standardised", lambda *args: made.append(args[4:]) or whole(*args))
        second = simulated(diva_ray.score, table, **options)
    assert first.summary["aligned"] and second.summary["aligned"]
    assert made.count((DEVICE,)) > 4, "both directions in every pass"
    agree(first, second, rtol=2e-6 if more["precision"] == "float64" else 3e-3)


def test_exact_standard_errors_do_not_depend_on_the_slices_of_a_device(path, simulated, monkeypatch):
    few = {"features": "x", "standard_errors": "exact", "group": "group", "ridge": 1.0}
    options = {**few, "precision": "float64"}
    first, found, whole = simulated(diva_ray.score, path, **options), [], context.pairwise_contributions
    monkeypatch.setattr(context, "pairwise_contributions", lambda K, *args: found.append(len(K)) or whole(K, *args))
    simulated(diva_ray.score, path, **options)
    assert found == [1100], "one slice of one block"
    monkeypatch.setattr(context, "DEVICE_SLICE", 100_000)
    agree(first, simulated(diva_ray.score, path, **options), rtol=1e-12)
    assert len(found) > 5


def test_sums_of_a_pass_come_home_once(simulated):
    """Sections are added on the device; a fit whose sums are kept in files brings them home section by section."""
    x = GENERATOR.standard_normal((7_500, 3)).astype(np.float32)
    came, whole = [], devices.home
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "home", lambda value, device: came.append(type(value).__name__) or whole(value, device))
        simulated(diva_ray.score, {"features": x, "label": x[:, 0] > 0})
    assert came.count("Partial") == 2, "leave-one-out and score"
    assert came.count("Parts") == 2, "sections"


def test_float32_scores_on_a_device_are_near_those_on_a_cpu(path, simulated):
    options = {"features": ["x", "b"], "standard_errors": "estimate"}
    first = diva_ray.score(path, cluster=HERE, quiet=True, **options)
    second = simulated(diva_ray.score, path, **options)
    for name in ("derivative", "standard_error", "loss"):
        a, b = first.samples[name].to_numpy(), second.samples[name].to_numpy()
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max(), name


def test_other_tasks_on_a_device_say_what_they_say_on_a_cpu(tmp_path, simulated, monkeypatch):
    monkeypatch.setattr(Gauge, "least", property(lambda gauge: gauge.steps[0]))  # so that errors are compared by rows
    compared = []
    whole = table_left_out.compare_errors
    monkeypatch.setattr(table_left_out, "compare_errors", lambda *given: compared.append(1) or whole(*given))
    few = {"features": "x", "precision": "float64"}
    pq.write_table(pa.table(ROWS).slice(0, 300), tmp_path / "core.parquet")
    pq.write_table(pa.table(ROWS).slice(300, 400), tmp_path / "pool.parquet")
    core, pool = str(tmp_path / "core.parquet"), str(tmp_path / "pool.parquet")
    runs = [
        (diva_ray.reweight, (core,), {**few, "folds": 2, "steps": 1}, "samples"),
        (diva_ray.aggregate, (core,), {**few, "features": ["x", "b"], "starts": 1, "evaluations": 2}, "samples"),
        (diva_ray.extend, (core, pool), {**few, "budget": 100, "rounds": 2}, "selected"),
    ]
    for task, data, options, table in runs:
        first = task(*data, cluster=HERE, quiet=True, **options)
        agree(first, simulated(task, *data, **options), table=table)
    assert len(compared) >= 4, "the rise, and what the page says of every step"


def test_several_labels_on_a_device_are_judged_as_on_a_cpu(simulated):
    score = X @ np.random.default_rng(5).standard_normal((X.shape[1], 3)) > 0.5
    score[:20, 0] ^= True
    data = {"features": X, "label": [np.flatnonzero(row).tolist() for row in score]}
    options = {"outputs": True, "precision": "float64"}
    agree(diva_ray.score(data, cluster=HERE, quiet=True, **options), simulated(diva_ray.score, data, **options))


def test_a_users_loss_sees_tensors_on_the_cpu(path, simulated):
    weight = torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)

    def weighted(F, Y):
        return torch.nn.functional.cross_entropy(F, Y, reduction="none") * weight[Y]

    options = {"features": "x", "precision": "float64", "loss": weighted}
    agree(diva_ray.score(path, cluster=HERE, quiet=True, **options), simulated(diva_ray.score, path, **options))


def fails(A):
    raise torch.linalg.LinAlgError("it did not converge")


def test_solves_on_a_device_are_those_on_a_cpu(monkeypatch):
    monkeypatch.setattr(products, "PANEL", 7)  # several panels
    generator = torch.Generator().manual_seed(0)
    Z, Y = (torch.randn(200, k, generator=generator, dtype=torch.float64) for k in (24, 3))
    penalty = torch.linspace(0, 2, 24, dtype=torch.float64)

    def found(device):
        Zd, Yd, Ld, ones = (x.to(device) for x in (Z, Y, penalty, torch.ones(200, dtype=torch.float64)))
        fit = FitAccumulator(24, 3, torch.float64, device)
        fit.add(Zd, Yd, 2 * ones)
        solution = solve(fit.sums(), Ld)
        U = products.multiply_triangular_(Zd.clone(), solution.Linv.T.contiguous(), upper=True)
        sums = passes.AdjointAccumulator(24, 3, 0, torch.float64, device)
        left = leave_out(U, Yd, ones, [])
        sums.add(U, ones, left, Yd, ones[:, None][:, :0])
        adjoint, gradient = solve_adjoint(solution, sums.sums())
        e = rotate(fit.sums(), Ld).values
        return [x.cpu() for x in (solution.W, solution.Linv, U, adjoint.P, adjoint.T, gradient, e)], solution.condition

    here, estimate = found("cpu")
    with Simulated():
        there, condition = found(DEVICE)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)
    assert estimate <= condition * (1 + 1e-9) and condition < 3 * estimate
    with Simulated(), pytest.raises(ValueError, match="got a pivot <= 0 at column 2. Increase `ridge`"):
        factors.inverse_factor_(torch.diag(torch.tensor([1.0, 1, -1, 1], dtype=torch.float64)).to(DEVICE))
    with Simulated(), pytest.raises(ValueError, match=r"sums must be finite, got NaN or infinity\. Scale the features"):
        factors.eigen_(torch.full((4, 4), torch.nan, dtype=torch.float64).to(DEVICE))
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with Simulated(), pytest.raises(ValueError, match=r"sums must be finite, got `it did not converge`\. Scale the"):
        factors.eigen_(torch.eye(4, dtype=torch.float64).to(DEVICE))
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: (A[0] / 0, A))  # a GPU's may find no numbers and not say so
    with Simulated(), pytest.raises(ValueError, match=r"sums must be finite, got eigenvalues that are not. Scale"):
        factors.eigen_(torch.eye(4, dtype=torch.float64).to(DEVICE))


def test_a_small_solve_takes_one_thread_and_gives_the_others_back():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads(*_):
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    def fails(A):
        raise ValueError("not positive definite")

    with threadpool_limits(2, user_api="blas"):
        assert inline.solve_here(threads, (torch.zeros(inline.SMALL, inline.SMALL),)) == {1}
        assert inline.solve_here(threads, (torch.zeros(inline.SMALL + 1, inline.SMALL + 1),)) == {2}
        with pytest.raises(ValueError, match="definite"):
            inline.solve_here(fails, (torch.zeros(40, 40),))
        assert threads() == {2}


def test_a_large_solve_goes_to_the_device_and_a_small_one_stays(monkeypatch):
    assert not devices.is_large((torch.zeros(5000, 3), torch.zeros(40, 40)))
    assert devices.is_large((torch.zeros(3), [torch.zeros(devices.LARGE, devices.LARGE)]))
    monkeypatch.setattr(devices, "own_device", lambda gpus: DEVICE)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(devices, "whole_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(devices, "LARGE", 12)
    with Simulated() as mode:
        runner, setup = opened(small_task(), gpus_per_worker=1, precision="float64")
        runner.engine.tell(setup=setup)
        sums = runner.run(passes.fit, "fit")
        found = runner.timed("solve", solve, sums, torch.ones(13, dtype=torch.float64))
        with pytest.raises(InputError, match="Increase `ridge`"):
            runner.timed("solve", solve, sums, torch.full((13,), -1e9, dtype=torch.float64))
    assert mode.counts["aten::linalg_cholesky_ex"] == 2
    torch.testing.assert_close(found.W, solve(sums, torch.ones(13, dtype=torch.float64)).W, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inputs", ["tf32", pytest.param("bf16", marks=pytest.mark.long)])
def test_low_precision_is_checked_on_some_rows_and_given_up_where_it_fails(path, simulated, monkeypatch, inputs):
    from diva_ray.tasks.fit import derive

    options = {"features": "x", "standard_errors": "estimate"}
    exact = diva_ray.score(path, cluster=HERE, quiet=True, **options).samples["derivative"].to_numpy()
    for run in (partial(diva_ray.score, cluster=HERE, quiet=True), partial(simulated, diva_ray.score)):
        result = run(path, precision=inputs, **options)
        found = result.samples["derivative"].to_numpy()
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        least, most = {"tf32": (2e-5, 3e-3), "bf16": (3e-4, 1e-2)}[inputs]
        assert least < error < most
        told = result.summary["derivative_check"]
        assert 0.3 * error < told["relative_error"] < 3 * error and told["rank_correlation"] > 0.999
        assert result.summary["precision"] == f"{inputs} of whitened rows, else float32"
    monkeypatch.setattr(derive, "MOST_ERROR", {"tf32": 1e-9, "bf16": 1e-9})
    result = diva_ray.score(path, cluster=HERE, quiet=True, precision=inputs, **options)
    assert result.summary["precision"] == "float32" and result.summary["derivative_check"]["relative_error"] > 1e-5
    np.testing.assert_allclose(result.samples["derivative"].to_numpy(), exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_the_benchmark_measures_a_device(monkeypatch):
    from diva_ray.bench import gpu
    from diva_ray.bench.speed import SMALL

    for name in ("free_bytes", "whole_bytes"):
        monkeypatch.setattr(devices, name, lambda device: 1 << 40)
    monkeypatch.setattr(devices, "own_device", lambda gpus: DEVICE)
    mode = Simulated()
    monkeypatch.setattr(shelf, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=mode.__enter__))
    with mode:
        figures = list(gpu.on_device(DEVICE, SMALL, "simulated"))
    assert len(figures) == 5 + len(SMALL.gpu_p) * (3 * 3 + 2)
    assert all(figure.value is not None and figure.value > 0 for figure in figures)
    if not torch.cuda.is_available():
        (figure,) = gpu.gpu(SMALL)
        assert figure.what == "no GPU" and figure.value is None and "sees none" in figure.note


def test_the_device_refuses_what_a_gpu_refuses():
    with Simulated():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        for wrong in (lambda: there + here, lambda: here[there > 0], lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="on the CPU"):
                wrong()
        with pytest.raises((RuntimeError, TypeError), match="numpy"):
            there.numpy()
        here[:] = there * 2  # a copy
        assert here.tolist() == [2, 2, 2] and (there * torch.tensor(3.0)).cpu().tolist() == [3, 3, 3]


def test_a_gpu_is_found_by_the_name_that_ray_gives_it():
    assert devices.torch_device(3, "3") == torch.device("cuda", 0)  # Ray hides the others
    assert devices.torch_device(3, "1,3") == torch.device("cuda", 1)  # or it was told not to
    assert devices.torch_device("GPU-7af", "GPU-1cc,GPU-7af") == torch.device("cuda", 1)
    assert devices.torch_device(2, None) == torch.device("cuda", 2)
    assert devices.given_device(0, [], "worker 0") == devices.CPU
    with pytest.raises(InputError, match="Ray must give worker 1 a GPU, got none"):
        devices.given_device(0.5, [], "worker 1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_torch_does_not_see_is_one_line():
    with pytest.raises(InputError, match=r"torch must see the GPU, got torch .* at this process. Install a CUDA build"):
        diva_ray.score(small_task(300), cluster={**HERE, "gpus_per_worker": 1}, quiet=True)


def test_blocks_on_a_device_are_large_but_within_its_memory():
    assert devices.block_rows(1024, devices.row_bytes(513, 10, 4), devices.CPU) == 1024
    assert devices.block_rows(1024, devices.row_bytes(513, 10, 4), DEVICE) == devices.MOST_BLOCK_ROWS
    single, double = (devices.block_rows(1024, devices.row_bytes(4097, 1000, size), DEVICE) for size in (4, 8))
    # Of a block's features the passes hold four matrices at once.
    assert single * 4 * 4097 * 4 < 1 << 30 and single * (4 * 4097 + 24_000) * 4 > 0.99 * (1 << 30)
    assert double == single // 2


def test_the_process_keeps_its_own_choice_of_tf32():
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    try:
        for own in (True, False):
            switch.allow_tf32 = own
            for inputs, mode in (("full", "ieee"), ("tf32", "tf32")):
                with products.float32_products(inputs):
                    assert switch.fp32_precision == mode
                assert switch.allow_tf32 is own
    finally:
        switch.allow_tf32 = before


def test_a_pass_multiplies_in_full_though_the_process_lets_its_products_be_of_tf32(path, simulated):
    """Groups, bands, a pool, folds: every float32 product of theirs, not those of `core.products` alone."""
    few = {"features": "x", "precision": "float32", "ridge": 1.0}
    runs = [(diva_ray.score, {**ALL, **few}), (diva_ray.score, {**few, "standard_errors": "exact", "group": "group"})]
    before = torch.get_float32_matmul_precision()
    for task, options in runs:
        first = simulated(task, path, **options)
        try:
            torch.set_float32_matmul_precision("high")
            second = simulated(task, path, **options)
            assert torch.backends.cuda.matmul.allow_tf32, "the process's own choice stays"
        finally:
            torch.set_float32_matmul_precision(before)
        agree(first, second, rtol=0)


def test_too_little_memory_of_a_device_is_one_line(path, monkeypatch):
    for name, size in (("free_bytes", 1 << 30), ("whole_bytes", 80 << 30)):
        monkeypatch.setattr(devices, name, lambda device, size=size: size)
    monkeypatch.setattr(devices, "own_device", lambda gpus: DEVICE)
    mode = Simulated(most=1 << 16)  # the rows on the host, and no block on the device
    monkeypatch.setattr(shelf, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=mode.__enter__))
    told = r"must fit the GPU's memory, got 1.00 GiB free of 80.00 GiB where more was needed at sim:0 of .*projection"
    with mode, pytest.raises(InputError, match=told):
        diva_ray.score(path, features="x", cluster={**HERE, "gpus_per_worker": 1}, quiet=True)
    with mode, pytest.raises(InputError, match=told):
        devices.solve_on(DEVICE, torch.linalg.inv, (torch.eye(400),))


def test_memory_that_a_library_takes_for_itself_is_the_same_line():
    for told in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ):
        with (
            pytest.MonkeyPatch.context() as patched,
            pytest.raises(InputError, match=r"must fit the GPU's memory, got"),
        ):
            for name in ("free_bytes", "whole_bytes"):
                patched.setattr(devices, name, lambda device: 1 << 30)
            with devices.roomy(DEVICE):
                raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another error"), devices.roomy(DEVICE):
        raise RuntimeError("another error")


def test_rows_that_others_left_no_room_for_stay_on_the_host(monkeypatch, caplog):
    for name in ("free_bytes", "whole_bytes"):
        monkeypatch.setattr(devices, name, lambda device: 1 << 40)
    lane = devices.Lane(DEVICE)
    band = torch.arange(4000.0).reshape(100, 40)
    with Simulated(most=1 << 12):
        monkeypatch.setattr(lane, "bring", lambda bands: devices.solve_on(DEVICE, torch.neg, tuple(bands)))
        kept = lane.keep([band])
    assert lane.left == 0 and torch.equal(kept[0], band) and kept[0].is_cpu
    assert "must fit the GPU's memory" in caplog.text


def test_features_stay_in_ordinary_memory_where_no_more_is_page_locked_which_is_said_once(monkeypatch, caplog):
    for name in ("free_bytes", "whole_bytes"):
        monkeypatch.setattr(devices, name, lambda device: 1 << 40)
    lane, whole, asked = devices.Lane(DEVICE), torch.empty, []

    def empty(*size, pin_memory=False, **more):
        if pin_memory:  # a build for CPUs alone refuses by itself
            asked.append(size)
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
        return whole(*size, **more)

    monkeypatch.setattr(torch, "empty", empty)
    bands = [torch.arange(6.0).reshape(2, 3), torch.arange(4.0)]
    kept = [lane._locked(band) for band in bands]
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(kept, bands, strict=True))
    assert len(asked) == len(caplog.records) == 1 and caplog.records[0].levelname == "WARNING"
    assert "no more page-locked memory (CUDA error: out of memory): features reach" in caplog.text


def test_a_gpu_that_is_there_but_cannot_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = (
        "the GPU must be free to use and of a kind .* got `sim:0 out of memory.* at worker 3 on somewhere. See `nvidia"
    )
    with Simulated(most=0), pytest.raises(InputError, match=told):
        devices._checked(DEVICE, "worker 3 on somewhere")
    with Simulated():
        assert devices._checked(DEVICE, "worker 3 on somewhere") == DEVICE


@pytest.mark.parametrize("classes, rows", [(1, 5000), (3, 4099), (700, 5000), (5000, 40), (4, 0)])
def test_rows_are_added_by_code_on_a_device_as_on_a_cpu(classes, rows):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, classes, (rows,), generator=generator)
    into, values = (torch.randn(k, 6, generator=generator, dtype=torch.float64) for k in (classes, rows))
    expected = into.numpy().copy()
    np.add.at(expected, codes.numpy(), values.numpy())
    with Simulated():
        there = torch.cat([into, into], 1).to(DEVICE)
        products.add_rows_(there[:, :6], codes.to(DEVICE), values.to(DEVICE))  # into columns of a wider matrix
        found = there.cpu()
    np.testing.assert_allclose(found[:, :6], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:, 6:], into)


def test_a_device_adds_rows_by_code_in_one_order_without_a_switch(monkeypatch):
    """By the operation that CUDA has in one order alone; the switch of the process is not touched."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **more: pytest.fail("a switch"))
    with Simulated() as mode:
        into, codes = torch.zeros(3, 2).to(DEVICE), torch.tensor([2, 0, 2]).to(DEVICE)
        found = products.add_rows_(into, codes, torch.ones(3, 2).to(DEVICE)).cpu()
    assert found.tolist() == [[1, 1], [0, 0], [2, 2]]
    assert "aten::index_add_" not in mode.counts and mode.counts["aten::index_put_"] == 1


@pytest.mark.parametrize("grouped", [False, True])
def test_a_grid_waits_for_the_device_once_a_ridge(grouped):
    """For its check of leverages; outputs, losses and sums stay there until the block is done."""
    generator = torch.Generator().manual_seed(0)
    Z, F = (torch.randn(60, k, generator=generator, dtype=torch.float64) for k in (7, 3))
    Y, ones = F.argmax(1), torch.ones(60, dtype=torch.float64)
    Y[::5] = -1  # of no class: a row of zeros
    fit = FitAccumulator(7, 3, torch.float64, devices.CPU)
    fit.add(Z, Y, ones)
    ridges = torch.tensor([1e-3, 1.0, 10.0, 1e5], dtype=torch.float64)
    family = rotate(fit.sums(), torch.ones(7, dtype=torch.float64)).at(ridges)
    measures = (losses.squares, losses.errors)
    groups = [torch.arange(10).view(5, 2)] if grouped else []
    expected = grid.weighted_sums(grid.grid_values(Z, Y, ones, None, groups, family, measures), ones)
    with Simulated() as mode:
        args = devices.moved((Z, Y, ones, None, groups, family), DEVICE)
        before = mode.counts.copy()
        found = grid.weighted_sums(grid.grid_values(*args, measures), args[2])
        asked = {name: mode.counts[name] - before.get(name, 0) for name in mode.counts}
    assert found.device == devices.CPU and asked["aten::nonzero"] == len(ridges) * (1 + grouped)
    assert "aten::_local_scalar_dense" not in asked
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_bf16_products_are_the_same_where_torch_has_none_with_float32_sums(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    Z, T = torch.randn(300, 40, generator=generator), torch.randn(40, 40, generator=generator).triu()
    true = Z.bfloat16().double() @ T.bfloat16().double()

    def found():
        with Simulated():
            Zd, Td = Z.to(DEVICE), T.to(DEVICE)
            return products.multiply_triangular_(Zd, Td, upper=True, inputs="bf16").cpu().double()

    torch.testing.assert_close(found(), true, rtol=1e-5, atol=1e-5)
    older = [name for name in torch.ops.aten.mm.overloads() if "dtype" not in name]
    monkeypatch.setattr(torch.ops.aten.mm, "overloads", lambda: older)
    torch.testing.assert_close(found(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_bf16_products_cast_their_inputs_once_however_many_panels_they_take(monkeypatch, weighted):
    generator = torch.Generator().manual_seed(0)
    Z, T = torch.randn(300, 40, generator=generator), torch.randn(40, 40, generator=generator).triu()
    weight = torch.rand(300, generator=generator) if weighted else None

    def found():
        with Simulated() as mode:
            Zd, Td, wd = Z.to(DEVICE), T.to(DEVICE), None if weight is None else weight.to(DEVICE)
            gram = products.GramSum(40, torch.float32, DEVICE, "bf16")
            before = mode.counts["aten::_to_copy"]
            product = products.multiply_triangular_(Zd, Td, upper=True, inputs="bf16")
            gram.add(Zd, wd)
            return mode.counts["aten::_to_copy"] - before, product.cpu(), gram.value().cpu().triu()

    casts, product, gram = found()
    monkeypatch.setattr(products, "PANEL", 7)
    again, *in_panels = found()
    assert casts == again == 2 + 1 + weighted
    torch.testing.assert_close(in_panels[0], product, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_panels[1], gram, rtol=1e-5, atol=1e-4)
    right = Z if weight is None else Z * weight[:, None]
    true = Z.bfloat16().double().T @ right.bfloat16().double()
    torch.testing.assert_close(gram.double(), true.triu(), rtol=1e-5, atol=1e-4)


def test_inverse_is_refused_on_a_device_not_wrong():
    with Simulated(), pytest.raises((RuntimeError, TypeError)):
        inverse_(torch.eye(3).to(DEVICE))


@pytest.mark.ray
def test_more_gpus_than_there_are_is_one_line(ray_cluster):
    with pytest.raises(
        InputError, match=r"one worker must fit a node, which needs 1 CPUs and 1 GPUs, got 4 CPUs and 0 "
    ):
        diva_ray.score(small_task(300), cluster={"kind": "local", "gpus_per_worker": 1}, quiet=True)
    with pytest.raises(InputError, match="must be at most 1, because a worker uses one GPU, got 2"):
        diva_ray.score(small_task(300), cluster={"kind": "local", "gpus_per_worker": 2}, quiet=True)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
GPU = {**HERE, "gpus_per_worker": 1}


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", SCORES)
def test_scores_on_a_gpu_are_those_on_a_cpu(path, name):
    options = {**SCORES[name], "precision": "float64", "quiet": True}
    agree(diva_ray.score(path, cluster=HERE, **options), diva_ray.score(path, cluster=GPU, **options))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("place", ["resident", "host", "cache", "storage"])
def test_features_reach_a_gpu_whole_from_wherever_they_lie(tmp_path, monkeypatch, place):
    """Larger than a few page-locked chunks, so that both of them are used again while kernels run."""
    features = GENERATOR.standard_normal((120_000, 256)).astype(np.float32)
    labels = (features[:, :4] + GENERATOR.standard_normal((120_000, 4))).argmax(1)
    pq.write_table(pa.table({"x": list(features), "label": labels}), tmp_path / "t.parquet", row_group_size=20_000)
    options = {"features": "x", "quiet": True, "precision": "float64"}
    first = diva_ray.score(str(tmp_path / "t.parquet"), cluster={"kind": "inline"}, **options)
    if place != "resident":
        monkeypatch.setattr(devices, "free_bytes", lambda device: 0)
    if place in ("cache", "storage"):
        monkeypatch.setattr("diva_ray.tasks.setup.plan.choose_place", lambda *args: (place, "for the test"))
    agree(first, diva_ray.score(str(tmp_path / "t.parquet"), cluster=GPU, **options))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["estimated", "everything"])
def test_a_gpu_gives_the_same_bits_again_with_as_much_room_as_before(path, name):
    """Though the process lets its own float32 products be of TF32 the second time."""
    options, before = {**SCORES[name], "precision": "float32", "quiet": True}, torch.get_float32_matmul_precision()
    first = diva_ray.score(path, cluster=GPU, **options)  # CUDA's libraries take memory of their own now
    taken = torch.cuda.memory_allocated()
    try:
        torch.set_float32_matmul_precision("high")
        agree(first, diva_ray.score(path, cluster=GPU, **options), rtol=0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.cuda.memory_allocated() < taken + (16 << 20)


@gpu
@pytest.mark.gpu
@pytest.mark.skipif(not hasattr(torch.cuda, "host_memory_stats"), reason="torch tells no page-locked memory")
def test_page_locked_memory_is_given_back(path, monkeypatch):
    held = lambda: torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)  # noqa: E731
    during, whole = [], devices.Lane.close
    monkeypatch.setattr(devices, "free_bytes", lambda device: 0)
    monkeypatch.setattr(devices.Lane, "close", lambda lane: during.append(held()) or whole(lane))
    diva_ray.score(path, features="x", cluster=GPU, quiet=True)
    assert during[0] >= devices.SLAB > held()


@gpu
@pytest.mark.gpu
def test_a_matrix_that_is_not_positive_definite_is_the_same_line_on_a_gpu():
    for bad, column in ((-1.0, 2), (torch.nan, r"\d")):
        with pytest.raises(ValueError, match=f"got a pivot <= 0 at column {column}. Increase `ridge`"):
            factors.inverse_factor_(torch.diag(torch.tensor([1.0, 1, bad, 1], dtype=torch.float64)).cuda())


@gpu
@pytest.mark.gpu
def test_too_little_memory_of_a_gpu_is_one_line():
    device = torch.device("cuda", 0)
    with pytest.raises(InputError, match="must fit the GPU's memory"), devices.working(device):
        torch.empty(1 << 50, dtype=torch.uint8, device=device)


@gpu
@pytest.mark.gpu
def test_a_worker_keeps_to_its_share_of_a_gpu_until_it_closes():
    device = torch.device("cuda", 0)
    size = devices.whole_bytes(device) // 8
    lane = devices.Lane(device, 1 / 16)
    assert devices.free_bytes(device) <= size // 2
    with pytest.raises(InputError, match="must fit the GPU's memory"), devices.working(device):
        torch.empty(size, dtype=torch.uint8, device=device)
    lane.close()
    assert len(torch.empty(size, dtype=torch.uint8, device=device)) == size


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("inputs, most", [("full", 1e-5), ("tf32", 3e-3), ("bf16", 1e-2)])
def test_products_on_a_gpu_err_as_much_as_their_inputs(inputs, most):
    generator = torch.Generator().manual_seed(0)
    Z, T = torch.randn(3000, 2500, generator=generator), torch.randn(2500, 2500, generator=generator).triu()
    weight = torch.randn(3000, generator=generator)
    true = Z.double() @ T.double(), (Z.double().T * weight) @ Z.double()
    gram = products.GramSum(2500, torch.float32, "cuda", inputs)
    gram.add(Z.cuda(), weight.cuda())
    found = (
        products.multiply_triangular_(Z.cuda(), T.cuda(), upper=True, inputs=inputs),
        products.symmetric(gram.value()),
    )
    for a, b in zip(found, true, strict=True):
        error = float((a.cpu().double() - b).norm() / b.norm())
        assert error < most and (inputs == "full" or error > 1e-5)


@gpu
@pytest.mark.gpu
@pytest.mark.ray
def test_workers_share_a_gpu(path, tmp_path):
    script = (
        "import ray, diva_ray, sys\n"
        "ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False)\n"
        "c = {'kind': 'ray', 'workers': 2, 'gpus_per_worker': 0.5}\n"
        "diva_ray.score(sys.argv[1], features='x', precision='float64', cluster=c, quiet=True, output=sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, path, str(tmp_path / "out")], check=True, timeout=300)
    first = diva_ray.score(path, features="x", precision="float64", cluster=HERE, quiet=True)
    second = pq.read_table(tmp_path / "out" / "samples")
    np.testing.assert_allclose(first.samples["derivative"], second["derivative"], rtol=0, atol=1e-6)


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: Ray's count of GPUs is made up in this test")
def test_workers_have_gpus_of_their_own_or_shares_and_say_what_torch_lacks(tmp_path, task):
    pq.write_table(pa.table({"features": list(task["features"]), "label": task["label"]}), tmp_path / "t.parquet")
    answer = tmp_path / "told.json"
    command = [sys.executable, "-m", "tests.engine.gpus_run", str(tmp_path / "t.parquet"), str(answer)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(answer.read_text())
    assert sorted(int(one) for (one,) in told["half"]) in ([0, 0, 1], [0, 1, 1])  # two share, one has its own
    assert "the cluster must have 3 x 1 CPUs and 3 x 1 GPUs, got 4 CPUs and 2 GPUs" in told["three"]
    assert "torch must see the GPU" in told["unseen"] and "Install a CUDA build of torch there" in told["unseen"]
    assert "at worker 0 on" in told["unseen"]


def test_more_classes_than_are_kept_go_with_neither_a_gpu_nor_low_precision(simulated):
    task = {"features": X[:1400], "label": np.arange(1400) % 700}
    with pytest.raises(InputError, match=r"precision: must be auto, float32 or float64 with more classes .* got tf32"):
        diva_ray.score(task, precision="tf32", cluster=HERE, quiet=True)
    with pytest.raises(InputError, match=r"gpus_per_worker: must be 0 with more classes than .* got 1 with 700"):
        simulated(diva_ray.score, task)


def test_low_precision_is_for_derivatives_that_are_checked(path):
    for task, options in ((diva_ray.reweight, {}), (diva_ray.score, {"method": "trusted", "validation_weight": "few"})):
        with pytest.raises(InputError, match="precision: must be auto, float32 or float64 but for score .* got bf16"):
            task(path, features="x", precision="bf16", cluster=HERE, quiet=True, **options)
