"""A data set on disk: a folder with images and `manifest.csv`, one line per image.

Notable here:
- Reading is strict: what is wrong is said once, with file, line and remedy, before any image is used.
- Nothing outside the folder is ever read; a manifest is a self-contained, movable thing.
- The fingerprint covers every cell and the content of every image and mask.
- A synthetic image says so (`origin`) and can only train: it never calibrates or tests, and is counted apart.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kizu import files
from kizu.errors import UserError
from kizu.models.decode import ImageError, decode, decode_mask, read_header
from kizu.training.data.listing import Listing
from kizu.training.data.origin import is_origin
from kizu.training.data.pool import Progress, in_order

FILE = "manifest.csv"
COLUMNS = ("path", "label", "defect", "group", "split", "mask", "boxes", "origin")
REQUIRED_COLUMNS = ("path", "label")
OK, NG, UNLABELLED = "OK", "NG", ""
LABELS = (OK, NG, UNLABELLED)
SPLITS = ("train", "calibration", "test")
CERTIFICATION = "certification"
"""Split that a recipe or a manifest may reserve: only the certificate reads it."""


class Box(NamedTuple):
    """A defect's bounding box in pixels of its image; x1 and y1 are exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float
    defect: str


@dataclass(frozen=True)
class Row:
    """One image and what is known of it."""

    path: str
    """Relative to the data set's folder, with forward slashes."""
    label: str
    """`OK`, `NG` or empty (unlabelled)."""
    defect: str = ""
    """Defect class of an NG image; several classes are joined by `+`."""
    group: str = ""
    """The physical thing (board, lot, module) that must never straddle splits; empty: the image is its own."""
    split: str = ""
    """`train`, `calibration`, `test`, `certification`, or empty: Kizu assigns it."""
    mask: str = ""
    """Path of the defect mask, non-zero where the defect is."""
    boxes: tuple[Box, ...] = ()
    origin: str = ""
    """Empty for an image from a camera; where a synthetic one came from, as `KIND:RUN:SEED`."""

    @property
    def synthetic(self) -> bool:
        """True where a generator made the image."""
        return bool(self.origin)

    @property
    def defects(self) -> tuple[str, ...]:
        """The defect classes, none for OK or where they are not known."""
        return tuple(name for name in self.defect.split("+") if name)


class Manifest:
    """A data set: its folder and its rows."""

    def __init__(self, root: Path, rows: Sequence[Row]):
        self.root = root
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Read and check `root/manifest.csv`.

        Raises:
            UserError: the folder, the manifest or a file that it names is missing; an unknown or missing column,
                a value outside its set, a duplicate path, a path that leaves the folder, bad boxes, a synthetic
                image without label or for calibration or test, or a group with rows in two given splits.
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such data set folder", "Make one with `kizu import` or `kizu data render`.")
        rows = _Reader(root).read()
        check_groups(rows, root / FILE)
        return cls(root, rows)

    def write(self) -> None:
        """Write `manifest.csv` atomically and durably: it is the old one or the new one, whatever happens.

        Without synthetic rows there is no column `origin`.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = COLUMNS if any(row.synthetic for row in self.rows) else COLUMNS[:-1]
        writer.writerow(columns)
        writer.writerows([*_cells(row), row.origin][: len(columns)] for row in self.rows)
        files.write_text(self.root / FILE, text.getvalue(), temporary=self.root / f".{FILE}.{os.getpid()}")

    def image(self, row: Row) -> NDArray[np.uint8]:
        """The row's image, uint8[H, W, C] with C = 1 (grey) or 3 (RGB).

        Raises:
            UserError: the file is missing, unreadable, truncated or not an image.
        """
        path = self.root / row.path
        try:
            return decode(path.read_bytes())
        except (OSError, ImageError) as error:
            raise _unreadable(path, error) from error

    def size(self, row: Row) -> tuple[int, int]:
        """The image's (height, width), from its header alone.

        Raises:
            UserError: the file is missing, unreadable or not an image.
        """
        return self._size(row.path)

    def mask_size(self, row: Row) -> tuple[int, int]:
        """The mask's (height, width), as `size`, of a row that has one."""
        return self._size(row.mask)

    def _size(self, name: str) -> tuple[int, int]:
        path = self.root / name
        try:
            header = read_header(path.read_bytes())
        except (OSError, ImageError) as error:
            raise _unreadable(path, error) from error
        return header.height, header.width

    def mask(self, row: Row) -> NDArray[np.bool_] | None:
        """The row's defect mask, bool[H, W]; None where it has none, or one that marks nothing: it locates no defect.

        Raises:
            UserError: as `image`.
        """
        if not row.mask:
            return None
        path = self.root / row.mask
        try:
            mask = decode_mask(path.read_bytes())
        except (OSError, ImageError) as error:
            raise _unreadable(path, error) from error
        return mask if mask.any() else None

    @property
    def defects(self) -> list[str]:
        """The defect classes that occur, sorted."""
        return sorted({name for row in self.rows for name in row.defects})

    @property
    def groups(self) -> list[str]:
        """The given groups, sorted."""
        return sorted({row.group for row in self.rows if row.group})

    def counts(self) -> dict[str, int]:
        """Images per label, as `count_labels`."""
        return count_labels(self.rows)

    def fingerprint(self, progress: Progress | None = None) -> str:
        """SHA-256 over every row, in the order of paths, with the content of its image and mask.

        `progress` is told of each row. The order of lines, the folder's own name and file dates do not matter.
        """
        digest = hashlib.sha256()
        rows = sorted(self.rows, key=lambda row: row.path)
        for row, content in zip(rows, in_order(self._content, rows, progress), strict=True):
            # An image from a camera is hashed without an origin: data sets from before the column keep their print.
            cells = [*_cells(row), row.origin] if row.synthetic else _cells(row)
            digest.update(json.dumps([*cells, *content], ensure_ascii=False).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def _content(self, row: Row) -> list[str]:
        hashes = []
        for name in filter(None, (row.path, row.mask)):
            path = self.root / name
            try:
                hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
            except OSError as error:
                raise _unreadable(path, error) from error
        return hashes


def count_labels(rows: Iterable[Row]) -> dict[str, int]:
    """Images from cameras per label, `{"OK": …, "NG": …, "unlabelled": …}`, and `"synthetic"` where there are such."""
    counted = Counter("synthetic" if row.synthetic else row.label for row in rows)
    counts = {"OK": counted[OK], "NG": counted[NG], "unlabelled": counted[UNLABELLED]}
    return counts | {"synthetic": counted["synthetic"]} if counted["synthetic"] else counts


def check_groups(rows: Iterable[Row], source: Path | str) -> None:
    """Refuse a group whose rows are given two splits; synthetic rows, which can only train, are passed over.

    Raises:
        UserError: names the group and one file on each side.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        if row.synthetic or not (row.group and row.split):
            continue
        other = seen.setdefault(row.group, row)
        if other.split != row.split:
            raise UserError(
                f"{source}: group '{row.group}' is in two splits: {other.path} is in {other.split}, "
                f"{row.path} in {row.split}",
                "A group is one physical thing and must stay in one split: give all its rows the same split, or "
                "leave the split column empty and Kizu splits by group.",
            )


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: the file is missing", "Restore it, or remove its line from the manifest.")
    problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return UserError(f"{path}: {problem}", "Replace the file, or remove it from the data set.")


def _cells(row: Row) -> list[str]:
    boxes = json.dumps(row.boxes, ensure_ascii=False) if row.boxes else ""
    return [row.path, row.label, row.defect, row.group, row.split, row.mask, boxes]


class _Reader:
    """Reads one `manifest.csv`, line by line, so that every fault knows where it is."""

    def __init__(self, root: Path):
        self.root = root
        self.path = root / FILE
        self.line = 0
        self.files = Listing(root)

    def read(self) -> list[Row]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no such manifest",
                f"A data set is a folder with {FILE}; make one from your images with `kizu import folder SRC DEST`.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read: {error}", "Save it as UTF-8 text.") from error
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows: list[Row] = []
        line_of: dict[str, int] = {}
        try:
            columns = self._header(next(lines, []))
            for cells in lines:
                self.line = lines.line_num
                if not cells:
                    continue
                row = self._row(cells, columns)
                if row.path in line_of:
                    raise self._fault(
                        f"path '{row.path}' is already on line {line_of[row.path]}", "Remove one of the two lines."
                    )
                line_of[row.path] = self.line
                rows.append(row)
        except csv.Error as error:
            self.line = lines.line_num
            raise self._fault(f"not valid CSV: {error}", "Check the quotes on that line.") from error
        if not rows:
            raise UserError(f"{self.path}: the manifest lists no image", "Add at least one line per image.")
        return rows

    def _header(self, names: list[str]) -> list[str]:
        self.line = 1
        names = [name.strip() for name in names]
        for name in names:
            if name not in COLUMNS:
                near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise self._fault(f"unknown column '{name}'", f"{hint}The columns are {','.join(COLUMNS)}.")
        for name in REQUIRED_COLUMNS:
            if name not in names:
                raise self._fault(f"the column '{name}' is missing", f"The columns are {','.join(COLUMNS)}.")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise self._fault(f"the column '{twice[0]}' is there twice", "Remove one of them.")
        return names

    def _row(self, cells: list[str], columns: list[str]) -> Row:
        if len(cells) != len(columns):
            raise self._fault(
                f"{len(cells)} values for {len(columns)} columns", "Quote values that hold commas, as boxes do."
            )
        # File names may begin or end with a space; anywhere else one is a slip of the hand.
        value = {
            name: cell if name in ("path", "mask") else cell.strip() for name, cell in zip(columns, cells, strict=True)
        }
        label, split, defect = value["label"], value.get("split", ""), value.get("defect", "")
        if label not in LABELS:
            raise self._fault(f"label '{label}' is not one of OK, NG or empty", "Labels are upper case; fix the line.")
        known = (*SPLITS, CERTIFICATION)
        if split and split not in known:
            near = difflib.get_close_matches(split.lower(), known, n=1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise self._fault(
                f"split '{split}' is not one of {', '.join(known)} or empty",
                f"{hint}Leave it empty to have it drawn.",
            )
        boxes = self._boxes(value.get("boxes", ""))
        if label == OK and (defect or boxes):
            what = f"defect '{defect}'" if defect else "boxes"
            raise self._fault(f"an OK image has {what}", "Label it NG, or clear the defect and boxes.")
        mask, origin = value.get("mask", ""), value.get("origin", "")
        if origin:
            self._check_synthetic(origin, label, split)
        return Row(
            path=self._file(value["path"], "path"),
            label=label,
            defect=defect,
            group=value.get("group", ""),
            split=split,
            mask=self._file(mask, "mask") if mask else "",
            boxes=boxes,
            origin=origin,
        )

    def _check_synthetic(self, origin: str, label: str, split: str) -> None:
        if not is_origin(origin):
            raise self._fault(
                f"origin '{origin}' is not KIND:RUN:SEED",
                "Only synthetic images have an origin, as in stylegan2-ada:run-7:17; leave it empty for a camera's.",
            )
        if label == UNLABELLED:
            raise self._fault("a synthetic image has no label", "Label it as what it was made to show: NG or OK.")
        if split not in ("", "train"):
            raise self._fault(
                f"a synthetic image is in the {split} split",
                "Synthetic images only train, they never certify anything: leave its split empty.",
            )

    def _file(self, name: str, column: str) -> str:
        pure = PurePosixPath(name)
        if not name or str(pure) == ".":
            raise self._fault(f"the {column} is empty", "Give the image's path, relative to this folder.")
        if "\\" in name or "\0" in name:
            raise self._fault(f"{column} '{name}' is not a portable path", "Write it with forward slashes.")
        if pure.is_absolute() or ".." in pure.parts or not self.files.inside(pure):
            raise self._fault(
                f"{column} '{name}' leaves the data set's folder",
                "Copy the file into the folder and name it from there.",
            )
        if not self.files.has(pure):
            raise self._fault(
                f"{column} '{name}': there is no such file in {self.root}", "Restore the file, or remove the line."
            )
        return str(pure)

    def _boxes(self, text: str) -> tuple[Box, ...]:
        if not text:
            return ()
        remedy = "Boxes are JSON: [[x0,y0,x1,y1,class],…] in pixels, with x0 < x1 and y0 < y1."
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._fault(f"the boxes are not JSON: {error}", remedy) from error
        if not isinstance(parsed, list):
            raise self._fault("the boxes are not a list", remedy)
        return tuple(self._box(item, remedy) for item in parsed)

    def _box(self, item: object, remedy: str) -> Box:
        if not (isinstance(item, list) and len(item) == 5 and isinstance(item[4], str)):
            raise self._fault(f"box {json.dumps(item)} is not [x0,y0,x1,y1,class]", remedy)
        numbers = item[:4]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise self._fault(f"box {json.dumps(item)} has coordinates that are not numbers", remedy)
        box = Box(*item)
        if box.x0 < 0 or box.y0 < 0 or box.x1 <= box.x0 or box.y1 <= box.y0:
            raise self._fault(f"box {json.dumps(item)} is empty or starts outside the image", remedy)
        return box

    def _fault(self, problem: str, remedy: str) -> UserError:
        return UserError(f"{self.path}, line {self.line}: {problem}", remedy)
