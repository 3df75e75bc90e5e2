"""Metrics of a detector on a scored set: ranking, specificity at fixed FNRs, the operating point, each defect class.

Notable here:
- Every rate is a `Rate`: counts and Clopper–Pearson bounds come with it.
- A verdict REVIEW is neither a miss nor a false call, for people look at the part; the share of parts that they have
  to look at stands beside it, and so does the FNR at the threshold, of which the certificate speaks.
- A `Rate` counts parts. Where they come in groups it speaks for parts of these groups only, and so do the intervals of
  the rankings; what holds for new groups stands beside it (`NewGroups`).
- What a sample is too small to resolve is marked, not interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kizu.models.operating_point import OperatingPoint
from kizu.models.rates import GroupedRate, Rate
from kizu.training.evaluation.pixels import PixelMetrics
from kizu.training.evaluation.ranking import Estimate, auroc, average_precision
from kizu.training.evaluation.scoring import Scored

TARGET_FNRS = (0.05, 0.01, 0.001)
UNNAMED = "unnamed"


@dataclass(frozen=True)
class SpecificityAtFnr:
    """Specificity where the threshold is the highest whose FNR on this very set is at most the target.

    The bounds treat the threshold as given; it was chosen on the set's own NG, so they tell what more OK images would
    show at this threshold, not what other NG would.
    """

    target_fnr: float
    threshold: float
    specificity: Rate
    fnr: Rate
    resolution_limited: bool
    """The set has fewer than 1 / target NG: the threshold is the lowest NG score, and no miss was allowed."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "target_fnr": self.target_fnr,
            "threshold": self.threshold,
            "specificity": self.specificity.as_dict(),
            "fnr": self.fnr.as_dict(),
            "resolution_limited": self.resolution_limited,
        }


@dataclass(frozen=True)
class AtOperatingPoint:
    """Verdicts counted. Missed: an NG with verdict OK. False call: an OK with verdict NG."""

    specificity: Rate
    """OK parts not called NG, of all OK."""
    fnr: Rate
    """NG parts passed as OK, of all NG."""
    fnr_at_threshold: Rate
    """NG parts below the threshold, of all NG: what the FNR would be without the review band."""
    review_ok: Rate
    """OK parts sent to review, of all OK."""
    review_ng: Rate
    """NG parts sent to review, of all NG."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "specificity": self.specificity.as_dict(),
            "fnr": self.fnr.as_dict(),
            "fnr_at_threshold": self.fnr_at_threshold.as_dict(),
            "review_ok": self.review_ok.as_dict(),
            "review_ng": self.review_ng.as_dict(),
        }


@dataclass(frozen=True)
class NewGroups:
    """Rates of parts of new groups (boards, lots), groups of equal weight.

    None where no group has several images of that label: then each is one of a new group, and the `Rate` says it.
    """

    specificity: GroupedRate | None
    fnr: GroupedRate | None
    fnr_at_threshold: GroupedRate | None
    """Of which the certificate speaks."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rates = {"specificity": self.specificity, "fnr": self.fnr, "fnr_at_threshold": self.fnr_at_threshold}
        return {name: rate.as_dict() if rate else None for name, rate in rates.items()}


@dataclass(frozen=True)
class ClassDetection:
    """One defect class against all OK; an NG with several classes counts in each."""

    defect: str
    fnr: Rate
    auroc: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "defect": self.defect,
            "fnr": self.fnr.as_dict(),
            "auroc": self.auroc.as_dict() if self.auroc else None,
        }


@dataclass(frozen=True)
class DetectionMetrics:
    """All figures of one evaluation; None, or an empty tuple, where the set cannot give one."""

    n_ok: int
    n_ng: int
    confidence: float
    auroc: Estimate | None
    average_precision: Estimate | None
    specificity_at_fnr: tuple[SpecificityAtFnr, ...]
    operating_point: AtOperatingPoint
    new_groups: NewGroups
    classes: tuple[ClassDetection, ...]
    """Most missed first."""
    pixels: PixelMetrics | None
    images_per_second: float | None
    """Of the scorer alone; decoding is not in it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, as in `bundle.json` and in `kizu evaluate --json`; holds no NaN."""
        return {
            "n_ok": self.n_ok,
            "n_ng": self.n_ng,
            "confidence": self.confidence,
            "auroc": self.auroc.as_dict() if self.auroc else None,
            "average_precision": self.average_precision.as_dict() if self.average_precision else None,
            "specificity_at_fnr": [entry.as_dict() for entry in self.specificity_at_fnr],
            "operating_point": self.operating_point.as_dict(),
            "new_groups": self.new_groups.as_dict(),
            "classes": [entry.as_dict() for entry in self.classes],
            "pixels": self.pixels.as_dict() if self.pixels else None,
            "images_per_second": self.images_per_second,
        }


def compute_metrics(
    scored: Scored,
    operating_point: OperatingPoint,
    confidence: float | None = None,
    pixels: PixelMetrics | None = None,
) -> DetectionMetrics:
    """All image-level figures of a scored set; `confidence` is the operating point's unless given.

    Raises:
        ValueError: a score is not finite.
    """
    level = operating_point.confidence if confidence is None else confidence
    if not np.isfinite(scored.scores).all():
        raise ValueError(f"{int((~np.isfinite(scored.scores)).sum())} scores are not finite")
    ng, ok = scored.ng, scored.ok
    targets = [specificity_at_fnr(ng, ok, target, level) for target in TARGET_FNRS]
    return DetectionMetrics(
        n_ok=int(ok.size),
        n_ng=int(ng.size),
        confidence=level,
        auroc=auroc(ng, ok, level),
        average_precision=average_precision(ng, ok, level),
        specificity_at_fnr=tuple(entry for entry in targets if entry is not None),
        operating_point=at_operating_point(ng, ok, operating_point, level),
        new_groups=_new_groups(scored, operating_point, level),
        classes=_classes(scored, operating_point, level),
        pixels=pixels,
        images_per_second=scored.images_per_second,
    )


def specificity_at_fnr(
    ng: NDArray[np.float32], ok: NDArray[np.float32], target_fnr: float, confidence: float = 0.95
) -> SpecificityAtFnr | None:
    """Specificity at the highest threshold that misses at most `target_fnr` of `ng`; None without NG or OK."""
    if not ng.size or not ok.size:
        return None
    # 0.29 · 100 is 28.999… in floating point, yet 29 misses of 100 are 29 %.
    allowed = min(math.floor(target_fnr * ng.size + 1e-9), ng.size - 1)
    threshold = np.partition(ng, allowed)[allowed]
    return SpecificityAtFnr(
        target_fnr=target_fnr,
        threshold=float(threshold),
        specificity=_share(ok < threshold, confidence),
        fnr=_share(ng < threshold, confidence),
        resolution_limited=ng.size * target_fnr < 1 - 1e-9,
    )


def at_operating_point(
    ng: NDArray[np.float32], ok: NDArray[np.float32], operating_point: OperatingPoint, confidence: float
) -> AtOperatingPoint:
    """Count the verdicts that `operating_point` gives."""
    called_ok, passed_ok = _verdicts(ok, operating_point)
    called_ng, passed_ng = _verdicts(ng, operating_point)
    return AtOperatingPoint(
        specificity=_share(~called_ok, confidence),
        fnr=_share(passed_ng, confidence),
        fnr_at_threshold=_share(~called_ng, confidence),
        review_ok=_share(~called_ok & ~passed_ok, confidence),
        review_ng=_share(~called_ng & ~passed_ng, confidence),
    )


def _new_groups(scored: Scored, operating_point: OperatingPoint, confidence: float) -> NewGroups:
    called, passed = _verdicts(scored.scores, operating_point)
    ng, ok = scored.labels == 1, scored.labels == 0
    groups = [row.group for row in scored.rows]
    return NewGroups(
        specificity=_by_groups(~called, ok, groups, confidence),
        fnr=_by_groups(passed, ng, groups, confidence),
        fnr_at_threshold=_by_groups(~called, ng, groups, confidence),
    )


def _by_groups(
    counted: NDArray[np.bool_], among: NDArray[np.bool_], groups: Sequence[str], confidence: float
) -> GroupedRate | None:
    """Return the rate for new groups; None where no group has several parts."""
    of_each = [group for group, one in zip(groups, among, strict=True) if one]
    known = [group for group in of_each if group]
    if len(set(known)) == len(known):
        return None
    return GroupedRate.of(counted[among], of_each, confidence)


def _verdicts(
    scores: NDArray[np.float32], operating_point: OperatingPoint
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which scores get the verdict NG, and which OK; in float32, as `OperatingPoint.verdict` does."""
    return scores >= np.float32(operating_point.threshold), scores < np.float32(operating_point.review_threshold)


def _classes(scored: Scored, operating_point: OperatingPoint, confidence: float) -> tuple[ClassDetection, ...]:
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(scored.labels == 1):
        for defect in scored.rows[index].defects or (UNNAMED,):
            members.setdefault(defect, []).append(int(index))
    classes = []
    for defect, indices in members.items():
        ng = scored.scores[indices]
        _, passed = _verdicts(ng, operating_point)
        classes.append(ClassDetection(defect, _share(passed, confidence), auroc(ng, scored.ok, confidence)))
    return tuple(sorted(classes, key=lambda entry: (-(entry.fnr.value or 0.0), entry.defect)))


def _share(mask: NDArray[np.bool_], confidence: float) -> Rate:
    return Rate(int(np.count_nonzero(mask)), int(mask.size), confidence)
