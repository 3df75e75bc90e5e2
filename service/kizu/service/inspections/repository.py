"""Queries on inspections and idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.identifiers import first_id_at
from kizu.service.inspections.schemas import Filters
from kizu.service.inspections.tables import IdempotencyKey, Inspection
from kizu.service.registry.tables import Model
from kizu.service.storage.database import insert_or_ignore


class ReservationLostError(Exception):
    """An idempotency key that another request took over, because its reservation had expired."""


def add(session: Session, inspection: Inspection, station: str, key: str | None) -> None:
    """Insert an inspection and settle its reservation; safe to run twice.

    Raises:
        ReservationLostError: the reservation is not this inspection's any more.
    """
    values = {column.key: getattr(inspection, column.key) for column in sa.inspect(Inspection).column_attrs}
    insert_or_ignore(session, Inspection, **values)
    if key is not None:
        settled = session.execute(
            sa.update(IdempotencyKey)
            .where(IdempotencyKey.station == station, IdempotencyKey.key == key, IdempotencyKey.token == inspection.id)
            .values(inspection_id=inspection.id)
        )
        assert isinstance(settled, sa.CursorResult)
        if settled.rowcount != 1:
            raise ReservationLostError


def get(session: Session, inspection_id: UUID) -> tuple[Inspection, Model] | None:
    """Return an inspection with the model that decided."""
    row = session.execute(
        sa.select(Inspection, Model).join(Model, Model.id == Inspection.model_id).where(Inspection.id == inspection_id)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def page(session: Session, filters: Filters, before: UUID | None, limit: int) -> Sequence[tuple[Inspection, str, int]]:
    """Return (inspection, its model's recipe and number) of those before the inspection `before`, newest first."""
    query = (
        sa.select(Inspection, Model.recipe, Model.number)
        .join(Model, Model.id == Inspection.model_id)
        .order_by(Inspection.id.desc())
        .limit(limit)
    )
    if filters.recipe is not None:
        query = query.where(_recipe(session, filters) == filters.recipe)
    for column in (Inspection.lot, Inspection.station, Inspection.serial, Inspection.verdict):
        wanted = getattr(filters, column.key)
        if wanted is not None:
            query = query.where(column == wanted)
    if filters.reviewed is not None:
        query = query.where(Inspection.label.is_not(None) if filters.reviewed else Inspection.label.is_(None))
    query = query.where(*filters.span.conditions())
    if before is not None:
        query = query.where(Inspection.id < before)
    return [(row[0], row[1], row[2]) for row in session.execute(query)]


def _recipe(session: Session, filters: Filters) -> sa.ColumnElement[str]:
    """Return the column of the recipe, kept from its index where another filter finds fewer inspections."""
    narrower = (filters.serial, filters.lot, filters.station) != (None, None, None)
    if narrower and session.get_bind().dialect.name == "sqlite":
        # Without statistics SQLite takes all indexes for equally good; a unary plus takes one out of its choice.
        return sa.literal_column("+inspections.recipe", sa.String())
    return Inspection.recipe.expression


def with_images(session: Session, image_keys: list[str]) -> set[str]:
    """Return the keys of those images that an inspection refers to."""
    query = sa.select(Inspection.image_sha256).where(Inspection.image_sha256.in_(image_keys))
    return set(session.scalars(query))


def highest_heatmap_value(session: Session, model_id: str, among: int = 500) -> float | None:
    """Return the largest heatmap value of the model's latest inspections."""
    latest = (
        sa.select(Inspection.heatmap_high)
        .where(Inspection.model_id == model_id)
        .order_by(Inspection.id.desc())
        .limit(among)
        .subquery()
    )
    highest: float | None = session.scalar(sa.select(sa.func.max(latest.c.heatmap_high)))
    return highest


def find_key(session: Session, station: str, key: str) -> IdempotencyKey | None:
    """Return an idempotency key in use, or left behind by a crash."""
    return session.get(IdempotencyKey, (station, key))


def reserve(
    session: Session,
    station: str,
    key: str,
    request_sha256: str,
    token: UUID,
    lease: timedelta,
    forgotten_before: datetime,
) -> bool:
    """Reserve an idempotency key for the inspection `token`; False if it is in use. Safe to run twice.

    Keys of inspections that were received before `forgotten_before` are free.
    """
    now = datetime.now(UTC)
    values = {"request_sha256": request_sha256, "token": token, "expires_at": now + lease, "inspection_id": None}
    if insert_or_ignore(session, IdempotencyKey, station=station, key=key, **values):
        return True
    taken = session.execute(
        sa.update(IdempotencyKey)
        .where(
            IdempotencyKey.station == station,
            IdempotencyKey.key == key,
            sa.or_(
                sa.and_(
                    IdempotencyKey.inspection_id.is_(None),
                    sa.or_(IdempotencyKey.expires_at < now, IdempotencyKey.token == token),
                ),
                IdempotencyKey.inspection_id < first_id_at(forgotten_before),
            ),
        )
        .values(**values)
    )
    assert isinstance(taken, sa.CursorResult)
    return taken.rowcount == 1


def release(session: Session, station: str, key: str, token: UUID) -> None:
    """Delete a reservation that led to no inspection."""
    session.execute(
        sa.delete(IdempotencyKey).where(
            IdempotencyKey.station == station,
            IdempotencyKey.key == key,
            IdempotencyKey.token == token,
            IdempotencyKey.inspection_id.is_(None),
        )
    )


def forget_keys(session: Session, forgotten_before: datetime, limit: int) -> int:
    """Delete up to `limit` keys of inspections received before `forgotten_before`, or of reservations that ended then.

    Returns:
        How many were deleted.
    """
    old = (
        sa.select(IdempotencyKey.station, IdempotencyKey.key)
        .where(
            sa.or_(
                IdempotencyKey.inspection_id < first_id_at(forgotten_before),
                sa.and_(IdempotencyKey.inspection_id.is_(None), IdempotencyKey.expires_at < forgotten_before),
            )
        )
        .limit(limit)
    )
    this_one = sa.tuple_(IdempotencyKey.station, IdempotencyKey.key)
    deleted = session.execute(
        sa.delete(IdempotencyKey).where(this_one.in_(old)), execution_options={"synchronize_session": False}
    )
    assert isinstance(deleted, sa.CursorResult)
    return deleted.rowcount


def release_all(session: Session) -> None:
    """Delete every reservation; only while no process can be working on one."""
    session.execute(sa.delete(IdempotencyKey).where(IdempotencyKey.inspection_id.is_(None)))
