"""A span of time that inspections are received or captured in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from kizu.service.identifiers import first_id_at
from kizu.service.inspections.tables import Inspection


@dataclass(frozen=True)
class Span:
    """Bounds on the times of receipt and of capture; lower ones are included. All that are given must hold.

    Inspections without a time of capture are outside of every bound on it.
    """

    since: datetime | None = None
    until: datetime | None = None
    captured_since: datetime | None = None
    captured_until: datetime | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions on inspections in SQL."""
        # Ids begin with the time of receipt, so the primary key finds a span of it.
        bounds = (
            (self.since, lambda moment: Inspection.id >= first_id_at(moment)),
            (self.until, lambda moment: Inspection.id < first_id_at(moment)),
            (self.captured_since, lambda moment: Inspection.captured_at >= moment),
            (self.captured_until, lambda moment: Inspection.captured_at < moment),
        )
        return [condition(moment) for moment, condition in bounds if moment is not None]

    @property
    def empty(self) -> bool:
        """True if nothing can be in it."""
        pairs = ((self.since, self.until), (self.captured_since, self.captured_until))
        return any(low is not None and high is not None and low >= high for low, high in pairs)
