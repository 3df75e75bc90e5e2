from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kizu.errors import UserError
from kizu.models.bands import simultaneous_upper
from kizu.models.bundle import Bundle
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.rethreshold import ThresholdChoice, choose_threshold, curve_of, derived_manifest
from tests.service.bundles import as_schema_1, make_bundle

RNG = np.random.default_rng(5)
METRICS = {
    "auroc": 0.9,
    "operating_point": {"fnr": {"count": 1, "total": 50, "confidence": 0.95}},
    "classes": [{"defect": "dent", "fnr": {"count": 1}, "auroc": 0.8}],
}


def scores(split: str = "calibration", ng: int = 240, ok: int = 100) -> tuple[CalibrationScore, ...]:
    found = [("NG", f"board-{i % 120}", score) for i, score in enumerate(RNG.uniform(0.35, 0.9, ng))]
    found += [("OK", "", score) for score in RNG.uniform(0.05, 0.6, ok)]
    return tuple(CalibrationScore(split, label, group, float(np.float32(s))) for label, group, s in found)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b", metrics=METRICS, scores=CalibrationScores(scores()))


def test_the_recipes_own_target_gives_the_runs_operating_point_again(bundle: Bundle) -> None:
    again = choose_threshold(bundle, ThresholdChoice(target_fnr=0.05))
    assert again == bundle.manifest.operating_point
    assert again.chosen == "target"
    assert choose_threshold(bundle, ThresholdChoice(target_fnr=0.05), confidence=0.95) == again


@pytest.mark.parametrize(("target", "confidence"), [(0.1, None), (0.05, 0.9), (0.05, 0.99)])
def test_any_other_target_counts_as_chosen_on_the_curve(bundle: Bundle, target: float, confidence: float) -> None:
    point = choose_threshold(bundle, ThresholdChoice(target_fnr=target), confidence)
    assert point.chosen == "curve"
    assert point.target_fnr == target
    assert point.confidence == (confidence or 0.95)
    assert point.certified_fnr is not None
    assert point.basis == "certified" if point.certified_fnr <= target else "smallest-certifiable"
    missed = int(np.searchsorted(curve_of(bundle).independent_ng, np.float32(point.threshold)))
    assert point.certified_fnr == simultaneous_upper(120, point.confidence)[missed]


def test_a_second_choice_after_one_on_the_curve_still_knows_the_recipes_target(bundle: Bundle) -> None:
    choice = ThresholdChoice(target_fnr=0.1)
    point = choose_threshold(bundle, choice)
    derived = Bundle(bundle.path, derived_manifest(bundle, point, choice), bundle.model, bundle._calibration)
    assert choose_threshold(derived, choice) == point
    named = {"recipe": bundle.manifest.recipe | {"target_fnr": 0.05, "confidence": 0.95}}
    whole = Bundle(bundle.path, derived.manifest.model_copy(update=named), bundle.model, bundle._calibration)
    assert choose_threshold(whole, ThresholdChoice(target_fnr=0.05)) == bundle.manifest.operating_point


def test_a_specificity_passes_as_many_ok_and_is_judged_by_the_recipes_target(bundle: Bundle) -> None:
    point = choose_threshold(bundle, ThresholdChoice(specificity=0.98))
    assert (point.passed_ok, point.n_ok, point.target_fnr) == (98, 100, 0.05)
    assert point.basis == "above-target"


def test_a_given_threshold_is_kept_up_to_the_distance_from_scores(bundle: Bundle) -> None:
    assert choose_threshold(bundle, ThresholdChoice(at=0.42)).threshold == pytest.approx(0.42, rel=1e-3)


def test_a_reserved_split_certifies_the_new_threshold_too(tmp_path: Path) -> None:
    both = CalibrationScores(scores() + scores("certification", ng=60, ok=40))
    point = choose_threshold(make_bundle(tmp_path / "b", scores=both), ThresholdChoice(at=0.5))
    assert (point.certified_on, point.n_independent, point.n_ok) == ("certification", 60, 40)


def test_the_new_manifest_says_where_it_came_from_and_keeps_no_figure_of_the_former_threshold(bundle: Bundle) -> None:
    choice = ThresholdChoice(specificity=0.98)
    manifest = derived_manifest(bundle, choose_threshold(bundle, choice), choice)
    assert manifest.derived_from is not None
    assert manifest.derived_from.parent == bundle.fingerprint
    assert manifest.derived_from.parent_threshold == bundle.manifest.operating_point.threshold
    assert manifest.derived_from.choice == "--specificity 0.98"
    assert manifest.metrics == {"auroc": 0.9, "classes": [{"defect": "dent", "auroc": 0.8}]}
    assert manifest.model_sha256 == bundle.manifest.model_sha256
    assert manifest.calibration_sha256 == bundle.manifest.calibration_sha256


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "not 0"),
        ({"at": 0.5, "specificity": 0.9}, "specificity and at"),
        ({"target_fnr": 0.0}, "between 0 and 1"),
        ({"target_fnr": 1.5}, "between 0 and 1"),
        ({"specificity": 0.0}, "above 0"),
        ({"specificity": float("nan")}, "above 0"),
        ({"at": float("nan")}, "finite"),
        ({"at": 1e39}, "finite"),
    ],
)
def test_a_choice_that_is_none_or_several_or_out_of_range(choice: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ThresholdChoice(**choice)


def test_what_the_scores_cannot_give_is_refused(tmp_path: Path) -> None:
    no_ng = make_bundle(tmp_path / "no-ng", scores=CalibrationScores(scores(ng=0)))
    with pytest.raises(UserError, match="no calibration NG"):
        choose_threshold(no_ng, ThresholdChoice(target_fnr=0.1))
    assert choose_threshold(no_ng, ThresholdChoice(specificity=0.9)).basis == "specificity"
    no_ok = make_bundle(tmp_path / "no-ok", scores=CalibrationScores(scores(ok=0)))
    with pytest.raises(UserError, match="no calibration OK"):
        choose_threshold(no_ok, ThresholdChoice(specificity=0.9))
    with pytest.raises(UserError, match="between 0 and 1"):
        curve_of(no_ok, 1.0)
    with pytest.raises(UserError, match=r"no calibration\.csv: it is of schema 1"):
        curve_of(Bundle.read(as_schema_1(no_ok.path)))
