"""Identifiers that sort by time: UUID version 7 (RFC 9562, section 5.7, monotonic by method 1)."""

from __future__ import annotations

import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_lock = threading.Lock()
_last = 0


def new_id() -> UUID:
    """Return a UUIDv7, larger than every other one made by this process; its time is `time_of(id)`."""
    global _last
    with _lock:
        # Milliseconds above a 12-bit counter: a full counter runs on into the next millisecond.
        _last = max(_last + 1, time.time_ns() // 1_000_000 << 12)
        milliseconds, counter = _last >> 12, _last & 0xFFF
    return UUID(int=milliseconds << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(62))


def time_of(identifier: UUID) -> datetime:
    """Return the time at which a UUIDv7 was made, to the millisecond."""
    return _EPOCH + (identifier.int >> 80) * _MILLISECOND


def first_id_at(moment: datetime) -> UUID:
    """Return the smallest UUIDv7 that can be made at or after `moment`."""
    milliseconds = -((_EPOCH - moment) // _MILLISECOND)
    return UUID(int=max(milliseconds, 0) << 80)
