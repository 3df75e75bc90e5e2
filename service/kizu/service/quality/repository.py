"""The query behind every quality figure: counts of inspections by verdict, audit and label."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.identifiers import first_id_at
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.tables import Model

GroupBy = Literal["day", "lot", "station", "model_version"]


@dataclass(frozen=True)
class Cell:
    """A count of inspections that agree in everything that quality depends on."""

    key: str | None
    verdict: str
    audited: bool
    audit_probability: float | None
    label: str | None
    count: int


def cells(
    session: Session, recipe: str, since: datetime | None, until: datetime | None, group_by: GroupBy | None
) -> list[Cell]:
    """Return counts by group key, verdict, audit and label."""
    key = None if group_by is None else _key(session, group_by)
    by = [Inspection.verdict, Inspection.audited, Inspection.audit_probability, Inspection.label]
    shown = sa.null() if key is None else key
    grouped = by if key is None else [*by, key]
    query = sa.select(shown, *by, sa.func.count()).where(Inspection.recipe == recipe).group_by(*grouped)
    if group_by == "model_version":
        query = query.join(Model, Model.id == Inspection.model_id)
    if since is not None:
        query = query.where(Inspection.id >= first_id_at(since))
    if until is not None:
        query = query.where(Inspection.id < first_id_at(until))
    return [
        Cell(
            key=None if key is None else f"{recipe} v{key}" if group_by == "model_version" else str(key),
            verdict=verdict,
            audited=audited,
            audit_probability=probability,
            label=label,
            count=count,
        )
        for key, verdict, audited, probability, label, count in session.execute(query)
    ]


def _key(session: Session, group_by: GroupBy) -> sa.ColumnElement[Any]:
    match group_by:
        case "lot":
            return Inspection.lot.expression
        case "station":
            return Inspection.station.expression
        case "model_version":
            return Model.number.expression
        case "day":
            if session.get_bind().dialect.name == "sqlite":
                return sa.func.date(Inspection.received_at)
            return sa.func.date(sa.func.timezone("UTC", Inspection.received_at))
