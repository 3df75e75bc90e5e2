"""Bounds of how many NG passed, or were flagged, where only a part of them has been seen.

Let F be the expected number of missed NG and T that of flagged NG: the process FNR is F / (F + T).

Notable here:
- *Thinning.* An NG of stratum s is among the drawn ones with a known probability πₛ, the audit probability times the
  share of the random order that is reviewed. If NG arrive as a Poisson process, the drawn NG are independent
  Mₛ ~ Poisson(πₛ Fₛ), at whatever pace F drifts inside or between strata; no day speaks for another.
- *One inclusion probability.* Given M + TP, M is binomial with odds πF : T. The Clopper–Pearson bound of M in M + TP,
  with its odds divided by π, is therefore an exact bound of F : T, with no nuisance parameter left. It is the ratio of
  two gamma quantiles, x / (1 − x) with x from Beta(M + 1, TP) above and from Beta(M, TP + 1) below. With π = 1 it is
  the Clopper–Pearson bound of FN in FN + TP. For a fixed number of NG, each missed with its own probability, M is a
  Poisson-binomial count, whose tails are lighter (Hoeffding, Ann. Math. Statist. 27, 1956).
- *Several.* F is then estimated by y = Σ Mₛ/πₛ with variance v = Σ Mₛ/πₛ². Fay & Feuer (Statistics in Medicine 16,
  1997) match a gamma distribution: shape y²/v and scale v/y below, and the same with one more event of the largest
  weight above. For equal weights that is exact; for others no proof is known, and simulations find it conservative.
- *Worst case.* A stratum may instead be counted: its NG lie in [found, found + unseen], whoever chose what to review.
  Each bound takes the end that hurts it; Clopper–Pearson bounds are monotone in the counts, so that they hold there.
- *Doubt.* A pass that only one reviewer found NG counts as OK below and as NG above.
- *Overlooked.* Missed NG that the first reviewer of an audit sample finds OK are a stratum of their own: they are seen
  if they are also drawn for a recheck, with probability πₛρ. What the second reviewer overlooks too stays unseen.
- Which strata are counted and which are thinned follows from the numbers of reviews alone, never from their labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import betaincinv, gammaincinv

from kizu.service.quality.counts import ReviewStratum


@dataclass(frozen=True)
class Gamma:
    """A gamma distribution; shape 0 is the point 0."""

    shape: float
    scale: float

    def quantile(self, probability: float) -> float:
        """Return the quantile at `probability`."""
        return self.scale * float(gammaincinv(self.shape, probability)) if self.shape else 0.0


@dataclass(frozen=True)
class Sightings:
    """NG, or OK, seen in some strata: counted with the worst case, or drawn with known probabilities."""

    counted: tuple[int, int]
    """(found, found + unseen) of the counted strata."""
    drawn: tuple[tuple[int, int, float], ...]
    """(certain, certain + doubtful, inclusion probability) of every thinned stratum."""
    certain: tuple[int, int]
    """(found, found + unseen) of the thinned strata: no bound of what was inspected needs to lie outside."""

    def lower(self) -> Gamma:
        """Return the distribution whose low quantiles bound the expected number from below."""
        y, v = self._moments(0)
        return Gamma(y * y / v, v / y) if y else Gamma(0.0, 1.0)

    def upper(self) -> Gamma:
        """Return the distribution whose high quantiles bound the expected number from above."""
        weight = max((1 / stratum[2] for stratum in self.drawn), default=1.0)
        y, v = self._moments(1)
        y, v = y + weight, v + weight**2
        return Gamma(y * y / v, v / y)

    def realised(self, error: float) -> tuple[float, float]:
        """Return bounds of the number among the inspected parts themselves, each wrong with probability `error`."""
        if not self.drawn:
            return self.counted
        drawn = Sightings((0, 0), self.drawn, self.certain)
        lower = max(drawn.lower().quantile(error), self.certain[0])
        upper = min(drawn.upper().quantile(1 - error), self.certain[1])
        return self.counted[0] + lower, self.counted[1] + max(upper, lower)

    def _moments(self, end: Literal[0, 1]) -> tuple[float, float]:
        y = self.counted[end] + sum(stratum[end] / stratum[2] for stratum in self.drawn)
        return y, self.counted[end] + sum(stratum[end] / stratum[2] ** 2 for stratum in self.drawn)


def sightings(strata: Sequence[ReviewStratum], label: Literal["NG", "OK"], error: float) -> Sightings:
    """Choose which strata to count and which to thin, and return what was seen in each."""
    least = _least_inclusion(strata, error)
    thinned = [stratum for stratum in strata if _thins(stratum, least)]
    counted = [stratum for stratum in strata if not _thins(stratum, least)]

    def interval(group: list[ReviewStratum]) -> tuple[int, int]:
        if label == "OK":
            low = sum(stratum.ok for stratum in group)
            return low, low + sum(stratum.unknown for stratum in group)
        low = sum(stratum.certain_ng for stratum in group)
        return low, low + sum(stratum.unknown + stratum.doubtful for stratum in group)

    def drawn(stratum: ReviewStratum) -> tuple[int, int]:
        if label == "OK":
            low = stratum.drawn - stratum.drawn_ng - stratum.drawn_doubtful
            return low, low + stratum.drawn_doubtful
        low, doubtful = stratum.drawn_ng, stratum.drawn_doubtful
        if not stratum.rechecked:
            low, doubtful = low + stratum.other_overlooked, doubtful + stratum.other_doubtful
        return low, low + doubtful

    return Sightings(
        counted=interval(counted),
        drawn=(
            *((*drawn(stratum), stratum.inclusion) for stratum in thinned),
            *(_overlooked(stratum) for stratum in thinned if stratum.rechecked and label == "NG"),
        ),
        certain=interval(thinned),
    )


def _thins(stratum: ReviewStratum, least: float) -> bool:
    if not stratum.unknown:
        return bool(stratum.rechecked) and stratum.inclusion == 1
    return stratum.inclusion >= least


def _overlooked(stratum: ReviewStratum) -> tuple[int, int, float]:
    found = stratum.overlooked
    return found, found + stratum.overlooked_doubtful, stratum.recheck_inclusion


def ratio_bounds(part: Sightings, rest: Sightings, error: float) -> tuple[float, float]:
    """Return bounds of part / (part + rest), as expected numbers, each wrong with probability `error`."""
    return (
        _ratio(part.lower(), rest.upper(), error) if part.lower().shape else 0.0,
        _ratio(part.upper(), rest.lower(), 1 - error) if rest.lower().shape else 1.0,
    )


def _ratio(part: Gamma, rest: Gamma, probability: float) -> float:
    x = float(betaincinv(part.shape, rest.shape, probability))
    share = x * part.scale
    return share / (share + (1 - x) * rest.scale)


def _least_inclusion(strata: Sequence[ReviewStratum], error: float) -> float:
    """Return the inclusion probability from which on thinning bounds more tightly than counting."""
    open_strata = sorted((stratum for stratum in strata if stratum.unknown), key=lambda stratum: stratum.inclusion)
    unseen_event = -math.log(error)  # the Poisson mean above which seeing nothing has a probability below `error`
    best, least, unseen = math.inf, math.inf, 0
    for stratum in open_strata:
        if stratum.inclusion > 0 and unseen + unseen_event / stratum.inclusion < best:
            best, least = unseen + unseen_event / stratum.inclusion, stratum.inclusion
        unseen += stratum.unknown
    return least if best < unseen else math.inf
