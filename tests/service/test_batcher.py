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


def test_an_image_that_comes_within_the_wait_joins_the_batch() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        first = asyncio.create_task(batcher.score(image(1), soon()))
        await asyncio.sleep(0.05)
        assert (await batcher.score(image(2), soon())).score == 2
        assert (await first).score == 1

    assert [batch[0] for batch in run(scenario, max_batch=2, wait=8.0).batches] == [2]


def test_a_batch_holds_one_shape() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        sides = [4, 5, 4, 5, 6, 4]
        results = await asyncio.gather(*(batcher.score(image(i, side), soon()) for i, side in enumerate(sides)))
        assert [(result.score, len(result.heatmap)) for result in results] == list(enumerate(sides))

    # Those that wait for the next batch keep their turn.
    assert [batch[:2] for batch in run(scenario, wait=0.05).batches] == [(3, 4), (2, 5), (1, 6)]


@pytest.mark.parametrize(("pixels", "sizes"), [(250, [2, 2, 1]), (200, [2, 2, 1]), (199, [1] * 5), (1, [1] * 5)])
def test_a_batch_holds_so_many_pixels(pixels: int, sizes: list[int]) -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        await asyncio.gather(*(batcher.score(image(i, 10), soon()) for i in range(5)))

    assert [batch[0] for batch in run(scenario, wait=0.05, max_pixels=pixels).batches] == sizes


def test_a_full_batch_waits_for_nobody() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*(batcher.score(image(i), soon()) for i in range(4)))

    assert [batch[0] for batch in run(scenario, wait=60.0, max_batch=4).batches] == [4]


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


def test_of_two_the_one_that_fails_does_not_harm_the_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        good, bad = await asyncio.gather(
            batcher.score(image(7), soon()), batcher.score(image(13), soon()), return_exceptions=True
        )
        assert isinstance(good, ScoredImage)
        assert isinstance(bad, ScoringFailedError)

    run(scenario, wait=0.05)
    assert "(4, 4, 1): the model does not like 13" in caplog.text


def test_nobody_scores_for_a_caller_who_has_left() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        busy = asyncio.create_task(batcher.score(image(1), soon()))
        await asyncio.sleep(0.05)  # the model works on it now
        left = asyncio.create_task(batcher.score(image(2, side=5), soon()))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        model.go.set()
        assert (await busy).score == 1
        assert (await batcher.score(image(3), soon())).score == 3

    assert run(scenario, wait=0.0).batches == [(1, 4, 4, 1)] * 2


def test_a_batch_counts_the_pixels_of_both_sides() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        flat = np.ones((2, 8, 1), np.uint8)
        await asyncio.gather(*(batcher.score(flat, soon()) for _ in range(4)))

    assert [batch[0] for batch in run(scenario, wait=0.05, max_pixels=32).batches] == [2, 2]


def test_the_last_score_is_there_when_closing_ends() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        waiting = asyncio.create_task(batcher.score(image(1), soon()))
        await asyncio.sleep(0)
        await batcher.close()
        assert waiting.done() or len(model.batches) == 1
        await waiting

    run(scenario, wait=60.0)


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


@pytest.mark.parametrize("value", [1, 13])  # scored, or failed on
def test_a_request_that_ran_out_of_time_while_it_was_scored_harms_no_other(value: int) -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.go.clear()
        with pytest.raises(DeadlineExceededError):
            await batcher.score(image(value), time.monotonic() + 0.1)
        model.go.set()
        assert (await batcher.score(image(2), soon())).score == 2

    run(scenario, wait=0.0)


def test_closing_scores_what_waits_at_once_and_takes_no_more() -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        waiting = [asyncio.create_task(batcher.score(image(i), soon())) for i in range(5)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await batcher.close()
        assert [(await result).score for result in waiting] == list(range(5))
        with pytest.raises(OverloadedError):
            await batcher.score(image(5), time.monotonic() + 0.1)

    run(scenario, wait=60.0)


@pytest.mark.parametrize(("count", "max_batch", "size"), [(1, 16, 1), (4, 16, 4), (5, 16, 8), (9, 16, 16), (5, 6, 6)])
def test_buckets_are_powers_of_two_up_to_the_largest_batch(count: int, max_batch: int, size: int) -> None:
    async def scenario(batcher: Batcher, _: Model) -> None:
        results = await asyncio.gather(*(batcher.score(image(i), soon()) for i in range(count)))
        assert [result.score for result in results] == list(range(count))

    assert [batch[0] for batch in run(scenario, wait=0.05, buckets=True, max_batch=max_batch).batches] == [size]


def test_the_range_of_heat_goes_from_the_lowest_to_the_highest() -> None:
    heat = np.array([[1, -4], [0.5, 3]], np.float32)
    assert (ScoredImage.of(0.0, heat).low, ScoredImage.of(0.0, heat).high) == (-4, 3)
    below = ScoredImage.of(0.0, np.array([[-np.inf, 2], [5, 3]], np.float32))
    assert (below.low, below.high) == (2, 5)


def test_heat_that_is_no_number_is_left_out_of_its_range() -> None:
    heat = np.array([[1, np.nan], [np.inf, 3]], np.float32)
    assert (ScoredImage.of(0.0, heat).low, ScoredImage.of(0.0, heat).high) == (1, 3)
    assert ScoredImage.of(0.0, heat * np.nan).high is None
