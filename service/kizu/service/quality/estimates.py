"""Error rates of the inspection, estimated from reviews.

Notable here:
- Rates among reviewed parts are plain counts with Clopper–Pearson bounds. They answer for the reviewed parts only:
  where mostly flagged parts are reviewed, misses stay unseen and the FNR looks too good (verification bias).
- The estimates correct for that with the audit samples: passed parts sampled at random with a stored probability π
  (Horvitz & Thompson, JASA 47, 1952; Begg & Greenes, Biometrics 39, 1983). Sampled parts without a review
  count as missing at random.
- Their bounds split the allowed error: half over the misses, by strata of equal π, half over the caught (Bonferroni).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from kizu.models.rates import Rate, clopper_pearson_lower, clopper_pearson_upper
from kizu.service.quality.repository import Cell


@dataclass
class AuditStratum:
    """Counts of the passed inspections with the same sampling probability."""

    passed: int = 0
    sampled: int = 0
    reviewed: int = 0
    """Sampled and reviewed."""
    ng: int = 0
    """Sampled, reviewed and NG."""


@dataclass
class Counts:
    """Counts of verdicts and labels. REVIEW counts as flagged: such a part does not leave the line unseen."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    passed: int = 0
    flagged: int = 0
    strata: dict[float, AuditStratum] = field(default_factory=lambda: defaultdict(AuditStratum))

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Counts:
        """Return the sum of cells."""
        counts = cls()
        for cell in cells:
            counts.add(cell)
        return counts

    def add(self, cell: Cell) -> None:
        """Add one cell."""
        if cell.verdict != "OK":
            self.flagged += cell.count
            self.tp += cell.count * (cell.label == "NG")
            self.fp += cell.count * (cell.label == "OK")
            return
        self.passed += cell.count
        self.fn += cell.count * (cell.label == "NG")
        self.tn += cell.count * (cell.label == "OK")
        stratum = self.strata[cell.audit_probability or 0.0]
        stratum.passed += cell.count
        stratum.sampled += cell.count * cell.audited
        stratum.reviewed += cell.count * (cell.audited and cell.label is not None)
        stratum.ng += cell.count * (cell.audited and cell.label == "NG")

    @property
    def reviewed_flagged(self) -> int:
        """Number of flagged inspections that were reviewed."""
        return self.tp + self.fp

    @property
    def reviewed_passed(self) -> int:
        """Number of passed inspections that were reviewed."""
        return self.tn + self.fn

    @property
    def complete(self) -> bool:
        """True where everything has been reviewed, so that there is nothing to estimate."""
        return self.reviewed_passed == self.passed and self.reviewed_flagged == self.flagged

    @property
    def audited(self) -> int:
        """Number of audit samples that were reviewed."""
        return sum(stratum.reviewed for stratum in self.strata.values())


@dataclass(frozen=True)
class RateEstimate:
    """A rate over all parts, not only reviewed ones, or the reason why there is none."""

    rate: float | None
    lower: float
    upper: float
    confidence: float
    reason: str | None


def rates(counts: Counts, confidence: float) -> dict[str, Rate]:
    """Return the rates among reviewed parts."""
    return {
        "fnr": Rate(counts.fn, counts.fn + counts.tp, confidence),
        "specificity": Rate(counts.tn, counts.tn + counts.fp, confidence),
        "overkill": Rate(counts.fp, counts.fp + counts.tn, confidence),
        "escape_rate": Rate(counts.fn, counts.fn + counts.tn, confidence),
    }


def estimate_fnr(counts: Counts, confidence: float) -> RateEstimate:
    """Estimate FN / (FN + TP) over all inspections."""
    if counts.complete:
        return _observed(Rate(counts.fn, counts.fn + counts.tp, confidence), "NG")
    fn, fn_lower, fn_upper = _missed(counts, confidence)
    tp, tp_lower, tp_upper = _among_flagged(counts.tp, counts, confidence)
    rate = None if fn is None or tp is None else _share(fn, tp)
    return RateEstimate(
        rate=rate,
        lower=_share(fn_lower, tp_upper) or 0.0,
        upper=1.0 if fn_upper + tp_lower == 0 else fn_upper / (fn_upper + tp_lower),
        confidence=confidence,
        reason=_reason(counts, "FNR") or _nothing_found(rate, "NG"),
    )


def estimate_specificity(counts: Counts, confidence: float) -> RateEstimate:
    """Estimate TN / (TN + FP) over all inspections."""
    if counts.complete:
        return _observed(Rate(counts.tn, counts.tn + counts.fp, confidence), "OK")
    fn, fn_lower, fn_upper = _missed(counts, confidence)
    fp, fp_lower, fp_upper = _among_flagged(counts.fp, counts, confidence)
    tn = None if fn is None else max(counts.passed - fn, 0.0)
    rate = None if tn is None or fp is None else _share(tn, fp)
    return RateEstimate(
        rate=rate,
        lower=_share(counts.passed - fn_upper, fp_upper) or 0.0,
        upper=1.0 if fp_lower == 0 else (counts.passed - fn_lower) / (counts.passed - fn_lower + fp_lower),
        confidence=confidence,
        reason=_reason(counts, "specificity") or _nothing_found(rate, "OK"),
    )


def caveats(counts: Counts) -> list[str]:
    """Return the limits of the figures, as sentences."""
    sentences = []
    if counts.reviewed_passed < counts.passed:
        sentences.append(
            f"Only {counts.reviewed_passed} of {counts.passed} passed inspections have been reviewed. Misses among the "
            "others are unseen, so fnr is likely too low and specificity too low as well; fnr_estimate and "
            "specificity_estimate correct for this with the audit samples."
        )
    if counts.reviewed_flagged < counts.flagged:
        sentences.append(
            f"Only {counts.reviewed_flagged} of {counts.flagged} flagged inspections have been reviewed; the "
            "estimates take the others to be like them."
        )
    sampled = sum(stratum.sampled for stratum in counts.strata.values())
    if counts.audited < sampled:
        sentences.append(
            f"{sampled - counts.audited} of {sampled} audit samples still wait for a review; the estimates take them "
            "to be like the reviewed ones."
        )
    never = counts.strata[0.0].passed if 0.0 in counts.strata else 0
    if never:
        sentences.append(f"{never} inspections passed while the audit rate was 0; nothing can be estimated about them.")
    if counts.tp + counts.fn == 0:
        sentences.append("No NG has been confirmed yet, so nothing is known about the FNR.")
    return sentences


def _missed(counts: Counts, confidence: float) -> tuple[float | None, float, float]:
    """Return (estimate, lower, upper) of the number of NG among all passed inspections."""
    if counts.reviewed_passed == counts.passed:
        return float(counts.fn), float(counts.fn), float(counts.fn)
    strata = [(probability, stratum) for probability, stratum in counts.strata.items() if stratum.passed]
    error = (1 - confidence) / 4  # two sides, two halves
    each = 1 - error / max(len(strata), 1)
    lower = upper = estimate = 0.0
    for probability, stratum in strata:
        if stratum.sampled:
            review_share = stratum.reviewed / stratum.sampled
            estimate += stratum.ng / (probability * review_share) if stratum.reviewed else 0.0
        lower += stratum.passed * clopper_pearson_lower(stratum.ng, stratum.reviewed, each)
        upper += stratum.passed * clopper_pearson_upper(stratum.ng, stratum.reviewed, each)
    # Labelled parts are certain, whatever the sample says.
    lower = max(lower, float(counts.fn))
    upper = max(min(upper, float(counts.passed - counts.tn)), lower)
    return (None if _reason(counts, "") else min(max(estimate, lower), upper)), lower, upper


def _among_flagged(found: int, counts: Counts, confidence: float) -> tuple[float | None, float, float]:
    """Return (estimate, lower, upper) of a count over all flagged inspections, from the count among reviewed ones."""
    if counts.reviewed_flagged == counts.flagged:
        return float(found), float(found), float(found)
    if not counts.reviewed_flagged:
        return None, 0.0, float(counts.flagged)
    each = 1 - (1 - confidence) / 4
    lower = counts.flagged * clopper_pearson_lower(found, counts.reviewed_flagged, each)
    upper = counts.flagged * clopper_pearson_upper(found, counts.reviewed_flagged, each)
    unseen = counts.flagged - counts.reviewed_flagged
    estimate = counts.flagged * found / counts.reviewed_flagged
    return estimate, max(lower, float(found)), min(upper, float(found + unseen))


def _reason(counts: Counts, what: str) -> str | None:
    unseen = counts.reviewed_passed < counts.passed
    if unseen and not counts.audited:
        return f"no audited pass has been reviewed, so {what} cannot be estimated"
    if unseen and 0.0 in counts.strata and counts.strata[0.0].passed:
        return f"some inspections passed while the audit rate was 0, so {what} cannot be estimated"
    if counts.flagged and not counts.reviewed_flagged:
        return f"no flagged inspection has been reviewed, so {what} cannot be estimated"
    return None


def _observed(rate: Rate, what: str) -> RateEstimate:
    return RateEstimate(rate.value, rate.lower, rate.upper, rate.confidence, _nothing_found(rate.value, what))


def _nothing_found(rate: float | None, what: str) -> str | None:
    return f"nothing has been found to be {what}" if rate is None else None


def _share(part: float, rest: float) -> float | None:
    return part / (part + rest) if part + rest > 0 else None
