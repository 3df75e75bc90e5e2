"""The query behind every quality figure: counts of inspections by verdict, audit, label and place in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.identifiers import first_id_at
from kizu.service.inspections.order import as_share, place
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
    day: str | None = None
    """The day of receipt, in UTC."""
    share: float = 1.0
    """In [0, 1]: the place of the first inspection that waits, among those of the same key, day and probability."""
    drawn: bool = True
    """Placed before the first one that waits."""
    doubtful: bool = False
    """A pass that somebody found NG, and on which no two reviewers agree yet."""
    confirmed: str | None = None
    """The label that two reviewers agree on."""


def cells(
    session: Session, recipe: str, since: datetime | None, until: datetime | None, group_by: GroupBy | None
) -> list[Cell]:
    """Return counts by group key, day, verdict, audit, label, and place before or behind the first one that waits."""
    shown = sa.null() if group_by is None else _key(session, group_by)
    flagged = Inspection.verdict != "OK"
    queued = sa.or_(flagged, Inspection.audited)
    columns = {
        "key": shown,
        "day": _key(session, "day"),
        "verdict": Inspection.verdict,
        "audited": Inspection.audited,
        "probability": Inspection.audit_probability,
        "label": Inspection.label,
        "again": Inspection.again,
        "confirmed": Inspection.confirmed,
    }
    rows = sa.select(*(column.label(name) for name, column in columns.items()), flagged.label("flagged"))
    rows = rows.where(Inspection.recipe == recipe)
    if group_by == "model_version":
        rows = rows.join(Model, Model.id == Inspection.model_id)
    if since is not None:
        rows = rows.where(Inspection.id >= first_id_at(since))
    if until is not None:
        rows = rows.where(Inspection.id < first_id_at(until))
    return [
        Cell(
            key=None if key is None else f"{recipe} v{key}" if group_by == "model_version" else str(key),
            day=str(day),
            verdict=verdict,
            audited=audited,
            audit_probability=probability,
            label=label,
            share=1.0 if first is None else as_share(first),
            drawn=drawn,
            doubtful=again,
            confirmed=confirmed,
            count=count,
        )
        for key, day, verdict, audited, probability, label, again, confirmed, first, drawn, count in (
            *session.execute(_counted(rows.where(sa.not_(queued)))),
            *session.execute(_counted(_with_first_waiting(session, rows.where(queued)))),
        )
    ]


def _counted(rows: sa.Select[Any]) -> sa.Select[Any]:
    """Count rows that agree; `first` is NULL and `drawn` true where the rows have no place in the queue."""
    table = rows.subquery()
    by = [table.c[name] for name in ("key", "day", "verdict", "audited", "probability", "label", "again", "confirmed")]
    if "first" not in table.c:
        return sa.select(*by, sa.null(), sa.true(), sa.func.count()).group_by(*by)
    by += [table.c.first, sa.or_(table.c.first.is_(None), table.c.place < table.c.first).label("drawn")]
    return sa.select(*by, sa.func.count()).group_by(*by)


def _with_first_waiting(session: Session, rows: sa.Select[Any]) -> sa.Select[Any]:
    """Add each row's place, and the first place in its stratum that has no label."""
    table = rows.add_columns(place(session).label("place")).subquery()
    waiting = sa.case((table.c.label.is_(None), table.c.place))
    stratum = [table.c.key, table.c.day, table.c.flagged, table.c.probability]
    return sa.select(table, sa.func.min(waiting).over(partition_by=stratum).label("first"))


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
