"""`/v1/inspections/{id}` with its reviews, `/v1/inspections/{id}/reviews` and `/v1/reviews/queue`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from kizu.service.dependencies import injected
from kizu.service.fields import Name, OptionalName
from kizu.service.inspections.audit import AuditSampler
from kizu.service.pages import Cursor, Limit, decode_cursor
from kizu.service.problems import responses
from kizu.service.reviews import service
from kizu.service.reviews.schemas import InspectionDetail, NewReview, Queue, ReviewView
from kizu.service.storage.database import Database

InjectedDatabase = Annotated[Database, injected(Database)]

router = APIRouter(prefix="/v1")


@router.get(
    "/inspections/{inspection_id}",
    tags=["inspections"],
    summary="One inspection with its reviews",
    responses=responses(404, 422),
)
def get_inspection(database: InjectedDatabase, inspection_id: UUID) -> InspectionDetail:
    """Return the verdict, what it rests on, and all reviews."""
    return service.detail(database, inspection_id)


@router.post(
    "/inspections/{inspection_id}/reviews",
    tags=["reviews"],
    status_code=201,
    summary="Say what it was",
    responses=responses(404, 422),
)
def create_review(
    database: InjectedDatabase,
    audit: Annotated[AuditSampler, injected(AuditSampler)],
    inspection_id: UUID,
    review: NewReview,
) -> ReviewView:
    """Label an inspection. Reviews are only ever added; the latest one counts."""
    return service.add(database, audit, inspection_id, review)


@router.get(
    "/reviews/queue",
    tags=["reviews"],
    summary="What waits for a review, in random order",
    response_model_exclude_unset=True,
    responses=responses(404, 422),
)
def get_queue(
    database: InjectedDatabase,
    recipe: Annotated[Name, Query(description="Whose inspections.")],
    reviewer: Annotated[
        OptionalName, Query(description="Who will look: adds what needs another opinion than this one's.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
    blind: Annotated[
        bool, Query(description="Leave verdict and score out, so that they do not bias the reviewer.")
    ] = True,
) -> Queue:
    """List unreviewed NG and REVIEW verdicts, mixed with audit samples of passed parts.

    The order is random and fixed, so that the reviewed ones are a random draw of all, and quality can say how it bounds
    the others. Passes that somebody found NG, and a random share of the audit samples found OK, are handed out again,
    unmarked, to other reviewers who give their name.
    """
    return service.queue(database, recipe, reviewer, decode_cursor(cursor), limit, blind)
