"""What runs leave in their folder: nothing that stands in the way, passes for a result, or doubles the data."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import diva_ray
from diva_ray.data.folder import Folder
from diva_ray.data.in_memory import write_parts
from diva_ray.data.table import from_arrow
from diva_ray.engine.kernels import once
from diva_ray.errors import InputError
from diva_ray.tasks.told import written
from tests.data.tables import INLINE

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(9000, 4)).astype(np.float32)
TABLE = {"features": X, "label": (X[:, 0] + GENERATOR.normal(size=9000) > 0).astype(int)}


def test_rows_of_a_larger_table_that_a_run_has_left_are_not_taken_for_this_ones(tmp_path):
    folder = Folder(str(tmp_path))
    for rows in (70_000, 1_000):
        write_parts(from_arrow(pa.table({"x": np.arange(rows) + rows})), folder, "table")
    assert folder.read_table("table")["x"].to_pylist() == list(range(1_000, 2_000))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_part_of_the_output_that_is_damaged_is_written_again(tmp_path, monkeypatch, damage, caplog):
    options = {"ridge": 1.0, "cluster": INLINE, "quiet": True, "standard_errors": "estimate"}
    data = {name: np.tile(value.T, 5).T for name, value in TABLE.items()}  # several shards
    whole = diva_ray.score(data, **options).samples
    begun = []

    def stops(shard, known, *, kernel):
        if begun:
            raise KeyboardInterrupt
        begun.append(shard.extent.index)
        return once.once(shard, known, kernel=kernel)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(written, "once", stops)
        diva_ray.score(data, output=str(tmp_path), **options)
    (part,) = (tmp_path / "samples").glob("*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    result = diva_ray.score(data, output=str(tmp_path), resume=True, **options)
    assert "is damaged: it is written again" in caplog.text
    assert result.samples.equals(whole)


def test_validation_weights_beyond_what_float32_holds_are_one_line(tmp_path):
    rows = {name: value[:300] for name, value in TABLE.items()}
    options = {"validation_weight": "v", "cluster": INLINE, "quiet": True}
    usual = diva_ray.score({**rows, "v": np.ones(300)}, **options).samples
    for size in (1e-11, 1e11):
        found = diva_ray.score({**rows, "v": np.full(300, size)}, **options).samples
        np.testing.assert_allclose(found["z"], usual["z"], rtol=2e-3, atol=2e-3)
    for size in (1e-50, 1e-20, 1e20, 1e50):
        with pytest.raises(InputError, match=r"data.validation_weight: .* times that of the weights in the fit"):
            diva_ray.score({**rows, "v": np.full(300, size)}, **options)
    numbers = {"features": rows["features"], "label": rows["features"][:, 0] * 1e11, "v": np.full(300, 1e11)}
    with pytest.raises(InputError, match=r"data.label: validation weight times variance"):
        diva_ray.score({**numbers, "w": np.full(300, 1e-1)}, weight="w", task="regression", **options)


@pytest.mark.parametrize("role", ["validation", "pool"])
@pytest.mark.parametrize("kind", ["texts", "float32"])
def test_groups_of_another_type_do_not_hide_that_they_cross(role, kind):
    rows = {name: value[:300] for name, value in TABLE.items()} | {"group": np.arange(300).astype(float)}
    group = rows["group"].astype(str) if kind == "texts" else rows["group"].astype(np.float32)
    other, options = {**rows, "group": group}, {"group": "group", "cluster": INLINE, "quiet": True}
    message = (
        "column `group` must hold number as in the table"
        if kind == "texts"
        else "must lie|must lie in the table or in the pool"
    )
    with pytest.raises(InputError, match=message):
        if role == "pool":
            diva_ray.extend(rows, other, **options)
        else:
            diva_ray.score(rows, validation=other, **options)


def test_ids_whose_keys_are_alike_by_chance_are_not_called_the_same(monkeypatch):
    from diva_ray.data import shards

    true, n = shards.row_keys, 400
    monkeypatch.setattr(shards, "row_keys", lambda column, seed=0: true(column, seed) & np.uint64(0xFFF))
    ids = np.array([f"id{k}" for k in range(n)])
    rows = {name: value[:n] for name, value in TABLE.items()} | {"id": ids}
    assert len(np.unique(true(pa.array(ids)) & np.uint64(0xFFF))) < n, "what this test is about"
    diva_ray.score(rows, cluster=INLINE, quiet=True)


@pytest.mark.ray
def test_a_mistake_on_ray_leaves_no_copy_of_the_rows_and_a_run_none(ray_cluster, tmp_path):
    options = {"cluster": {"kind": "ray", "workers": 1}, "quiet": True, "output": str(tmp_path / "out"), "group": "g"}
    rows = {name: value[:2000].copy() for name, value in TABLE.items()} | {"g": np.arange(2000) % 1000}
    rows["features"][7, 0] = np.inf
    with pytest.raises(InputError, match="must be finite"):
        diva_ray.score(rows, **options)
    rows["features"][7, 0] = 0
    result = diva_ray.score(rows, **options)
    assert set(result.folder.names("")) >= {"samples", "summary.json", "manifest.json"}
    assert not {"table", "grouped", "grouped.json"} & set(result.folder.names(""))
    again = diva_ray.score(rows, resume=True, **options)
    assert again.summary == result.summary, "the run is whole without them"


@pytest.mark.ray
def test_a_ray_that_an_earlier_run_has_started_is_no_reason_to_leave_this_process(ray_cluster, monkeypatch):
    import ray

    from diva_ray.config import ClusterConfig
    from diva_ray.engine import connect
    from diva_ray.tasks.setup.plan import choose_kind

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert choose_kind(ClusterConfig(), 1)[0] == "ray"
    monkeypatch.setattr(connect, "_started", [ray.get_runtime_context().gcs_address])
    assert choose_kind(ClusterConfig(), 1)[0] == "inline"


def test_results_whose_folder_is_gone_say_so(tmp_path):
    rows = {name: value[:300] for name, value in TABLE.items()}
    result = diva_ray.score(rows, output=str(tmp_path / "gone"), cluster=INLINE, quiet=True)
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"output: the run's rows must be there, got none at .*gone/samples"):
        _ = result.samples


def test_scattered_groups_are_sorted_in_memory_only_where_it_has_room(tmp_path):
    n = 30_000
    wide = np.random.default_rng(0).normal(size=(n, 512)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(wide.ravel()), 512)
    pq.write_table(
        pa.table({"features": flat, "label": (wide[:, 0] > 0).astype(int), "g": np.arange(n) % 3000}),
        tmp_path / "rows.parquet", row_group_size=3000,
    )  # fmt: skip
    options = {"data": str(tmp_path / "rows.parquet"), "ridge": 1.0, "quiet": True, "group": "g"}
    need = diva_ray.score(plan=True, cluster=INLINE, **options).sizes.need("memory", 1)
    cluster = {**INLINE, "memory": str(need + 4 * n * 512)}
    assert diva_ray.score(plan=True, cluster=cluster, **options).keeping.place == "memory"
    with pytest.raises(InputError, match=r"where memory has no room to sort them .*got groups scattered"):
        diva_ray.score(cluster=cluster, **options)


@pytest.mark.ray
def test_a_run_of_a_ray_dataset_is_not_resumed_with_another(ray_cluster, tmp_path, caplog):
    import ray

    options = {"ridge": 1.0, "cluster": INLINE, "quiet": True, "output": str(tmp_path)}
    features = pa.FixedSizeListArray.from_arrays(pa.array(X[:300].ravel()), 4)
    rows = pa.table({"features": features, "label": TABLE["label"][:300]})
    one, other = ray.data.from_arrow(rows), ray.data.from_arrow(rows.rename_columns(["x", "label"]))
    first = diva_ray.score(one, **options)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"resume: the given Ray Dataset must be .* got columns x: .*; then features: "
    ):
        diva_ray.score(other, resume=True, features="x", **options)
    lazily = one.map_batches(lambda batch: batch)  # of which Ray knows no columns before it runs
    assert diva_ray.score(lazily, resume=True, **options).samples.equals(first.samples)
    assert "the Ray Dataset is not read again: its rows are those in" in caplog.text
