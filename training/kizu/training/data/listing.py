"""Listing of a data set's folder for the manifest's reader.

Notable here:
- Each directory is listed once: asking the file system per row is slow for 100 000 rows.
- A link may point anywhere within the folder, and nowhere out of it.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath


class Listing:
    """The files below `root`, looked up by relative path."""

    def __init__(self, root: Path):
        self.root = root
        self.real_root = root.resolve()
        self._folders: dict[PurePosixPath, tuple[bool, frozenset[str]]] = {}

    def inside(self, pure: PurePosixPath) -> bool:
        """Tell whether the path, links followed, stays below the root."""
        inside, plain_files = self._folder(pure.parent)
        return inside and (pure.name in plain_files or self._resolves_inside(pure))

    def has(self, pure: PurePosixPath) -> bool:
        """Tell whether there is such a file."""
        return pure.name in self._folder(pure.parent)[1] or (self.root / pure).is_file()

    def _resolves_inside(self, pure: PurePosixPath) -> bool:
        return (self.root / pure).resolve().is_relative_to(self.real_root)

    def _folder(self, folder: PurePosixPath) -> tuple[bool, frozenset[str]]:
        known = self._folders.get(folder)
        if known is None:
            known = (self._resolves_inside(folder), self._plain_files(folder))
            self._folders[folder] = known
        return known

    def _plain_files(self, folder: PurePosixPath) -> frozenset[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except OSError:
            return frozenset()  # said by name when the row's file is looked for
