"""Manifest rows → the tensor that trains, through the very geometry that ships."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.pool import Progress, in_order


def training_tensor(
    manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry, progress: Progress | None = None
) -> Tensor:
    """uint8 [M, C, height, width]: one image per row, or all its tiles. Rounded to 8 bits after resizing.

    Raises:
        UserError: an image cannot be read or is smaller than the geometry allows.
    """
    prepare = Geometry(geometry)
    pieces: list[Tensor] = []
    for row, pixels in zip(rows, in_order(manifest.image, rows, progress), strict=True):
        height, width = pixels.shape[:2]
        if not geometry.accepts(height, width):
            raise UserError(
                f"{manifest.root / row.path} is {width}×{height} pixels, smaller than the "
                f"{geometry.min_width}×{geometry.min_height} that [image] asks for.",
                "Lower image.size or image.tile in the recipe, or leave the image out of the data set.",
            )
        x = prepare(torch.tensor(pixels)[None])
        pieces.append(to_pixels(x))
    return torch.cat(pieces)


def to_pixels(images: Tensor) -> Tensor:
    """Images about [−1, 1] → uint8, rounded and clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
