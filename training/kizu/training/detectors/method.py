"""The interface of all detector methods, and a base for those that learn from OK parts alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from torch import nn

from kizu.models.backbones import FeatureDetector
from kizu.models.bundle import InputGeometry, PretrainedWeights
from kizu.training.loop import Method
from kizu.training.options import Options, Presets, preset
from kizu.training.pretrained import Backbones, described
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, GeneratorSection
from kizu.training.training_set import Sampling, TrainingSet


@dataclass(frozen=True)
class DetectorContext:
    """Images, section and defect classes that a method is made for."""

    geometry: InputGeometry
    section: DetectorSection
    defects: tuple[str, ...] = ()
    """Defect classes of the train split, as `training_set` numbers them from 1 on."""
    backbones: Backbones = field(default_factory=Backbones)
    """Pretrained backbones that the run's detectors share."""

    @property
    def size(self) -> dict[str, int]:
        """Height, width and channels of the images that the networks see."""
        return {"height": self.geometry.height, "width": self.geometry.width, "channels": self.geometry.channels}

    def options(self, presets: Presets, *configs: type) -> Options:
        """Give the preset's values under `[detector.options]`, for these configurations.

        Raises:
            UserError: unknown preset, or an option that none of the configurations has.
        """
        values = preset(presets, self.section.preset, f"detector '{self.section.kind}'")
        options = Options("detector.options", self.section.options, values)
        options.check(*configs)
        return options


class DetectorMethod(Method, Protocol):
    """A method whose networks score images.

    The pipeline makes it, calls `check`, trains the run's generator, calls `begin`, runs its stages, calls `finish`,
    and ships `detector()`.
    """

    presets: ClassVar[Presets]
    """Option values by the name of a preset."""
    configs: ClassVar[tuple[type, ...]]
    """The configurations whose fields are its options."""
    sampling: Sampling | None
    """Mixture of OK, NG and synthetic NG; None: it learns from OK parts alone."""
    augment: AugmentSection | None
    """The recipe's `[augment]`; None: it takes its images as they are."""
    uses_unlabelled: bool
    """True if the train split's unlabelled images come with the others."""
    learns_from_ng: bool
    """True if the train split's real NG shaped it in any way; then they do not calibrate it."""
    notes: list[str]
    """Remarks for the report on how it was made."""

    @property
    def pretrained(self) -> list[PretrainedWeights]:
        """Weights in the detector that others trained."""
        ...

    def __init__(self, context: DetectorContext):
        """Make its networks, with fresh weights from torch's current seed.

        Raises:
            UserError: unknown preset or option, or a value out of range.
        """
        ...

    def check(self, generator: GeneratorSection | None) -> None:
        """Check, before anything trains, that the recipe's generator, if any, gives what it needs.

        Raises:
            UserError: it cannot.
        """
        ...

    def begin(self, run: Path) -> None:
        """Prepare for training, after the run's generator has trained.

        Args:
            run: the run's folder.

        Raises:
            UserError: something that it needs of the run is not there.
        """
        ...

    def prepare(self, training: TrainingSet, log: RunLog) -> None:
        """Compute what training needs of its images, on their device, before the first step or a resumed one.

        Raises:
            UserError: the set lacks what it needs.
        """
        ...

    def finish(self, training: TrainingSet) -> None:
        """Do what takes no gradients, after the last step, in the main process."""
        ...

    def detector(self) -> nn.Module:
        """The module that maps x [N, C, H, W] to (score [N], heatmap [N, 1, H, W])."""
        ...


class UnpreparedMethod:
    """A method that starts from nothing but its images."""

    @property
    def pretrained(self) -> list[PretrainedWeights]:
        """None."""
        return []

    def check(self, generator: GeneratorSection | None) -> None:
        """Needs none."""

    def begin(self, run: Path) -> None:
        """Nothing to do."""

    def prepare(self, training: TrainingSet, log: RunLog) -> None:
        """Nothing to do."""


class BackboneMethod(UnpreparedMethod):
    """A method whose detector stands on a frozen pretrained backbone.

    Args:
        detector: what ships.
        weights: the backbone's.
    """

    def __init__(self, detector: FeatureDetector, weights: PretrainedWeights):
        self._shipped, self._weights = detector, weights
        self.notes = [f"features: {described(weights)}"]

    @property
    def pretrained(self) -> list[PretrainedWeights]:
        """The backbone's."""
        return [self._weights]

    def detector(self) -> nn.Module:
        """The detector with its backbone."""
        return self._shipped


class OneClassMethod(UnpreparedMethod):
    """A method that learns from OK parts alone, as they are."""

    sampling: Sampling | None = None
    augment: AugmentSection | None = None
    uses_unlabelled = False
    learns_from_ng = False
    notes: list[str]

    def finish(self, training: TrainingSet) -> None:
        """Nothing to do."""
