"""Rates with their counts and exact bounds: no number that Kizu prints about errors stands alone.

Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26 (1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import betaincinv


def clopper_pearson_upper(count: int, total: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a binomial proportion, in [0, 1]; 1.0 where nothing was observed."""
    _check(count, total, confidence)
    return 1.0 if count == total else float(betaincinv(count + 1, total - count, confidence))


def clopper_pearson_lower(count: int, total: int, confidence: float = 0.95) -> float:
    """One-sided exact lower bound of a binomial proportion, in [0, 1]; 0.0 where nothing was observed."""
    _check(count, total, confidence)
    return 0.0 if count == 0 else float(betaincinv(count, total - count + 1, 1 - confidence))


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
        digits = self._digits
        scale = 10**digits
        # Bounds are rounded outwards: a printed interval never promises more than the exact one.
        lower = math.floor(100 * self.lower * scale) / scale
        upper = math.ceil(100 * self.upper * scale) / scale
        interval = f"[{lower:.{digits}f}, {upper:.{digits}f}]"
        return f"{100 * self.value:.{digits}f} % {interval} ({self.count}/{self.total})"

    @property
    def _digits(self) -> int:
        """Decimals of a percentage that show two digits of how far the interval reaches from 0 or from 100 %."""
        reach = 100 * min(self.upper, 1 - self.lower)
        return max(1, 1 - math.floor(math.log10(reach)))


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
