"""The K + 1 detector: what its score means, that it is of one image alone, and what the generator draws."""

import math

import pytest
import torch

from kizu.models.semi_supervised import (
    PRESETS,
    SemiSupervisedConfig,
    SemiSupervisedDiscriminator,
    SemiSupervisedGenerator,
    ng_log_odds,
)


def make(height=32, width=32, channels=1, **options):
    torch.manual_seed(0)
    network = SemiSupervisedDiscriminator(SemiSupervisedConfig(height, width, channels, **options))
    with torch.no_grad():
        network.head.weight.mul_(30)
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
        network.slope.fill_(1.7)
        network.offset.fill_(-0.3)
    return network.eval()


def test_the_score_is_the_log_odds_of_ng_among_the_real_classes_whatever_generated_gets():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    with_generated = torch.softmax(torch.cat([logits, torch.zeros(5, 1)], 1), 1)
    ok, ng = with_generated[:, 0], with_generated[:, 1:4].sum(1)
    torch.testing.assert_close(ng_log_odds(logits), (ng / ok).log())
    torch.testing.assert_close(ng_log_odds(logits + 7), ng_log_odds(logits))


@pytest.mark.parametrize("options", [{}, {"pool": "lse"}, {"real_classes": 5}], ids=str)
def test_a_score_depends_on_nothing_but_its_image(assert_depends_on_its_image_alone, options):
    network = make(48, 40, **options)
    x = torch.rand(6, 1, 48, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert_depends_on_its_image_alone(network, x)


def test_with_two_classes_the_score_is_the_pool_of_the_maps_log_odds():
    for options, pool in (
        ({"top_share": 0.05}, lambda m: m.topk(4, 1).values.mean(1)),
        ({"pool": "lse", "lse_temperature": 0.5}, lambda m: 0.5 * (torch.logsumexp(m / 0.5, 1) - math.log(64))),
    ):
        network = make(**options)
        places = network.logits(torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2)))
        assert places.shape == (3, 2, 8, 8)
        logits = network.pooled(places)
        torch.testing.assert_close(logits[:, 0], places[:, 0].mean((1, 2)))
        torch.testing.assert_close(ng_log_odds(logits), pool((places[:, 1] - places[:, 0]).flatten(1)))


def test_every_ng_class_is_pooled_by_itself():
    network = make(real_classes=4)
    places = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for k in (1, 2, 3):
        two = network.pooled(places[:, [0, k]])
        torch.testing.assert_close(network.pooled(places)[:, [0, k]], two)


def test_calibration_moves_score_and_map_alike():
    network = make()
    x = torch.rand(3, 1, 32, 32)
    score, heatmap = network(x)
    network.slope.fill_(1.0)
    network.offset.fill_(0.0)
    raw, raw_map = network(x)
    torch.testing.assert_close(score, 1.7 * raw - 0.3)
    torch.testing.assert_close(heatmap, 1.7 * raw_map - 0.3)


def test_views_are_the_mean_over_mirror_images():
    one, several = make(), make(views=2)
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (score, heatmap), (mirrored, mirrored_map) = one(x), one(x.flip(3))
    torch.testing.assert_close(several(x)[0], (score + mirrored) / 2)
    torch.testing.assert_close(several(x)[1], (heatmap + mirrored_map.flip(3)) / 2)


def test_a_defect_is_hot_where_it_is():
    network = make(real_classes=3)
    x = torch.zeros(1, 1, 32, 32)
    marked = x.clone()
    marked[:, :, 4:8, 20:24] = 1
    moved = (network(marked)[1] - network(x)[1]).abs()[0, 0]
    assert moved[:16, 12:].sum() > moved[16:, :12].sum() * 2


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (40, 96), (128, 128)])
def test_the_generator_draws_any_size_within_the_range_of_images(size):
    torch.manual_seed(0)
    generator = SemiSupervisedGenerator(SemiSupervisedConfig(size[0], size[1], 3, latent=8, generator_features=4))
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 3, *size)
    assert images.abs().max() <= 1
    assert images.std(0).mean() > 1e-4


@pytest.mark.parametrize("preset", ["small", "wavelet"])
def test_a_generator_can_learn_from_its_features(preset):
    torch.manual_seed(0)
    discriminator = SemiSupervisedDiscriminator(SemiSupervisedConfig(32, 32, 1, **PRESETS[preset]))
    images = torch.cat([torch.zeros(2, 1, 32, 32), torch.rand(2, 1, 32, 32)]).requires_grad_()
    discriminator.penultimate(images).square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert images.grad[2:].abs().max() > 0


def test_the_small_preset_is_small():
    config = SemiSupervisedConfig(128, 128, 3, real_classes=7, **PRESETS["small"])
    assert 100_000 < sum(p.numel() for p in SemiSupervisedDiscriminator(config).parameters()) < 300_000
    assert 200_000 < sum(p.numel() for p in SemiSupervisedGenerator(config).parameters()) < 600_000


@pytest.mark.parametrize("options", [{"real_classes": 1}, {"pool": "mean"}, {"backbone": "vgg"}], ids=str)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SemiSupervisedConfig(32, 32, 1, **options)
