"""`/v1/inspections`: submit and list inspections, get their images and heatmaps."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from kizu.service.dependencies import injected
from kizu.service.inspections import listing
from kizu.service.inspections.admission import Admission
from kizu.service.inspections.heatmap_service import HeatmapService
from kizu.service.inspections.images import StoredImages
from kizu.service.inspections.request_parser import OPENAPI, read_submission
from kizu.service.inspections.schemas import Filters, InspectionSummary, InspectionView
from kizu.service.inspections.service import InspectionService
from kizu.service.pages import Page, decode_cursor
from kizu.service.problems import responses
from kizu.service.settings import Settings
from kizu.service.storage.database import Database

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
async def create_inspection(
    request: Request,
    settings: Annotated[Settings, injected(Settings)],
    admission: Annotated[Admission, injected(Admission)],
    inspections: Annotated[InspectionService, injected(InspectionService)],
) -> Response:
    """Score an image and keep it. A 201 means: the verdict is committed and the image is stored.

    With any other answer nothing was stored. Treat it, and no answer at all, as NG.
    A replayed answer carries the header `Idempotent-Replay: true`.
    """
    with admission.request() as admitted:
        submission = await read_submission(request, admitted, settings.body_timeout_s)
        answer = await inspections.inspect(submission)
    headers = {"Location": answer.location} | ({"Idempotent-Replay": "true"} if answer.replayed else {})
    return Response(answer.body, 201, headers, media_type="application/json")


@router.get("", summary="List inspections, newest first", responses=responses(422))
def list_inspections(
    database: Annotated[Database, injected(Database)], query: Annotated[InspectionQuery, Query()]
) -> Page[InspectionSummary]:
    """List inspections in stable pages: those that arrive meanwhile change none of the following pages."""
    return listing.page(database, query, decode_cursor(query.cursor), query.limit)


@router.get(
    "/{inspection_id}/image",
    summary="The image as it was sent",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The very bytes."}, **responses(404, 410, 422, 503)},
)
def get_image(
    request: Request,
    database: Annotated[Database, injected(Database)],
    images: Annotated[StoredImages, injected(StoredImages)],
    inspection_id: UUID,
) -> Response:
    """Return the image file. Its bytes never change, so the answer may be cached for good."""
    inspection, _ = listing.find(database, inspection_id)
    headers = {
        "ETag": f'"{inspection.image_sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(images.read(inspection), media_type=inspection.media_type, headers=headers)


@router.get(
    "/{inspection_id}/heatmap",
    summary="Where the model saw something",
    response_class=Response,
    responses={**_PNG, **responses(404, 410, 413, 422, 429, 500, 503)},
)
async def get_heatmap(
    heatmaps: Annotated[HeatmapService, injected(HeatmapService)], inspection_id: UUID, overlay: bool = False
) -> Response:
    """Return a PNG of the heatmap, on a colour scale that all images of the model share.

    `overlay=true` blends it over the image. The headers `Kizu-Heatmap-Low` and `-High` name the scale's ends, in the
    model's own unit; the heatmap is computed again by the model version that decided.
    """
    picture = await heatmaps.picture(inspection_id, overlay)
    headers = {
        "Kizu-Heatmap-Low": repr(picture.scale.low),
        "Kizu-Heatmap-High": repr(picture.scale.high),
        "Kizu-Heatmap-Scale": picture.scale.source,
        "Cache-Control": "private, max-age=60",
    }
    return Response(picture.png, media_type="image/png", headers=headers)
