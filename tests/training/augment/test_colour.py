"""Colour matrices against their closed forms."""

import math

import pytest
import torch

from kizu.training.augment.colour import brightness, contrast, hue, luma_flip, recolour, saturation

THETA = torch.linspace(-3, 3, 7, dtype=torch.float64)
IDENTITY = torch.eye(4, dtype=torch.float64).expand(7, 4, 4)
PIXEL = torch.tensor([0.7, -0.2, 0.4, 1.0], dtype=torch.float64)


def luma(pixel):
    return pixel[..., :3].mean(-1)


def test_brightness_adds_and_contrast_multiplies():
    assert torch.allclose((brightness(THETA) @ PIXEL)[:, :3], PIXEL[:3] + THETA[:, None])
    assert torch.allclose((contrast(THETA) @ PIXEL)[:, :3], PIXEL[:3] * THETA[:, None])


def test_the_luma_flip_negates_luma_keeps_colour_and_undoes_itself():
    flip = luma_flip(torch.ones(7, dtype=torch.bool), torch.float64)
    flipped = flip[0] @ PIXEL
    assert luma(flipped) == pytest.approx(-luma(PIXEL).item())
    assert torch.allclose(flipped[:3] - luma(flipped), PIXEL[:3] - luma(PIXEL))
    assert torch.allclose(flip @ flip, IDENTITY)


def test_hue_keeps_luma_and_distance_from_it():
    turned = hue(THETA) @ PIXEL
    assert torch.allclose(luma(turned), luma(PIXEL).expand(7))
    distance = (PIXEL[:3] - luma(PIXEL)).norm()
    assert torch.allclose((turned[:, :3] - luma(turned)[:, None]).norm(dim=1), distance.expand(7))


def test_hue_is_a_rotation_of_period_two_pi():
    assert torch.allclose(hue(THETA + 2 * math.pi), hue(THETA))
    assert torch.allclose(hue(THETA) @ hue(-THETA), IDENTITY)
    assert not torch.allclose(hue(THETA[:1] + math.pi), hue(THETA[:1]), atol=0.1)


def test_a_third_of_a_hue_turn_takes_red_to_green_to_blue():
    third = hue(torch.tensor([2 * math.pi / 3], dtype=torch.float64))[0]
    red, green, blue, _ = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(third @ red, green, atol=1e-12)
    assert torch.allclose(third @ green, blue, atol=1e-12)


def test_saturation_scales_the_distance_from_luma_only():
    factors = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    result = (saturation(factors) @ PIXEL)[:, :3]
    assert torch.allclose(result, luma(PIXEL) + factors[:, None] * (PIXEL[:3] - luma(PIXEL)))


@pytest.mark.parametrize(
    "neutral",
    [
        brightness(torch.zeros(2)),
        contrast(torch.ones(2)),
        luma_flip(torch.zeros(2, dtype=torch.bool)),
        hue(torch.zeros(2)),
        saturation(torch.ones(2)),
    ],
    ids=["brightness", "contrast", "luma flip", "hue", "saturation"],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_neutral_matrices_are_the_identity_to_the_bit(neutral, channels):
    assert torch.equal(neutral, torch.eye(4).expand(2, 4, 4))
    images = torch.randn(2, channels, 5, 6)
    assert torch.equal(recolour(images, neutral), images)


def test_recolouring_multiplies_each_pixel_by_its_images_matrix():
    images, colours = torch.randn(4, 3, 5, 6), torch.randn(4, 4, 4)
    expected = torch.einsum("nij,njhw->nihw", colours[:, :3, :3], images) + colours[:, :3, 3, None, None]
    assert torch.allclose(recolour(images, colours), expected, atol=1e-5)


def test_a_grey_image_changes_as_it_would_with_three_equal_channels():
    grey = torch.randn(3, 1, 5, 6)
    flip = luma_flip(torch.tensor([True, False, True]))
    colours = flip @ contrast(torch.tensor([0.5, 2.0, 1.5])) @ brightness(torch.tensor([0.1, -0.2, 0.3]))
    assert torch.allclose(recolour(grey, colours), recolour(grey.expand(3, 3, 5, 6), colours)[:, :1], atol=1e-6)
