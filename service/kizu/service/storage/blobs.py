"""Images, kept once each under the SHA-256 of their bytes.

Notable here:
- `put` returns when the blob would survive a power cut: file written and flushed, renamed, folder flushed.
- A crash between blob and row leaves a blob that no row names. Serving processes share a lock on the store; one that
  gets it exclusively knows that no process is between the two steps, and only then sweeps. With others alive it leaves
  the sweep to a later start.
- The folder is made at the start, never again: where it is gone, or its file system not mounted, nothing is stored in
  its place. It may come back at any time, as it was or empty.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from kizu import files

_KEY = re.compile(r"[0-9a-f]{64}")
_SWEEP_BATCH = 500
_PROBE = "probe-"


class StoreMissingError(OSError):
    """A store whose folder is gone, or is not the one that was opened."""

    def __init__(self) -> None:
        super().__init__(errno.ENODEV, "the store is not there")


class BlobStore(Protocol):
    """A store of images by key; keys are SHA-256 in hex."""

    def put(self, key: str, data: bytes) -> None:
        """Store durably; a key that is there already stays as it is. Raises OSError."""

    def probe(self, size: int) -> None:
        """Write, read and delete `size` bytes; raises OSError."""

    def get(self, key: str) -> bytes:
        """Return the bytes; raises FileNotFoundError where there are none, or another OSError."""


def key_of(data: bytes) -> str:
    """Return the key of these bytes."""
    return hashlib.sha256(data).hexdigest()


class LocalBlobStore:
    """A store in a folder, with two levels of 256 folders each below it."""

    def __init__(self, root: Path):
        self.root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._device = root.stat().st_dev
        self._durable_folders: set[Path] = set()
        self._lock: StoreLock | None = None
        self._joining = threading.Lock()

    def path(self, key: str) -> Path:
        """Return the path of a blob."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a blob key: {key!r}")
        return self.root / key[:2] / key[2:4] / key

    def put(self, key: str, data: bytes) -> None:
        """Store durably; a blob that is there already is kept, unless its length shows that it is damaged.

        Raises:
            OSError: the store is gone, full or damaged.
        """
        self._check()
        try:
            self._put(key, data)
        except FileNotFoundError:
            # Folders that this process knew may have been removed since.
            self._durable_folders.clear()
            self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        path = self.path(key)
        self._make_folder(path.parent)
        try:
            present = path.stat().st_size == len(data)
        except FileNotFoundError:
            present = False
        if not present:
            files.write_bytes(path, data, temporary=self._temporary / uuid.uuid4().hex)
        else:
            # The process that renamed it may not have flushed the folder yet.
            files.sync_folder(path.parent)

    def get(self, key: str) -> bytes:
        """Return the bytes.

        Raises:
            FileNotFoundError: the store has no such blob.
            OSError: the store is gone or cannot be read.
        """
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            self._check()
            raise

    def probe(self, size: int) -> None:
        """Write, read and delete `size` bytes; raises OSError."""
        self._check()
        path = self.root / f"{_PROBE}{uuid.uuid4().hex}"
        written = os.urandom(size)
        try:
            files.write_bytes(path, written, temporary=self._temporary / path.name)
            if path.read_bytes() != written:
                raise OSError(errno.EIO, "what is read is not what was written")
        finally:
            path.unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """Iterate over every key in the store."""
        for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _KEY.fullmatch(path.name):
                yield path.name

    def open_shared(self, sweep: Callable[[], None]) -> StoreLock:
        """Join the processes that use the store; runs `sweep` first if there is no other."""
        self._lock = StoreLock(self.root / "lock", sweep)
        return self._lock

    def remove_unreferenced(self, referenced: Callable[[list[str]], set[str]]) -> int:
        """Remove temporary files and the blobs that `referenced` does not return; only for `open_shared`'s sweep."""
        for leftover in (*self._temporary.iterdir(), *self.root.glob(f"{_PROBE}*")):
            leftover.unlink()
        removed = 0
        batch: list[str] = []
        for key in [*self.keys(), None]:
            if key is not None:
                batch.append(key)
            if len(batch) >= _SWEEP_BATCH or key is None:
                for orphan in set(batch) - referenced(batch):
                    self.path(orphan).unlink()
                    removed += 1
                batch = []
        return removed

    def _check(self) -> None:
        """Join the store again where its folder was made anew; raises StoreMissingError where it is gone."""
        try:
            device = self.root.stat().st_dev
        except OSError as error:
            raise StoreMissingError from error
        if self._lock is None or self._lock.holds():
            return
        if not self._lock.path.exists() and device != self._device:
            # An empty mount point: the images are on a file system that is not mounted now.
            raise StoreMissingError
        with self._joining:
            if not self._lock.holds():
                self._temporary.mkdir(exist_ok=True)
                self._durable_folders.clear()
                self._lock.join()

    def _make_folder(self, folder: Path) -> None:
        if folder in self._durable_folders:
            return
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        # Even if it existed: the process that made it may not have flushed its name yet.
        files.sync_folder(folder.parent)
        if folder.parent not in self._durable_folders:
            files.sync_folder(folder.parent.parent)
            self._durable_folders.add(folder.parent)
        self._durable_folders.add(folder)


class StoreLock:
    """A process's shared lock on the store, until `release` or the end of the process."""

    def __init__(self, path: Path, sweep: Callable[[], None]):
        self.path = path
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            sweep()
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def holds(self) -> bool:
        """Return True if the file at `path` is still the one that is locked."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def join(self) -> None:
        """Take the shared lock of the file that is at `path` now, made anew where there is none."""
        joined = self.path.open("ab")
        fcntl.flock(joined, fcntl.LOCK_SH)
        self._file.close()
        self._file = joined

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
