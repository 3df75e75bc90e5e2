"""OK and NG views: what the detector sees, of the train split, in bounded memory, with masks that fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.labelled import defect_share
from kizu.training.data.loading import to_pixels, training_tensor
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row
from kizu.training.generators.views import Materials, ng_views, ok_views

WHOLE = InputGeometry(height=32, width=32, channels=1)
TILED = InputGeometry(height=16, width=16, channels=1, tile=32, stride=24)


def shown(manifest, rows, geometry):
    """Return what the detector sees of these rows, rounded to 8 bits."""
    return to_pixels(training_tensor(manifest, rows, geometry) / 127.5 - 1)


@pytest.fixture
def parts(tmp_path):
    """Six OK and two NG images of 80×60 pixels of noise; the first NG is bright in two boxes."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        pixels = rng.integers(0, 100, (60, 80), np.uint8)
        if number == 6:
            pixels[20:28, 30:36] = pixels[5:9, 70:78] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(Row(f"{number}.png", OK if number < 6 else NG))
    boxes = (Box(30, 20, 36, 28, "dent"), Box(70, 5, 78, 9, "spot"))
    rows[6] = Row("6.png", NG, "dent+spot", boxes=boxes)
    return Manifest(tmp_path, rows)


def test_whole_images_come_as_the_geometry_shows_them(parts):
    views = ok_views(parts, parts.rows, WHOLE, seed=0)
    expected = {image.numpy().tobytes() for image in shown(parts, parts.rows[:6], WHOLE)}
    assert {image.numpy().tobytes() for image in views.images} == expected
    assert views.scale == pytest.approx((32 / 60, 32 / 80))


def test_letterboxed_views_have_one_scale(parts):
    letterbox = WHOLE.model_copy(update={"fit": "letterbox"})
    views = ok_views(parts, parts.rows, letterbox, seed=0)
    assert views.scale == pytest.approx((24 / 60, 32 / 80))
    expected = {image.numpy().tobytes() for image in shown(parts, parts.rows[:6], letterbox)}
    assert {image.numpy().tobytes() for image in views.images} == expected


def test_tiles_come_from_every_image_and_are_a_function_of_the_seed(parts):
    every = shown(parts, parts.rows[:6], TILED)
    assert len(ok_views(parts, parts.rows, TILED, seed=0)) == len(every)
    some = ok_views(parts, parts.rows, TILED, seed=0, most=12)
    assert some.images.shape == (12, 1, 16, 16)
    assert some.scale == (0.5, 0.5)
    tiles = [{tile.numpy().tobytes() for tile in shown(parts, [row], TILED)} for row in parts.rows[:6]]
    chosen = {view.numpy().tobytes() for view in some.images}
    assert [len(chosen & of_row) for of_row in tiles] == [2] * 6
    assert torch.equal(some.images, ok_views(parts, parts.rows[::-1], TILED, seed=0, most=12).images)
    assert not torch.equal(some.images, ok_views(parts, parts.rows, TILED, seed=1, most=12).images)


def test_synthetic_rows_and_other_labels_lend_no_view(parts):
    rows = [Row("0.png", OK, origin="g:r:1"), Row("1.png", ""), Row("6.png", NG)]
    with pytest.raises(UserError, match="no OK image to draw defects into"):
        ok_views(parts, rows, WHOLE, seed=0)
    with pytest.raises(UserError, match="no NG image from a camera"):
        ng_views(parts, [parts.rows[0], Row("6.png", NG, origin="g:r:1")], WHOLE)


def test_whole_ng_have_the_mask_of_all_their_defects_or_none(parts):
    views = ng_views(parts, parts.rows, WHOLE)
    assert views.classes == ["dent+spot", "NG"]
    assert views.located.tolist() == [True, False]
    share = defect_share(parts, parts.rows[6], WHOLE)
    assert share is not None
    assert torch.equal(views.masks[0] > 0, share[0] >= 128)
    assert views.images[0][views.masks[0] > 0].float().mean() > 200
    assert views.only(views.located).classes == ["dent+spot"]


def test_tiles_of_ng_hold_a_defect_and_its_mask(parts):
    views = ng_views(parts, [parts.rows[6]], TILED)
    assert views.classes == ["dent", "spot"]
    assert views.counts == {"dent": 1, "spot": 1}
    # 6×8 and 8×4 source pixels, halved.
    assert (views.masks > 0).flatten(1).sum(1).tolist() == [3 * 4, 4 * 2]
    assert (views.images[views.masks > 0]).float().mean() > 190


def test_a_defect_larger_than_a_tile_shows_its_middle_at_the_detector_s_scale(parts):
    row = Row("6.png", NG, "dent", boxes=(Box(2, 3, 78, 57, "dent"),))
    views = ng_views(parts, [row], TILED)
    pixels = torch.tensor(parts.image(row))[14:46, 24:56, 0].float()
    halved = pixels.reshape(16, 2, 16, 2).mean((1, 3))
    assert (views.masks == 255).all()
    assert (views.images[0, 0].float() - halved).abs().mean() < 12


def test_materials_survive_their_state(parts):
    made = Materials(ok_views(parts, parts.rows, WHOLE, seed=0).images, ng_views(parts, parts.rows, WHOLE))
    again = Materials.from_state(made.state())
    assert again.ok is not None
    assert made.ok is not None
    assert again.ng is not None
    assert made.ng is not None
    assert torch.equal(again.ok, made.ok)
    assert torch.equal(again.ng.masks, made.ng.masks)
    assert again.ng.classes == made.ng.classes
    assert Materials.from_state(Materials().state()) == Materials()
