"""One bounded thread pool for the file work of importing, loading and fingerprinting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Progress = Callable[[int], None]
"""Called with the number of units finished since the last call: the one progress type of training."""

T = TypeVar("T")
R = TypeVar("R")

WORKERS = min(8, (os.cpu_count() or 1) + 1)


def in_order(function: Callable[[T], R], items: Iterable[T], progress: Progress | None = None) -> Iterator[R]:
    """`map` in threads: results in the order of `items`, with only a few in memory beyond the one being used.

    The first error ends it; so does Ctrl-C or leaving the loop, and then no thread is left running.
    """
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="kizu-data")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * WORKERS:
                yield waiting.popleft().result()
                if progress:
                    progress(1)
        while waiting:
            yield waiting.popleft().result()
            if progress:
                progress(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
