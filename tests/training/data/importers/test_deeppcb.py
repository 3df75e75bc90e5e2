"""DeepPCB, whole and in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kizu.errors import UserError
from kizu.training.data.importers.deeppcb import cut, import_deeppcb
from kizu.training.data.importers.staging import Journal
from kizu.training.data.manifest import NG, OK, Box, Manifest
from kizu.training.data.splits import assign_splits

from ..conftest import leftovers


def print_board(path: Path, defects: Iterable[Box] = ()) -> None:
    """A bare board of 64×64 pixels with copper where its defects are."""
    pixels = np.full((64, 64), 40, np.uint8)
    for box in defects:
        pixels[box.y0 : box.y1, box.x0 : box.x1] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two boards; the first tested image has two defects, the second one across a border."""
    root = tmp_path / "source" / "PCBData"
    for board, table, defects in (
        ("00041", "2 2 6 6 3\n40,40,52,52,6\n", [Box(2, 2, 6, 6, ""), Box(40, 40, 52, 52, "")]),
        ("20085", "30 2 34 10 1", [Box(30, 2, 34, 10, "")]),
    ):
        folder = root / f"group{board}"
        print_board(folder / board / f"{board}000_temp.jpg")
        print_board(folder / board / f"{board}000_test.jpg", defects)
        (folder / f"{board}_not").mkdir()
        (folder / f"{board}_not" / f"{board}000.txt").write_text(table)
    (root / "trainval.txt").write_text("group00041/00041/00041000.jpg group00041/00041_not/00041000.txt\n")
    return tmp_path / "source"


@pytest.mark.parametrize("place", [".", "PCBData"])
def test_templates_are_ok_and_tested_images_ng_with_boxes(source: Path, tmp_path: Path, place: str) -> None:
    journal = Journal()
    manifest = import_deeppcb(source / place, tmp_path / "set", journal=journal)
    assert [(row.path, row.label, row.defects, row.group) for row in manifest.rows] == [
        ("group00041/00041/00041000_temp.jpg", OK, (), "group00041"),
        ("group00041/00041/00041000_test.jpg", NG, ("mousebite", "pin-hole"), "group00041"),
        ("group20085/20085/20085000_temp.jpg", OK, (), "group20085"),
        ("group20085/20085/20085000_test.jpg", NG, ("open",), "group20085"),
    ]
    assert manifest.rows[1].boxes == (Box(2, 2, 6, 6, "mousebite"), Box(40, 40, 52, 52, "pin-hole"))
    assert journal.skipped == []
    assert Manifest.read(tmp_path / "set").rows == manifest.rows


def test_tiles_are_cut_labelled_and_hold_the_source_pixels(source: Path, tmp_path: Path) -> None:
    whole = import_deeppcb(source, tmp_path / "whole")
    manifest = import_deeppcb(source, tmp_path / "set", tile=32)
    assert manifest.counts() == {"OK": 4 + 2 + 4 + 2, "NG": 2 + 2, "unlabelled": 0}
    rows = {row.path: row for row in manifest.rows}
    folder = "group00041/00041/00041000_test"
    assert rows[f"{folder}/y0000_x0000.png"].boxes == (Box(2, 2, 6, 6, "mousebite"),)
    assert rows[f"{folder}/y0032_x0032.png"].boxes == (Box(8, 8, 20, 20, "pin-hole"),)
    tested = whole.image(whole.rows[1])
    np.testing.assert_array_equal(manifest.image(rows[f"{folder}/y0032_x0000.png"]), tested[32:, :32])
    assert {row.group for row in manifest.rows} == {"group00041", "group20085"}
    assert Manifest.read(tmp_path / "set").rows == manifest.rows


def test_a_tile_is_ng_where_it_shows_a_fifth_of_the_defect_not_of_its_box(source: Path, tmp_path: Path) -> None:
    board = source / "PCBData" / "group20085"
    # The box's margin reaches far into the right tiles; what differs from the template does so less.
    (board / "20085_not" / "20085000.txt").write_text("12 2 52 10 1")
    for right_end, labels in ((31, [NG]), (34, [NG]), (35, [NG, NG])):
        print_board(board / "20085" / "20085000_test.jpg", [Box(20, 2, right_end, 10, "")])
        journal = Journal()
        manifest = import_deeppcb(source, tmp_path / f"{right_end}", tile=32, journal=journal)
        rows = [row for row in manifest.rows if row.path.startswith("group20085/20085/20085000_test")]
        assert [row.label for row in rows if "y0000" in row.path] == labels
        left_out = [note for note in journal.notes if note.startswith("1 tiles that overlap")]
        assert len(left_out) == (labels == [NG])


def test_a_defect_that_shows_nowhere_makes_no_tile_ng(source: Path, tmp_path: Path) -> None:
    print_board(source / "PCBData" / "group20085" / "20085" / "20085000_test.jpg", [Box(30, 2, 32, 10, "")])
    manifest = import_deeppcb(source, tmp_path / "set", tile=32)
    assert {row.group for row in manifest.rows if row.label == NG} == {"group00041"}


def test_without_its_template_a_tested_image_is_cut_by_its_boxes_alone(source: Path, tmp_path: Path) -> None:
    (source / "PCBData" / "group20085" / "20085" / "20085000_temp.jpg").unlink()
    print_board(source / "PCBData" / "group20085" / "20085" / "20085000_test.jpg")
    journal = Journal()
    manifest = import_deeppcb(source, tmp_path / "set", tile=32, journal=journal)
    assert sum(row.label == NG for row in manifest.rows if row.group == "group20085") == 2
    assert any("20085000_test.jpg: has no template" in note for note in journal.notes)


def test_by_boxes_a_tile_is_ng_by_centre_or_a_fifth_ok_if_untouched_and_else_dropped() -> None:
    def labels(*boxes: Box) -> dict[tuple[int, int], str]:
        tiles, grazing = cut(20, 20, boxes, 10, 10)
        assert len(tiles) + grazing == 4
        return {(tile.x, tile.y): tile.label for tile in tiles}

    ok = {(0, 0): OK, (10, 0): OK, (0, 10): OK, (10, 10): OK}
    assert labels() == ok
    assert labels(Box(0, 0, 5, 5, "a")) == ok | {(0, 0): NG}
    # three tenths of the box lie in the right tile, its centre in the left one
    assert labels(Box(3, 0, 13, 4, "a")) == ok | {(0, 0): NG, (10, 0): NG}
    # exactly a fifth
    assert labels(Box(2, 0, 12, 4, "a")) == ok | {(0, 0): NG, (10, 0): NG}
    # a tenth: neither
    grazed = labels(Box(1, 0, 11, 4, "a"))
    assert grazed == {(0, 0): NG, (0, 10): OK, (10, 10): OK}
    # a box that only ends at the border does not touch the next tile
    assert labels(Box(4, 4, 10, 10, "a")) == ok | {(0, 0): NG}


@settings(max_examples=100, deadline=None)
@given(
    st.integers(10, 70),
    st.integers(10, 70),
    st.integers(8, 10),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)), max_size=4),
)
def test_tiles_cover_the_image_and_boxes_stay_in_their_tile(height, width, size, stride, corners) -> None:
    boxes = [Box(x, y, x + w, y + h, "a") for x, y, w, h in corners]
    covered = np.zeros((height, width), bool)
    tiles, grazing = cut(height, width, [], size, stride)
    assert grazing == 0
    for tile in tiles:
        assert tile.x + size <= width
        assert tile.y + size <= height
        covered[tile.y : tile.y + size, tile.x : tile.x + size] = True
    assert covered.all()
    for tile in cut(height, width, boxes, size, stride)[0]:
        assert bool(tile.boxes) == (tile.label == NG)
        for box in tile.boxes:
            assert 0 <= box.x0 < box.x1 <= size
            assert 0 <= box.y0 < box.y1 <= size


def test_ok_tiles_can_be_capped_per_board_and_by_lot(source: Path, tmp_path: Path) -> None:
    kept = []
    for number, seed in enumerate((0, 0, 1)):
        manifest = import_deeppcb(source, tmp_path / f"{number}", tile=16, max_ok_per_ng=2, seed=seed)
        for board in manifest.groups:
            rows = [row for row in manifest.rows if row.group == board]
            assert sum(row.label == OK for row in rows) == 2 * sum(row.label == NG for row in rows)
        kept.append({row.path for row in manifest.rows})
    assert kept[0] == kept[1] != kept[2]


def test_bad_deeppcb_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def refuse(problem: str, **options: Any) -> None:
        with pytest.raises(UserError, match=problem) as caught:
            import_deeppcb(source, tmp_path / "set", **options)
        assert caught.value.remedy
        assert leftovers(tmp_path) == ["source"]

    refuse("00041000_temp.jpg: 64×64 pixels are smaller than the tile of 65", tile=65)
    refuse("--tile 4: too small", tile=4)
    refuse("--stride 8", stride=8)
    refuse("--stride 33", tile=32, stride=33)
    refuse("--max-ok-per-ng", max_ok_per_ng=3)
    table = source / "PCBData" / "group00041" / "00041_not" / "00041000.txt"
    for text, problem in (
        ("1 2 3\n", "line 1: '1 2 3' is not"),
        ("1 1 9 9 1\n1 1 9 9 7\n", "line 2: defect type 7"),
        ("9 1 1 9 1", "line 1: the box is empty"),
    ):
        table.write_text(text)
        refuse(problem)
    table.unlink()
    refuse("00041000.txt: the boxes of .*00041000_test.jpg are missing")
    table.write_text("1 1 9 9 1")
    image = source / "PCBData" / "group00041" / "00041" / "00041000_test.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    for options in ({}, {"tile": 32}):
        refuse(r"00041000_test\.jpg: the image is truncated", **options)
    image.write_bytes(whole)
    Image.new("L", (64, 72)).save(image.with_name("00041000_temp.jpg"))
    refuse(r"00041000_temp\.jpg: differs in size from 00041000_test\.jpg", tile=32)


def test_an_unknown_layout_is_said(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="there are no group"):
        import_deeppcb(tmp_path / "source", tmp_path / "set")


def test_real_boards_are_imported_and_split_by_board(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = import_deeppcb(real_data("deeppcb"), tmp_path / "set")
    counts = manifest.counts()
    assert counts["OK"] == counts["NG"] > 0
    assert set(manifest.defects) == {"open", "short", "mousebite", "spur", "copper", "pin-hole"}
    assert manifest.image(manifest.rows[0]).shape == (640, 640, 1)
    splits = assign_splits(manifest)
    boards = [{row.group for row in rows} for rows in (splits.train, splits.calibration, splits.test)]
    assert sum(map(len, boards)) == len(set.union(*boards)) == len(manifest.groups)
