"""The classifier: what its pools mean, that a score is of one image alone, and that its graph says the same."""

import math

import numpy as np
import pytest
import torch

from kizu.models.bundle import InputGeometry, Session
from kizu.models.classifier import PRESETS, Classifier, ClassifierConfig, lse_pool, topk_pool
from kizu.models.inspector import Inspector
from kizu.training.export import export_onnx, relative_difference, torch_scorer


def make(height=32, width=32, channels=1, **options):
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(height, width, channels, **options))
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


@pytest.fixture
def logits():
    return torch.randn(5, 1, 7, 9, generator=torch.Generator().manual_seed(0)) * 3


def test_the_top_share_is_the_mean_of_the_largest_logits(logits):
    places = logits.flatten(1).sort(descending=True).values
    for share, count in ((0.0, 1), (1e-6, 1), (1 / 63, 1), (0.05, 4), (10 / 63, 10), (0.5, 32), (1.0, 63)):
        torch.testing.assert_close(topk_pool(logits, share), places[:, :count].mean(1))
    assert torch.equal(topk_pool(logits, 0.0), logits.amax((1, 2, 3)))
    torch.testing.assert_close(topk_pool(logits, 1.0), logits.mean((1, 2, 3)))


def test_the_soft_maximum_lies_between_mean_and_maximum(logits):
    places = logits.double().flatten(1)
    torch.testing.assert_close(lse_pool(logits.double(), 1.0), torch.logsumexp(places, 1) - math.log(63))
    torch.testing.assert_close(lse_pool(logits.double(), 1e-5), places.amax(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(lse_pool(logits.double(), 1e6), places.mean(1), atol=1e-4, rtol=0)
    between = lse_pool(logits.double(), 2.0)
    assert ((between > places.mean(1)) & (between < places.amax(1))).all()
    assert torch.isfinite(lse_pool(logits * 1e4, 0.1)).all()
    equal = torch.full((1, 1, 4, 6), 2.5)
    assert lse_pool(equal, 0.7).item() == topk_pool(equal, 0.1).item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    "options", [{}, {"pool": "lse"}, PRESETS["deep"], PRESETS["wavelet"], {"backbone": "resnet18"}], ids=str
)
def test_a_score_depends_on_nothing_but_its_image(assert_depends_on_its_image_alone, options):
    network = make(48, 40, **options)
    x = torch.rand(6, 1, 48, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert_depends_on_its_image_alone(network, x)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (40, 96)])
def test_any_size_from_32_pixels_has_a_map_of_a_quarter(size):
    network = make(*size)
    x = torch.zeros(2, 1, *size)
    assert network.logits(x).shape == (2, 1, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert network(x)[1].shape == (2, 1, *size)


def test_a_defect_is_hot_where_it_is():
    network = make()
    x = torch.zeros(1, 1, 32, 32)
    marked = x.clone()
    marked[:, :, 4:8, 20:24] = 1
    moved = (network(marked)[1] - network(x)[1]).abs()[0, 0]
    assert moved[:16, 12:].sum() > moved[16:, :12].sum() * 2


def test_calibration_moves_score_and_map_alike():
    network = make()
    x = torch.rand(3, 1, 32, 32)
    score, heatmap = network(x)
    network.slope.fill_(1.0)
    network.offset.fill_(0.0)
    raw, raw_map = network(x)
    torch.testing.assert_close(score, 1.7 * raw - 0.3)
    torch.testing.assert_close(heatmap, 1.7 * raw_map - 0.3)


@pytest.mark.parametrize(("views", "flips"), [(2, [(3,)]), (4, [(3,), (2,), (2, 3)])])
def test_views_are_the_mean_over_mirror_images(views, flips):
    one, several = make(), make(views=views)
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = [one(x), *((score, heatmap.flip(axes)) for axes in flips for score, heatmap in [one(x.flip(axes))])]
    score, heatmap = several(x)
    torch.testing.assert_close(score, torch.stack([s for s, _ in outputs]).mean(0))
    torch.testing.assert_close(heatmap, torch.stack([h for _, h in outputs]).mean(0))
    for axes in flips:
        mirrored, mirrored_map = several(x.flip(axes))
        torch.testing.assert_close(mirrored, score)
        torch.testing.assert_close(mirrored_map.flip(axes), heatmap)
    assert not torch.allclose(score, one(x)[0])


@pytest.mark.parametrize(
    ("geometry", "options"),
    [
        (InputGeometry(height=40, width=56, channels=3), {"pool": "lse"}),
        (InputGeometry(height=32, width=32, channels=3, tile=40, stride=30), {"backbone": "resnet18"}),
        (InputGeometry(height=40, width=57, channels=3), {**PRESETS["wavelet"], "views": 4}),
    ],
    ids=["oblong-lse", "tiles-resnet", "odd-wavelet"],
)
def test_the_graph_and_torch_agree_on_images_of_any_size(geometry, options):
    inspector = Inspector(make(geometry.height, geometry.width, geometry.channels, **options), geometry).eval()
    exported, reference = Session(export_onnx(inspector), "cpu", threads=1), torch_scorer(inspector)
    random = np.random.default_rng(0)
    for shape in [(1, geometry.min_height, geometry.min_width, 1), (3, 71, 90, 3)]:
        images = random.integers(0, 256, shape, dtype=np.uint8)
        images[0, : shape[1] // 2] = 77  # flat places show what an exporter took for nothing
        for ours, theirs in zip(exported.score(images), reference(images), strict=True):
            assert ours.shape == theirs.shape
            assert relative_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize(("stem_stride", "halvings", "side"), [(1, 2, 17), (2, 3, 5), (1, 0, 65), (2, 1, 17)])
def test_the_map_has_one_logit_per_stride(stem_stride, halvings, side):
    network = make(65, 65, stem_stride=stem_stride, halvings=halvings)
    assert network.config.stride == stem_stride * 2**halvings
    x = torch.zeros(1, 1, 65, 65)
    assert network.logits(x).shape == (1, 1, side, side)
    assert network(x)[1].shape == x.shape


@pytest.mark.parametrize(("halvings", "side"), [(0, 17), (1, 9), (2, 5)])
def test_wavelets_halve_the_resolution_twice_before_anything_is_learnt(halvings, side):
    network = make(65, 65, **{**PRESETS["wavelet"], "halvings": halvings})
    assert network.config.stride == 4 * 2**halvings
    assert network.logits(torch.zeros(1, 1, 65, 65)).shape == (1, 1, side, side)


def test_the_small_preset_is_small():
    network = Classifier(ClassifierConfig(64, 64, 3, **PRESETS["small"]))
    assert 100_000 < sum(p.numel() for p in network.parameters()) < 300_000


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "mean"},
        {"top_share": 1.5},
        {"lse_temperature": 0.0},
        {"stem_stride": 3},
        {"halvings": 5},
        {"views": 3},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ClassifierConfig(32, 32, 1, **options)
