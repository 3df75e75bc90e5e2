"""The random order in which queued inspections are handed out for review.

Notable here:
- An inspection's place is the last 48 of the random bits of its id. Whoever works through the queue reviews a random
  draw, however long the backlog is and whatever it holds, so that what has been reviewed speaks for what has not.
- The place is fixed when the id is made, before the verdict, and is independent of the draw of audit samples.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.inspections.tables import Inspection

DIGITS = 12
"""Hexadecimal digits of a place."""


def place_of(identifier: UUID) -> str:
    """Return an inspection's place, as text that sorts like the number."""
    return identifier.hex[-DIGITS:]


def as_share(place: str) -> float:
    """Return the share of all places before this one, in [0, 1)."""
    return int(place, 16) / float(16**DIGITS)


def place(session: Session) -> sa.ColumnElement[str]:
    """Return the expression of `place_of` in SQL."""
    text = sa.cast(Inspection.id, sa.String)
    if session.get_bind().dialect.name == "sqlite":
        return sa.func.substr(text, -DIGITS)
    return sa.func.right(text, DIGITS)
