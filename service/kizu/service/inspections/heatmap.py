"""Drawing of heatmaps as PNGs.

Notable here:
- The colour map is computed: lightness rises evenly in OKLCH (Ottosson, "A perceptual color space for image
  processing", 2020) while the hue turns from violet to yellow, so equal steps in heat look equal, in grey as well.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_OVERLAY_SIDE = 2048
_OVERLAY_OPACITY = 0.5


@cache
def colour_map() -> NDArray[np.uint8]:
    """Return uint8[256, 3], sRGB; lightness rises evenly from near black to bright yellow."""
    step = np.linspace(0, 1, 256)
    lightness = 0.12 + 0.82 * step
    hue = np.radians(295 + 170 * step)
    chroma = 0.17 * np.sin(np.pi * np.clip(0.12 + 0.76 * step, 0, 1)) ** 0.7
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    linear = (
        np.array(
            [
                [4.0767416621, -3.3077115913, 0.2309699292],
                [-1.2684380046, 2.6097574011, -0.3413193965],
                [-0.0041960863, -0.7034186147, 1.7076147010],
            ]
        )
        @ cone**3
    ).clip(0, 1)
    srgb: NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb.T * 255).round().astype(np.uint8)


def levels(heatmap: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Map float[h, w] to uint8[h, w]: `low` and below to 0, `high` and above, and NaN, to 255."""
    span = high - low if high > low else 1.0
    scaled: NDArray[np.float32] = np.nan_to_num((heatmap - low) / span, nan=1.0, posinf=1.0, neginf=0.0)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def draw_heatmap(heatmap: NDArray[np.float32], low: float, high: float) -> bytes:
    """Return a PNG of the heatmap's own size, with palette: its values are the 8-bit levels."""
    picture = Image.fromarray(levels(heatmap, low, high), mode="P")
    picture.putpalette(colour_map().tobytes())
    return _png(picture)


def draw_overlay(image: NDArray[np.uint8], heatmap: NDArray[np.float32], low: float, high: float) -> bytes:
    """Return a PNG of the heatmap blended over uint8[H, W, C]; longer sides are scaled down to 2048 pixels."""
    below = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L").convert("RGB")
    below.thumbnail((MAX_OVERLAY_SIDE, MAX_OVERLAY_SIDE))
    heat = Image.fromarray(levels(heatmap, low, high)).resize(below.size, Image.Resampling.BILINEAR)
    above = Image.fromarray(colour_map()[np.asarray(heat)])
    return _png(Image.blend(below, above, _OVERLAY_OPACITY))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
