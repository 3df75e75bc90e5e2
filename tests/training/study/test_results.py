"""Summaries of arms over seeds, and gains paired by seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import t as student

from kizu.models.rates import Rate
from kizu.training.study.arms import ALL, HALF, Arm, OneClassKind, RealData, Remedy, Source, known_arms
from kizu.training.study.figures import MEASURES
from kizu.training.study.results import (
    ArmResult,
    Gain,
    curve_of,
    curve_source,
    paired_gain,
    summary,
)


def test_a_paired_gain_is_the_mean_difference_with_students_interval():
    first, second = [0.9, 0.8, 0.95], [0.85, 0.8, 0.8]
    gain = paired_gain(first, second)
    mean, deviation = 0.2 / 3, np.std([0.05, 0.0, 0.15], ddof=1)
    reach = student.ppf(0.975, 2) * deviation / 3**0.5
    assert (gain.value, gain.lower, gain.upper) == pytest.approx((mean, mean - reach, mean + reach))


def test_the_interval_covers_the_true_gain_as_often_as_it_says():
    rng = np.random.default_rng(1)
    shared = rng.normal(0.8, 0.1, (3000, 5))  # what a seed does to both arms alike
    first, second = shared + rng.normal(0.03, 0.02, (3000, 5)), shared + rng.normal(0, 0.01, (3000, 5))
    gains = [paired_gain(a, b) for a, b in zip(first, second, strict=True)]
    bounds = [(gain.lower, gain.upper) for gain in gains if gain.lower is not None and gain.upper is not None]
    assert len(bounds) == len(gains)
    covered = np.mean([lower <= 0.03 <= upper for lower, upper in bounds])
    assert covered == pytest.approx(0.95, abs=0.016)  # four standard errors


def test_one_pair_has_no_interval():
    gain = paired_gain([0.9], [0.8])
    assert (gain.value, gain.lower, gain.upper) == (pytest.approx(0.1), None, None)


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.01, 0.2, "no significant difference"),
        (0.0, 0.2, "no significant difference"),
        (-0.2, 0.0, "no significant difference"),
        (-0.2, -0.01, "worse"),
        (None, None, "one pair, no interval"),
    ],
)
def test_a_verdict_follows_the_interval(lower: float | None, upper: float | None, verdict: str) -> None:
    assert Gain(0.1, lower, upper).verdict == verdict


def result(arm: Arm, seed: int, value: float) -> ArmResult:
    at = [
        {
            "target_fnr": target,
            "threshold": 0.0,
            "resolution_limited": target == 0.001 and seed == 1,
            "specificity": Rate(round(1000 * value), 1000).as_dict(),
            "fnr": Rate(10 * seed, 1000).as_dict(),
        }
        for target in MEASURES
        if target != "auroc"
    ]
    return ArmResult(
        arm=arm,
        seed=seed,
        n_ok=50,
        n_ng=20,
        synthetic_ng=0,
        seconds={"total": 10.0 * (seed + 1)},
        stages={},
        interrupted=seed == 2,
        figures={"auroc": {"value": value}, "at": at},
    )


PERLIN = Arm(HALF, Source.PERLIN)


def test_a_summary_pairs_by_seed_and_not_by_position() -> None:
    results = [result(Arm(HALF), seed, 0.5 + 0.1 * seed) for seed in (0, 1, 2)]
    results += [result(PERLIN, seed, 0.6 + 0.1 * seed) for seed in (2, 0, 1)]
    half, other = summary(results)
    assert half.gains == {}
    gain = other.gains[Arm(HALF)]["auroc"]
    assert (gain.value, gain.lower, gain.upper) == pytest.approx((0.1, 0.1, 0.1))
    assert other.seeds == (0, 1, 2)
    assert other.measures["auroc"].values == pytest.approx((0.6, 0.7, 0.8))
    assert other.measures["auroc"].spread == pytest.approx(0.1)
    assert other.seconds == 20
    assert other.interrupted


def test_a_gain_takes_only_seeds_that_both_arms_ran() -> None:
    results = [result(Arm(HALF), seed, 0.5) for seed in (0, 1)] + [result(PERLIN, seed, 0.6) for seed in (1, 2)]
    gain = summary(results)[1].gains[Arm(HALF)]["auroc"]
    assert (gain.value, gain.lower, gain.upper) == (pytest.approx(0.1), None, None)


def test_bounds_of_an_arm_are_the_outermost_of_its_seeds() -> None:
    arm = summary([result(Arm(HALF), seed, value) for seed, value in ((0, 0.5), (1, 0.9))])[0]
    at = arm.at[0.001]
    assert at.specificity.lower == Rate(500, 1000).lower
    assert at.specificity.upper == Rate(900, 1000).upper
    assert at.fnr.mean == 0.005
    assert at.resolution_limited
    assert not arm.at[0.01].resolution_limited


def test_an_arm_of_the_curve_is_compared_with_its_own_real_data_alone() -> None:
    five = RealData(ng_share=0.05)
    arms = [Arm(HALF), Arm(ALL), Arm(five), Arm(five, Source.GAN_PLACED)]
    by_arm = {found.arm: found for found in summary([result(arm, 0, 0.5) for arm in arms])}
    assert list(by_arm[Arm(five, Source.GAN_PLACED)].gains) == [Arm(five)]
    assert by_arm[Arm(five)].gains == {}
    assert list(by_arm[Arm(ALL)].gains) == [Arm(HALF)]


def test_sources_without_training_are_compared_with_the_gan_and_remedies_are_not() -> None:
    placed = Arm(HALF, Source.GAN_PLACED)
    remedy = Arm(HALF, Source.GAN_PLACED, remedy=Remedy.QUARTER_RATIO)
    arms = [Arm(HALF), PERLIN, placed, remedy, Arm(HALF, strong_augment=True), Arm(one_class=OneClassKind.MEMORY)]
    by_arm = {found.arm: found for found in summary([result(arm, 0, 0.5) for arm in arms])}
    assert [arm for arm, found in by_arm.items() if placed in found.gains] == [PERLIN]
    assert list(by_arm[remedy].gains) == [Arm(HALF)]


def test_a_figure_is_found_by_its_target() -> None:
    found = result(Arm(HALF), 3, 0.4)
    assert found.value("auroc") == 0.4
    assert found.value(0.01) == 0.4
    assert found.at(0.05)["fnr"]["count"] == 30


@pytest.mark.parametrize("arm", known_arms((0.05,)), ids=lambda arm: arm.key)
def test_a_result_survives_its_file(arm: Arm) -> None:
    found = result(arm, 1, 0.4)
    assert ArmResult.read(arm, json.loads(json.dumps(found.as_dict()))) == found


def test_json_of_arms_has_their_fields_and_labels() -> None:
    remedy = Arm(HALF, Source.GAN_PLACED, remedy=Remedy.FILTERED_BY_D)
    [_, found] = [one.as_dict() for one in summary([result(Arm(HALF), 0, 0.5), result(remedy, 0, 0.6)])]
    assert json.loads(json.dumps(found)) == found
    assert (found["arm"], found["against"]) == ("half + GAN placed, filtered by D", "half")
    assert (found["share"], found["ng_share"]) == (0.5, 1.0)
    assert (found["source"], found["remedy"]) == ("gan-placed", "filtered-by-d")
    assert (found["strong_augment"], found["one_class"]) == (False, None)
    assert found["gains"]["half"]["auroc"] == {"value": pytest.approx(0.1), "lower": None, "upper": None}


def test_the_curve_ends_at_all_of_the_ng_and_takes_the_gan_where_it_ran() -> None:
    one, five = RealData(ng_share=0.01), RealData(ng_share=0.05)
    arms = [Arm(ALL), Arm(five), Arm(five, Source.GAN_PLACED), Arm(one), Arm(one, Source.PERLIN)]
    found = summary([result(arm, 0, 0.5) for arm in [*arms, Arm(ALL, Source.GAN_PLACED)]])
    curve = curve_of(found)
    assert curve is not None
    assert curve.source is Source.GAN_PLACED
    assert [(alone.arm, added and added.arm) for alone, added in curve.points] == [
        (Arm(one), None),
        (Arm(five), Arm(five, Source.GAN_PLACED)),
        (Arm(ALL), Arm(ALL, Source.GAN_PLACED)),
    ]
    assert curve_of(found[:1]) is None


def test_without_a_gan_the_curve_takes_what_was_run_most() -> None:
    bases = [RealData(ng_share=share) for share in (0.01, 0.05)]
    arms = [Arm(base, Source.CUTPASTE) for base in bases] + [Arm(bases[0], Source.PERLIN)]
    assert curve_source(summary([result(arm, 0, 0.5) for arm in arms])) is Source.CUTPASTE
    assert curve_source([]) is Source.GAN_PLACED
