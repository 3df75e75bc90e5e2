"""API schemas of quality figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, Field

from kizu.models.rates import Rate
from kizu.service.fields import StoredMoment
from kizu.service.quality import estimates
from kizu.service.quality.caveats import caveats, reviews_needed
from kizu.service.quality.counts import Counts
from kizu.service.quality.estimates import RateEstimate, RealisedCounts
from kizu.service.quality.repository import GroupBy


class RateView(BaseModel):
    """`count` of `total`, with the two-sided Clopper–Pearson interval."""

    rate: float | None = Field(description="null: nothing was observed.")
    lower: float
    upper: float
    count: int
    total: int
    confidence: float

    @classmethod
    def of(cls, rate: Rate) -> RateView:
        """Return the view of a rate."""
        return cls.model_validate(rate.as_dict())


class EstimateView(BaseModel):
    """A rate of the process, estimated from all inspections, reviewed or not, with conservative bounds."""

    rate: float | None
    lower: float
    upper: float
    confidence: float
    reason: str | None = Field(description="Why there is no rate.")

    @classmethod
    def of(cls, estimate: RateEstimate) -> EstimateView:
        """Return the view of an estimate."""
        return cls.model_validate(asdict(estimate))


class RealisedView(BaseModel):
    """NG among the inspected parts themselves, bounded where not all have been reviewed."""

    missed_lower: float
    missed_upper: float
    caught_lower: float
    caught_upper: float
    fnr_lower: float
    fnr_upper: float
    confidence: float

    @classmethod
    def of(cls, found: RealisedCounts) -> RealisedView:
        """Return the view of bounds."""
        fnr = found.fnr
        return cls(
            missed_lower=found.missed[0],
            missed_upper=found.missed[1],
            caught_lower=found.caught[0],
            caught_upper=found.caught[1],
            fnr_lower=fnr[0],
            fnr_upper=fnr[1],
            confidence=found.confidence,
        )


class ReviewsNeededView(BaseModel):
    """Reviews that would narrow the bounds."""

    what: Literal["audit samples", "second reviews", "flagged"]
    count: int
    sentence: str
    queue: str = Field(description="Path of the queue that holds them.")


class Coverage(BaseModel):
    """Shares of the flagged and of the passed inspections that have been reviewed."""

    flagged: RateView
    passed: RateView
    audited: int = Field(description="Reviewed passes that were audit samples.")


class Quality(BaseModel):
    """Error rates of the inspection. NG is the positive class; REVIEW counts as flagged."""

    inspected: int
    passed: int
    flagged: int
    reviewed: int
    tp: int = Field(description="Flagged, and NG.")
    fp: int = Field(description="Flagged, but OK: a false call.")
    tn: int = Field(description="Passed, and OK.")
    fn: int = Field(description="Passed, but NG: an escape.")
    fnr: RateView = Field(description="fn / (fn + tp), among reviewed parts.")
    specificity: RateView = Field(description="tn / (tn + fp), among reviewed parts.")
    overkill: RateView = Field(description="fp / (fp + tn), among reviewed parts.")
    escape_rate: RateView = Field(description="fn / (fn + tn), among reviewed passes.")
    fnr_estimate: EstimateView
    specificity_estimate: EstimateView
    realised: RealisedView = Field(description="The inspected parts themselves, not the process behind them.")
    reviews_needed: list[ReviewsNeededView] = Field(description="What to review to narrow the bounds.")
    review_coverage: Coverage
    caveats: list[str] = Field(description="What these figures do not say.")

    @classmethod
    def fields_of(cls, recipe: str, counts: Counts, confidence: float) -> dict[str, object]:
        """Return the fields that follow from the counts."""
        return {
            "inspected": counts.passed + counts.flagged,
            "passed": counts.passed,
            "flagged": counts.flagged,
            "reviewed": counts.reviewed_passed + counts.reviewed_flagged,
            "tp": counts.tp,
            "fp": counts.fp,
            "tn": counts.tn,
            "fn": counts.fn,
            **{name: RateView.of(rate) for name, rate in estimates.rates(counts, confidence).items()},
            "fnr_estimate": EstimateView.of(estimates.estimate_fnr(counts, confidence)),
            "specificity_estimate": EstimateView.of(estimates.estimate_specificity(counts, confidence)),
            "realised": RealisedView.of(estimates.realised(counts, confidence)),
            "reviews_needed": [
                ReviewsNeededView(**asdict(needed), queue=f"/v1/reviews/queue?recipe={quote(recipe, safe='')}")
                for needed in reviews_needed(counts)
            ],
            "review_coverage": Coverage(
                flagged=RateView.of(Rate(counts.reviewed_flagged, counts.flagged, confidence)),
                passed=RateView.of(Rate(counts.reviewed_passed, counts.passed, confidence)),
                audited=counts.audited,
            ),
            "caveats": caveats(counts),
        }


class QualityGroup(Quality):
    """Quality of one day, lot, station or model version."""

    key: str | None = Field(description="null: inspections that named none.")


class QualityReport(Quality):
    """Quality as a whole and by group."""

    recipe: str
    since: StoredMoment | None
    until: StoredMoment | None
    captured_since: StoredMoment | None
    captured_until: StoredMoment | None
    group_by: GroupBy | None
    time_zone: str = Field(description="In which days begin.")
    groups: list[QualityGroup]
    model_versions: list[QualityGroup] = Field(description="Each version by itself, where several decided; else empty.")
