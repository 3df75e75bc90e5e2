"""Extraction of a bundle that arrives as a ZIP: the known files alone, plain, and no larger than allowed."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from kizu.models.bundle import BUNDLE_FILES
from kizu.service.registry.errors import ArchiveTooLargeError, BadArchiveError

_CHUNK = 1024 * 1024


def extract(archive: Path, destination: Path, max_bytes: int) -> None:
    """Extract a bundle's files, found at the top or in one folder, into `destination`.

    Raises:
        BadArchiveError: not a ZIP, or one with a link, or with an encrypted, repeated or unknown file.
        ArchiveTooLargeError: more than `max_bytes` of content.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            names = [_name(member) for member in members]
            if len(set(names)) != len(names):
                raise BadArchiveError("it holds a file twice")
            if len({PurePosixPath(member.filename).parent for member in members}) > 1:
                raise BadArchiveError("its files lie in several folders")
            left = max_bytes
            for member, name in zip(members, names, strict=True):
                left = _extract_one(opened, member, destination / name, left)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadArchiveError(f"it cannot be read: {error}") from error


def _name(member: zipfile.ZipInfo) -> str:
    path = PurePosixPath(member.filename)
    if len(path.parts) > 2 or path.is_absolute() or ".." in path.parts or path.name not in BUNDLE_FILES:
        raise BadArchiveError(f"{member.filename!r} is none of {', '.join(sorted(BUNDLE_FILES))}")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BadArchiveError(f"{member.filename!r} is not a plain file")
    return path.name


def _extract_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, destination: Path, left: int) -> int:
    # The declared size may lie, so what comes out is counted.
    with archive.open(member) as source, destination.open("xb") as target:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise ArchiveTooLargeError
            target.write(chunk)
    return left
