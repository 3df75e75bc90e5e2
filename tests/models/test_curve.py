from __future__ import annotations

import numpy as np
import pytest

from kizu.models.bands import simultaneous_interval, simultaneous_upper
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.curve import ThresholdCurve
from kizu.models.operating_point import VERDICT_MARGIN, OperatingPoint, draw_independent


def make_curve(ng, ok=(), groups=None, *, split="calibration", others=(), confidence=0.95) -> ThresholdCurve:
    rows = [
        CalibrationScore(split, "NG", group, float(np.float32(s)))
        for s, group in zip(ng, groups or [""] * len(ng), strict=True)
    ]
    rows += [CalibrationScore(split, "OK", "", float(np.float32(score))) for score in ok]
    rows += [CalibrationScore("calibration", "OK", "", float(score)) for score in others]
    return ThresholdCurve(CalibrationScores(tuple(rows)), split, "key", confidence)


def noisy(ng: int = 150, ok: int = 200, seed: int = 0) -> ThresholdCurve:
    rng = np.random.default_rng(seed)
    return make_curve(rng.normal(2, 1, ng), rng.normal(0, 1, ok))


def test_the_rates_at_a_threshold_are_counts_with_bounds_of_the_whole_curve() -> None:
    curve = noisy()
    for threshold in (-9.0, 0.3, 1.0, 9.0):
        point = curve.at(threshold)
        missed = sum(score < np.float32(threshold) for score in curve.certifying.ng)
        passed = sum(score < np.float32(threshold) for score in curve.certifying.ok)
        assert (point.fnr.count, point.fnr.total) == (missed, 150)
        assert (point.specificity.count, point.specificity.total) == (passed, 200)
        assert (point.fnr.lower, point.fnr.upper) == (0.0, simultaneous_upper(150, 0.95)[missed])
        assert (point.specificity.lower, point.specificity.upper) == simultaneous_interval(200, passed, 0.95)


def test_a_score_equal_to_the_threshold_is_ng() -> None:
    point = make_curve([0.1, 0.1, 0.7], [0.1]).at(0.1)
    assert (point.fnr.count, point.specificity.count) == (0, 0)


@pytest.mark.parametrize("target", [0.05, 0.1, 0.3])
def test_a_target_on_the_curve_takes_the_highest_threshold_that_certifies_it(target: float) -> None:
    curve = noisy()
    threshold = float(curve.for_fnr(target))
    assert curve.at(threshold).fnr.upper <= target
    assert curve.at(np.nextafter(np.float32(threshold), np.float32(9))).fnr.upper > target


def test_a_target_that_no_threshold_certifies_takes_the_lowest_ng_and_says_what_is_possible() -> None:
    curve = noisy(ng=30)
    point = curve.operating_point(float(curve.for_fnr(0.01)), target_fnr=0.01)
    smallest = simultaneous_upper(30, 0.95)[0]
    assert point.basis == "smallest-certifiable"
    assert point.certified_fnr == point.smallest_fnr == smallest
    assert point.threshold < curve.certifying.ng.min()
    assert f"Not certifiable at FNR 1 %: with 95 % confidence the FNR is at most {100 * smallest:.1f}" in (
        point.statement()
    )


def test_a_specificity_takes_the_lowest_threshold_that_passes_as_many() -> None:
    curve = noisy()
    threshold = curve.for_specificity(0.9)
    assert curve.at(float(threshold)).specificity.count == 180
    assert curve.at(float(curve.for_specificity(1.0))).specificity.count == 200


def test_ng_of_one_group_are_one_drawn_as_for_every_certificate() -> None:
    rng = np.random.default_rng(3)
    scores, groups = rng.normal(2, 1, 120), [f"board-{i % 40}" for i in range(120)]
    curve = make_curve(scores, rng.normal(0, 1, 10), groups)
    np.testing.assert_array_equal(curve.independent_ng, draw_independent(scores, groups, "key"))
    point = curve.operating_point(float(np.median(scores)), target_fnr=0.05)
    assert (point.independence, point.n_independent, point.n_ng, point.n_ng_groups) == ("groups", 40, 120, 40)
    assert point.certified_fnr == simultaneous_upper(40, 0.95)[np.searchsorted(curve.independent_ng, point.threshold)]
    assert "40 NG, one drawn from each group" in point.statement()
    assert "for new parts" in point.statement()


def test_only_the_certifying_split_counts_and_every_score_keeps_its_distance() -> None:
    near = float(np.float32(0.5 - 1e-6))
    curve = make_curve([0.6] * 80, [0.1, 0.2], split="certification", others=[near])
    point = curve.operating_point(0.5, target_fnr=0.1)
    assert (point.n_ng, point.n_ok, point.certified_on) == (80, 2, "certification")
    assert abs(near - point.threshold) >= VERDICT_MARGIN * 0.3
    assert "only thresholds were chosen by them" in point.statement()


def test_the_certificate_says_that_it_was_chosen_on_the_curve_and_how_it_compares_with_the_target() -> None:
    curve = noisy()
    within = curve.operating_point(float(curve.for_fnr(0.1)), target_fnr=0.1)
    assert within.chosen == "curve"
    assert within.basis == "certified"
    assert "Certified: with 95 % confidence the FNR is at most" in within.statement()
    assert "chosen on the curve of 150 real, unseen NG; the bound holds at all thresholds at once" in within.statement()
    above = curve.operating_point(2.0, target_fnr=0.05)
    assert above.basis == "above-target"
    assert above.certified_fnr is not None
    assert above.certified_fnr > 0.4
    assert not above.certified
    assert "Above the target FNR of 5 %" in above.statement()
    assert "The smallest FNR that a threshold on it certifies is 4.03 %" in above.statement()


def test_the_specificity_in_the_statement_has_the_bounds_of_the_curve() -> None:
    point = noisy().operating_point(1.0, target_fnr=0.05)
    assert point.specificity_bounds == simultaneous_interval(200, point.passed_ok, 0.95)
    low, high = point.specificity_bounds
    assert (point.specificity.lower, point.specificity.upper) == (low, high)
    assert str(point.specificity) in point.statement()


def test_an_operating_point_of_the_curve_survives_json() -> None:
    point = noisy().operating_point(1.0, target_fnr=0.05)
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point


def test_a_review_band_reaches_below_the_threshold() -> None:
    curve = noisy()
    point = curve.operating_point(1.0, target_fnr=0.05, review_band=0.1)
    reviewed = [score for score in curve.certifying.ok if point.verdict(float(score)) == "REVIEW"]
    assert len(reviewed) == 20


def test_without_ng_the_fnr_is_unknown_at_every_threshold() -> None:
    curve = make_curve([], [0.1, 0.2, 0.3])
    point = curve.operating_point(0.25, target_fnr=0.05)
    assert (point.basis, point.certified_fnr, point.passed_ok) == ("specificity", None, 2)
    assert point.statement().startswith("FNR unknown")
    with pytest.raises(ValueError, match="no NG"):
        curve.for_fnr(0.05)


def test_without_ok_the_specificity_is_unknown() -> None:
    curve = make_curve([0.5] * 60)
    assert curve.operating_point(0.4, target_fnr=0.1).specificity_bounds is None
    with pytest.raises(ValueError, match="no OK"):
        curve.for_specificity(0.9)


def test_steps_ascend_and_no_two_are_the_same_to_the_scores() -> None:
    steps = list(noisy().steps())
    counts = [(point.fnr.count, point.specificity.count) for point in steps]
    assert len(set(counts)) == len(counts) > 10
    assert [point.threshold for point in steps] == sorted(point.threshold for point in steps)
    assert {100, 160, 180, 190} <= {point.specificity.count for point in steps}
    assert list(make_curve([], []).steps()) == []


def test_a_threshold_that_is_no_number_is_refused() -> None:
    for threshold in (float("nan"), float("inf"), 1e39):
        with pytest.raises(ValueError, match="finite"):
            noisy().operating_point(threshold, target_fnr=0.05)
