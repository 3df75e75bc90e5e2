"""The rest of a letterboxed image: grey rows or columns at its edges, where nothing of the part is.

Notable here:
- What is rest is read from the image, so detector and augmentation know it without being told the source's shape: rows
  and columns at an edge of which every pixel is exactly the grey that letterboxing fills with. A camera's noise makes
  such a row no rest, and in one that is flat there is no defect to hide.
- Comparisons, minima and sums only: it is part of the graph that ships.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = 128.0
"""Pixel value that fills what letterboxing leaves: a whole number, as synthetic images are stored in 8 bits."""
_ALIKE = 1e-3


def shown(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First row, last row, first column and last column that show the part, of x [N, C, H, W] in [−1, 1].

    Returns:
        Each float32 [N], whole numbers; of an image that is nothing but rest, first > last.
    """
    differs = ((x - (GREY / 127.5 - 1)).abs() > _ALIKE).to(torch.float32).amax(1)
    edges = []
    for dim in (2, 1):
        along = differs.amax(dim)
        length = along.shape[1]
        position = torch.arange(length, device=x.device, dtype=torch.float32)
        edges += [(position + length * (1 - along)).amin(1), (position - (length + 1) * (1 - along)).amax(1)]
    return edges[0], edges[1], edges[2], edges[3]


def shown_places(x: Tensor, rows: int, columns: int) -> Tensor:
    """1 in the places of a grid over x [N, C, H, W] that show some of the part, 0 elsewhere: [N, 1, rows, columns]."""
    top, bottom, left, right = shown(x)
    down = _within(top, bottom, x.shape[2] / rows, rows)
    across = _within(left, right, x.shape[3] / columns, columns)
    return (down[:, :, None] * across[:, None, :])[:, None]


def _within(first: Tensor, last: Tensor, side: float, places: int) -> Tensor:
    """1 for places of `side` pixels that reach into first … last, else 0: float32 [N, places]."""
    begin = torch.arange(places, device=first.device, dtype=torch.float32) * side
    return ((begin + side > first[:, None]) & (begin < last[:, None] + 1)).to(torch.float32)
