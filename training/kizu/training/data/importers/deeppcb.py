"""DeepPCB: aligned pairs of a template and a tested board image, with boxes of six defect classes.

Notable here:
- A template is OK, its tested image NG; with `tile` both are cut, and a tile is NG where it shows a fifth of a
  defect: of its box's pixels that differ from the template. A box's margin is wide, and a fifth of the tiles that hold
  a good part of a box show nothing in it: neither OK nor NG, they are left out like those that only graze a box.
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
from scipy import ndimage

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
"""A tile with this share of a defect is NG, even if most of it lies in its neighbour."""
_CHANGE = 64
"""Grey levels by which a defect's pixel differs from the template; the boards are black and white."""
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
    template: PurePosixPath | None = None
    """Of a tested image, where it has one."""


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


def cut(
    height: int, width: int, boxes: Iterable[Box], size: int, stride: int, changed: NDArray[np.bool_] | None = None
) -> tuple[list[Tile], int]:
    """Tiles of an image and how many were left out because they show too little of a defect to be NG.

    A tile is OK if no box overlaps it. Of a defect it must show `NG_SHARE` to be NG: of the box's pixels in `changed`
    (height, width), which are the defect's own, or without `changed` of the box's area, or its centre.
    """
    tiles, unclear = [], 0
    boxes = tuple(boxes)
    for y in _starts(height, size, stride):
        for x in _starts(width, size, stride):
            inside = [box for box in boxes if x < box.x1 and box.x0 < x + size and y < box.y1 and box.y0 < y + size]
            shown = [box for box in inside if _is_shown(box, _clipped(box, x, y, size), changed)]
            if shown:
                clipped = tuple(_shifted(_clipped(box, x, y, size), x, y) for box in inside)
                tiles.append(Tile(x, y, NG, "+".join(sorted({box.defect for box in shown})), clipped))
            elif inside:
                unclear += 1
            else:
                tiles.append(Tile(x, y, OK, "", ()))
    return tiles, unclear


def _clipped(box: Box, x: int, y: int, size: int) -> Box:
    return Box(max(box.x0, x), max(box.y0, y), min(box.x1, x + size), min(box.y1, y + size), box.defect)


def _shifted(box: Box, x: int, y: int) -> Box:
    return Box(box.x0 - x, box.y0 - y, box.x1 - x, box.y1 - y, box.defect)


def _is_shown(box: Box, clipped: Box, changed: NDArray[np.bool_] | None) -> bool:
    if changed is not None:
        whole, part = (np.count_nonzero(changed[each.y0 : each.y1, each.x0 : each.x1]) for each in (box, clipped))
        return bool(part > 0 and part >= NG_SHARE * whole)
    centre_x, centre_y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    holds_centre = clipped.x0 <= centre_x < clipped.x1 and clipped.y0 <= centre_y < clipped.y1
    return holds_centre or _area(clipped) >= NG_SHARE * _area(box)


def changed_pixels(tested: NDArray[np.uint8], template: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the pixels in which a tested image differs from its template, both [H, W, C]; bool [H, W].

    Differences thinner than three pixels are the alignment's and are opened away.
    """
    difference = np.abs(tested.astype(np.int16) - template.astype(np.int16)).max(axis=2)
    changed: NDArray[np.bool_] = ndimage.binary_opening(difference >= _CHANGE, np.ones((3, 3), np.bool_))
    return changed


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
    present = {str(path.with_suffix("")): path for path in paths}
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
        template = present.get(str(path.with_name(f"{base}_temp")))
        if template is None:
            journal.notes.append(f"{path}: has no template; what a tile shows of a defect is told from its box alone")
        tables.add(str(table))
        boxes = _read_boxes(root / table, root / path)
        if not boxes:
            journal.notes.append(f"{path}: its boxes file is empty; imported as OK")
        boards.append(_Board(path, group, NG if boxes else OK, boxes, template))
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
    journal.total = 2 * len(boards)
    planned, unclear = _plan(root, boards, cutting, journal)
    if unclear:
        journal.notes.append(
            f"{unclear} tiles that overlap a defect's box but show less than a fifth of the defect are neither OK "
            "nor NG and were left out"
        )
    if cutting.max_ok_per_ng is not None:
        before = sum(len(tiles) for _, tiles in planned)
        planned = _sample_ok(planned, cutting)
        dropped = before - sum(len(tiles) for _, tiles in planned)
        journal.notes.append(
            f"{dropped} OK tiles were left out, to keep {cutting.max_ok_per_ng:g} per NG tile and board"
        )
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


def _plan(
    root: Path, boards: list[_Board], cutting: _Cutting, journal: Journal
) -> tuple[list[tuple[_Board, list[Tile]]], int]:
    def work(board: _Board) -> tuple[list[Tile], int]:
        header = read_size(root / board.path)
        height, width = header.height, header.width
        if min(height, width) < cutting.size:
            raise UserError(
                f"{root / board.path}: {width}×{height} pixels are smaller than the tile of {cutting.size}",
                f"Use --tile {min(height, width)} or less, or import whole images without --tile.",
            )
        return cut(height, width, board.boxes, cutting.size, cutting.stride, _changes(root, board))

    planned, unclear = [], 0
    for board, (tiles, left_out) in zip(boards, in_order(work, boards, journal.progress), strict=True):
        planned.append((board, tiles))
        unclear += left_out
    return planned, unclear


def _changes(root: Path, board: _Board) -> NDArray[np.bool_] | None:
    """Mark the pixels in which a board differs from its template; None if it has no boxes or no template."""
    if not board.boxes or board.template is None:
        return None
    tested, template = (read_image(root / path)[1] for path in (board.path, board.template))
    if tested.shape[:2] != template.shape[:2]:
        raise UserError(
            f"{root / board.template}: differs in size from {board.path.name}, whose template it is",
            "Restore the pair from upstream; the published images are aligned.",
        )
    return changed_pixels(tested, template)


def _sample_ok(planned: list[tuple[_Board, list[Tile]]], cutting: _Cutting) -> list[tuple[_Board, list[Tile]]]:
    """Keep a random share of each board's OK tiles; where a board has no NG tile, as many as if it had one."""
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
