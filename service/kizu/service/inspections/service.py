"""Inspections: from the bytes of an image to a durable verdict.

Notable here:
- The order is image, then row, then answer. A crash between the first two leaves an image without a row, which the
  next start removes; nothing can leave a row without its image, or an answer without its row.
- The answer is written out before anything is stored: what cannot be answered is not kept.
- A request that fails leaves nothing behind. Its idempotency key is released, so that a retry can succeed.
- Whatever the model does to its numbers, a part that could not be scored is NG.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from kizu.service.identifiers import new_id, time_of
from kizu.service.inference.batcher import ScoredImage
from kizu.service.inference.decode import ImageHeader, check_size, decode_image, inspect_header
from kizu.service.inference.errors import DeadlineExceededError
from kizu.service.inference.runtime import LoadedModel, Runtime
from kizu.service.inspections import repository
from kizu.service.inspections.admission import Admission
from kizu.service.inspections.audit import AuditSampler
from kizu.service.inspections.reservations import Reservation, Reservations
from kizu.service.inspections.schemas import InspectionView
from kizu.service.inspections.submission import Submission
from kizu.service.inspections.tables import Inspection
from kizu.service.problems import Problem
from kizu.service.settings import Settings
from kizu.service.storage.blobs import BlobStore, key_of
from kizu.service.storage.probes import StoreProbes
from kizu.service.storage.writer import GroupCommitWriter

_BLOB_THREADS = 8

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingInspection:
    """An inspection that is accepted and not yet stored; handed from step to step."""

    id: UUID
    submission: Submission
    image_sha256: str
    header: ImageHeader
    model: LoadedModel
    """The version that decides, whatever is promoted meanwhile."""
    deadline: float
    """In seconds of `time.monotonic`."""


@dataclass(frozen=True)
class Answer:
    """The answer to a submission, written out."""

    location: str
    """Path of the inspection."""
    body: bytes
    """An `InspectionView` as JSON."""
    replayed: bool
    """It was stored by an earlier request with the same key."""

    @classmethod
    def of(cls, view: InspectionView, *, replayed: bool) -> Answer:
        """Write out a view."""
        return cls(view.links.self, view.model_dump_json().encode(), replayed)


class InspectionService:
    """Inspects submissions; lives in the event loop."""

    def __init__(
        self,
        settings: Settings,
        writer: GroupCommitWriter,
        reservations: Reservations,
        blobs: BlobStore,
        probes: StoreProbes,
        runtime: Runtime,
        admission: Admission,
        audit: AuditSampler,
    ):
        self._settings = settings
        self._writer = writer
        self._reservations = reservations
        self._blobs = blobs
        self._probes = probes
        self._runtime = runtime
        self._admission = admission
        self._audit = audit
        self._decode_pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._blob_pool = ThreadPoolExecutor(_BLOB_THREADS, "blobs")

    async def inspect(self, submission: Submission) -> Answer:
        """Score an image, store it with its verdict, and return the answer; or the stored one under the same key.

        Nothing is stored where an error is raised.

        Raises:
            InferenceError: the image is refused, or cannot be scored.
            UnknownRecipeError: no model was ever added for the recipe.
            Problem: 409 or 422 the idempotency key is in use, 503 the image cannot be stored.
        """
        deadline = time.monotonic() + self._settings.request_deadline_s
        inspection_id = new_id()
        image_sha256, header = await _in_thread(self._decode_pool, self._identify, submission)
        if submission.key is not None:
            stored = await self._stored_answer(submission, image_sha256)
            if stored is not None:
                return stored
        model = await self._runtime.champion(submission.metadata.recipe)
        check_size(header, model.manifest.geometry)
        pending = PendingInspection(inspection_id, submission, image_sha256, header, model, deadline)
        if submission.key is None:
            return await self._score_and_store(pending)
        return await self._score_and_store_once(pending, submission.key)

    def _identify(self, submission: Submission) -> tuple[str, ImageHeader]:
        header = inspect_header(submission.data, submission.media_type, self._settings.max_pixels)
        return key_of(submission.data), header

    async def _score_and_store_once(self, pending: PendingInspection, key: str) -> Answer:
        """Reserve the idempotency key, score and store; or return what another request stored under the key."""
        fingerprint = pending.submission.fingerprint(pending.image_sha256)
        reservation = Reservation(pending.submission.station, key, fingerprint, pending.id)
        while not await self._reservations.reserve(reservation):
            # Another request reserved the key since it was looked up; it may have finished meanwhile.
            stored = await self._stored_answer(pending.submission, pending.image_sha256)
            if stored is not None:
                return stored
        try:
            return await self._score_and_store(pending)
        except BaseException:
            await self._reservations.release(reservation)
            raise

    async def _score_and_store(self, pending: PendingInspection) -> Answer:
        with self._admission.memory(pending.header.decoded_bytes):
            scored = await self._score(pending)
        inspection = self._decide(pending, scored)
        answer = Answer.of(InspectionView.of(inspection, pending.model.model), replayed=False)
        await self._store(pending, inspection)
        return answer

    async def _score(self, pending: PendingInspection) -> ScoredImage:
        try:
            async with asyncio.timeout(max(pending.deadline - time.monotonic(), 0)):
                image = await _in_thread(
                    self._decode_pool, decode_image, pending.submission.data, self._settings.max_pixels
                )
        except TimeoutError as error:
            raise DeadlineExceededError from error
        return await pending.model.score(image, pending.deadline)

    def _decide(self, pending: PendingInspection, scored: ScoredImage) -> Inspection:
        point = pending.model.manifest.operating_point
        verdict = point.verdict(scored.score if math.isfinite(scored.score) else math.nan)
        audit = self._audit.decide(pending.id, verdict)
        metadata, header = pending.submission.metadata, pending.header
        return Inspection(
            id=pending.id,
            recipe=metadata.recipe,
            model_id=pending.model.model.id,
            verdict=verdict,
            score=scored.score if math.isfinite(scored.score) else None,
            threshold=point.threshold,
            serial=metadata.serial,
            lot=metadata.lot,
            station=metadata.station,
            captured_at=metadata.captured_at,
            received_at=time_of(pending.id),
            image_sha256=pending.image_sha256,
            image_bytes=len(pending.submission.data),
            width=header.width,
            height=header.height,
            media_type=header.media_type,
            heatmap_low=scored.low,
            heatmap_high=scored.high,
            audit_probability=audit.probability,
            audited=audit.selected,
            label=None,
            confirmed=None,
            again=False,
            doubtful=False,
            recheck_probability=None,
            recheck=None,
        )

    async def _store(self, pending: PendingInspection, inspection: Inspection) -> None:
        submission = pending.submission
        try:
            await _in_thread(self._blob_pool, self._blobs.put, pending.image_sha256, submission.data)
        except OSError as error:
            logger.error("the image store fails: %s", error)
            self._probes.image_refused(len(submission.data))
            detail = "The image cannot be stored at the moment; nothing was kept."
            raise Problem(503, "storage-unavailable", detail, "Try again.", headers={"Retry-After": "2"}) from error
        try:
            await self._write(lambda session: repository.add(session, inspection, submission.station, submission.key))
        except repository.ReservationLostError as error:
            raise _in_flight() from error

    async def _stored_answer(self, submission: Submission, image_sha256: str) -> Answer | None:
        assert submission.key is not None
        found = await self._reservations.find(submission.station, submission.key)
        if found is None:
            return None
        request_sha256, stored = found
        if request_sha256 != submission.fingerprint(image_sha256):
            detail = "This Idempotency-Key was used for another image or other metadata."
            raise Problem(422, "idempotency-key-reused", detail, "Use a new key for each part.")
        if stored is None:
            raise _in_flight()
        return Answer.of(InspectionView.of(*stored), replayed=True)

    async def _write(self, operation: Callable[[Session], Result]) -> Result:
        return await asyncio.wrap_future(self._writer.submit(operation))

    def close(self) -> None:
        """Stop the threads."""
        self._decode_pool.shutdown()
        self._blob_pool.shutdown()


async def _in_thread(executor: Executor, function: Callable[..., Result], *arguments: object) -> Result:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


def _in_flight() -> Problem:
    detail = "A request with this Idempotency-Key is being worked on."
    return Problem(409, "request-in-flight", detail, "Ask again in a moment.", headers={"Retry-After": "1"})
