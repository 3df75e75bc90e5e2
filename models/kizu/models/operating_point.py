"""The threshold and what it is certified for.

Notable here:
- NG if score ≥ t. t is the Neyman–Pearson umbrella order statistic (Tong, Feng & Li, Science Advances 4, 2018) on real
  NG that neither training nor checkpoint choice has seen: P(FNR > α) ≤ δ over calibrations, for any score distribution.
- NG of one group (board, lot) are one: the certificate for new parts rests on one NG of each group, drawn by a hash
  that nobody can choose. What all NG certify speaks for parts of these groups only, and says so.
- With too few NG nothing is promised silently: the smallest certifiable α is stated and used.
- A threshold that somebody chose by looking at the curve carries bounds that hold for the whole curve (`curve.py`).
- With no NG at all the threshold comes from the specificity on OK parts, and the FNR is said to be unknown.
- Imports no torch: the service reads operating points too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import bdtr, bdtrik

from kizu.models.rates import CurveRate, Rate

Verdict = Literal["OK", "NG", "REVIEW"]
Basis = Literal["certified", "above-target", "smallest-certifiable", "specificity"]
Choice = Literal["target", "curve"]
Independence = Literal["parts", "groups"]
CertifyingSplit = Literal["calibration", "certification"]

VERDICT_MARGIN = 1e-4
"""Relative distance that thresholds keep from calibration scores: as much as export lets runtimes differ, so that no
verdict can. Ensembles on a pretrained backbone were seen to differ by up to 5e-5."""

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
    """P(true FNR > certified_fnr) ≤ 1 − confidence, for new parts. None: the FNR is unknown."""
    confidence: float
    rank: int | None
    """k: the threshold is at most the k-th smallest score of the independent real NG."""
    n_ng: int
    n_ok: int
    n_ng_groups: int | None = None
    """Physical things (boards, lots) that the NG came from, where the manifest names them."""
    independence: Independence | None = None
    """What counts as one NG: a part, or a group. None: a part, in bundles from before groups counted."""
    n_independent: int | None = None
    """NG that the certificate rests on: one of each group, and each without a group. None: all `n_ng`."""
    groups_only_fnr: float | None = None
    """What all NG, each counted, certify for parts of these groups only. None: no group has several NG."""
    groups_only_rank: int | None = None
    """Of all NG: the threshold is at most their k-th smallest score."""
    certified_on: CertifyingSplit | None = None
    """Split that the NG are of. None: calibration, in bundles that do not say."""
    required_ng: int
    """Independent real NG that the target would have needed."""
    passed_ok: int
    """Calibration OK parts below the threshold; `passed_ok` of `n_ok` is the specificity there."""
    chosen: Choice = "target"
    """`target`: by a target FNR that was fixed before the scores were there. `curve`: later, and every bound holds for
    all thresholds at once."""
    smallest_fnr: float | None = None
    """The smallest FNR that any threshold on the curve certifies. None: not chosen on a curve, or no NG."""
    specificity_bounds: tuple[float, float] | None = None
    """Of the specificity, at all thresholds at once. None: not chosen on a curve, or no OK."""

    @property
    def certified(self) -> bool:
        """True if the threshold is certified for the recipe's own target."""
        return self.basis == "certified"

    def verdict(self, score: float) -> Verdict:
        """The verdict on one score. A NaN is NG: a part that cannot be scored does not pass."""
        if not score < self.threshold:
            return "NG"
        return "REVIEW" if score >= self.review_threshold else "OK"

    @property
    def for_new_parts(self) -> bool:
        """True if the target is certified for parts of any group, not only for parts of the groups that were seen."""
        counted_parts_of_groups = self.independence is None and self.n_ng > (self.n_ng_groups or self.n_ng)
        return self.certified and not counted_parts_of_groups

    def statement(self) -> str:
        """The certificate in plain words."""
        split = self.certified_on or "calibration"
        on_ok = f"On {self.n_ok} {split} OK parts the specificity was {self.specificity}." if self.n_ok else ""
        on_curve = self.chosen == "curve" and self.certified_fnr is not None
        sentences = [
            self._promise_on_curve() if on_curve else self._promise(),
            self._for_these_groups(),
            self._remarks() if self.n_ng else "",
            on_ok,
        ]
        return " ".join(sentence for sentence in sentences if sentence)

    @property
    def specificity(self) -> Rate:
        """Share of the calibration OK parts below the threshold, with its bounds."""
        if self.specificity_bounds is None:
            return Rate(self.passed_ok, self.n_ok, self.confidence)
        return CurveRate(self.passed_ok, self.n_ok, self.confidence, self.specificity_bounds)

    def _promise_on_curve(self) -> str:
        bound = f"with {100 * self.confidence:.6g} % confidence the FNR is at most {at_most(self.certified_fnr or 0.0)}"
        by_group = self.independence == "groups"
        for_new = " for new parts" * by_group
        counted = f"{self.n_independent} {'NG, one drawn from each group' if by_group else 'real, unseen NG'}"
        how = f"threshold chosen on the curve of {counted}; the bound holds at all thresholds at once"
        if self.basis == "certified":
            return f"Certified{for_new}: {bound} ({how})."
        target = _percent(self.target_fnr)
        smallest = f"The smallest FNR that a threshold on it certifies is {at_most(self.smallest_fnr or 0.0)}."
        if self.basis == "above-target":
            return f"Above the target FNR of {target}{for_new}: {bound} ({how}). {smallest}"
        return f"Not certifiable at FNR {target}{for_new}: {bound}, the smallest that these NG certify ({how})."

    def _promise(self) -> str:
        share, target = f"{100 * self.confidence:.6g} %", _percent(self.target_fnr)
        by_group = self.independence == "groups"
        if self.basis == "specificity":
            return (
                "FNR unknown: no real NG was left for calibration, so the threshold only holds overkill down. "
                f"Add at least {self.required_ng} real NG to certify an FNR of {target}."
            )
        n = self.n_ng if self.n_independent is None else self.n_independent
        if self.basis == "certified":
            rank = f"NG score number {self.rank} of {n}"
            where = (
                f"threshold at most {rank}, one drawn from each group, groups of equal weight"
                if by_group
                else f"threshold = {rank} real, unseen NG"
            )
            return (
                f"Certified{' for new parts' * by_group}: with {share} confidence the FNR is at most {target} "
                f"({where}, counted from the lowest)."
            )
        needed, where = "real NG", "= the lowest NG score"
        if by_group:
            needed, where = "groups with real NG", "at most the lowest score of one NG drawn from each group"
        return (
            f"Not certifiable at FNR {target}{' for new parts' * by_group}: that needs {self.required_ng} {needed}, "
            f"{self.certified_on or 'calibration'} had {n}. What they do certify, with {share} confidence, is an FNR "
            f"of at most {at_most(self.certified_fnr or 0.0)} (threshold {where})."
        )

    def _for_these_groups(self) -> str:
        if self.independence is None and self.n_ng_groups and self.n_ng > self.n_ng_groups:
            return (
                f"The NG came from only {self.n_ng_groups} group{'s' * (self.n_ng_groups > 1)}; parts of one group "
                "resemble each other, so the certificate speaks for parts from such groups."
            )
        if self.groups_only_fnr is None:
            return ""
        return (
            f"For parts of these groups only, in the mixture seen here: at most "
            f"{at_most(self.groups_only_fnr)} (all {self.n_ng} NG counted; the lower of the two thresholds is "
            "used)."
        )

    def _remarks(self) -> str:
        found = []
        if self.independence == "parts":
            found.append("No group is known, so every NG counts as independent; several of one board would not be.")
        if self.certified_on == "calibration":
            found.append(
                "These calibration NG were also looked at while the model was designed; NG that a recipe reserves "
                "(splits.certification) are not."
            )
        elif self.certified_on == "certification":
            others = "only thresholds were chosen by them" if self.chosen == "curve" else "nothing else has read them"
            found.append(f"The NG were reserved for this certificate; {others}.")
        return " ".join(found)


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


def draw_independent(scores: ArrayLike, groups: Sequence[str], key: str) -> NDArray[np.float32]:
    """Draw one score of each group; a score without a group is its own. Returns them ascending, float32 [m].

    The index among a group's ascending scores is a hash of `key` and the group's name: it does not depend on the order
    of the rows, on the model, or on anybody's choice.

    Args:
        scores: shape [n], finite.
        groups: of each score; empty where unknown.
        key: fingerprint of the data set.
    """
    members: dict[str, list[np.float32]] = {}
    for score, group in zip(np.asarray(scores, dtype=np.float32).ravel(), groups, strict=True):
        members.setdefault(group, []).append(score)
    drawn = members.pop("", [])
    for group, of_group in members.items():
        digest = hashlib.sha256(f"certificate\0{key}\0{group}".encode()).digest()
        drawn.append(sorted(of_group)[int.from_bytes(digest) % len(of_group)])
    return np.sort(np.array(drawn, dtype=np.float32))


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
    draw_key: str = "",
    certified_on: CertifyingSplit = "calibration",
    other_scores: ArrayLike = (),
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
        ng_groups: the group of each NG, in the order of the scores, empty where unknown.
        draw_key: fingerprint of the data set, which decides which NG of a group is drawn.
        certified_on: split that the scores are of.
        other_scores: further scores that the tolerance is kept from.

    Raises:
        ValueError: neither NG nor OK scores, a score that is not finite, groups for another number of NG, or a target,
            band or tolerance out of range.
    """
    ng, ok = _finite(ng_scores, "NG"), _finite(ok_scores, "OK")
    _check_ranges(target_fnr, confidence, target_specificity, review_band, tolerance)
    if not ng.size and not ok.size:
        raise ValueError("an operating point needs calibration scores, and there are none")
    groups = list(ng_groups) if ng_groups is not None else [""] * ng.size
    if ng.size:
        highest, certificate = _certificate(ng, draw_independent(ng_scores, groups, draw_key), target_fnr, confidence)
    else:
        highest = above_share(ok, target_specificity, tolerance)
        certificate = {"basis": "specificity", "certified_fnr": None, "rank": None}
    scores = np.union1d(np.concatenate([ng, ok]), _finite(other_scores, "other"))
    threshold, review_threshold = settled(highest, ok, scores, review_band, tolerance)
    known = {group for group in groups if group}
    return OperatingPoint(
        threshold=float(threshold),
        review_threshold=float(review_threshold),
        target_fnr=target_fnr,
        confidence=confidence,
        n_ng=int(ng.size),
        n_ok=int(ok.size),
        n_ng_groups=len(known) or None,
        independence="groups" if known else "parts",
        certified_on=certified_on,
        required_ng=required_ng(target_fnr, confidence),
        passed_ok=int(np.count_nonzero(ok < threshold)),
        **certificate,
    )


def _certificate(
    ng: NDArray[np.float32], independent: NDArray[np.float32], target_fnr: float, confidence: float
) -> tuple[np.float32, dict[str, Any]]:
    """Return the highest threshold that the NG allow, and what it certifies.

    Given their groups, NG are independent, each with a miss probability of its group, and the order statistic of all of
    them bounds the mean of these from a confidence of 0.75 on (Hoeffding, Annals of Mathematical Statistics 27, 1956).
    Its rank is fixed beforehand, so the lower of the two order statistics keeps both promises.
    """
    basis, rank, certified = _rank(independent.size, target_fnr, confidence)
    found: dict[str, Any] = {"basis": basis, "certified_fnr": certified, "rank": rank}
    found["n_independent"] = int(independent.size)
    threshold: np.float32 = independent[rank - 1]
    if independent.size < ng.size:
        _, of_all, groups_only = _rank(ng.size, target_fnr, confidence)
        found |= {"groups_only_fnr": groups_only, "groups_only_rank": of_all}
        threshold = min(threshold, ng[of_all - 1])
    return threshold, found


def _rank(n_ng: int, target_fnr: float, confidence: float) -> tuple[Basis, int, float]:
    """Return the order statistic of `n_ng` scores and the FNR that it certifies: the target, or the smallest it can."""
    if rank := umbrella_rank(n_ng, target_fnr, confidence):
        return "certified", rank, target_fnr
    return "smallest-certifiable", 1, smallest_certifiable_fnr(n_ng, confidence)


def settled(
    highest: np.float32, ok: NDArray[np.float32], scores: NDArray[np.float32], review_band: float, tolerance: float
) -> tuple[np.float32, np.float32]:
    """Return threshold and review threshold: at most `highest`, and `tolerance` away from every score.

    Args:
        ok: scores of OK parts, ascending; `review_band` is a share of these.
        scores: all scores that the tolerance is kept from, ascending.
    """
    threshold = _settle(highest, scores, tolerance)
    review_threshold = _review_threshold(ok, threshold, review_band)
    if review_threshold < threshold:
        review_threshold = _settle(review_threshold, scores, tolerance)
    return threshold, review_threshold


def _check_ranges(
    target_fnr: float, confidence: float, target_specificity: float, review_band: float, tolerance: float
) -> None:
    for name, value in (("target_fnr", target_fnr), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), not {value}")
    if not 0 < target_specificity <= 1:
        raise ValueError(f"target_specificity must lie in (0, 1], not {target_specificity}")
    for name, value in (("review_band", review_band), ("tolerance", tolerance)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {value}")


def _review_threshold(ok: NDArray[np.float32], threshold: np.float32, review_band: float) -> np.float32:
    below = ok[ok < threshold]
    reviewed = min(math.floor(review_band * ok.size + 1e-9), below.size)
    return below[below.size - reviewed] if reviewed else threshold


def above_share(ok: NDArray[np.float32], share: float, tolerance: float) -> np.float32:
    """The smallest value that at least `share` of the scores (ascending) stay below; a bit above it for `tolerance`."""
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
    below = scores[scores < threshold][::-1]
    for lower in [*below[:_SETTLING_STEPS], np.float32(-np.inf)][:_SETTLING_STEPS]:
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


def at_most(rate: float) -> str:
    """Three digits, rounded up: a printed limit never promises more than the certified one."""
    percent = 100 * rate
    step = 10.0 ** (math.floor(math.log10(percent)) - 2)
    return f"{math.ceil(percent / step - 1e-9) * step:.3g} %"
