"""Matrices, exact moves and the orthogonal warp against their closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from kizu.training.augment.geometry import (
    SYM6,
    OrthogonalWarp,
    blit,
    compose,
    fold,
    rotation,
    scaling,
    sources,
    translation,
)


def identity(n):
    return torch.eye(3, dtype=torch.float64).expand(n, 3, 3)


def smooth(x, y):
    """A smooth field of unbounded extent with no symmetry, over positions about the centre."""
    return torch.sin(0.21 * x + 0.4) + 0.5 * torch.cos(0.17 * y - 0.1 * x)


def smooth_images(height, width):
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64)[None] - (width - 1) / 2
    return x, y, smooth(x, y)[None, None]


@pytest.mark.parametrize("shift", range(6))
def test_sym6_is_orthonormal_to_its_even_shifts(shift):
    h = torch.tensor(SYM6, dtype=torch.float64)
    product = (h[2 * shift :] * h[: len(h) - 2 * shift]).sum().item()
    assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-11)


def test_sym6_passes_constants_and_has_six_vanishing_moments():
    h = torch.tensor(SYM6, dtype=torch.float64)
    n = torch.arange(len(h), dtype=torch.float64)
    assert h.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    for moment in range(6):
        assert ((-1) ** n * (n - 5.5) ** moment * h).sum().item() == pytest.approx(0, abs=1e-9)


def test_a_rotation_turns_counter_clockwise_as_seen_with_y_down():
    right = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    theta = torch.tensor([0.3, math.pi / 2], dtype=torch.float64)
    turned = rotation(theta) @ right
    assert torch.allclose(turned[:, 0], torch.cos(theta))
    assert torch.allclose(turned[:, 1], -torch.sin(theta))  # up is −y


def test_matrices_compose_as_their_groups_do():
    a, b = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.1, 0.7], dtype=torch.float64)
    assert torch.allclose(compose(rotation(a), rotation(b)), rotation(a + b))
    assert torch.allclose(compose(translation(a, b), translation(b, a)), translation(a + b, a + b))
    assert torch.allclose(compose(scaling(a, b), scaling(1 / a, 1 / b)), identity(2))
    assert torch.allclose(compose(rotation(a), rotation(2 * math.pi - a)), identity(2))


def test_composition_is_the_matrix_product():
    a, b = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(5, 4, 2, dtype=torch.float64)
    assert torch.allclose(compose(a, b), a @ b)


def test_folding_counts_to_the_last_pixel_and_back_without_repeating_it():
    assert fold(torch.arange(-5, 10).double(), 4).tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert fold(torch.tensor([-0.25, 3.25]), 4).tolist() == [0.25, 2.75]
    assert fold(torch.arange(-3.0, 4.0), 1).tolist() == [0.0] * 7


def test_sources_are_counted_about_the_centre_of_the_image():
    inverse = rotation(torch.tensor([math.pi / 2], dtype=torch.float64))
    x, y = sources(inverse, torch.arange(3.0).double(), torch.arange(3.0).double(), (3, 3))
    assert torch.allclose(x[0], torch.arange(3.0).double()[:, None].expand(3, 3))
    assert torch.allclose(y[0], 2 - torch.arange(3.0).double()[None].expand(3, 3))


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -2), (-6, 5)])
def test_moving_whole_pixels_is_reflect_padding_and_a_crop(x, y):
    images = torch.randn(1, 2, 7, 9)
    padded = F.pad(images, (6, 6, 6, 6), mode="reflect")
    moved = blit(images, translation(torch.tensor([-float(x)]), torch.tensor([-float(y)])))
    assert torch.equal(moved, padded[:, :, 6 - y : 13 - y, 6 - x : 15 - x])


@pytest.mark.parametrize("size", [(16, 16), (15, 16), (9, 22), (3, 5), (1, 1)])
def test_up_and_down_alone_restore_the_image_away_from_the_border(size):
    height, width = size
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    warped = OrthogonalWarp()(images, identity(2))
    assert warped.shape == images.shape
    assert torch.allclose(warped[:, :, 6:-6, 6:-6], images[:, :, 6:-6, 6:-6], atol=1e-6)


def test_a_warp_keeps_a_constant_up_to_the_border():
    inverse = compose(rotation(torch.tensor([0.7], dtype=torch.float64)), scaling(*torch.full((2, 1), 0.6).double()))
    warped = OrthogonalWarp()(torch.full((1, 1, 12, 10), 0.3, dtype=torch.float64), inverse)
    assert torch.allclose(warped, torch.full_like(warped, 0.3), atol=1e-6)


@pytest.mark.parametrize("shift", [(1, 0), (-2, 3)])
def test_a_warp_by_whole_pixels_moves_them(shift):
    images = torch.randn(1, 1, 24, 24, dtype=torch.float64)
    x, y = torch.tensor(shift, dtype=torch.float64)[:, None]
    warped = OrthogonalWarp()(images, translation(-x, -y))
    inside = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(warped[inside], blit(images, translation(-x, -y))[inside], atol=1e-6)


@pytest.mark.parametrize(
    "inverse",
    [
        translation(torch.tensor([0.5]), torch.tensor([-0.3])),
        rotation(torch.tensor([0.4])),
        rotation(torch.tensor([math.pi])),
        scaling(torch.tensor([1.15]), torch.tensor([1.15])),
        scaling(torch.tensor([0.8]), torch.tensor([1.25])),
        compose(rotation(torch.tensor([-1.2])), scaling(torch.tensor([0.9]), torch.tensor([1.0]))),
    ],
    ids=["half a pixel", "rotation", "half turn", "smaller", "anisotropic", "combined"],
)
def test_a_warped_smooth_image_is_the_smooth_field_at_the_warped_positions(inverse):
    inverse = inverse.double()
    x, y, images = smooth_images(40, 48)
    m = inverse[0]
    expected = smooth(m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2])
    warped = OrthogonalWarp()(images, inverse)[0, 0]
    inside = (slice(12, -12), slice(12, -12))
    # Bilinear at half a pixel is off by h²/8·f″, with h = 0.5 and f″ ≤ 0.065.
    assert (warped[inside] - expected[inside]).abs().max() < 0.004


def test_a_warp_reads_an_image_without_end_that_reflects_at_its_border():
    def field(x, y):  # its own reflection about the first and last pixels of 40 × 48
        return torch.cos(math.pi * 3 / 47 * (x + 23.5)) * torch.cos(math.pi * 2 / 39 * (y + 19.5))

    inverse = compose(
        rotation(torch.tensor([0.5], dtype=torch.float64)),
        translation(*torch.tensor([[30.0], [-25.0]], dtype=torch.float64)),
    )
    x, y, _ = smooth_images(40, 48)
    m = inverse[0]
    expected = field(m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2])
    warped = OrthogonalWarp()(field(x, y)[None, None], inverse)[0, 0]
    assert (warped - expected).abs().max() < 0.01


def test_a_warp_has_a_second_derivative_of_the_composite_by_finite_differences():
    torch.manual_seed(0)
    inverse = compose(rotation(torch.tensor([0.5, 2.0]).double()), translation(*torch.full((2, 2), 0.4).double()))
    images = torch.randn(2, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    warp = OrthogonalWarp()
    assert torch.autograd.gradcheck(lambda x: warp(x, inverse), images)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, inverse).tanh(), images)


def test_the_warp_works_under_functional_gradients():
    inverse = rotation(torch.tensor([0.5], dtype=torch.float64))
    images = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    warp = OrthogonalWarp()
    gradient = torch.func.grad(lambda x: warp(x, inverse).pow(3).sum())(images.detach())
    (expected,) = torch.autograd.grad(warp(images, inverse).pow(3).sum(), images)
    assert torch.allclose(gradient, expected)
