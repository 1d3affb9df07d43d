"""What a plan says of a chosen ridge: less work and memory on the driver where wide tables are reduced to tiles."""

from dataclasses import replace

import pytest

from diva_ray.core import reduction
from diva_ray.tasks.cost import Cost, cost_of


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
