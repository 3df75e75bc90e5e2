"""The graph that ships: raw uint8 image → geometry → tiles → detector → score and heatmap.

Notable here:
- This is the only definition of preprocessing: training prepares its images with it, export traces it.
- Number, height, width and channels (1 or 3) of the images stay free, so one graph inspects every camera's format.
- Tiles overlap; the last one of a row or column is flush with the edge. An image is as bad as its worst tile,
  and tiles' heatmaps are blended with weights that fall towards the tile's rim, so that no seams show.
- A letterboxed image keeps its proportions; grey that is the same for every image fills the rest (which pixels it does:
  `kizu.models.letterbox`), and the heatmap is of the image alone. A mirror image or repeated edges would be patterns
  that no part has: measured, they draw more heat.
- Gathers and sums only: no scatter, no loop, no custom operator.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kizu.models.bundle import InputGeometry
from kizu.models.letterbox import GREY

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of R, G and B in grey."""
LEAST_SHOWN = 2
"""Pixels across which the narrowest letterboxed image is shown."""


class Geometry(nn.Module):
    """uint8 [N, H, W, C] → [tiles, channels, height, width] in [−1, 1]; without tiling there is one tile an image.

    Args:
        geometry: what is done to an image.
        rest: pixel value that fills what letterboxing leaves; 0 for masks.
    """

    luma: Tensor

    def __init__(self, geometry: InputGeometry, rest: float = GREY):
        super().__init__()
        self.geometry = geometry
        self.rest = rest
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Convert, cut into tiles, resize and normalise, see the class."""
        return self.pixels(image) / 127.5 - 1

    def pixels(self, image: Tensor) -> Tensor:
        """Convert, cut into tiles and resize: float32 [tiles, channels, height, width] from 0 to 255, not rounded."""
        x = self._channels(image.permute(0, 3, 1, 2).to(torch.float32))
        if self.geometry.tile is not None:
            x = self._tiles(x, self.geometry.tile)
        size = (self.geometry.height, self.geometry.width)
        if self.geometry.fit == "letterbox":
            return self._letterboxed(x)
        if self.geometry.tile is None or size != (self.geometry.tile, self.geometry.tile):
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return x

    def _channels(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if self.geometry.channels == 1:
            # One channel: the first weight over itself is 1. Three: the weights already sum to 1.
            weights = self.luma[:channels]
            # Along rows, not along the three channels: ONNX Runtime would loop over spans of length one.
            return (x * (weights / weights.sum())[:, None, None]).sum(1, keepdim=True)
        return x[:, torch.arange(3, device=x.device).clamp(max=channels - 1)]

    def _tiles(self, x: Tensor, tile: int) -> Tensor:
        n, _, height, width = x.shape
        rows, columns = self.grid(height), self.grid(width)
        inside = torch.arange(tile, device=x.device)
        y = (self.origins(height, x.device)[:, None] + inside).reshape(-1)
        z = (self.origins(width, x.device)[:, None] + inside).reshape(-1)
        x = x.index_select(2, y).index_select(3, z)
        x = x.reshape(n, self.geometry.channels, rows, tile, columns, tile).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(n * rows * columns, self.geometry.channels, tile, tile)

    def _letterboxed(self, x: Tensor) -> Tensor:
        """Resize in proportion until one side fits, and fill what the other leaves on either side."""
        height, width = self.shown(x.shape[2], x.shape[3])
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        down, across = self.geometry.height - height, self.geometry.width - width
        sides = across // 2, across - across // 2, down // 2, down - down // 2
        return F.pad(x, sides, value=self.rest)

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in the detector's pixels, at which an image of this size is shown; centred, if smaller."""
        full = self.geometry.height, self.geometry.width
        if self.geometry.fit != "letterbox":
            return full
        # Rounded to the nearest pixel in whole numbers, which sizes that are still free allow.
        down = torch.sym_min(full[0], (2 * height * full[1] + width) // (2 * width))
        across = torch.sym_min(full[1], (2 * width * full[0] + height) // (2 * height))
        return cast(tuple[int, int], (torch.sym_max(down, LEAST_SHOWN), torch.sym_max(across, LEAST_SHOWN)))

    def of_image(self, heatmap: Tensor, height: int, width: int) -> Tensor:
        """Cut a heatmap [N, 1, h, w] of what the detector sees to what shows the image, resized to the same size."""
        if self.geometry.fit != "letterbox":
            return heatmap
        for dim, length in zip((2, 3), self.shown(height, width), strict=True):
            side = heatmap.shape[dim]
            first = (side - length) // 2
            pixel = torch.arange(side, device=heatmap.device)
            position = (pixel + 0.5) * torch.full_like(pixel, length) / side - 0.5
            below = position.floor()
            share = (position - below).reshape([-1, 1] if dim == 2 else [-1])
            low, high = ((below.long() + step).clamp(0, length - 1) + first for step in (0, 1))
            heatmap = heatmap.index_select(dim, low) * (1 - share) + heatmap.index_select(dim, high) * share
        return heatmap

    def grid(self, length: int) -> int:
        """Tiles along a side of `length` source pixels."""
        tile, stride = self._tile_and_stride()
        return (length - tile + stride - 1) // stride + 1

    def origins(self, length: int, device: torch.device) -> Tensor:
        """First pixel of each tile along a side, int64 [grid(length)]."""
        tile, stride = self._tile_and_stride()
        return (torch.arange(self.grid(length), device=device) * stride).clamp(max=length - tile)

    def _tile_and_stride(self) -> tuple[int, int]:
        if self.geometry.tile is None:
            raise ValueError("this geometry has no tiles")
        return self.geometry.tile, self.geometry.stride or self.geometry.tile


class Inspector(nn.Module):
    """Geometry and detector as one function of raw images.

    Args:
        detector: maps [M, C, height, width] in [−1, 1] to (score [M], heatmap [M, 1, h, w]); higher is more NG. One
            with a `backbone` also has `inspect`, which gives an embedding [M, d] as well.
        geometry: what the graph expects of an image.
    """

    def __init__(self, detector: nn.Module, geometry: InputGeometry):
        super().__init__()
        self.geometry = Geometry(geometry)
        self.detector = detector

    @property
    def embeds(self) -> bool:
        """True if it gives an embedding as well."""
        return getattr(self.detector, "backbone", None) is not None and hasattr(self.detector, "inspect")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """uint8 [N, H, W, C] → (score [N], heatmap [N, h, w]) and, where it embeds, embedding [N, d].

        The heatmap covers the image. It has the detector's size, and the source's size (h = H, w = W) where the recipe
        tiles. An image's embedding is the mean of its tiles'.
        """
        x = self.geometry(image)
        score, heatmap, *embedding = cast(Any, self.detector).inspect(x) if self.embeds else self.detector(x)
        tile = self.geometry.geometry.tile
        n, height, width, _ = image.shape
        if tile is None:
            return score, self.geometry.of_image(heatmap, height, width)[:, 0], *embedding
        rows, columns = self.geometry.grid(height), self.geometry.grid(width)
        score = score.reshape(n, rows * columns).amax(1)
        heatmap = F.interpolate(heatmap, size=(tile, tile), mode="bilinear", align_corners=False)
        heatmap = heatmap.reshape(n, rows, columns, tile, tile).permute(0, 1, 3, 2, 4)
        heatmap = heatmap.reshape(n, rows * tile, columns * tile)
        heatmap = self._blend(self._blend(heatmap, 1, height), 2, width)
        return score, heatmap, *(of_tile.reshape(n, rows * columns, -1).mean(1) for of_tile in embedding)

    def _blend(self, tiles: Tensor, dim: int, length: int) -> Tensor:
        """Blend overlapping tiles that stand side by side along `dim` into `length` source pixels."""
        tile, stride = self.geometry._tile_and_stride()
        last = self.geometry.grid(length) - 1
        pixel = torch.arange(length, device=tiles.device)
        shape = [1, -1, 1] if dim == 1 else [1, 1, -1]
        total: Tensor | float = 0.0
        weights: Tensor | float = 0.0
        for back in range(-(-tile // stride) + 1):
            if back == 0:
                index, offset = torch.full_like(pixel, last), pixel - (length - tile)
                covers = offset >= 0
            else:
                index = pixel // stride - (back - 1)
                offset = pixel - index * stride
                covers = (index >= 0) & (index < last) & (offset < tile)
            weight = torch.minimum(offset + 1, tile - offset).to(tiles.dtype) * covers
            source = index.clamp(0, last) * tile + offset.clamp(0, tile - 1)
            total = total + tiles.index_select(dim, source) * weight.reshape(shape)
            weights = weights + weight
        assert isinstance(total, Tensor)
        assert isinstance(weights, Tensor)
        return total / weights.reshape(shape)
