"""Synthetic anomalies: Perlin noise against its definition, masks against the pixels that changed."""

import math

import pytest
import torch

from kizu.training.augment import anomalies
from kizu.training.augment.anomalies import altered, local_shapes, perlin_anomalies, perlin_noise


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images_of(count, channels=1, height=32, width=32, seed=0):
    smooth = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(smooth, (height, width), mode="bilinear")


def test_noise_is_between_minus_one_and_one_varies_and_has_no_preferred_sign():
    noise = perlin_noise(400, 32, 48)
    assert noise.shape == (400, 32, 48)
    assert noise.abs().amax() <= 1
    assert noise.amax() > 0.8
    assert noise.amin() < -0.8
    assert noise.mean().abs() < 0.02
    assert (noise.std((1, 2)) > 0.03).all()


def test_noise_is_perlins_gradient_noise_on_its_lattice(monkeypatch):
    """Unturned, unmoved, two periods a side, all gradients along x: what is left has a closed form."""
    size = 32
    centre = (size - 1) / 2
    monkeypatch.setattr(anomalies, "_powers_of_two", lambda count, *_: torch.full((count,), 2.0))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.zeros(shape, device=device))
    noise = perlin_noise(1, size, size)[0]
    t = (torch.arange(size) - centre) * 2 / size
    t = t - t.floor()
    fade = 6 * t**5 - 15 * t**4 + 10 * t**3
    expected = math.sqrt(2) * ((1 - fade) * t + fade * (t - 1))
    torch.testing.assert_close(noise, expected.expand(size, size), atol=1e-5, rtol=0)


def test_frequencies_are_powers_of_two_from_one_to_the_finest_and_each_axis_has_its_own():
    found = anomalies._powers_of_two(2000, 64, 4.0, "cpu")
    values, counts = found.unique(return_counts=True)
    assert values.tolist() == [1, 2, 4, 8, 16]
    assert counts.min() > 300
    assert anomalies._powers_of_two(9, 3, 4.0, "cpu").eq(1).all()


def test_finer_noise_changes_its_sign_more_often():
    coarse, fine = (perlin_noise(100, 64, 64, finest=finest) for finest in (64.0, 2.0))
    crossings = [(noise[:, 1:].sign() != noise[:, :-1].sign()).float().mean() for noise in (coarse, fine)]
    assert crossings[1] > 2 * crossings[0]


@pytest.mark.parametrize("shapes", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (3, 33, 70)])
def test_masks_are_the_pixels_that_changed(shapes, channels, height, width):
    images = images_of(200, channels, height, width)
    before = images.clone()
    found, masks = perlin_anomalies(images, images.roll(1, 0), shapes=shapes)
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.abs().amax() <= 1
    assert masks.shape == (200, 1, height, width)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    change = (found - images).abs().mean(1, keepdim=True)
    assert torch.equal(change > 0, masks > 0)
    assert change[masks > 0].amin() >= anomalies.VISIBLE
    area = masks.mean((1, 2, 3))
    assert (area > 0).float().mean() > 0.7
    assert area.mean() < 0.3


def test_every_image_has_an_anomaly_where_the_filling_shows(monkeypatch):
    images, sources = torch.full((300, 1, 32, 32), -1.0), torch.full((300, 1, 32, 32), 1.0)
    monkeypatch.setattr(anomalies, "altered", lambda x: x)
    for shapes in (0.0, 1.0):
        _, masks = perlin_anomalies(images, sources, shapes=shapes, opacity=(0.5, 1.0))
        assert (masks.flatten(1).sum(1) > 0).all()


def test_opacity_says_how_much_of_the_filling_shows(monkeypatch):
    images, sources = torch.zeros(50, 1, 32, 32), torch.ones(50, 1, 32, 32)
    monkeypatch.setattr(anomalies, "altered", lambda x: x)
    monkeypatch.setattr(anomalies, "_softened", lambda alpha, _: alpha)
    found, masks = perlin_anomalies(images, sources, opacity=(0.4, 0.4))
    torch.testing.assert_close(found, 0.4 * masks)
    values = perlin_anomalies(images, sources, opacity=(0.2, 0.9))[0].amax((1, 2, 3))
    assert values.min() >= 0.2
    assert values.max() <= 0.9
    assert values.std() > 0.1


def test_softening_is_a_binomial_filter_that_keeps_flat_regions():
    alpha = torch.zeros(2, 1, 7, 7)
    alpha[:, 0, 3, 3] = 1
    soft = anomalies._softened(alpha, torch.tensor([True, False]))
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    torch.testing.assert_close(soft[0, 0, 2:5, 2:5], kernel[:, None] * kernel)
    assert torch.equal(soft[1], alpha[1])
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(anomalies._softened(ones, torch.tensor([True])), ones)


def test_shapes_reach_from_single_pixels_to_large_ones_and_never_are_nothing():
    area = local_shapes(2000, 64, 48).flatten(1).sum(1)
    assert area.min() >= 1
    assert (area <= 6).float().mean() > 0.02
    assert (area > 100).float().mean() > 0.02
    assert area.max() < 0.5 * 64 * 48


def test_altered_images_differ_from_their_source_and_keep_the_range():
    for channels in (1, 3):
        images = images_of(300, channels)
        result = altered(images)
        assert result.abs().amax() <= 1
        assert ((result - images).abs().mean((1, 2, 3)) > 0.05).float().mean() > 0.95


def test_rearranging_moves_pixels_and_invents_none():
    images = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(64, 1, 32, 32)
    moved = anomalies._rearranged(images)
    assert torch.equal(moved.flatten(1).sort(1).values, images.flatten(1))
    assert len({tuple(row) for row in moved.flatten(1)[:, :8].tolist()}) > 40
    odd = torch.rand(16, 3, 33, 47)
    assert torch.isin(anomalies._rearranged(odd), odd).all()


def test_anomalies_are_a_function_of_torchs_seed():
    images = images_of(8, 3)
    for draw in (0, 1):
        torch.manual_seed(draw)
        first = perlin_anomalies(images, images.roll(1, 0))
        torch.manual_seed(draw)
        second = perlin_anomalies(images, images.roll(1, 0))
        third = perlin_anomalies(images, images.roll(1, 0))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first[0], third[0])
