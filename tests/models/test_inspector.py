"""Preprocessing and tiling inside the graph, against plain definitions of both."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry, Inspector


class Brightness(nn.Module):
    """Scores the mean of a tile; its heatmap is the tile."""

    def forward(self, x):
        return x.mean((1, 2, 3)), x.mean(1, keepdim=True)


def geometry(**changes):
    return InputGeometry(**({"height": 32, "width": 32, "channels": 1} | changes))


def uint8(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_black_is_minus_one_and_white_is_one():
    prepare = Geometry(geometry())
    assert torch.equal(prepare(torch.zeros(1, 40, 50, 1, dtype=torch.uint8)), torch.full((1, 1, 32, 32), -1.0))
    assert torch.allclose(prepare(torch.full((1, 40, 50, 3), 255, dtype=torch.uint8)), torch.ones(1, 1, 32, 32))


def test_rgb_becomes_grey_by_luma_and_grey_becomes_rgb_by_repetition():
    red = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    red[..., 0] = 255
    assert torch.allclose(Geometry(geometry())(red), torch.full((1, 1, 32, 32), 0.299 * 2 - 1), atol=1e-6)
    grey = uint8(2, 32, 32, 1)
    x = Geometry(geometry(channels=3))(grey)
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])


def test_an_image_of_the_detectors_size_passes_unchanged():
    image = uint8(2, 32, 32, 3)
    x = Geometry(geometry(channels=3))(image)
    torch.testing.assert_close(x, image.permute(0, 3, 1, 2).float() / 127.5 - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (100, 75), (33, 300)])
def test_resizing_is_antialiased_as_pillow_does_it(size):
    image = uint8(1, *size, 1)
    ours = (Geometry(geometry())(image)[0, 0].numpy() + 1) * 127.5
    pillow = Image.fromarray(image[0, :, :, 0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(ours - np.asarray(pillow, dtype=np.float32)).max() <= 1.0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 32), (80, 56), (79, 131)])
@pytest.mark.parametrize("stride", [32, 24, 11])
def test_tiles_cover_every_pixel_and_the_last_is_flush(height, width, stride):
    prepare = Geometry(geometry(tile=32, stride=stride))
    image = uint8(2, height, width, 1)
    tiles = prepare(image)
    rows, columns = prepare.grid(height), prepare.grid(width)
    ys, xs = (prepare.origins(side, torch.device("cpu")).tolist() for side in (height, width))
    assert (ys[-1], xs[-1]) == (height - 32, width - 32)
    assert set().union(*(range(y, y + 32) for y in ys)) == set(range(height))
    assert set().union(*(range(x, x + 32) for x in xs)) == set(range(width))
    expected = [image[n, y : y + 32, x : x + 32, 0] for n in range(2) for y in ys for x in xs]
    assert len(tiles) == 2 * rows * columns
    torch.testing.assert_close(tiles[:, 0], torch.stack(expected).float() / 127.5 - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stride", [32, 24, 11])
def test_an_image_is_as_bad_as_its_worst_tile(stride):
    image = torch.zeros(2, 90, 70, 1, dtype=torch.uint8)
    image[1, 60:65, 40:45] = 255
    inspector = Inspector(Brightness(), geometry(tile=32, stride=stride))
    score, _ = inspector(image)
    tiles = inspector.geometry(image)
    assert score[0] == -1
    assert score[1] == tiles.mean((1, 2, 3)).max()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 32), (90, 70), (64, 200)])
@pytest.mark.parametrize("stride", [32, 24, 11])
def test_blended_heatmaps_of_a_faithful_tile_give_back_the_image(height, width, stride):
    image = uint8(2, height, width, 1)
    _, heatmap = Inspector(Brightness(), geometry(tile=32, stride=stride))(image)
    torch.testing.assert_close(heatmap, image[..., 0].float() / 127.5 - 1, atol=1e-5, rtol=0)


def test_heatmaps_of_resized_tiles_come_back_at_the_sources_size():
    image = uint8(1, 128, 192, 3)
    score, heatmap = Inspector(Brightness(), geometry(tile=64, stride=48))(image)
    assert score.shape == (1,)
    assert heatmap.shape == (1, 128, 192)


def test_an_enlarged_image_is_what_pillow_makes_of_it():
    image = uint8(1, 17, 24, 1)
    ours = (Geometry(geometry(enlarge=2))(image)[0, 0].numpy() + 1) * 127.5
    pillow = Image.fromarray(image[0, :, :, 0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(ours - np.asarray(pillow, dtype=np.float32)).max() <= 1.0


def test_whole_images_are_enlarged_as_far_as_the_geometry_states():
    twice = geometry(width=45, enlarge=2)
    assert (twice.min_height, twice.min_width) == (16, 23)
    assert twice.accepts(16, 23)
    assert not twice.accepts(15, 90)
    assert not twice.accepts(64, 22)
    assert [twice.enlargement(*size) for size in ((16, 90), (64, 30), (32, 45), (64, 90))] == [2, 1.5, 1, 1]
    tiled = geometry(tile=48, stride=48, enlarge=2)
    assert (tiled.min_height, tiled.min_width) == (48, 48)
    assert tiled.enlargement(48, 48) == 1


def letterbox(**changes):
    return geometry(fit="letterbox", **changes)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 32), (32, 16)), ((40, 90), (14, 32)), ((16, 16), (32, 32)), ((33, 32), (32, 31)), ((900, 3), (32, 2))],
)
def test_a_letterboxed_image_keeps_its_proportions_in_the_middle(size, shown):
    image = uint8(2, *size, 1)
    prepare = Geometry(letterbox())
    assert prepare.shown(*size) == shown
    top, left = (32 - shown[0]) // 2, (32 - shown[1]) // 2
    inside = prepare.pixels(image)[:, :, top : top + shown[0], left : left + shown[1]]
    resized = Geometry(geometry(height=shown[0], width=shown[1])).pixels(image)
    torch.testing.assert_close(inside, resized)


@pytest.mark.parametrize("size", [(64, 40), (60, 13), (20, 90)])
def test_a_letterboxed_image_goes_on_as_its_mirror_image(size):
    prepare = Geometry(letterbox())
    x = prepare.pixels(uint8(1, *size, 1))[0, 0].numpy()
    rows, columns = prepare.shown(*size)
    top, left = (32 - rows) // 2, (32 - columns) // 2
    inside = x[top : top + rows, left : left + columns]
    fill = ((top, 32 - rows - top), (left, 32 - columns - left))
    np.testing.assert_array_equal(x, np.pad(inside, fill, mode="symmetric"))


def test_an_image_of_the_detectors_shape_is_letterboxed_as_it_is_stretched():
    image = uint8(2, 50, 75, 3)
    stretched, fitted = (Geometry(geometry(width=48, channels=3, fit=fit)) for fit in ("stretch", "letterbox"))
    assert torch.equal(fitted(image), stretched(image))


class Marked(nn.Module):
    """A detector that finds nothing but what it is given as its heatmap."""

    def __init__(self, heatmap):
        super().__init__()
        self.heatmap = heatmap

    def forward(self, x):
        return x.mean((1, 2, 3)), self.heatmap.expand(len(x), 1, -1, -1)


def test_a_letterboxed_heatmap_covers_the_image_and_nothing_else():
    heat = torch.full((1, 1, 32, 32), 1e6)
    heat[..., 8:24] = torch.arange(16) / 4
    _, heatmap = Inspector(Marked(heat), letterbox())(uint8(3, 80, 40, 1))
    assert heatmap.shape == (3, 32, 32)
    expected = Image.fromarray(heat[0, 0, :, 8:24].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(heatmap[0], np.asarray(expected), atol=1e-5)


def test_the_heatmap_of_an_image_that_fits_is_the_detectors_to_the_bit():
    heat = torch.randn(1, 1, 32, 32)
    _, heatmap = Inspector(Marked(heat), letterbox())(uint8(1, 70, 70, 1))
    assert torch.equal(heatmap, heat[0])


def test_a_letterboxed_image_needs_one_side_that_is_large_enough():
    twice = letterbox(width=64, enlarge=2)
    assert twice.accepts(16, 5)
    assert twice.accepts(5, 32)
    assert not twice.accepts(15, 31)
    assert [twice.enlargement(*size) for size in ((16, 5), (20, 400), (24, 32))] == [2, 1, pytest.approx(4 / 3)]


def test_a_geometry_from_before_images_were_enlarged_enlarges_none():
    old = InputGeometry.model_validate({"height": 32, "width": 45, "channels": 1, "tile": None, "stride": None})
    assert (old.min_height, old.min_width) == (32, 45)
    assert old.fit == "stretch"
    assert not old.accepts(31, 45)


def test_geometry_refuses_images_smaller_than_what_it_needs():
    assert geometry().accepts(32, 32)
    assert not geometry().accepts(31, 400)
    assert geometry(tile=48, stride=48).accepts(48, 48)
    assert not geometry(tile=48, stride=48).accepts(48, 47)
