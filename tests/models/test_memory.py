"""The memory: distances against brute force, scores of one image alone, and a graph that says the same."""

import math

import numpy as np
import pytest
import torch

from kizu.models.bundle import InputGeometry, Session
from kizu.models.gaussian import gaussian_blur
from kizu.models.inspector import Inspector
from kizu.models.memory import (
    CHUNK,
    LEVELS,
    PRESETS,
    DiscriminatorLevels,
    LocalEncoder,
    MemoryConfig,
    MemoryDetector,
    ResNetLevels,
    squared_distances,
)
from kizu.models.stylegan2 import PRESETS as STYLEGAN2
from kizu.models.stylegan2 import Discriminator, StyleGAN2Config
from kizu.training.export import export_onnx, relative_difference, torch_scorer


def images(count, config, seed=1):
    shape = (count, config.channels, config.height, config.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def backbone(config):
    if config.features == "self-supervised":
        return LocalEncoder(config)
    if config.features == "discriminator":
        shape = StyleGAN2Config(config.height, config.width, config.channels, **STYLEGAN2["demo"])
        return DiscriminatorLevels(config, Discriminator(shape))
    return ResNetLevels(config)


def empty(height=32, width=32, channels=1, **options):
    torch.manual_seed(0)
    config = MemoryConfig(
        height, width, channels, **{"features": "self-supervised", "memory": 300, "filters": 4, **options}
    )
    network = MemoryDetector(config, backbone(config), seed=3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def vectors(network, x):
    return network.patches(x).permute(0, 2, 3, 1).flatten(0, 2)


def make(*size, **options):
    network = empty(*size, **options)
    features = vectors(network, images(12, network.config, seed=0))
    network.memory.fit_gains(features)
    network.memory.fill(network.memory.embed(features)[: network.config.memory])
    return network


def test_distances_are_those_of_cdist():
    generator = torch.Generator().manual_seed(0)
    f, m = torch.randn(50, 20, generator=generator), torch.randn(70, 20, generator=generator)
    found = squared_distances(f, m, m.square().sum(1))
    torch.testing.assert_close(found, torch.cdist(f, m).square(), rtol=1e-4, atol=1e-4)
    assert (squared_distances(m, m, m.square().sum(1)) >= 0).all()


@pytest.mark.parametrize("options", [{}, {"dimensions": 7}, {"memory": 90}], ids=str)
def test_the_score_is_the_largest_distance_of_a_place_to_all_that_is_remembered(options):
    network = make(**options)
    x = images(5, network.config)
    memory = network.memory.embed(vectors(network, images(12, network.config, seed=0)))[: network.config.memory]
    spread = (memory - memory.mean(0)).square().sum(1).mean().sqrt()
    least = torch.cdist(network.memory.embed(vectors(network, x)).double(), memory.double()).amin(1).view(5, 64)
    expected = (least.square() + (0.1 * spread) ** 2).sqrt().float()
    score, heatmap = network(x)
    torch.testing.assert_close(score, expected.amax(1), rtol=1e-5, atol=0)
    # Bilinear: the heatmap's mean over the inner patches is theirs.
    assert (network.config.memory > CHUNK) == (options.get("memory") is None)
    torch.testing.assert_close(heatmap.mean((1, 2, 3)), expected.mean(1), rtol=0.05, atol=0)
    assert (heatmap <= score[:, None, None, None] + 1e-5).all()


def test_what_is_remembered_exactly_scores_the_floor_to_the_last_digits():
    network = make(memory=1000)
    score, heatmap = network(images(12, network.config, seed=0))
    torch.testing.assert_close(score, network.memory.floor.expand(12), rtol=1e-5, atol=0)
    torch.testing.assert_close(heatmap, network.memory.floor.expand_as(heatmap), rtol=1e-5, atol=0)
    assert (network(images(12, network.config))[0] > 2 * network.memory.floor).all()


def test_the_published_weight_is_its_formula():
    plain, network = make(), make(score="reweighted", neighbours=4)
    x = images(5, network.config)

    def distance(a, b):
        return (torch.cdist(a.double()[None], b.double()[None])[0].square() + network.memory.floor.double() ** 2).sqrt()

    for image, largest, found in zip(x, plain(x)[0], network(x)[0], strict=True):
        f = network.memory.embed(vectors(network, image[None])) - network.memory.centre
        between = distance(f, network.memory.bank)
        worst = between.amin(1).argmax()
        nearest = between[worst].argmin()
        around = distance(network.memory.bank[nearest][None], network.memory.bank)[0].topk(4, largest=False).indices
        assert around[0] == nearest
        weight = 1 - between[worst, nearest].exp() / between[worst, around].exp().sum()
        assert found.item() == pytest.approx(largest.item() * weight.item(), rel=1e-4)


def test_each_level_has_the_same_share_of_the_variance():
    network = empty()
    features = vectors(network, images(12, network.config))
    network.memory.fit_gains(features)
    parts = network.memory.embed(features).split(network.patches.widths, 1)
    assert len(parts) == LEVELS
    assert [p.var(0, correction=0).sum().item() for p in parts] == pytest.approx([1 / 3] * 3, rel=1e-4)
    network.memory.fit_gains(torch.ones(4, sum(network.patches.widths)))  # a level that never varies divides by nothing
    assert torch.isfinite(network.memory.gains).all()


def test_the_projection_is_fixed_by_its_seed_and_keeps_lengths():
    network = empty(dimensions=256)
    config = network.config
    assert torch.equal(
        network.memory.projection, MemoryDetector(config, LocalEncoder(config), seed=3).memory.projection
    )
    assert not torch.equal(
        network.memory.projection, MemoryDetector(config, LocalEncoder(config), seed=4).memory.projection
    )
    v = torch.randn(200, 40, generator=torch.Generator().manual_seed(5))
    ratio = network.memory.embed(v).norm(dim=1) / v.norm(dim=1)
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [{}, {"score": "reweighted"}, {"features": "discriminator"}, {"features": "resnet18", "dimensions": 32}],
    ids=str,
)
def test_a_score_depends_on_nothing_but_its_image(assert_depends_on_its_image_alone, options):
    network = make(48, 40, **options)
    x = images(6, network.config)
    assert_depends_on_its_image_alone(network, x, spread=1e-4)


@pytest.mark.parametrize("features", ["self-supervised", "discriminator", "resnet18"])
@pytest.mark.parametrize("size", [(33, 47), (36, 90), (161, 168)])
def test_any_size_has_places_on_a_grid(features, size):
    network = make(*size, features=features)
    stride = 4 if min(size) < 160 else 8
    grid = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    x = images(2, network.config)
    assert network.patches(x).shape == (2, sum(network.patches.widths), *grid)
    assert network(x)[1].shape == (2, 1, *size)


def test_a_defect_is_hot_where_it_is():
    network = empty()
    x = torch.zeros(1, 1, 32, 32)
    features = vectors(network, x)
    network.memory.fit_gains(vectors(network, images(12, network.config)))
    network.memory.fill(network.memory.embed(features))
    x[:, :, 4:8, 20:24] = 1
    heat = network(x)[1][0, 0] - network.memory.floor
    row, column = divmod(int(heat.argmax()), 32)
    assert abs(row - 6) <= 4
    assert abs(column - 22) <= 4
    assert heat[20:, :10].max() < heat.max() / 10


def test_blur_smooths_the_heatmap_alone():
    sharp, soft = make(), make(blur=2.0)
    x = images(3, sharp.config)
    assert torch.equal(sharp(x)[0], soft(x)[0])
    assert soft(x)[1].std() < sharp(x)[1].std()
    impulse = torch.zeros(1, 1, 31, 31)
    impulse[0, 0, 15, 15] = 1
    found = gaussian_blur(impulse, 2.0)
    assert found.sum().item() == pytest.approx(1)
    assert (found[0, 0, 15, 17] / found[0, 0, 15, 15]).item() == pytest.approx(math.exp(-0.5))


def test_an_empty_memory_scores_nothing():
    network = empty()
    with pytest.raises(RuntimeError, match="memory is empty"):
        network(images(1, network.config))
    with pytest.raises(ValueError, match="0 patches"):
        network.memory.fill(torch.zeros(0, 40))


def test_a_state_brings_as_many_places_as_it_has():
    full, other = make(memory=300), empty(memory=300)
    few = make(memory=40)
    x = images(3, full.config)
    for source in (full, few):
        other.load_state_dict(source.state_dict())
        assert torch.equal(other(x)[0], source(x)[0])
    small = empty(memory=40)
    with pytest.raises(RuntimeError, match=r"size mismatch for memory\.bank"):
        small.load_state_dict(full.state_dict())


def test_a_memory_of_one_place_scores():
    network = empty(score="reweighted")
    features = vectors(network, images(12, network.config))
    network.memory.fit_gains(features)
    network.memory.fill(network.memory.embed(features)[:1])
    score, _ = network(images(3, network.config))
    assert torch.isfinite(score).all()
    assert (score > 0).all()


def test_a_discriminator_of_another_size_is_refused():
    config = MemoryConfig(32, 32, 1)
    with pytest.raises(ValueError, match="64×32 pixels"):
        DiscriminatorLevels(config, Discriminator(StyleGAN2Config(32, 64, 1, **STYLEGAN2["demo"])))


def test_a_discriminators_maps_are_its_features():
    discriminator = Discriminator(StyleGAN2Config(160, 160, 3, **STYLEGAN2["demo"])).requires_grad_(False)
    config = MemoryConfig(160, 160, 3, features="discriminator")
    levels = DiscriminatorLevels(config, discriminator)
    x = images(2, config)
    maps = levels.levels(x)
    assert [m.shape[2] for m in maps] == [40, 20, 10]
    assert [m.shape[1] for m in maps] == list(levels.widths)
    for ours, theirs in zip(maps, discriminator.features(x)[1:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert discriminator(x).shape == (2,)  # the copy lost its last layers, not the original


def test_the_graph_and_torch_agree_on_images_of_any_size():
    geometry = InputGeometry(height=36, width=44, channels=3)
    options = {"features": "discriminator", "score": "reweighted", "dimensions": 16, "blur": 1.0}
    inspector = Inspector(make(geometry.height, geometry.width, geometry.channels, **options), geometry).eval()
    exported, reference = Session(export_onnx(inspector), "cpu", threads=1), torch_scorer(inspector)
    random = np.random.default_rng(0)
    for shape in [(1, geometry.min_height, geometry.min_width, 1), (3, 71, 90, 3)]:
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        for ours, theirs in zip(exported.score(pixels), reference(pixels), strict=True):
            assert ours.shape == theirs.shape
            assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("options", "name"), [({"features": "vgg"}, "features"), ({"memory": 1}, "memory"), ({"score": "mean"}, "score")]
)
def test_values_out_of_range_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        MemoryConfig(32, 32, 1, **options)


def test_presets_are_configurations():
    assert {MemoryConfig(32, 32, 1, **preset).features for preset in PRESETS.values()} == {
        "pretrained",
        "self-supervised",
        "discriminator",
        "resnet18",
        "resnet34",
    }
