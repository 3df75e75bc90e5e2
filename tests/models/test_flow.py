"""The normalising flow: invertible, an exact log-determinant, the identity at first, and a graph that says the same."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from kizu.models.backbones import PretrainedBackbone
from kizu.models.bundle import InputGeometry, Session
from kizu.models.flow import STRIDES, Coupling, FlowConfig, FlowDetector, LevelFlow
from kizu.models.inspector import Inspector
from kizu.training.export import export_onnx, relative_difference, torch_scorer

SIDE = 64
GEOMETRY = InputGeometry(height=SIDE, width=SIDE, channels=1)
CONFIG = FlowConfig(SIDE, SIDE, 1, least_side=SIDE, blocks=4, dimensions=12)


def untrained(channels=5, config=CONFIG):
    torch.manual_seed(0)
    return LevelFlow(config, channels).double()


def disturbed(module, size=0.3):
    """The same module, its couplings' last layers no longer zero."""
    for block in module.modules():
        if isinstance(block, Coupling):
            nn.init.normal_(block.last.weight, 0, size)
            nn.init.normal_(cast(torch.Tensor, block.last.bias), 0, size)
    return module


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = FlowDetector(CONFIG, PretrainedBackbone(CONFIG.of_backbone))
    for index, flow in enumerate(made.levels.values()):
        flow.centre.fill_(0.5 + index)
        flow.spread.fill_(2.0 - index)
    return disturbed(made, 0.05).eval().requires_grad_(False)


def images(count):
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_untrained_flow_is_the_identity_and_keeps_volume():
    x = torch.randn(2, 5, 4, 3).double()
    z, logarithm = untrained()(x)
    assert torch.equal(z, x)
    assert torch.equal(logarithm, torch.zeros(2, 4, 3).double())


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_the_inverse_undoes_the_flow(channels):
    flow = disturbed(untrained(channels))
    x = torch.randn(2, channels, 4, 3).double()
    z, _ = flow(x)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(z), x)


def test_the_log_determinant_is_that_of_the_whole_jacobian():
    flow = disturbed(untrained())
    x = torch.randn(1, 5, 3, 2).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v.reshape(x.shape))[0].flatten(), x.flatten())
    _, logarithm = flow(x)
    torch.testing.assert_close(logarithm.sum(), torch.linalg.slogdet(cast(torch.Tensor, jacobian))[1])
    assert logarithm.sum().abs() > 0.1


def test_every_channel_is_changed_by_some_block_and_kept_by_another():
    flow = untrained(6, FlowConfig(SIDE, SIDE, 1, blocks=8))
    blocks = cast("list[Coupling]", list(flow.blocks))
    kept = torch.cat([block.order[: block.kept] for block in blocks])
    changed = torch.cat([block.order[block.kept :] for block in blocks])
    assert set(kept.tolist()) == set(changed.tolist()) == set(range(6))


def test_a_block_scales_by_no_more_than_its_clamp():
    block = disturbed(Coupling(FlowConfig(SIDE, SIDE, 1, clamp=0.5), 4, 1), 100.0)
    _, logarithm = block(torch.randn(3, 4, 2, 2))
    assert logarithm.abs().max() <= 2 * 0.5
    assert logarithm.abs().max() > 0.9


def test_surprise_is_the_negative_log_density_up_to_its_constant():
    flow = disturbed(untrained())
    x = torch.randn(1, 5, 3, 2).double()
    z, logarithm = flow(x)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + logarithm
    constant = 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(flow.surprise(x), -density / 5 - constant)


def test_wide_levels_are_projected_orthogonally():
    flow = LevelFlow(CONFIG, 40)
    assert flow.channels == 12
    torch.testing.assert_close(flow.projection @ flow.projection.T, torch.eye(12))
    assert flow.white(torch.randn(2, 40, 3, 3)).shape == (2, 12, 3, 3)


def test_it_scores_one_image_alone(network, assert_depends_on_its_image_alone):
    assert_depends_on_its_image_alone(network, images(6), spread=0)


def test_the_score_is_the_mean_of_the_most_surprising_places(network):
    x = images(2)
    levels = network.backbone(x)
    maps = []
    for stride in STRIDES:
        flow = network.levels[stride]
        averaged = nn.functional.avg_pool2d(levels[stride], 3, 1, 1, count_include_pad=False)
        surprise = (flow.surprise(flow.white(averaged)) - flow.centre) / flow.spread
        maps.append(nn.functional.interpolate(surprise[:, None], (8, 8), mode="bilinear", align_corners=False))
    places = torch.stack(maps).mean(0).flatten(1)
    count = round(CONFIG.peak * 64)
    expected = places.sort(1, descending=True).values[:, :count].mean(1)
    torch.testing.assert_close(network(x)[0], expected)


def test_the_exported_graph_scores_as_torch_does(network):
    inspector = Inspector(network, GEOMETRY).eval()
    session, reference = Session(export_onnx(inspector), "cpu"), torch_scorer(inspector)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 90, 75, 3), dtype=np.uint8)
    for found, expected in zip(session.score(pixels), reference(pixels), strict=True):
        assert relative_difference(found, expected) < 1e-4
