"""Counts of inspections by stratum: what the estimates know.

Notable here:
- A stratum is one day's flagged inspections, or one day's passes with the same audit probability.
- `share` is the part of a stratum's random order in which everything has been reviewed. Up to there the reviewed are a
  random draw of the service's own; behind it they are whatever people chose to look at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kizu.service.quality.repository import Cell


@dataclass
class ReviewStratum:
    """Counts of inspections that had the same probability to be queued for review, on the same day."""

    probability: float
    """Probability with which an inspection was queued: 1 for flagged ones."""
    share: float = 1.0
    """In [0, 1]: below this place of the random order, every queued inspection has been reviewed."""
    total: int = 0
    ng: int = 0
    """Reviewed and NG, whoever chose to review them."""
    ok: int = 0
    """Reviewed and OK, whoever chose to review them."""
    queued: int = 0
    waiting: int = 0
    """Queued and not reviewed."""
    drawn: int = 0
    """Queued, reviewed, and placed below `share`."""
    drawn_ng: int = 0
    """Drawn, and certainly NG."""
    drawn_doubtful: int = 0
    certain_ng: int = 0
    """NG by the only review of a flagged inspection, or by two reviewers of a pass."""
    doubtful: int = 0
    """Passes that somebody found NG, and on which no two reviewers agree yet."""
    recheck_probability: float = 1.0
    """Probability with which an audit sample found OK is reviewed again."""
    recheck_share: float = 1.0
    """Below this place of the random order, every recheck has been done."""
    rechecks_waiting: int = 0
    rechecked: int = 0
    """Drawn, found OK first, and reviewed again."""
    overlooked: int = 0
    """Rechecked, and certainly NG."""
    overlooked_doubtful: int = 0
    other_overlooked: int = 0
    """Found by a recheck out of the queue's order, and certainly NG."""
    other_doubtful: int = 0

    def add(self, cell: Cell) -> None:
        """Add one cell."""
        queued = cell.count if cell.audited or cell.verdict != "OK" else 0
        self.share = min(self.share, cell.share)
        self.total += cell.count
        self.ng += cell.count * (cell.label == "NG")
        self.ok += cell.count * (cell.label == "OK")
        self.queued += queued
        self.waiting += queued * (cell.label is None)
        self.drawn += queued * (cell.label is not None and cell.drawn)
        certain = not cell.doubtful and (cell.confirmed or cell.label) == "NG"
        self.certain_ng += cell.count * certain
        self.doubtful += cell.count * cell.doubtful
        if cell.recheck_probability is not None:
            self._add_recheck(cell, certain)
        if cell.recheck is None:
            self.drawn_ng += queued * (certain and cell.drawn)
            self.drawn_doubtful += queued * (cell.doubtful and cell.drawn)

    def _add_recheck(self, cell: Cell, certain: bool) -> None:
        done = cell.count * (cell.recheck == "done" and cell.drawn)
        drawn, other = (done, 0) if cell.recheck_drawn else (0, done)
        self.recheck_probability = min(self.recheck_probability, cell.recheck_probability or 0.0)
        self.recheck_share = min(self.recheck_share, cell.recheck_share)
        self.rechecks_waiting += cell.count * (cell.recheck == "waiting")
        self.rechecked += drawn
        self.overlooked += drawn * certain
        self.overlooked_doubtful += drawn * cell.doubtful
        self.other_overlooked += other * certain
        self.other_doubtful += other * cell.doubtful

    @property
    def unknown(self) -> int:
        """Number of inspections without a review."""
        return self.total - self.ng - self.ok

    @property
    def inclusion(self) -> float:
        """Probability with which an inspection of the stratum is among the drawn ones."""
        return self.probability * self.share

    @property
    def recheck_inclusion(self) -> float:
        """Probability with which an NG that the first reviewer overlooks is drawn and rechecked."""
        return self.probability * min(self.share, self.recheck_share) * self.recheck_probability


@dataclass
class Counts:
    """Counts of verdicts and labels. REVIEW counts as flagged: such a part does not leave the line unseen."""

    flagged_strata: dict[str | None, ReviewStratum] = field(default_factory=dict)
    passed_strata: dict[tuple[str | None, float], ReviewStratum] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Counts:
        """Return the sum of cells."""
        counts = cls()
        for cell in cells:
            if cell.verdict != "OK":
                counts.flagged_strata.setdefault(cell.day, ReviewStratum(1.0)).add(cell)
            else:
                probability = cell.audit_probability or 0.0
                counts.passed_strata.setdefault((cell.day, probability), ReviewStratum(probability)).add(cell)
        return counts

    @property
    def flagged_by_day(self) -> list[ReviewStratum]:
        """Strata of the flagged inspections."""
        return list(self.flagged_strata.values())

    @property
    def passes(self) -> list[ReviewStratum]:
        """Strata of the passed inspections."""
        return list(self.passed_strata.values())

    @property
    def tp(self) -> int:
        """Number of flagged inspections reviewed as NG."""
        return sum(stratum.ng for stratum in self.flagged_by_day)

    @property
    def fp(self) -> int:
        """Number of flagged inspections reviewed as OK."""
        return sum(stratum.ok for stratum in self.flagged_by_day)

    @property
    def fn(self) -> int:
        """Number of passed inspections reviewed as NG."""
        return sum(stratum.ng for stratum in self.passes)

    @property
    def tn(self) -> int:
        """Number of passed inspections reviewed as OK."""
        return sum(stratum.ok for stratum in self.passes)

    @property
    def flagged(self) -> int:
        """Number of flagged inspections."""
        return sum(stratum.total for stratum in self.flagged_by_day)

    @property
    def passed(self) -> int:
        """Number of passed inspections."""
        return sum(stratum.total for stratum in self.passes)

    @property
    def doubtful(self) -> int:
        """Number of passes that need another reviewer."""
        return sum(stratum.doubtful for stratum in self.passes)

    @property
    def rechecked(self) -> int:
        """Number of audit samples found OK that were reviewed again in the order of the queue."""
        return sum(stratum.rechecked for stratum in self.passes)

    @property
    def rechecks_waiting(self) -> int:
        """Number of audit samples found OK that wait to be reviewed again."""
        return sum(stratum.rechecks_waiting for stratum in self.passes)

    @property
    def reviewed_flagged(self) -> int:
        """Number of flagged inspections that were reviewed."""
        return self.tp + self.fp

    @property
    def reviewed_passed(self) -> int:
        """Number of passed inspections that were reviewed."""
        return self.tn + self.fn

    @property
    def sampled(self) -> int:
        """Number of audit samples."""
        return sum(stratum.queued for stratum in self.passes)

    @property
    def audited(self) -> int:
        """Number of audit samples that were reviewed."""
        return self.sampled - sum(stratum.waiting for stratum in self.passes)
