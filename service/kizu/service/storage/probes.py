"""Probes of the stores: write, read and delete something, to know whether an inspection could be stored.

Notable here:
- A probe takes the way of an inspection: through the writer's queue into the database, and into the image store.
- Whoever asks waits for two seconds at most, and a probe that hangs is not started again. A result counts for a second,
  so that asking often costs nothing.
- After an image that could not be stored, the next probe is as large: a disk may still have room for a small one.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from kizu.service.storage import schema
from kizu.service.storage.blobs import BlobStore
from kizu.service.storage.database import Base
from kizu.service.storage.writer import GroupCommitWriter

PROBE_BYTES = 64 * 1024
TIMEOUT_S = 2.0
VALID_S = 1.0

logger = logging.getLogger(__name__)


class ProbeRow(Base):
    """A row that a probe writes and deletes in one transaction; the table is always empty."""

    __tablename__ = "probes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


@dataclass(frozen=True)
class StoreFailure:
    """A store in which nothing can be stored."""

    store: str
    """`database` or `images`."""
    kind: str
    """Kind of problem, in kebab case."""
    problem: str
    """A sentence that names no path, address or user."""


class StoreProbes:
    """Probes of the database and of the image store; lives in the event loop."""

    def __init__(self, writer: GroupCommitWriter, blobs: BlobStore):
        self._writer = writer
        self._blobs = blobs
        self._image_bytes = PROBE_BYTES
        self._head = schema.head()
        self._probes = (
            _Probe("database", "database-unavailable", self._probe_database),
            _Probe("images", "storage-unavailable", self._probe_images),
        )

    async def failures(self) -> list[StoreFailure]:
        """Return the stores that fail now; answers within `TIMEOUT_S`."""
        failures = await asyncio.gather(*(probe.failure() for probe in self._probes))
        return [failure for failure in failures if failure is not None]

    def image_refused(self, size: int) -> None:
        """Take note of an image of `size` bytes that could not be stored."""
        self._image_bytes = max(self._image_bytes, size)
        for probe in self._probes:
            probe.expire()

    def close(self) -> None:
        """Stop waiting for probes that hang."""
        for probe in self._probes:
            probe.cancel()

    async def _probe_database(self) -> StoreFailure | None:
        try:
            version = await asyncio.wrap_future(self._writer.submit(_write_read_delete))
        except SQLAlchemyError as error:
            logger.error("the database fails: %s", error)
            return StoreFailure("database", "database-unavailable", "The database cannot be written.")
        if version != self._head:
            problem = f"The database has schema {version}, not {self._head}."
            return StoreFailure("database", "schema-mismatch", problem)
        return None

    async def _probe_images(self) -> StoreFailure | None:
        size = self._image_bytes
        try:
            await asyncio.to_thread(self._blobs.probe, size)
        except OSError as error:
            logger.error("the image store fails: %s", error)
            # Not str(error), which names the path.
            problem = f"Images cannot be stored: {error.strerror or type(error).__name__}."
            return StoreFailure("images", "storage-unavailable", problem)
        if size == self._image_bytes:
            self._image_bytes = PROBE_BYTES
        return None


class _Probe:
    """One store's probe with its latest result."""

    def __init__(self, store: str, kind: str, probe: Callable[[], Awaitable[StoreFailure | None]]):
        self._store = store
        self._kind = kind
        self._probe = probe
        self._task: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._valid_until = 0.0
        self._failure: StoreFailure | None = None

    async def failure(self) -> StoreFailure | None:
        """Return what is wrong with the store, or None; waits for a new result where the latest is too old."""
        if self._task is None and time.monotonic() >= self._valid_until:
            self._started_at = time.monotonic()
            self._task = asyncio.create_task(self._run())
        if self._task is not None:
            left = self._started_at + TIMEOUT_S - time.monotonic()
            done, _ = await asyncio.wait({self._task}, timeout=max(left, 0))
            if not done:
                silent = time.monotonic() - self._started_at
                return StoreFailure(self._store, self._kind, f"No answer from the {self._store} for {silent:.0f} s.")
        return self._failure

    def expire(self) -> None:
        """Drop the latest result."""
        self._valid_until = 0.0

    def cancel(self) -> None:
        """Stop waiting for a result."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self._failure = await self._probe()
        finally:
            self._valid_until = time.monotonic() + VALID_S
            self._task = None


def _write_read_delete(session: Session) -> str | None:
    """Return the schema's version, once a row was written, read back and deleted."""
    row = uuid.uuid4()
    session.execute(sa.insert(ProbeRow).values(id=row))
    session.execute(sa.select(ProbeRow.id).where(ProbeRow.id == row)).scalar_one()
    session.execute(sa.delete(ProbeRow).where(ProbeRow.id == row))
    version: str | None = session.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return version
