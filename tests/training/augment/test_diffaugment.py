"""DiffAugment's transforms against their closed forms, and the ranges of its draws."""

import pytest
import torch

from kizu.training.augment.diffaugment import DiffAugment, brighten, change_contrast, saturate, shift

COLOUR = ["brightness", "saturation", "contrast"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_brightness_adds_to_each_image_its_own_amount():
    images = torch.rand(2, 3, 4, 5)
    assert torch.equal(brighten(images, torch.tensor([0.5, 0.0])), torch.stack([images[0] + 0.5, images[1]]))


def test_saturation_scales_about_the_mean_over_channels():
    images = torch.rand(3, 3, 4, 5)
    result = saturate(images, torch.tensor([0.0, 1.0, 2.0]))
    grey = images.mean(1, keepdim=True)
    assert torch.allclose(result[0], grey[0].expand(3, 4, 5))
    assert torch.allclose(result[1], images[1])
    assert torch.allclose(result[2], 2 * images[2] - grey[2])


def test_contrast_scales_about_the_mean_of_the_image():
    images = torch.rand(2, 3, 4, 5)
    result = change_contrast(images, torch.tensor([0.5, 1.5]))
    assert torch.allclose(result.mean((1, 2, 3)), images.mean((1, 2, 3)))
    deviation = images - images.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(result[1] - result[1].mean(), 1.5 * deviation[1], atol=1e-6)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (-1, 3)])
def test_a_shift_moves_zeros_in(x, y):
    images = torch.rand(1, 2, 6, 7)
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    assert torch.equal(shift(images, torch.tensor([x]), torch.tensor([y])), padded[:, :, 3 - y : 9 - y, 3 - x : 10 - x])


def test_color_stays_within_its_ranges():
    flat = torch.zeros(2000, 3, 2, 2)
    result = DiffAugment(COLOUR)(flat)
    assert torch.allclose(result, result[:, :1, :1, :1].expand_as(result))  # no colour and no contrast to change
    assert result.abs().max() <= 0.5
    assert result.amax().item() == pytest.approx(0.5, abs=0.01)
    coloured = torch.tensor([0.5, 0.0, -0.5])[None, :, None, None].expand(2000, 3, 2, 2)
    deviation = DiffAugment(COLOUR)(coloured)
    strength = (deviation - deviation.mean(1, keepdim=True))[:, 0, 0, 0] / 0.5
    assert strength.min() >= 0
    assert strength.max() <= 3
    assert strength.mean().item() == pytest.approx(1, abs=0.06)  # E[0…2]·E[0.5…1.5]


def test_translation_is_by_up_to_an_eighth_of_each_side():
    images = torch.zeros(2000, 1, 16, 32)
    images[:, :, 8, 16] = 1
    at = DiffAugment(["translation"])(images).flatten(1).argmax(1)
    assert set((at // 32).tolist()) == set(range(6, 11))
    assert set((at % 32).tolist()) == set(range(12, 21))


def test_cutout_removes_a_rectangle_of_half_the_sides_that_may_cross_the_border():
    missing = DiffAugment(["cutout"])(torch.ones(2000, 1, 8, 16)) == 0
    rows, columns = missing.any(3).sum(2), missing.any(2).sum(2)
    assert torch.equal(missing.sum((1, 2, 3)), (rows * columns).flatten())
    assert {rows.min().item(), rows.max().item()} == {2, 4}
    assert {columns.min().item(), columns.max().item()} == {4, 8}


def test_the_policy_is_applied_in_its_order():
    images = torch.ones(64, 1, 8, 8)
    assert (DiffAugment([*COLOUR, "cutout"])(images) == 0).flatten(1).any(1).all()
    assert not (DiffAugment(["cutout", *COLOUR])(images) == 0).flatten(1).any(1).all()


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 8, 12), (4, 13, 7)])
def test_gradients_flow_twice_through_the_whole_policy(size):
    images = torch.rand(8, *size, requires_grad=True)
    result = DiffAugment()(images)
    assert result.shape == images.shape
    (gradient,) = torch.autograd.grad(result.pow(3).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.ne(0).flatten(1).any(1).all()


def test_an_empty_policy_is_the_identity_and_an_unknown_one_is_refused():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(DiffAugment([])(images), images)
    with pytest.raises(ValueError, match="colour"):
        DiffAugment(["colour"])


def test_autocast_keeps_fp32():
    with torch.autocast("cpu", torch.bfloat16):
        assert DiffAugment()(torch.rand(2, 3, 8, 8).bfloat16()).dtype == torch.float32
