"""Error rates of the inspection, estimated from reviews.

Notable here:
- Rates among reviewed parts are plain counts with Clopper–Pearson bounds. They answer for the reviewed parts only:
  where mostly flagged parts are reviewed, misses stay unseen and the FNR looks too good (verification bias; Begg &
  Greenes, Biometrics 39, 1983).
- The estimates answer for the process: how often it misses an NG, or flags an OK. They correct with the audit samples
  (Horvitz & Thompson, JASA 47, 1952); `bounds` derives their bounds.
- What was inspected is another question: `realised` answers how many of these very NG were missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import betaincinv

from kizu.models.rates import Rate
from kizu.service.quality.bounds import ratio_bounds, sightings
from kizu.service.quality.counts import Counts, ReviewStratum


@dataclass(frozen=True)
class RateEstimate:
    """A rate of the process, estimated from all parts, or the reason why there is none."""

    rate: float | None
    lower: float
    upper: float
    confidence: float
    reason: str | None


@dataclass(frozen=True)
class RealisedCounts:
    """Bounds of how many of the inspected parts themselves were NG and passed, or NG and flagged."""

    missed: tuple[float, float]
    caught: tuple[float, float]
    confidence: float

    @property
    def fnr(self) -> tuple[float, float]:
        """Bounds of missed / (missed + caught); [0, 1] where there may have been no NG."""
        lower, upper = self.missed[0], self.missed[1]
        return (
            lower / (lower + self.caught[1]) if lower else 0.0,
            upper / (upper + self.caught[0]) if upper + self.caught[0] else 1.0,
        )


def rates(counts: Counts, confidence: float) -> dict[str, Rate]:
    """Return the rates among reviewed parts."""
    return {
        "fnr": Rate(counts.fn, counts.fn + counts.tp, confidence),
        "specificity": Rate(counts.tn, counts.tn + counts.fp, confidence),
        "overkill": Rate(counts.fp, counts.fp + counts.tn, confidence),
        "escape_rate": Rate(counts.fn, counts.fn + counts.tn, confidence),
    }


def estimate_fnr(counts: Counts, confidence: float) -> RateEstimate:
    """Estimate the probability with which the process passes an NG."""
    error = (1 - confidence) / 2
    lower, upper = ratio_bounds(
        sightings(counts.passes, "NG", error), sightings(counts.flagged_by_day, "NG", error), error
    )
    fn, tp = _estimate(counts.passes), _estimate(counts.flagged_by_day)
    rate = None if fn is None or tp is None or fn + tp == 0 else min(max(fn / (fn + tp), lower), upper)
    reason = None if rate is not None else _reason(counts, "FNR") or "nothing has been found to be NG"
    return RateEstimate(rate, lower, upper, confidence, reason)


def estimate_specificity(counts: Counts, confidence: float) -> RateEstimate:
    """Estimate the probability with which the process passes an OK part.

    The number of passes is known and few of them are NG: bounds of the missed NG and of the false calls among the
    inspected parts, then the Clopper–Pearson bound of the OK that passed. Where the first two are not certain, they
    share half of the error.
    """
    error = (1 - confidence) / 2
    ng_passed, ok_flagged = sightings(counts.passes, "NG", error), sightings(counts.flagged_by_day, "OK", error)
    uncertain = bool(ng_passed.drawn) + bool(ok_flagged.drawn)
    each, last = (error / 2 / uncertain, error / 2) if uncertain else (error, error)
    fn, fp = ng_passed.realised(each), ok_flagged.realised(each)
    worst, best = counts.passed - fn[1], counts.passed - fn[0]
    lower = float(betaincinv(worst, fp[1] + 1, last)) if worst > 0 else 0.0
    upper = float(betaincinv(best + 1, fp[0], 1 - last)) if fp[0] > 0 else 1.0
    missed, flagged_ng = _estimate(counts.passes), _estimate(counts.flagged_by_day)
    rate = None
    if missed is not None and flagged_ng is not None:
        tn, false_calls = max(counts.passed - missed, 0.0), max(counts.flagged - flagged_ng, 0.0)
        rate = min(max(tn / (tn + false_calls), lower), upper) if tn + false_calls else None
    reason = None if rate is not None else _reason(counts, "specificity") or "nothing has been found to be OK"
    return RateEstimate(rate, lower, upper, confidence, reason)


def realised(counts: Counts, confidence: float) -> RealisedCounts:
    """Bound how many NG of the inspected parts themselves were missed and caught.

    Where everything is reviewed both are known, and the bounds say nothing about the next part.
    """
    error = (1 - confidence) / 2
    missed, caught = sightings(counts.passes, "NG", error), sightings(counts.flagged_by_day, "NG", error)
    each = error / max(bool(missed.drawn) + bool(caught.drawn), 1)
    return RealisedCounts(missed.realised(each), caught.realised(each), confidence)


def _estimate(strata: Sequence[ReviewStratum]) -> float | None:
    """Return the Horvitz–Thompson estimate of the number of NG, or None where a stratum says nothing."""
    if any(stratum.unknown and (not stratum.inclusion or _waits_unseen(stratum)) for stratum in strata):
        return None
    incomplete = [stratum for stratum in strata if stratum.unknown]
    for probability in {stratum.probability for stratum in incomplete}:
        if not any(stratum.drawn for stratum in incomplete if stratum.probability == probability):
            return None
    return sum(
        _estimate_drawn(stratum)
        if stratum.unknown or (stratum.rechecked and stratum.inclusion == 1)
        else stratum.certain_ng
        for stratum in strata
    )


def _estimate_drawn(stratum: ReviewStratum) -> float:
    overlooked = stratum.overlooked / stratum.recheck_inclusion if stratum.overlooked else 0.0
    return stratum.drawn_ng / stratum.inclusion + overlooked


def _waits_unseen(stratum: ReviewStratum) -> bool:
    return bool(stratum.waiting and not stratum.drawn)


def _reason(counts: Counts, what: str) -> str | None:
    cannot = f"so {what} cannot be estimated"
    if _estimate(counts.passes) is None:
        if not counts.audited:
            return f"no audited pass has been reviewed, {cannot}"
        if any(stratum.unknown and not stratum.probability for stratum in counts.passes):
            return f"some inspections passed while the audit rate was 0, {cannot}"
        return f"of some passes no audit sample has been reviewed in the order of the queue, {cannot}"
    if _estimate(counts.flagged_by_day) is None:
        if not counts.reviewed_flagged:
            return f"no flagged inspection has been reviewed, {cannot}"
        return f"of some days no flagged inspection has been reviewed in the order of the queue, {cannot}"
    return None
