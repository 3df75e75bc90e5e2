"""Files that are whole or not there: written beside their place, forced to disk, then renamed onto it.

Notable here:
- A rename within a file system is atomic: a reader sees the old content or the new, never a part of it.
- `fsync` of the file before the rename, and of its folder after it, lets the content survive a power cut.
- The temporary name is fixed, so a crashed writer's leftover is overwritten by the next one instead of piling up. Where
  several processes may write one file at a time, each gives a `temporary` of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a file to write; when the block ends without an error, it takes the place of `path`.

    Args:
        path: what to write or to replace; its folder exists.
        temporary: where to write first, on the same file system; by default `.NAME.tmp` beside `path`.

    Raises:
        OSError: the folder does not exist, cannot be written or is full. `path` is then as it was.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, temporary: Path | None = None) -> None:
    """Write `content` to `path` as `atomic_file` does."""
    with atomic_file(path, temporary=temporary) as file:
        file.write(content)


def write_text(path: Path, content: str, *, temporary: Path | None = None) -> None:
    """Write `content` to `path` in UTF-8 with the line ends that it has, as `atomic_file` does."""
    write_bytes(path, content.encode("utf-8"), temporary=temporary)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk; only POSIX lets a folder be opened and synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
