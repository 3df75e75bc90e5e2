"""Images, kept once each under the SHA-256 of their bytes.

Notable here:
- `put` returns when the blob would survive a power cut: file written and flushed, renamed, folder flushed.
- A crash between blob and row leaves a blob that no row names. Serving processes share a lock on the store; one that
  gets it exclusively knows that no process is between the two steps, and only then sweeps. With others alive it leaves
  the sweep to a later start.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from kizu import files

_KEY = re.compile(r"[0-9a-f]{64}")
_SWEEP_BATCH = 500


class BlobStore(Protocol):
    """A store of images by key; keys are SHA-256 in hex."""

    def put(self, key: str, data: bytes) -> None:
        """Store durably; a key that is there already stays as it is."""

    def get(self, key: str) -> bytes:
        """Return the bytes; raises FileNotFoundError."""


def key_of(data: bytes) -> str:
    """Return the key of these bytes."""
    return hashlib.sha256(data).hexdigest()


class LocalBlobStore:
    """A store in a folder, with two levels of 256 folders each below it."""

    def __init__(self, root: Path):
        self.root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._durable_folders: set[Path] = set()

    def path(self, key: str) -> Path:
        """Return the path of a blob."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a blob key: {key!r}")
        return self.root / key[:2] / key[2:4] / key

    def put(self, key: str, data: bytes) -> None:
        """Store durably; a blob that is there already is kept, unless its length shows that it is damaged."""
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
        """Return the bytes; raises FileNotFoundError."""
        return self.path(key).read_bytes()

    def keys(self) -> Iterator[str]:
        """Iterate over every key in the store."""
        for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _KEY.fullmatch(path.name):
                yield path.name

    def open_shared(self, sweep: Callable[[], None]) -> StoreLock:
        """Join the processes that use the store; runs `sweep` first if there is no other."""
        return StoreLock(self.root / "lock", sweep)

    def remove_unreferenced(self, referenced: Callable[[list[str]], set[str]]) -> int:
        """Remove temporary files and the blobs that `referenced` does not return; only for `open_shared`'s sweep."""
        for leftover in self._temporary.iterdir():
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

    def _make_folder(self, folder: Path) -> None:
        if folder in self._durable_folders:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # Even if it existed: the process that made it may not have flushed its name yet.
        files.sync_folder(folder.parent)
        if folder.parent not in self._durable_folders:
            files.sync_folder(folder.parent.parent)
            self._durable_folders.add(folder.parent)
        self._durable_folders.add(folder)


class StoreLock:
    """A process's shared lock on the store, until `release` or the end of the process."""

    def __init__(self, path: Path, sweep: Callable[[], None]):
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            sweep()
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
