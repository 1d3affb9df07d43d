"""Runs that choose a ridge find the same whether A is reduced to eigenvalues or to tiles."""

import numpy as np
import pytest

import diva_ray
from diva_ray.core import reduction
from tests.data.tables import INLINE, problem

X, LABEL = problem(n=120, d=11)
GROUP = np.arange(120) // 2
DATA = {"image": X[:, :6], "text": X[:, 6:], "label": LABEL, "group": GROUP, "value": X @ np.arange(11.0) + LABEL}
OPTIONS = {"features": ["image", "text"], "cluster": INLINE, "quiet": True, "precision": "float64"}


def grid_of(result):
    """The ridges tried, and the left-out error of each."""
    return np.array([[one["ridge"], one["squared_error"]] for one in result.summary["ridge_grid"]])


@pytest.fixture
def tiles(monkeypatch):
    """A call that makes later runs reduce to tiles of 4 columns, and says how many did."""
    reduced, reduce = [], reduction.block_tridiagonal_

    def begin():
        monkeypatch.setattr(reduction, "NARROWEST", 1)
        monkeypatch.setattr(reduction, "ROWS", 1e9)
        monkeypatch.setattr(reduction, "WIDTH", 4)
        monkeypatch.setattr("diva_ray.core.grid.block_tridiagonal_", lambda A: reduced.append(len(A)) or reduce(A))
        return reduced

    return begin


@pytest.mark.parametrize(
    "more",
    [{}, {"group": "group"}, {"intercept": False}, {"label": "value", "task": "regression"}, {"precision": "float32"}],
    ids=str,
)
def test_a_score_finds_the_same_ridge_in_either_form(more, tiles):
    expected = diva_ray.score(DATA, **{**OPTIONS, **more})
    reduced = tiles()
    found = diva_ray.score(DATA, **{**OPTIONS, **more})
    assert reduced == [11]
    np.testing.assert_allclose(grid_of(found), grid_of(expected), rtol=1e-4 if "precision" in more else 1e-10)
    assert found.summary["ridge"] == pytest.approx(expected.summary["ridge"], rel=1e-12)


def test_fewer_rows_than_columns_have_the_same_grid_in_either_form(tiles):
    few = {"features": np.random.default_rng(3).standard_normal((15, 40)), "label": LABEL[:15]}
    options = {**OPTIONS, "features": "features"}
    expected, reduced = diva_ray.score(few, **options), tiles()
    found = diva_ray.score(few, **options)
    assert found.summary["form"] == "dual" and reduced == [15]
    np.testing.assert_allclose(grid_of(found), grid_of(expected), rtol=1e-7)  # conditions up to 1e8


@pytest.mark.parametrize("rows", [25, 40])  # on the space that the rows span, and on the columns themselves
def test_every_job_chooses_the_same_ridge_for_fewer_rows_than_columns(rows):
    few = {"features": np.random.default_rng(3).standard_normal((rows, 50)) * np.logspace(0, -2, 50)}
    few |= {"label": (few["features"][:, :3].sum(1) > 0) * 1, "trust": 1.0 * (np.arange(rows) % 3 == 0)}
    options = {**OPTIONS, "features": "features"}
    expected = diva_ray.score(few, **options).summary
    assert expected["form"] == "dual"
    weighed, trained = (
        diva_ray.reweight(few, steps=1, folds=2, **options), diva_ray.train(few, few, epochs=1, seeds=1, **options)
    )  # fmt: skip
    for ridge in (weighed.summary["ridge_uniform"], trained.summary["ridge"]):
        assert ridge == pytest.approx(expected["ridge"], rel=1e-6)
    heard = {"validation_weight": "trust", **options}
    plain, trusted = (diva_ray.score(few, method=method, **heard).summary for method in ("plain", "trusted"))
    assert plain["form"] == "dual" and trusted["ridge"] == pytest.approx(plain["ridge"], rel=1e-6)


def test_bands_weigh_the_same_in_either_form(tiles):
    options = {**OPTIONS, "starts": 1, "evaluations": 8}
    expected, reduced = diva_ray.aggregate(DATA, **options), tiles()
    found = diva_ray.aggregate(DATA, **options)
    assert set(reduced) == {5, 6, 11}
    for name, band in expected.summary["bands"].items():
        for figure in ("share", "squared_error_alone"):
            assert found.summary["bands"][name][figure] == pytest.approx(band[figure], rel=1e-6)
