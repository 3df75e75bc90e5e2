"""Batches of concurrent requests for one model.

Notable here:
- Only images of identical shape share a batch: padding would change what the model sees.
- A batch leaves when it is full, when it holds enough pixels, or `wait` after its first image came. While the model
  is busy, the next batches gather by themselves.
- A batch that fails is scored again one by one, so that only the image at fault fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kizu.models.bundle import ScoreFunction
from kizu.service.inference.errors import DeadlineExceededError, OverloadedError, ScoringFailedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredImage:
    """One image's score and heatmap[h, w], with the heatmap's smallest and largest finite values."""

    score: float
    heatmap: NDArray[np.float32]
    low: float | None
    high: float | None

    @classmethod
    def of(cls, score: float, heatmap: NDArray[np.float32]) -> ScoredImage:
        """Add the range to what the model returned for one image."""
        low, high = heatmap.min(initial=np.inf), heatmap.max(initial=-np.inf)
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = heatmap[np.isfinite(heatmap)]
            if not finite.size:
                return cls(score, heatmap, None, None)
            low, high = finite.min(), finite.max()
        return cls(score, heatmap, float(low), float(high))


@dataclass
class _Waiting:
    image: NDArray[np.uint8]
    arrived_at: float
    deadline: float
    future: asyncio.Future[ScoredImage]


class Batcher:
    """Scorer of single images, in batches; lives in the event loop, computes in `executor`."""

    def __init__(
        self,
        score: ScoreFunction,
        executor: Executor,
        *,
        max_batch: int = 16,
        max_pixels: int = 64_000_000,
        wait: float = 0.002,
        queue_size: int = 128,
        buckets: bool = False,
    ):
        self._score = score
        self._executor = executor
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._wait = wait
        self._queue_size = queue_size
        self._buckets = buckets
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def score(self, image: NDArray[np.uint8], deadline: float) -> ScoredImage:
        """Score uint8[H, W, C]; `deadline` in seconds of `time.monotonic`.

        Raises:
            OverloadedError: the queue is full.
            DeadlineExceededError: the deadline passed.
            ScoringFailedError: the model failed on this image.
        """
        if len(self._waiting) >= self._queue_size or self._closing:
            raise OverloadedError("Too many images wait for this model.")
        waiting = _Waiting(image, time.monotonic(), deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await waiting.future
        except TimeoutError as error:
            raise DeadlineExceededError from error

    async def close(self) -> None:
        """Score what waits, then stop."""
        self._closing = True
        self._arrived.set()
        await self._task

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            batch = self._take()
            if batch:
                await self._score_batch(batch)

    async def _gather(self) -> None:
        leave_at = self._waiting[0].arrived_at + self._wait
        while len(self._waiting) < self._max_batch and not self._closing:
            left = leave_at - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """Remove and return the oldest request still in time, with the others that may share its batch."""
        batch: list[_Waiting] = []
        kept: list[_Waiting] = []
        pixels = 0
        now = time.monotonic()
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            size = waiting.image.shape[0] * waiting.image.shape[1]
            if waiting.future.done() or waiting.deadline < now:
                continue
            if batch and (waiting.image.shape != batch[0].image.shape or pixels + size > self._max_pixels):
                kept.append(waiting)
                continue
            batch.append(waiting)
            pixels += size
        self._waiting.extendleft(reversed(kept))
        return batch

    async def _score_batch(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._compute, [waiting.image for waiting in batch])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no other common base
            if len(batch) > 1:
                for waiting in batch:
                    await self._score_batch([waiting])
                return
            logger.error("the model failed on an image of shape %s: %s", batch[0].image.shape, error)
            if not batch[0].future.done():
                batch[0].future.set_exception(ScoringFailedError(batch[0].image.shape))
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(result)

    def _compute(self, images: list[NDArray[np.uint8]]) -> list[ScoredImage]:
        count = len(images)
        if self._buckets:
            # CUDA searches its algorithms anew for each batch size, so only powers of two occur.
            images = images + [images[-1]] * (min(1 << (count - 1).bit_length(), self._max_batch) - count)
        scores, heatmaps = self._score(np.stack(images))
        return [ScoredImage.of(float(scores[i]), heatmaps[i]) for i in range(count)]
