"""Curated copies, and trusted rows where labels are wrong in the same way."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

import diva_ray
from diva_ray.engine import regroup_on_ray
from diva_ray.errors import InputError
from tests.jobs.problems import digits_split

INLINE = {"kind": "inline", "threads": 1}
TRUSTED = {"method": "trusted", "curate": "drop"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Digits with a fifth of the labels wrong, in two files, with a column that no option names."""
    X, y, truth, _, _ = digits_split(0.2)
    folder = tmp_path_factory.mktemp("curate") / "table"
    folder.mkdir()
    rows = pa.table({
        "id": np.arange(900) * 7, "features": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 64),
        "label": y,
        "note": [f"row {k}" for k in range(900)], "truth": truth,
    })  # fmt: skip
    pq.write_table(rows.slice(0, 500), folder / "a.parquet")
    pq.write_table(rows.slice(500), folder / "b.parquet")
    return str(folder), rows


def test_dropping_keeps_every_column_and_lists_what_went(table):
    path, rows = table
    result = diva_ray.curate(path, "drop", cluster=INLINE, quiet=True)
    kept, changes = result.samples, result.folder.read_table("changes")
    assert kept.schema.names == rows.schema.names
    assert kept.num_rows + changes.num_rows == 900
    flagged = result.folder.read_table("samples")["is_label_issue"].to_numpy()
    assert kept.equals(rows.filter(pa.array(~flagged)).combine_chunks())
    assert changes["id"].to_pylist() == [7 * k for k in np.flatnonzero(flagged)]
    wrong = (rows["label"].to_numpy() != rows["truth"].to_numpy())[flagged]
    assert wrong.mean() > 0.85


def test_only_rows_of_a_class_stay_and_classes_without_a_row_left_are_counted():
    """Left out, nothing predicts the only row (or group) of a class; of one with two wrong rows none is left."""
    X, y, _, _, _ = digits_split(0.0)
    names = np.array([f"digit {k}" for k in y])
    names[[3, 50, 400]] = "alone", "elsewhere", "pair"
    names[401] = "pair"
    group = np.arange(900)
    group[[400, 401]] = 400  # left out together
    wrong = np.flatnonzero(y == 4)[:2]
    names[wrong] = "both wrong"
    data = {"features": X, "label": names, "group": group}
    found = diva_ray.curate(data, "drop", group="group", cluster=INLINE, quiet=True)
    rows = found.folder.read_table("samples")
    assert rows["label_score"].to_numpy()[[3, 50, 400, 401]].min() > 0.99
    assert not rows["is_label_issue"].to_numpy()[[3, 50, 400, 401]].any()
    assert found.summary["n_only_of_class"] == 4
    assert any(line.startswith("note: 4 samples are the only ones of their classes") for line in found.told)
    flagged = rows["is_label_issue"].to_numpy()
    lost = int(flagged[wrong].all())
    assert found.summary["curated"]["classes_lost"] == lost
    assert ("1 class has no row left" in " ".join(found.told)) is bool(lost)
    assert not set(found.samples["label"].to_pylist()) ^ {*names[~flagged]}


def test_tensors_that_name_the_order_of_their_axes_are_copied(tmp_path):
    """As `from_numpy_ndarray` makes them, in most tables of tensors."""
    X, y, _, _, _ = digits_split(0.2)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X.astype(np.float32))
    assert tensors.type.permutation
    pq.write_table(pa.table({"features": tensors, "label": y}), tmp_path / "table.parquet")
    result = diva_ray.curate(tmp_path / "table.parquet", "drop", cluster=INLINE, quiet=True)
    kept = ~result.folder.read_table("samples")["is_label_issue"].to_numpy()
    found = result.samples["features"].combine_chunks()
    assert found.type == tensors.type
    assert np.array_equal(found.to_numpy_ndarray(), X.astype(np.float32)[kept])


def test_relabelling_changes_only_flagged_labels_to_the_left_out_prediction(table):
    path, rows = table
    result = diva_ray.curate(path, "relabel", cluster=INLINE, quiet=True)
    scored = result.folder.read_table("samples")
    flagged = scored["is_label_issue"].to_numpy()
    expected = np.where(flagged, scored["predicted_label"].to_numpy(), rows["label"].to_numpy())
    assert result.samples["label"].to_pylist() == expected.tolist()
    assert result.samples.drop_columns("label").equals(rows.drop_columns("label").combine_chunks())
    better = (expected == rows["truth"].to_numpy()).mean() - (
        rows["label"].to_numpy() == rows["truth"].to_numpy()
    ).mean()
    assert better > 0.1


def several(kind):
    """Return digits with labels of seven kinds (even, prime, ...), of which every eighth is left out; or of two
    numbers, the digit, sometimes wrong, and whether it is one loop."""
    X, _, digit, _, _ = digits_split(0.0)
    tags = {"even": [0, 2, 4, 6, 8], "prime": [2, 3, 5, 7], "round": [0, 6, 8, 9], "big": [5, 6, 7, 8, 9],
            "three": [0, 3, 6, 9], "stroke": [1, 4, 7], "one": [1]}  # fmt: skip
    generator = np.random.default_rng(4)
    if kind == "pairs":
        truth = np.column_stack([digit, 10 + np.isin(digit, [0, 6])]).astype(np.int16)
        wrong = generator.permutation(900)[:60]
        given = truth.copy()
        given[wrong, 0] = (given[wrong, 0] + generator.integers(1, 10, 60)) % 10
        label = pa.FixedSizeListArray.from_arrays(pa.array(given.reshape(-1)), 2)
        return X, label, [set(row) for row in truth.tolist()]
    truth = [{tag for tag, of in tags.items() if d in of} for d in digit]
    given = [sorted(tag for tag in row if generator.random() > 0.12) for row in truth]
    return X, pa.array(given, pa.large_list(pa.string())), truth


@pytest.mark.parametrize("kind", ["strings", "pairs"])
def test_relabelling_several_labels_changes_single_ones_of_flagged_rows(kind):
    X, label, truth = several(kind)
    rows = pa.table({"features": list(X), "label": label})
    result = diva_ray.curate(rows, "relabel", task="multilabel", cluster=INLINE, quiet=True)
    scored, changes = result.folder.read_table("samples"), result.folder.read_table("changes")
    flagged, corrected = scored["is_label_issue"].to_pylist(), scored["corrected_label"].to_pylist()
    before, after = label.to_pylist(), result.samples["label"].to_pylist()
    changed = [k for k in range(900) if corrected[k] is not None]
    assert all(flagged[k] and set(corrected[k]) != set(before[k]) for k in changed)
    assert after == [given if new is None else new for given, new in zip(before, corrected, strict=True)]
    assert changes["id"].to_pylist() == changed and changes["label_after"].to_pylist() == [after[k] for k in changed]
    assert result.summary["curated"]["changed"] == len(changed) > 30
    stay = sum(flagged) - len(changed)
    assert any(f"; {stay} flagged label" in line for line in result.lines()) == (stay > 0)
    wrong = [sum(len(set(row) ^ true) for row, true in zip(labels, truth, strict=True)) for labels in (before, after)]
    assert wrong[1] < 0.75 * wrong[0]
    again = diva_ray.curate(result, "weight", task="multilabel", cluster=INLINE, quiet=True)
    score = again.folder.read_table("samples")["label_score"].to_numpy()
    np.testing.assert_allclose(again.samples["weight"].to_numpy(), score, rtol=1e-6)


def test_weighting_adds_the_probability_that_the_label_is_right(table):
    path, _ = table
    result = diva_ray.curate(path, "weight", cluster=INLINE, quiet=True)
    score = result.folder.read_table("samples")["label_score"].to_numpy()
    np.testing.assert_allclose(result.samples["weight"].to_numpy(), score, rtol=1e-6)
    assert result.summary["curated"]["rows"] == 900


def test_a_weight_of_0_that_stays_is_no_change(table):
    _, rows = table
    before = np.where(np.arange(900) % 3 == 0, 0.0, 2.0)
    rows = rows.append_column("w", pa.array(before))
    result = diva_ray.curate(rows, "weight", weight="w", cluster=INLINE, quiet=True)
    after, changes = result.samples["w"].to_numpy(), result.folder.read_table("changes")
    changed = np.abs(after - before) > 1e-3 * before
    assert (before == 0).sum() == 300 and 50 < changed.sum() <= 600
    np.testing.assert_array_equal(changes["id"].to_numpy(), 7 * np.flatnonzero(changed))
    np.testing.assert_allclose(changes["weight"].to_numpy(), after[changed])
    assert result.summary["curated"]["changed"] == changed.sum()


@pytest.mark.ray
@pytest.mark.long
def test_workers_that_hold_every_cpu_write_the_same_copy_of_a_table_whose_groups_lie_scattered(
    ray_cluster, table, monkeypatch
):
    monkeypatch.setattr(regroup_on_ray, "SAMPLES_BLOCK", 3_000)  # samples of several parts
    rows = pa.concat_tables([table[1].drop_columns("id")] * 8)  # several shards, for two workers
    scattered = rows.append_column("group", pa.array(np.random.default_rng(0).integers(0, 2000, len(rows))))
    options = {"group": "group", "ridge": 1.0, "quiet": True}
    inline = diva_ray.curate(scattered, "drop", cluster=INLINE, **options)
    held = placement_group([{"CPU": 1}] * (int(ray.cluster_resources()["CPU"]) - 2))
    ray.get(held.ready(), timeout=60)
    try:  # the workers have all the others: tasks of Ray Data would have waited for one for ever
        on_ray = diva_ray.curate(scattered, "drop", cluster={"kind": "ray", "workers": 2}, **options)
    finally:
        remove_placement_group(held)
    assert on_ray.summary["workers"]["count"] == 2
    assert on_ray.folder.read_table("curated").equals(inline.samples)
    assert on_ray.folder.read_table("samples").equals(inline.folder.read_table("samples")), "the same bits"
    assert inline.samples["note"].to_pylist() == [
        note for note, gone in zip(rows["note"].to_pylist(), _flags(inline), strict=True) if not gone
    ]


@pytest.mark.parametrize("options", [{"weight": "w", "curate": "weight"}, {"validation_weight": "w", **TRUSTED}])
def test_a_weight_may_be_a_list_of_one(options, table):
    _, rows = table
    listed = np.array([[float(k % 3 > 0)] for k in range(len(rows))])
    forms = [pa.array(listed.tolist()), pa.array(listed[:, 0])]
    one, other = (
        diva_ray.score(rows.append_column("w", form), cluster=INLINE, quiet=True, **options).folder for form in forms
    )
    assert one.read_table("changes").equals(other.read_table("changes"))


def _flags(result):
    return result.folder.read_table("samples")["is_label_issue"].to_pylist()


def test_nothing_is_changed_unless_asked(table):
    path, _ = table
    result = diva_ray.score(path, cluster=INLINE, quiet=True)
    assert not {"curated", "changes"} & set(result.folder.names(""))


def test_numbers_cannot_be_relabelled_which_their_type_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "diva_ray.tasks.setup.begin.open_session", lambda *_, **__: pytest.fail("nothing may be loaded")
    )
    rows = {"features": np.random.default_rng(0).random((50, 3)), "label": np.linspace(0, 1, 50)}
    with pytest.raises(InputError, match="curate: relabel is for classes, got task=regression. Change `curate`."):
        diva_ray.score(rows, curate="relabel", cluster=INLINE, quiet=True, output=str(tmp_path / "run"))


def confusing(share, seed=0):
    """Return digits of which a share has the label of the next digit, but for five trusted rows a class."""
    X, _, truth, _, _ = digits_split(0.0)
    generator = np.random.default_rng(seed)
    y = truth.copy()
    rows = generator.permutation(900)[: round(share * 900)]
    y[rows] = (y[rows] + 1) % 10
    trusted = np.concatenate([np.flatnonzero(truth == k)[:5] for k in range(10)])
    y[trusted] = truth[trusted]
    return {"features": X, "label": y, "truth": truth, "v": np.isin(np.arange(900), trusted).astype(float)}


@pytest.mark.parametrize("action", ["drop", "relabel", "weight"])
def test_labels_that_are_trusted_stay(action):
    generator = np.random.default_rng(0)
    mean = np.random.default_rng(99).standard_normal((5, 8))
    truth = generator.integers(0, 5, 900)
    given = np.where(generator.random(900) < 0.3, generator.integers(0, 5, 900), truth)
    trusted = np.arange(900) < 100
    given[trusted] = truth[trusted]
    X = mean[truth] + generator.standard_normal((900, 8))
    data = {"features": X, "label": given, "v": trusted * 1.0}
    result = diva_ray.curate(data, action, validation_weight="v", method="trusted", cluster=INLINE, quiet=True)
    samples, most = result.folder.read_table("samples"), result.summary["label_threshold"]
    assert (samples["label_score"].to_numpy()[trusted] < most).any(), "some look wrong"
    assert not samples["is_label_issue"].to_numpy()[trusted].any(), "but are taken for right"
    kept, changes = result.samples, result.folder.read_table("changes")
    assert kept["label"].to_numpy()[:100].tolist() == given[:100].tolist() and changes.num_rows > 50
    assert min(changes["id"].to_pylist()) >= 100
    if action == "weight":
        assert (kept["weight"].to_numpy()[:100] == 1).all()
    if action == "relabel":
        assert all(
            a != b for a, b in zip(*(changes[f"label_{when}"].to_pylist() for when in ("before", "after")), strict=True)
        )


def test_trusted_rows_see_what_wrong_neighbours_hide():
    for share in (0.4, 0.5):
        data, same = confusing(share), {"truth": "truth", "cluster": INLINE, "quiet": True}
        plain = diva_ray.score(data, **same)
        trusted = diva_ray.score(data, **same, validation_weight="v", method="trusted")
        assert trusted.summary["planted"]["auc_z"] > plain.summary["planted"]["auc_z"]
        assert not any("trust a few rows" in line for line in trusted.told)
        assert trusted.summary["planted"]["f1"] > 0.85
        if share < 0.5:  # the given labels alone tell which class flips into which
            assert plain.summary["planted"]["f1"] > 0.85 and plain.summary["class_dependence"] > 1 / 3
            assert any("trust a few rows" in line for line in plain.told)
        else:  # every class is called the next as often as itself
            assert plain.summary["planted"]["f1"] < 0.5


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.long)])
def test_trusted_rows_do_not_judge_the_weights_that_follow_them(apart):
    """What is told is of the weights before; rows are written with those of the fit that judges them."""
    data = confusing(0.4)
    few = data["v"] > 0
    rest = {"ridge": 1.0, "precision": "float64", "cluster": INLINE, "quiet": True}
    if apart:
        heard = {"validation": {"features": data["features"][few], "label": data["label"][few]}}
        data = {"features": data["features"][~few], "label": data["label"][~few]}
    else:
        heard = {"validation_weight": "v"}
    trusted = diva_ray.score(data, method="trusted", **heard, **rest)
    first = np.where(few, 5.0, 1.0)[: len(data["label"])] if not apart else np.ones(len(data["label"]))
    before = diva_ray.score({**data, "w": first}, weight="w", **heard, **rest)
    assert trusted.summary["loss"] == pytest.approx(before.summary["loss"], rel=1e-9)
    assert trusted.summary["error"] == before.summary["error"]
    assert "method" in trusted.summary["rules"] and "method" not in before.summary["rules"]
    w = trusted.samples["weight"].to_numpy().astype(float)
    assert w.min() < 0.5 and w.max() > 1
    after = diva_ray.score({**data, "w": w}, weight="w", **heard, **rest)
    for name in ("derivative", "loss", "leverage", "standard_error"):
        found, wanted = (run.samples[name].to_numpy() for run in (trusted, after))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_the_curated_copy_of_a_run_is_its_table_and_a_run_without_one_is_none(tmp_path):
    generator = np.random.default_rng(0)
    table = pa.table({"features": list(generator.standard_normal((40, 3))), "label": np.arange(40) % 2})
    options = {"cluster": INLINE, "quiet": True}
    diva_ray.curate(table, output=tmp_path / "a", **options)
    assert diva_ray.score(tmp_path / "a", output=tmp_path / "b", **options).summary["n_samples"] == 40
    with pytest.raises(InputError, match=r"data.path: must be a table, got the output of a run at .*b. .*b/samples"):
        diva_ray.score(tmp_path / "b", **options)


def test_weights_follow_trusted_rows():
    data = confusing(0.4)
    result = diva_ray.reweight(data, validation_weight="v", method="trusted", cluster=INLINE, quiet=True)
    alpha, wrong = np.array(result.samples["weight"]), data["label"] != data["truth"]
    assert result.summary["accepted"]
    assert alpha[wrong].mean() < 0.8 * alpha[~wrong].mean()
    plain = diva_ray.reweight(data, folds=2, steps=1, cluster=INLINE, quiet=True)
    assert plain.summary["class_dependence"] > 1 / 3
    assert [any("trust a few rows" in line for line in run.told) for run in (plain, result)] == [True, False]
    assert b"trust a few rows" in plain.folder.read("report.html")


@pytest.mark.parametrize("first", [True, False])
def test_a_column_that_only_some_files_have_is_no_silent_loss(first, tmp_path):
    generator = np.random.default_rng(0)
    rows = pa.table({"features": list(generator.standard_normal((40, 3))), "label": np.arange(40) % 2})
    more = rows.append_column("text", pa.array(["t"] * 40)).append_column("id", pa.array(range(40)))
    for name, table in zip("ab", (more, rows) if first else (rows, more), strict=True):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    lacks = "b.parquet" if first else "a.parquet"
    options = {"cluster": INLINE, "quiet": True}
    assert len(diva_ray.score(tmp_path, id="none", **options).samples) == 80
    told = f"curate: every file must have the same columns, .* got no `text` at .*{lacks}. Add it there, as nulls"
    with pytest.raises(InputError, match=told):
        diva_ray.curate(tmp_path, id="none", **options)
    for option, told in {"source": "data.source", "show": "data.show"}.items():
        with pytest.raises(InputError, match=f"{told}: every file must have column `text`, got none at .*{lacks}. Fix"):
            diva_ray.score(tmp_path, id="none", **{option: "text"}, **options)
    with pytest.raises(InputError, match=f"data.id: every file must have column `id`, got none at .*{lacks}. .*=none"):
        diva_ray.score(tmp_path, **options)


@pytest.mark.parametrize(
    "there,name",
    [
        ((), "weight"),
        (("weight",), "sample_weight"),
        (("weight", "sample_weight"), "sample_weight_2"),
        (("sample_weight", "weight", "sample_weight_2"), "sample_weight_3"),
    ],
)
def test_weights_go_into_a_column_that_is_free(there, name):
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((60, 3)), np.arange(60) % 2
    given = {column: generator.random(60) for column in there}
    result = diva_ray.curate({"features": X, "label": y, **given}, "weight", cluster=INLINE, quiet=True)
    assert result.summary["curated"]["weight_column"] == name
    assert result.samples.column_names == ["features", "label", *there, name]
    for column, values in given.items():
        assert result.samples[column].to_pylist() == values.tolist()
    scores = result.folder.read_table("samples")["label_score"].to_numpy().astype(np.float64)
    assert np.array_equal(result.samples[name].to_numpy(), scores)


@pytest.mark.parametrize("form", ["memory", "files"])
def test_relabelling_keeps_categories(form, table, tmp_path):
    _, rows = table
    names = pa.array([f"class {k}" for k in rows["label"].to_pylist()])
    values = pa.array(["never", *(f"class {9 - k}" for k in range(10))])
    codes = pa.array([values.to_pylist().index(name) for name in names.to_pylist()], pa.int8())
    label = pa.DictionaryArray.from_arrays(codes, values, ordered=True)
    data = rows.set_column(2, "label", label)
    plain = diva_ray.curate(rows.set_column(2, "label", names), "relabel", cluster=INLINE, quiet=True)
    if form == "files":  # the second knows fewer classes than are predicted in it
        few = pa.array([max(int(name[-1]), 5) for name in names.to_pylist()[450:]])
        kept = pa.array([f"class {k}" for k in few.to_pylist()]).dictionary_encode()
        kept = pa.DictionaryArray.from_arrays(kept.indices.cast("int8"), kept.dictionary, ordered=True)
        pq.write_table(data.slice(0, 450), tmp_path / "a.parquet")
        pq.write_table(data.slice(450).set_column(2, "label", kept), tmp_path / "b.parquet")
        plain = diva_ray.curate(
            rows.set_column(2, "label", pa.concat_arrays([names[:450], kept.cast("string")])), "relabel",
            cluster=INLINE, quiet=True,
        )  # fmt: skip
    found = diva_ray.curate(str(tmp_path) if form == "files" else data, "relabel", cluster=INLINE, quiet=True)
    assert found.summary["curated"]["changed"] > 50
    assert found.samples["label"].to_pylist() == plain.samples["label"].to_pylist()
    kind = found.samples.schema.field("label").type
    assert pa.types.is_dictionary(kind) and kind.value_type == pa.string() and kind.index_type == pa.int8()
    assert kind == label.type


def test_a_misspelt_option_is_told_of_curate():
    with pytest.raises(InputError, match="^curate: options must be columns or fields of ScoreConfig, got 'how'"):
        diva_ray.curate({"features": np.eye(4), "label": [0, 1, 0, 1]}, how="drop")


def forms_of_table(form):
    """Rows and options of a table whose copies are made in another way each."""
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((300, 6)), np.arange(300) % 3
    X[:, :3] += 3 * np.eye(3)[y]
    y[:20] = (y[:20] + 1) % 3
    if form == "numbers":
        return {"features": X, "label": X @ np.ones(6) + np.where(np.arange(300) < 15, 30.0, 0.1 * X[:, 0])}, {}
    if form == "several":
        sets = [[name for k, name in enumerate("abc") if row[k] > 1] for row in X[:, :3]]
        sets[:20] = [[name for name in "abc" if name not in one] for one in sets[:20]]
        return {"features": X, "label": sets}, {}
    if form == "pairs":
        both = {"image": X, "text": X @ generator.standard_normal((6, 6))}
        both["text"][:30] = both["text"][generator.permutation(30)]
        return both, {"task": "pairs", "features": ["image", "text"]}
    if form == "trusted":
        heard = np.where((np.arange(300) > 200) & (np.arange(300) % 2 == 0), 1.0, 0.0)
        return {"features": X, "label": y, "heard": heard}, {"method": "trusted", "validation_weight": "heard"}
    return {"features": X, "label": y, "key": np.arange(300) % 100}, {"group": "key"}


@pytest.mark.parametrize(
    ("form", "action"),
    [("groups", "drop"), ("groups", "weight"), ("groups", "relabel"), ("numbers", "drop"), ("several", "relabel"),
     ("pairs", "weight"), ("trusted", "drop")],
)  # fmt: skip
def test_a_copy_may_be_asked_for_when_the_scores_have_been_seen(form, action, tmp_path, monkeypatch):
    """Only the pass that copies is taken then; the copy is that of a run which was asked for it at first."""
    data, options = forms_of_table(form)
    options |= {"cluster": INLINE, "quiet": True}
    at_once = diva_ray.curate(data, action, output=tmp_path / "at_once", **options)
    scored = diva_ray.score(data, output=tmp_path / "run", **options)
    assert "curated" not in scored.summary and at_once.summary["curated"]["changed"] > 0
    with monkeypatch.context() as patched:
        for name in ("derive_all", "score_pairs", "derive_trusted"):
            patched.setattr(f"diva_ray.tasks.score.{name}", None)
        later = diva_ray.curate(data, action, output=tmp_path / "run", resume=True, **options)
    assert later.samples.equals(at_once.samples)
    assert later.folder.read_table("changes").equals(at_once.folder.read_table("changes"))
    assert later.told == at_once.told and later.summary["curated"] == at_once.summary["curated"]
    assert later.folder.read_table("samples").equals(scored.samples)
    again = diva_ray.curate(data, action, output=tmp_path / "run", resume=True, **options)
    assert again.samples.equals(later.samples) and again.told == later.told
    first = diva_ray.score(data, output=tmp_path / "run", resume=True, **options)  # the cell of the run, once more
    assert first.samples.equals(scored.samples) and first.told == later.told
    assert diva_ray.curate(data, action, output=tmp_path / "run", resume=True, **options).samples.equals(later.samples)


def test_another_copy_or_other_data_are_another_run(tmp_path):
    data, options = forms_of_table("groups")
    options |= {"cluster": INLINE, "quiet": True, "output": tmp_path / "run"}
    diva_ray.curate(data, "drop", **options)
    other = data | {"features": data["features"] + 1}
    for given, curate, told in (
        (data, "weight", r"got another curate\. Use"),
        (other, "none", r"got another data\.path \(what lies there has changed\)\. Put it back"),
        (
            other,
            "weight",
            r"got another curate, data\.path \(what lies there has changed\)\. Use the same options, or a new",
        ),
    ):
        with pytest.raises(InputError, match=told):
            diva_ray.score(given, curate=curate, resume=True, **options)
