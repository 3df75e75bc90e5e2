"""Heatmap pictures of stored inspections: score the image again, then draw.

Notable here:
- Nothing is stored: the stored image through the stored model version gives the same heatmap again.
- The colour scale belongs to the model version, not to the image; otherwise every good part would show a hot spot.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from kizu.models.decode import decode
from kizu.service.inference.runtime import Runtime
from kizu.service.inspections import listing, repository
from kizu.service.inspections.admission import Admission
from kizu.service.inspections.heatmap import draw_heatmap, draw_overlay
from kizu.service.inspections.images import StoredImages
from kizu.service.inspections.tables import Inspection
from kizu.service.storage.database import Database

CACHE_SIZE = 64


@dataclass(frozen=True)
class ColourScale:
    """The heatmap values at the two ends of the colour map, in the model's own unit."""

    low: float
    high: float
    source: Literal["bundle", "recent"]
    """Named by the bundle, or taken from the model's latest inspections."""


@dataclass(frozen=True)
class HeatmapPicture:
    """A PNG with the scale of its colours."""

    png: bytes
    scale: ColourScale


class HeatmapService:
    """Renderer of heatmaps with a cache of recent pictures; lives in the event loop."""

    def __init__(
        self,
        database: Database,
        images: StoredImages,
        runtime: Runtime,
        admission: Admission,
        *,
        max_pixels: int,
        deadline_s: float,
    ):
        self._database = database
        self._images = images
        self._runtime = runtime
        self._admission = admission
        self._max_pixels = max_pixels
        self._deadline_s = deadline_s
        self._cache: OrderedDict[tuple[UUID, bool], HeatmapPicture] = OrderedDict()

    async def picture(self, inspection_id: UUID, overlay: bool) -> HeatmapPicture:
        """Return an inspection's heatmap, alone or as an overlay on the image.

        Raises:
            Problem: 404 no such inspection, 410 its image was removed, 503 the image store cannot be read.
            InferenceError: the image cannot be scored.
        """
        key = (inspection_id, overlay)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        inspection, _ = await asyncio.to_thread(listing.find, self._database, inspection_id)
        picture = await self._render(inspection, overlay)
        self._cache[key] = picture
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return picture

    async def _render(self, inspection: Inspection, overlay: bool) -> HeatmapPicture:
        model = await self._runtime.version(inspection.model_id)
        scale = await asyncio.to_thread(self._scale, inspection, model.manifest.metrics)
        data = await asyncio.to_thread(self._images.read, inspection)
        # The limit may have been lowered since the image was accepted.
        max_pixels = max(self._max_pixels, inspection.width * inspection.height)
        with self._admission.memory(inspection.width * inspection.height * 3):
            pixels = await asyncio.to_thread(decode, data, max_pixels)
            scored = await model.score(pixels, time.monotonic() + self._deadline_s)
            if overlay:
                png = await asyncio.to_thread(draw_overlay, pixels, scored.heatmap, scale.low, scale.high)
            else:
                png = await asyncio.to_thread(draw_heatmap, scored.heatmap, scale.low, scale.high)
        return HeatmapPicture(png, scale)

    def _scale(self, inspection: Inspection, metrics: dict[str, object]) -> ColourScale:
        """Return the bundle's own range where it names one, else from 0 to the latest inspections' highest value."""
        named = metrics.get("heatmap_range")
        if isinstance(named, list) and len(named) == 2 and all(isinstance(end, int | float) for end in named):
            return ColourScale(float(named[0]), float(named[1]), "bundle")
        with self._database.reading() as session:
            highest = repository.highest_heatmap_value(session, inspection.model_id)
        high = max(highest or 0.0, inspection.heatmap_high or 0.0)
        return ColourScale(min(0.0, inspection.heatmap_low or 0.0), high or 1.0, "recent")
