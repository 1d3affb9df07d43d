"""Charts stay in their frames, and their ticks can be read."""

import numpy as np
import pytest

from diva_ray.report import charts


@pytest.mark.parametrize("edges", [[-np.inf, -1, 0, 1], [-1, 0, 1, np.inf], [-1, 0, 1, 2]])
def test_histogram_stays_in_its_frame(edges):
    drawn = charts.histogram(edges, [5, 10_000, 1], [0, 2, 1], threshold=30.0)
    assert all(bar["x"] >= 0 and bar["x"] + bar["width"] <= 100.001 for bar in drawn["bars"])
    assert all(0 <= bar["issue_height"] <= bar["height"] <= 100 for bar in drawn["bars"])
    assert drawn["threshold"] == pytest.approx(100)
    assert drawn["scale"] == "logarithm"


@pytest.mark.parametrize(
    ("edges", "counts"), [([], []), ([0, 1], [0]), ([0, 1], [3, 4]), ([1, 0], [3]), ([0, np.nan], [1])]
)
def test_no_histogram_without_a_distribution(edges, counts):
    assert charts.histogram(edges, counts, [], 2.0) is None


def test_negative_bars_grow_to_the_left_and_whiskers_stay_inside():
    drawn = charts.bars([{"value": 2.0, "error": 0.5}, {"value": -1.0, "error": 3.0}, {"value": 0.0, "error": 0.0}])
    up, down, none = drawn["rows"]
    assert up["bar"]["x"] == pytest.approx(drawn["zero"])
    assert down["bar"]["x"] + down["bar"]["width"] == pytest.approx(drawn["zero"])
    assert none["bar"]["width"] == 0
    assert none["whisker"] is None
    for bar, middle in ((up, up["bar"]["x"] + up["bar"]["width"]), (down, down["bar"]["x"])):
        whisker = bar["whisker"]
        assert 0 <= whisker["x"] <= whisker["x"] + whisker["width"] <= 100
        assert whisker["x"] + whisker["width"] / 2 == pytest.approx(middle)


@pytest.mark.parametrize("values", [[4e-8, -1.6e-7], [1.5e-11, 1e-12], [-0.012345, 0.00001], [123456.0, -99999.0]])
def test_ticks_of_bars_do_not_touch(values):
    ticks = charts.bars([{"value": value} for value in values])["ticks"]
    (first, _), (second, _) = ticks[:2]
    longest = max(len(text) for _, text in ticks)
    assert longest < 10 and (second - first) / 100 * charts.ROOM > longest, ticks


def test_a_lonely_point_of_a_long_line_has_a_dot():
    y = [1.0] * 50 + [None, 2.0, None] + [1.0] * 50
    (curve,) = charts.lines(list(range(len(y))), [{"y": y}])["series"]
    assert [k for k, dot in enumerate(curve["dots"]) if dot] == [51]


def test_lines_are_ordered_by_x_and_stay_in_their_frame():
    drawn = charts.lines([3, None, 1, 2], [{"y": [0.3, 9, 0.1, 0.25], "low": [0.2], "high": [0.4]}])
    assert drawn["order"] == [2, 3, 0]
    spots = [tuple(map(float, spot.split(","))) for spot in drawn["series"][0]["lines"][0].split()]
    assert spots == sorted(spots)
    assert all(0 <= number <= 100 for spot in spots for number in spot)
    assert spots[0][1] > spots[1][1] > spots[2][1]


def test_the_axis_line_lies_below_all_data_and_whole_numbers_have_whole_ticks():
    for y in ([0.21, 0.33, 0.97], [2200.0, 2900.0, 3401.0], [0.62, 1.02], [-3.1, 0.4, 5.2], [88.0, 91.0, 93.0, 99.3]):
        ticks = charts.lines(list(range(1, len(y) + 1)), [{"y": y}])["y_ticks"]
        assert ticks[0][0] == pytest.approx(0), "the first tick is the axis line, which is the bottom of the plot"
        assert ticks[-1][0] == pytest.approx(100)
    assert [text for _, text in charts.lines([1, 2, 3], [{"y": [1, 2, 3]}])["x_ticks"]] == ["1", "2", "3"]
    assert [text for _, text in charts.lines([1], [{"y": [1]}])["x_ticks"]] == ["1"]
