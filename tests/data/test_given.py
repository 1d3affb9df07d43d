"""Weights and flags of a run, picked for rows in any order."""

import numpy as np
import pyarrow as pa
import pytest

from diva_ray.data import given as module
from diva_ray.data.given import Given
from diva_ray.data.table import from_arrow
from diva_ray.errors import InputError

ROWS = 500
DRAW = np.random.default_rng(0)
WEIGHT, FLAG = DRAW.random(ROWS), DRAW.random(ROWS) < 0.2
SAMPLES = pa.table({"id": [f"r{k}" for k in range(ROWS)], "weight": WEIGHT, "is_label_issue": FLAG})


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_rows_in_any_order_get_their_own_with_no_more_read_at_a_time_than_a_window(monkeypatch, window):
    monkeypatch.setattr(module, "WINDOW", window)
    table = from_arrow(SAMPLES)
    given, reader = Given(table, ("is_label_issue",)), table.reader()
    read, plain = [], reader.read
    monkeypatch.setattr(reader, "read", lambda a, b, names: read.append(b - a) or plain(a, b, names))
    rows = DRAW.permutation(ROWS)[:200]
    np.testing.assert_array_equal(given.weights(reader, rows), WEIGHT[rows])
    np.testing.assert_array_equal(given.flagged(reader, rows), FLAG[rows])
    given.check(reader, rows, SAMPLES["id"].take(pa.array(rows)).combine_chunks(), table.where)
    assert max(read) <= window
    ids = pa.array([f"r{k}" for k in rows[::-1]])
    with pytest.raises(InputError, match=rf"weights: .* got id 'r{rows[0]}' in .* has 'r{rows[-1]}'"):
        given.check(reader, rows, ids, table.where)


def test_a_negative_weight_is_named_by_its_own_row():
    weight = WEIGHT.copy()
    weight[123] = -1.0
    table = from_arrow(SAMPLES.set_column(1, "weight", pa.array(weight)))
    with pytest.raises(InputError, match=r"weight` must be >= 0, got -1.0 at .*row 123"):
        Given(table, ()).weights(table.reader(), np.array([400, 123, 7]))
