"""CutPaste: a rectangle or a thin scar of the image itself, pasted elsewhere.

Li, Sohn, Yoon & Pfister, "CutPaste: Self-supervised learning for anomaly detection and localization", CVPR 2021,
section 2.2: both shapes, jittered in colour, the scar turned as well.

Notable here:
- It learns nothing and needs no NG, so it works from the first day; its images show no defect in particular.
- Sizes are shares of the view, so that they mean the same at any resolution (the paper's are for 256 px).
"""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from scipy import ndimage

from kizu.models.config import STRICT
from kizu.training.generators.sampling import Floats, Mask, Sample, to_bytes, until_visible, visible_change
from kizu.training.generators.views import Materials


@dataclass(frozen=True, config=STRICT)
class CutPasteConfig:
    """Fields of `[generator.options]`."""

    scars: float = Field(default=0.5, ge=0, le=1)
    """Share of images with a scar; the others have a rectangle."""
    smallest: float = Field(default=0.01, gt=0)
    """Least area of a rectangle, as a share of the view's (the paper: 0.02)."""
    largest: float = Field(default=0.15, lt=0.5)
    """Largest area of a rectangle, likewise."""
    longest: float = Field(default=0.25, gt=0, le=1)
    """Of a scar, as a share of the view's shorter side; it is a twentieth to a quarter as wide, 2 pixels at least."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Most that brightness and contrast of what is pasted change, as a share."""

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest must be at most largest, {self.largest}, not {self.smallest}")
        return self


class CutPaste:
    """Sampler of OK views with a pasted rectangle or scar."""

    def __init__(self, config: CutPasteConfig, materials: Materials):
        self.config, self.materials = config, materials

    def sample(self, rng: np.random.Generator, name: str) -> Sample:
        """Return one image."""
        del name
        return until_visible(lambda: self._attempt(rng))

    def _attempt(self, rng: np.random.Generator) -> Sample:
        assert self.materials.ok is not None
        view = self.materials.view(int(rng.integers(len(self.materials.ok))))
        shape = self._scar(rng, view.shape[1:]) if rng.random() < self.config.scars else self._rectangle(rng, view)
        shape = shape[: view.shape[1], : view.shape[2]]
        height, width = shape.shape
        (y, x), (to_y, to_x) = (
            (int(rng.integers(view.shape[1] - height + 1)), int(rng.integers(view.shape[2] - width + 1)))
            for _ in range(2)
        )
        piece = jittered(view[:, y : y + height, x : x + width], rng, self.config.jitter)
        pasted = view.copy()
        pasted[:, to_y : to_y + height, to_x : to_x + width][:, shape] = piece[:, shape]
        where = np.zeros(view.shape[1:], bool)
        where[to_y : to_y + height, to_x : to_x + width] = shape
        return Sample(to_bytes(pasted), visible_change(view, pasted, where))

    def _rectangle(self, rng: np.random.Generator, view: Floats) -> Mask:
        return np.ones(rectangle(rng, view.shape[1], view.shape[2], self.config.smallest, self.config.largest), bool)

    def _scar(self, rng: np.random.Generator, size: tuple[int, ...]) -> Mask:
        """Return a thin bar, turned by up to 45° from upright or lying."""
        long = max(4.0, rng.uniform(0.4, 1.0) * self.config.longest * min(size))
        wide = max(2.0, long * rng.uniform(0.05, 0.25))
        angle = np.deg2rad(rng.uniform(-45, 45)) + (np.pi / 2) * int(rng.integers(2))
        half = int(np.ceil(long / 2))
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        bar = (np.abs(along) <= long / 2) & (np.abs(across) < wide / 2)
        rows, columns = ndimage.find_objects(bar.astype(np.int8))[0]
        return np.asarray(bar[rows, columns])


def rectangle(rng: np.random.Generator, height: int, width: int, smallest: float, largest: float) -> tuple[int, int]:
    """(height, width) of a rectangle: log-uniform in area, a share of the view's, and in its ratio, 1 : 3 to 3 : 1."""
    area = np.exp(rng.uniform(np.log(smallest), np.log(largest))) * height * width
    ratio = np.exp(rng.uniform(-np.log(3), np.log(3)))
    tall, wide = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
    return min(max(tall, 2), height - 2), min(max(wide, 2), width - 2)


def jittered(piece: Floats, rng: np.random.Generator, amount: float) -> Floats:
    """Contrast about the piece's mean, and brightness, changed by up to `amount`."""
    mean = piece.mean(axis=(1, 2), keepdims=True)
    contrast, brightness = 1 + rng.uniform(-amount, amount), 255 * rng.uniform(-amount, amount)
    return np.asarray((piece - mean) * contrast + mean + brightness, np.float32).clip(0, 255)
