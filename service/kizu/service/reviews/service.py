"""Keeping what people found, and choosing what they should look at.

Flagged inspections and audit samples wait in one queue in which neither can be told from the other: a reviewer who
knows what the model said finds what the model said.
"""

from __future__ import annotations

from uuid import UUID

from kizu.service.identifiers import new_id, time_of
from kizu.service.inspections.schemas import ImageView
from kizu.service.inspections.tables import Inspection
from kizu.service.pages import encode_cursor
from kizu.service.problems import Problem
from kizu.service.registry.service import unknown_recipe
from kizu.service.registry.tables import Recipe
from kizu.service.reviews import repository
from kizu.service.reviews.schemas import NewReview, Queue, QueueItem, QueueLinks, ReviewView
from kizu.service.reviews.tables import Review
from kizu.service.storage.database import Database


def add(database: Database, inspection_id: UUID, new: NewReview) -> ReviewView:
    """Add a review; raises a 404 Problem."""
    with database.writing() as session:
        inspection = repository.hold_inspection(session, inspection_id)
        if inspection is None:
            raise Problem(404, "unknown-inspection", f"There is no inspection {inspection_id}.")
        review_id = new_id()
        review = Review(id=review_id, inspection_id=inspection_id, created_at=time_of(review_id), **new.model_dump())
        repository.add(session, review, inspection)
    return ReviewView.model_validate(review)


def queue(database: Database, recipe: str, after: UUID | None, limit: int, blind: bool) -> Queue:
    """One page of what waits for a review, oldest first; raises a 404 Problem."""
    with database.reading() as session:
        if session.get(Recipe, recipe) is None:
            raise unknown_recipe(recipe)
        rows = repository.queue(session, recipe, after, limit + 1)
        pending = repository.pending(session, recipe)
    items = [_item(row, blind) for row in rows[:limit]]
    return Queue(items=items, next=encode_cursor(items[-1].id) if len(rows) > limit else None, pending=pending)


def _item(inspection: Inspection, blind: bool) -> QueueItem:
    base = f"/v1/inspections/{inspection.id}"
    item = QueueItem(
        id=inspection.id,
        recipe=inspection.recipe,
        serial=inspection.serial,
        lot=inspection.lot,
        station=inspection.station,
        captured_at=inspection.captured_at,
        received_at=inspection.received_at,
        image=ImageView(
            sha256=inspection.image_sha256,
            bytes=inspection.image_bytes,
            width=inspection.width,
            height=inspection.height,
            media_type=inspection.media_type,
        ),
        links=QueueLinks(image=f"{base}/image", reviews=f"{base}/reviews"),
    )
    if not blind:
        item.verdict = inspection.verdict  # type: ignore[assignment]
        item.score = inspection.score
        item.threshold = inspection.threshold
    return item
