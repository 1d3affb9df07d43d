"""Rows are known by their content: every change shows, and where rows lie does not matter."""

from itertools import pairwise

import numpy as np
import pytest

from diva_ray.data.shards import Columns, Extent, read_shard
from diva_ray.data.table import from_arrays
from diva_ray.engine.identity import fragments, join, row_hashes
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
        found = found + fragments(shard, KNOWN, BITS)
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
    hashes = [row_hashes(shard, KNOWN) for shard in (before, after)]
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

    from diva_ray.engine.identity import class_hashes

    one, other = (class_hashes(pa.array(rows)) for rows in ([["a", "b"], [], ["c"]], [["b", "a"], ["a"], ["c"]]))
    np.testing.assert_array_equal(one == other, [True, False, True])
