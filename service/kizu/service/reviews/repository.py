"""Queries on reviews and on the inspections that wait for one."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.inspections.audit import AuditSampler
from kizu.service.inspections.order import place, place_of
from kizu.service.inspections.tables import Inspection
from kizu.service.reviews.agreement import agreement
from kizu.service.reviews.tables import Review


def lock_inspection(session: Session, inspection_id: UUID) -> Inspection | None:
    """Return the inspection, locked against other reviewers until the transaction ends."""
    return session.get(Inspection, inspection_id, with_for_update=True)


def add(session: Session, review: Review, inspection: Inspection, audit: AuditSampler) -> None:
    """Insert a review; the caller has locked the inspection."""
    session.add(review)
    session.flush()
    reviews = [(stored.reviewer, stored.label) for stored in of_inspection(session, inspection.id)]
    if len(reviews) == 1 and inspection.audited and review.label == "OK":
        inspection.recheck_probability = audit.recheck_rate
    drawn = inspection.recheck is not None or (len(reviews) == 1 and audit.rechecks(inspection.id))
    state = agreement(inspection.verdict, reviews, inspection.audited and drawn)
    inspection.label, inspection.confirmed = review.label, state.confirmed
    inspection.again, inspection.doubtful, inspection.recheck = state.again, state.doubtful, state.recheck


def latest(session: Session, inspection_id: UUID) -> UUID | None:
    """Return the id of the inspection's latest review."""
    query = sa.select(Review.id).where(Review.inspection_id == inspection_id).order_by(Review.id.desc()).limit(1)
    return session.scalar(query)


def of_inspection(session: Session, inspection_id: UUID) -> Sequence[Review]:
    """Return the inspection's reviews, oldest first."""
    return session.scalars(sa.select(Review).where(Review.inspection_id == inspection_id).order_by(Review.id)).all()


def _waiting(recipe: str, reviewer: str | None) -> sa.ColumnElement[bool]:
    first = sa.and_(
        Inspection.label.is_(None),
        # Spelt as in the partial index ix_inspections_queue, so that the databases use it.
        sa.text("(verdict <> 'OK' OR audited)"),
    )
    if reviewer is None:
        return sa.and_(Inspection.recipe == recipe, first)
    seen = sa.exists().where(Review.inspection_id == Inspection.id, Review.reviewer == reviewer)
    return sa.and_(Inspection.recipe == recipe, sa.or_(first, sa.and_(sa.text("again"), sa.not_(seen))))


def queue(session: Session, recipe: str, reviewer: str | None, after: UUID | None, limit: int) -> Sequence[Inspection]:
    """Return the inspections that wait for a review, behind the inspection `after`, in the random order.

    A named reviewer also gets those that need another opinion, but none that this name has reviewed.
    """
    order = place(session)
    query = sa.select(Inspection).where(_waiting(recipe, reviewer)).order_by(order, Inspection.id).limit(limit)
    if after is not None:
        here = place_of(after)
        query = query.where(sa.or_(order > here, sa.and_(order == here, Inspection.id > after)))
    return session.scalars(query).all()


def pending(session: Session, recipe: str, reviewer: str | None) -> int:
    """Return the number of inspections that wait for a review."""
    return session.scalar(sa.select(sa.func.count()).select_from(Inspection).where(_waiting(recipe, reviewer))) or 0
