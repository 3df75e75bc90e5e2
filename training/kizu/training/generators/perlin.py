"""Noise-shaped regions of an OK view, filled with a strongly altered piece of another (DRAEM).

Zavrtanik, Kristan & Skočaj, ICCV 2021, section 3.3, as in `kizu.training.augment.anomalies`; here each image is kept as
synthetic NG with its mask.

Notable here:
- An image need not look like a defect: it teaches a detector what deviates, not what defects look like.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kizu.models.config import STRICT
from kizu.training.augment.anomalies import FINEST, OPACITY, THRESHOLD, perlin_anomalies
from kizu.training.data.loading import to_pixels
from kizu.training.generators.sampling import VISIBLE, Sample, to_unit, until_visible
from kizu.training.generators.views import Materials


@dataclass(frozen=True, config=STRICT)
class PerlinConfig:
    """Fields of `[generator.options]`."""

    threshold: float = Field(default=THRESHOLD, gt=-1, lt=1)
    """Of the noise in [−1, 1]; higher: smaller regions."""
    finest: float = Field(default=FINEST, ge=2)
    """Shortest period of the noise in pixels."""
    shapes: float = Field(default=0.5, ge=0, le=1)
    """Share of images with strokes, spots and rectangles in place of noise."""
    faintest: float = Field(default=OPACITY[0], gt=0)
    """Least opacity β of what fills a region; the paper's is 0.1."""
    boldest: float = Field(default=OPACITY[1], le=1)
    """Largest opacity, likewise."""

    @model_validator(mode="after")
    def _opacities_are_in_order(self) -> Self:
        if self.faintest > self.boldest:
            raise ValueError(f"faintest must be at most boldest, {self.boldest}, not {self.faintest}")
        return self


class Perlin:
    """Sampler of OK views with noise-shaped anomalies."""

    def __init__(self, config: PerlinConfig, materials: Materials):
        self.config, self.materials = config, materials

    def sample(self, rng: np.random.Generator, name: str) -> Sample:
        """Return one image."""
        del name
        return until_visible(lambda: self._attempt(rng))

    def _attempt(self, rng: np.random.Generator) -> Sample:
        config, ok = self.config, self.materials.ok
        assert ok is not None
        image, source = (ok[int(n)][None] for n in rng.integers(len(ok), size=2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            made, masks = perlin_anomalies(
                to_unit(image),
                to_unit(source),
                shapes=config.shapes,
                threshold=config.threshold,
                opacity=(config.faintest, config.boldest),
                finest=config.finest,
                visible=2 * VISIBLE / 255,
            )
        return Sample(to_pixels(made)[0].numpy(), masks[0, 0].numpy() > 0)
