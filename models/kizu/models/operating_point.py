"""The threshold and what it is certified for.

Notable here:
- NG if score ≥ t. t is the Neyman–Pearson umbrella order statistic (Tong, Feng & Li, Science Advances 4, 2018) on real
  NG that neither training nor checkpoint choice has seen: P(FNR > α) ≤ δ over calibrations, for any score distribution.
- With too few NG nothing is promised silently: the smallest certifiable α is stated and used.
- With no NG at all the threshold comes from the specificity on OK parts, and the FNR is said to be unknown.
- Imports no torch: the service reads operating points too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import bdtr, bdtrik

from kizu.models.rates import Rate

Verdict = Literal["OK", "NG", "REVIEW"]
Basis = Literal["certified", "smallest-certifiable", "specificity"]

_SETTLING_STEPS = 1000


class OperatingPoint(BaseModel):
    """A threshold with its certificate. Scores have no unit; higher is more NG."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    """NG if score ≥ threshold."""
    review_threshold: float
    """REVIEW if review_threshold ≤ score < threshold; equal to `threshold` where the recipe has no review band."""
    basis: Basis
    target_fnr: float
    certified_fnr: float | None
    """P(true FNR > certified_fnr) ≤ 1 − confidence. None: the FNR is unknown."""
    confidence: float
    rank: int | None
    """k: the threshold is the k-th smallest calibration score of a real NG."""
    n_ng: int
    n_ok: int
    n_ng_groups: int | None = None
    """Physical things (boards, lots) that the NG came from, where the manifest names them."""
    required_ng: int
    """Real NG that the target would have needed."""
    passed_ok: int
    """Calibration OK parts below the threshold; `passed_ok` of `n_ok` is the specificity there."""

    @property
    def certified(self) -> bool:
        """True if the threshold is certified for the recipe's own target."""
        return self.basis == "certified"

    def verdict(self, score: float) -> Verdict:
        """The verdict on one score. A NaN is NG: a part that cannot be scored does not pass."""
        if not score < self.threshold:
            return "NG"
        return "REVIEW" if score >= self.review_threshold else "OK"

    def statement(self) -> str:
        """The certificate in plain words."""
        share = f"{100 * self.confidence:.6g} %"
        specificity = Rate(self.passed_ok, self.n_ok, self.confidence)
        on_ok = f"On {self.n_ok} calibration OK parts the specificity was {specificity}." if self.n_ok else ""
        if self.basis == "specificity":
            text = (
                "FNR unknown: no real NG was left for calibration, so the threshold only holds overkill down. "
                f"Add at least {self.required_ng} real NG to certify an FNR of {_percent(self.target_fnr)}."
            )
        elif self.basis == "certified":
            text = (
                f"Certified: with {share} confidence the FNR is at most {_percent(self.target_fnr)} "
                f"(threshold = NG score number {self.rank} of {self.n_ng} real, unseen NG, counted from the lowest)."
            )
        else:
            text = (
                f"Not certifiable at FNR {_percent(self.target_fnr)}: that needs {self.required_ng} real NG, "
                f"calibration had {self.n_ng}. What they do certify, with {share} confidence, is an FNR of at most "
                f"{_percent_at_most(self.certified_fnr or 0.0)} (threshold = the lowest NG score)."
            )
        if self.n_ng_groups and self.n_ng > self.n_ng_groups:
            text += (
                f" The NG came from only {self.n_ng_groups} group{'s' * (self.n_ng_groups > 1)}; parts of one group "
                "resemble each other, so the certificate speaks for parts from such groups."
            )
        return f"{text} {on_ok}".strip()


def required_ng(target_fnr: float, confidence: float) -> int:
    """The fewest real NG that can certify `target_fnr`: n ≥ ln δ / ln(1 − α)."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-target_fnr) - 1e-9)


def smallest_certifiable_fnr(n_ng: int, confidence: float) -> float:
    """α = 1 − δ^(1/n): what the lowest of `n_ng` NG scores certifies."""
    return -math.expm1(math.log(1 - confidence) / n_ng)


def umbrella_rank(n_ng: int, target_fnr: float, confidence: float) -> int:
    """The largest k with P(Bin(n, α) ≤ k − 1) ≤ δ (Tong et al. 2018, proposition 1); 0 where none is."""
    delta = 1 - confidence
    # bdtrik inverts the distribution function at real arguments; the integer next to it is settled by the function.
    k = max(int(bdtrik(delta, n_ng, target_fnr)) - 1, 0)
    while k < n_ng and bdtr(k, n_ng, target_fnr) <= delta:
        k += 1
    return k


def choose_operating_point(
    ng_scores: ArrayLike,
    ok_scores: ArrayLike,
    *,
    target_fnr: float,
    confidence: float = 0.95,
    target_specificity: float = 0.99,
    review_band: float = 0.0,
    tolerance: float = 0.0,
    ng_groups: Sequence[str] | None = None,
) -> OperatingPoint:
    """Choose the threshold from calibration scores.

    Args:
        ng_scores: shape [n], real NG unseen by training. Synthetic NG never belong here.
        ok_scores: shape [m], real OK parts of the same split.
        target_fnr: α in (0, 1).
        confidence: 1 − δ in (0, 1).
        target_specificity: used only where there is no NG: the share of OK parts to pass.
        review_band: share of the calibration OK parts, next below the threshold, that people look at as well.
        tolerance: relative distance that thresholds keep from every calibration score, so that arithmetic differences
            between runtimes change no verdict. They are lowered for it, which keeps the certificate.
        ng_groups: the group of each NG, empty where unknown.

    Raises:
        ValueError: neither NG nor OK scores, a score that is not finite, or a target, band or tolerance out of range.
    """
    ng, ok = _finite(ng_scores, "NG"), _finite(ok_scores, "OK")
    for name, value in (("target_fnr", target_fnr), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), not {value}")
    if not 0 < target_specificity <= 1:
        raise ValueError(f"target_specificity must lie in (0, 1], not {target_specificity}")
    for name, value in (("review_band", review_band), ("tolerance", tolerance)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {value}")
    if not ng.size and not ok.size:
        raise ValueError("an operating point needs calibration scores, and there are none")

    basis: Basis
    certified: float | None
    if ng.size:
        rank = umbrella_rank(ng.size, target_fnr, confidence)
        basis, certified = ("certified", target_fnr) if rank else ("smallest-certifiable", None)
        rank = max(rank, 1)
        if certified is None:
            certified = smallest_certifiable_fnr(ng.size, confidence)
        threshold = ng[rank - 1]
    else:
        basis, certified, rank = "specificity", None, 0
        threshold = _above_share(ok, target_specificity, tolerance)
    scores = np.union1d(ng, ok)
    threshold = _settle(threshold, scores, tolerance)
    review_threshold = _review_threshold(ok, threshold, review_band)
    if review_threshold < threshold:
        review_threshold = _settle(review_threshold, scores, tolerance)
    groups = {g for g in ng_groups or () if g}
    return OperatingPoint(
        threshold=float(threshold),
        review_threshold=float(review_threshold),
        basis=basis,
        target_fnr=target_fnr,
        certified_fnr=certified,
        confidence=confidence,
        rank=rank or None,
        n_ng=int(ng.size),
        n_ok=int(ok.size),
        n_ng_groups=len(groups) or None,
        required_ng=required_ng(target_fnr, confidence),
        passed_ok=int(np.count_nonzero(ok < threshold)),
    )


def _review_threshold(ok: NDArray[np.float32], threshold: np.float32, review_band: float) -> np.float32:
    below = ok[ok < threshold]
    reviewed = min(math.floor(review_band * ok.size + 1e-9), below.size)
    return below[below.size - reviewed] if reviewed else threshold


def _above_share(ok: NDArray[np.float32], share: float, tolerance: float) -> np.float32:
    """The smallest value that at least `share` of the scores stay below, or a little more where tolerance asks."""
    passed = min(max(math.ceil(share * ok.size - 1e-9), 1), ok.size)
    highest = ok[passed - 1]
    above: np.float32 = np.nextafter(highest, np.float32(np.inf), dtype=np.float32)
    if not tolerance:
        return above
    roomy = np.float32(highest + 4 * tolerance * _size(highest, ok))
    return max(above, min([roomy, *ok[ok > highest][:1]]))


def _settle(threshold: np.float32, scores: NDArray[np.float32], tolerance: float) -> np.float32:
    """Lower a threshold into the next gap between `scores` (ascending) that is wide enough.

    A score that lies nearer to the threshold than `tolerance`, relative, could change its verdict with the runtime.
    Where scores are too dense for such a gap, the threshold is lowered by the tolerance alone.
    """
    if not tolerance:
        return threshold
    upper = threshold
    for lower in [*scores[scores < threshold][::-1][:_SETTLING_STEPS], np.float32(-np.inf)]:
        margin = tolerance * _size(upper, scores)
        if upper - lower >= 2 * margin:
            return np.float32(upper - margin)
        upper = lower
    return np.float32(threshold - tolerance * _size(threshold, scores))


def median_size(scores: NDArray[np.float32]) -> float:
    """Median |s|, or 0 for no scores: the size that differences of smaller scores are relative to.

    A logit or a rank may be 0, but its rounding is not.
    """
    return float(np.median(np.abs(scores))) if scores.size else 0.0


def _size(value: np.float32, scores: NDArray[np.float32]) -> float:
    """Size that a tolerance is relative to."""
    return max(abs(float(value)), median_size(scores))


def _finite(scores: ArrayLike, label: str) -> NDArray[np.float32]:
    array = np.sort(np.asarray(scores, dtype=np.float32).ravel())
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} {label} calibration scores are not finite")
    return array


def _percent(rate: float) -> str:
    return f"{100 * rate:.6g} %"


def _percent_at_most(rate: float) -> str:
    """Three digits, rounded up: a printed limit never promises more than the certified one."""
    percent = 100 * rate
    step = 10.0 ** (math.floor(math.log10(percent)) - 2)
    return f"{math.ceil(percent / step - 1e-9) * step:.3g} %"
