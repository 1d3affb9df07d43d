"""Sums by source of which every shard holds its own alone."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diva_ray
from diva_ray.engine import context
from diva_ray.engine.packed import pack, unpack
from diva_ray.engine.reduce import ByCode, add_in_order
from diva_ray.tasks.setup.forms import EXACT_BYTES, takes_exact
from diva_ray.tasks.told.by_source import LISTED

CODES = 40


def shards(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 30, (count,), generator=generator).tolist()
    return [
        (torch.randint(0, CODES, (n,), generator=generator), torch.randn(n, 3, generator=generator).double())
        for n in rows
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 9])
def test_sums_of_the_codes_that_occur_are_those_of_every_code_to_the_bit(seed, count):
    given = shards(seed, count)
    every = [torch.zeros(CODES, 3, dtype=torch.float64).index_add_(0, codes, values) for codes, values in given]
    found = add_in_order(ByCode.of(*one) for one in given)
    assert torch.equal(found.whole(CODES), add_in_order(every))
    assert torch.equal(found.codes, torch.cat([codes for codes, _ in given]).unique())
    assert torch.equal((ByCode.none(3) + found + ByCode.none(3)).whole(CODES), found.whole(CODES))
    again = unpack(pack(found))
    assert torch.equal(again.codes, found.codes) and torch.equal(again.sums, found.sums)


def test_what_a_shard_returns_does_not_grow_with_the_sources_of_others():
    mine, values = torch.arange(100) + 10**6, torch.ones(100, 34, dtype=torch.float64)
    assert len(pickle.dumps(ByCode.of(mine, values))) < 40_000


def test_many_sources_have_estimated_standard_errors_unless_exact_ones_are_asked_for():
    sizes = (9_000, 9_000, 16, 2, 4)
    assert takes_exact(*sizes, 3) and not takes_exact(*sizes, EXACT_BYTES // (8 * 9_000) + 1)
    assert not takes_exact(300_000, 9_000, 16, 2, 4), "pairs of rows"
    assert takes_exact(10**9, 500, 512, 2, 4), "no more than the derivative itself"
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6_000, 4)).astype(np.float32)
    data = {"features": X, "label": (X[:, 0] + rng.normal(size=6_000) > 0).astype(int), "user": np.arange(6_000)}
    options = {"source": "user", "ridge": 1.0, "cluster": {"kind": "inline", "threads": 1}, "quiet": True}
    result = diva_ray.score(data, **options)
    assert result.summary["standard_errors"] != "exact"
    rows, sources = result.samples, pq.read_table(f"{result.path}/sources.parquet").to_pandas()
    sources = sources.set_index(sources["source"].astype(int)).sort_index()
    assert list(sources.index) == list(range(6_000)) and set(sources["n"]) == {1}
    for name in ("derivative", "standard_error"):  # of the one row of each
        np.testing.assert_allclose(sources[name].to_numpy(), rows[name].to_numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_sources_of_a_shard_are_found_among_all_sources(seed):
    rng = np.random.default_rng(seed)
    names = [f"s{k}" for k in rng.permutation(200)] + ([None] if seed % 2 else [])
    column = pa.array(rng.choice(np.array(names, object), rng.integers(1, 80)), pa.string())
    held, place = context._sources_held(column, pa.array(names, pa.string()))
    assert held.tolist() == sorted({names.index(one) for one in column.to_pylist()})
    assert [names[k] for k in held[place]] == column.to_pylist()


def test_a_summary_names_some_of_very_many_sources_and_the_table_all():
    rng = np.random.default_rng(0)
    n, X = 2 * LISTED + 400, rng.normal(size=(2 * LISTED + 400, 4)).astype(np.float32)
    y = (X[:, 0] + rng.normal(size=n) > 0).astype(int)
    y[n // 2 :] = rng.integers(0, 2, n - n // 2)  # a source of two rows tells little; half of them are noise
    data = {"features": X, "label": y, "user": np.arange(n) // 2}
    result = diva_ray.reweight(
        data, source="user", level="source", ridge=1.0, cluster={"kind": "inline", "threads": 1}, quiet=True
    )
    sources = pq.read_table(f"{result.path}/sources.parquet").to_pandas()
    assert len(sources) == result.summary["n_sources"] == n // 2 > LISTED == len(result.summary["sources"])
    np.testing.assert_allclose(sources["weight"], sources["weight"].sort_values())
    weights = result.samples.to_pandas().groupby("source")["weight"].mean()
    np.testing.assert_allclose(sources["weight"], weights[sources["source"].astype(int)], rtol=1e-6)
    ends = [row["source"] for row in result.summary["sources"]]
    assert ends == [*sources["source"][: LISTED // 2], *sources["source"][-LISTED // 2 :]]
    page = result.folder.read("report.html").decode()
    assert f"{n // 2 - 200:,} more rows are left out" in page
