"""FNR and specificity of every threshold, and an operating point that somebody chooses by looking at them.

Notable here:
- Who looks first and chooses then, picks thresholds that look better than they are: a bound for one threshold fails too
  often. Here all bounds hold at all thresholds at once, so any choice keeps the promise (`bands.py`).
- Kizu cannot see who has looked. A target counts as fixed beforehand only if it is the recipe's, at the recipe's
  confidence; any other, on scores that exist already, counts as chosen on the curve.
- NG of one group are one, drawn as for every certificate. OK parts count one by one.
- Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kizu.models.bands import simultaneous_interval, simultaneous_upper
from kizu.models.calibration import CalibrationScores
from kizu.models.operating_point import (
    VERDICT_MARGIN,
    Basis,
    CertifyingSplit,
    OperatingPoint,
    above_share,
    draw_independent,
    required_ng,
    settled,
)
from kizu.models.rates import CurveRate

_FNR_STEPS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
_SPECIFICITY_STEPS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def is_threshold(value: float) -> bool:
    """True if a score can be compared with it: finite as a float32."""
    return abs(value) <= float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CurvePoint:
    """One threshold; the bounds of all of them hold together."""

    threshold: float
    """NG if score ≥ threshold."""
    fnr: CurveRate
    """Independent NG below the threshold. Its lower bound is 0: what matters is how bad it can be."""
    specificity: CurveRate
    """OK parts below the threshold."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "threshold": self.threshold,
            "fnr": self.fnr.as_dict(),
            "specificity": self.specificity.as_dict(),
        }


@dataclass(frozen=True)
class ThresholdCurve:
    """Scores that certify, of one split, with the bounds of every threshold."""

    calibration: CalibrationScores
    split: CertifyingSplit
    draw_key: str
    """Fingerprint of the data set: it decides which NG of a group is drawn."""
    confidence: float = 0.95
    """Of all FNR bounds together, and of all specificity bounds together."""

    @cached_property
    def certifying(self) -> CalibrationScores:
        """Scores of the split."""
        return self.calibration.of(self.split)

    @cached_property
    def independent_ng(self) -> NDArray[np.float32]:
        """One NG of each group, and each without a group; ascending, shape [n]."""
        scores = self.certifying
        return draw_independent(scores.ng, scores.ng_groups, self.draw_key)

    @cached_property
    def ok(self) -> NDArray[np.float32]:
        """Scores of OK parts, ascending, shape [m]."""
        return np.sort(self.certifying.ok)

    @cached_property
    def smallest_fnr(self) -> float | None:
        """The smallest FNR that any threshold certifies, that of the lowest NG score; None without NG."""
        return float(self._fnr_bounds[0]) if self.independent_ng.size else None

    @cached_property
    def _fnr_bounds(self) -> NDArray[np.float64]:
        return simultaneous_upper(self.independent_ng.size, self.confidence)

    def at(self, threshold: float) -> CurvePoint:
        """Return the rates at one threshold, compared in float32 as verdicts are."""
        limit = np.float32(threshold)
        missed = int(np.searchsorted(self.independent_ng, limit))
        passed = int(np.searchsorted(self.ok, limit))
        return CurvePoint(
            threshold=float(limit),
            fnr=CurveRate(missed, self.independent_ng.size, self.confidence, (0.0, float(self._fnr_bounds[missed]))),
            specificity=CurveRate(
                passed, self.ok.size, self.confidence, simultaneous_interval(self.ok.size, passed, self.confidence)
            ),
        )

    def for_fnr(self, target: float) -> np.float32:
        """The highest threshold that certifies `target` on the curve, or the lowest NG score where none does.

        Raises:
            ValueError: there is no NG.
        """
        if not self.independent_ng.size:
            raise ValueError("there is no NG to certify an FNR on")
        allowed = int(np.searchsorted(self._fnr_bounds, target, side="right")) - 1
        lowest: np.float32 = self.independent_ng[min(max(allowed, 0), self.independent_ng.size - 1)]
        return lowest

    def for_specificity(self, share: float) -> np.float32:
        """The smallest threshold that at least `share` of the OK parts stay below.

        Raises:
            ValueError: there is no OK part.
        """
        if not self.ok.size:
            raise ValueError("there is no OK part to take a specificity from")
        return above_share(self.ok, share, VERDICT_MARGIN)

    def steps(self) -> Iterator[CurvePoint]:
        """Yield thresholds worth looking at, ascending: those of round certified FNRs and of round specificities."""
        found: dict[float, None] = {}
        if self.smallest_fnr is not None:
            for target in (self.smallest_fnr, *(step for step in _FNR_STEPS if step > self.smallest_fnr)):
                found[float(self.for_fnr(target))] = None
        if self.ok.size:
            for share in _SPECIFICITY_STEPS:
                found[float(self.for_specificity(share))] = None
        last = None
        for threshold in sorted(found):
            point = self.at(threshold)
            if last is None or (point.fnr.count, point.specificity.count) != last:
                yield point
            last = point.fnr.count, point.specificity.count

    def operating_point(
        self, threshold: float, *, target_fnr: float, review_band: float = 0.0, tolerance: float = VERDICT_MARGIN
    ) -> OperatingPoint:
        """Return the operating point at a threshold that was chosen on the curve.

        Args:
            threshold: the highest that it may have; it is lowered by a little where a score is nearer than `tolerance`.
            target_fnr: what the certificate is compared with.
            review_band: as in `choose_operating_point`.
            tolerance: likewise.

        Raises:
            ValueError: a threshold that is not finite, or neither NG nor OK.
        """
        if not is_threshold(threshold):
            raise ValueError(f"a threshold must be a finite number, not {threshold}")
        if not self.independent_ng.size and not self.ok.size:
            raise ValueError("an operating point needs calibration scores, and there are none")
        every = np.unique(np.array([row.score for row in self.calibration.rows], dtype=np.float32))
        settled_threshold, review_threshold = settled(np.float32(threshold), self.ok, every, review_band, tolerance)
        point = self.at(float(settled_threshold))
        groups = {group for group in self.certifying.ng_groups if group}
        return OperatingPoint(
            threshold=float(settled_threshold),
            review_threshold=float(review_threshold),
            target_fnr=target_fnr,
            confidence=self.confidence,
            n_ng=int(self.certifying.ng.size),
            n_ok=int(self.ok.size),
            n_ng_groups=len(groups) or None,
            independence="groups" if groups else "parts",
            n_independent=int(self.independent_ng.size),
            certified_on=self.split,
            required_ng=required_ng(target_fnr, self.confidence),
            passed_ok=point.specificity.count,
            chosen="curve",
            smallest_fnr=self.smallest_fnr,
            specificity_bounds=point.specificity.bounds if self.ok.size else None,
            **self._certificate(point, target_fnr),
        )

    def _certificate(self, point: CurvePoint, target_fnr: float) -> dict[str, Any]:
        if self.smallest_fnr is None:
            return {"basis": "specificity", "certified_fnr": None, "rank": None}
        certified, n = point.fnr.upper, point.fnr.total
        basis: Basis = "certified" if certified <= target_fnr else "above-target"
        if basis == "above-target" and point.fnr.count == 0:
            basis = "smallest-certifiable"
        return {"basis": basis, "certified_fnr": certified, "rank": min(point.fnr.count + 1, n)}
