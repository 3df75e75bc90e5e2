"""Processes that run arms side by side, and end with their parent however it ends.

Notable here:
- A worker that has lost its parent goes on for hours and writes into folders that a later run owns. So each waits at a
  pipe whose other end the parent alone holds: it closes with the parent, kill -9 included, and the worker is gone.
- That is safe at any time: a training's checkpoint is a minute old at most, and files appear whole or not at all.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection

from kizu.errors import UserError


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes that do not outlive this one; an error inside the block ends them at once.

    Raises:
        UserError: a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_watch, initargs=(theirs,))
    try:
        yield executor
        executor.shutdown()
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, perhaps for want of memory.",
            "Run again with a smaller --parallel; what is done is not repeated.",
        ) from error
    finally:
        ours.close()
        executor.shutdown(cancel_futures=True)
        theirs.close()


def _watch(parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    try:
        parent.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
