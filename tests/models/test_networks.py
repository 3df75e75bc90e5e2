"""The networks of GANomaly and f-AnoGAN as functions: shapes, ranges and independence of images in a batch."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.fanogan import FAnoGAN, FAnoGANConfig
from kizu.models.ganomaly import GANomaly, GANomalyConfig
from kizu.models.layers import LayerNorm2d, pad_to, padded, pyramid_depth
from kizu.training.detectors import DETECTORS, create_detector
from kizu.training.recipe import DetectorSection

SIZES = [(32, 32), (64, 64), (48, 80), (100, 70), (128, 128), (256, 256)]


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_detector_scores_every_size_with_a_heatmap_of_the_same_size(small_method, kind, channels, size):
    geometry = InputGeometry(height=size[0], width=size[1], channels=channels)
    detector = small_method(kind, geometry).detector().eval()
    score, heatmap = detector(torch.rand(2, channels, *size) * 2 - 1)
    assert score.shape == (2,)
    assert heatmap.shape == (2, 1, *size)
    assert torch.isfinite(score).all()
    if kind in ("ganomaly", "fanogan"):  # whose map is of residuals, not of logits
        assert (heatmap >= 0).all()


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_score_depends_on_its_image_alone(small_method, kind):
    detector = small_method(kind, InputGeometry(height=64, width=64, channels=1)).detector()
    detector.train()
    for _ in range(3):  # give batch norm statistics that differ from its initial ones
        detector(torch.rand(8, 1, 64, 64) * 2 - 1)
    detector.eval()
    images = torch.rand(12, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        together, maps = detector(images)
        alone = torch.cat([detector(image[None])[0] for image in images])
        order = torch.randperm(12)
        shuffled, shuffled_maps = detector(images[order])
        beside_others, _ = detector(torch.cat([images[:1], torch.ones(5, 1, 64, 64)]))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together[order], shuffled, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(maps[order], shuffled_maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together[:1], beside_others[:1], rtol=1e-5, atol=1e-7)


def test_ganomaly_scores_the_mean_absolute_difference_of_its_two_latents():
    network = GANomaly(GANomalyConfig(32, 32, 1, features=4, latent=8)).eval()
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    reconstruction, z, z_hat = network.generator(x)
    score, heatmap = network(x)
    torch.testing.assert_close(score, (z - z_hat).abs().sum((1, 2, 3)) / 8)
    torch.testing.assert_close(heatmap, (x - reconstruction).abs())


def test_fanogan_scores_image_residual_plus_kappa_times_feature_residual():
    network = FAnoGAN(FAnoGANConfig(32, 32, 1, features=4, latent=8, kappa=0.5)).eval()
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    reconstruction = network.generator(torch.tanh(network.encoder(x)[0]))
    features, reconstructed_features = network.critic(x)[1], network.critic(reconstruction)[1]
    expected = ((x - reconstruction) ** 2).mean((1, 2, 3)) + 0.5 * ((features - reconstructed_features) ** 2).mean(1)
    torch.testing.assert_close(network(x)[0], expected)


@pytest.mark.parametrize("kind", ["ganomaly", "fanogan"])
@pytest.mark.parametrize(("height", "width", "sigma"), [(40, 56, 1.0), (160, 128, 2.0)])
def test_the_peak_score_is_the_highest_value_of_the_blurred_heatmap(kind, height, width, sigma):
    geometry = InputGeometry(height=height, width=width, channels=3)
    section = DetectorSection(kind=kind, options={"features": 4, "latent": 8, "score": "peak"})
    detector = create_detector(geometry, section).detector().eval()
    score, heatmap = detector(torch.rand(3, 3, height, width) * 2 - 1)
    blurred = [gaussian_filter(h, sigma, mode="nearest", radius=int(3 * sigma)) for h in heatmap[:, 0].detach().numpy()]
    np.testing.assert_allclose(score.detach().numpy(), [b.max() for b in blurred], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"featurs": 4}, "unknown key 'detector.options.featurs': did you mean 'features'"),
        ({"features": 0}, "detector.options.features must be at least 1, not 0"),
        ({"features": 4.5}, "detector.options.features must be a whole number, not 4.5"),
        ({"score": "best"}, "detector.options.score must be 'latent' or 'peak', not 'best'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create_detector(
            InputGeometry(height=32, width=32, channels=1), DetectorSection(kind="ganomaly", options=options)
        )


def test_the_paper_preset_of_fanogan_has_the_published_feature_length():
    config = FAnoGANConfig(64, 64, 1, features=64, latent=128)
    assert config.widths[-1] * config.base[0] * config.base[1] == 8192


def test_the_critic_of_fanogan_has_no_batch_norm():
    network = FAnoGAN(FAnoGANConfig(32, 32, 1, features=4, latent=8))
    for part in (network.critic, network.encoder):
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in part.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.generator.modules())


def test_layer_norm_has_zero_mean_and_unit_variance_per_image():
    y = LayerNorm2d(5)(torch.randn(3, 5, 6, 7) * 4 + 2)
    torch.testing.assert_close(y.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.flatten(1).var(1, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "depth", "size"), [(64, 64, 4, (64, 64)), (100, 70, 4, (112, 80)), (33, 200, 3, (40, 200))]
)
def test_sizes_are_padded_to_the_next_that_halves_evenly(height, width, depth, size):
    assert pyramid_depth(height, width) == depth
    assert padded(height, width, depth) == size
    x = torch.rand(1, 1, height, width)
    y = pad_to(x, *size)
    assert y.shape[2:] == size
    assert torch.equal(y[:, :, :height, :width], x)
    assert torch.equal(y[:, :, -1, :width], x[:, :, -1])
