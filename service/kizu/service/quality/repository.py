"""The query behind every quality figure: counts of inspections by verdict, audit, label and place in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.inspections.order import as_share, place
from kizu.service.inspections.span import Span
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.tables import Model
from kizu.service.storage.database import local_day

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
    """The day of receipt, in the plant's time zone."""
    share: float = 1.0
    """In [0, 1]: the place of the first inspection that waits, among those of the same key, day and probability."""
    drawn: bool = True
    """Placed before the first one that waits."""
    doubtful: bool = False
    """A pass that somebody found NG, and on which no two reviewers agree yet."""
    confirmed: str | None = None
    """The label that two reviewers agree on."""
    recheck: str | None = None
    """`waiting` or `done` where an audit sample found OK is to be reviewed again."""
    recheck_probability: float | None = None
    recheck_share: float = 1.0
    """Like `share`: the place of the first recheck that waits."""
    recheck_drawn: bool = True
    """Placed before the first recheck that waits."""


def cells(session: Session, recipe: str, span: Span, group_by: GroupBy | None, time_zone: str = "UTC") -> list[Cell]:
    """Return counts by group key, day, verdict, audit, label, and place before or behind the first one that waits."""
    day = local_day(session, Inspection.received_at.expression, time_zone)
    shown = sa.null() if group_by is None else day if group_by == "day" else _key(group_by)
    flagged = Inspection.verdict != "OK"
    queued = sa.or_(flagged, Inspection.audited)
    columns = {
        "key": shown,
        "day": day,
        "verdict": Inspection.verdict,
        "audited": Inspection.audited,
        "probability": Inspection.audit_probability,
        "label": Inspection.label,
        "doubtful": Inspection.doubtful,
        "confirmed": Inspection.confirmed,
        "recheck": Inspection.recheck,
        "recheck_probability": Inspection.recheck_probability,
    }
    rows = sa.select(*(column.label(name) for name, column in columns.items()), flagged.label("flagged"))
    rows = rows.where(Inspection.recipe == recipe)
    if group_by == "model_version":
        rows = rows.join(Model, Model.id == Inspection.model_id)
    rows = rows.where(*span.conditions())
    return [
        Cell(
            key=None if row.key is None else f"{recipe} v{row.key}" if group_by == "model_version" else str(row.key),
            day=str(row.day),
            verdict=row.verdict,
            audited=row.audited,
            audit_probability=row.probability,
            label=row.label,
            share=_share(row.first),
            drawn=row.drawn,
            doubtful=row.doubtful,
            confirmed=row.confirmed,
            recheck=row.recheck,
            recheck_probability=row.recheck_probability,
            recheck_share=_share(row.first_recheck),
            recheck_drawn=row.recheck_drawn,
            count=row.number,
        )
        for query in (_counted(rows.where(sa.not_(queued))), _counted(_ordered(session, rows.where(queued))))
        for row in session.execute(query)
    ]


def _share(place: str | None) -> float:
    return 1.0 if place is None else as_share(place)


def _counted(rows: sa.Select[Any]) -> sa.Select[Any]:
    """Count rows that agree; rows without a place in the queue count as before whatever waits."""
    table = rows.subquery()
    by: list[sa.ColumnElement[Any]] = [column for column in table.c if column.name != "place"]
    number = sa.func.count().label("number")
    if "first" in table.c:
        drawn = [
            sa.or_(first.is_(None), table.c.place < first).label(name)
            for name, first in (("drawn", table.c.first), ("recheck_drawn", table.c.first_recheck))
        ]
        return sa.select(*by, *drawn, number).group_by(*by, *drawn)
    nothing = [sa.null().label("first"), sa.null().label("first_recheck")]
    return sa.select(*by, *nothing, sa.true().label("drawn"), sa.true().label("recheck_drawn"), number).group_by(*by)


def _ordered(session: Session, rows: sa.Select[Any]) -> sa.Select[Any]:
    """Add each row's place, and the first places in its stratum where a review or a recheck waits."""
    table = rows.add_columns(place(session).label("place")).subquery()
    stratum = [table.c.key, table.c.day, table.c.flagged, table.c.probability]
    waiting = sa.case((table.c.label.is_(None), table.c.place))
    rechecks = sa.case((table.c.recheck == "waiting", table.c.place))
    return sa.select(
        table,
        sa.func.min(waiting).over(partition_by=stratum).label("first"),
        sa.func.min(rechecks).over(partition_by=stratum).label("first_recheck"),
    )


def _key(group_by: Literal["lot", "station", "model_version"]) -> sa.ColumnElement[Any]:
    match group_by:
        case "lot":
            return Inspection.lot.expression
        case "station":
            return Inspection.station.expression
        case "model_version":
            return Model.number.expression
