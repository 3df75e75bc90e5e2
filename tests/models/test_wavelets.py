"""Wavelet moduli: what each channel answers to, and what changes nothing."""

import math

import pytest
import torch

from kizu.models.wavelets import FAINT, ORIENTATIONS, SCALES, WaveletModuli, morlet

PER_IMAGE = 2 + 2 * len(SCALES) * ORIENTATIONS


def grating(scale, orientation, side=64, contrast=0.5):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = math.pi * orientation / ORIENTATIONS
    along = x * math.cos(angle) + y * math.sin(angle)
    return contrast * torch.cos(3 * math.pi / 4 / scale * along)[None, None].float()


def channel(scale, orientation, *, highest=False):
    return 2 + 2 * SCALES.index(scale) * ORIENTATIONS + highest * ORIENTATIONS + orientation


def moduli(features):
    return torch.expm1(features[:, 2:]) * FAINT


@pytest.mark.parametrize("scale", SCALES)
def test_a_wavelet_has_no_mean_and_unit_mass(scale):
    wave = morlet(scale, 0.7)
    assert abs(wave.sum()) < 1e-12
    assert wave.abs().sum().item() == pytest.approx(1)
    torch.testing.assert_close(wave.flip(0, 1), wave.conj())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("orientation", [0, 3, 4])
def test_a_grating_is_strongest_where_its_scale_and_orientation_are(scale, orientation):
    features = WaveletModuli(1)(grating(scale, orientation))
    inner = features[:, :, 4:-4, 4:-4].mean((0, 2, 3))[2:]
    assert 2 + int(inner.argmax()) in {channel(scale, orientation), channel(scale, orientation, highest=True)}


def test_a_gratings_modulus_is_what_the_formula_gives():
    """c·cos(ξx) = c/2·(exp(iξx) + exp(−iξx)), each wave times the wavelet's Fourier transform at its wave number."""
    contrast, wave = 0.5, morlet(4, 0.0)
    offsets = torch.arange(wave.shape[1]) - wave.shape[1] // 2
    number = 3 * math.pi / 16
    plus, minus = ((wave * torch.exp(sign * 1j * number * offsets)).sum() for sign in (1, -1))
    places = torch.arange(16, 48, 4)
    waves = plus * torch.exp(1j * number * places) + minus * torch.exp(-1j * number * places)
    measured = moduli(WaveletModuli(1)(grating(4, 0, contrast=contrast)))[0, channel(4, 0) - 2, 8, 4:12]
    torch.testing.assert_close(measured.double(), (contrast / 2 * waves.abs()).double(), rtol=1e-3, atol=0)


def test_light_changes_two_channels_alone():
    x = torch.rand(2, 1, 40, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    network = WaveletModuli(1)
    dim, bright = network(x), network(x + 0.3)
    torch.testing.assert_close(bright[:, :2], dim[:, :2] + 0.3)
    torch.testing.assert_close(bright[:, 2:], dim[:, 2:], atol=2e-4, rtol=0)


def test_a_turned_image_has_turned_features():
    x = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    network = WaveletModuli(1)
    features, turned = network(x)[0, 2:], network(x.flip(3))[0, 2:].flip(2)
    mirrored = [0, *range(ORIENTATIONS - 1, 0, -1)]
    order = [start + i for start in range(0, len(features), ORIENTATIONS) for i in mirrored]
    # Even strides sample a mirrored image half a step aside; the finest scale is sampled everywhere.
    finest = slice(0, 2 * ORIENTATIONS)
    torch.testing.assert_close(turned[order][finest], features[finest], atol=1e-4, rtol=1e-4)


def test_every_colour_has_its_own_features():
    x = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0)) - 0.5
    features = WaveletModuli(3)(x)
    assert features.shape == (2, 3 * PER_IMAGE, 9, 12)
    torch.testing.assert_close(features[:, PER_IMAGE : 2 * PER_IMAGE], WaveletModuli(1)(x[:, 1:2]))


def test_nothing_in_it_learns():
    network = WaveletModuli(1)
    assert not list(network.parameters())
    assert not network.state_dict(), "checkpoints need not hold what is a formula"
