"""A run that takes over another's sums is the run from scratch, and its fit pass sees the changed rows only."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.config import ScoreConfig
from diva_ray.data.lock import let_others_in
from diva_ray.engine.inline import Inline
from diva_ray.engine.kernels import parts
from diva_ray.errors import InputError
from diva_ray.tasks.fit.derive import derive
from diva_ray.tasks.fit.increment import Keeper
from diva_ray.tasks.setup.begin import begin
from diva_ray.tasks.setup.calls import configure
from diva_ray.tasks.setup.kept import most_groups
from tests.data.tables import INLINE, vectors

N = 4000


def rows_of(n=N, seed=0, shift=0.0):
    """Return a table with a whole band, one with gaps, five classes and weights; far from centred."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, 12)) + 3 + shift
    other = [None if u < 0.2 else row for u, row in zip(generator.random(n), X[:, :4] ** 2, strict=True)]
    y = (X[:, :5] + generator.standard_normal((n, 5))).argmax(1)
    return pa.table(
        {
            "a": vectors(X.astype(np.float32)),
            "b": pa.array(other, pa.list_(pa.float64(), 4)),
            "label": pa.array([f"class {k}" for k in y]),
            "amount": X[:, 0] * 2 + generator.standard_normal(n),
            "weight": generator.random(n),
            "near": vectors((X + np.random.default_rng(9).standard_normal(X.shape)).astype(np.float32)),
            "id": generator.permutation(n) + 10_000 * seed,
        }
    )


def changed(table, name, rows, values):
    """Return a table with some values of a column replaced."""
    column = table[name].to_pylist()
    for row, value in zip(rows, values, strict=True):
        column[row] = value
    return table.set_column(table.schema.get_field_index(name), name, pa.array(column, table[name].type))


def store(folder, files, row_group_size=None):
    folder.mkdir()
    for k, table in enumerate(files):
        pq.write_table(table, folder / f"part-{k:03d}.parquet", row_group_size=row_group_size)
    return str(folder)


def quarters(table):
    return [table.slice(k * N // 4, N // 4) for k in range(4)]


def derived(data, *, precision="float64", **options):
    """Return the derivative of every row in float64, what the keeper says, what was derived, and the folder."""
    options = {"weight": "weight", "cluster": INLINE, "precision": precision, "features": ["a", "b"], **options}
    config, data, loss = configure(ScoreConfig, data, options)
    session = begin(config, data, loss, quiet=True)
    keeper = Keeper(session)
    found = derive(session.runner, session.setup, config.ridge, 0, "none", fit=keeper.fit)
    scored = torch.cat([shard.state["scored"][:, 0] for shard in session.engine.shards])
    session.engine.close()
    let_others_in(session.folder.path)
    return scored, keeper.figures, found, session.folder.path


def same(updated, scratch, tolerance=1e-10):
    assert updated[2].ridge == pytest.approx(scratch[2].ridge, rel=tolerance)
    np.testing.assert_allclose(updated[0], scratch[0], rtol=0, atol=tolerance * float(scratch[0].abs().max()))


@pytest.fixture(scope="module")
def table():
    return rows_of()


@pytest.fixture(scope="module")
def first(table, tmp_path_factory):
    """A finished run on four files."""
    data = store(tmp_path_factory.mktemp("data") / "table", quarters(table))
    return derived(data)[3]


def a_file_more(files):
    return [*files, rows_of(300, 1, shift=0.5)]


def a_file_before(files):
    return [rows_of(300, 1), *files]


def a_row_group_more(files):
    return [*files[:-1], pa.concat_tables([files[-1], rows_of(50, 1)])]


def labels_corrected(files):
    return [files[0], changed(files[1], "label", [10, 30, 31], ["class 0", "class 1", "class 2"]), *files[2:]]


def rows_deleted(files):
    middle = files[2]
    return [*files[:2], pa.concat_tables([middle.slice(0, 500), middle.slice(503)]), files[3]]


def a_file_deleted(files):
    return [files[0], *files[2:]]


def a_weight_changed(files):
    return [changed(files[0], "weight", [7], [2.5]), *files[1:]]


def a_class_appears(files):
    return [*files[:3], changed(files[3], "label", [1, 2, 3], ["a class"] * 3)]


def a_class_vanishes(files):
    keep = pa.compute.not_equal(pa.concat_tables(files)["label"], "class 2")
    return [pa.concat_tables(files).filter(keep)]


def gaps_filled(files):
    whole = pa.concat_tables(files).to_pydict()
    whole["b"] = [[1.0, 2.0, 3.0, 4.0] if row is None else row for row in whole["b"]]
    return [pa.table(whole, schema=files[0].schema)]


def a_gap_in_the_whole_band(files):
    return [files[0], changed(files[1], "a", [5, 6], [None, None]), *files[2:]]


def all_at_once(files):
    return a_class_appears(rows_deleted(labels_corrected(a_file_before(files))[:4])) + files[3:]


EDITS = {  # edit: most rows that may be computed, and relabelled, beyond those changed: two or three groups
    a_file_more: (300 + 400, 0), a_file_before: (300 + 400, 0), a_row_group_more: (50 + 400, 0),
    labels_corrected: (0, 800), rows_deleted: (600, 0), a_file_deleted: (900, 0), a_weight_changed: (500, 0),
    a_class_appears: (0, 800), a_gap_in_the_whole_band: (600, 0), all_at_once: (3000, 2000),
    a_class_vanishes: (N, N), gaps_filled: (N, N),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_update_is_the_run_from_scratch_and_reads_what_changed(edit, table, first, tmp_path, monkeypatch):
    data = store(tmp_path / "edited", edit(quarters(table)), row_group_size=700)
    scratch = derived(data)
    reads, fitted, each = [], [], Inline.each

    def watched(engine, kernel, extents, *more):
        fitted.extend(extents if kernel is parts.fit_parts else [])
        return each(engine, kernel, extents, *more)

    monkeypatch.setattr(Inline, "each", watched)
    monkeypatch.setattr(parts, "prepare", lambda *a, whole=parts.prepare: reads.append(a[2] - a[1]) or whole(*a))
    updated = derived(data, update=first)
    same(updated, scratch)
    told = updated[1]["update"]
    assert sum(reads) == told["rows_computed"] + told["rows_relabelled"]
    assert told["rows_unchanged"] + sum(reads) == len(updated[0])
    computed, relabelled = EDITS[edit]
    assert told["rows_computed"] <= computed and told["rows_relabelled"] <= relabelled, told
    if edit is a_row_group_more:
        assert [extent.start > N / 2 for extent in fitted] == [True], "other shards are not even looked at"
    if edit in (labels_corrected, a_class_appears):
        assert told["rows_relabelled"] >= 3


@pytest.mark.parametrize(
    "options",
    [
        {"intercept": False}, {"standardize": "none"}, {"projection": 3, "seed": 5}, {"features": ["b"]},
        {"shares": {"a": 0.7, "b": 0.3}}, {"label": "amount"}, {"weight": None, "source": "label"},
        {"block_rows": 100, "ridge": 2.0}, {"offset": "near", "label": "a", "task": "vector", "features": ["b"]},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_is_fitted(options, table, tmp_path):
    before = derived(table, **options)[3]
    after = rows_deleted(a_file_more(quarters(changed(table, "amount", [9], [3.0]))))
    after = pa.concat_tables(after[:3] + after[3:])
    scratch, updated = derived(after, **options), derived(after, update=before, **options)
    same(updated, scratch)
    assert updated[1]["update"]["rows_unchanged"] > N / 2


@pytest.mark.parametrize("names", [[0, 1, 2, 3], ["a", "b", "c", "d"]])
def test_a_class_more_or_less_among_several_is_seen(names):
    draw = np.random.default_rng(2)
    X = draw.standard_normal((2000, 6))
    several = X[:, :4] + 0.5 * draw.standard_normal((2000, 4)) > 0
    other = several.copy()
    other[draw.choice(2000, 300, replace=False), 0] ^= True
    before, after = (
        {"features": X, "label": [[names[k] for k in np.flatnonzero(row)] for row in rows]} for rows in (several, other)
    )
    options = {"features": ["features"], "weight": None, "ridge": 1.0}
    run = derived(before, **options)[3]
    scratch, updated = derived(after, **options), derived(after, update=run, **options)
    same(updated, scratch)
    assert updated[1]["update"]["rows_relabelled"] > 0


def test_a_class_of_another_name_keeps_its_offset(table):
    offset = pa.array(np.random.default_rng(5).standard_normal((N, 5)).tolist())
    table = table.append_column("offset", offset)
    few = changed(table, "label", range(60), ["class 2"] * 60)
    few = changed(
        few, "label", range(60, N), ["class 3" if name == "class 2" else name for name in few["label"].to_pylist()[60:]]
    )
    before = derived(few, offset="offset")[3]
    after = changed(few, "label", range(60), ["class 22"] * 60)
    scratch, updated = derived(after, offset="offset"), derived(after, offset="offset", update=before)
    same(updated, scratch)
    assert updated[1]["update"]["rows_relabelled"] == N, "all targets, no product of features"


@pytest.mark.parametrize(("far", "kind"), [(3e3, np.float32), (1.6e9, np.float64)])
def test_sums_of_features_far_from_zero_keep_their_digits(far, kind):
    rows = rows_of()
    X = np.random.default_rng(1).standard_normal((N, 12)) * max(1.0, far / 1e4) + far
    rows = rows.set_column(0, "a", vectors(X.astype(kind)))
    options = {"features": ["a"], "ridge": 1.0, "weight": None}
    before = derived(rows, precision="auto", **options)[3]
    after = rows.slice(0, 3800)
    updated, exact = derived(after, precision="auto", update=before, **options), derived(after, **options)
    assert updated[1]["update"]["rows_unchanged"] > N / 2
    same(updated, exact, 2e-6)


@pytest.mark.parametrize("mistake", ["another unit", "one entry", "one row"])
def test_rows_that_were_far_too_large_leave_no_rounding_behind_once_they_are_mended(mistake):
    rows = rows_of()
    X = np.random.default_rng(1).standard_normal((N, 12)).astype(np.float32) + 1
    X[:, 0] += np.array(rows["label"].to_pylist(), dtype=str) == "a"
    wrong = X.copy()
    wrong[: N // 20] *= 1e6 if mistake == "another unit" else 1
    wrong[0, : 1 if mistake == "one entry" else 12] *= 1 if mistake == "another unit" else 1e8
    then, now = (rows.set_column(0, "a", vectors(x)) for x in (wrong, X))
    options = {"features": ["a"], "ridge": 1.0, "weight": None, "precision": "auto"}
    before = derived(then, **options)[3]
    after = now if mistake == "another unit" else now.slice(1)
    updated, scratch = derived(after, update=before, **options), derived(after, **options)
    same(updated, scratch, 2e-5)


def test_other_ridge_shares_intercept_and_column_names_take_the_same_sums(table, first):
    renamed = table.rename_columns(["a", "b", "class", "amount", "w", "near", "id"])
    options = {"label": "class", "weight": "w", "intercept": False, "ridge": 0.3, "shares": {"a": 0.9, "b": 0.1}}
    updated = derived(renamed, update=first, **options)
    same(updated, derived(renamed, **options))
    assert updated[1]["update"]["rows_unchanged"] == N


def test_sets_of_classes_and_a_band_that_whole_shards_lack():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((N, 6)).astype(np.float32)
    several = [[name for name, x in zip("uvw", row, strict=False) if x > 0] for row in X]
    rare = [None] * (N - 100) + [[1.0, float(x)] for x in X[-100:, 0]]
    rows = pa.table({"a": vectors(X), "b": pa.array(rare, pa.list_(pa.float32())), "label": several})
    after = changed(pa.concat_tables([rows.slice(0, 700), rows.slice(710)]), "label", [3000], [["v", "x"]])
    before = derived(rows, weight=None)[3]
    scratch, updated = derived(after, weight=None), derived(after, weight=None, update=before)
    same(updated, scratch)
    assert updated[1]["update"]["rows_unchanged"] > N / 2
    assert updated[1]["update"]["rows_relabelled"] > 0


def test_rewritten_files_are_unchanged_and_give_the_same_bits(table, first, tmp_path):
    data = store(tmp_path / "rewritten", [table.slice(0, 2500), table.slice(2500)], row_group_size=333)
    updated = derived(data, update=first)
    assert updated[1]["update"]["rows_unchanged"] == N
    assert torch.equal(updated[0], derived(data)[0])


def test_files_in_another_order_are_unchanged_but_at_their_ends(table, first, tmp_path):
    data = store(tmp_path / "turned", quarters(table)[::-1])
    updated = derived(data, update=first)
    same(updated, derived(data))
    assert updated[1]["update"]["rows_unchanged"] >= N / 3


def test_an_update_of_an_update_of_an_update(table, first, tmp_path):
    files, run = quarters(table), first
    for k, edit in enumerate((a_file_more, rows_deleted, labels_corrected, a_class_appears, a_file_before)):
        files = edit(files)
        updated = derived(store(tmp_path / f"table-{k}", files), update=run)
        assert updated[1]["update"]["rows_unchanged"] > 1500
        assert updated[1]["kept_sums"]["groups"] <= 1 + most_groups(len(updated[0]), 18, 6)
        run = updated[3]
    same(updated, derived(store(tmp_path / "scratch", files)))


def test_many_small_updates_do_not_leave_many_small_groups(table):
    run, rows = derived(table, ridge=1.0)[3], table
    for k in range(12):
        rows = pa.concat_tables([rows, rows_of(40, k + 1)])
        updated = derived(rows, update=run, ridge=1.0)
        run = updated[3]
        assert updated[1]["update"]["rows_computed"] < 600
    assert updated[1]["kept_sums"]["groups"] <= 1 + most_groups(len(rows), 18, 5)
    same(updated, derived(rows, ridge=1.0))


def test_groups_that_lie_scattered_and_a_validation_table(table, tmp_path):
    def prepared(rows):
        return rows.append_column("group", pa.array([i % 900 for i in rows["id"].to_pylist()]))

    held = prepared(rows_of(500, 3))
    after = prepared(pa.concat_tables(rows_deleted(quarters(table))))
    for options in ({"group": "group"}, {"validation": store(tmp_path / "held", [held])}):
        before = derived(prepared(table), **options)[3]
        scratch, updated = derived(after, **options), derived(after, update=before, **options)
        same(updated, scratch)
        assert updated[1]["update"]["rows_unchanged"] > N / 2


def test_float32_products_agree_to_their_rounding_and_a_bad_condition_raises_both(table, monkeypatch):
    before = derived(table, precision="auto")[3]
    after = pa.concat_tables(a_file_more(quarters(table)))
    same(derived(after, update=before, precision="auto"), derived(after, precision="auto"), 2e-5)
    monkeypatch.setattr("diva_ray.tasks.fit.derive.MOST_CONDITION", 3e4)
    before = derived(table, precision="auto", ridge=1e-7, standardize="none")
    assert (before[2].fitted, before[2].setup.dtype) == (torch.float64, torch.float32)
    updated = derived(after, precision="auto", ridge=1e-7, standardize="none", update=before[3])
    assert updated[1]["update"]["rows_unchanged"] > N / 2, "float64 sums serve both precisions"
    same(updated, derived(after, precision="auto", ridge=1e-7, standardize="none"), 2e-5)


def call(data, **options):
    return diva_ray.score(data, **{"features": ["a", "b"], "cluster": INLINE, "quiet": True, "ridge": 0.5, **options})


def test_the_call_gives_the_verdicts_from_scratch_and_tells_what_it_took(table, tmp_path):
    before = call(table, output=str(tmp_path / "one"))
    assert before.summary["update"] is None
    assert before.summary["kept_sums"]["groups"] > 4
    after = pa.concat_tables(labels_corrected(rows_deleted(quarters(table))))
    scratch, updated = call(after, precision="float64"), None
    with pytest.raises(InputError, match="update: the run must have kept sums of float64 products"):
        call(after, precision="float64", update=before.path)
    before = call(table, precision="float64")
    updated = call(after, precision="float64", update=before.path, output=tmp_path / "two")
    for name in ("is_detrimental", "is_label_issue", "predicted_label"):
        assert updated.samples[name].equals(scratch.samples[name]), name
    told = json.loads((tmp_path / "two" / "summary.json").read_text())["update"]
    assert told["run"] == before.path and told["rows_before"] == N
    again = call(after, precision="float64", update=before.path, output=tmp_path / "two", resume=True)
    assert again.samples.equals(updated.samples)
    assert any("taken from" in line for line in updated.told)


def test_what_is_left_may_need_no_sums(caplog):
    generator = np.random.default_rng(0)
    rows = {"features": generator.standard_normal((90, 40)), "label": generator.integers(0, 2, 90)}
    few, options = {name: values[:30] for name, values in rows.items()}, {"cluster": INLINE, "quiet": True}
    updated = diva_ray.score(few, update=diva_ray.score(rows, **options).path, **options)
    assert updated.summary["update"] is None and updated.summary["form"] == "dual"
    assert "update: nothing was taken over" in caplog.text
    assert updated.samples.equals(diva_ray.score(few, **options).samples)


def test_trusted_rows_too(table):
    rows = table.append_column("trust", pa.array((np.arange(N) % 8 == 0) * 1.0))
    files = [quarter.slice(0, 400) for quarter in quarters(rows)]
    options = {"validation_weight": "trust", "method": "trusted", "precision": "float64"}
    before = call(pa.concat_tables(files), **options)
    after = pa.concat_tables(labels_corrected(files))
    scratch, updated = call(after, **options), call(after, update=before.path, **options)
    assert updated.summary["update"]["rows_computed"] == 0
    np.testing.assert_allclose(updated.samples["z"], scratch.samples["z"], rtol=1e-5, atol=1e-5)


def test_a_plan_says_how_much_lies_in_unchanged_files(table, tmp_path):
    files = quarters(table)
    data = store(tmp_path / "table", files)
    before = call(data)
    pq.write_table(files[1].slice(1), tmp_path / "table" / "part-001.parquet")
    plan = call(data, update=before.path, plan=True)
    assert any("3,000 rows lie in files that have not changed" in line for line in plan.lines())


def test_runs_that_keep_nothing(table, tmp_path):
    small = {"features": np.random.default_rng(0).standard_normal((40, 60)), "label": np.arange(40) % 3}
    for run in (
        call(table, keep_sums=False),
        diva_ray.score(small, cluster=INLINE, quiet=True),
    ):
        assert run.summary["kept_sums"] is None
        with pytest.raises(InputError, match=r"update: must be the folder of a score run that kept .* got none at"):
            call(table, update=run.path)
    with pytest.raises(InputError, match="update: the folder of a score run must be there, got nothing at .*nowhere"):
        call(table, update=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="update: pairs keep no sums"):
        call(table, update=run.path, task="pairs")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"features": ["b", "a"]}, "the same `features`"), ({"label": "amount"}, "the same `task`"),
        ({"standardize": "none"}, "the same `standardize`"), ({"projection": 2}, "the same `projection`"),
    ],
    ids=str,
)  # fmt: skip
def test_sums_of_something_else_are_refused(options, told, table, first):
    with pytest.raises(InputError, match=f"update: the run must have been made with {told}, got"):
        call(table, update=first, **options)


@pytest.mark.parametrize("damage", ["cut off", "flipped"])
@pytest.mark.parametrize("name", ["index.json", "segments.npz", "frames.npz", "group-00000.npz"])
def test_damaged_sums_are_named_in_a_line(name, damage, table, tmp_path):
    table = table.slice(0, 400)
    call = dict(features=["a"], weight="weight", cluster=INLINE, quiet=True)
    diva_ray.score(table, output=str(tmp_path / "run"), **call)
    file = tmp_path / "run" / "sums" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(
        InputError, match=rf"update: files of kept sums must be whole, got .* at {file}\. Score"
    ) as told:
        diva_ray.score(table, update=str(tmp_path / "run"), **call)
    assert "\n" not in str(told.value)


def test_other_tables_are_refused(table, first, tmp_path):
    with pytest.raises(InputError, match="update: must be another folder than output"):
        call(table, update=first, output=first, resume=True)
    narrow = table.set_column(0, "a", vectors(np.ones((N, 3)) * np.arange(N)[:, None]))
    with pytest.raises(InputError, match=r"update: bands must be as wide as they were, got \[12, 4\] in .* \[3, 4\]"):
        call(narrow, update=first, weight="weight")
    with pytest.raises(InputError, match=r"update: the table must have at most 64 times the run's rows"):
        call(table, update=call(table.slice(0, 50)).path)


@pytest.mark.ray
@pytest.mark.long
def test_updates_have_the_same_bits_on_ray(ray_cluster, table, tmp_path):
    after = store(tmp_path / "after", all_at_once(quarters(table)), row_group_size=500)
    before, runs = store(tmp_path / "before", quarters(table)), {}
    for kind in ("inline", "ray"):
        where = {"kind": kind, "workers": 2} if kind == "ray" else INLINE
        run = call(before, cluster=where)
        runs[kind] = call(after, cluster=where, update=run.path)
    inline, ray = runs["inline"].folder, runs["ray"].folder
    assert ray.read_table("samples").equals(inline.read_table("samples"))
    assert runs["ray"].summary["update"]["rows_unchanged"] == runs["inline"].summary["update"]["rows_unchanged"]
    names = sorted(inline.names("sums"))
    assert sorted(ray.names("sums")) == names
    for name in names:
        if name.startswith("group"):
            one, other = inline.read_arrays(f"sums/{name}"), ray.read_arrays(f"sums/{name}")
            assert all(np.array_equal(one[key], other[key]) for key in ("gram", "cross")), name
