"""Rendered texture: a data set of brushed metal sheets, for surfaces without a layout to compare with.

Notable here:
- No two OK images show the same marks, so a detector must learn what marks look like, not where they are.
- Sheets (the groups) differ in the grain's direction, size and strength, in lightness, tint and unevenness.
- An NG image is its OK twin but for the defect; no brightness level separates them.
- Every image depends on the seed and its own number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.training.data.importers.staging import Journal
from kizu.training.data.manifest import OK, Box, Manifest, Row
from kizu.training.data.rendered_set import bounds, write_rendered
from kizu.training.data.texture_design import FAULTS, Floats, Grain, Surface, brush, cloud, grid

TEXTURE_DEFECTS = tuple(FAULTS)
"""The defect classes, in the order in which NG images take turns."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SECOND_DEFECT = 0.3
"""Share of the NG images that show two defects."""


@dataclass(frozen=True)
class _Sheet:
    """Properties that all images of one sheet share."""

    grain: Grain
    strength: float
    """Standard deviation of the marks, in shares of the lightness."""
    lightness: float
    tint: Floats
    unevenness: float


def render_textures(
    destination: Path,
    *,
    sheets: int = 24,
    count_ok: int = 600,
    count_ng: int = 140,
    size: int = 128,
    channels: int = 3,
    seed: int = 0,
    journal: Journal | None = None,
) -> Manifest:
    """Render `count_ok` OK and `count_ng` NG images, uint8[size, size, channels], of `sheets` brushed metal sheets.

    NG images carry one or two defects of one class, with mask and boxes; classes take turns. The group is the sheet.

    Raises:
        UserError: sizes or counts that make no data set, or a destination in use.
    """
    if size < 32 or channels not in (1, 3) or count_ok < 1 or count_ng < 0 or sheets < 1:
        raise UserError(
            f"cannot render {count_ok} OK and {count_ng} NG images of {sheets} sheets at {size}×{size}×{channels}",
            "Use at least one OK image and sheet, 32 pixels or more, and 1 or 3 channels.",
        )
    # One class further in each round of the sheets: else a number of sheets that shares a factor with that of the
    # classes would tie each sheet to a few of them.
    turns = ((number + number // sheets) % len(TEXTURE_DEFECTS) for number in range(count_ng))
    return write_rendered(
        destination,
        TextureCamera(seed, size, channels, sheets).photograph,
        group="sheet",
        groups=sheets,
        count_ok=count_ok,
        classes=[TEXTURE_DEFECTS[turn] for turn in turns],
        journal=journal,
    )


class TextureCamera:
    """The sheets of one product under their camera."""

    def __init__(self, seed: int, size: int, channels: int, sheets: int):
        self.seed, self.size, self.channels = seed, size, channels
        product = np.random.default_rng([seed, 0])
        direction, warmth = float(product.uniform(0, np.pi)), float(product.normal(0, 0.03))
        tint = np.array([1 + warmth, 1, 1 - warmth], np.float32)
        self.sheets = [
            self._sheet(direction, tint, np.random.default_rng([seed, 1, number])) for number in range(sheets)
        ]
        x, y = grid(size)
        self.x, self.y = x - 0.5, y - 0.5

    def _sheet(self, direction: float, tint: Floats, random: np.random.Generator) -> _Sheet:
        return _Sheet(
            grain=Grain(
                direction=direction + random.normal(0, 0.15),
                period=float(0.016 * np.exp(random.normal(0, 0.12))),
                length=float(0.16 * np.exp(random.normal(0, 0.2))),
            ),
            strength=float(0.115 * np.exp(random.normal(0, 0.1))),
            lightness=float(random.normal(0.52, 0.035)),
            tint=(tint * random.normal(1, 0.009, 3)).astype(np.float32),
            unevenness=float(0.035 * np.exp(random.normal(0, 0.2))),
        )

    def photograph(self, number: int, row: Row) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[Box, ...]]:
        """Image uint8[H, W] or uint8[H, W, 3], mask uint8[H, W] (255: defect) and boxes."""
        sheet = self.sheets[number % len(self.sheets)]
        surface = self._surface(sheet, np.random.default_rng([self.seed, 2, number]))
        # Defects have their own draw, and so have light and noise: an NG image differs from its OK twin by them alone.
        random = np.random.default_rng([self.seed, 3, number])
        mask = np.zeros((self.size, self.size), np.bool_)
        boxes: list[Box] = []
        for _ in range(0 if row.label == OK else 1 + int(random.random() < _SECOND_DEFECT)):
            seen = FAULTS[row.defect](surface, random)
            mask |= seen
            boxes.append(bounds(seen, row.defect))
        image = self._develop(surface, sheet, np.random.default_rng([self.seed, 4, number]))
        return image, mask.astype(np.uint8) * 255, tuple(boxes)

    def _surface(self, sheet: _Sheet, random: np.random.Generator) -> Surface:
        grain = Grain(sheet.grain.direction + random.normal(0, 0.03), sheet.grain.period, sheet.grain.length)
        return Surface(
            grain=grain,
            texture=brush(grain, self.size, random),
            relief=np.float32(sheet.unevenness) * cloud(self.size, 0.3, random),
            film=np.zeros((self.size, self.size), np.float32),
            film_colour=np.ones(3, np.float32),
        )

    def _develop(self, surface: Surface, sheet: _Sheet, random: np.random.Generator) -> NDArray[np.uint8]:
        slant = random.normal(0, 0.07, 2)
        light = 1 + slant[0] * self.x + slant[1] * self.y - 0.15 * (self.x**2 + self.y**2)
        light *= sheet.lightness * random.normal(1, 0.025)
        metal = (1 + np.float32(sheet.strength) * surface.texture + surface.relief)[..., None]
        film = surface.film[..., None]
        shown = (metal * (1 - film) + surface.film_colour * film) * light.astype(np.float32)[..., None] * sheet.tint
        seen = shown * np.float32(255)
        if self.channels == 1:
            seen = (seen @ _LUMA)[..., None]
        noise = random.normal(0, 1, seen.shape).astype(np.float32) * (0.8 + 0.01 * seen)
        final: NDArray[np.uint8] = np.clip(seen + noise + 0.5, 0, 255).astype(np.uint8)
        return final[..., 0] if self.channels == 1 else final
