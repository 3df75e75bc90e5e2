"""SuperSimpleNet: heads on shared maps, scores of one image alone, and a graph that says the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from kizu.models.backbones import PretrainedBackbone, pooled
from kizu.models.bundle import InputGeometry, Session
from kizu.models.ensemble import Ensemble, RankScale
from kizu.models.inspector import Inspector
from kizu.models.memory import MemoryConfig, PretrainedMemoryDetector
from kizu.models.supersimplenet import SuperSimpleNet, SuperSimpleNetConfig
from kizu.training.export import export_onnx, relative_difference, torch_scorer

SIDE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = SuperSimpleNetConfig(SIDE, SIDE, 1, least_side=SIDE, map_width=8, score_width=4)
    made = SuperSimpleNet(config, PretrainedBackbone(config.of_backbone))
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.1)
    return made.eval().requires_grad_(False)


def images(count, channels=1):
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_scores_one_image_alone(network, assert_depends_on_its_image_alone):
    assert_depends_on_its_image_alone(network, images(6), spread=0)


def test_the_adaptor_starts_as_the_identity(network):
    features = torch.randn(2, network.heads.mean.shape[0], 4, 4)
    torch.testing.assert_close(network.heads.adapt(features), features)


def test_statistics_standardise_the_features(network):
    features = torch.randn(2, network.heads.mean.shape[0], 4, 4)
    mean, std = network.heads.mean.clone(), network.heads.std.clone()
    network.heads.mean.fill_(2.0)
    network.heads.std.fill_(4.0)
    found = network.heads.adapt(features)
    network.heads.mean.copy_(mean)
    network.heads.std.copy_(std)
    torch.testing.assert_close(found, (features - 2) / 4)


def test_the_score_is_the_heads_logit_and_the_peak_of_the_map(network):
    x = images(3)
    with torch.no_grad():
        head, places = network.heads(network.heads.adapt(network.features(network.backbone(x))))
        score, _ = network(x)
    torch.testing.assert_close(score, head + places.flatten(1).amax(1))  # of 64 places, one is the peak


@pytest.fixture(scope="module")
def ensemble(network):
    memory = PretrainedMemoryDetector(MemoryConfig(SIDE, SIDE, 1, least_side=SIDE, memory=9), network.backbone)
    features = memory.patches(images(2)).permute(0, 2, 3, 1).flatten(0, 2)
    memory.memory.fit_gains(features)
    memory.memory.fill(memory.memory.embed(features)[:9])
    scales = [RankScale.fitted(np.linspace(-1, 1, 20)), RankScale.fitted(np.linspace(0, 1, 20))]
    return Ensemble([network, memory.eval()], scales)


def test_members_share_one_pass_through_their_backbone(network, ensemble):
    passes: list[int] = []
    hook = network.backbone.register_forward_hook(lambda _module, given, _found: passes.append(len(given[0])))
    ensemble(images(3))
    hook.remove()
    assert passes == [3]


def test_an_ensemble_on_shared_maps_scores_as_its_members_do(ensemble):
    x = images(3)
    alone = [scale(member(x)[0]) for member, scale in zip(ensemble.members, ensemble.scales, strict=True)]
    torch.testing.assert_close(ensemble(x)[0], torch.stack(alone).mean(0))


def test_the_exported_graph_scores_and_embeds_as_torch_does_and_holds_the_backbone_once(network, ensemble):
    geometry = InputGeometry(height=SIDE, width=SIDE, channels=1)
    inspector = Inspector(ensemble, geometry).eval()
    content = export_onnx(inspector)
    stems = [t for t in onnx.load_model_from_string(content).graph.initializer if list(t.dims) == [32, 3, 3, 3]]
    assert len(stems) == 1
    session, reference = Session(content, "cpu"), torch_scorer(inspector)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 90, 75, 3), dtype=np.uint8)
    score, heatmap, embedding = session.inspect(pixels)
    expected = reference(pixels)
    assert session.embeds
    assert embedding is not None
    assert relative_difference(score, expected[0]) < 1e-4
    assert relative_difference(heatmap, expected[1]) < 1e-4
    with torch.no_grad():
        levels = network.backbone(inspector.geometry(torch.from_numpy(pixels)))
    assert relative_difference(embedding, pooled(levels).numpy()) < 1e-4


def test_an_image_in_tiles_embeds_as_the_mean_of_its_tiles(network):
    tiles = InputGeometry(height=SIDE, width=SIDE, channels=1, tile=SIDE, stride=SIDE)
    whole = InputGeometry(height=SIDE, width=SIDE, channels=1)
    pixels = torch.randint(0, 256, (1, SIDE, 2 * SIDE, 1), dtype=torch.uint8)
    _, _, embedding = Inspector(network, tiles)(pixels)
    halves = [Inspector(network, whole)(half)[2] for half in pixels.split(SIDE, 2)]
    torch.testing.assert_close(embedding, torch.stack(halves).mean(0))
