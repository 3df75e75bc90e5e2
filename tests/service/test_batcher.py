from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kizu.service.inference.batcher import Batcher, ScoredImage
from kizu.service.inference.errors import DeadlineExceededError, OverloadedError, ScoringFailedError


class Model:
    """Scores like the test bundles, remembers its batches, and fails on images whose brightest pixel is 13."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.go = threading.Event()
        self.go.set()

    def score(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.go.wait(10)
        self.batches.append(images.shape)
        largest = images.max(axis=(1, 2, 3))
        if (largest == 13).any():
            raise RuntimeError("the model does not like 13")
        return largest.astype(np.float32), images[..., 0].astype(np.float32)


def image(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 1), value, np.uint8)


def run(scenario: Callable[[Batcher, Model], Coroutine[Any, Any, None]], **settings: Any) -> Model:
    """Run a scenario on a batcher with the model above."""
    model = Model()

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(model.score, pool, **settings)
            await scenario(batcher, model)
            model.go.set()
            await batcher.close()

    asyncio.run(main())
    return model


def soon() -> float:
    return time.monotonic() + 10


def test_images_that_come_together_leave_together() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        results = await asyncio.gather(*(batcher.score(image(100 + i), soon()) for i in range(20)))
        assert [result.score for result in results] == list(range(100, 120))

    assert [batch[0] for batch in run(scenario, max_batch=8, wait=0.05).batches] == [8, 8, 4]


def test_a_batch_holds_one_shape() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        sides = [4, 5, 4, 5, 6, 4]
        results = await asyncio.gather(*(batcher.score(image(i, side), soon()) for i, side in enumerate(sides)))
        assert [(result.score, len(result.heatmap)) for result in results] == list(enumerate(sides))

    assert sorted(batch[:2] for batch in run(scenario, wait=0.05).batches) == [(1, 6), (2, 5), (3, 4)]


def test_a_batch_holds_so_many_pixels() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        await asyncio.gather(*(batcher.score(image(i, 10), soon()) for i in range(5)))

    assert [batch[0] for batch in run(scenario, wait=0.05, max_pixels=250).batches] == [2, 2, 1]


def test_one_alone_does_not_wait_long() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        started = time.monotonic()
        await batcher.score(image(1), soon())
        assert time.monotonic() - started < 0.5

    run(scenario, wait=0.01)


def test_a_failing_image_fails_alone() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        values = [1, 13, 2, 3]
        results = await asyncio.gather(*(batcher.score(image(v), soon()) for v in values), return_exceptions=True)
        failed = results.pop(1)
        assert isinstance(failed, ScoringFailedError)
        assert failed.shape == (4, 4, 1)
        assert [result.score for result in results if isinstance(result, ScoredImage)] == [1, 2, 3]

    run(scenario, wait=0.05)


def test_a_full_queue_is_said_at_once_and_a_late_score_in_time() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        busy = asyncio.create_task(batcher.score(image(1), soon()))
        await asyncio.sleep(0.05)  # the model works on it now
        waiting = [asyncio.create_task(batcher.score(image(2), time.monotonic() + 0.1)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher.score(image(3), soon())
        late = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in late] == [DeadlineExceededError] * 3
        model.go.set()
        assert (await busy).score == 1
        assert (await batcher.score(image(4), soon())).score == 4

    # A request past its deadline is not scored.
    assert [batch[0] for batch in run(scenario, queue_size=3, wait=0.0).batches] == [1, 1]


def test_closing_scores_what_waits() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        waiting = [asyncio.create_task(batcher.score(image(i), soon())) for i in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        assert [(await result).score for result in waiting] == list(range(5))

    run(scenario, wait=5.0)


def test_buckets_are_powers_of_two() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        results = await asyncio.gather(*(batcher.score(image(i), soon()) for i in range(5)))
        assert [result.score for result in results] == list(range(5))

    assert run(scenario, wait=0.05, buckets=True).batches[0][0] == 8


def test_heat_that_is_no_number_is_left_out_of_its_range() -> None:
    heat = np.array([[1, np.nan], [np.inf, 3]], np.float32)
    assert (ScoredImage.of(0.0, heat).low, ScoredImage.of(0.0, heat).high) == (1, 3)
    assert ScoredImage.of(0.0, heat * np.nan).high is None
