"""Agreement of reviewers: when an escape counts as one.

Notable here:
- A pass that somebody finds NG is reviewed again by others, who are not told, until two names agree.
- Two labels under one name are one opinion, the later one; a review without a name agrees with nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """State of the reviews of one inspection."""

    confirmed: str | None
    """The label that at least two reviewers, and more than any other, gave."""
    again: bool
    """Another reviewer is needed."""


def agreement(verdict: str, reviews: Iterable[tuple[str | None, str]]) -> Agreement:
    """Return the state for (reviewer, label) pairs, oldest first."""
    latest = dict(reviews)
    named = Counter(label for reviewer, label in latest.items() if reviewer is not None)
    label, other = ("NG", "OK") if named["NG"] > named["OK"] else ("OK", "NG")
    confirmed = label if named[label] >= 2 and named[label] > named[other] else None
    return Agreement(confirmed, verdict == "OK" and confirmed is None and "NG" in latest.values())
