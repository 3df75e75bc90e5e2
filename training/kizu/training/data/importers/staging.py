"""Staging of a new data set: written beside its destination, checked image by image, then in one rename.

Notable here:
- DEST appears complete or not at all; an error or Ctrl-C removes what was staged.
- Images are copied byte for byte, after they have been decoded in full: what is imported can be read later.
- Symbolic links are not followed out of the source; hidden files and file managers' litter are passed over.
"""

from __future__ import annotations

import os
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.files import sync_folder
from kizu.models.decode import SUFFIXES, Header, ImageError, decode, decode_mask, read_header
from kizu.training.data.manifest import OK, Manifest, Row
from kizu.training.data.pool import Progress, in_order

_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclass
class Journal:
    """Record of an import: its progress, and what it skipped or decided."""

    progress: Progress | None = None
    total: int = 0
    """Units of work, known once the source has been surveyed."""
    skipped: list[str] = field(default_factory=list)
    """Files of the source that were not imported, each with its reason."""
    empty_masks: list[str] = field(default_factory=list)
    """NG images that were imported without their mask, as it marks nothing."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """How long it took."""

    def skip(self, path: Path | PurePosixPath | str, reason: str) -> None:
        """Record that a file was left out."""
        self.skipped.append(f"{path} ({reason})")


@dataclass(frozen=True)
class Item:
    """One image to import: where it lies, its row, and its mask's file if it has one (`row.mask` names the copy)."""

    source: Path
    row: Row
    mask: Path | None = None


def open_source(source: Path) -> Path:
    """The source folder, checked.

    Raises:
        UserError: it is missing or not a folder.
    """
    source = Path(source)
    if not source.is_dir():
        what = "is a file, not a folder" if source.exists() else "no such folder"
        raise UserError(f"{source}: {what}", "Give the folder that holds the data set, unpacked.")
    return source


def choose_category(source: Path, category: str, is_category: Callable[[Path], bool], layout: str) -> Path:
    """The category's folder: `source` itself, the one named, or the only one there is.

    Raises:
        UserError: there is none, none of that name, or there are several to choose from.
    """
    if not category and is_category(source):
        return source
    names = sorted(child.name for child in source.iterdir() if child.is_dir() and is_category(child))
    if category in names:
        return source / category
    if not category and len(names) == 1:
        return source / names[0]
    if not names:
        raise UserError(f"{source}: has no {layout} folder", "Give the folder of one category, as published.")
    problem = f"has no category '{category}'" if category else "holds several categories"
    raise UserError(
        f"{source}: {problem}; there are {', '.join(names)}", "Give one of these folders, or --category NAME."
    )


def survey(source: Path, journal: Journal, known: Collection[str] = ()) -> list[PurePosixPath]:
    """Every image file below `source`, sorted, relative to it; other files go into the journal.

    `known` are relative names that the layout reads itself. Which is an image is told by its suffix here and by its
    content when it is imported.
    """
    real = source.resolve()
    found = []
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        for name in sorted(folders):
            if (here / name).is_symlink():
                journal.skip((here / name).relative_to(source).as_posix(), "symbolic link to a folder")
        folders[:] = sorted(name for name in folders if not _is_litter(name) and not (here / name).is_symlink())
        for name in sorted(files):
            path = here / name
            relative = PurePosixPath(path.relative_to(source).as_posix())
            if _is_litter(name) or str(relative) in known:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                journal.skip(relative, "symbolic link that leads out of the source")
            elif path.suffix.lower() not in SUFFIXES:
                journal.skip(relative, "not a JPEG, PNG, BMP or TIFF file")
            else:
                _check_name(path, name)
                found.append(relative)
    return sorted(found)


def _check_name(path: Path, name: str) -> None:
    # Surrogates are what Python makes of bytes that are not UTF-8.
    if "\\" in name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise UserError(
            f"{str(path).encode('utf-8', 'backslashreplace').decode()}: the file's name cannot be kept in a manifest",
            "Rename it without backslashes and control characters, in UTF-8.",
        )


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER


@contextmanager
def staged(destination: Path, source: Path | None = None) -> Iterator[Path]:
    """A temporary sibling of `destination`, renamed to it when the block ends, removed when it fails.

    Raises:
        UserError: the destination is not a new or empty folder, lies inside `source`, or cannot be written.
    """
    destination = Path(destination)
    _check_destination(destination, source)
    destination = destination.resolve()
    made: list[Path] = []
    staging = destination.parent / f".{destination.name}.incomplete-{secrets.token_hex(4)}"
    try:
        for parent in reversed([destination.parent, *destination.parent.parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        staging.mkdir()
        yield staging
        if destination.exists():
            destination.rmdir()
        staging.rename(destination)
        sync_folder(destination.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in reversed(made):
            if not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                f"{error.filename or destination}: {error.strerror or error}",
                f"Check the permissions and free space for {destination}.",
            ) from error
        raise


def _check_destination(destination: Path, source: Path | None) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise UserError(f"{destination}: exists and is not a folder", "Choose another destination.")
    if destination.is_dir() and any(destination.iterdir()):
        raise UserError(
            f"{destination}: the folder exists and is not empty",
            "Choose a new folder; Kizu never overwrites a data set.",
        )
    if source is not None and destination.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{destination}: lies inside the source {source}", "Choose a destination outside the source.")


def import_items(items: Sequence[Item], source: Path, destination: Path, journal: Journal) -> Manifest:
    """Check and copy images and masks, write the manifest, and put the data set in place.

    An image whose mask is empty is imported without it, and noted: nothing says where its defect is.

    Raises:
        UserError: no OK image, images or masks that cannot be read, masks of another size than their image (of
            several, each is listed), or a destination in use.
    """
    rows = [item.row for item in items]
    check_classes(rows, source)
    journal.total = len(items)
    with staged(destination, source) as staging:
        make_folders(staging, (name for row in rows for name in (row.path, row.mask) if name))

        def work(item: Item) -> Row | UserError:
            try:
                return _copy(item, staging)
            except UserError as fault:
                return fault

        found = list(in_order(work, items, journal.progress))
        if faults := [fault for fault in found if isinstance(fault, UserError)]:
            raise _joined(faults, source)
        imported = [row for row in found if isinstance(row, Row)]
        journal.empty_masks += [row.path for item, row in zip(items, imported, strict=True) if row != item.row]
        Manifest(staging, imported).write()
    return Manifest(Path(destination), imported)


def _joined(faults: Sequence[UserError], source: Path) -> UserError:
    """The one fault, or one that lists them."""
    if len(faults) == 1:
        return faults[0]
    return UserError(
        f"{source}: {len(faults)} files cannot be imported, and nothing was:",
        "Correct these files, or remove them from the source.",
        [fault.problem for fault in faults],
    )


def make_folders(root: Path, names: Iterable[str]) -> None:
    """Make the folders that files of these relative names need."""
    for folder in {PurePosixPath(name).parent for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)


def check_classes(rows: Iterable[Row], source: Path) -> None:
    """Refuse a data set without OK images: there would be nothing to learn from.

    Raises:
        UserError: no row is OK.
    """
    if not any(row.label == OK for row in rows):
        raise UserError(
            f"{source}: there is no OK image",
            "Detectors learn what good looks like: add OK images, or check the layout.",
        )


def read_image(path: Path) -> tuple[bytes, NDArray[np.uint8]]:
    """A file's bytes and its image, uint8[H, W, C].

    Raises:
        UserError: names the file that is unreadable, truncated or not an image.
    """
    try:
        data = path.read_bytes()
        return data, decode(data)
    except (OSError, ImageError) as error:
        raise _refused(path, error) from error


def read_size(path: Path) -> Header:
    """A file's format and size in pixels, without decoding it.

    Raises:
        UserError: as `read_image`.
    """
    try:
        return read_header(path.read_bytes())
    except (OSError, ImageError) as error:
        raise _refused(path, error) from error


def _copy(item: Item, staging: Path) -> Row:
    """Copy an image with its mask; return its row, without the mask if that is empty."""
    data, image = read_image(item.source)
    (staging / item.row.path).write_bytes(data)
    if item.mask is None:
        return item.row
    try:
        data = item.mask.read_bytes()
        mask = decode_mask(data)
    except (OSError, ImageError) as error:
        raise _refused(item.mask, error) from error
    if mask.shape != image.shape[:2]:
        raise UserError(
            f"{item.mask}: the mask is {mask.shape[1]}×{mask.shape[0]} pixels, "
            f"its image {item.source} {image.shape[1]}×{image.shape[0]}",
            "Save the mask in the size of its image, or remove it.",
        )
    if not mask.any():
        return replace(item.row, mask="")
    (staging / item.row.mask).write_bytes(data)
    return item.row


def _refused(path: Path, error: OSError | ImageError) -> UserError:
    problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return UserError(f"{path}: {problem}", "Replace the file, or remove it from the source; nothing was imported.")
