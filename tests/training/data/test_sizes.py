"""Sizes of a data set's images against a geometry: all refused ones are named at once, enlarged ones are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.manifest import OK, Manifest, Row
from kizu.training.data.sizes import check_sizes

from .conftest import Draw

TWICE = InputGeometry(height=32, width=48, channels=1, enlarge=2)


def images(root: Path, draw: Draw, *sizes: tuple[int, int]) -> Manifest:
    """A data set of images of these (width, height)."""
    for number, size in enumerate(sizes):
        draw(root / f"{number}.png", size=size)
    return Manifest(root, [Row(f"{number}.png", OK) for number in range(len(sizes))])


def test_enlarged_images_are_counted_with_the_largest_factor(tmp_path: Path, draw: Draw) -> None:
    manifest = images(tmp_path, draw, (48, 32), (47, 99), (48, 21), (480, 320))
    note = check_sizes(manifest, manifest.rows, TWICE)
    assert note is not None
    assert note.startswith("2 of 4 images are enlarged, up to 1.6×")
    assert "48×32" in note


def test_where_nothing_is_enlarged_nothing_is_said(tmp_path: Path, draw: Draw) -> None:
    manifest = images(tmp_path, draw, (48, 32), (100, 100))
    assert check_sizes(manifest, manifest.rows, TWICE) is None


def test_every_image_that_is_too_small_is_named_with_its_size(tmp_path: Path, draw: Draw) -> None:
    manifest = images(tmp_path, draw, *[(23, 16 + number) for number in range(12)], (24, 16), (24, 15))
    with pytest.raises(UserError) as caught:
        check_sizes(manifest, manifest.rows, TWICE)
    assert f"{tmp_path}: 13 images are too small. At least 24×16 pixels" in caught.value.problem
    assert caught.value.details == (*(f"{n}.png: 23×{16 + n} pixels" for n in range(12)), "13.png: 24×15 pixels")
    assert "lower image.size" in (caught.value.remedy or "")
    assert "9.png: 23×25" in str(caught.value)
    assert "… and 3 more" in str(caught.value)


def test_an_image_smaller_than_a_tile_is_never_enlarged(tmp_path: Path, draw: Draw) -> None:
    manifest = images(tmp_path, draw, (64, 63))
    tiled = InputGeometry(height=32, width=32, channels=1, tile=64, stride=48)
    with pytest.raises(UserError, match=r"1 image is too small\. At least 64×64") as caught:
        check_sizes(manifest, manifest.rows, tiled)
    assert "lower image.tile" in (caught.value.remedy or "")


def test_headers_alone_are_read(tmp_path: Path, draw: Draw) -> None:
    manifest = images(tmp_path, draw, (48, 31))
    file = tmp_path / "0.png"
    file.write_bytes(file.read_bytes()[:60])  # cut off within the pixels
    assert check_sizes(manifest, manifest.rows, TWICE) is not None
