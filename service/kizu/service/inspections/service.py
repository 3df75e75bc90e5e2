"""From bytes to a durable verdict.

Notable here:
- The order is image, then row, then answer. A crash between the first two leaves an image without a row, which the
  next start removes; nothing can leave a row without its image, or an answer without its row.
- A request that fails leaves nothing behind. Its idempotency key is given back, so that a retry can succeed.
- Whatever the model does to its numbers, a part that could not be scored is NG.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from kizu.service.identifiers import new_id, time_of
from kizu.service.inference.batcher import Scored, overloaded, too_late
from kizu.service.inference.decode import ImageHeader, check_size, decode_image, inspect_header
from kizu.service.inference.runtime import LoadedModel, Runtime, in_thread
from kizu.service.inspections import repository
from kizu.service.inspections.schemas import InspectionView, Metadata
from kizu.service.inspections.tables import Inspection
from kizu.service.problems import Problem
from kizu.service.registry.tables import Model
from kizu.service.settings import Settings
from kizu.service.storage.blobs import BlobStore, key_of
from kizu.service.storage.database import Database
from kizu.service.storage.writer import GroupCommitWriter

_LEASE_BEYOND_DEADLINE_S = 60.0
_BLOB_THREADS = 8

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """What one request asks for."""

    data: bytes
    media_type: str
    """As declared; "" where nothing was."""
    metadata: Metadata
    key: str | None

    @property
    def station(self) -> str:
        """Whose idempotency keys these are."""
        return self.metadata.station or ""

    def fingerprint(self, image_sha256: str) -> str:
        """SHA-256 over image and metadata: what must be the same for a retry to be one."""
        return hashlib.sha256(f"{image_sha256}\n{self.metadata.model_dump_json()}".encode()).hexdigest()


class Admission:
    """How much work may be going on: so many requests, so many bytes."""

    def __init__(self, max_requests: int, max_bytes: int):
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def enter(self) -> None:
        """Begin a request; raises a 429 Problem where there are too many."""
        if self.requests >= self._max_requests:
            raise overloaded("Too many inspections are in work.")
        self.requests += 1

    def take(self, size: int) -> None:
        """Use memory; raises a 429 Problem where it is used up. A request that is alone always gets it."""
        if self.bytes and self.bytes + size > self._max_bytes:
            raise overloaded("Too many large images are in work.")
        self.bytes += size

    def give_back(self, size: int) -> None:
        """Memory is free again."""
        self.bytes -= size

    def leave(self, size: int) -> None:
        """End a request that took `size` bytes."""
        self.requests -= 1
        self.give_back(size)


class Inspector:
    """Turns submissions into inspections; lives in the event loop."""

    def __init__(
        self, settings: Settings, database: Database, writer: GroupCommitWriter, blobs: BlobStore, runtime: Runtime
    ):
        self._settings = settings
        self._database = database
        self._writer = writer
        self._blobs = blobs
        self._runtime = runtime
        self._decode_pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._blob_pool = ThreadPoolExecutor(_BLOB_THREADS, "blobs")
        self._audit_key = b""
        self.admission = Admission(settings.queue_size, settings.max_pending_bytes)

    def use_audit_key(self, key: bytes) -> None:
        """Set the installation's secret for drawing audit samples."""
        self._audit_key = key

    async def inspect(self, submission: Submission) -> tuple[InspectionView, bool]:
        """(the inspection, whether it is the stored answer to an earlier request with the same key).

        Raises:
            Problem: nothing was stored.
        """
        deadline = time.monotonic() + self._settings.request_deadline_s
        inspection_id = new_id()
        image_sha256, header = await in_thread(self._decode_pool, self._look_at, submission)
        if submission.key is not None:
            stored = await self._stored(submission, submission.fingerprint(image_sha256))
            if stored is not None:
                return stored, True
        model = await self._runtime.champion(submission.metadata.recipe)
        check_size(header, model.manifest.geometry)
        if submission.key is None:
            return await self._score_and_keep(submission, inspection_id, image_sha256, header, model, deadline), False
        return await self._with_reservation(submission, inspection_id, image_sha256, header, model, deadline)

    def _look_at(self, submission: Submission) -> tuple[str, ImageHeader]:
        header = inspect_header(submission.data, submission.media_type, self._settings.max_pixels)
        return key_of(submission.data), header

    async def _with_reservation(
        self,
        submission: Submission,
        inspection_id: UUID,
        image_sha256: str,
        header: ImageHeader,
        model: LoadedModel,
        deadline: float,
    ) -> tuple[InspectionView, bool]:
        station, key = submission.station, submission.key
        assert key is not None
        fingerprint = submission.fingerprint(image_sha256)
        lease = timedelta(seconds=self._settings.request_deadline_s + _LEASE_BEYOND_DEADLINE_S)
        while not await self._write(
            lambda session: repository.reserve(session, station, key, fingerprint, inspection_id, lease)
        ):
            # Between our look and our reservation, somebody else was faster; they may have finished meanwhile.
            stored = await self._stored(submission, fingerprint)
            if stored is not None:
                return stored, True
        try:
            view = await self._score_and_keep(submission, inspection_id, image_sha256, header, model, deadline)
        except BaseException:
            await self._write(lambda session: repository.release(session, station, key, inspection_id))
            raise
        return view, False

    async def _score_and_keep(
        self,
        submission: Submission,
        inspection_id: UUID,
        image_sha256: str,
        header: ImageHeader,
        model: LoadedModel,
        deadline: float,
    ) -> InspectionView:
        size = header.decoded_bytes
        self.admission.take(size)
        try:
            scored = await self._score(submission.data, model, deadline)
        finally:
            self.admission.give_back(size)
        inspection = self._decide(submission, inspection_id, image_sha256, header, model, scored)
        try:
            await in_thread(self._blob_pool, self._blobs.put, image_sha256, submission.data)
        except OSError as error:
            logger.error("the image store fails: %s", error)
            detail = "The image cannot be stored at the moment; nothing was kept."
            raise Problem(503, "storage-unavailable", detail, "Try again.", headers={"Retry-After": "2"}) from error
        station, key = submission.station, submission.key
        try:
            await self._write(lambda session: repository.add(session, inspection, station, key))
        except repository.ReservationLostError as error:
            raise _in_flight() from error
        return InspectionView.of(inspection, model.model)

    async def _score(self, data: bytes, model: LoadedModel, deadline: float) -> Scored:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                image = await in_thread(self._decode_pool, decode_image, data, self._settings.max_pixels)
        except TimeoutError as error:
            raise too_late() from error
        return await model.score(image, deadline)

    def _decide(
        self,
        submission: Submission,
        inspection_id: UUID,
        image_sha256: str,
        header: ImageHeader,
        model: LoadedModel,
        scored: Scored,
    ) -> Inspection:
        point = model.manifest.operating_point
        verdict = point.verdict(scored.score if math.isfinite(scored.score) else math.nan)
        metadata = submission.metadata
        rate = self._settings.audit_rate if verdict == "OK" else None
        return Inspection(
            id=inspection_id,
            recipe=metadata.recipe,
            model_id=model.model.id,
            verdict=verdict,
            score=scored.score if math.isfinite(scored.score) else None,
            threshold=point.threshold,
            serial=metadata.serial,
            lot=metadata.lot,
            station=metadata.station,
            captured_at=metadata.captured_at,
            received_at=time_of(inspection_id),
            image_sha256=image_sha256,
            image_bytes=len(submission.data),
            width=header.width,
            height=header.height,
            media_type=header.media_type,
            heatmap_low=scored.low,
            heatmap_high=scored.high,
            audit_probability=rate,
            audited=rate is not None and draw(self._audit_key, inspection_id) < rate,
            label=None,
        )

    async def _stored(self, submission: Submission, fingerprint: str) -> InspectionView | None:
        found = await asyncio.to_thread(self._find, submission)
        if found is None:
            return None
        request_sha256, stored = found
        if request_sha256 != fingerprint:
            detail = "This Idempotency-Key was used for another image or other metadata."
            raise Problem(422, "idempotency-key-reused", detail, "Use a new key for each part.")
        if stored is None:
            raise _in_flight()
        return InspectionView.of(*stored)

    def _find(self, submission: Submission) -> tuple[str, tuple[Inspection, Model] | None] | None:
        """What the key stands for; None where it is free, or its reservation has expired."""
        assert submission.key is not None
        with self._database.reading() as session:
            row = repository.find_key(session, submission.station, submission.key)
            if row is None:
                return None
            if row.inspection_id is not None:
                return row.request_sha256, repository.get(session, row.inspection_id)
            return None if row.expires_at.timestamp() < time.time() else (row.request_sha256, None)

    async def _write(self, operation: Callable[[Session], Result]) -> Result:
        return await asyncio.wrap_future(self._writer.submit(operation))

    def close(self) -> None:
        """Stop the threads."""
        self._decode_pool.shutdown()
        self._blob_pool.shutdown()


def draw(key: bytes, inspection_id: UUID) -> float:
    """A number in [0, 1) that nobody without the key can foresee, and everybody with it can check."""
    digest = hmac.new(key, inspection_id.bytes, hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _in_flight() -> Problem:
    detail = "A request with this Idempotency-Key is being worked on."
    return Problem(409, "request-in-flight", detail, "Ask again in a moment.", headers={"Retry-After": "1"})
