"""What a plan says of a chosen ridge: less work and memory on the driver where wide tables are reduced to tiles."""

from dataclasses import replace

import numpy as np
import pytest

import diva_ray
from diva_ray.config import TuneConfig
from diva_ray.core import reduction
from diva_ray.tasks.fit.derived import RidgeGrid, may_lie_further
from diva_ray.tasks.setup.cost import NEAR, Cost, Other, cost_of, tried
from diva_ray.tasks.setup.forms import SAMPLED
from diva_ray.tasks.setup.work import tuning_work


def cost(p: int, outputs: int = 10, *, gpus: bool = False) -> Cost:
    """The cost of a table of three times as many rows as columns."""
    return cost_of(3 * p, p, outputs, "classification", errors="none", double=False, auto=True, gpus=gpus)


def test_a_wide_table_is_reduced_to_tiles_but_on_gpus_and_for_more_classes_than_columns():
    p = 2 * reduction.NARROWEST
    wide = cost(p)
    assert wide.tiles() and not cost(p, gpus=True).tiles() and not replace(wide, auto=False).tiles()
    assert not cost(reduction.NARROWEST - 1).tiles()
    many = cost(p, 3 * p)
    assert not many.kept and not many.tiles()


def test_tiles_take_less_of_the_driver_and_more_of_the_passes():
    p = 2 * reduction.NARROWEST
    tiles, eigenvalues = cost(p), cost(p, gpus=True)
    assert tiles.driver() < eigenvalues.driver() / 4
    factors = 4 * 20 * 2 * reduction.WIDTH * p
    assert factors < tiles.state() - 44 * p * p < 3 * factors
    more = tiles.operations() - eigenvalues.operations()
    assert more == pytest.approx(20 * 8 * reduction.WIDTH * 3 * p * p)


@pytest.mark.parametrize(
    ("p", "outputs", "vectors"),
    [(1280, 10, 32), (384, 20, 25), (512, 100, 8), (65, 10, 32), (385, 1, 32), (2048, 40, 25)],
)
def test_standard_errors_cost_half_of_a_derivative_or_eight_sign_vectors(p, outputs, vectors):
    one = cost_of(60_000, p, outputs, "classification", errors="estimate", double=False, auto=False, gpus=False)
    none = cost_of(60_000, p, outputs, "classification", errors="none", double=False, auto=False, gpus=False)
    assert (one.vectors, none.vectors) == (vectors, 0)
    more = one.operations() - none.operations()
    assert more == 4 * 60_000 * p * outputs * vectors
    assert more <= none.operations() / 2 or vectors == 8 or p < 1024
    assert one.errors() == f"{vectors} sign vectors"
    shared, driver = one.seconds(1e11)
    assert driver == pytest.approx(one.driver() / 3.5e10)
    assert shared == pytest.approx(one.operations() / 7e10 + one.touched())


@pytest.mark.parametrize(
    ("columns", "precision", "told"), [(5000, "auto", 1), (5000, "float64", 0), (50, "auto", 0), (7000, "auto", 0)]
)
def test_a_plan_says_what_float64_products_would_take_where_that_is_much(columns, precision, told):
    """With fewer rows than columns the rows themselves are smaller than such sums."""
    rows = {"features": np.zeros((5500, columns), np.float16), "label": np.arange(5500) % 3}
    plan = diva_ray.score(rows, cluster="inline", precision=precision, ridge=1.0, plan=True, quiet=True)
    assert sum("products in float64" in note and "GiB more a worker" in note for note in plan.notes) == told


def test_fewer_rows_than_columns_cost_what_their_kernel_matrix_does():
    rows = {"features": np.zeros((600, 5000), np.float16), "label": np.arange(600) % 3}
    few, many = (
        diva_ray.score(rows, cluster="inline", standardize="none", ridge=ridge, plan=True, quiet=True)
        for ridge in ("auto", 0)  # without a penalty there is no such form
    )
    assert few.alone < many.alone / 10 and few.sizes.sums < many.sizes.sums / 5
    one = cost_of(600, 5000, 3, "classification", errors="auto", double=False, auto=True, gpus=False, dual=True)
    assert one.exact and one.operations() == 0
    assert one.driver() == pytest.approx(600**2 * (4 * 5000 + 20 * 600 + 44 * 3))


def test_a_grid_is_only_too_short_where_the_loss_still_falls_at_its_end():
    ridges = [0.1, 1.0, 10.0]
    falls, settled, inside, alone = ([1.0, 2.0, 3.0], [1.0, 1.00001, 3.0], [2.0, 1.0, 2.0], [float("inf"), 2.0, 1.0])
    grids = [
        RidgeGrid(list(zip(ridges, losses, strict=True)), int(np.argmin(losses)))
        for losses in (falls, settled, inside, alone)
    ]
    assert list(map(may_lie_further, grids)) == [True, False, False, True]
    assert not any(map(may_lie_further, (grids[0]._replace(chosen=1), RidgeGrid([(1.0, 2.0)]), RidgeGrid([]))))


def tuning_seconds(space: dict, **options) -> tuple[float, str]:
    """Seconds that the products of a search over bands of 1,280 and 384 columns are said to take, and what is said of
    it; verdicts take more, however few the rows."""
    one = cost_of(1200, 1665, 10, "classification", errors="auto", double=False, auto=True, gpus=False)
    config = TuneConfig(space={name: {"choice": values} for name, values in space.items()}, **options)
    config.data.features = ["image", "text"]
    work, notes = tuning_work(config, one, [1280, 384], ("image", "text"))
    products = [(times, part) for times, part in work if isinstance(part, Cost)]
    (judged,) = [(times, part) for times, part in work if isinstance(part, Other)]
    assert f"about {judged[0]:.0f} derivatives" in notes[1] and judged[1].seconds(1e11) == (0.3, 0.0)
    return sum(times * sum(part.seconds(1e11)) for times, part in products), notes[1]


def test_a_search_costs_what_its_choices_cost():
    """Neither a grid where the ridge is given, nor all columns where they are projected, nor folds of trials that
    asha stops: each was reckoned as a whole derivative of all bands."""
    given, _ = tuning_seconds({"ridge": [0.1, 1.0, 10.0], "rule": ["none", "shrink"]}, search="grid")
    chosen, told = tuning_seconds({"ridge": ["auto"], "rule": ["none", "shrink"]}, search="grid")
    assert given < chosen and "at most 5 passes for ridges" in told
    narrow, _ = tuning_seconds(
        {"ridge": [0.1, 1.0, 10.0], "projection": [16], "rule": ["none", "shrink"]}, search="grid"
    )
    assert narrow < given / 5
    space = {"ridge": [0.1, 1.0], "rule": ["none", "shrink"], "shares": ["auto"]}
    (whole, told), (stopped, less) = (tuning_seconds(space, search="grid", scheduler=one) for one in ("none", "asha"))
    assert "at most 5 descents" in told and "at most 2 descents" in less and stopped < 0.6 * whole


def test_a_plan_says_where_workers_that_were_asked_for_have_nothing_to_do():
    data = {"features": np.random.default_rng(0).standard_normal((300, 4)), "label": np.arange(300) % 2}
    told = diva_ray.score(data, plan=True, cluster={"kind": "local", "workers": 2}, quiet=True).lines()
    assert "note       cluster.workers=2: 1 shard(s) keep no more than 1 busy" in told
    told = diva_ray.score(data, plan=True, cluster={"kind": "local", "workers": 1}, quiet=True).lines()
    assert not any("busy" in line for line in told)


def pool_plan(rows: int, **options):
    draw = np.random.default_rng(0)
    core, pool = (
        {"features": draw.standard_normal((n, 64), dtype=np.float32), "label": np.arange(n) % 4} for n in (500, rows)
    )
    return diva_ray.extend(core, pool, plan=True, quiet=True, cluster={"kind": "inline", "threads": 1}, **options)


def test_a_pool_costs_a_read_a_round_and_what_stays_of_its_rows():
    few, many = pool_plan(2_000), pool_plan(200_000)
    assert many.seconds > 10 * few.seconds
    assert pool_plan(200_000, rounds=20).seconds > 1.5 * many.seconds
    more = many.sizes.need("memory", 1) - few.sizes.need("memory", 1)
    assert more >= 198_000 * (24 + 52), "keys while they are sorted, and then key, label, weight, scores, weights"
    assert many.sizes.near == 125_000 * 65 * 4 and pool_plan(200_000, budget=2_000).sizes.near == 1_250 * 65 * 4


def test_neighbours_are_only_sought_where_doubt_is_asked_for_and_trials_cost_by_arm():
    draw = np.random.default_rng(0)
    data = {"features": draw.standard_normal((20_000, 32)), "label": np.arange(20_000) % 4}
    options = {"plan": True, "quiet": True, "cluster": {"kind": "inline", "threads": 1}}
    asked = diva_ray.score(data, **options).seconds
    assert asked - diva_ray.score(data, labeller_doubt="off", **options).seconds > NEAR * 20_000 * SAMPLED
    numbers = data | {"label": draw.standard_normal(20_000)}  # fewer arms
    safe, other = (diva_ray.reweight(one, **options).seconds for one in (data, numbers))
    trials = tried(20_000, 33, 4, 33, classes=True).rest - tried(20_000, 33, 1, 21, classes=False).rest
    assert safe - other > trials > 1.0


def test_a_small_validation_table_is_counted_as_what_it_is():
    """Its rows, not those of the table, decide on exact standard errors, and what those take."""
    options = {"errors": "auto", "double": False, "auto": False, "gpus": False}
    few, all_rows = (cost_of(200_000, 65, 6, "classification", validating=v, **options) for v in (9_000, None))
    assert few.exact and not all_rows.exact
    assert few.operations() - 2.0 * 200_000 * 9_000 * 71 < all_rows.operations() < few.operations()
