"""The table of reviews."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from kizu.service.storage.database import Base


class Review(Base):
    """One person's label; rows are only ever added, and an inspection's latest one counts."""

    __tablename__ = "reviews"
    __table_args__ = (sa.Index("ix_reviews_inspection_id_id", "inspection_id", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    inspection_id: Mapped[UUID] = mapped_column(sa.ForeignKey("inspections.id"))
    label: Mapped[str] = mapped_column(sa.String(2))
    defect: Mapped[str | None] = mapped_column(sa.String(128))
    note: Mapped[str | None] = mapped_column(sa.Text)
    reviewer: Mapped[str | None] = mapped_column(sa.String(128))
    created_at: Mapped[datetime]
