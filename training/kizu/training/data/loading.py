"""Manifest rows → the tensor that trains, through the very geometry that ships.

Notable here:
- Nothing is rounded after resizing or conversion to grey, since the graph that ships does not round there. It could
  not: of a pixel near a half, one runtime makes the number above and another the one below, and scores would differ by
  more than export allows.
- Where no pixel has a fraction (tiles and images of the detector's own size and colours), uint8 holds the same values
  in a quarter of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.pool import Progress, in_order
from kizu.training.data.sizes import too_small


def training_tensor(
    manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry, progress: Progress | None = None
) -> Tensor:
    """Pixels from 0 to 255, [M, C, height, width]: one image per row, or all its tiles; uint8 if whole, else float32.

    Over 127.5, less 1, they are what the detector gets of the same image in the graph that ships, to the bit.

    Raises:
        UserError: an image cannot be read or is smaller than the geometry allows.
    """
    prepare = Geometry(geometry)
    pieces: list[Tensor] = []
    for row, pixels in zip(rows, in_order(manifest.image, rows, progress), strict=True):
        height, width = pixels.shape[:2]
        if not geometry.accepts(height, width):
            raise too_small(manifest, [(row.path, height, width)], geometry)
        x = prepare.pixels(torch.tensor(pixels)[None])
        whole = x.to(torch.uint8)
        pieces.append(whole if torch.equal(whole.float(), x) else x)
    return torch.cat(pieces)  # float32 if any of them is


def to_pixels(images: Tensor) -> Tensor:
    """Images about [−1, 1] → uint8, rounded and clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
