"""ELPV, solar cells in electroluminescence: `labels.csv` with a defect probability per image.

Buerhop-Lutz et al., "A benchmark for visual identification of defective solar cells in electroluminescence
imagery", EU PVSEC 2018.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

from kizu.errors import UserError
from kizu.training.data.importers.staging import Item, Journal, import_items, open_source, survey
from kizu.training.data.manifest import NG, OK, UNLABELLED, Manifest, Row

LABELS_FILE = "labels.csv"
DEFECT = "defective"
# As unpacked, its parent, and the layout of the upstream repository.
_LAYOUTS = (".", "data", "src/elpv_dataset/data", "elpv_dataset/data")


def import_elpv(source: Path, destination: Path, *, journal: Journal | None = None) -> Manifest:
    """Import ELPV: OK at probability 0, NG at 1, otherwise unlabelled, as experts did not agree on those.

    `source` holds `labels.csv`, or is the folder above, or a checkout of the upstream repository. All NG are of one
    class, `defective`; there are no groups, as the data set does not say which cells share a module.

    Raises:
        UserError: no `labels.csv`, a line that cannot be read, or a listed image missing or unreadable.
    """
    journal = journal or Journal()
    source = open_source(source)
    folder = next((source / layout for layout in _LAYOUTS if (source / layout / LABELS_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"{source / LABELS_FILE}: no such file", "Give the folder that holds ELPV's labels.csv and images/."
        )
    items = _read_labels(folder)
    listed = {item.row.path for item in items}
    for path in survey(folder, journal, known={LABELS_FILE}):
        if str(path) not in listed:
            journal.skip(path, "not in labels.csv")
    return import_items(items, source, destination, journal)


def _read_labels(folder: Path) -> list[Item]:
    path = folder / LABELS_FILE
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "Restore the file from upstream.") from error
    items: list[Item] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) not in (2, 3):
            raise UserError(f"{where}: '{line}' is not 'path probability type'", "Restore the line from upstream.")
        name = PurePosixPath(fields[0])
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{where}: '{name}' leaves the folder", "Restore the line from upstream.")
        if str(name) in line_of:
            raise UserError(f"{where}: '{name}' is already on line {line_of[str(name)]}", "Remove one of the lines.")
        line_of[str(name)] = number
        label = _label(fields[1], where)
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{where}: '{name}' is a link that leads out of the folder", "Put the image itself there.")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: the file is missing (named on line {number} of {path})", "Restore it.")
        items.append(Item(folder / name, Row(str(name), label, DEFECT if label == NG else "")))
    return items


def _label(text: str, where: str) -> str:
    try:
        probability = float(text)
    except ValueError:
        probability = math.nan
    if not 0 <= probability <= 1:
        raise UserError(f"{where}: '{text}' is not a probability from 0 to 1", "Restore the line from upstream.")
    return {0.0: OK, 1.0: NG}.get(probability, UNLABELLED)
