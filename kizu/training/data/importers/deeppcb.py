"""DeepPCB: aligned pairs of a template and a tested board image, with boxes of six defect classes.

Notable here:
- A template is OK, its tested image NG; with `tile` both are cut, and a tile is NG where it holds a box's centre or
  a fifth of a box. Tiles that only graze a box are neither and are left out.
- Template and tested image show the same place of the same board: the group is the board.

Tang et al., "Online PCB defect detector on a new PCB defect dataset", arXiv:1902.06197 (2019).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kizu.errors import UserError
from kizu.training.data.importers.staging import (
    Item,
    Journal,
    check_classes,
    import_items,
    make_folders,
    open_source,
    read_image,
    read_size,
    staged,
    survey,
)
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row
from kizu.training.data.pool import in_order

CLASSES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
NG_SHARE = 0.2
"""A tile with this share of a box's area is NG, even if the centre lies in its neighbour."""
_SEPARATOR = re.compile(r"[,\s]+")


@dataclass(frozen=True)
class Tile:
    """One tile of an image: its upper left corner, its label, and the boxes in its own coordinates."""

    x: int
    y: int
    label: str
    defect: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class _Cutting:
    size: int
    stride: int
    max_ok_per_ng: float | None
    seed: int


@dataclass(frozen=True)
class _Board:
    """One image of a pair."""

    path: PurePosixPath
    group: str
    label: str
    boxes: tuple[Box, ...]


def import_deeppcb(
    source: Path,
    destination: Path,
    *,
    tile: int | None = None,
    stride: int | None = None,
    max_ok_per_ng: float | None = None,
    seed: int = 0,
    journal: Journal | None = None,
) -> Manifest:
    """Import DeepPCB whole, or cut in `tile`×`tile` pixels every `stride` (default: `tile`) pixels.

    A board gives far more clean tiles than defective ones, and all are kept unless `max_ok_per_ng` caps their number
    per board; which are kept is drawn by `seed`.
    `source` is the folder that holds `PCBData`, or that itself. A last row and column of tiles is flush with the edge.

    Raises:
        UserError: no such layout, a tested image without boxes file or template, a bad box, an unreadable image, or
            an image smaller than the tile.
    """
    if tile is not None and tile < 8:
        raise UserError(f"--tile {tile}: too small to show anything", "Use at least 8 pixels.")
    if stride is not None and (tile is None or not 1 <= stride <= tile):
        raise UserError(f"--stride {stride}: must be from 1 to the tile's size", "Give --tile N and a stride up to N.")
    if max_ok_per_ng is not None and (tile is None or not max_ok_per_ng > 0):
        raise UserError(f"--max-ok-per-ng {max_ok_per_ng}: must be positive", "It caps tiles: give --tile N with it.")
    journal = journal or Journal()
    source = open_source(source)
    root = source / "PCBData" if (source / "PCBData").is_dir() else source
    boards = _survey_boards(root, journal)
    if tile is None:
        return import_items([_whole(root, board) for board in boards], source, destination, journal)
    cutting = _Cutting(tile, stride or tile, max_ok_per_ng, seed)
    return _import_tiles(root, boards, source, destination, cutting, journal)


def cut(height: int, width: int, boxes: Iterable[Box], size: int, stride: int) -> tuple[list[Tile], int]:
    """Tiles of an image and how many were left out because they only graze a box.

    A tile is NG if it holds a box's centre or at least `NG_SHARE` of its area, OK if no box overlaps it.
    """
    tiles, grazing = [], 0
    boxes = tuple(boxes)
    for y in _starts(height, size, stride):
        for x in _starts(width, size, stride):
            inside, defects = [], set()
            for box in boxes:
                clipped = Box(
                    max(box.x0 - x, 0), max(box.y0 - y, 0), min(box.x1 - x, size), min(box.y1 - y, size), box.defect
                )
                if clipped.x0 >= clipped.x1 or clipped.y0 >= clipped.y1:
                    continue
                inside.append(clipped)
                holds_centre = x <= (box.x0 + box.x1) / 2 < x + size and y <= (box.y0 + box.y1) / 2 < y + size
                if holds_centre or _area(clipped) >= NG_SHARE * _area(box):
                    defects.add(box.defect)
            if defects:
                tiles.append(Tile(x, y, NG, "+".join(sorted(defects)), tuple(inside)))
            elif inside:
                grazing += 1
            else:
                tiles.append(Tile(x, y, OK, "", ()))
    return tiles, grazing


def _starts(length: int, size: int, stride: int) -> list[int]:
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] == length - size else [*starts, length - size]


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _survey_boards(root: Path, journal: Journal) -> list[_Board]:
    tables: set[str] = set()
    boards = []
    stray = Journal()
    paths = survey(root, stray)
    present = {str(path.with_suffix("")) for path in paths}
    for path in paths:
        base, _, kind = path.stem.rpartition("_")
        if len(path.parts) != 3 or kind.lower() not in ("temp", "test") or not base:
            journal.skip(path, "neither template nor tested image")
            continue
        group = path.parts[0]
        table = PurePosixPath(group, f"{path.parts[1]}_not", f"{base}.txt")
        if kind.lower() == "temp":
            boards.append(_Board(path, group, OK, ()))
            continue
        if str(path.with_name(f"{base}_temp")) not in present:
            journal.notes.append(f"{path}: has no template")
        tables.add(str(table))
        boxes = _read_boxes(root / table, root / path)
        if not boxes:
            journal.notes.append(f"{path}: its boxes file is empty; imported as OK")
        boards.append(_Board(path, group, NG if boxes else OK, boxes))
    if not boards:
        raise UserError(
            f"{root}: there are no group*/*/*_temp.jpg and *_test.jpg images", "Give the folder that holds PCBData."
        )
    used = tables | {"trainval.txt", "test.txt"}
    journal.skipped += [skip for skip in stray.skipped if skip.split(" (")[0] not in used]
    return boards


def _read_boxes(path: Path, image: Path) -> tuple[Box, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: the boxes of {image} are missing", "Restore the file, or remove the image.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "Restore the file from upstream.") from error
    boxes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = _SEPARATOR.split(line.strip())
        if len(fields) != 5 or not all(re.fullmatch(r"-?\d+", field) for field in fields):
            raise UserError(f"{path}, line {number}: '{line}' is not 'x1 y1 x2 y2 type'", "Restore the line.")
        x0, y0, x1, y1, kind = map(int, fields)
        if kind not in CLASSES or x0 >= x1 or y0 >= y1 or x1 <= 0 or y1 <= 0:
            what = f"defect type {kind} is not 1–6" if kind not in CLASSES else "the box is empty"
            raise UserError(f"{path}, line {number}: {what}", "Restore the line from upstream.")
        boxes.append(Box(max(x0, 0), max(y0, 0), x1, y1, CLASSES[kind]))
    return tuple(boxes)


def _whole(root: Path, board: _Board) -> Item:
    defect = "+".join(sorted({box.defect for box in board.boxes}))
    return Item(root / board.path, Row(str(board.path), board.label, defect, board.group, boxes=board.boxes))


def _import_tiles(
    root: Path, boards: list[_Board], source: Path, destination: Path, cutting: _Cutting, journal: Journal
) -> Manifest:
    check_classes((Row("", board.label) for board in boards), source)
    planned, grazing = _plan(root, boards, cutting)
    if grazing:
        journal.notes.append(f"{grazing} tiles that only graze a defect's box are neither OK nor NG and were left out")
    if cutting.max_ok_per_ng is not None:
        before = sum(len(tiles) for _, tiles in planned)
        planned = _sample_ok(planned, cutting)
        dropped = before - sum(len(tiles) for _, tiles in planned)
        journal.notes.append(
            f"{dropped} OK tiles were left out, to keep {cutting.max_ok_per_ng:g} per NG tile and board"
        )
    journal.total = len(planned)
    rows: list[Row] = []
    with staged(destination, source) as staging:
        make_folders(staging, (f"{board.path.with_suffix('')}/tile" for board, _ in planned))

        def work(plan: tuple[_Board, list[Tile]]) -> list[Row]:
            board, tiles = plan
            image = read_image(root / board.path)[1]
            return [_write_tile(staging, board, image, tile, cutting.size) for tile in tiles]

        for cut_rows in in_order(work, planned, journal.progress):
            rows += cut_rows
        check_classes(rows, source)
        Manifest(staging, rows).write()
    return Manifest(Path(destination), rows)


def _plan(root: Path, boards: list[_Board], cutting: _Cutting) -> tuple[list[tuple[_Board, list[Tile]]], int]:
    planned, grazing = [], 0
    for board in boards:
        header = read_size(root / board.path)
        height, width = header.height, header.width
        if min(height, width) < cutting.size:
            raise UserError(
                f"{root / board.path}: {width}×{height} pixels are smaller than the tile of {cutting.size}",
                f"Use --tile {min(height, width)} or less, or import whole images without --tile.",
            )
        tiles, left_out = cut(height, width, board.boxes, cutting.size, cutting.stride)
        planned.append((board, tiles))
        grazing += left_out
    return planned, grazing


def _sample_ok(planned: list[tuple[_Board, list[Tile]]], cutting: _Cutting) -> list[tuple[_Board, list[Tile]]]:
    """Of each board's OK tiles keep some, by lot; where a board has no NG tile, as many as if it had one."""
    ng: Counter[str] = Counter()
    lots: dict[str, list[tuple[bytes, int, Tile]]] = defaultdict(list)
    for number, (board, tiles) in enumerate(planned):
        for tile in tiles:
            if tile.label == NG:
                ng[board.group] += 1
            else:
                ticket = f"{cutting.seed}\0{board.path}\0{tile.y}\0{tile.x}"
                lots[board.group].append((hashlib.sha256(ticket.encode()).digest(), number, tile))
    kept: set[tuple[int, Tile]] = set()
    for group, tickets in lots.items():
        wanted = math.ceil((cutting.max_ok_per_ng or 0) * max(ng[group], 1))
        kept.update((number, tile) for _, number, tile in sorted(tickets, key=lambda ticket: ticket[0])[:wanted])
    return [
        (board, [tile for tile in tiles if tile.label == NG or (number, tile) in kept])
        for number, (board, tiles) in enumerate(planned)
    ]


def _write_tile(staging: Path, board: _Board, image: NDArray[np.uint8], tile: Tile, size: int) -> Row:
    path = board.path.with_suffix("") / f"y{tile.y:04}_x{tile.x:04}.png"
    pixels = image[tile.y : tile.y + size, tile.x : tile.x + size]
    buffer = io.BytesIO()
    # Level 1 costs a tenth more disk than the default and halves the time.
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    (staging / path).write_bytes(buffer.getvalue())
    return Row(str(path), tile.label, tile.defect, board.group, boxes=tile.boxes)
