"""Sentences on what the figures do not say, and on which reviews would say more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kizu.service.quality.counts import Counts


@dataclass(frozen=True)
class ReviewsNeeded:
    """Reviews that would narrow the bounds."""

    what: Literal["audit samples", "second reviews", "flagged"]
    count: int
    sentence: str


def caveats(counts: Counts) -> list[str]:
    """Return the limits of the figures, as sentences."""
    sentences = []
    if counts.reviewed_passed < counts.passed:
        sentences.append(
            f"Only {counts.reviewed_passed} of {counts.passed} passed inspections have been reviewed. Misses among the "
            "others are unseen, so fnr is likely too low and specificity too low as well; fnr_estimate and "
            "specificity_estimate correct for this with the audit samples."
        )
    waiting = counts.flagged - counts.reviewed_flagged
    if waiting:
        sentences.append(
            f"Only {counts.reviewed_flagged} of {counts.flagged} flagged inspections have been reviewed. The bounds "
            "extrapolate from reviews in the random order of the queue; where they cannot, any of the others may be NG."
        )
    samples = counts.sampled - counts.audited
    if samples:
        sentences.append(
            f"{samples} of {counts.sampled} audit samples still wait for a review. The bounds extrapolate from reviews "
            "in the random order of the queue; where they cannot, any of the others may be NG."
        )
    if samples or waiting:
        sentences.append("The bounds assume that reviewers do not stop because of what they found.")
    never = sum(stratum.unknown for stratum in counts.passes if not stratum.probability)
    if never:
        sentences.append(f"{never} inspections passed while the audit rate was 0; nothing can be estimated about them.")
    if counts.tp + counts.fn == 0:
        sentences.append("No NG has been confirmed yet, so nothing is known about the FNR.")
    if counts.doubtful:
        sentences.append(
            f"{counts.doubtful} passes that somebody found NG wait for agreement of another reviewer. Until then they "
            "count as NG in the upper bounds of the FNR, as OK in the lower ones, and not in the estimates."
        )
    unchecked = sum(bool(stratum.unknown and stratum.drawn and not stratum.rechecked) for stratum in counts.passes)
    if unchecked:
        sentences.append(
            f"On {unchecked} of {len(counts.passes)} days or audit rates, no audit sample found OK has been reviewed "
            "again in the order of the queue: NG that reviewers overlooked there are not in the bounds."
        )
    if counts.passed + counts.flagged:
        sentences.append(
            "The bounds assume that what two reviewers find OK is OK, and what one reviewer of a flagged part finds is "
            "right, that reviewers' names are those of different people, and that NG occur independently of each other."
        )
    return sentences


def of_versions(names: list[str]) -> str:
    """Return the caveat of figures that pool several champions."""
    return (
        f"{len(names)} model versions decided in this span ({', '.join(names)}); the figures pool them. model_versions "
        "has each by itself."
    )


def of_groups(groups: int, confidence: float, simultaneous: bool) -> str:
    """Return the caveat of many intervals in one answer."""
    if simultaneous:
        return (
            f"The intervals of the {groups} groups are widened (Bonferroni): for each figure, all of them hold at once "
            "with the confidence that was asked for."
        )
    return (
        f"Each of the {groups} groups has its own interval at {confidence:.4g} for each figure, so that up to "
        f"{groups * (1 - confidence):.2g} of them are expected to miss; simultaneous=true widens them until all hold."
    )


def reviews_needed(counts: Counts) -> list[ReviewsNeeded]:
    """Return which reviews would narrow the bounds, the more useful first."""
    needed = []
    samples, flagged = counts.sampled - counts.audited, counts.flagged - counts.reviewed_flagged
    if samples:
        needed.append(
            ReviewsNeeded("audit samples", samples, f"Review these {samples} audit samples: the queue mixes them in.")
        )
    again = counts.doubtful + counts.rechecks_waiting
    if again:
        needed.append(
            ReviewsNeeded(
                "second reviews",
                again,
                f"Let others review {again} again: the queue mixes them in for reviewers who give a name.",
            )
        )
    if flagged:
        needed.append(ReviewsNeeded("flagged", flagged, f"Review these {flagged} flagged inspections."))
    return needed
