"""MVTec AD, and data sets in its layout: `train/good`, `test/<defect>`, `ground_truth/<defect>/<name>_mask.png`.

Bergmann et al., "MVTec AD: a comprehensive real-world dataset for unsupervised anomaly detection", CVPR 2019.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from kizu.errors import UserError
from kizu.training.data.importers.staging import Item, Journal, choose_category, import_items, open_source, survey
from kizu.training.data.manifest import NG, OK, Manifest, Row

_GOOD = ("good", "ok")
_SPLIT_OF = {"train": "train", "validation": "calibration", "test": "test"}
_GROUND_TRUTH = "ground_truth"
_MASK_ENDING = re.compile(r"_mask$")


def import_mvtec(
    source: Path,
    destination: Path,
    *,
    official_split: bool = False,
    category: str = "",
    journal: Journal | None = None,
) -> Manifest:
    """Import one category. Splits stay empty, so that Kizu draws them, unless `official_split` keeps the published.

    `category` chooses one where `source` holds several. The published split has no NG outside test, so a model
    calibrated on it has no known FNR.

    Raises:
        UserError: no such layout, several categories and none chosen, no OK image, an empty class folder, or an
            unreadable image.
    """
    journal = journal or Journal()
    source = choose_category(open_source(source), category, _is_category, "train/good")
    images: list[PurePosixPath] = []
    masks: dict[tuple[str, str], list[PurePosixPath]] = defaultdict(list)
    for path in survey(source, journal):
        top = path.parts[0].casefold()
        if top in _SPLIT_OF and len(path.parts) >= 3:
            images.append(path)
        elif top == _GROUND_TRUTH and len(path.parts) == 3:
            masks[path.parts[1], _MASK_ENDING.sub("", path.stem)].append(path)
        else:
            journal.skip(path, "in no train, test or ground_truth folder")
    _refuse_empty_classes(source, images)

    items = []
    for path in images:
        good = path.parts[1].casefold() in _GOOD
        found = [] if good or len(path.parts) != 3 else masks.pop((path.parts[1], path.stem), [])
        if len(found) > 1:
            raise UserError(f"{source / path}: has several masks: {', '.join(map(str, found))}", "Keep one per image.")
        row = Row(
            str(path),
            OK if good else NG,
            "" if good else path.parts[1],
            split=_SPLIT_OF[path.parts[0].casefold()] if official_split else "",
            mask=str(found[0]) if found else "",
        )
        items.append(Item(source / path, row, source / found[0] if found else None))
    for path in sorted(path for unused in masks.values() for path in unused):
        journal.skip(path, "mask of no NG image")
    return import_items(items, source, destination, journal)


def _is_category(folder: Path) -> bool:
    for train in folder.iterdir():
        if train.name.casefold() == "train" and train.is_dir():
            return any(child.is_dir() and child.name.casefold() in _GOOD for child in train.iterdir())
    return False


def _refuse_empty_classes(source: Path, images: list[PurePosixPath]) -> None:
    filled = {path.parts[:2] for path in images}
    for split in sorted(source.iterdir()):
        if split.name.casefold() not in _SPLIT_OF or not split.is_dir():
            continue
        for folder in sorted(split.iterdir()):
            if folder.is_dir() and not folder.name.startswith(".") and (split.name, folder.name) not in filled:
                raise UserError(f"{folder}: the class folder holds no image", "Restore its images, or remove it.")
