"""The building blocks that StyleGAN2 is made of: equalised learning rate, resampling, the minibatch statistic."""

import math

import pytest
import torch
import torch.nn.functional as F

from kizu.models.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStd,
    downsample,
    low_pass,
    scaled_leaky_relu,
    upsample,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- equalised learning rate ---


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_equalised_weights_are_normal_draws_and_keep_the_variance(rate):
    layer = EqualizedLinear(400, 300, rate=rate)
    assert (layer.weight * rate).std().item() == pytest.approx(1, abs=0.02)
    assert (layer.weight * rate).mean().item() == pytest.approx(0, abs=0.02)
    assert layer(torch.randn(200, 400)).var().item() == pytest.approx(1, abs=0.05)


def test_the_rate_of_a_layer_scales_weight_and_bias_where_they_are_used():
    layer = EqualizedLinear(3, 2, bias=0.5, rate=0.01)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer.bias, torch.full((2,), 50.0))
    torch.testing.assert_close(layer(x), x @ layer.weight.T * (0.01 / math.sqrt(3)) + 0.5)


def test_an_equalised_convolution_is_one_over_the_root_of_its_fan_in():
    layer = EqualizedConv2d(6, 5, 3)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight / math.sqrt(54), layer.bias, padding=1))
    assert layer.weight.std().item() == pytest.approx(1, abs=0.1)


def test_the_activation_keeps_the_second_moment():
    x = torch.randn(200_000)
    torch.testing.assert_close(scaled_leaky_relu(x)[x < 0], 0.2 * math.sqrt(2) * x[x < 0])
    torch.testing.assert_close(scaled_leaky_relu(x)[x > 0], math.sqrt(2) * x[x > 0])
    # of N(0, 1): ½·2·(1 + 0.04)
    assert scaled_leaky_relu(x).square().mean().item() == pytest.approx(1.04, abs=0.02)


# --- resampling ---


TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


def filtered(x, before, after, gain=1.0):
    """[1, 3, 3, 1] in both directions, by its definition."""
    x = F.pad(x, (before, after, before, after))
    height, width = x.shape[2] - 3, x.shape[3] - 3
    return gain * sum(TAPS[i] * TAPS[j] * x[:, :, i : i + height, j : j + width] for i in range(4) for j in range(4))


def zeros_between(x):
    """[N, C, h, w] → [N, C, 2h, 2w], a zero to the right of and below each pixel."""
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def test_resampling_is_zero_insertion_or_decimation_with_the_filter_1331():
    x = torch.randn(2, 3, 6, 10)
    torch.testing.assert_close(upsample(x), filtered(zeros_between(x), 2, 1, gain=4))
    torch.testing.assert_close(downsample(x), filtered(x, 1, 1)[:, :, ::2, ::2])
    torch.testing.assert_close(low_pass(x, padding=2, gain=3.0), filtered(x, 2, 2, gain=3))
    assert low_pass(x, padding=2).shape == (2, 3, 7, 11)


def test_resampling_keeps_constants_inside_the_border():
    x = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(upsample(x)[:, :, 1:-1, 1:-1], torch.full((1, 2, 14, 14), 0.7))
    torch.testing.assert_close(downsample(x)[:, :, 1:-1, 1:-1], torch.full((1, 2, 2, 2), 0.7))
    torch.testing.assert_close(low_pass(x, padding=2)[:, :, 2:-2, 2:-2], torch.full((1, 2, 5, 5), 0.7))


def test_a_downsampling_convolution_filters_and_then_strides():
    x = torch.randn(2, 4, 8, 8)
    layer = EqualizedConv2d(4, 5, 3, down=True)
    wanted = F.conv2d(filtered(x, 2, 2), layer.weight * layer.gain, layer.bias, stride=2)
    torch.testing.assert_close(layer(x), wanted)
    shortcut = EqualizedConv2d(4, 5, 1, bias=False, down=True)
    wanted = F.conv2d(filtered(x, 1, 1), shortcut.weight * shortcut.gain)[:, :, ::2, ::2]
    torch.testing.assert_close(shortcut(x), wanted)


# --- minibatch statistic ---


def groups_of(n, group=4):
    """Image i is in group i mod ⌈n / group⌉."""
    number = -(-n // min(group, n))
    return [list(range(k, n, number)) for k in range(number)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_the_minibatch_statistic_is_the_mean_deviation_within_groups_of_four(n):
    x = torch.randn(n, 3, 4, 5) * torch.arange(1, n + 1)[:, None, None, None]
    y = MinibatchStd(4)(x)
    assert y.shape == (n, 4, 4, 5)
    assert torch.equal(y[:, :3], x)
    found = groups_of(n)
    assert max(map(len, found)) <= 4
    assert max(map(len, found)) - min(map(len, found)) <= 1
    for members in found:
        wanted = (x[members].var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[members, 3], wanted.expand(len(members), 4, 5))


def test_the_minibatch_statistic_does_not_mix_groups():
    x = torch.randn(8, 3, 4, 4)
    before = MinibatchStd(4)(x)[:, 3]
    x[[0, 2, 4, 6]] *= 100
    after = MinibatchStd(4)(x)[:, 3]
    assert torch.equal(before[1::2], after[1::2])
    assert (after[::2] > 50 * before[::2]).all()
