"""Another operating point for a bundle that exists: from its calibration scores, without run, images or training.

Notable here:
- The recipe's own target and confidence were fixed before there were scores: they give the run's operating point again.
  Everything else counts as chosen on the curve (`curve.py`).
- The graph stays as it is, byte for byte. Of the test figures only those stay that no threshold decides.
- Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from kizu.errors import UserError
from kizu.models.bundle import CALIBRATION_FILE, Bundle, BundleManifest, Derivation
from kizu.models.calibration import CalibrationScores
from kizu.models.curve import ThresholdCurve, is_threshold
from kizu.models.operating_point import VERDICT_MARGIN, OperatingPoint, choose_operating_point
from kizu.version import __version__


@dataclass(frozen=True)
class ThresholdChoice:
    """What a threshold is to reach; exactly one of the three."""

    target_fnr: float | None = None
    """FNR to certify, in (0, 1)."""
    specificity: float | None = None
    """Share of the calibration OK parts to pass, in (0, 1]."""
    at: float | None = None
    """The threshold itself."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise UserError(
                f"One choice is needed, not {len(given)}{': ' * bool(given)}{' and '.join(given)}.",
                "Give one of --target-fnr, --specificity and --at.",
            )
        if self.target_fnr is not None and not 0 < self.target_fnr < 1:
            raise UserError(f"A target FNR must lie between 0 and 1, not at {self.target_fnr:g}.", "1 % is 0.01.")
        if self.specificity is not None and not 0 < self.specificity <= 1:
            raise UserError(f"A specificity must lie above 0 and at most at 1, not at {self.specificity:g}.")
        if self.at is not None and not is_threshold(self.at):
            raise UserError(f"A threshold must be a finite number, not {self.at:g}.", "Take one from the curve.")

    def __str__(self) -> str:
        """The choice as on the command line."""
        (name, value), *_ = ((name, value) for name, value in vars(self).items() if value is not None)
        return f"--{name.replace('_', '-')} {value!r}"


def recipe_confidence(bundle: Bundle) -> float:
    """Return the confidence that the bundle's recipe asked for."""
    return float(bundle.manifest.recipe.get("confidence", bundle.manifest.operating_point.confidence))


def curve_of(bundle: Bundle, confidence: float | None = None) -> ThresholdCurve:
    """Return the curve of the scores that certified the bundle; at the recipe's confidence unless given.

    Raises:
        UserError: the bundle is of schema 1, or the confidence is out of range.
    """
    level = recipe_confidence(bundle) if confidence is None else confidence
    if not 0 < level < 1:
        raise UserError(f"A confidence must lie between 0 and 1, not at {level:g}.", "95 % is 0.95.")
    split = bundle.manifest.operating_point.certified_on or "calibration"
    return ThresholdCurve(_scores(bundle), split, bundle.manifest.dataset.fingerprint, level)


def choose_threshold(bundle: Bundle, choice: ThresholdChoice, confidence: float | None = None) -> OperatingPoint:
    """Choose an operating point from a bundle's calibration scores.

    Raises:
        UserError: the bundle is of schema 1, or its scores cannot give what is asked for.
    """
    curve = curve_of(bundle, confidence)
    recipe, point = bundle.manifest.recipe, bundle.manifest.operating_point
    fixed = float(recipe.get("target_fnr", point.target_fnr))
    band = float(recipe.get("review_band", 0.0))
    if choice.target_fnr is not None and not curve.independent_ng.size:
        raise UserError(
            f"{bundle.path} has no {curve.split} NG, so no FNR can be certified.",
            "Choose by --specificity or --at, or calibrate on real NG: train again with some in that split.",
        )
    if choice.specificity is not None and not curve.ok.size:
        raise UserError(
            f"{bundle.path} has no {curve.split} OK part, so no specificity is known.", "Give --target-fnr."
        )
    if choice.at is not None and not curve.certifying.rows:
        raise UserError(
            f"{bundle.path} has no {curve.split} scores.", "Train again with labelled images in that split."
        )
    known = "target_fnr" in recipe or point.chosen == "target"
    if known and (choice.target_fnr, curve.confidence) == (fixed, recipe_confidence(bundle)):
        return _as_the_run_did(curve, fixed, band)
    if choice.target_fnr is not None:
        threshold = curve.for_fnr(choice.target_fnr)
    elif choice.specificity is not None:
        threshold = curve.for_specificity(choice.specificity)
    else:
        threshold = np.float32(choice.at)
    target = fixed if choice.target_fnr is None else choice.target_fnr
    return curve.operating_point(float(threshold), target_fnr=target, review_band=band)


def derived_manifest(bundle: Bundle, point: OperatingPoint, choice: ThresholdChoice) -> BundleManifest:
    """Return the manifest of `bundle` with another operating point."""
    parent = bundle.manifest
    return parent.model_copy(
        update={
            "operating_point": point,
            "metrics": _threshold_free(parent.metrics),
            "created_at": datetime.now(UTC),
            "code_version": __version__,
            "derived_from": Derivation(
                parent=bundle.fingerprint,
                parent_threshold=parent.operating_point.threshold,
                choice=str(choice),
            ),
        }
    )


def _scores(bundle: Bundle) -> CalibrationScores:
    if bundle.calibration is None:
        raise UserError(
            f"{bundle.path} has no {CALIBRATION_FILE}: it is of schema {bundle.manifest.schema_version}, which kept no "
            "scores.",
            "Export it again with this Kizu: `kizu train RECIPE.toml --out RUN --resume` on the finished run.",
        )
    return bundle.calibration


def _as_the_run_did(curve: ThresholdCurve, target_fnr: float, review_band: float) -> OperatingPoint:
    scores = curve.certifying
    return choose_operating_point(
        scores.ng,
        scores.ok,
        target_fnr=target_fnr,
        confidence=curve.confidence,
        review_band=review_band,
        tolerance=VERDICT_MARGIN,
        ng_groups=scores.ng_groups,
        draw_key=curve.draw_key,
        certified_on=curve.split,
        other_scores=[row.score for row in curve.calibration.rows],
    )


def _threshold_free(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out the test figures that belong to the former threshold."""
    kept = {name: value for name, value in metrics.items() if name != "operating_point"}
    if isinstance(classes := kept.get("classes"), list):
        kept["classes"] = [{name: value for name, value in entry.items() if name != "fnr"} for entry in classes]
    return kept
