"""What the pipeline asks of every way to score, and what those share that learn from OK parts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import nn

from kizu.training.loop import Method
from kizu.training.recipe import AugmentSection, GeneratorSection
from kizu.training.training_set import Sampling, TrainingSet


class DetectorMethod(Method, Protocol):
    """A method whose networks score images.

    The pipeline makes it, calls `check`, trains the run's generator, calls `begin`, runs its stages, calls `finish`,
    and ships `detector()`.
    """

    sampling: Sampling | None
    """How OK, NG and synthetic NG are mixed; None: it learns from OK parts alone."""
    augment: AugmentSection | None
    """The recipe's `[augment]`; None: it takes its images as they are."""
    uses_unlabelled: bool
    """Whether the train split's unlabelled images come with the others."""
    learns_from_ng: bool
    """Whether the train split's real NG shaped it in any way; then they do not calibrate it."""
    notes: list[str]
    """What a person should know of how it was made."""

    def check(self, generator: GeneratorSection | None) -> None:
        """Before anything trains: can the recipe's generator, if there is one, give what it needs?

        Raises:
            UserError: it cannot.
        """
        ...

    def begin(self, run: Path) -> None:
        """Before it trains, after the run's generator: `run` is the run's folder.

        Raises:
            UserError: something that it needs of the run is not there.
        """
        ...

    def finish(self, training: TrainingSet) -> None:
        """After its last step, in the main process: what takes no gradients."""
        ...

    def detector(self) -> nn.Module:
        """The module that maps x [N, C, H, W] to (score [N], heatmap [N, 1, H, W])."""
        ...


class OneClass:
    """A method that learns from OK parts alone, as they are."""

    sampling: Sampling | None = None
    augment: AugmentSection | None = None
    uses_unlabelled = False
    learns_from_ng = False
    notes: list[str]

    def check(self, generator: GeneratorSection | None) -> None:
        """Needs none."""

    def begin(self, run: Path) -> None:
        """Nothing to do."""

    def finish(self, training: TrainingSet) -> None:
        """Nothing to do."""
