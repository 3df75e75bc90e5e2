"""`/v1/inspections`: submit, list, look at."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from kizu.service.context import Context
from kizu.service.inspections import listing
from kizu.service.inspections.schemas import Filters, InspectionSummary, InspectionView
from kizu.service.inspections.submission import OPENAPI, read_submission
from kizu.service.pages import Page, decode_cursor
from kizu.service.problems import responses
from kizu.service.reviews.schemas import InspectionDetail

router = APIRouter(prefix="/v1/inspections", tags=["inspections"])

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture."}}


class InspectionQuery(Filters):
    """Filters with paging."""

    cursor: str | None = Field(default=None, max_length=64, description="`next` of the page before.")
    limit: int = Field(default=100, ge=1, le=500)


@router.post(
    "",
    status_code=201,
    summary="Inspect one image",
    response_model=InspectionView,
    responses=responses(400, 404, 408, 409, 413, 415, 422, 429, 500, 503),
    openapi_extra=OPENAPI,
)
async def create_inspection(request: Request, context: Context) -> Response:
    """Score an image and keep it. A 201 means: the verdict is committed and the image is stored.

    With any other answer nothing was stored. Treat it, and no answer at all, as NG.
    A replayed answer carries the header `Idempotent-Replay: true`.
    """
    admission = context.inspector.admission
    admission.enter()
    taken = 0
    try:
        submission, taken = await read_submission(request, admission, context.settings.body_timeout_s)
        view, replayed = await context.inspector.inspect(submission)
    finally:
        admission.leave(taken)
    headers = {"Location": view.links.self} | ({"Idempotent-Replay": "true"} if replayed else {})
    return JSONResponse(view.model_dump(mode="json"), 201, headers)


@router.get("", summary="List inspections, newest first", responses=responses(422))
def list_inspections(context: Context, query: Annotated[InspectionQuery, Query()]) -> Page[InspectionSummary]:
    """Pages are stable: inspections that arrive meanwhile change none of the following pages."""
    return listing.page(context.database, query, decode_cursor(query.cursor), query.limit)


@router.get("/{inspection_id}", summary="One inspection with its reviews", responses=responses(404, 422))
def get_inspection(context: Context, inspection_id: UUID) -> InspectionDetail:
    """What was decided, and what people found."""
    return listing.detail(context.database, inspection_id)


@router.get(
    "/{inspection_id}/image",
    summary="The image as it was sent",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The very bytes."}, **responses(404, 422)},
)
def get_image(context: Context, request: Request, inspection_id: UUID) -> Response:
    """The bytes never change, so the answer may be cached for good."""
    inspection, _ = listing.find(context.database, inspection_id)
    headers = {
        "ETag": f'"{inspection.image_sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(listing.image(context.blobs, inspection), media_type=inspection.media_type, headers=headers)


@router.get(
    "/{inspection_id}/heatmap",
    summary="Where the model saw something",
    response_class=Response,
    responses={**_PNG, **responses(404, 422, 429, 503)},
)
async def get_heatmap(context: Context, inspection_id: UUID, overlay: bool = False) -> Response:
    """A PNG of the heatmap, on a colour scale that all images of the model share.

    `overlay=true` blends it over the image. The headers `Kizu-Heatmap-Low` and `-High` name the scale's ends, in the
    model's own unit; the heatmap is computed again by the model version that decided.
    """
    key = (inspection_id, overlay)
    known = context.heatmaps.get(key)
    if known is None:
        inspection, _ = await asyncio.to_thread(listing.find, context.database, inspection_id)
        known = await listing.draw(context, inspection, overlay)
        context.heatmaps.put(key, *known)
    picture, headers = known
    return Response(picture, media_type="image/png", headers=headers)
