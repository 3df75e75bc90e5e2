"""Identifiers that sort by time: UUID version 7 (RFC 9562, section 5.7, monotonic by method 1).

Notable here:
- Small steps of the clock backwards, as time servers make them, leave the order intact: identifiers then count on.
- A clock that was far ahead and is set right again is followed at once. Identifiers that must stay in order even then
  name their predecessor.
"""

from __future__ import annotations

import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
STEP_BACK_MS = 10_000
"""How far the clock may be set back, in milliseconds, before identifiers follow it."""

_lock = threading.Lock()
_last = 0


def new_id(after: UUID | None = None) -> UUID:
    """Return a UUIDv7, larger than `after` and than every other one made by this process; its time is `time_of(id)`.

    Where the clock was set back by more than `STEP_BACK_MS`, it is larger only than `after` and those made since.
    """
    global _last
    with _lock:
        # Milliseconds above a 12-bit counter: a full counter runs on into the next millisecond.
        now = time.time_ns() // 1_000_000 << 12
        _last = now if _last - now > STEP_BACK_MS << 12 else max(_last + 1, now)
        ticks = _last if after is None else max(_last, _ticks(after) + 1)
    milliseconds, counter = ticks >> 12, ticks & 0xFFF
    return UUID(int=milliseconds << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(62))


def time_of(identifier: UUID) -> datetime:
    """Return the time at which a UUIDv7 was made, to the millisecond."""
    return _EPOCH + (identifier.int >> 80) * _MILLISECOND


def first_id_at(moment: datetime) -> UUID:
    """Return the smallest UUIDv7 that can be made at or after `moment`."""
    milliseconds = -((_EPOCH - moment) // _MILLISECOND)
    return UUID(int=max(milliseconds, 0) << 80)


def _ticks(identifier: UUID) -> int:
    """Return the milliseconds of a UUIDv7 above its counter of 12 bits."""
    return (identifier.int >> 80) << 12 | (identifier.int >> 64) & 0xFFF
