"""`/v1/inspections/{id}/reviews` and `/v1/reviews/queue`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from kizu.service.context import Context
from kizu.service.fields import Name
from kizu.service.pages import Cursor, Limit, decode_cursor
from kizu.service.problems import responses
from kizu.service.reviews import service
from kizu.service.reviews.schemas import NewReview, Queue, ReviewView

router = APIRouter(prefix="/v1", tags=["reviews"])


@router.post(
    "/inspections/{inspection_id}/reviews", status_code=201, summary="Say what it was", responses=responses(404, 422)
)
def create_review(context: Context, inspection_id: UUID, review: NewReview) -> ReviewView:
    """Label an inspection. Reviews are only ever added; the latest one counts."""
    return service.add(context.database, inspection_id, review)


@router.get(
    "/reviews/queue",
    summary="What waits for a review, oldest first",
    response_model_exclude_unset=True,
    responses=responses(404, 422),
)
def get_queue(
    context: Context,
    recipe: Annotated[Name, Query(description="Whose inspections.")],
    cursor: Cursor = None,
    limit: Limit = 50,
    blind: Annotated[bool, Query(description="Leave verdict and score out, so that they sway nobody.")] = True,
) -> Queue:
    """Unreviewed NG and REVIEW verdicts, mixed with audit samples of passed parts."""
    return service.queue(context.database, recipe, decode_cursor(cursor), limit, blind)
