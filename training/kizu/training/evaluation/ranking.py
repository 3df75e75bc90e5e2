"""Ranking of NG above OK by a score (AUROC), with intervals that hold for small or perfectly separated samples too.

Notable here:
- AUROC by midranks with DeLong's variance on the logit scale: O(n log n), and the interval stays inside [0, 1].
- Where DeLong has no variance to offer (perfect separation, a single NG) a distribution-free bound for U-statistics
  takes its place: AUROC = 1 on ten NG is not "1 [1, 1]".
- Average precision by stratified bootstrap, and by order statistics where the bootstrap would collapse to a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

RESAMPLES = 1000
# Resamples are drawn in blocks of about this many images, so that memory does not grow with the data set.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure with its two-sided interval at `confidence` and the method that gave the interval."""

    value: float
    lower: float
    upper: float
    confidence: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "value": self.value,
            "lower": self.lower,
            "upper": self.upper,
            "confidence": self.confidence,
            "method": self.method,
        }

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.lower:.4f}, {self.upper:.4f}]"


def auroc(ng: ArrayLike, ok: ArrayLike, confidence: float = 0.95) -> Estimate | None:
    """P(score of an NG > score of an OK), ties counted half, with its interval.

    Args:
        ng: shape [m], finite scores of NG images.
        ok: shape [n], finite scores of OK images.
        confidence: in (0, 1).

    Returns:
        None where there is no NG or no OK.

    DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), in the midrank form of Sun & Xu, IEEE Signal Processing
    Letters 21 (2014), eq. 5–12; the normal approximation is made for logit(AUROC). Where the estimated variance is
    zero or undefined: Hoeffding, JASA 58 (1963), section 5b: the Chernoff bound of min(m, n) independent pairs holds
    for the two-sample U-statistic, hence min(m, n)·kl(AUROC, θ) ≤ ln(2/δ) for every θ of the interval.
    """
    x, y = _finite(ng), _finite(ok)
    if not x.size or not y.size:
        return None
    value, variance = delong(x, y)
    if variance is not None and variance > 0:
        spread = norm.ppf((1 + confidence) / 2) * math.sqrt(variance) / (value * (1 - value))
        logit = math.log(value / (1 - value))
        return Estimate(value, _expit(logit - spread), _expit(logit + spread), confidence, "DeLong, logit scale")
    lower, upper = _hoeffding(value, min(x.size, y.size), confidence)
    return Estimate(value, lower, upper, confidence, "Hoeffding, distribution-free")


def delong(ng: NDArray[np.float64], ok: NDArray[np.float64]) -> tuple[float, float | None]:
    """AUROC and DeLong's estimate of its variance; None for the variance of fewer than two NG or two OK."""
    m, n = ng.size, ok.size
    v10, v01 = _components(ng, ok)
    value = float(v10.mean())
    if m < 2 or n < 2 or not 0 < value < 1:
        return min(max(value, 0.0), 1.0), None
    return value, float(v10.var(ddof=1) / m + v01.var(ddof=1) / n)


def _components(ng: NDArray[np.float64], ok: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Structural components V10 of the NG and V01 of the OK; the mean of either is the AUROC.

    Sun & Xu 2014: with T the midranks in the pooled sample and T' those within a class, V10 = (T − T')/n for NG and
    V01 = 1 − (T − T')/m for OK.
    """
    pooled = rankdata(np.concatenate([ng, ok]))
    v10 = (pooled[: ng.size] - rankdata(ng)) / ok.size
    return v10, 1 - (pooled[ng.size :] - rankdata(ok)) / ng.size


@dataclass(frozen=True)
class Difference:
    """Difference of two detectors' AUROC on the same parts, with its interval."""

    first: float
    second: float
    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        interval = f"{self.value:+.3f} [{self.lower:+.3f}, {self.upper:+.3f}]"
        return f"AUROC {self.first:.3f} against {self.second:.3f}, {interval}"


def auroc_difference(
    first_ng: ArrayLike, first_ok: ArrayLike, second_ng: ArrayLike, second_ok: ArrayLike, confidence: float = 0.95
) -> Difference:
    """AUROC of a first detector less that of a second, on the same parts in the same order.

    DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
    curves", Biometrics 1988: parts that one ranks high are mostly those that the other does, so the interval of the
    difference is much narrower than those of the areas.

    Raises:
        ValueError: scores that are not finite, of different numbers of parts, or fewer than two of a label.
    """
    ng, ok = ([_finite(scores) for scores in pair] for pair in ((first_ng, second_ng), (first_ok, second_ok)))
    m, n = ng[0].size, ok[0].size
    if ng[1].size != m or ok[1].size != n or min(m, n) < 2:
        raise ValueError(f"{m} and {ng[1].size} NG, {n} and {ok[1].size} OK: the same parts are compared, two at least")
    (ng_a, ok_a), (ng_b, ok_b) = (_components(*pair) for pair in zip(ng, ok, strict=True))
    first, second = float(ng_a.mean()), float(ng_b.mean())
    variance = (ng_a - ng_b).var(ddof=1) / m + (ok_a - ok_b).var(ddof=1) / n
    reach = float(norm.ppf((1 + confidence) / 2) * math.sqrt(variance))
    value = first - second
    return Difference(first, second, value, value - reach, value + reach)


def average_precision(ng: ArrayLike, ok: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate | None:
    """Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the distinct thresholds, NG positive, at the sample's own share of NG.

    The interval is the percentile interval of 1 000 bootstrap resamples, drawn within NG and within OK. Under perfect
    separation, where every resample gives 1, it is the bound of `_separated_precision`; with one NG or one OK, or
    where all resamples agree because scores are tied, it is [0, 1], since nothing was seen of the spread.

    Returns:
        None where there is no NG or no OK.
    """
    x, y = _finite(ng), _finite(ok)
    if not x.size or not y.size:
        return None
    levels, where = np.unique(np.concatenate([x, y]), return_inverse=True)
    # Level 0 is the highest score, so that cumulative sums run from the strictest threshold down.
    where = levels.size - 1 - where
    in_ng, in_ok = where[: x.size], where[x.size :]
    value = float(_precision_area(_counts(in_ng[None], levels.size), _counts(in_ok[None], levels.size))[0])
    if x.min() > y.max():
        lower = _separated_precision(x.size, y.size, confidence)
        return Estimate(value, lower, 1.0, confidence, "order statistics, perfect separation")
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // (x.size + y.size))
    areas = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        ng_counts = _counts(in_ng[rng.integers(0, x.size, (size, x.size))], levels.size)
        ok_counts = _counts(in_ok[rng.integers(0, y.size, (size, y.size))], levels.size)
        areas.append(_precision_area(ng_counts, ok_counts))
    lower, upper = np.quantile(np.concatenate(areas), [(1 - confidence) / 2, (1 + confidence) / 2])
    if x.size < 2 or y.size < 2 or lower == upper:
        return Estimate(value, 0.0, 1.0, confidence, "no spread to resample")
    method = f"stratified bootstrap, {RESAMPLES} resamples, seed {seed}"
    return Estimate(value, min(float(lower), value), max(float(upper), value), confidence, method)


def _counts(levels: NDArray[np.intp], size: int) -> NDArray[np.int64]:
    """int[B, n] of level numbers → int[B, size] of how often each occurs."""
    rows = levels.shape[0]
    offset = levels + size * np.arange(rows)[:, None]
    return np.bincount(offset.ravel(), minlength=rows * size).reshape(rows, size)


def _precision_area(ng: NDArray[np.int64], ok: NDArray[np.int64]) -> NDArray[np.float64]:
    caught = ng.cumsum(axis=1)
    flagged = caught + ok.cumsum(axis=1)
    area: NDArray[np.float64] = (ng * caught / np.maximum(flagged, 1)).sum(axis=1) / caught[:, -1]
    return area


def _separated_precision(m: int, n: int, confidence: float) -> float:
    """A lower bound of average precision where every NG scored above every OK.

    The sample's extremes bound both tails (Wilks 1941): just above the highest OK the false call rate is at most b and
    the detection rate at least a, jointly with the wished-for confidence. The least average precision that this allows
    has a share b of all OK above every NG, and the missing 1 − a of NG below every OK.
    """
    tail = (1 - confidence) / 4
    a, b = tail ** (1 / m), -math.expm1(math.log(tail) / n)
    odds = n / m
    return _area(0, a, odds * b) + _area(a, 1, odds)


def _area(start: float, stop: float, c: float) -> float:
    """∫ r / (r + c) dr."""
    return (stop - start) - c * math.log((stop + c) / (start + c))


def _hoeffding(value: float, pairs: int, confidence: float) -> tuple[float, float]:
    budget = math.log(2 / (1 - confidence)) / pairs

    def excess(theta: float) -> float:
        return _bernoulli_kl(value, theta) - budget

    tiny = 1e-12
    lower = 0.0 if value <= tiny or excess(tiny) < 0 else brentq(excess, tiny, value)
    upper = 1.0 if value >= 1 - tiny or excess(1 - tiny) < 0 else brentq(excess, value, 1 - tiny)
    return float(lower), float(upper)


def _bernoulli_kl(p: float, q: float) -> float:
    left = p * math.log(p / q) if p > 0 else 0.0
    right = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return left + right


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(scores, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} scores are not finite")
    return array
