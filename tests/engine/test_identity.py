"""Rows are known by their content: every change shows, and where rows lie does not matter."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import diva_ray
from diva_ray.data.shards import Columns, Extent, read_shard
from diva_ray.data.table import from_arrays
from diva_ray.engine.kernels.identity import alike, count_alike, feature_hashes, fragments, join, row_hashes
from diva_ray.engine.reduce import Rows

KNOWN = {"numbers": False, "label": "label"}
COLUMNS = Columns(("features",), "label", weight="weight")
BITS = 5


def rows_of(n=2000, d=7, seed=0, kind=np.float32):
    generator = np.random.default_rng(seed)
    return {
        "features": generator.standard_normal((n, d)).astype(kind),
        "label": generator.integers(0, 4, n),
        "weight": generator.random(n),
    }


def shards_of(data, cuts=()):
    table = from_arrays(data)
    bounds = [0, *cuts, table.rows]
    extents = [Extent(k, a, b) for k, (a, b) in enumerate(pairwise(bounds))]
    return [read_shard(table, table.reader(), COLUMNS, extent) for extent in extents]


def segments(data, cuts=()):
    found = Rows()
    for shard in shards_of(data, cuts):
        found = found + fragments(shard, KNOWN, BITS, feature_hashes(shard, None))
    return join(found)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_changed_row_has_another_hash(kind):
    data = rows_of(64, 7, kind=kind)
    (before,) = shards_of(data)
    X = data["features"].copy()
    X[0, 3] = np.nextafter(X[0, 3], kind(9))  # the last bit
    X[1, [0, 2]] *= -1  # two signs
    X[2] *= -1  # all signs
    X[3, [0, 1]] = X[3, [1, 0]]  # two values change places
    weight, label = data["weight"].copy(), data["label"].copy()
    weight[4], label[5] = np.nextafter(weight[4], 9), (label[5] + 1) % 4
    (after,) = shards_of({"features": X, "weight": weight, "label": label})
    features = [feature_hashes(shard, None) for shard in (before, after)]
    hashes = [(one, *row_hashes(shard, KNOWN, one)) for shard, one in zip((before, after), features, strict=True)]
    changed = [np.flatnonzero(one != other).tolist() for one, other in zip(*hashes, strict=True)]
    assert changed == [[0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert len(np.unique(hashes[0][2])) == 64


def test_segments_do_not_depend_on_shards():
    data = rows_of()
    whole, cut = segments(data), segments(data, (1, 2, 333, 1200, 1999))
    assert 20 < len(whole.start) < 200
    for name in ("start", "stop", "gram", "cross"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))
    assert whole.rows.sum() == 2000


def test_an_insertion_a_deletion_and_a_label_change_their_own_segments_only():
    data, more = rows_of(), rows_of(3, seed=1)
    order = np.delete(np.arange(2000), [700, 701])
    changed = {name: np.concatenate([v[order][:100], more[name], v[order][100:]]) for name, v in data.items()}
    changed["label"][1500] = (changed["label"][1500] + 1) % 4
    before, after = segments(data), segments(changed, (512, 1024))
    new = np.setdiff1d(after.gram, before.gram)
    assert 2 <= len(new) <= 6
    places = np.sort(after.start[np.isin(after.gram, new)])
    assert places[0] <= 100 and places[-1] <= 703
    relabelled = ~np.isin(after.cross, before.cross) & np.isin(after.gram, before.gram)
    (k,) = np.flatnonzero(relabelled)
    assert after.start[k] <= 1500 < after.stop[k]


def test_rows_without_variety_make_one_segment():
    data = {"features": np.zeros((500, 3), np.float32), "label": np.arange(500) % 4, "weight": np.ones(500)}
    assert len(segments(data).start) <= 1
    data["features"][::2] = 1
    assert len(segments(data).start) <= 1 + 8 * (1 + (500 >> BITS))


def test_the_set_of_classes_counts_not_its_order():
    import pyarrow as pa

    from diva_ray.engine.kernels.identity import class_hashes

    one, other = (class_hashes(pa.array(rows)) for rows in ([["a", "b"], [], ["c"]], [["b", "a"], ["a"], ["c"]]))
    np.testing.assert_array_equal(one == other, [True, False, True])


def looked_at(data, share, cuts=()):
    found = Rows()
    for shard in shards_of(data, cuts):
        found = found + alike(shard, share, feature_hashes(shard))
    return count_alike(found)


@pytest.mark.parametrize("cuts", [(), (100, 777)])
def test_rows_with_the_features_of_others_are_counted(cuts):
    data, generator = rows_of(1000, kind=np.float16), np.random.default_rng(1)
    data["features"][500:560] = data["features"][:60]  # twice
    data["features"][900:907] = data["features"][999]  # eight of them
    assert looked_at(data, 1.0, cuts) == (128, 1000)
    order = generator.permutation(1000)
    assert looked_at({name: values[order] for name, values in data.items()}, 1.0, cuts) == (128, 1000)


def test_of_many_rows_a_share_is_looked_at_and_copies_stay_together():
    data = rows_of(20_000)
    data["features"][10_000:14_000] = data["features"][:4000]
    same, looked = looked_at(data, 0.25, (7_000,))
    assert abs(looked - 5000) < 400 and abs(same / looked - 0.4) < 0.03  # 8,000 of 20,000


@pytest.mark.parametrize("given", [{}, {"group": "who"}, {"validation": True}])
def test_copies_are_told_unless_they_leave_together_or_validate_nothing(given, caplog):
    data = rows_of(200) | {"who": np.arange(200) % 190}
    data["features"][190:] = data["features"][:10]
    table = {name: data[name] for name in ("features", "label", "who")}
    alone = not given
    given = {**given, **({"validation": rows_of(80, seed=5)} if "validation" in given else {})}
    given["cluster"] = {"kind": "inline", "threads": 1}
    result = diva_ray.score(table, **given)
    assert result.summary["n_alike"] == (0 if "group" in given else 20)
    told = "20 of 200 rows have the very features of another row"
    assert (told in repr(result)) == alone == (told in Path(result.path, "report.html").read_text())
    caplog.clear()
    diva_ray.reweight(table, **given)
    assert (told in caplog.text) == alone


def test_copies_among_pairs_are_told(caplog):
    generator = np.random.default_rng(0)
    sides = {name: generator.standard_normal((60, 4)) for name in ("a", "b")}
    twice = {name: np.concatenate([X, X[:9]]) for name, X in sides.items()}
    for pairs, told in ((sides, False), (twice, True)):
        caplog.clear()
        diva_ray.score(pairs, task="pairs", features=["a", "b"], cluster={"kind": "inline", "threads": 1})
        assert ("18 of 69 rows have the very features of another row" in caplog.text) == told
