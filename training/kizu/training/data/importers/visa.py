"""VisA: `<category>/Data/Images/{Normal,Anomaly}`, `Data/Masks/Anomaly` and `image_anno.csv`.

Zou et al., "SPot-the-difference self-supervised pre-training for anomaly detection and segmentation", ECCV 2022.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kizu.errors import UserError
from kizu.training.data.importers.staging import (
    Item,
    Journal,
    choose_category,
    import_items,
    open_source,
    survey,
)
from kizu.training.data.manifest import NG, OK, SPLITS, Manifest, Row

ANNOTATIONS = "image_anno.csv"
SPLIT_FILE = "split_csv/1cls.csv"
_NORMAL, _ANOMALY = PurePosixPath("Data/Images/Normal"), PurePosixPath("Data/Images/Anomaly")
_MASKS = PurePosixPath("Data/Masks/Anomaly")


@dataclass(frozen=True)
class _Annotation:
    """One line of a VisA table; paths are relative to the category."""

    image: PurePosixPath
    label: str
    mask: PurePosixPath | None
    split: str
    where: str


def import_visa(
    source: Path,
    destination: Path,
    *,
    official_split: bool = False,
    category: str = "",
    journal: Journal | None = None,
) -> Manifest:
    """Import one category; `source` is its folder, or the folder above with `category` naming one of several.

    Defect classes come from `image_anno.csv`; an image of several has them joined by `+`. `official_split` takes
    train and test from `split_csv/1cls.csv` beside the categories; otherwise Kizu draws the splits.

    Raises:
        UserError: no such layout, several categories and none chosen, a table with a bad or duplicate line or
            naming a missing image, no OK image, or an unreadable image.
    """
    journal = journal or Journal()
    folder = choose_category(open_source(source), category, _is_category, "Data/Images/Normal")
    paths = survey(folder, journal, known={ANNOTATIONS})
    annotations = _read_table(folder / ANNOTATIONS, folder) if (folder / ANNOTATIONS).is_file() else {}
    published = _published(folder) if official_split else {}
    annotated = {**published, **annotations}
    if not annotations:
        journal.notes.append(f"no {ANNOTATIONS}: NG images have no defect class")

    present = set(paths)
    for path, listed in annotated.items():
        for name in filter(None, (path, listed.mask)):
            if name not in present:
                raise UserError(f"{folder / name}: the file is missing (named in {listed.where})", "Restore it.")
    masks = defaultdict(list)
    for path in paths:
        if path.parent == _MASKS:
            masks[path.stem].append(path)

    items = []
    for path in paths:
        if path.parent not in (_NORMAL, _ANOMALY):
            if path.parent != _MASKS:
                journal.skip(path, "in none of VisA's folders")
            continue
        if official_split and path not in published:
            journal.skip(path, f"not in {SPLIT_FILE}")
            continue
        good = path.parent == _NORMAL
        annotation = annotated.get(path)
        mask = None if good else (annotation and annotation.mask) or next(iter(masks[path.stem]), None)
        row = Row(
            str(path),
            OK if good else NG,
            "" if good else _defect(annotation),
            split=published[path].split if official_split else "",
            mask=str(mask or ""),
        )
        items.append(Item(folder / path, row, folder / mask if mask else None))
    if not any(item.row.label == NG for item in items):
        journal.notes.append("no NG images: a one-class data set, its FNR cannot be known")
    return import_items(items, folder, destination, journal)


def _is_category(folder: Path) -> bool:
    return (folder / _NORMAL).is_dir()


def _defect(annotation: _Annotation | None) -> str:
    if annotation is None or annotation.label.casefold() in ("anomaly", ""):
        return ""
    return "+".join(sorted({name.strip() for name in annotation.label.split(",") if name.strip()}))


def _published(folder: Path) -> dict[PurePosixPath, _Annotation]:
    for root in (folder.resolve().parent, folder):
        if (root / SPLIT_FILE).is_file():
            table = _read_table(root / SPLIT_FILE, folder)
            if not table:
                raise UserError(f"{root / SPLIT_FILE}: lists no image of {folder.name}", "Import without its split.")
            return table
    raise UserError(
        f"{folder.resolve().parent / SPLIT_FILE}: no such file",
        "Get it from VisA's repository, or import without --official-split.",
    )


def _read_table(path: Path, folder: Path) -> dict[PurePosixPath, _Annotation]:
    """The lines of a VisA table that are about the category in `folder`."""
    category = folder.resolve().name
    table: dict[PurePosixPath, _Annotation] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"image", "label", "mask"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: the column '{min(missing)}' is missing", "Restore the file from upstream.")
            for line in reader:
                where = f"{path}, line {reader.line_num}"
                if "object" in line and line["object"] != category:
                    continue
                annotation = _annotation(line, category, where)
                other = table.setdefault(annotation.image, annotation)
                if other is not annotation:
                    raise UserError(
                        f"{where}: '{line['image']}' is already listed ({other.where})", "Remove one of the lines."
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}", "Restore the file from upstream.") from error
    return table


def _annotation(line: dict[str, str | None], category: str, where: str) -> _Annotation:
    image, mask = (_relative(line[column] or "", category, where) for column in ("image", "mask"))
    label, split = (line["label"] or "").strip(), (line.get("split") or "").strip()
    if image is None or image.parent not in (_NORMAL, _ANOMALY):
        raise UserError(f"{where}: '{line['image']}' is no image in Data/Images", "Restore the line from upstream.")
    if (label.casefold() == "normal") != (image.parent == _NORMAL):
        raise UserError(
            f"{where}: label '{label}' contradicts the folder of {line['image']}",
            "Correct the label or move the image.",
        )
    if split and split not in SPLITS:
        raise UserError(f"{where}: split '{split}' is not train or test", "Restore the line from upstream.")
    return _Annotation(image, label, mask, split, where)


def _relative(name: str, category: str, where: str) -> PurePosixPath | None:
    if not name.strip():
        return None
    path = PurePosixPath(name.strip())
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: '{name}' leaves the folder", "Restore the line from upstream.")
    return path.relative_to(category) if path.parts[0] == category else path
