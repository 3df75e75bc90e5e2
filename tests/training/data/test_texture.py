"""Rendered texture: deterministic, true about where its defects are, and not to be told by brightness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import assign_splits
from kizu.training.data.texture import TEXTURE_DEFECTS, TextureCamera, render_textures

from .conftest import leftovers

CLASSES = len(TEXTURE_DEFECTS)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("texture") / "set"
    return render_textures(folder, sheets=12, count_ok=120, count_ng=120, size=64, channels=1, seed=3)


def auroc(ng: NDArray[np.float64], ok: NDArray[np.float64]) -> float:
    """Area under the curve of a single number, whichever of the two sides is the larger."""
    area = float((ng[:, None] > ok).mean() + 0.5 * (ng[:, None] == ok).mean())
    return max(area, 1 - area)


def box_mean(image: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Mean of the square of 2 · `radius` + 1 pixels around each pixel."""
    side = 2 * radius + 1
    sums = np.pad(image, radius, mode="reflect").cumsum(0).cumsum(1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    square = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    mean: NDArray[np.float64] = square / side**2
    return mean


def local_contrast(image: NDArray[np.float64], fine: int, coarse: int) -> float:
    return float(np.abs(box_mean(image, fine) - box_mean(image, coarse)).max())


def grey(manifest: Manifest, label: str) -> list[NDArray[np.float64]]:
    return [manifest.image(row)[..., 0].astype(np.float64) for row in manifest.rows if row.label == label]


def test_the_same_seed_renders_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    small: dict[str, Any] = {"sheets": 3, "count_ok": 4, "count_ng": CLASSES, "size": 32}
    first = render_textures(tmp_path / "a", **small, seed=5)
    again = render_textures(tmp_path / "b", **small, seed=5)
    other = render_textures(tmp_path / "c", **small, seed=6)
    assert first.rows == again.rows
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_an_image_depends_on_its_number_and_not_on_how_many_there_are(tmp_path: Path) -> None:
    few = render_textures(tmp_path / "few", sheets=3, count_ok=3, count_ng=0, size=32)
    many = render_textures(tmp_path / "many", sheets=3, count_ok=9, count_ng=6, size=32)
    for row, same in zip(few.rows, many.rows, strict=False):
        assert np.array_equal(few.image(row), many.image(same))


def test_rows_have_every_class_in_turn_groups_and_can_be_split(textures: Manifest) -> None:
    assert textures.counts() == {"OK": 120, "NG": 120, "unlabelled": 0}
    assert all(sum(row.defect == name for row in textures.rows) == 20 for name in TEXTURE_DEFECTS)
    assert len(textures.groups) == 12
    assert Manifest.read(textures.root).rows == textures.rows
    splits = assign_splits(textures)
    assert all(count["OK"] and count["NG"] for count in splits.counts.values())


def test_no_sheet_is_tied_to_a_class_even_where_their_numbers_share_a_factor(textures: Manifest) -> None:
    for group in textures.groups:
        assert len({row.defect for row in textures.rows if row.group == group and row.label == NG}) == CLASSES


def test_masks_and_boxes_tell_the_same(textures: Manifest) -> None:
    for row in textures.rows:
        mask = textures.mask(row)
        if row.label == OK:
            assert mask is None
            assert not row.boxes
            continue
        assert mask is not None
        assert mask.shape == (64, 64)
        assert mask.mean() < 0.35
        boxed = np.zeros_like(mask)
        for x0, y0, x1, y1, defect in row.boxes:
            assert defect == row.defect
            inside = mask[int(y0) : int(y1), int(x0) : int(x1)]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            boxed[int(y0) : int(y1), int(x0) : int(x1)] = True
        assert not (mask & ~boxed).any()
    counts = [len(row.boxes) for row in textures.rows if row.label == NG]
    assert set(counts) == {1, 2}


@pytest.mark.parametrize("defect", TEXTURE_DEFECTS)
def test_a_defect_is_visible_under_its_mask_and_only_there(defect: str) -> None:
    """The same number without a defect shows the same marks in the same light: the difference is the defect."""
    camera = TextureCamera(seed=1, size=96, channels=3, sheets=5)
    for number in range(12):
        defective, mask, _ = camera.photograph(number, Row("", NG, defect))
        good, nothing, _ = camera.photograph(number, Row("", OK))
        difference = np.abs(defective.astype(int) - good).max(axis=2)
        assert not nothing.any()
        assert difference[mask > 0].mean() > 4
        near = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(9)))
        assert difference[near == 0].mean() < 0.3
        assert difference[near == 0].max() < 25


@pytest.mark.parametrize("seed", [3, 4])
def test_neither_brightness_nor_local_contrast_tells_ng(tmp_path: Path, seed: int) -> None:
    size = 64
    manifest = render_textures(
        tmp_path / "set", sheets=12, count_ok=120, count_ng=120, size=size, channels=1, seed=seed
    )
    ok, ng = grey(manifest, OK), grey(manifest, NG)
    assert auroc(np.array([image.mean() for image in ng]), np.array([image.mean() for image in ok])) < 0.7
    for fine, coarse in ((0, 1), (0, 10), (1, 10), (3, 15)):
        areas = [np.array([local_contrast(image, fine, coarse) for image in images]) for images in (ng, ok)]
        assert auroc(*areas) < 0.9


@pytest.mark.parametrize("defect", ["distortion", "smear"])
def test_a_fault_of_the_grain_leaves_the_place_as_bright_as_it_was(defect: str) -> None:
    camera = TextureCamera(seed=2, size=96, channels=1, sheets=4)
    for number in range(40):
        defective, mask, _ = camera.photograph(number, Row("", NG, defect))
        good, _, _ = camera.photograph(number, Row("", OK))
        assert abs(float(defective[mask > 0].mean() - good[mask > 0].mean())) < 2.5


def test_ok_images_share_no_marks_and_sheets_differ() -> None:
    camera = TextureCamera(seed=0, size=64, channels=1, sheets=8)
    images = [camera.photograph(number, Row("", OK))[0].astype(np.float64) for number in range(96)]
    marks = np.stack([(image - box_mean(image, 8)).ravel() for image in images])
    alike = np.corrcoef(marks) - np.eye(len(images))
    assert np.abs(alike).max() < 0.5
    means = np.array([image.mean() for image in images]).reshape(12, 8)
    assert means.mean(axis=0).std() > means.std(axis=0).mean() / np.sqrt(12)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (48, 3), (131, 1)])
def test_size_and_channels_are_as_asked(tmp_path: Path, size: int, channels: int) -> None:
    manifest = render_textures(tmp_path / "set", sheets=3, count_ok=3, count_ng=CLASSES, size=size, channels=channels)
    assert all(manifest.image(row).shape == (size, size, channels) for row in manifest.rows)


@pytest.mark.parametrize("bad", [{"size": 8}, {"channels": 2}, {"count_ok": 0}, {"count_ng": -1}, {"sheets": 0}])
def test_impossible_wishes_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot render"):
        render_textures(tmp_path / "set", **bad)
    assert leftovers(tmp_path) == []
