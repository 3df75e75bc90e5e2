"""Brush marks and faults: strength, direction and period are those that were asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kizu.training.data.texture_design import FAULTS, Floats, Grain, Surface, brush, cloud

GRAIN = Grain(direction=0.5, period=0.03, length=0.2)


def fields(grain: Grain, count: int = 40, size: int = 64) -> Floats:
    return np.stack([brush(grain, size, np.random.default_rng(number)) for number in range(count)])


def orientation(marks: Floats) -> float:
    """Direction of the marks in radians, 0 to π, by the structure tensor: slopes are steepest across them."""
    gy, gx = np.gradient(marks, axis=(1, 2))
    across = 0.5 * np.arctan2(2 * (gx * gy).mean(), (gx**2 - gy**2).mean())
    return float((across + np.pi / 2) % np.pi)


def blank(size: int = 64, grain: Grain = GRAIN, seed: int = 0) -> Surface:
    return Surface(
        grain=grain,
        texture=brush(grain, size, np.random.default_rng(seed)),
        relief=np.zeros((size, size), np.float32),
        film=np.zeros((size, size), np.float32),
        film_colour=np.ones(3, np.float32),
    )


@pytest.mark.parametrize("grain", [GRAIN, replace(GRAIN, period=0.012, length=0.1), replace(GRAIN, direction=2.0)])
def test_marks_have_mean_0_and_standard_deviation_1(grain: Grain) -> None:
    marks = fields(grain, count=80)
    assert abs(marks.mean()) < 0.05
    assert 0.93 < marks.std() < 1.07


@pytest.mark.parametrize("direction", [0.0, 0.4, 1.2, 2.5])
def test_marks_run_in_the_grains_direction(direction: float) -> None:
    error = orientation(fields(replace(GRAIN, direction=direction))) - direction
    assert abs((error + np.pi / 2) % np.pi - np.pi / 2) < 0.06


def test_a_longer_period_makes_wider_marks() -> None:
    def roughness(period: float) -> float:
        marks = fields(replace(GRAIN, period=period))
        return float(np.abs(np.diff(marks, axis=1)).mean())

    assert roughness(0.06) < 0.75 * roughness(0.03)


def test_streaks_make_tails_heavier_than_a_normal_distributions() -> None:
    marks = fields(replace(GRAIN, period=0.016), count=80, size=128).astype(np.float64)
    assert (marks**4).mean() / (marks**2).mean() ** 2 > 3.2


def test_clouds_are_slow_and_of_unit_strength() -> None:
    clouds = np.stack([cloud(64, 0.3, np.random.default_rng(number)) for number in range(200)])
    assert 0.9 < clouds.std() < 1.1
    assert np.abs(np.diff(clouds, axis=2)).mean() < 0.1


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("defect", list(FAULTS))
def test_every_fault_can_be_seen_somewhere_in_the_image(defect: str, size: int) -> None:
    for seed in range(60):
        surface = blank(size)
        seen = FAULTS[defect](surface, np.random.default_rng(seed))
        assert seen.shape == (size, size)
        assert seen.any()


@pytest.mark.parametrize(
    ("defect", "changed"),
    [
        ("scratch", {"relief"}),
        ("stain", {"film", "film_colour"}),
        ("pit", {"relief"}),
        ("distortion", {"texture"}),
        ("fold", {"relief"}),
        ("smear", {"texture"}),
    ],
)
def test_a_fault_changes_its_own_layers_alone(defect: str, changed: set[str]) -> None:
    before, after = blank(), blank()
    FAULTS[defect](after, np.random.default_rng(1))
    layers = ("texture", "relief", "film", "film_colour")
    assert {name for name in layers if not np.array_equal(getattr(before, name), getattr(after, name))} == changed


def variances(defect: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances of the marks where a fault is seen, with it and without, one of each per draw."""
    faulty, good = [], []
    for seed in range(120):
        before, after = (blank(grain=replace(GRAIN, period=0.016), seed=seed) for _ in range(2))
        seen = FAULTS[defect](after, np.random.default_rng(1000 + seed))
        faulty.append(after.texture[seen].var())
        good.append(before.texture[seen].var())
    return np.array(faulty), np.array(good)


def test_distorted_grain_is_as_strong_as_the_grain_it_replaces() -> None:
    faulty, good = variances("distortion")
    assert 0.8 < faulty.mean() / good.mean() < 1.2


def test_smeared_grain_is_weaker_than_the_grain_it_replaces() -> None:
    faulty, good = variances("smear")
    assert faulty.mean() / good.mean() < 0.4


@pytest.mark.parametrize("defect", ["distortion", "smear"])
def test_a_fault_of_the_grain_keeps_the_mean_of_its_place(defect: str) -> None:
    for seed in range(40):
        before, after = blank(seed=seed), blank(seed=seed)
        seen = FAULTS[defect](after, np.random.default_rng(seed))
        assert abs(float(after.texture[seen].mean() - before.texture[seen].mean())) < 0.12


def test_a_second_stain_has_the_firsts_colour() -> None:
    for seed in range(10):
        random, surface = np.random.default_rng(seed), blank()
        FAULTS["stain"](surface, random)
        first = surface.film_colour.copy()
        FAULTS["stain"](surface, random)
        assert np.array_equal(surface.film_colour, first)
