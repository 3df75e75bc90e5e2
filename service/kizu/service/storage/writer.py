"""Group commit: one thread writes, and commits what has gathered in one transaction.

Notable here:
- A future resolves only after the commit. While one commit waits for the disk, the next group gathers, so
  throughput grows with load instead of one flush per row.
- A group that fails is rolled back and tried again one by one: a bad write fails alone. Operations must therefore be
  safe to run twice; the ones that insert do so by a key made by the caller.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from kizu.service.storage.database import Database

GROUP_SIZE = 64
ATTEMPTS = 3

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass
class _Write(Generic[Result]):
    operation: Callable[[Session], Result]
    future: Future[Result] = field(default_factory=Future)


class GroupCommitWriter:
    """Writer that runs operations in shared transactions, in the order of their submission."""

    def __init__(self, database: Database):
        self._database = database
        self._queue: queue.SimpleQueue[_Write[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Session], Result]) -> Future[Result]:
        """Run `operation` in a transaction; the future's result is there once it is committed."""
        write = _Write(operation)
        self._queue.put(write)
        return write.future

    def close(self) -> None:
        """Commit what was submitted and stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            group: list[_Write[Any]] = []
            item = self._queue.get()
            while item is not None:
                # From here on the caller can no longer cancel the write.
                if item.future.set_running_or_notify_cancel():
                    group.append(item)
                if len(group) == GROUP_SIZE:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            closing = item is None
            if group:
                self._commit(group)

    def _commit(self, group: list[_Write[Any]]) -> None:
        try:
            self._transaction(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to one of these futures, not to the thread
            if len(group) > 1:
                logger.warning("a group of %d writes failed and is tried one by one: %s", len(group), error)
            for write in group:
                self._commit_alone(write)

    def _commit_alone(self, write: _Write[Any]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._transaction([write])
                return
            except OperationalError as error:
                if attempt == ATTEMPTS:
                    write.future.set_exception(error)
                    return
                time.sleep(0.05 * attempt)
            except Exception as error:  # noqa: BLE001 - handed to the caller
                write.future.set_exception(error)
                return

    def _transaction(self, group: list[_Write[Any]]) -> None:
        with self._database.writing() as session:
            results = [write.operation(session) for write in group]
        for write, result in zip(group, results, strict=True):
            write.future.set_result(result)
