"""Methods that score an image: one module each, and one line here."""

from __future__ import annotations

from collections.abc import Sequence

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.detectors.classifier import ClassifierMethod
from kizu.training.detectors.draem import DRAEMMethod
from kizu.training.detectors.fanogan import FAnoGANMethod
from kizu.training.detectors.flow import FlowMethod
from kizu.training.detectors.ganomaly import GANomalyMethod
from kizu.training.detectors.memory import MemoryMethod
from kizu.training.detectors.method import DetectorContext, DetectorMethod
from kizu.training.detectors.padim import PadimMethod
from kizu.training.detectors.semi_supervised import SemiSupervisedMethod
from kizu.training.detectors.supersimplenet import SuperSimpleNetMethod
from kizu.training.pretrained import Backbones
from kizu.training.recipe import AugmentSection, DetectorSection

DETECTORS: dict[str, type[DetectorMethod]] = {
    "ganomaly": GANomalyMethod,
    "fanogan": FAnoGANMethod,
    "draem": DRAEMMethod,
    "memory": MemoryMethod,
    "classifier": ClassifierMethod,
    "semi-supervised": SemiSupervisedMethod,
    "supersimplenet": SuperSimpleNetMethod,
    "padim": PadimMethod,
    "flow": FlowMethod,
}


def create_detector(
    geometry: InputGeometry,
    section: DetectorSection,
    augment: AugmentSection | None = None,
    *,
    defects: Sequence[str] = (),
    backbones: Backbones | None = None,
) -> DetectorMethod:
    """Make the method that a recipe's `[detector]` names, with fresh weights from torch's current seed.

    Args:
        augment: the recipe's `[augment]`; it goes to methods that augment, and others leave it alone.
        defects: the defect classes of the train split (`defect_classes`), for methods that tell them apart.
        backbones: pretrained ones that the run's detectors share.

    Raises:
        UserError: unknown kind, preset or option, or a value out of range.
    """
    if section.kind not in DETECTORS:
        raise UserError(f"Unknown detector '{section.kind}'.", f"Known detectors: {', '.join(DETECTORS)}.")
    method = DETECTORS[section.kind](DetectorContext(geometry, section, tuple(defects), backbones or Backbones()))
    if method.augment is not None and augment is not None:
        method.augment = augment
    return method
