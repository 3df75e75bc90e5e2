"""Rates with their counts and guaranteed bounds: no number that Kizu prints about errors stands alone.

Notable here:
- `Rate` counts parts: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the
  binomial", Biometrika 26 (1934). Of parts that come in groups it speaks for these groups only.
- `GroupedRate` counts groups and bounds the rate of new ones, however alike the parts of one group are: Waudby-Smith &
  Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, expit

_BETS = np.append(1.0, expit(np.linspace(-5, 3, 9)))
"""Shares c of the largest bet that cannot lose more than there is."""
_LOG_WEIGHTS = np.log(np.append(0.5, np.full(9, 0.5 / 9)))
"""Half of the wealth on the largest bet, the best one where no value differs."""


def clopper_pearson_upper(count: int, total: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a binomial proportion, in [0, 1]; 1.0 where nothing was observed."""
    _check(count, total, confidence)
    return 1.0 if count == total else float(betaincinv(count + 1, total - count, confidence))


def clopper_pearson_lower(count: int, total: int, confidence: float = 0.95) -> float:
    """One-sided exact lower bound of a binomial proportion, in [0, 1]; 0.0 where nothing was observed."""
    _check(count, total, confidence)
    return 0.0 if count == 0 else float(betaincinv(count, total - count + 1, 1 - confidence))


def mean_lower(values: ArrayLike, confidence: float = 0.95) -> float:
    """One-sided lower bound of the mean of any distribution on [0, 1]; 0.0 where nothing was observed.

    The wealth E(θ) = Σ w_j Π (1 + c_j·(x_i / θ − 1)) of bets that the mean is above θ has expectation at most 1 if it
    is not, so P(E ≥ 1 / δ) ≤ δ (Markov; Waudby-Smith & Ramdas 2024, section 4.1, with a mixture of constant bets
    λ = c / θ, so that the order of the values does not matter). E falls with θ; the bound is where it is 1 / δ.

    Args:
        values: shape [m], in [0, 1], independent and alike.
        confidence: 1 − δ in (0, 1).
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("a mean is bounded for values in [0, 1] only")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
    mean = float(x.mean()) if x.size else 0.0
    needed = -math.log1p(-confidence)
    lowest = 1e-12 * mean
    if not lowest or _log_wealth(lowest, x) <= needed:
        return 0.0
    return float(brentq(lambda theta: _log_wealth(theta, x) - needed, lowest, mean))


def mean_upper(values: ArrayLike, confidence: float = 0.95) -> float:
    """One-sided upper bound of the mean of any distribution on [0, 1]; 1.0 where nothing was observed."""
    return 1 - mean_lower(1 - np.asarray(values, dtype=np.float64), confidence)


def _log_wealth(theta: float, values: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore"):  # the largest bet loses everything on a 0
        gains = np.log1p(_BETS[:, None] * (values / theta - 1)).sum(1)
    return float(np.logaddexp.reduce(_LOG_WEIGHTS + gains))


@dataclass(frozen=True)
class Rate:
    """`count` of `total` with the two-sided Clopper–Pearson interval at `confidence`."""

    count: int
    total: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _check(self.count, self.total, self.confidence)

    @property
    def value(self) -> float | None:
        """The observed proportion, or None where nothing was observed."""
        return self.count / self.total if self.total else None

    @property
    def lower(self) -> float:
        """Lower end of the interval."""
        return clopper_pearson_lower(self.count, self.total, (1 + self.confidence) / 2)

    @property
    def upper(self) -> float:
        """Upper end of the interval."""
        return clopper_pearson_upper(self.count, self.total, (1 + self.confidence) / 2)

    def as_dict(self) -> dict[str, float | int | None]:
        """The form in which every report, API answer and `--json` output carries a rate."""
        return {
            "rate": self.value,
            "lower": self.lower,
            "upper": self.upper,
            "count": self.count,
            "total": self.total,
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        """Format in per cent, as `97.1 % [94.8, 98.7] (340/350)`."""
        if self.value is None:
            return "– (0 of 0)"
        return f"{_interval(self.value, self.lower, self.upper)} ({self.count}/{self.total})"


@dataclass(frozen=True)
class GroupedRate:
    """Mean over groups of each group's rate, with the two-sided interval at `confidence` for parts of new groups.

    The groups are independent; their parts need not be. Groups have equal weight, as in the certificate.
    """

    rates: tuple[float, ...]
    """Of each group, in [0, 1]; at least one."""
    confidence: float = 0.95

    @classmethod
    def of(cls, counted: Sequence[bool] | NDArray[np.bool_], groups: Sequence[str], confidence: float) -> GroupedRate:
        """Count by groups.

        Args:
            counted: of each part, shape [n], n > 0.
            groups: of each part; a part without a group (empty) is its own.
        """
        members: dict[str, list[bool]] = {}
        for number, (one, group) in enumerate(zip(counted, groups, strict=True)):
            members.setdefault(f"of {group}" if group else f"alone {number}", []).append(bool(one))
        return cls(tuple(sum(of_group) / len(of_group) for of_group in members.values()), confidence)

    @property
    def value(self) -> float:
        """The observed mean."""
        return math.fsum(self.rates) / len(self.rates)

    @property
    def lower(self) -> float:
        """Lower end of the interval."""
        return mean_lower(self.rates, (1 + self.confidence) / 2)

    @property
    def upper(self) -> float:
        """Upper end of the interval."""
        return mean_upper(self.rates, (1 + self.confidence) / 2)

    def as_dict(self) -> dict[str, float | int]:
        """The form in which bundles and `--json` output carry it."""
        return {
            "rate": self.value,
            "lower": self.lower,
            "upper": self.upper,
            "groups": len(self.rates),
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        """Format in per cent, as `97.1 % [84.8, 99.7] (mean of 30 groups)`."""
        number = len(self.rates)
        return f"{_interval(self.value, self.lower, self.upper)} (mean of {number} group{'s' * (number != 1)})"


def _interval(value: float, lower: float, upper: float) -> str:
    """Format in per cent, with two digits of how far the interval reaches from 0 or from 100 %."""
    reach = 100 * min(upper, 1 - lower)
    digits = max(1, 1 - math.floor(math.log10(reach)))
    scale = 10**digits
    # Bounds are rounded outwards: a printed interval never promises more than the exact one.
    low = math.floor(100 * lower * scale) / scale
    high = math.ceil(100 * upper * scale) / scale
    return f"{100 * value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True)
class CurveRate(Rate):
    """`Rate` whose bounds hold at every threshold of a curve at once; they come from `bands`."""

    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def lower(self) -> float:
        """Lower end of the interval."""
        return self.bounds[0]

    @property
    def upper(self) -> float:
        """Upper end of the interval."""
        return self.bounds[1]


def _check(count: int, total: int, confidence: float) -> None:
    if not 0 <= count <= total:
        raise ValueError(f"a rate needs 0 ≤ count ≤ total, not {count} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
