"""Queries on reviews and on the inspections that wait for one."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.inspections.order import place, place_of
from kizu.service.inspections.tables import Inspection
from kizu.service.reviews.tables import Review


def lock_inspection(session: Session, inspection_id: UUID) -> Inspection | None:
    """Return the inspection, locked against other reviewers until the transaction ends."""
    return session.get(Inspection, inspection_id, with_for_update=True)


def add(session: Session, review: Review, inspection: Inspection) -> None:
    """Insert a review; the caller has locked the inspection."""
    session.add(review)
    inspection.label = review.label


def of_inspection(session: Session, inspection_id: UUID) -> Sequence[Review]:
    """Return the inspection's reviews, oldest first."""
    return session.scalars(sa.select(Review).where(Review.inspection_id == inspection_id).order_by(Review.id)).all()


def _waiting(recipe: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        Inspection.recipe == recipe,
        Inspection.label.is_(None),
        # Spelt as in the partial index ix_inspections_queue, so that the databases use it.
        sa.text("(verdict <> 'OK' OR audited)"),
    )


def queue(session: Session, recipe: str, after: UUID | None, limit: int) -> Sequence[Inspection]:
    """Return the inspections that wait for a review, behind the inspection `after`, in the random order."""
    order = place(session)
    query = sa.select(Inspection).where(_waiting(recipe)).order_by(order, Inspection.id).limit(limit)
    if after is not None:
        here = place_of(after)
        query = query.where(sa.or_(order > here, sa.and_(order == here, Inspection.id > after)))
    return session.scalars(query).all()


def pending(session: Session, recipe: str) -> int:
    """Return the number of inspections that wait for a review."""
    return session.scalar(sa.select(sa.func.count()).select_from(Inspection).where(_waiting(recipe))) or 0
