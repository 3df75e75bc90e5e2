"""Reviews: store labels, and queue inspections for review.

Notable here:
- Flagged inspections and audit samples share one queue and cannot be distinguished in it: a reviewer who knows the
  model's verdict tends to confirm it.
- Second reviews are in the same queue and look like first ones: nobody is told that somebody else found an NG.
- The queue's order is random, so that those reviewed first are a fair draw of those that wait.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from kizu.service.identifiers import new_id
from kizu.service.inspections import listing
from kizu.service.inspections.audit import AuditSampler
from kizu.service.inspections.schemas import ImageView, InspectionView
from kizu.service.inspections.tables import Inspection
from kizu.service.pages import encode_cursor
from kizu.service.registry import repository as registry
from kizu.service.registry.errors import UnknownRecipeError
from kizu.service.reviews import repository
from kizu.service.reviews.schemas import InspectionDetail, NewReview, Queue, QueueItem, QueueLinks, ReviewView
from kizu.service.reviews.tables import Review
from kizu.service.storage.database import Database


def add(database: Database, audit: AuditSampler, inspection_id: UUID, new: NewReview) -> ReviewView:
    """Add a review; raises a 404 Problem."""
    with database.writing() as session:
        inspection = repository.lock_inspection(session, inspection_id)
        if inspection is None:
            raise listing.unknown_inspection(inspection_id)
        # The order of the ids says which review counts, whatever the clock showed when the last one was made.
        review_id = new_id(after=repository.latest(session, inspection_id))
        now = datetime.now(UTC)
        review = Review(id=review_id, inspection_id=inspection_id, created_at=now, **new.model_dump())
        repository.add(session, review, inspection, audit)
    return ReviewView.model_validate(review)


def detail(database: Database, inspection_id: UUID) -> InspectionDetail:
    """Return an inspection with all its reviews; raises a 404 Problem."""
    with database.reading() as session:
        inspection, model = listing.find_in(session, inspection_id)
        reviews = [ReviewView.model_validate(review) for review in repository.of_inspection(session, inspection_id)]
    view = InspectionView.of(inspection, model)
    return InspectionDetail(**dict(view), label=inspection.label, reviews=reviews)  # type: ignore[arg-type]


def queue(database: Database, recipe: str, reviewer: str | None, after: UUID | None, limit: int, blind: bool) -> Queue:
    """Return one page of the inspections that wait for a review, in random order; raises UnknownRecipeError."""
    with database.reading() as session:
        if not registry.recipe_exists(session, recipe):
            raise UnknownRecipeError(recipe)
        rows = repository.queue(session, recipe, reviewer, after, limit + 1)
        pending = repository.pending(session, recipe, reviewer)
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
        image=ImageView.of(inspection),
        links=QueueLinks(image=f"{base}/image", reviews=f"{base}/reviews"),
    )
    if not blind:
        item.verdict = inspection.verdict  # type: ignore[assignment]
        item.score = inspection.score
        item.threshold = inspection.threshold
    return item
