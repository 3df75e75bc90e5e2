"""The simulations behind benchmarks/curves.md, with fewer runs: what fails when somebody looks, and what holds."""

from __future__ import annotations

import math

import pytest

from benchmarks.curves import CHOICES, CONFIDENCE, chosen, pointwise_upper, specificity_outside, worst
from kizu.models.bands import simultaneous_upper

RUNS = 400
ROOM = 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""Three standard errors of a share of 5 %."""


def test_a_threshold_picked_by_looking_breaks_a_bound_that_was_made_for_one_threshold() -> None:
    look = CHOICES["best trade-off"]
    assert chosen(100, RUNS, look, pointwise_upper(100)).exceeded > 0.1
    assert chosen(100, RUNS, look, simultaneous_upper(100, CONFIDENCE)[:100]).exceeded <= 0.05


@pytest.mark.parametrize("ng", [60, 300])
def test_the_band_holds_for_whoever_picks_the_worst_threshold(ng: int) -> None:
    assert worst(ng, RUNS, pointwise_upper(ng)) > 0.3
    assert worst(ng, RUNS, simultaneous_upper(ng, CONFIDENCE)[:ng]) <= 0.05 + ROOM


def test_the_bounds_of_the_specificity_hold_along_the_curve_too() -> None:
    pointwise, band = specificity_outside(100, RUNS)
    assert pointwise > 0.4
    assert band <= 0.05 + ROOM
