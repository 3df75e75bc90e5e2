"""Audit samples: passed inspections selected at random for review, so that the FNR can be estimated.

Notable here:
- Selection follows from a keyed hash of the inspection's id: it cannot be foreseen without the installation's key, and
  can be verified with it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from uuid import UUID

from kizu.models.operating_point import Verdict


@dataclass(frozen=True)
class AuditDecision:
    """The decision whether an inspection is an audit sample."""

    probability: float | None
    """The probability of selection; None where the inspection did not pass."""
    selected: bool


class AuditSampler:
    """Sampler of passed inspections, with probability `rate` in [0, 1]."""

    def __init__(self, key: bytes, rate: float, recheck_rate: float = 0.0):
        self._key = key
        self._rate = rate
        self._recheck_key = hmac.new(key, b"recheck", hashlib.sha256).digest()
        self.recheck_rate = recheck_rate
        """Probability with which an audit sample that was found OK is reviewed again."""

    def decide(self, inspection_id: UUID, verdict: Verdict) -> AuditDecision:
        """Decide whether an inspection becomes an audit sample; the same every time."""
        if verdict != "OK":
            return AuditDecision(None, False)
        return AuditDecision(self._rate, uniform(self._key, inspection_id) < self._rate)

    def rechecks(self, inspection_id: UUID) -> bool:
        """Decide whether an audit sample is reviewed again if it is found OK; independent of its selection."""
        return uniform(self._recheck_key, inspection_id) < self.recheck_rate


def uniform(key: bytes, inspection_id: UUID) -> float:
    """Return a number in [0, 1), uniform over ids and fixed by key and id."""
    digest = hmac.new(key, inspection_id.bytes, hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
