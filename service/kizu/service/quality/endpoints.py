"""`/v1/quality`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from kizu.service.dependencies import injected
from kizu.service.fields import Moment, Name
from kizu.service.inspections.span import Span
from kizu.service.problems import responses
from kizu.service.quality import service
from kizu.service.quality.repository import GroupBy
from kizu.service.quality.schemas import QualityReport
from kizu.service.settings import Settings
from kizu.service.storage.database import Database

router = APIRouter(prefix="/v1", tags=["quality"])


@router.get("/quality", summary="How often the inspection is wrong", responses=responses(404, 422))
def get_quality(
    database: Annotated[Database, injected(Database)],
    settings: Annotated[Settings, injected(Settings)],
    recipe: Annotated[Name, Query()],
    since: Annotated[Moment | None, Query(description="Received at or after.")] = None,
    until: Annotated[Moment | None, Query(description="Received before.")] = None,
    captured_since: Annotated[
        Moment | None, Query(description="Captured at or after; leaves out what has no `captured_at`.")
    ] = None,
    captured_until: Annotated[Moment | None, Query(description="Captured before.")] = None,
    group_by: Annotated[GroupBy | None, Query(description="`day` is a day in the plant's time zone.")] = None,
    confidence: Annotated[float, Query(ge=0.5, le=0.9999)] = 0.95,
    simultaneous: Annotated[
        bool, Query(description="Widen the groups' intervals until all hold at once (Bonferroni).")
    ] = False,
) -> QualityReport:
    """Return specificity, FNR, overkill and escape rate from reviewed inspections, each with its counts and bounds.

    Rates among reviewed parts are biased where mostly flagged parts are reviewed; `caveats` says so, and
    `fnr_estimate` corrects for it with the audit samples. It describes the process; `realised` bounds what happened to
    the inspected parts themselves.
    """
    span = Span(since, until, captured_since, captured_until)
    return service.report(database, recipe, span, group_by, confidence, simultaneous, settings.time_zone)
