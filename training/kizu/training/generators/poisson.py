"""Pieces of other images, blended in without a visible border: of OK views, or real defects.

Schlüter et al., "Natural synthetic anomalies for self-supervised anomaly detection and localization", ECCV 2022 (NSA):
a resized patch of another OK image, by Poisson image editing. With real defects (`patches = "ng"`) each goes into the
OK view whose surroundings are most like its own.

Notable here:
- The mask says where the blended image differs visibly from the view, not where the patch was put.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from scipy import ndimage

from kizu.models.config import STRICT
from kizu.training.generators.blending import poisson_blend
from kizu.training.generators.cutpaste import rectangle
from kizu.training.generators.positions import find_positions, laid_out
from kizu.training.generators.sampling import Floats, Mask, Sample, to_bytes, until_visible, visible_change
from kizu.training.generators.views import Materials

MARGIN = 6
"""Pixels around a real defect that are compared with those of a position."""
GROWN = 2
"""Pixels around a real defect that are taken along, so that the border lies in OK surroundings."""


@dataclass(frozen=True, config=STRICT)
class PoissonConfig:
    """Fields of `[generator.options]`."""

    patches: Literal["ok", "ng"] = "ok"
    """Where pieces come from: `ok` views, or real defects of the train split's `ng`."""
    smallest: float = Field(default=0.01, gt=0)
    """Least area of a piece of an OK view, as a share of the view's."""
    largest: float = Field(default=0.15, lt=0.5)
    """Largest area of such a piece, likewise."""
    resize: float = Field(default=0.3, ge=0, le=1)
    """Most that a piece of an OK view grows, as a share; it shrinks as much."""
    candidates: int = Field(default=1024, ge=1)
    """Places that are compared for a real defect."""

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest must be at most largest, {self.largest}, not {self.smallest}")
        return self


class Poisson:
    """Sampler of OK views with blended pieces of other OK views or of real NG."""

    def __init__(self, config: PoissonConfig, materials: Materials):
        self.config, self.materials = config, materials

    def sample(self, rng: np.random.Generator, name: str) -> Sample:
        """Return one image; of real defects, one of the class `name`."""
        return until_visible(lambda: self._of_ng(rng, name) if self.config.patches == "ng" else self._of_ok(rng))

    def _of_ok(self, rng: np.random.Generator) -> Sample:
        assert self.materials.ok is not None
        view, other = (self.materials.view(int(n)) for n in rng.integers(len(self.materials.ok), size=2))
        tall, wide = view.shape[1:]
        height, width = rectangle(rng, tall, wide, self.config.smallest, self.config.largest)
        factor = float(np.exp(rng.uniform(-1, 1) * np.log1p(self.config.resize)))
        # One pixel more on either side: the gradient across the border is the piece's, too.
        taken = [min(max(round((side + 2) / factor), 3), limit) for side, limit in ((height, tall), (width, wide))]
        y, x = (int(rng.integers(limit - side + 1)) for side, limit in zip(taken, (tall, wide), strict=True))
        piece = resized(other[:, y : y + taken[0], x : x + taken[1]], height + 2, width + 2)
        top, left = int(rng.integers(1, tall - height)), int(rng.integers(1, wide - width))
        source, _ = laid_out(piece, top - 1, left - 1, tall, wide)
        inside = np.zeros((tall, wide), bool)
        inside[top : top + height, left : left + width] = True
        return blended_in(view, source, inside)

    def _of_ng(self, rng: np.random.Generator, name: str) -> Sample:
        ng, ok = self.materials.ng, self.materials.ok
        assert ng is not None
        assert ok is not None
        of_class = [i for i, found in enumerate(ng.classes) if found == name]
        chosen = of_class[int(rng.integers(len(of_class)))]
        image = ng.images[chosen].numpy().astype(np.float32)
        defect = one_part(ng.masks[chosen, 0].numpy() > 0, rng)
        rows, columns = ndimage.find_objects(defect.astype(np.int8))[0]
        height, width = defect.shape
        window = (
            slice(max(rows.start - MARGIN, 0), min(rows.stop + MARGIN, height)),
            slice(max(columns.start - MARGIN, 0), min(columns.stop + MARGIN, width)),
        )
        piece, grown = image[:, *window], ndimage.binary_dilation(defect[window], iterations=GROWN)
        ring = ~grown if (~grown).any() else np.ones_like(grown)
        positions = find_positions(piece, ring, ok, rng, candidates=self.config.candidates)
        position = positions[0]
        view = self.materials.view(position.view)
        source, there = laid_out(piece, position.top, position.left, height, width)
        inside, _ = laid_out(grown[None].astype(np.float32), position.top, position.left, height, width)
        shape = (inside[0] > 0) & there
        shape.flat[0] &= not shape.all()  # a defect all over the view leaves one pixel, for the level
        return blended_in(view, source, shape)


def blended_in(view: Floats, source: Floats, inside: Mask) -> Sample:
    """`inside` of the view filled with the source's gradients, and where that can be seen."""
    blended = poisson_blend(view, source, inside).clip(0, 255)
    return Sample(to_bytes(blended), visible_change(view, blended, inside))


def one_part(mask: Mask, rng: np.random.Generator) -> Mask:
    """One of the connected parts of a mask, by chance, larger ones more often."""
    labels, _ = ndimage.label(mask, np.ones((3, 3), bool))
    y, x = np.nonzero(mask)
    pixel = int(rng.integers(len(y)))
    return np.asarray(labels == labels[y[pixel], x[pixel]])


def resized(piece: Floats, height: int, width: int) -> Floats:
    """[C, h, w] → [C, height, width], without aliasing."""
    x = torch.from_numpy(np.ascontiguousarray(piece))[None]
    return np.asarray(F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)[0].numpy())
