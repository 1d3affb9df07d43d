"""The aggregation benchmark, on few rows of digits in bands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diva_ray.bench import aggregate, sets
from diva_ray.bench.tables import Results


@pytest.fixture
def few(monkeypatch):
    """150 digits in bands; two draws of himalaya's search."""
    monkeypatch.setattr(aggregate, "DRAWS", 2)
    one = sets.read_set("digits_bands", None, 3)
    return replace(one, bands={name: band[:150] for name, band in one.bands.items()}, truth=one.truth[:150])


def test_every_fit_is_judged_on_the_test_rows(few):
    found = aggregate.measure(few, 0.0, 0)
    for name in aggregate.ERRORS:
        assert 0 < found[name] < 60, name
    assert found["ours"] < found["concatenated"]
    assert sum(found[f"share {name}"] for name in few.bands) == pytest.approx(1)
    results = Results()
    results.add(few.name, 0.0, found)
    errors, times, memory = aggregate.tables(results)
    assert errors.rows[0][0] == "digits_bands, 0%"
    assert len(times.rows[0]) == len(memory.rows[0]) == 3


def test_himalaya_s_weights_are_read_in_our_order(few):
    W = aggregate.himalaya(few, few.truth, 0, 1)
    assert W.shape == (few.features.shape[1], few.classes)
    fitted = (few.features @ W).argmax(1)
    assert float((fitted == torch.from_numpy(few.truth)).double().mean()) > 0.9
    mixed = W[torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(len(W) - 1)])]
    assert few.error_of(W) < few.error_of(mixed) - 5


@pytest.mark.parametrize("name", ["digits_bands", "cancer_bands"])
def test_bands_of_one_row_are_of_one_picture(name):
    one, other = sets.read_set(name, None, 1), sets.read_set(name, None, 2)
    assert len({len(band) for band in one.bands.values()}) == 1
    first = next(iter(one.bands))
    assert not np.array_equal(one.bands[first], other.bands[first]), "another seed, another split"
    if name == "digits_bands":
        pixels, lines = one.bands["pixels"], one.bands["strokes"]
        assert np.corrcoef(pixels.sum(1), lines.sum(1))[0, 1] > 0.3, "ink and strokes belong together"
