"""Bounds on a distribution function that hold at every threshold at once, from independent scores.

Notable here:
- The i-th smallest of n uniform values is Beta(i, n + 1 − i). Each gets an upper bound at the same local level η, and η
  is as large as the joint probability allows (the exact one-sided Berk–Jones band: Moscovich, Nadler & Spiegelman,
  Electronic Journal of Statistics 10, 2016). Unlike Kolmogorov's, this band is narrow where rates are small.
- The joint probability is exact: a Poisson process that is conditioned on its number of points (Moscovich & Nadler,
  Statistics & Probability Letters 123, 2017). Only positive terms are added, so nothing cancels.
- Beyond 2 000 scores some of the ranks carry the bounds, and a rank between two takes the next higher bound.
- Imports no torch.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, gammaln

_ALL_RANKS = 2000
_DENSE_RANKS = 300
_SPARSE_RANKS = 300
_NEGLIGIBLE = 1e-20
_LEVEL_TOLERANCE = 1e-6


@lru_cache(maxsize=64)
def simultaneous_upper(n: int, confidence: float) -> NDArray[np.float64]:
    """Bounds u, shape [n + 1], ascending to u[n] = 1.

    With `confidence`, P(score < t) ≤ u[m] for all thresholds t at once, m being the number of the n scores below t,
    whatever the distribution. Do not write to the array: it is cached.

    Args:
        n: independent scores, at least 0.
        confidence: in (0, 1).
    """
    if n < 0 or not 0 < confidence < 1:
        raise ValueError(f"a band needs n ≥ 0 and a confidence in (0, 1), not {n} and {confidence}")
    if not n:
        return np.ones(1)
    ranks = _ranks(n)
    bounds = np.ones(n + 1)
    bounds[:n] = _local(ranks, n, _local_level(ranks, n, confidence))[np.searchsorted(ranks, np.arange(1, n + 1))]
    return bounds


def simultaneous_interval(n: int, count: int, confidence: float) -> tuple[float, float]:
    """Bounds of P(score < t) for all thresholds t at once, `count` of n scores being below t.

    Each side holds at (1 + confidence) / 2, as in a two-sided interval.
    """
    bounds = simultaneous_upper(n, (1 + confidence) / 2)
    return float(1 - bounds[n - count]), float(bounds[count])


def joint_probability(ranks: NDArray[np.int64], bounds: NDArray[np.float64], n: int) -> float:
    """P(U₍ᵢ₎ ≤ bᵢ for each of `ranks` i), U₍ᵢ₎ the i-th smallest of n independent uniform values.

    Args:
        ranks: ascending, from 1 to n, shape [r].
        bounds: ascending, in [0, 1], shape [r].
    """
    low, states = 0, np.ones(1)  # states[k]: P(low + k points up to here, and no rank above its bound)
    passed = 0.0
    for rank, bound in zip(ranks.tolist(), bounds.tolist(), strict=True):
        states = np.convolve(states, _poisson(n * (bound - passed)))[: n - low + 1]
        passed = bound
        if rank > low:
            states, low = states[rank - low :], rank
        kept = np.flatnonzero(states > _NEGLIGIBLE)
        if not kept.size:
            return 0.0
        states = states[: kept[-1] + 1]
    left = n - low - np.arange(states.size)
    reaching = np.exp(_log_poisson(left, n * (1 - passed)) - _log_poisson(np.array([n]), n))
    return min(float(states @ reaching), 1.0)


def _ranks(n: int) -> NDArray[np.int64]:
    """Ranks that carry bounds: all, or the lowest and highest and ever fewer towards the middle."""
    if n <= _ALL_RANKS:
        return np.arange(1, n + 1)
    low = np.concatenate([np.arange(1, _DENSE_RANKS + 1), np.geomspace(_DENSE_RANKS, n / 2, _SPARSE_RANKS).round()])
    low = low.astype(np.int64)
    return np.union1d(low, n + 1 - low)


def _local(ranks: NDArray[np.int64], n: int, level: float) -> NDArray[np.float64]:
    return np.asarray(betaincinv(ranks, n + 1 - ranks, 1 - level), dtype=np.float64)


def _local_level(ranks: NDArray[np.int64], n: int, confidence: float) -> float:
    """The largest η at which all bounds hold together, a millionth lower so that the promise is kept."""
    delta = 1 - confidence
    if n == 1:
        return delta

    def excess(log_level: float) -> float:
        return joint_probability(ranks, _local(ranks, n, math.exp(log_level)), n) - confidence

    root = float(brentq(excess, math.log(delta / n), math.log(delta), xtol=_LEVEL_TOLERANCE))
    return math.exp(root - 4 * _LEVEL_TOLERANCE)


def _poisson(mean: float) -> NDArray[np.float64]:
    """Probabilities of 0, 1, … points, until they are negligible."""
    if mean <= 0:
        return np.ones(1)
    most = math.ceil(mean + 10 * math.sqrt(mean) + 30)
    return np.exp(_log_poisson(np.arange(most + 1), mean))


def _log_poisson(count: NDArray[np.int64], mean: float) -> NDArray[np.float64]:
    if mean <= 0:
        return np.where(count == 0, 0.0, -np.inf)
    logs: NDArray[np.float64] = count * math.log(mean) - mean - gammaln(count + 1)
    return logs
