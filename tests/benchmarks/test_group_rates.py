"""The simulation of benchmarks/group_rates.py, with fewer runs: bounds on parts fail on new boards, ours do not."""

from __future__ import annotations

import math

import pytest

from benchmarks.group_rates import bound_figures

RUNS = 300
ROOM = 3 * math.sqrt(0.025 * 0.975 / RUNS)
"""Three standard errors of a share of 2.5 %."""


@pytest.mark.parametrize("boards", [5, 30])
@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.5])
def test_bounds_for_new_boards_fail_as_rarely_as_they_say(boards: int, correlation: float) -> None:
    found = bound_figures(0.05, boards, correlation, RUNS)
    assert found["groups"].above <= 0.025 + ROOM
    assert found["groups"].below <= 0.025 + ROOM
    assert found["these boards"].above <= 0.025 + ROOM
    assert found["these boards"].below <= 0.025 + ROOM
    if correlation:
        assert found["parts"].above > 0.1
        assert found["t"].above > 0.05


def test_bounds_narrow_with_the_number_of_boards_and_their_likeness() -> None:
    few, many, unlike = (bound_figures(0.2, *scenario, 100) for scenario in ((10, 0.2), (60, 0.2), (60, 0.5)))
    assert many["groups"].width < 0.5 * few["groups"].width
    assert many["groups"].width < many["one of each"].width
    assert many["groups"].width < unlike["groups"].width
