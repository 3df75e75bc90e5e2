"""Agreement of reviewers: when an escape counts as one.

Notable here:
- A pass that somebody finds NG is reviewed again by others, who are not told, until two names agree.
- A random share of the audit samples that the first reviewer finds OK is reviewed again as well, so that overlooked NG
  can be estimated. The draw is fixed by a key, and nobody is told.
- Two labels under one name are one opinion, the later one; a review without a name agrees with nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Agreement:
    """State of the reviews of one inspection."""

    confirmed: str | None
    """The label that at least two reviewers, and more than any other, gave."""
    doubtful: bool
    """A pass that somebody found NG, and on which no two reviewers agree."""
    recheck: Literal["waiting", "done"] | None
    """State of the second review of an audit sample that was found OK first and drawn for it."""

    @property
    def again(self) -> bool:
        """Another reviewer is needed."""
        return self.doubtful or self.recheck == "waiting"


def agreement(verdict: str, reviews: Sequence[tuple[str | None, str]], rechecks: bool = False) -> Agreement:
    """Return the state for (reviewer, label) pairs, oldest first; `rechecks`: drawn for a recheck if found OK."""
    latest = dict(reviews)
    named = Counter(label for reviewer, label in latest.items() if reviewer is not None)
    label, other = ("NG", "OK") if named["NG"] > named["OK"] else ("OK", "NG")
    confirmed = label if named[label] >= 2 and named[label] > named[other] else None
    recheck: Literal["waiting", "done"] | None = None
    if rechecks and reviews and reviews[0][1] == "OK":
        recheck = "done" if len({reviewer for reviewer in latest if reviewer}) >= 2 else "waiting"
    return Agreement(confirmed, verdict == "OK" and confirmed is None and "NG" in latest.values(), recheck)
