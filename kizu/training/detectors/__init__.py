"""Ways to score an image: one module each, and one line here."""

from __future__ import annotations

from collections.abc import Callable

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.detectors.classifier import ClassifierMethod
from kizu.training.detectors.fanogan import FAnoGANMethod
from kizu.training.detectors.ganomaly import GANomalyMethod
from kizu.training.loop import DetectorMethod
from kizu.training.recipe import DetectorSection

DETECTORS: dict[str, Callable[[InputGeometry, DetectorSection], DetectorMethod]] = {
    "ganomaly": GANomalyMethod,
    "fanogan": FAnoGANMethod,
    "classifier": ClassifierMethod,
}


def create_detector(geometry: InputGeometry, section: DetectorSection) -> DetectorMethod:
    """The method that a recipe's `[detector]` names, with fresh weights from torch's current seed.

    Raises:
        UserError: unknown kind, preset or option.
    """
    if section.kind not in DETECTORS:
        raise UserError(f"Unknown detector '{section.kind}'.", f"Known detectors: {', '.join(DETECTORS)}.")
    return DETECTORS[section.kind](geometry, section)
