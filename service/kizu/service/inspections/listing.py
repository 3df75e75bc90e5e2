"""Lists of inspections, and single ones by id."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from kizu.service.inspections import repository
from kizu.service.inspections.schemas import Filters, InspectionSummary
from kizu.service.inspections.tables import Inspection
from kizu.service.pages import Page, encode_cursor
from kizu.service.problems import Problem
from kizu.service.registry.schemas import ModelVersion
from kizu.service.registry.tables import Model
from kizu.service.storage.database import Database


def page(database: Database, filters: Filters, before: UUID | None, limit: int) -> Page[InspectionSummary]:
    """Return one page of inspections, newest first."""
    with database.reading() as session:
        rows = repository.page(session, filters, before, limit + 1)
    items = [
        InspectionSummary.of(inspection, ModelVersion(id=inspection.model_id, name=f"{recipe} v{number}"))
        for inspection, recipe, number in rows[:limit]
    ]
    return Page(items=items, next=encode_cursor(items[-1].id) if len(rows) > limit else None)


def find(database: Database, inspection_id: UUID) -> tuple[Inspection, Model]:
    """Return an inspection with its model; raises a 404 Problem."""
    with database.reading() as session:
        return find_in(session, inspection_id)


def find_in(session: Session, inspection_id: UUID) -> tuple[Inspection, Model]:
    """Return an inspection with its model, as a transaction sees them; raises a 404 Problem."""
    found = repository.get(session, inspection_id)
    if found is None:
        raise unknown_inspection(inspection_id)
    return found


def unknown_inspection(inspection_id: UUID) -> Problem:
    """Return the 404 Problem for an id that no inspection has."""
    return Problem(404, "unknown-inspection", f"There is no inspection {inspection_id}.")
