"""Reservations of idempotency keys, from the moment a request claims its key until it is settled, given back or old.

Notable here:
- Giving a key back must succeed, or a retry would be told until the lease ends that its key is in work. What the
  database refuses is tried again in the background; a request waits for it only for a moment.
- A settled key is remembered for a while after its inspection, then forgotten, so that the table does not grow for
  ever. The inspection's id says how old it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from kizu.service.inspections import repository
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.tables import Model
from kizu.service.storage.database import Database
from kizu.service.storage.writer import GroupCommitWriter

WAIT_FOR_RELEASE_S = 1.0
RETRY_RELEASE_S = 0.5
FORGET_EVERY_S = 3600.0
_FORGET_BATCH = 1000

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reservation:
    """An idempotency key, claimed for an inspection that is still to be made."""

    station: str
    """Empty where the request names none."""
    key: str
    request_sha256: str
    token: UUID
    """Id of the inspection."""


class Reservations:
    """Keeper of the reservations; lives in the event loop.

    Args:
        lease: how long a reservation holds if the process that made it is gone.
        lifetime: how long a key is remembered after its inspection.
    """

    def __init__(self, database: Database, writer: GroupCommitWriter, lease: timedelta, lifetime: timedelta):
        self._database = database
        self._writer = writer
        self._lease = lease
        self._lifetime = lifetime
        self._unreleased: dict[Reservation, float] = {}
        """Reservation → when it ends by itself, in seconds of `time.monotonic`."""
        self._releasing: asyncio.Task[None] | None = None
        self._forgetting = asyncio.create_task(self._forget())

    async def reserve(self, reservation: Reservation) -> bool:
        """Claim a key; False if it is in use. Where the outcome is unknown, the key is given back."""
        forgotten = self._forgotten_before()
        try:
            return await self._write(
                lambda session: repository.reserve(
                    session,
                    reservation.station,
                    reservation.key,
                    reservation.request_sha256,
                    reservation.token,
                    self._lease,
                    forgotten,
                )
            )
        except BaseException:
            await self.release(reservation)
            raise

    async def release(self, reservation: Reservation) -> None:
        """Give a key back, now or as soon as the database takes it; raises nothing."""
        self._unreleased[reservation] = time.monotonic() + self._lease.total_seconds()
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._release_all())
        await asyncio.wait({self._releasing}, timeout=WAIT_FOR_RELEASE_S)

    async def find(self, station: str, key: str) -> tuple[str, tuple[Inspection, Model] | None] | None:
        """Return (request's SHA-256, its inspection if there is one yet); None if the key is free."""
        return await asyncio.to_thread(self._find, station, key)

    async def close(self) -> None:
        """Stop the background work; what was not given back ends with its lease, or at the next start."""
        for task in (self._forgetting, self._releasing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    def _find(self, station: str, key: str) -> tuple[str, tuple[Inspection, Model] | None] | None:
        with self._database.reading() as session:
            row = repository.find_key(session, station, key)
            if row is None:
                return None
            if row.inspection_id is None:
                return None if row.expires_at.timestamp() < time.time() else (row.request_sha256, None)
            found = repository.get(session, row.inspection_id)
            if found is None or found[0].received_at < self._forgotten_before():
                return None
            return row.request_sha256, found

    def _forgotten_before(self) -> datetime:
        return datetime.now(UTC) - self._lifetime

    async def _release_all(self) -> None:
        failures = 0
        while self._unreleased:
            pending = list(self._unreleased)
            try:
                await self._write(lambda session, pending=pending: _release(session, pending))  # type: ignore[misc]
            except SQLAlchemyError as error:
                failures += 1
                if failures == 1:
                    logger.error("idempotency keys cannot be given back, and are tried again: %s", error)
                await asyncio.sleep(RETRY_RELEASE_S)
                pending = [item for item in pending if self._unreleased[item] < time.monotonic()]
            for reservation in pending:
                del self._unreleased[reservation]
        if failures:
            logger.info("no idempotency key is left to be given back")

    async def _forget(self) -> None:
        while True:
            forgotten = 0
            try:
                while removed := await self._write(
                    lambda session: repository.forget_keys(session, self._forgotten_before(), _FORGET_BATCH)
                ):
                    forgotten += removed
            except SQLAlchemyError as error:
                logger.error("old idempotency keys cannot be removed now: %s", error)
            if forgotten:
                logger.info("%d idempotency keys were older than KIZU_IDEMPOTENCY_KEY_HOURS and are removed", forgotten)
            await asyncio.sleep(min(FORGET_EVERY_S, self._lifetime.total_seconds()))

    async def _write(self, operation: Callable[[Session], Result]) -> Result:
        return await asyncio.wrap_future(self._writer.submit(operation))


def _release(session: Session, reservations: list[Reservation]) -> None:
    for reservation in reservations:
        repository.release(session, reservation.station, reservation.key, reservation.token)
