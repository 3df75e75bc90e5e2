from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kizu.models.operating_point import OperatingPoint
from kizu.models.rates import GroupedRate
from kizu.training.data.manifest import Row
from kizu.training.evaluation.detection import (
    TARGET_FNRS,
    DetectionMetrics,
    at_operating_point,
    compute_metrics,
    specificity_at_fnr,
)
from kizu.training.evaluation.scoring import Scored
from kizu.training.evaluation.summary import summary_table


def operating_point(threshold: float = 0.5, review: float | None = None) -> OperatingPoint:
    return OperatingPoint(
        threshold=threshold,
        review_threshold=threshold if review is None else review,
        basis="certified",
        target_fnr=0.05,
        certified_fnr=0.05,
        confidence=0.95,
        rank=1,
        n_ng=60,
        n_ok=100,
        required_ng=59,
        passed_ok=99,
    )


def scored(ng: list[float], ok: list[float], defects: list[str] | None = None) -> Scored:
    rows = [Row(f"ng/{i}.png", "NG", defects[i] if defects else "scratch") for i in range(len(ng))]
    rows += [Row(f"ok/{i}.png", "OK") for i in range(len(ok))]
    labels = np.array([1] * len(ng) + [0] * len(ok), dtype=np.int64)
    return Scored(tuple(rows), np.array([*ng, *ok], dtype=np.float32), labels, 2.0, len(rows))


@given(
    st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60),
    st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60),
    st.sampled_from([*TARGET_FNRS, 0.29, 0.5]),
)
def test_specificity_at_fnr_by_trying_every_threshold(ng: list[float], ok: list[float], target: float) -> None:
    found = specificity_at_fnr(np.array(ng, dtype=np.float32), np.array(ok, dtype=np.float32), target)
    allowed = [t for t in sorted({*ng, *ok}) if sum(s < t for s in ng) <= target * len(ng) + 1e-9]
    assert found is not None
    best = max(allowed)
    # Thresholds between two NG pass more OK, but none passes more than the next NG score itself does.
    assert found.specificity.count == sum(s < found.threshold for s in ok) >= sum(s < best for s in ok)
    assert found.fnr.count == sum(s < found.threshold for s in ng) <= target * len(ng) + 1e-9
    higher = [s for s in ng if s > found.threshold]
    if higher:
        assert sum(s < min(higher) for s in ng) > target * len(ng) + 1e-9
    assert found.resolution_limited == (len(ng) * target < 1 - 1e-9)
    if found.resolution_limited:
        assert found.fnr.count == 0


def test_a_share_that_floating_point_cannot_hold_allows_its_misses() -> None:
    found = specificity_at_fnr(np.arange(100, dtype=np.float32), np.arange(100, dtype=np.float32), 0.29)
    assert found is not None
    assert found.fnr.count == 29


def test_verdicts_are_counted_as_the_operating_point_gives_them() -> None:
    rng = np.random.default_rng(0)
    ng, ok = rng.normal(1, 1, 400).astype(np.float32), rng.normal(0, 1, 400).astype(np.float32)
    # float32(0.1) is above 0.1: the boundary itself must fall as `verdict` sees it.
    ng[:2], ok[:2] = np.float32(0.1), np.float32(-0.1)
    point = operating_point(float(np.float32(0.1)), float(np.float32(-0.1)))
    at = at_operating_point(ng, ok, point, 0.95)
    of_ng, of_ok = [point.verdict(s) for s in ng], [point.verdict(s) for s in ok]
    assert at.fnr.count == of_ng.count("OK")
    assert at.fnr_at_threshold.count == of_ng.count("OK") + of_ng.count("REVIEW")
    assert at.review_ng.count == of_ng.count("REVIEW")
    assert at.review_ok.count == of_ok.count("REVIEW")
    assert at.specificity.count == of_ok.count("OK") + of_ok.count("REVIEW")
    assert {rate.total for rate in (at.fnr, at.specificity, at.review_ok)} == {400}


def test_each_defect_class_is_judged_against_all_ok() -> None:
    metrics = compute_metrics(
        scored([0.9, 0.1, 0.8, 0.2], [0.15, 0.3], ["spur", "spur", "open+short", ""]), operating_point()
    )
    found = {entry.defect: entry for entry in metrics.classes}
    assert list(found) == ["unnamed", "spur", "open", "short"]
    assert str(found["spur"].fnr).endswith("(1/2)")
    assert found["open"].fnr.count == found["short"].fnr.count == 0
    assert found["spur"].auroc is not None
    assert found["spur"].auroc.value == 0.5
    assert metrics.images_per_second == 3.0


CASES = {
    "no NG": ([], [0.1, 0.2, 0.7]),
    "no OK": ([0.6, 0.3], []),
    "nothing": ([], []),
    "one NG": ([0.6], []),
    "one OK": ([], [0.6]),
    "one of each": ([0.6], [0.2]),
    "all tied": ([0.5] * 5, [0.5] * 5),
    "perfect": ([0.9] * 5, [0.1] * 5),
    "inverted": ([0.1] * 5, [0.9] * 5),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_degenerate_sets_give_json_without_nan(case: tuple[list[float], list[float]]) -> None:
    metrics = compute_metrics(scored(*case), operating_point(0.5, 0.4))
    content = json.loads(json.dumps(metrics.as_dict(), allow_nan=False))
    assert set(content) == set(DetectionMetrics.__dataclass_fields__)
    both = bool(case[0] and case[1])
    assert (content["auroc"] is not None) == both
    assert len(content["specificity_at_fnr"]) == (len(TARGET_FNRS) if both else 0)
    if not case[0]:
        assert content["operating_point"]["fnr"]["rate"] is None
        assert content["operating_point"]["fnr"]["upper"] == 1.0
    assert summary_table(metrics).row_count > 0


def test_the_confidence_is_the_operating_points_unless_given() -> None:
    data = scored([0.9, 0.2], [0.1, 0.3])
    assert compute_metrics(data, operating_point()).operating_point.fnr.confidence == 0.95
    assert compute_metrics(data, operating_point(), 0.8).operating_point.fnr.confidence == 0.8


def in_groups(ng: list[str], ok: list[str], passed: int) -> Scored:
    """Images of the groups that are named; the first `passed` NG score below 0.5, and no OK above it."""
    rows = [Row(f"ng/{i}.png", "NG", group=group) for i, group in enumerate(ng)]
    rows += [Row(f"ok/{i}.png", "OK", group=group) for i, group in enumerate(ok)]
    scores = [0.1] * passed + [0.9] * (len(ng) - passed) + [0.2] * len(ok)
    labels = np.array([1] * len(ng) + [0] * len(ok), dtype=np.int64)
    return Scored(tuple(rows), np.array(scores, dtype=np.float32), labels)


def test_parts_of_groups_have_the_rates_of_new_groups_beside_theirs() -> None:
    data = in_groups(["a"] * 30 + ["b"] * 10 + ["c"] * 20, ["a"] * 3 + ["d"] * 5 + [""] * 2, passed=30)
    metrics = compute_metrics(data, operating_point(0.5, 0.05))
    at, new = metrics.operating_point, metrics.new_groups
    assert (at.fnr.count, at.fnr_at_threshold.count) == (0, 30)
    assert new.fnr == GroupedRate((0.0, 0.0, 0.0))
    assert new.fnr_at_threshold == GroupedRate((1.0, 0.0, 0.0))
    assert new.specificity == GroupedRate((1.0,) * 4)
    assert new.fnr_at_threshold.upper - new.fnr_at_threshold.lower > 0.7
    assert compute_metrics(data, operating_point(), 0.8).new_groups.specificity == GroupedRate((1.0,) * 4, 0.8)
    found = metrics.as_dict()["new_groups"]
    assert found["fnr_at_threshold"]["groups"] == 3
    table = Console(width=200, file=io.StringIO(), record=True)
    table.print(summary_table(metrics))
    text = table.export_text()
    assert str(new.fnr) in text
    assert str(new.specificity) in text


def test_where_each_part_is_a_group_parts_are_what_counts() -> None:
    new = compute_metrics(in_groups(["a", "b", "", ""], ["a", "b", "b"], passed=1), operating_point()).new_groups
    assert new.fnr is None
    assert new.fnr_at_threshold is None
    assert new.specificity == GroupedRate((1.0, 1.0))
    assert compute_metrics(scored([0.9], [0.1]), operating_point()).new_groups.specificity is None


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 scores are not finite"):
        compute_metrics(scored([np.nan], [0.1]), operating_point())


def test_the_summary_prints_rates_with_bounds_and_survives_markup_in_names() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    data = scored([0.9] * 340 + [0.1] * 10, [0.2] * 50, ["[red]x[/nope]"] * 350)
    console.print(summary_table(compute_metrics(data, operating_point())))
    text = console.export_text()
    assert "2.9 % [1.3, 5.2] (10/350)" in text
    assert "[red]x[/nope]" in text
