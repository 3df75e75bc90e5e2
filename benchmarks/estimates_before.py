"""The FNR's bounds before they held in adverse reviews, kept to compare with.

Notable here:
- NG among unreviewed flagged parts are extrapolated from the reviewed ones, audit samples that wait count as missing
  at random, and where everything is reviewed the estimand changes from the inspected parts to the process.
"""

from __future__ import annotations

from kizu.models.rates import Rate, clopper_pearson_lower, clopper_pearson_upper
from kizu.service.quality.counts import Counts


def fnr_bounds_before(counts: Counts, confidence: float) -> tuple[float, float]:
    """Return (lower, upper) for counts whose passes all had the same audit probability."""
    if counts.reviewed_passed == counts.passed and counts.reviewed_flagged == counts.flagged:
        observed = Rate(counts.fn, counts.fn + counts.tp, confidence)
        return observed.lower, observed.upper
    each = 1 - (1 - confidence) / 4
    fn = float(counts.fn), float(counts.fn)
    if counts.reviewed_passed < counts.passed:
        low = max(counts.passed * clopper_pearson_lower(counts.fn, counts.audited, each), counts.fn)
        high = counts.passed * clopper_pearson_upper(counts.fn, counts.audited, each)
        fn = low, max(min(high, counts.passed - counts.tn), low)
    tp = float(counts.tp), float(counts.tp)
    if counts.reviewed_flagged < counts.flagged:
        low = counts.flagged * clopper_pearson_lower(counts.tp, counts.reviewed_flagged, each)
        high = counts.flagged * clopper_pearson_upper(counts.tp, counts.reviewed_flagged, each)
        tp = max(low, counts.tp), min(high, counts.flagged - counts.fp)
    return fn[0] / (fn[0] + tp[1]) if fn[0] + tp[1] else 0.0, fn[1] / (fn[1] + tp[0]) if fn[1] + tp[0] else 1.0
