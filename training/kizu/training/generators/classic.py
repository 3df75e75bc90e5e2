"""Real NG of the train split, altered in the ways that a camera's images vary, more strongly.

Notable here:
- The oversampler's baseline: whatever a costlier generator promises has to beat this one.
- Flips and turns stay off unless asked for, as in `[augment]`: either can make a defect, or hide one.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from kizu.models.config import STRICT
from kizu.training.augment.classic import augmented
from kizu.training.data.loading import to_pixels
from kizu.training.generators.sampling import ATTEMPTS, Sample, to_unit
from kizu.training.generators.views import Materials


@dataclass(frozen=True, config=STRICT)
class ClassicConfig:
    """Fields of `[generator.options]`; as in `[augment]`, with stronger amounts."""

    flip_horizontal: bool = False
    """Mirror left and right."""
    flip_vertical: bool = False
    """Mirror upside down."""
    quarter_turns: bool = False
    """Turn by multiples of 90°."""
    shift: float = Field(default=0.1, ge=0, le=0.5)
    """Most that an image moves, as a share of its side."""
    scale: float = Field(default=0.1, ge=0, le=1)
    """Most that an image grows, as a share; it shrinks as much."""
    brightness: float = Field(default=0.1, ge=0, le=1)
    """Most that is added or taken, as a share of the range from black to white."""
    contrast: float = Field(default=0.25, ge=0, le=4)
    """Most that contrast grows, as a share; it shrinks as much."""
    noise: float = Field(default=0.02, ge=0, le=1)
    """Largest standard deviation of the noise, as a share of the range from black to white."""


class Classic:
    """Sampler of altered real NG."""

    def __init__(self, config: ClassicConfig, materials: Materials):
        self.config, self.materials = config, materials

    def sample(self, rng: np.random.Generator, name: str) -> Sample:
        """Return one image of the class `name`; its defect stays in sight, the mask is empty where it is not known."""
        ng = self.materials.ng
        assert ng is not None
        of_class = [i for i, found in enumerate(ng.classes) if found == name]
        chosen = of_class[int(rng.integers(len(of_class)))]
        known = ng.masks[chosen].float()[None] / 255
        for _ in range(ATTEMPTS):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**62)))
                made, moved = augmented(to_unit(ng.images[chosen][None]), known, self.config)
            assert moved is not None
            mask = moved >= 0.5
            if 2 * mask.sum() >= known.sum():
                return Sample(to_pixels(made)[0].numpy(), mask[0, 0].numpy())
        return Sample(ng.images[chosen].numpy(), ng.masks[chosen, 0].numpy() > 0)
