"""Tables of inspections and of idempotency keys."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from kizu.service.storage.database import Base


class Inspection(Base):
    """One scored image with its verdict. Only `label` and what follows it ever change: they repeat the reviews."""

    __tablename__ = "inspections"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(sa.String(128), sa.ForeignKey("recipes.name"))
    model_id: Mapped[str] = mapped_column(sa.String(16), sa.ForeignKey("models.id"))
    verdict: Mapped[str] = mapped_column(sa.String(8))
    score: Mapped[float | None]
    """NULL: the model gave no finite number, and the verdict is NG."""
    threshold: Mapped[float]
    serial: Mapped[str | None] = mapped_column(sa.String(128))
    lot: Mapped[str | None] = mapped_column(sa.String(128))
    station: Mapped[str | None] = mapped_column(sa.String(128))
    captured_at: Mapped[datetime | None]
    received_at: Mapped[datetime]
    """The time inside `id`."""
    image_sha256: Mapped[str] = mapped_column(sa.String(64), index=True)
    image_bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    media_type: Mapped[str] = mapped_column(sa.String(32))
    heatmap_low: Mapped[float | None]
    heatmap_high: Mapped[float | None]
    audit_probability: Mapped[float | None]
    """Probability with which the inspection could become an audit sample; NULL where it did not pass."""
    audited: Mapped[bool]
    """The inspection is an audit sample."""
    label: Mapped[str | None] = mapped_column(sa.String(2))
    confirmed: Mapped[str | None] = mapped_column(sa.String(2))
    """The label that two reviewers agree on."""
    again: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """The inspection needs another reviewer."""
    doubtful: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """The inspection passed, somebody found it NG, and no two reviewers agree."""
    recheck_probability: Mapped[float | None]
    """Probability of a recheck when an audit sample was found OK; NULL where it was not found OK first."""
    recheck: Mapped[str | None] = mapped_column(sa.String(8))
    """`waiting` or `done` where an audit sample found OK is to be reviewed again."""

    __table_args__ = (
        sa.Index("ix_inspections_recipe_id", "recipe", "id"),
        sa.Index("ix_inspections_station_id", "station", "id"),
        sa.Index("ix_inspections_recipe_captured_at", "recipe", "captured_at"),
        sa.Index("ix_inspections_serial_id", "serial", "id"),
        sa.Index("ix_inspections_lot_id", "lot", "id"),
        sa.Index(
            "ix_inspections_queue",
            "recipe",
            "id",
            sqlite_where=sa.text("label IS NULL AND (verdict <> 'OK' OR audited)"),
            postgresql_where=sa.text("label IS NULL AND (verdict <> 'OK' OR audited)"),
        ),
        sa.Index(
            "ix_inspections_again",
            "recipe",
            "id",
            sqlite_where=sa.text("again"),
            postgresql_where=sa.text("again"),
        ),
    )


class IdempotencyKey(Base):
    """A key in use, or old. Without an inspection it is a reservation, held by a request in work until `expires_at`."""

    __tablename__ = "idempotency_keys"

    station: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    """Empty where the request names no station."""
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(sa.String(64))
    token: Mapped[UUID]
    """The id of the inspection that the reservation is for."""
    expires_at: Mapped[datetime]
    inspection_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("inspections.id"), index=True)
