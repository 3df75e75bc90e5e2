"""Classic augmentation: each switch alone does what it says, and masks go where their images go."""

import math

import pytest
import torch

from kizu.training.augment.classic import augmented, moved, recorded
from kizu.training.recipe import AugmentSection

OFF = {"shift": 0, "scale": 0, "brightness": 0, "contrast": 0, "noise": 0}


def only(**switches):
    return AugmentSection(**(OFF | switches))


@pytest.fixture
def images():
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def test_flips_and_turns_are_off_unless_asked_for():
    default = AugmentSection()
    assert not any((default.flip_horizontal, default.flip_vertical, default.quarter_turns, default.scale))
    assert default.shift
    assert default.brightness
    assert default.contrast
    assert default.noise


def test_nothing_allowed_changes_nothing(images):
    masks = (images[:, :1] > 0).float()
    same, same_masks = augmented(images, masks, only())
    assert torch.equal(same, images)
    assert same_masks is not None
    assert torch.equal(same_masks, masks)
    assert augmented(images, None, only())[1] is None


@pytest.mark.parametrize(
    ("switches", "possible"),
    [
        ({"flip_horizontal": True}, [lambda x: x, lambda x: x.flip(2)]),
        ({"flip_vertical": True}, [lambda x: x, lambda x: x.flip(1)]),
        ({"quarter_turns": True}, [lambda x, k=k: x.rot90(k, (1, 2)) for k in range(4)]),
    ],
    ids=["horizontal", "vertical", "turns"],
)
def test_flips_and_turns_move_whole_pixels_and_each_occurs(images, switches, possible):
    torch.manual_seed(0)
    result, _ = moved(images, None, only(**switches))
    seen = [
        [torch.equal(after, move(before)) for move in possible] for before, after in zip(images, result, strict=True)
    ]
    assert all(sum(row) == 1 for row in seen)
    assert all(any(column) for column in zip(*seen, strict=True))


def test_an_oblong_image_is_turned_upside_down_only():
    torch.manual_seed(0)
    x = torch.rand(20, 1, 6, 9)
    result, _ = moved(x, None, only(quarter_turns=True))
    turned = [torch.equal(after, before.rot90(2, (1, 2))) for before, after in zip(x, result, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(x, result, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert any(turned)
    assert any(kept)


def test_a_shift_is_of_whole_pixels_within_its_bound_and_reflects_at_the_border():
    x = torch.arange(10.0).repeat(64, 1, 10, 1) / 10
    torch.manual_seed(0)
    result, _ = moved(x, None, only(shift=0.2))
    shifts = set()
    for after in result[:, 0, 0]:
        found = [s for s in range(-2, 3) if torch.equal(after[2:8], x[0, 0, 0, 2 - s : 8 - s])]
        assert len(found) == 1
        shifts.add(found[0])
    assert shifts == {-2, -1, 0, 1, 2}
    right = result[next(i for i in range(64) if torch.equal(result[i, 0, 0, 2:8], x[0, 0, 0, 0:6])), 0, 0]
    assert torch.equal(right[:2], x[0, 0, 0, [2, 1]])


def test_a_scale_keeps_the_centre_and_stretches_about_it():
    x = torch.linspace(-0.75, 0.75, 33).repeat(32, 1, 33, 1)
    torch.manual_seed(0)
    result, _ = moved(x, None, only(scale=0.25))
    torch.testing.assert_close(result[:, 0, 16, 16], torch.zeros(32), atol=1e-5, rtol=0)
    slope = (result[:, 0, 16, 20] - result[:, 0, 16, 12]) / (x[0, 0, 16, 20] - x[0, 0, 16, 12])
    assert (slope >= 1 / 1.25 - 1e-4).all()
    assert (slope <= 1.25 + 1e-4).all()
    assert slope.std() > 0.05


def test_masks_move_with_their_images():
    pixels = (torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(3)) > 0.8).float()
    switches = only(flip_horizontal=True, flip_vertical=True, quarter_turns=True, shift=0.2)
    for section in (switches, switches.model_copy(update={"scale": 0.2})):
        torch.manual_seed(1)
        images, masks = augmented(pixels, pixels, section)
        torch.testing.assert_close(images, masks)
        assert not torch.equal(images, pixels)


def test_brightness_adds_one_number_per_image(images):
    torch.manual_seed(0)
    added = recorded(images * 0.5, only(brightness=0.1)) - images * 0.5
    assert added.flatten(1).std(1).max() < 1e-6
    assert 0.1 < added.abs().max() <= 0.2 + 1e-6


def test_contrast_multiplies_by_one_number_per_image(images):
    torch.manual_seed(0)
    factor = recorded(images * 0.5, only(contrast=0.5)) / (images * 0.5)
    assert factor.flatten(1).std(1).max() < 1e-5
    assert (factor.log().abs() <= math.log(1.5) + 1e-5).all()
    assert factor.log().abs().max() > math.log(1.2)


def test_noise_is_drawn_for_each_pixel_and_everything_stays_in_range():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 16, 16)
    deviation = recorded(x, only(noise=0.05)).flatten(1).std(1)
    assert deviation.max() < 0.1 * 1.15
    assert deviation.mean().item() == pytest.approx(0.05, rel=0.15)  # uniform up to 2 · 0.05
    assert recorded(torch.ones(4, 1, 8, 8), only(brightness=1, contrast=4, noise=1)).abs().max() <= 1


def test_the_global_generator_decides_everything(images):
    section = AugmentSection(flip_horizontal=True, scale=0.1)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(augmented(images, None, section)[0])
    assert torch.equal(*results)
