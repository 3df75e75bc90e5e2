"""Generators that need no training: each image is one OK or NG view with something done to it.

Notable here:
- An image is a function of run, seed and class: each has a stream of random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kizu.errors import UserError
from kizu.training.data.crops import UNNAMED
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.generators.sampling import Sample, Sampler, as_batch, batches
from kizu.training.generators.trained import interleaved
from kizu.training.generators.views import Materials


@dataclass(frozen=True)
class UntrainedGenerator:
    """A `Sampler` behind the interface of a trained generator; `truncation` does not apply to it."""

    kind: str
    run: str
    config: Any
    materials: Materials
    sampler: Sampler
    classes: tuple[str, ...] = (UNNAMED,)
    counts: tuple[int, ...] = (1,)
    """Relative frequency of each class."""

    def class_numbers(self, count: int, defect_class: str | None = None) -> list[int]:
        """Return the classes of `count` images: `defect_class`, or in proportion to `counts`, evenly interleaved.

        Raises:
            UserError: there is no such class.
        """
        if defect_class is None:
            return interleaved(self.counts, count)
        if defect_class not in self.classes:
            raise UserError(
                f"The generator never saw the defect class '{defect_class}'.", f"It knows: {', '.join(self.classes)}."
            )
        return [self.classes.index(defect_class)] * count

    def name(self, number: int) -> str:
        """Return the name of a class; `NG` where samples are of no class in particular."""
        return self.classes[number]

    def sample(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> SyntheticBatch:
        """Return one image with its mask for each seed and class number."""
        del truncation
        samples = [self._one(seed, number) for seed, number in zip(seeds, numbers, strict=True)]
        return as_batch(samples, [self.name(n) for n in numbers], seeds)

    def _one(self, seed: int, number: int) -> Sample:
        return self.sampler.sample(np.random.default_rng((seed, number)), self.name(number))

    def batches(
        self, count: int, *, seed: int = 0, defect_class: str | None = None, truncation: float = 1.0, size: int = 32
    ) -> Iterator[SyntheticBatch]:
        """Yield `count` images, seeds counting up from `seed`."""
        return batches(self, count, seed=seed, defect_class=defect_class, truncation=truncation, size=size)
