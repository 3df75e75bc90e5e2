"""The Gaussian window against its closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from kizu.models.gaussian import gaussian_blur, gaussian_kernel, separable_filter


@pytest.mark.parametrize(("sigma", "radius"), [(0.7, 2), (1.0, 3), (1.5, 5), (4.2, 13)])
def test_kernel_is_the_normalised_closed_form(sigma: float, radius: int) -> None:
    expected = np.array([math.exp(-(x**2) / (2 * sigma**2)) for x in range(-radius, radius + 1)])
    found = gaussian_kernel(sigma, radius, like=torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(), rtol=1e-12)


def test_kernel_has_the_type_of_the_tensor_it_is_for() -> None:
    assert gaussian_kernel(1.0, 3, like=torch.zeros(1)).dtype == torch.float32


def test_separable_filter_is_the_outer_product_window_on_each_channel() -> None:
    x = torch.rand(2, 3, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(1.5, 2, like=x)
    window = np.outer(kernel.numpy(), kernel.numpy())
    found = separable_filter(x, kernel)
    assert found.shape == (2, 3, 8, 11)
    for image in range(2):
        for channel in range(3):
            whole = ndimage.convolve(x[image, channel].numpy(), window)
            np.testing.assert_allclose(found[image, channel].numpy(), whole[2:-2, 2:-2], rtol=1e-10)


def test_blur_repeats_edges_and_ends_at_three_sigma() -> None:
    x = torch.rand(1, 2, 20, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sigma in (1.0, 2.4):
        radius = math.ceil(3 * sigma)
        expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=radius)
        np.testing.assert_allclose(gaussian_blur(x, sigma).numpy(), expected, rtol=1e-10)


def test_blur_keeps_a_constant_and_a_sigma_of_zero_changes_nothing() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert gaussian_blur(x, 0.0) is x
    torch.testing.assert_close(gaussian_blur(torch.full_like(x, 3.0), 1.0), torch.full_like(x, 3.0))
