"""The images that the detector got most wrong, as thumbnails with their heatmaps, for the report.

Notable here:
- Only the chosen few are scored again, so an evaluation never holds a data set's heatmaps.
- One colour scale for all of them: a glowing spot means the same on every thumbnail of a page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from kizu.models.bundle import InputGeometry, ScoreFunction
from kizu.models.operating_point import OperatingPoint, Verdict
from kizu.training.data.manifest import Manifest, Row
from kizu.training.evaluation.pixels import resize_heatmap
from kizu.training.evaluation.scoring import Scored, score_rows

PER_SIDE = 6
THUMBNAIL = 192
_OUTLINE = (0, 220, 255)
# Dark violet through red and orange to pale yellow: lightness rises throughout, so it also reads in grey.
_COLOURS = np.array(
    [
        [20, 8, 48],
        [72, 12, 98],
        [130, 28, 104],
        [186, 46, 82],
        [228, 84, 46],
        [249, 140, 12],
        [250, 200, 50],
        [252, 253, 180],
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery."""

    path: str
    label: str
    defect: str
    score: float
    verdict: Verdict
    image_uri: str
    """data: URI, with the labelled defect outlined where the manifest has a mask or boxes."""
    heatmap_uri: str
    """data: URI, the heatmap over the image."""
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """The lowest-scored NG and the highest-scored OK, worst first."""

    misses: tuple[Exhibit, ...]
    false_calls: tuple[Exhibit, ...]
    low: float
    """Heatmap value that is transparent on every thumbnail."""
    high: float
    """Heatmap value that is brightest."""

    @property
    def colours(self) -> tuple[str, ...]:
        """CSS colours of the scale, from low to high."""
        return tuple(f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in _COLOURS)


EMPTY_GALLERY = Gallery((), (), 0.0, 1.0)


def pick_gallery(
    score: ScoreFunction,
    geometry: InputGeometry,
    manifest: Manifest,
    scored: Scored,
    operating_point: OperatingPoint,
    per_side: int = PER_SIDE,
) -> Gallery:
    """Score the worst images again and render them; `per_side` misses and as many false calls at most.

    They are the nearest to a wrong verdict, whether or not one was given: each exhibit says its verdict.
    """
    order = np.argsort(scored.scores, kind="stable")
    misses = [int(i) for i in order if scored.labels[i] == 1][:per_side]
    false_calls = [int(i) for i in order[::-1] if scored.labels[i] == 0][:per_side]
    chosen = misses + false_calls
    if not chosen:
        return EMPTY_GALLERY
    taken: dict[int, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}

    def keep(position: int, image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> None:
        taken[chosen[position]] = _shrunk(image), heatmap

    score_rows(score, geometry, manifest, [scored.rows[i] for i in chosen], batch_size=4, on_heatmap=keep)
    low, high = _scale([heatmap for _, heatmap in taken.values()])
    exhibits = {
        i: _exhibit(manifest, scored.rows[i], float(scored.scores[i]), operating_point, *taken[i], low, high)
        for i in chosen
    }
    return Gallery(tuple(exhibits[i] for i in misses), tuple(exhibits[i] for i in false_calls), low, high)


def _exhibit(
    manifest: Manifest,
    row: Row,
    score: float,
    operating_point: OperatingPoint,
    thumbnail: NDArray[np.uint8],
    heatmap: NDArray[np.float32],
    low: float,
    high: float,
) -> Exhibit:
    height, width = thumbnail.shape[:2]
    level = np.clip((resize_heatmap(heatmap, height, width) - low) / (high - low), 0, 1)[..., None]
    grey = thumbnail.mean(axis=2, keepdims=True) * 0.75
    stops = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(level[..., 0], stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    overlay = grey + (colour - grey) * np.minimum(1.4 * level, 0.85)
    return Exhibit(
        path=row.path,
        label=row.label,
        defect=row.defect,
        score=score,
        verdict=operating_point.verdict(score),
        image_uri=_jpeg(_outlined(manifest, row, thumbnail)),
        heatmap_uri=_jpeg(Image.fromarray(overlay.astype(np.uint8))),
        width=width,
        height=height,
    )


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[H, W, C] → uint8[h, w, 3], the longer side THUMBNAIL at most; small images grow by a whole factor."""
    picture: Any = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")
    longest = max(picture.size)
    if longest > THUMBNAIL:
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    elif (factor := THUMBNAIL // longest) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return np.asarray(picture)


def _outlined(manifest: Manifest, row: Row, thumbnail: NDArray[np.uint8]) -> Image.Image:
    height, width = thumbnail.shape[:2]
    pixels = thumbnail.copy()
    mask = manifest.mask(row) if row.label == "NG" else None
    if mask is not None:
        # Resized as grey and cut low, so that a defect of a pixel or two does not vanish.
        small = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        inside = np.asarray(small) > 0
        pixels[ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_dilation(inside)] = _OUTLINE
        return Image.fromarray(pixels)
    picture = Image.fromarray(pixels)
    if row.boxes:
        full = manifest.image(row).shape
        scale_x, scale_y = width / full[1], height / full[0]
        pen = ImageDraw.Draw(picture)
        for box in row.boxes:
            corners = (box.x0 * scale_x, box.y0 * scale_y, box.x1 * scale_x, box.y1 * scale_y)
            pen.rectangle(
                (min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])), outline=_OUTLINE
            )
    return picture


def _scale(heatmaps: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """The range of the shown heatmaps from their median up: the background stays clear."""
    values = np.concatenate([heatmap.ravel() for heatmap in heatmaps])
    low, high = float(np.median(values)), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
