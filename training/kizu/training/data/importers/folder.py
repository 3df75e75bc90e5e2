"""Own images: `ok/` and `ng/<defect>/` folders at any depth, with optional `masks/` and `unlabelled/`."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kizu.errors import UserError
from kizu.training.data.importers.staging import Item, Journal, import_items, open_source, survey
from kizu.training.data.manifest import NG, OK, UNLABELLED, Manifest, Row

_LABELS = {"ok": OK, "good": OK, "ng": NG, "unlabelled": UNLABELLED, "unlabeled": UNLABELLED}
_MASKS = ("masks", "mask")
_MASK_ENDING = re.compile(r"[_-](mask|gt)$")
_LAYOUT = "Expected ok/… and, for defects, ng/<defect>/… below it, in any case and at any depth."


@dataclass(frozen=True)
class _Image:
    """An image, with the label and defect that its folders name."""

    path: PurePosixPath
    label: str
    defect: str
    position: int
    """Index of the label's folder in the path's parts."""

    @property
    def board(self) -> str:
        """The nearest folder that is neither label nor defect; empty where there is none."""
        folders = self.path.parts[:-1]
        below = folders[self.position + (2 if self.defect else 1) :]
        return (below or folders[: self.position] or ("",))[-1]


def import_folder(
    source: Path, destination: Path, *, group_by: str = "none", journal: Journal | None = None
) -> Manifest:
    """Import `ok/`, `ng/<defect>/`, `unlabelled/` and `masks/` as a data set.

    Images directly in `ng/` are NG of no named class. A mask lies at `masks/<path of its image>`,
    `masks/<defect>/<name>`, or beside the images in a folder `masks`; any image suffix, `_mask` may follow the name.
    `group_by`: `none`; `parent`, the nearest folder that is neither label nor defect; or a regular expression with
    one capture group, searched in the relative path.

    Raises:
        UserError: no OK image, an empty class folder, an unreadable image, or a `group_by` that does not fit a file.
    """
    journal = journal or Journal()
    source = open_source(source)
    group_of = _grouping(group_by, source)
    images, masks = [], []
    for path in survey(source, journal):
        folders = [part.casefold() for part in path.parts[:-1]]
        if any(name in folders for name in _MASKS):
            masks.append(path)
        elif (image := _classify(path, folders)) is not None:
            images.append(image)
        else:
            journal.skip(path, "in no ok, ng or unlabelled folder")
    if not images:
        raise UserError(f"{source}: there are no images in ok or ng folders", _LAYOUT)
    _refuse_empty_classes(source, images)
    mask_of = _match_masks(images, masks, journal)
    items = [_item(source, image, group_of(image), mask_of.get(image.path)) for image in images]
    if not any(image.label == NG for image in images):
        journal.notes.append("no NG images: a one-class data set, its FNR cannot be known")
    return import_items(items, source, destination, journal)


def _classify(path: PurePosixPath, folders: list[str]) -> _Image | None:
    for position, name in enumerate(folders):
        if name in _LABELS:
            label = _LABELS[name]
            named = label == NG and position + 1 < len(folders)
            return _Image(path, label, path.parts[position + 1] if named else "", position)
    return None


def _item(source: Path, image: _Image, group: str, mask: PurePosixPath | None) -> Item:
    row = Row(str(image.path), image.label, image.defect, group, mask=str(mask or ""))
    return Item(source / image.path, row, source / mask if mask else None)


def _grouping(group_by: str, source: Path) -> Callable[[_Image], str]:
    if group_by == "none":
        return lambda _: ""
    if group_by == "parent":

        def parent(image: _Image) -> str:
            if not image.board:
                raise UserError(
                    f"{source / image.path}: has no folder to be grouped by, besides its label and defect",
                    "Put each board's images in a folder of its own, as ok/board7/1.png, or use --group-by none.",
                )
            return image.board

        return parent
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(
            f"--group-by '{group_by}': not a regular expression: {error}", "Use none, parent or a regular expression."
        ) from error
    if pattern.groups != 1:
        raise UserError(
            f"--group-by '{group_by}': has {pattern.groups} capture groups, not one",
            r"Put parentheses around the part that names the board, as in 'board(\d+)'.",
        )

    def search(image: _Image) -> str:
        match = pattern.search(str(image.path))
        if match is None or not match[1]:
            raise UserError(
                f"{source / image.path}: --group-by '{group_by}' does not match it",
                "Widen the expression so that it finds the group of every image.",
            )
        return match[1]

    return search


def _refuse_empty_classes(source: Path, images: list[_Image]) -> None:
    """Refuse class folders without images: a slip, not a decision."""
    filled = {parent for image in images for parent in image.path.parents}
    for folder, folders, _ in os.walk(source):
        here = PurePosixPath(Path(folder).relative_to(source).as_posix())
        lowered = [part.casefold() for part in here.parts]
        hidden = any(part.startswith(".") for part in here.parts)
        if hidden or any(part in _MASKS for part in lowered):
            folders.clear()
            continue
        marks = [position for position, part in enumerate(lowered) if part in ("ok", "good", "ng")]
        if not marks or here in filled:
            continue
        depth = len(lowered) - 1 - marks[0]
        if depth == 0 or (depth == 1 and lowered[marks[0]] == "ng"):
            raise UserError(
                f"{source / here}: the class folder holds no image", "Put its images there, or remove the folder."
            )


def _match_masks(
    images: list[_Image], masks: list[PurePosixPath], journal: Journal
) -> dict[PurePosixPath, PurePosixPath]:
    by_key: dict[tuple[str, ...], list[PurePosixPath]] = defaultdict(list)
    for mask in masks:
        folders = [part.casefold() for part in mask.parts[:-1]]
        folders.remove(next(name for name in folders if name in _MASKS))
        by_key[(*folders, _MASK_ENDING.sub("", mask.stem.casefold()))].append(mask)
    images_of_stem = defaultdict(list)
    for image in images:
        images_of_stem[image.path.stem.casefold()].append(image)

    matched: dict[PurePosixPath, PurePosixPath] = {}
    for image in images:
        if image.label != NG:
            continue
        folders = [part.casefold() for part in image.path.parts[:-1]]
        stem = image.path.stem.casefold()
        unlabelled_path = folders[: image.position] + folders[image.position + 1 :]
        keys = [(*folders, stem), (*unlabelled_path, stem)]
        if len(images_of_stem[stem]) == 1:
            keys.append((stem,))
        found = next((by_key[key] for key in keys if key in by_key), [])
        if len(found) > 1:
            raise UserError(
                f"{image.path}: has several masks: {', '.join(map(str, found))}", "Keep one mask per image."
            )
        if found:
            matched[image.path] = found[0]
    for mask in sorted(set(masks) - set(matched.values())):
        journal.skip(mask, "mask of no NG image")
    return matched
