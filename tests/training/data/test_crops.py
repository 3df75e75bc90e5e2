"""Crops around defects: the right pixels, centred, of the right class, and never invented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.crops import Crops, connected_bounds, ng_crops, place_window
from kizu.training.data.loading import to_pixels, training_tensor
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row

from .conftest import Draw

GREY = InputGeometry(height=16, width=16, channels=1)
RGB = InputGeometry(height=16, width=16, channels=3)
TILED = InputGeometry(height=16, width=16, channels=1, tile=32, stride=24)


def box(x0: float, y0: float, x1: float, y1: float, defect: str = "short") -> Box:
    return Box(x0, y0, x1, y1, defect)


def ng(*boxes: Box, path: str = "a.png") -> Row:
    return Row(path, NG, "+".join(sorted({each.defect for each in boxes})), boxes=boxes)


@pytest.fixture
def board(tmp_path: Path, draw: Draw) -> Manifest:
    """`a.png`: 80×60 pixels of grey noise; `rgb.png` the same in colour."""
    draw(tmp_path / "a.png", (80, 60))
    draw(tmp_path / "rgb.png", (80, 60), mode="RGB")
    return Manifest(tmp_path, [])


def cut(manifest: Manifest, *rows: Row, geometry: InputGeometry = GREY, **options: Any) -> Crops:
    return ng_crops(manifest, rows, geometry, **options)


def draw_mask(root: Path, *windows: tuple[int, int, int, int], size: tuple[int, int] = (80, 60)) -> str:
    mask = np.zeros(size[::-1], np.uint8)
    for x0, y0, x1, y1 in windows:
        mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return "mask.png"


def test_a_window_of_the_crops_size_is_the_sources_pixels(board: Manifest) -> None:
    crops = cut(board, ng(box(30, 20, 36, 24)))
    assert crops.sources[0].path == "a.png"
    assert crops.sources[0].window == (25, 14, 41, 30)
    assert crops.classes == ["short"]
    assert crops.images.dtype == torch.uint8
    source = board.image(ng())
    np.testing.assert_array_equal(crops.images[0, 0].numpy(), source[14:30, 25:41, 0])


def test_channels_are_the_geometrys(board: Manifest) -> None:
    row = ng(box(30, 20, 36, 24), path="rgb.png")
    window = board.image(row)[14:30, 25:41]
    colour, grey = cut(board, row, geometry=RGB).images, cut(board, row).images
    np.testing.assert_array_equal(colour[0].permute(1, 2, 0).numpy(), window)
    luma = (window @ np.array([0.299, 0.587, 0.114])).round()
    np.testing.assert_allclose(grey[0, 0].numpy(), luma, atol=1)
    tripled = cut(board, ng(box(30, 20, 36, 24)), geometry=RGB).images[0]
    assert tripled.shape == (3, 16, 16)
    assert torch.equal(tripled[0], tripled[2])


def test_sixteen_bit_images_are_cut_as_they_are_read(board: Manifest) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (60, 80), dtype=np.uint16)
    Image.fromarray(wide).save(board.root / "wide.png")
    row = ng(box(30, 20, 36, 24), path="wide.png")
    np.testing.assert_array_equal(cut(board, row).images[0, 0].numpy(), board.image(row)[14:30, 25:41, 0])


@pytest.mark.parametrize(
    ("bounds", "window"),
    [
        (box(0, 0, 4, 4), (0, 0, 16, 16)),
        (box(76, 56, 80, 60), (64, 44, 80, 60)),
        (box(78, 20, 80, 24), (64, 14, 80, 30)),
        (box(30.6, 20.2, 35.4, 23.9), (25, 14, 41, 30)),
        (box(74, 20, 84, 24), (64, 14, 80, 30)),
    ],
    ids=["upper left", "lower right", "right", "fractions cover whole pixels", "an overhang is cut off"],
)
def test_windows_are_moved_into_the_image_not_shrunk(
    board: Manifest, bounds: Box, window: tuple[int, int, int, int]
) -> None:
    assert cut(board, ng(bounds)).sources[0].window == window


def test_a_large_defect_gets_a_larger_window_that_is_resized_as_the_geometry_does(board: Manifest) -> None:
    crops = cut(board, ng(box(30, 20, 50, 30)))
    assert crops.sources[0].window == (25, 10, 55, 40)  # 20 pixels and a quarter of it on either side
    window = torch.tensor(board.image(ng())[None, 10:40, 25:55])
    shipped = ((Geometry(GREY)(window) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(crops.images, shipped)
    assert cut(board, ng(box(30, 20, 50, 30)), context=0).sources[0].window == (30, 15, 50, 35)


def test_crop_defaults_to_the_tile_and_can_be_set(board: Manifest) -> None:
    row = ng(box(38, 28, 42, 32))
    assert cut(board, row, geometry=TILED).sources[0].window == (24, 14, 56, 46)
    assert cut(board, row, geometry=TILED, crop=24).sources[0].window == (28, 18, 52, 42)
    assert cut(board, row, geometry=TILED).images.shape == (1, 1, 16, 16)
    assert cut(board, row, geometry=TILED, size=(32, 32)).images.shape == (1, 1, 32, 32)


def test_windows_have_the_shape_of_the_crops(board: Manifest) -> None:
    wide = InputGeometry(height=16, width=32, channels=1)
    crops = cut(board, ng(box(38, 28, 42, 32), box(30, 22, 50, 38)), geometry=wide)
    assert [source.window for source in crops.sources] == [(24, 22, 56, 38), (16, 18, 64, 42)]
    assert crops.images.shape == (2, 1, 16, 32)
    np.testing.assert_array_equal(crops.images[0, 0].numpy(), board.image(ng())[22:38, 24:56, 0])
    assert cut(board, ng(box(38, 28, 42, 32)), size=(48, 16), crop=48).sources[0].window == (32, 6, 48, 54)


sides = st.integers(1, 200)


@given(st.data(), sides, sides, st.tuples(sides, sides), sides, st.floats(0, 2))
def test_windows_are_inside_hold_the_defect_and_keep_their_shape_where_it_fits(
    data: st.DataObject, height: int, width: int, size: tuple[int, int], crop: int, context: float
) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    left, top, right, bottom = place_window((x0, y0, x1, y1), (height, width), size, crop, context)
    assert 0 <= left <= x0 < x1 <= right <= width
    assert 0 <= top <= y0 < y1 <= bottom <= height
    tall, wide = bottom - top, right - left
    if max((y1 - y0) / size[0], (x1 - x0) / size[1]) <= min(height / size[0], width / size[1]):
        # One scale gives both sides, each rounded up.
        assert max((tall - 1) / size[0], (wide - 1) / size[1]) <= min(tall / size[0], wide / size[1]) + 1e-5
    if left > 0 and right < width:
        assert abs((left + right) - (x0 + x1)) <= 1
    if top > 0 and bottom < height:
        assert abs((top + bottom) - (y0 + y1)) <= 1


def test_an_image_smaller_than_the_window_is_taken_whole(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a.png", (20, 20))
    crops = cut(Manifest(tmp_path, []), ng(box(2, 2, 4, 4)), crop=64)
    assert crops.sources[0].window == (0, 0, 20, 20)
    assert crops.images.shape == (1, 1, 16, 16)


def test_a_small_image_is_not_stretched_unless_the_defect_needs_it(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a.png", (40, 20))
    manifest = Manifest(tmp_path, [])
    assert cut(manifest, ng(box(30, 5, 34, 9)), crop=64).sources[0].window == (20, 0, 40, 20)
    assert cut(manifest, ng(box(2, 5, 32, 9)), crop=64).sources[0].window == (2, 0, 32, 20)


def test_windows_that_coincide_are_one_crop_of_all_their_classes(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a.png", (16, 16))
    manifest = Manifest(tmp_path, [])
    crops = cut(manifest, ng(box(2, 2, 4, 4, "spur"), box(9, 9, 12, 12, "open"), box(5, 5, 6, 6, "spur")))
    assert crops.classes == ["open+spur"]
    assert len(crops) == len(crops.images) == len(crops.sources) == 1
    assert cut(manifest, ng(box(2, 2, 4, 4), box(9, 9, 12, 12))).classes == ["short"]


def test_each_crop_is_of_the_defect_in_its_centre(board: Manifest) -> None:
    crops = cut(board, ng(box(30, 20, 34, 24, "spur"), box(36, 20, 40, 24, "open")))
    assert crops.classes == ["spur", "open"]
    assert [source.window[0] for source in crops.sources] == [24, 30]


def test_a_box_without_class_takes_its_images_or_none(board: Manifest) -> None:
    nameless = (box(30, 20, 34, 24, ""),)
    assert cut(board, Row("a.png", NG, "dent", boxes=nameless)).classes == ["dent"]
    assert cut(board, Row("a.png", NG, boxes=nameless)).classes == ["NG"]


def test_a_mask_gives_the_window_that_its_box_gives(board: Manifest) -> None:
    windows = [(30, 20, 36, 24), (2, 50, 22, 58)]
    masked = Row("a.png", NG, "dent+scratch", mask=draw_mask(board.root, *windows))
    from_mask, from_boxes = cut(board, masked), cut(board, ng(*(box(*window) for window in windows)))
    assert from_mask.sources == from_boxes.sources
    assert torch.equal(from_mask.images, from_boxes.images)
    assert from_mask.classes == ["dent+scratch"] * 2
    both = replace(masked, boxes=(box(60, 40, 64, 44),))
    assert cut(board, both).sources == cut(board, ng(box(60, 40, 64, 44))).sources


def test_specks_of_a_mask_are_passed_over_unless_there_is_nothing_else() -> None:
    mask = np.zeros((20, 20), bool)
    mask[1, 1:4] = True
    mask[8, 8] = True
    assert connected_bounds(mask) == [(1, 1, 4, 2)]
    mask[12:14, 2:4] = True
    assert connected_bounds(mask) == [(2, 12, 4, 14)]
    assert connected_bounds(np.eye(6, dtype=bool)) == [(0, 0, 6, 6)]


def test_without_box_and_mask_the_whole_image_goes_through_the_geometry(board: Manifest) -> None:
    rows = [Row("a.png", NG, "dent"), Row("rgb.png", NG)]
    crops = cut(board, *rows)
    assert torch.equal(crops.images, to_pixels(training_tensor(board, rows, GREY) / 127.5 - 1))
    assert crops.classes == ["dent", "NG"]
    assert crops.sources[0].window == (0, 0, 80, 60)


def test_only_the_cameras_ng_are_cut_in_the_order_of_rows(board: Manifest, draw: Draw) -> None:
    for number in range(60):
        draw(board.root / f"{number}.png", (20, 20))
    rows = [ng(box(4, 4, 6, 6), box(14, 14, 16, 16), path=f"{number}.png") for number in range(60)][::-1]
    others = [Row("a.png", OK), Row("a.png", ""), Row("a.png", NG, "short", origin="g:r:1")]
    told: list[int] = []
    crops = cut(board, *others, *rows, progress=told.append)
    assert [source.path for source in crops.sources] == [row.path for row in rows for _ in range(2)]
    assert [source.window[0] for source in crops.sources] == [0, 4] * 60
    assert sum(told) == 60
    again = cut(board, *others, *rows)
    assert torch.equal(again.images, crops.images)


def mask_of_another_size(root: Path) -> Row:
    return Row("a.png", NG, mask=draw_mask(root, (1, 1, 5, 5), size=(60, 80)))


def empty_mask(root: Path) -> Row:
    return Row("a.png", NG, mask=draw_mask(root))


@pytest.mark.parametrize(
    ("row", "geometry", "problem", "remedy"),
    [
        (Row("a.png", OK), GREY, "manifest.csv: there is no NG image", "Add NG images"),
        (Row("a.png", NG, origin="g:r:1"), GREY, "no NG image from a camera", "Add NG images"),
        (ng(box(90, 5, 95, 9)), GREY, "a.png: the box [90, 5, 95, 9, 'short'] lies outside", "Correct or remove"),
        (ng(box(5, 58, 9, 70)), GREY, "outside the image of 80×60", "Correct or remove"),
        (Row("a.png", NG), TILED, "a.png: NG without boxes or mask", "Give the defect's boxes or mask"),
        (
            Row("a.png", NG),
            InputGeometry(height=64, width=64, channels=1),
            "a.png is 80×60 pixels, smaller than the 64×64",
            "Lower image.size",
        ),
        (mask_of_another_size, GREY, "mask.png: the mask is 60×80 pixels, its image a.png 80×60", "Save the mask"),
        (empty_mask, TILED, "a.png: NG without boxes or mask", "Give the defect's boxes or mask"),
        (ng(box(1, 1, 2, 2), path="missing.png"), GREY, "missing.png: the file is missing", "Restore it"),
    ],
)
def test_what_cannot_be_cut_is_said_by_file_with_a_remedy(
    board: Manifest, row: Any, geometry: InputGeometry, problem: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        cut(board, row(board.root) if callable(row) else row, geometry=geometry)
    assert problem in caught.value.problem
    assert str(board.root) in caught.value.problem
    assert remedy in (caught.value.remedy or "")


def test_an_empty_mask_locates_nothing(board: Manifest) -> None:
    crops = cut(board, empty_mask(board.root))
    assert [source.window for source in crops.sources] == [(0, 0, 80, 60)]
    assert not crops.located.any()
    boxed = replace(empty_mask(board.root), boxes=ng(box(30, 20, 34, 24)).boxes)
    from_box = cut(board, ng(box(30, 20, 34, 24)))
    assert torch.equal(cut(board, boxed).images, from_box.images)
    assert cut(board, boxed).located.all()


@pytest.mark.parametrize("options", [{"crop": 0}, {"context": -0.1}, {"size": (0, 8)}])
def test_arguments_are_checked(board: Manifest, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        cut(board, ng(box(1, 1, 2, 2)), **options)


def test_a_crop_comes_with_the_share_of_each_pixel_that_is_defect(board: Manifest) -> None:
    row = ng(box(30, 20, 34, 24), box(36, 20, 40, 24, "open"))
    crops = cut(board, row)
    truth = np.zeros((60, 80), np.uint8)
    truth[20:24, 30:34] = truth[20:24, 36:40] = 255
    assert crops.masks is not None
    for mask, source in zip(crops.masks, crops.sources, strict=True):
        x0, y0, x1, y1 = source.window
        np.testing.assert_array_equal(mask[0].numpy(), truth[y0:y1, x0:x1])
    assert crops.located.tolist() == [True, True]


def test_a_crop_s_mask_is_resized_as_the_crop_is(board: Manifest) -> None:
    crops = cut(board, ng(box(30, 20, 35, 24)), crop=32)
    assert crops.masks is not None
    (x0, y0, x1, y1) = crops.sources[0].window
    truth = np.zeros((60, 80), np.uint8)
    truth[20:24, 30:35] = 255
    prepare = Geometry(GREY)
    expected = (prepare(torch.from_numpy(truth[y0:y1, x0:x1].copy())[None, :, :, None])[0] + 1) * 127.5
    assert torch.equal(crops.masks[0], expected.round().to(torch.uint8))
    assert crops.masks[0].sum() == pytest.approx(255 * 5 * 4 / 4, rel=0.02)


def test_a_mask_file_says_more_than_boxes_and_without_either_nothing_is_located(board: Manifest) -> None:
    row = replace(ng(box(30, 20, 38, 28)), mask=draw_mask(board.root, (32, 22, 34, 25)))
    crops = cut(board, row)
    assert crops.masks is not None
    assert int((crops.masks > 0).sum()) == 2 * 3
    unknown = cut(board, Row("a.png", NG, "dent"))
    assert unknown.located.tolist() == [False]
    assert unknown.masks is not None
    assert not unknown.masks.any()
    assert Crops(unknown.images, ["dent"], []).located.tolist() == [False]


def test_exact_windows_do_not_grow_and_show_a_large_defect_s_middle(board: Manifest) -> None:
    row = ng(box(10, 10, 60, 50))
    window = cut(board, row, crop=16, exact=True, context=0).sources[0].window
    assert window == (27, 22, 43, 38)
    grown = cut(board, row, crop=16, context=0).sources[0].window
    assert grown[2] - grown[0] == 50
