from __future__ import annotations

import itertools

import numpy as np
import pytest

from kizu.training.evaluation.charts import round_values
from kizu.training.evaluation.curves import Axis, Frame, Level, Series, line_chart, turning_point

FRAME = Frame(left=0, top=0, width=100, height=100)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.strip("MZ").split("L"))]


def test_values_fall_where_the_axes_say():
    series = Series("a", [0, 5, 10], [0, 1, 2], lower=[0, 0.5, 1], upper=[0, 1.5, 2])
    chart = line_chart([series], frame=FRAME, y_range=(0, 2))
    assert chart is not None
    [curve] = chart.curves
    assert points(curve.path) == [(0, 100), (50, 50), (100, 0)]
    assert points(curve.band) == [(0, 100), (50, 25), (100, 0), (100, 50), (50, 75), (0, 100)]
    assert [(tick.at, tick.text) for tick in chart.x_ticks] == [(0, "0"), (40, "4"), (80, "8")]


def test_without_points_there_is_no_chart():
    assert line_chart([]) is None
    assert line_chart([Series("a", [], [])]) is None
    assert line_chart([Series("a", [0.0], [1.0])], log_x=True) is None


def test_a_single_point_is_a_dot():
    chart = line_chart([Series("a", [3.0], [-0.5], [-0.6], [-0.4])], frame=FRAME)
    assert chart is not None
    [curve] = chart.curves
    assert (curve.path, curve.band, len(curve.dots)) == ("", "", 1)
    assert curve.dots[0].title == "a −0.5 [−0.6, −0.4] at 3"


def test_points_without_a_place_are_left_out_and_the_rest_put_in_order():
    chart = line_chart([Series("a", [2, 1, 3], [1.0, 0.0, float("nan")])], frame=FRAME, x_range=(0, 2))
    assert chart is not None
    assert [x for x, _ in points(chart.curves[0].path)] == [50, 100]


def test_asinh_is_straight_near_zero_and_logarithmic_far_away():
    axis = Axis(-0.1, 100.0, 100.0, -100.0, kind="asinh", linear_until=0.1)
    near = axis.positions([-0.02, 0.0, 0.02])
    assert near[0] - near[1] == pytest.approx(near[1] - near[2], rel=0.02)
    far = axis.positions([1.0, 10.0, 100.0])
    assert far[0] - far[1] == pytest.approx(far[1] - far[2], rel=0.02)
    texts = [tick.text for tick in axis.ticks()]
    assert "0" in texts
    assert "100" in texts
    assert all(abs(a.at - b.at) >= 15 for a, b in itertools.combinations(axis.ticks(), 2))


def test_negative_figures_keep_their_place_on_a_symmetric_axis():
    kids = [5.0, 0.5, -0.004]
    chart = line_chart([Series("KID", [1, 2, 3], kids)], frame=FRAME, linear_until=0.02)
    assert chart is not None
    heights = [y for _, y in points(chart.curves[0].path)]
    zero = next(tick.at for tick in chart.y_ticks if tick.text == "0")
    assert heights == sorted(heights)
    assert heights[2] > zero > heights[1]


def test_log_x_has_equal_steps_for_equal_factors():
    chart = line_chart([Series("a", [1, 10, 100], [1, 1, 1])], frame=FRAME, log_x=True)
    assert chart is not None
    assert [x for x, _ in points(chart.curves[0].path)] == [0, 50, 100]
    assert {"1", "10", "100"} <= {tick.text for tick in chart.x_ticks}


def test_levels_widen_the_axis_and_have_bands():
    chart = line_chart([Series("a", [0, 1], [1, 1])], frame=FRAME, levels=[Level("floor", 0, -1, 3)], y_range=None)
    assert chart is not None
    [level] = chart.levels
    assert level.band is not None
    top, height = level.band
    assert 0 <= top < level.y < top + height <= 100


def test_a_long_series_is_thinned_without_losing_a_spike():
    values = np.zeros(50_000)
    values[31_234] = 1.0
    chart = line_chart([Series("a", list(range(50_000)), values.tolist())], frame=FRAME, y_range=(0, 1))
    assert chart is not None
    drawn = points(chart.curves[0].path)
    assert len(drawn) < 250
    assert min(y for _, y in drawn) == 0


def test_constant_series_have_an_axis():
    chart = line_chart([Series("a", [1, 2], [0, 0])], frame=FRAME)
    assert chart is not None
    assert chart.y_ticks


def test_the_turning_point_is_only_for_figures_that_span_magnitudes():
    assert turning_point([5.0, 0.1], 0.02) == 0.02
    assert turning_point([0.1, 0.05], 0.02) is None
    assert turning_point([5.0, 0.1], None) == 0.1
    assert turning_point([0.0], 0.02) is None


def test_round_values():
    assert round_values(0, 40) == [0, 10, 20, 30, 40]
    assert round_values(-0.018, 0.024) == [-0.01, 0, 0.01, 0.02]
