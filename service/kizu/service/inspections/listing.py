"""Looking at what was inspected: lists, details, images and heatmaps."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from uuid import UUID

from kizu.models.decode import decode
from kizu.service.inspections import repository
from kizu.service.inspections.heatmap import draw_heatmap, draw_overlay
from kizu.service.inspections.schemas import Filters, InspectionSummary, InspectionView
from kizu.service.inspections.tables import Inspection
from kizu.service.pages import Page, encode_cursor
from kizu.service.problems import Problem
from kizu.service.registry.schemas import ModelVersion
from kizu.service.registry.tables import Model
from kizu.service.reviews import repository as reviews
from kizu.service.reviews.schemas import InspectionDetail, ReviewView
from kizu.service.storage.blobs import BlobStore
from kizu.service.storage.database import Database

if TYPE_CHECKING:
    from kizu.service.context import ServiceContext


def page(database: Database, filters: Filters, before: UUID | None, limit: int) -> Page[InspectionSummary]:
    """One page of inspections, newest first."""
    with database.reading() as session:
        rows = repository.page(session, filters, before, limit + 1)
    items = [
        InspectionSummary.of(inspection, ModelVersion(id=inspection.model_id, name=f"{recipe} v{number}"))
        for inspection, recipe, number in rows[:limit]
    ]
    return Page(items=items, next=encode_cursor(items[-1].id) if len(rows) > limit else None)


def find(database: Database, inspection_id: UUID) -> tuple[Inspection, Model]:
    """An inspection with its model; raises a 404 Problem."""
    with database.reading() as session:
        found = repository.get(session, inspection_id)
    if found is None:
        raise Problem(404, "unknown-inspection", f"There is no inspection {inspection_id}.")
    return found


def detail(database: Database, inspection_id: UUID) -> InspectionDetail:
    """An inspection with all its reviews; raises a 404 Problem."""
    inspection, model = find(database, inspection_id)
    with database.reading() as session:
        found = [ReviewView.model_validate(review) for review in reviews.of_inspection(session, inspection_id)]
    view = InspectionView.of(inspection, model)
    return InspectionDetail(**dict(view), label=inspection.label, reviews=found)  # type: ignore[arg-type]


def image(blobs: BlobStore, inspection: Inspection) -> bytes:
    """The bytes that were sent; raises a 500 Problem where somebody removed them behind Kizu's back."""
    try:
        return blobs.get(inspection.image_sha256)
    except FileNotFoundError as error:
        raise Problem(500, "image-lost", f"The image of {inspection.id} is gone from the blob store.") from error


async def draw(context: ServiceContext, inspection: Inspection, overlay: bool) -> tuple[bytes, dict[str, str]]:
    """(PNG, headers that name its scale); raises a 429, 500 or 503 Problem."""
    model = await context.runtime.version(inspection.model_id)
    low, high, source = await asyncio.to_thread(_scale, context.database, inspection, model.manifest.metrics)
    data = await asyncio.to_thread(image, context.blobs, inspection)
    pixels_allowed = max(context.settings.max_pixels, inspection.width * inspection.height)
    admission, size = context.inspector.admission, inspection.width * inspection.height * 3
    admission.take(size)
    try:
        pixels = await asyncio.to_thread(decode, data, pixels_allowed)
        scored = await model.score(pixels, time.monotonic() + context.settings.request_deadline_s)
        if overlay:
            picture = await asyncio.to_thread(draw_overlay, pixels, scored.heatmap, low, high)
        else:
            picture = await asyncio.to_thread(draw_heatmap, scored.heatmap, low, high)
    finally:
        admission.give_back(size)
    headers = {
        "Kizu-Heatmap-Low": repr(low),
        "Kizu-Heatmap-High": repr(high),
        "Kizu-Heatmap-Scale": source,
        "Cache-Control": "private, max-age=60",
    }
    return picture, headers


def _scale(database: Database, inspection: Inspection, metrics: dict[str, object]) -> tuple[float, float, str]:
    """The bundle's own range where it names one, else from 0 to the hottest spot the model has seen of late."""
    named = metrics.get("heatmap_range")
    if isinstance(named, list) and len(named) == 2 and all(isinstance(end, int | float) for end in named):
        return float(named[0]), float(named[1]), "bundle"
    with database.reading() as session:
        highest = repository.highest_heat(session, inspection.model_id)
    high = max(highest or 0.0, inspection.heatmap_high or 0.0)
    return min(0.0, inspection.heatmap_low or 0.0), high or 1.0, "recent"
