"""Frequency bands, their gains and the missing rectangle against their closed forms."""

import math

import pytest
import torch

from kizu.training.augment.corruption import HALF_BAND, POWER, BandFilter, band_gains, cut_out


def test_the_half_band_filter_is_the_autocorrelation_of_sym2():
    r = math.sqrt(3)
    h = torch.tensor([1 + r, 3 + r, 3 - r, 1 - r], dtype=torch.float64) / (4 * math.sqrt(2))
    autocorrelation = torch.nn.functional.conv1d(h.view(1, 1, 4), h.view(1, 1, 4), padding=3).flatten()
    assert torch.allclose(autocorrelation / 2, torch.tensor(HALF_BAND, dtype=torch.float64))


@pytest.mark.parametrize("size", [5, 16, 33])
def test_the_bands_add_up_to_the_image(size):
    bands = BandFilter().bands(size, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(bands.sum(0), torch.eye(size, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("frequency", "band"), [(0.02, 0), (0.19, 1), (0.37, 2), (0.9, 3)])
def test_a_cosine_passes_mostly_through_the_band_of_its_frequency(frequency, band):
    wave = torch.cos(math.pi * frequency * torch.arange(128, dtype=torch.float64))
    power = (BandFilter().bands(128, wave) @ wave).square().mean(1)
    assert power.argmax() == band


def test_the_response_of_each_band_is_the_product_of_half_band_filters():
    n = torch.arange(257, dtype=torch.float64)
    impulse = torch.zeros(257, dtype=torch.float64)
    impulse[128] = 1
    response = BandFilter().bands(257, impulse) @ impulse
    for omega in (0.1, 0.7, 1.9, 3.0):
        low = [1 / 2 + 9 / 16 * math.cos(w) - 1 / 16 * math.cos(3 * w) for w in (omega, 2 * omega, 4 * omega)]
        expected = [low[0] * low[1] * low[2], low[0] * low[1] * (1 - low[2]), low[0] * (1 - low[1]), 1 - low[0]]
        measured = (response * torch.cos(omega * (n - 128))).sum(1)
        assert torch.allclose(measured, torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_gains_act_on_rows_and_columns():
    wave = torch.cos(math.pi * 0.95 * torch.arange(64, dtype=torch.float64))
    images = (wave[:, None] * torch.ones(64, dtype=torch.float64))[None, None].repeat(2, 1, 1, 1)
    images[1] = images[1].transpose(1, 2).clone()
    result = BandFilter()(images, torch.tensor([[1, 1, 1, 3.0]] * 2))
    assert torch.allclose(result, 3 * images, rtol=0.02, atol=0.1)


def test_an_image_whose_gains_are_one_is_the_same_to_the_bit():
    images = torch.randn(2, 3, 12, 9)
    result = BandFilter()(images, torch.tensor([[1, 1, 1, 1.0], [1, 1, 2, 1.0]]))
    assert torch.equal(result[0], images[0])
    assert not torch.allclose(result[1], images[1], atol=0.1)


def test_one_amplified_band_is_normalised_by_the_expected_power():
    for band, power in enumerate(POWER):
        applied = torch.zeros(1, 4, dtype=torch.bool)
        applied[0, band] = True
        gains = band_gains(torch.full((1, 4), 3.0, dtype=torch.float64), applied)[0]
        norm = math.sqrt(1 - power + 9 * power)
        expected = torch.full((4,), 1 / norm, dtype=torch.float64)
        expected[band] = 3 / norm
        assert torch.allclose(gains, expected)
        assert (gains.square() * torch.tensor(POWER, dtype=torch.float64)).sum().item() == pytest.approx(1)


def test_gains_of_several_bands_multiply_and_none_leaves_all_at_one():
    amplitudes = torch.tensor([[2.0, 0.5, 3.0, 0.1]], dtype=torch.float64)
    each = [band_gains(amplitudes, torch.eye(4, dtype=torch.bool)[band][None]) for band in range(4)]
    both = torch.tensor([[True, False, True, False]])
    assert torch.allclose(band_gains(amplitudes, both), each[0] * each[2])
    assert torch.equal(band_gains(amplitudes, torch.zeros(1, 4, dtype=torch.bool)), torch.ones(1, 4).double())


def test_the_rectangle_has_half_the_sides_and_is_clipped_at_the_border():
    images = torch.ones(3, 2, 8, 16)
    centres = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])
    result = cut_out(images, centres, torch.tensor([True, True, False]))
    expected = torch.ones(3, 2, 8, 16)
    expected[0, :, 2:6, 4:12] = 0
    expected[1, :, 6:, :4] = 0
    assert torch.equal(result, expected)
