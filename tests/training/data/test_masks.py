"""Masks looked at before anything trains: empty ones count as none, all of another size are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row
from kizu.training.data.masks import check_located, check_mask_sizes, without_empty_masks

from .conftest import Draw


def ng(root: Path, draw: Draw, name: str, *, value: int = 255, size: tuple[int, int] = (16, 16)) -> Row:
    """An NG image of 16×16 pixels with a mask of one value."""
    draw(root / f"{name}.png")
    draw(root / f"{name}_mask.png", value=value, size=size)
    return Row(f"{name}.png", NG, "dent", mask=f"{name}_mask.png")


def test_ng_with_an_empty_mask_go_on_without_it_and_are_named(tmp_path: Path, draw: Draw) -> None:
    boxed = replace(ng(tmp_path, draw, "c", value=0), boxes=(Box(1, 2, 3, 4, "dent"),))
    empty = ng(tmp_path, draw, "b", value=0)
    rows = [ng(tmp_path, draw, "a"), empty, Row("ok.png", OK, mask=empty.mask), boxed, Row("d.png", NG)]
    found, note = without_empty_masks(Manifest(tmp_path, rows), rows)
    assert found == [rows[0], replace(empty, mask=""), rows[2], replace(boxed, mask=""), rows[4]]
    assert note == "2 NG images have an empty mask, and count by the label alone: b.png, c.png."


def test_where_every_mask_marks_something_nothing_is_said(tmp_path: Path, draw: Draw) -> None:
    rows = [ng(tmp_path, draw, "a"), ng(tmp_path, draw, "b", value=1)]
    assert without_empty_masks(Manifest(tmp_path, rows), rows) == (rows, None)


def test_every_mask_of_another_size_is_named_with_both_sizes(tmp_path: Path, draw: Draw) -> None:
    rows = [ng(tmp_path, draw, name, size=size) for name, size in (("a", (16, 17)), ("b", (16, 16)), ("c", (8, 8)))]
    with pytest.raises(UserError, match="2 masks have another size than their images") as caught:
        check_mask_sizes(Manifest(tmp_path, rows), rows)
    assert caught.value.details == (
        "a_mask.png: 16×17 pixels, its image a.png 16×16",
        "c_mask.png: 8×8 pixels, its image c.png 16×16",
    )
    check_mask_sizes(Manifest(tmp_path, rows), [rows[1], Row("a.png", OK, mask="a_mask.png")])


def test_ng_in_several_tiles_without_boxes_or_mask_are_all_named(tmp_path: Path, draw: Draw) -> None:
    for name in ("a", "b", "c", "d"):
        draw(tmp_path / f"{name}.png")
    boxed = Row("c.png", NG, boxes=(Box(1, 2, 3, 4, "dent"),))
    rows = [Row("a.png", NG), Row("b.png", NG), boxed, Row("d.png", OK)]
    manifest = Manifest(tmp_path, rows)
    check_located(manifest, rows, InputGeometry(height=32, width=32, channels=1))
    check_located(manifest, rows, InputGeometry(height=32, width=32, channels=1, tile=16, stride=16))
    with pytest.raises(UserError, match="2 NG images have neither boxes nor mask") as caught:
        check_located(manifest, rows, InputGeometry(height=32, width=32, channels=1, tile=8, stride=8))
    assert caught.value.details == ("a.png", "b.png")
